import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux alone")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "GOMP_SPINCOUNT = '10000'"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_threads_soon_sleep_where_they_wait_for_each_other(given: dict[str, str], expected: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = inherited | {"OMP_DISPLAY_ENV": "VERBOSE"} | given
    code = "import openklein.engine.pipeline"
    loaded = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert expected in loaded.stderr
