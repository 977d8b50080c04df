"""Open the database and hand out transactions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event

from openklein.storage.tables import METADATA


def make_data_dir(path: Path) -> None:
    """Make the data folder, open to its owner alone; leave one that exists as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


class Database:
    """Own the connections to one database, whose tables it makes where they lack."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _set_up_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        with self.write() as connection:
            METADATA.create_all(connection)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the data and changes nothing."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open the one transaction that may write; others wait for it; commit at the end, roll back on errors."""
        with self._engine.execution_options(is_writer=True).begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins too late; _begin_sqlite does it
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail against another writer; one that is immediate waits.
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
