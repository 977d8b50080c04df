"""Hold pyproject.toml, constraints.txt and the installed packages together."""

import re
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def pinned() -> dict[str, str]:
    return {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in PINS)}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in (*PROJECT["dependencies"], *(text for extra in extras for text in extra))]


@pytest.mark.parametrize("line", PINS)
def test_pins_are_exact_and_of_no_special_build(line: str) -> None:
    assert re.fullmatch(r"[\w.-]+==[\w.]+", line)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_within_its_range_and_installed_so(requirement: Requirement) -> None:
    pin = pinned()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)
    # A PyTorch that someone chose for their GPU is theirs to choose.
    if requirement.name != "torch":
        assert version(requirement.name) == pin


def test_what_the_dependencies_need_is_pinned_too() -> None:
    needed = [Requirement(text) for name in pinned() for text in requires(name) or ()]
    missing = {needed.name for needed in needed if needed.marker is None} - {"setuptools"}
    assert {name for name in missing if canonicalize_name(name) not in pinned()} == set()


def test_torch_is_pinned_as_the_whole_project_expects() -> None:
    assert pinned()["torch"] == "2.13.0"


def test_git_ignores_no_weights_and_no_page() -> None:
    for name in ("weights/klein_mini/transformer.safetensors", "weights/klein_mini/README.md", "playground/app.js"):
        run = subprocess.run(["git", "check-ignore", "--no-index", f"src/openklein/{name}"], cwd=ROOT, check=False)
        assert run.returncode == 1, name
