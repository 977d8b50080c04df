import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SKIPS = {
    "a test that skips": "import pytest\ndef test_it(): pytest.skip('no tool')\n",
    "a marked test": "import pytest\n@pytest.mark.skip(reason='no tool')\ndef test_it(): assert True\n",
    "a whole module": "import pytest\npytest.importorskip('no_such_module')\ndef test_it(): assert True\n",
}


def run_pytest(folder: Path, *, require_all: bool) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-p", "tests.require_all", "--rootdir", str(folder), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENKLEIN_REQUIRE_ALL": "1" if require_all else ""}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("source", SKIPS.values(), ids=SKIPS)
def test_a_skip_fails_where_everything_is_required(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_it.py").write_text(source)
    required = run_pytest(tmp_path, require_all=True)
    assert required.returncode in (1, 2), required.stdout
    assert "skipped, which OPENKLEIN_REQUIRE_ALL=1 forbids" in required.stdout
    assert "1 skipped" in run_pytest(tmp_path, require_all=False).stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n")
    assert run_pytest(tmp_path, require_all=True).returncode == 0
