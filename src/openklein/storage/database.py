"""Open the database, bring its tables up to date, and hand out transactions."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError

from openklein.errors import InvalidSetting

MIGRATION_LOCK = 7_211_310_501  # any number that no other program on the same PostgreSQL uses


def make_data_dir(path: Path) -> None:
    """Make the data folder, open to its owner alone; leave one that exists as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


class Database:
    """Own the connections to one database, SQLite or PostgreSQL, and migrate it to the newest tables."""

    def __init__(self, url: str) -> None:
        """Connect; raises InvalidSetting for a URL that names no database, or one whose driver is not installed."""
        parsed = _read_url(url)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        # A thread that waits for another of this process is woken at once; SQLite itself would sleep and ask again.
        self._writing = Lock() if self._is_sqlite else nullcontext()
        try:
            self._engine = create_engine(parsed, pool_pre_ping=not self._is_sqlite, hide_parameters=True)
        except ModuleNotFoundError as error:
            raise InvalidSetting("PostgreSQL needs a driver: pip install 'openklein[postgres]'.") from error
        if self._is_sqlite:
            event.listen(self._engine, "connect", _set_up_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        try:
            with self.write() as connection:
                self._migrate(connection)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the data and changes nothing."""
        options = {} if self._is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with self._engine.connect().execution_options(**options) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may write; commit at its end, roll back on errors.

        On SQLite it is the only one, and others wait for it; on PostgreSQL rows have to be locked.
        """
        with self._writing, self._engine.execution_options(is_writer=True).begin() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self, connection: Connection) -> None:
        if not self._is_sqlite:  # processes that start together wait for the first
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "openklein.storage:migrations")
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise InvalidSetting("the database was made by a newer release of openklein; use that release.") from error


def _read_url(url: str) -> URL:
    try:
        parsed = make_url(url)
        if parsed.drivername == "sqlite":
            return parsed
        if parsed.drivername in ("postgresql", "postgres"):
            return parsed.set(drivername="postgresql+psycopg")
    except ArgumentError:
        pass
    raise InvalidSetting("the database URL cannot be read; postgresql://user@host/name is one.")


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins too late; _begin_sqlite does it
    for pragma in ("busy_timeout=5000", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")
    _write_ahead(connection, patience_s=5.0)


def _write_ahead(connection: Any, patience_s: float) -> None:
    # SQLite waits for other processes everywhere but here: two that change the mode together could wait for ever.
    deadline = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail against another writer; one that is immediate waits.
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
