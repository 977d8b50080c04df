"""Hold the house together: who may import whom, and what stays free of torch."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "openklein"

SHARED = {"openklein", "settings", "errors", "contract"}
MAY_IMPORT = {
    "settings": set(),
    "errors": set(),
    "contract": set(),
    "engine": set(),
    "storage": set(),
    "client": set(),
    "api": {"engine", "storage"},
    "cluster": {"engine", "api"},
    "cli": {"api", "engine", "storage", "client", "cluster"},
}
OUTSIDE_MAY_IMPORT = {
    "training": {"engine", "client"},
    "benchmarks": {"engine", "client", "api", "storage", "cli"},  # they serve what they measure
}
FORBIDDEN = {
    "engine": {"fastapi", "starlette", "uvicorn", "httpx", "sqlalchemy"},
    "storage": {"fastapi", "starlette", "uvicorn", "httpx", "torch"},
    "client": {"torch", "fastapi", "sqlalchemy"},
    "cli": {"fastapi", "starlette"},
}
HEAVY = {"torch", "numpy", "PIL", "fastapi", "sqlalchemy", "huggingface_hub"}
LIGHT = ["openklein", "openklein.contract", "openklein.errors", "openklein.settings", "openklein.cli.main"]


def imported_names(path: Path, package: tuple[str, ...] = ()) -> set[str]:
    """List the modules a file imports, absolute; `from a import b` counts as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def our_packages(names: set[str]) -> set[str]:
    """Reduce openklein.engine.images.x to engine, and openklein.__version__ to openklein."""
    ours = [name.split(".") for name in names if name.split(".")[0] == "openklein"]
    return {"openklein" if len(parts) == 1 or parts[1].startswith("__") else parts[1] for parts in ours}


def run_python(code: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(SOURCE.parent)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def package_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return "openklein" if part == "__init__.py" else part.removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_import_what_their_layer_may(path: Path) -> None:
    package = package_of(path)
    names = imported_names(path, ("openklein", *path.relative_to(SOURCE).parts[:-1]))
    if package == "openklein":
        assert our_packages(names) == set()
        return
    assert package in MAY_IMPORT, f"{package} has no row in the table of layers"
    assert our_packages(names) <= MAY_IMPORT[package] | SHARED | {package}
    assert {name.split(".")[0] for name in names} & FORBIDDEN.get(package, set()) == set()


@pytest.mark.parametrize("folder", OUTSIDE_MAY_IMPORT)
def test_recipes_import_what_they_may(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert our_packages(imported_names(path)) <= OUTSIDE_MAY_IMPORT[folder] | SHARED, path


def test_nothing_imports_the_recipes() -> None:
    for path in modules():
        assert {name.split(".")[0] for name in imported_names(path)} & {"training", "benchmarks", "tests"} == set(), (
            path
        )


def test_the_rules_find_a_breach(tmp_path: Path) -> None:
    breach = tmp_path / "breach.py"
    breach.write_text("def late():\n    from openklein.api import app\nfrom .. import storage\nimport torch.nn\n")
    names = imported_names(breach, ("openklein", "engine"))
    assert names == {"openklein.api.app", "openklein.storage", "torch.nn"}
    assert our_packages(names) == {"api", "storage"}


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_never_import_torch(module: str) -> None:
    run = run_python(f"import {module}, sys; assert not {HEAVY} & set(sys.modules)")
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["serve", "--help"], ["generate", "--help"], ["models", "pull", "--help"], ["--version"]]
)
def test_help_never_imports_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from openklein.cli.main import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit as end: assert end.code == 0, end\n"
        f"assert not {HEAVY} & set(sys.modules)"
    )
    run = run_python(code)
    assert (run.returncode, run.stderr) == (0, "")
    assert "openklein" in run.stdout
