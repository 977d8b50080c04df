"""Install the wheel as a stranger would, and run the server it brings."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.end_to_end.servers import ROOT, Server, StartServer, running

WEIGHTS = ROOT / "src" / "openklein" / "weights" / "klein_mini" / "transformer.safetensors"


@pytest.fixture(scope="session")
def openklein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it into an environment of its own; return the command.

    The packages it depends on are lent by the environment of the tests: installing them anew takes minutes.
    """
    if not WEIGHTS.exists():
        pytest.skip(f"klein-mini's weights are not in {WEIGHTS.parent}")
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (site_packages,) = folder.glob("venv/lib/python*/site-packages")
    (site_packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    options = ["--no-deps", "--no-index", "--ignore-installed", "--no-compile", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True, capture_output=True)
    return folder / "venv" / "bin" / "openklein"


@pytest.fixture(scope="session")
def start_server(openklein: Path, tmp_path_factory: pytest.TempPathFactory) -> StartServer:
    def start(data_dir: Path, *flags: str, env: dict[str, str] | None = None) -> AbstractContextManager[Server]:
        command = [str(openklein), "serve", "--port", "0", "--data-dir", str(data_dir), *flags]
        return running(command, tmp_path_factory.mktemp("server"), env or {})

    return start


@pytest.fixture(scope="session")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run one server on a fresh data folder for all tests that leave it running."""
    with start_server(tmp_path_factory.mktemp("share") / "data") as running:
        running.wait_until_ready()
        yield running
