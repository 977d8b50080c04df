import sys

import pytest

from openklein.cli.tracing import tracing
from openklein.errors import InvalidSetting


def test_without_an_endpoint_nothing_is_traced() -> None:
    with tracing(None) as observers:
        assert observers == ()


def test_a_lacking_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openklein.api.traces", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'openklein\[otel\]'"), tracing("http://127.0.0.1:1"):
        pass
