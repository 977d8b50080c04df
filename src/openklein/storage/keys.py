"""Create, find, list and revoke API keys; of a secret only its SHA-256 is kept."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sqlalchemy import Row, func, select, update

from openklein.storage.database import Database
from openklein.storage.tables import KEYS


@dataclass(frozen=True, slots=True)
class Key:
    id: str
    name: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment its secret is known."""

    id: str
    name: str
    secret: str = field(repr=False)


def create_key(database: Database, name: str) -> NewKey:
    """Make a key with 256 random bits; the secret can never be read again."""
    new = NewKey(id=secrets.token_hex(6), name=name, secret=f"klein_{secrets.token_urlsafe(32)}")
    with database.write() as connection:
        connection.execute(
            KEYS.insert().values(id=new.id, name=name, digest=_digest(new.secret), created_at=datetime.now(UTC))
        )
    return new


def find_key(database: Database, secret: str) -> Key | None:
    """Find the key of a secret, revoked ones included."""
    digest = _digest(secret)
    with database.read() as connection:
        row = connection.execute(select(KEYS).where(KEYS.c.digest == digest)).one_or_none()
    if row is None or not hmac.compare_digest(row.digest, digest):
        return None
    return _to_key(row)


def list_keys(database: Database) -> list[Key]:
    """List all keys, oldest first, revoked ones included."""
    with database.read() as connection:
        return [_to_key(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id))]


def revoke_key(database: Database, key_id: str) -> bool:
    """Revoke a key for good; tell whether there is one with this id. The first revocation's time stays."""
    first = func.coalesce(KEYS.c.revoked_at, datetime.now(UTC))
    with database.write() as connection:
        return connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(revoked_at=first)).rowcount == 1


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _to_key(row: Row[tuple[object, ...]]) -> Key:
    return Key(id=row.id, name=row.name, created_at=row.created_at, revoked_at=row.revoked_at)
