"""Close the surroundings of every test, and lend a model small enough for all of them."""

import os
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest
import torch

from openklein.engine.pipeline import Pipeline
from tests import tiny
from tests.postgres import Postgres, find_program, running_postgres

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def closed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("OPENKLEIN_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let connections lead to this machine only."""
    connect = socket.socket.connect

    def connect_to_loopback(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            assert address[0] == "localhost" or ip_address(address[0]).is_loopback, f"a test connects to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


@pytest.fixture(scope="session")
def tiny_pipeline() -> Pipeline:
    """Lend a klein-mini of one block with random weights, which makes a picture in milliseconds."""
    return tiny.tiny_pipeline()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Lend a PostgreSQL server."""
    initdb, server = find_program("initdb"), find_program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed; Debian and Ubuntu have it as the package postgresql")
    with running_postgres(initdb, server) as running:
        yield running
