"""Lend a model hub on loopback, and the folder that downloads go to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from openklein.contract import DEFAULT_MODEL
from tests.model_hub import ModelHub, serving, use_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with serving(ModelHub()) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / DEFAULT_MODEL
