"""Lend a model hub on loopback, the folder that downloads go to, and a model that works in any size."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from openklein.contract import DEFAULT_MODEL
from openklein.engine.pipeline import Pipeline
from tests.model_hub import ModelHub, serving, use_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModelHub]:
    with serving(ModelHub()) as hub:
        use_hub(monkeypatch, hub.url, tmp_path)
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / DEFAULT_MODEL


@pytest.fixture
def in_the_size_asked_for(tiny_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """Have it work as all models but klein-mini do."""
    monkeypatch.setattr(tiny_pipeline, "card", replace(tiny_pipeline.card, reference_max_area=1024 * 1024))
    return tiny_pipeline
