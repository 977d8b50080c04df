import subprocess
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from openklein import __version__
from tests.end_to_end.servers import clean_environment

MAX_WEIGHTS_BYTES = 80e6
CARRIED = [
    "openklein/py.typed",
    "openklein/playground/index.html",
    "openklein/playground/app.js",
    "openklein/playground/style.css",
    "openklein/playground/templates/templates.json",
    "openklein/playground/templates/lion.webp",
    "openklein/storage/migrations/env.py",
    "openklein/storage/migrations/versions/0001_keys.py",
    "openklein/weights/klein_mini/README.md",
    "openklein/weights/klein_mini/autoencoder.safetensors",
    "openklein/weights/klein_mini/text_encoder.safetensors",
    "openklein/weights/klein_mini/tokenizer.json",
    "openklein/weights/klein_mini/transformer.safetensors",
]


@pytest.fixture(scope="module")
def wheel(openklein: Path) -> Path:
    (wheel,) = openklein.parent.parent.parent.glob("*.whl")
    return wheel


@pytest.mark.parametrize("name", CARRIED)
def test_the_wheel_carries_model_and_page(wheel: Path, name: str) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.getinfo(name).file_size > 0 or name.endswith("py.typed")


def test_the_wheel_carries_nothing_else_than_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        roots = {name.split("/")[0] for name in archive.namelist()}
    assert roots == {"openklein", f"openklein-{__version__}.dist-info"}


def test_the_model_is_small_enough(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [file for file in archive.infolist() if file.filename.startswith("openklein/weights/")]
    assert 0 < sum(file.file_size for file in files) <= MAX_WEIGHTS_BYTES


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"openklein-{__version__}.dist-info/METADATA").decode())
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "openklein",
        __version__,
        "Apache-2.0",
    )
    assert "# openklein" in str(metadata.get_payload())


def test_the_installed_command_works_from_any_folder(openklein: Path, tmp_path: Path) -> None:
    command = [str(openklein), "generate", "a red apple", "-o", "apple.png", "--seed", "1"]
    env = {**clean_environment(), "OPENKLEIN_DATA_DIR": str(tmp_path / "data")}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")
