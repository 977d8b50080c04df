"""Run what the README and the quickstart tell people to type."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end.servers import ROOT, Server, clean_environment, running
from tests.require_all import REQUIRE_ALL

README, QUICKSTART = ROOT / "README.md", ROOT / "docs" / "quickstart.md"
FENCE = re.compile(r"^```(?:sh|bash|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTION = "## Without make\n"
LEFT_OUT = (".*", "tests", "benchmarks", "training", "node_modules", "__pycache__")  # what installing has no use for


def commands(section: str = "", page: Path = README) -> list[str]:
    """List the commands of all shell blocks, or a section's: continued lines joined, prompts and comments left out."""
    text = page.read_text()
    text = text if not section else text.partition(section)[2].partition("\n## ")[0]
    lines = "\n".join(FENCE.findall(text)).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"^\$ |\s*(?:^|\s)#.*$", "", line).strip())]


def test_every_command_is_of_a_kind_that_is_checked() -> None:
    elsewhere = [command for command in commands() if command not in commands(SECTION)]
    assert {command.split()[0] for command in elsewhere} <= {"make", "curl", "openklein"}
    assert any(command.startswith("make serve") for command in commands())
    assert any(command.startswith("curl ") for command in commands())


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands():
        if command.startswith("make "):
            assert command.split()[1] in targets, command


def test_make_serve_serves_once_installed(openklein: Path, tmp_path: Path) -> None:
    environment = openklein.parent.parent
    installed = ["-o", f"{environment}/.installed"]  # with no need to look for what it is made of
    flags = f"ARGS=--port 0 --data-dir {tmp_path / 'data'}"
    with running(["make", "-C", str(ROOT), "serve", f"VENV={environment}", *installed, flags], tmp_path, {}) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.get("/v1/models").status_code == 200


def test_the_lines_without_make_install_and_serve(tmp_path: Path) -> None:
    if not REQUIRE_ALL:
        pytest.skip("it fetches every package anew, PyTorch among them; .ci/run does so")
    clone = tmp_path / "openklein"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*LEFT_OUT))
    *install, serve = commands(SECTION)
    for line in install:
        run = subprocess.run(line, shell=True, cwd=clone, env=clean_environment(), capture_output=True, check=False)
        assert run.returncode == 0, (line, run.stderr.decode())
    command = [str(clone / ".venv" / "bin" / "openklein"), *shlex.split(serve)[1:]]
    with running([*command, "--port", "0", "--data-dir", str(tmp_path / "data")], tmp_path, {}) as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.get("/v1/models").status_code == 200


def test_curl_lines_and_commands_do_what_they_say(server: Server, openklein: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    env = {**clean_environment(), "OPENKLEIN_DATA_DIR": str(tmp_path / "data")}
    for command in commands():
        words = shlex.split(command)
        if words[0] == "curl":
            line = re.sub(r"http://(127\.0\.0\.1|localhost):8000", server.url, command)
            line = re.sub(r"Bearer [^\"']+", f"Bearer {server.key}", line)
        elif words[0] == "openklein":
            line = f"{shlex.quote(str(openklein))} {command.partition(' ')[2]}"
        else:
            continue
        run_and_look(line, words, tmp_path, env)
    assert {path.name for path in tmp_path.glob("*.png")} == {"apple.png", "green.png"}


def run_and_look(line: str, words: list[str], folder: Path, env: dict[str, str]) -> None:
    """Run a line, which has to succeed and to leave a picture where it is told to."""
    run = subprocess.run(["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, (line, run.stderr)
    if "-o" in words:
        with Image.open(folder / words[words.index("-o") + 1]) as image:
            image.load()
            assert image.format == "PNG", line


def test_the_quickstart_can_be_followed_from_its_first_line_to_its_last(server: Server, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    env = {**clean_environment(), "KLEIN": f"{server.url}/v1/generate", "KEY": server.key}
    lines = [line for line in commands(page=QUICKSTART) if line.startswith("curl ")]
    for line in lines:
        run_and_look(line, shlex.split(line), tmp_path, env)
    (program,) = re.findall(r"^```python\n(.*?)^```", QUICKSTART.read_text(), re.MULTILINE | re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", server.url).replace("klein_...", server.key)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=True)
    assert {path.stem for path in tmp_path.glob("*.png")} == {"sunflower", "blue", "apple", "both", "rocket"}
