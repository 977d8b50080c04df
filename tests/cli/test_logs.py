import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from openklein.cli.logs import JsonFormatter, set_up_logging

SOURCE = Path(__file__).parent.parent.parent / "src"
WRITE = """
import logging
from openklein.cli.logs import set_up_logging
set_up_logging({level!r}, {style!r})
ours, other = logging.getLogger("openklein.api"), logging.getLogger("httpx")
ours.debug("debugged"); ours.info("told %s", 1); other.info("quoted"); other.warning("complained")
ours.info("request", extra={{"facts": {{"status": 200}}}})
try: raise RuntimeError("two\\nlines")
except RuntimeError: ours.exception("failed")
"""


def written(level: str, style: str) -> list[str]:
    """Log from a process of its own, and return the lines on standard error."""
    code = WRITE.format(level=level, style=style)
    env = {**os.environ, "PYTHONPATH": str(SOURCE)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert run.stdout == ""
    return run.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    told, complained, request, failed = map(json.loads, written("info", "json"))
    assert (told["level"], told["logger"], told["message"]) == ("info", "openklein.api", "told 1")
    assert (complained["logger"], complained["message"]) == ("httpx", "complained")
    assert (request["status"], "message" in request) == (200, False)
    assert failed["message"] == "failed"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("RuntimeError: two\nlines")
    for line in (told, complained, request, failed):
        assert line["time"].endswith("+00:00")


def test_text_is_for_reading() -> None:
    lines = written("debug", "text")
    assert [line.split(": ", 1)[1] for line in lines[:4]] == ["debugged", "told 1", "complained", "request"]


def test_json_never_breaks_a_line() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "one\ntwo\u2028three\r%s", ("é\0",), None)
    line = JsonFormatter().format(record)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["message"] == "one\ntwo\u2028three\ré\0"


@pytest.mark.parametrize("style", ["text", "json"])
def test_libraries_that_quote_clients_only_complain(style: str) -> None:
    ours = logging.getLogger("openklein")
    before = ours.level
    try:
        set_up_logging("debug", style)
        assert logging.getLogger("openklein.api").isEnabledFor(logging.DEBUG)
        for name in ("httpx", "httpcore", "python_multipart", "PIL", "sqlalchemy", "uvicorn.access"):
            assert not logging.getLogger(name).isEnabledFor(logging.INFO), name
    finally:
        ours.setLevel(before)
