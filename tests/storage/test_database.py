import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import Pool

from openklein.storage.database import Database, make_data_dir
from openklein.storage.keys import create_key, list_keys


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(f"sqlite:///{tmp_path / 'test.db'}")) as database:
        yield database


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
def test_sqlite_keeps_what_was_committed_through_a_power_loss(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


def test_an_error_rolls_the_transaction_back(database: Database) -> None:
    with pytest.raises(RuntimeError), database.write() as connection:
        connection.execute(text("INSERT INTO api_keys (id, name, digest, created_at) VALUES ('a', '', 'd', 0)"))
        raise RuntimeError
    assert list_keys(database) == []


def test_writers_wait_for_each_other(database: Database) -> None:
    threads = [threading.Thread(target=create_key, args=(database, str(number))) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list_keys(database)) == 16


def test_a_writer_holds_the_lock_from_its_first_moment(database: Database) -> None:
    with database.write(), database.read() as reader:
        reader.execute(text("PRAGMA busy_timeout=0"))
        with pytest.raises(OperationalError, match="locked"):
            reader.execute(text("DELETE FROM api_keys"))


def test_reading_does_not_wait_for_a_writer(database: Database) -> None:
    with database.write() as writer:
        writer.execute(text("INSERT INTO api_keys (id, name, digest, created_at) VALUES ('a', '', 'd', 0)"))
        assert list_keys(database) == []


def test_a_database_opens_again_with_what_it_held(database: Database, tmp_path: Path) -> None:
    key = create_key(database, "kept")
    with closing(Database(f"sqlite:///{tmp_path / 'test.db'}")) as again:
        assert [kept.id for kept in list_keys(again)] == [key.id]
