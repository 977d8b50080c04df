from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from openklein.storage.database import Database
from openklein.storage.keys import create_key, find_key, list_keys, revoke_key


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(f"sqlite:///{tmp_path / 'test.db'}")) as database:
        yield database


def test_a_new_key_is_found_by_its_secret_alone(database: Database) -> None:
    new = create_key(database, "laptop")
    key = find_key(database, new.secret)
    assert key is not None
    assert (key.id, key.name, key.revoked_at) == (new.id, "laptop", None)
    assert abs(datetime.now(UTC) - key.created_at) < timedelta(minutes=1)
    for other in ("", new.secret[:-1], new.secret + "x", new.secret.upper(), new.id, "klein_ü\udcff"):
        assert find_key(database, other) is None


def test_secrets_have_256_bits_and_never_repeat(database: Database) -> None:
    secrets = {create_key(database, "").secret for _ in range(20)}
    assert len(secrets) == 20
    assert all(secret.startswith("klein_") and len(secret) == len("klein_") + 43 for secret in secrets)


def test_the_secret_is_neither_stored_nor_shown(database: Database, tmp_path: Path) -> None:
    new = create_key(database, "laptop")
    database.close()
    assert new.secret not in repr(new)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"laptop" in stored
    assert new.secret.encode() not in stored


def test_a_revoked_key_stays_listed_with_its_first_revocation(database: Database) -> None:
    kept, lost = create_key(database, "kept"), create_key(database, "lost")
    assert revoke_key(database, lost.id)
    revoked = find_key(database, lost.secret)
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert revoke_key(database, lost.id)
    assert find_key(database, lost.secret) == revoked
    assert {key.id: key.revoked_at is None for key in list_keys(database)} == {kept.id: True, lost.id: False}


def test_revoking_an_unknown_id_says_so(database: Database) -> None:
    key = create_key(database, "kept")
    assert not revoke_key(database, key.id[:-1])
    assert not revoke_key(database, "")
    assert find_key(database, key.secret) == list_keys(database)[0]


def test_keys_are_listed_oldest_first(database: Database) -> None:
    ids = [create_key(database, str(number)).id for number in range(5)]
    assert [key.id for key in list_keys(database)] == ids
