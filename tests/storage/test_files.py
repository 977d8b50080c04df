from contextlib import closing
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from openklein.storage.database import Database
from openklein.storage.files import PURGE_LOCK, keep_file, purge, read_file
from openklein.storage.idempotency import Claim, claim_name
from openklein.storage.tables import IDEMPOTENCY_KEYS
from tests.postgres import Postgres

NOW = datetime.now(UTC)
SECOND = timedelta(seconds=1)


def keep(database: Database, *sizes: int) -> None:
    """Keep files 0, 1, 2 ... of these sizes, each to expire a second after the one before."""
    with database.write() as connection:
        for number, size in enumerate(sizes):
            keep_file(connection, str(number), "answer", b"x" * size, NOW + (1 + number) * SECOND)


def kept(database: Database) -> list[str]:
    return [number for number in map(str, range(9)) if read_file(database, number, "answer") is not None]


def test_bytes_come_back_as_they_went_in(database: Database) -> None:
    content = bytes(range(256)) * 10_000
    with database.write() as connection:
        keep_file(connection, "a", "answer", content, NOW)
    assert read_file(database, "a", "answer") == content
    assert read_file(database, "a", "image") is None
    assert read_file(database, "b", "answer") is None


def test_what_has_expired_goes(database: Database) -> None:
    keep(database, 10, 10, 10)
    expiries = {"a": NOW + SECOND, "b": NOW + 3 * SECOND}
    for name, expires_at in expiries.items():
        claim = Claim(key_id="a", name=name, fingerprint=b"f", request_id=name, expires_at=expires_at)
        assert claim_name(database, claim, NOW) is None
    purge(database, NOW + 2 * SECOND, 1000)
    assert kept(database) == ["2"]
    with database.read() as connection:
        assert connection.execute(IDEMPOTENCY_KEYS.select()).one().name == "b"


def test_the_oldest_make_room(database: Database) -> None:
    keep(database, 10, 20, 30, 40)
    purge(database, NOW, 100)
    assert kept(database) == ["0", "1", "2", "3"]
    purge(database, NOW, 90)
    assert kept(database) == ["1", "2", "3"]
    purge(database, NOW, 69)
    assert kept(database) == ["3"]
    purge(database, NOW, 0)
    assert kept(database) == []


def test_one_process_purges_at_a_time(postgres: Postgres) -> None:
    with closing(Database(postgres.make_database())) as database:
        keep(database, 10)
        with database.write() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PURGE_LOCK})
            purge(database, NOW, 0)
            assert kept(database) == ["0"]
        purge(database, NOW, 0)
        assert kept(database) == []
