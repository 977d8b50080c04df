import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import Pool

from openklein.errors import InvalidSetting
from openklein.storage.database import Database, make_data_dir
from openklein.storage.keys import create_key, find_key, list_keys, revoke_key
from openklein.storage.tables import KEYS, METADATA
from tests.postgres import Postgres
from tests.storage.race import race


def insert_key(connection: Any) -> None:
    connection.execute(
        text(
            "INSERT INTO api_keys (id, name, digest, created_at) "
            "VALUES ('a', '', '01234567890123456789012345678901', '2026-11-22')"
        )
    )


def test_data_folder_is_open_to_its_owner_alone(tmp_path: Path) -> None:
    make_data_dir(tmp_path / "share" / "klein")
    assert stat.S_IMODE((tmp_path / "share" / "klein").stat().st_mode) == 0o700


def test_a_data_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    make_data_dir(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


@pytest.fixture
def careless_sqlite() -> Iterator[None]:
    """Open every connection as a build of SQLite does whose default is not to wait for the disk."""

    def relax(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Pool, "connect", relax)
    yield
    event.remove(Pool, "connect", relax)


@pytest.mark.usefixtures("careless_sqlite")
def test_sqlite_keeps_what_was_committed_through_a_power_loss(sqlite_url: str) -> None:
    with closing(Database(sqlite_url)) as database, database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


def test_an_error_rolls_the_transaction_back(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as connection:
        insert_key(connection)
        raise RuntimeError
    assert list_keys(database) == []


def test_writers_wait_for_each_other(database: Database) -> None:
    threads = [threading.Thread(target=create_key, args=(database, str(number))) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_keys(database)) == 16


def test_a_writer_of_sqlite_holds_the_lock_from_its_first_moment(sqlite_url: str) -> None:
    with closing(Database(sqlite_url)) as database, database.write(), database.read() as reader:
        reader.execute(text("PRAGMA busy_timeout=0"))
        with pytest.raises(OperationalError, match="locked"):
            reader.execute(text("DELETE FROM api_keys"))


def test_reading_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as writer:
        insert_key(writer)
        assert list_keys(database) == []


def test_a_reader_sees_one_state_of_the_data(database: Database) -> None:
    with database.read() as reader:
        assert reader.execute(KEYS.select()).all() == []
        create_key(database, "meanwhile")
        assert reader.execute(KEYS.select()).all() == []


def test_a_database_opens_again_with_what_it_held(database: Database, database_url: str) -> None:
    key = create_key(database, "kept")
    with closing(Database(database_url)) as again:
        assert [kept.id for kept in list_keys(again)] == [key.id]


def test_migrations_lead_to_the_tables_that_the_code_uses(database: Database) -> None:
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_a_database_of_the_first_release_keeps_its_keys(sqlite_url: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "test.db") as connection:
        connection.executescript("""
            CREATE TABLE api_keys (
                id VARCHAR(32) NOT NULL, name VARCHAR(200) NOT NULL, digest BLOB NOT NULL,
                created_at DATETIME NOT NULL, revoked_at DATETIME, PRIMARY KEY (id));
            CREATE UNIQUE INDEX ix_api_keys_digest ON api_keys (digest);
            INSERT INTO api_keys VALUES ('good', 'laptop',
                x'2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b',
                '2026-11-22 10:00:00.000000', NULL);
            INSERT INTO api_keys VALUES ('revoked', '', x'00',
                '2026-11-22 11:00:00.000000', '2026-11-22 12:00:00.000000');
        """)
    connection.close()
    with closing(Database(sqlite_url)) as database:
        good, revoked = list_keys(database)
        assert find_key(database, "secret") == good
        assert (good.id, good.name, good.scopes, good.is_valid) == ("good", "laptop", ("generate", "read"), True)
        assert (revoked.id, revoked.is_valid) == ("revoked", False)
        assert revoke_key(database, "good")
        with database.read() as migrated:
            assert compare_metadata(MigrationContext.configure(migrated), METADATA) == []


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    assert race(database_url, processes=4) == []
    with closing(Database(database_url)) as database, database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        assert len(connection.execute(text("SELECT version_num FROM alembic_version")).all()) == 1


def test_a_new_file_that_another_process_writes_to_is_waited_for(sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "test.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.2, other.rollback).start()
        with closing(Database(sqlite_url)) as database:
            assert not other.in_transaction
            assert list_keys(database) == []


def test_a_database_of_a_newer_release_is_left_alone(database: Database, database_url: str) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidSetting, match="newer release"):
        Database(database_url)


def test_postgresql_may_restart(postgres: Postgres) -> None:
    with closing(Database(postgres.make_database())) as database:
        create_key(database, "before")
        with database.write() as connection:
            connection.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()")
            )
        assert len(list_keys(database)) == 1


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name", "sqlite//"])
def test_urls_of_no_database_are_refused(url: str) -> None:
    with pytest.raises(InvalidSetting, match="the database URL cannot be read"):
        Database(url)


def test_errors_do_not_show_what_was_written(database: Database) -> None:
    with pytest.raises(Exception, match="parameters hidden") as failed, database.write() as connection:
        for _ in range(2):
            connection.execute(KEYS.insert(), {"id": "a", "name": "", "digest": b"secret digest", "created_at": None})
    assert "secret digest" not in str(failed.value)
