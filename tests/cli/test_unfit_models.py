"""Model folders that cannot be served: one sentence that names file and fix, exit code 1, nothing half-loaded."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openklein.cli.main import main
from openklein.engine import weights
from openklein.engine.catalog import KLEIN_4B
from tests.parity.makers import transformer_shapes
from tests.sparse import FILES, official_shapes, write_official_folder, write_sparse

MODEL = KLEIN_4B.id


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of a whole 4B model, by its headers, in the data folder that the settings name."""
    monkeypatch.setenv("OPENKLEIN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_official_folder(tmp_path / "data" / "models" / MODEL)
    return tmp_path / "data" / "models" / MODEL


def not_a_checkpoint(folder: Path) -> None:
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()
    (folder / "notes.txt").write_text("hello")


def without_a_part(folder: Path) -> None:
    (folder / FILES["autoencoder"]).unlink()


def truncated(folder: Path) -> None:
    with (folder / FILES["transformer"]).open("r+b") as file:
        file.truncate(7_000_000_000)


def wrong_shape(folder: Path) -> None:
    shapes = {**official_shapes("transformer"), "proj_out.weight": (128, 4096)}
    write_sparse(folder / FILES["transformer"], shapes)


def another_model(folder: Path) -> None:
    write_sparse(folder / FILES["text_encoder"], official_shapes("transformer"))


def another_model_in_a_single_file(folder: Path) -> None:
    (folder / FILES["transformer"]).unlink()
    shapes = {f"{name}.lin.weight": shape for name, shape in transformer_shapes(KLEIN_4B.transformer)}
    write_sparse(folder / "flux-2-klein-4b.safetensors", shapes)


def an_index_of_nothing(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors.index.json").write_text('{"weight_map": {}}')


def a_file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("hello")


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")


def two_single_files(folder: Path) -> None:
    (folder / FILES["transformer"]).unlink()
    for name in ("flux-2-klein-4b.safetensors", "flux-2-klein-4b-copy.safetensors"):
        write_sparse(folder / name, dict(transformer_shapes(KLEIN_4B.transformer)))


CASES: list[tuple[Callable[[Path], None], str]] = [
    (an_index_of_nothing, r"text_encoder/model\.safetensors\.index\.json is not the index of .*; download it again"),
    (a_file_in_its_place, r"tokenizer\.json does not exist; download the model's files into \S+flux2-klein-4b"),
    (not_a_checkpoint, r"tokenizer\.json does not exist; download the model's files into \S+flux2-klein-4b"),
    (without_a_part, r"vae/\*\.safetensors does not exist; download the model's files into "),
    (truncated, r"transformer/\S+\.safetensors is not a complete safetensors file .*; download it again"),
    (
        wrong_shape,
        r"transformer/\S+ does not hold the transformer of flux2-klein-4b: "
        r"proj_out\.weight has shape \(128, 4096\), and \(128, 3072\) is needed; put the right file there",
    ),
    (another_model, r"text_encoder/\S+ does not hold the text encoder of flux2-klein-4b: it lacks model\.embed"),
    (another_model_in_a_single_file, r"flux-2-klein-4b\.safetensors does not hold the transformer .* it lacks "),
    (another_tokenizer, r"tokenizer\.json is not a tokenizer .*; download it again"),
    (two_single_files, r"is both in \S+4b-copy\.safetensors and in \S+4b\.safetensors; keep one of them"),
]


@pytest.mark.parametrize(("spoil", "sentence"), CASES, ids=[spoil.__name__ for spoil, _ in CASES])
def test_generate_says_what_is_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], sentence: str
) -> None:
    spoil(folder)
    assert main(["generate", "a red apple", "-o", "a.png"]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert re.search(f"^openklein: .*{sentence}", err), err
    assert not Path("a.png").exists()


def test_too_little_memory_is_said_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "available_bytes", lambda device: 3e9)
    monkeypatch.setattr(weights, "fill", lambda *_: pytest.fail("something was loaded"))
    assert main(["generate", "a red apple", "-o", "a.png"]) == 1
    sentence = (
        r"openklein: flux2-klein-4b needs (17\.4|34\.\d) GB of memory on cpu in torch\.\w+, and 3\.0 GB are available; "
        r"free some, or choose what fits: --model klein-mini \(0\.[1-9] GB\)\.\n"
    )
    assert re.fullmatch(sentence, capsys.readouterr().err)


def test_only_the_default_has_a_stand_in(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red apple", "-o", "a.png", "--model", "flux2-klein-base-4b"]) == 1
    assert "flux2-klein-base-4b/tokenizer/tokenizer.json does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [not_a_checkpoint, truncated], ids=lambda spoil: spoil.__name__)
def test_serve_ends_with_the_sentence(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    command = "import sys; from openklein.cli.main import main; sys.exit(main())"
    server = subprocess.run(
        [sys.executable, "-c", command, "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(Path(weights.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (server.returncode, server.stdout) == (1, ""), server.stderr
    assert re.search(f"The server stops: .*{dict(CASES)[spoil]}", server.stderr)
    assert "Traceback" not in server.stderr
