"""Lend the API tests one running site, and sites of their own where they need other settings."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from openklein.engine.pipeline import Pipeline
from tests.api.listener import Listener, listening
from tests.api.sites import Site, running_site


class MakeSite(Protocol):
    """Serve a site whose settings differ from the defaults."""

    def __call__(self, **changes: object) -> AbstractContextManager[Site]: ...


@pytest.fixture(scope="session")
def shared_site(tiny_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site"), tiny_pipeline) as running:
        yield running


@pytest.fixture
def site(shared_site: Site) -> Site:
    """Give the site that all tests share, forgetting what earlier ones asked of it."""
    shared_site.pipeline.requests.clear()
    shared_site.pipeline.steps = shared_site.pipeline.ended = 0
    return shared_site


@pytest.fixture
def make_site(tiny_pipeline: Pipeline, tmp_path: Path) -> MakeSite:
    return partial(running_site, tmp_path, tiny_pipeline)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as running:
        yield running
