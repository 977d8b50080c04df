from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from openklein.storage.database import Database
from openklein.storage.keys import (
    SCOPES,
    Limits,
    create_key,
    find_key,
    get_key,
    list_keys,
    note_use,
    revoke_key,
    update_key,
)


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


def test_the_secret_is_neither_stored_nor_shown(sqlite_url: str, tmp_path: Path) -> None:
    with closing(Database(sqlite_url)) as database:
        new = create_key(database, "laptop")
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


def test_a_key_keeps_all_that_is_said_of_it(database: Database) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    new = create_key(
        database,
        "laptop",
        owner="Ada",
        scopes=("read", "admin"),
        expires_at=until,
        images_per_day=7,
        dollars_per_month=Decimal("0.000001"),
    )
    key = get_key(database, new.id)
    assert key is not None
    assert (key.owner, key.scopes, key.expires_at, key.last_used_at) == ("Ada", ("read", "admin"), until, None)
    assert key.limits == Limits(images_per_day=7, dollars_per_month=Decimal("0.000001"))
    assert get_key(database, "another") is None


def test_a_change_leaves_the_rest_as_it_is(database: Database) -> None:
    new = create_key(database, "laptop", owner="Ada", images_per_day=7, images_per_month=70)
    before = get_key(database, new.id)
    assert before is not None
    assert update_key(database, new.id, {})
    assert get_key(database, new.id) == before
    assert update_key(database, new.id, {"scopes": ["admin"], "images_per_day": None, "name": "phone"})
    after = get_key(database, new.id)
    assert after is not None
    assert (after.name, after.owner, after.scopes) == ("phone", "Ada", ("admin",))
    assert after.limits == Limits(images_per_month=70)
    assert not update_key(database, "another", {"name": "x"})


def test_a_key_is_valid_until_it_expires(database: Database) -> None:
    now = datetime.now(UTC)
    for expires_at, is_valid in ((now - timedelta(seconds=1), False), (now + timedelta(hours=1), True)):
        key = find_key(database, create_key(database, "", expires_at=expires_at).secret)
        assert key is not None
        assert key.is_valid is is_valid


def test_admin_stands_for_every_scope(database: Database) -> None:
    reader = find_key(database, create_key(database, "", scopes=("read",)).secret)
    admin = find_key(database, create_key(database, "", scopes=("admin",)).secret)
    assert reader is not None
    assert admin is not None
    assert [scope for scope in SCOPES if reader.allows(scope)] == ["read"]
    assert [scope for scope in SCOPES if admin.allows(scope)] == list(SCOPES)


def test_the_last_use_is_kept_to_the_minute(database: Database) -> None:
    new = create_key(database, "laptop")

    def use() -> datetime:
        before = get_key(database, new.id)
        assert before is not None
        note_use(database, before)
        after = get_key(database, new.id)
        assert after is not None
        assert after.last_used_at is not None
        return after.last_used_at

    first = use()
    assert abs(datetime.now(UTC) - first) < timedelta(minutes=1)
    assert use() == first
    update_key(database, new.id, {"last_used_at": first - timedelta(minutes=2)})
    assert use() > first
