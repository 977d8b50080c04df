"""Hold the source to what attackers cannot reach because it is not there; docs/security.md lists the attacks."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "openklein"
API = SOURCE / "api"

NEVER_IMPORTED = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "zmq", "xmlrpc", "runpy"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__", "importlib.import_module", "torch.load", "np.load"}
NO_PROCESSES = {"subprocess", "multiprocessing", "pty", "os.system", "os.popen", "os.execv", "os.fork"}
NO_FILES = {"open", "write_bytes", "write_text", "mkdir", "unlink", "rename", "rmtree", "save", "mkstemp"}
LISTENS = {"create_server", "start_server", "start_unix_server", "bind"}


def imports_and_calls(path: Path) -> tuple[set[str], set[str]]:
    """List the packages that a file imports, and what it calls: functions by their dotted name, methods by theirs."""
    imported: set[str] = set()
    called: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Call):
            called.add(ast.unparse(node.func))
    return imported, called


def methods(called: set[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in called}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_unpickled_evaluated_or_imported_by_name(path: Path) -> None:
    imported, called = imports_and_calls(path)
    assert imported & NEVER_IMPORTED == set()
    assert called & NEVER_CALLED == set()
    if path.relative_to(SOURCE).parts[0] in ("api", "engine", "storage"):
        assert (imported | called) & NO_PROCESSES == set()


@pytest.mark.parametrize("path", sorted(API.rglob("*.py")), ids=lambda path: str(path.relative_to(API)))
def test_the_api_opens_no_file_and_listens_nowhere(path: Path) -> None:
    _, called = imports_and_calls(path)
    assert methods(called - {"Image.open"}) & NO_FILES == set()


def test_one_line_opens_the_only_port() -> None:
    listening = [path for path in SOURCE.rglob("*.py") if methods(imports_and_calls(path)[1]) & LISTENS]
    assert [str(path.relative_to(SOURCE)) for path in listening] == ["cli/serve.py"]


def test_the_scan_finds_what_it_looks_for(tmp_path: Path) -> None:
    breach = tmp_path / "breach.py"
    breach.write_text("import pickle, os\nfrom yaml import load\neval('1')\nos.system('x')\nPath('x').write_text('')\n")
    imported, called = imports_and_calls(breach)
    assert imported & NEVER_IMPORTED == {"pickle", "yaml"}
    assert called & NEVER_CALLED == {"eval"}
    assert called & NO_PROCESSES == {"os.system"}
    assert methods(called) & NO_FILES == {"write_text"}
