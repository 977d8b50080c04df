"""Create, find, list, change and revoke API keys; of a secret only its SHA-256 is kept."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal, get_args

from sqlalchemy import Row, func, or_, select, update

from openklein.storage.database import Database
from openklein.storage.tables import KEYS

Scope = Literal["generate", "read", "admin"]

SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
DEFAULT_SCOPES: Final[tuple[Scope, ...]] = ("generate", "read")
LAST_USED_STEP = timedelta(minutes=1)  # how exact the time of a key's last use is


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a key may do; None is no limit. Days and months are those of UTC."""

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    images_per_day: int | None = None
    images_per_month: int | None = None
    dollars_per_day: Decimal | None = None
    dollars_per_month: Decimal | None = None


LIMIT_NAMES: Final = tuple(row.name for row in fields(Limits))
NO_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    id: str
    name: str
    owner: str = ""
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    limits: Limits = NO_LIMITS

    @property
    def is_valid(self) -> bool:
        """Tell whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or datetime.now(UTC) < self.expires_at)

    def allows(self, scope: Scope) -> bool:
        """Tell whether the key may do what a scope stands for; `admin` stands for everything."""
        return scope in self.scopes or "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment its secret is known."""

    id: str
    name: str
    secret: str = field(repr=False)


def create_key(
    database: Database,
    name: str,
    *,
    owner: str = "",
    scopes: Sequence[Scope] = DEFAULT_SCOPES,
    expires_at: datetime | None = None,
    **limits: int | Decimal | None,
) -> NewKey:
    """Make a key with 256 random bits, with limits by their names; the secret can never be read again."""
    new = NewKey(id=secrets.token_hex(6), name=name, secret=f"klein_{secrets.token_urlsafe(32)}")
    values = {
        "id": new.id,
        "name": name,
        "digest": _digest(new.secret),
        "created_at": datetime.now(UTC),
        "owner": owner,
        "scopes": " ".join(scopes),
        "expires_at": expires_at,
    }
    with database.write() as connection:
        connection.execute(KEYS.insert().values({**values, **limits}))
    return new


def find_key(database: Database, secret: str) -> Key | None:
    """Find the key of a secret, revoked and expired ones included."""
    digest = _digest(secret)
    with database.read() as connection:
        row = connection.execute(select(KEYS).where(KEYS.c.digest == digest)).one_or_none()
    if row is None or not hmac.compare_digest(row.digest, digest):
        return None
    return _to_key(row)


def get_key(database: Database, key_id: str) -> Key | None:
    """Return the key with an id, or None."""
    with database.read() as connection:
        row = connection.execute(select(KEYS).where(KEYS.c.id == key_id)).one_or_none()
    return None if row is None else _to_key(row)


def list_keys(database: Database) -> list[Key]:
    """List all keys, oldest first, revoked ones included."""
    with database.read() as connection:
        return [_to_key(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id))]


def update_key(database: Database, key_id: str, changes: Mapping[str, object]) -> bool:
    """Change fields of a key, limits by their names; tell whether there is one with this id."""
    values = {"id": key_id, **changes}  # the id, because an update of no column is none
    if isinstance(scopes := changes.get("scopes"), Sequence):
        values["scopes"] = " ".join(scopes)
    with database.write() as connection:
        return connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(values)).rowcount == 1


def revoke_key(database: Database, key_id: str) -> bool:
    """Revoke a key for good; tell whether there is one with this id. The first revocation's time stays."""
    first = func.coalesce(KEYS.c.revoked_at, datetime.now(UTC))
    return update_key(database, key_id, {"revoked_at": first})


def note_use(database: Database, key: Key) -> None:
    """Keep the time of a key's use, unless one of the last minute is kept."""
    now = datetime.now(UTC)
    if key.last_used_at is not None and now - key.last_used_at < LAST_USED_STEP:
        return
    is_old = or_(KEYS.c.last_used_at.is_(None), KEYS.c.last_used_at <= now - LAST_USED_STEP)
    with database.write() as connection:
        connection.execute(update(KEYS).where(KEYS.c.id == key.id, is_old).values(last_used_at=now))


def read_limits(row: Row[tuple[object, ...]]) -> Limits:
    """Read the limits out of a row of the table of keys."""
    return Limits(**{name: row._mapping[name] for name in LIMIT_NAMES})


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _to_key(row: Row[tuple[object, ...]]) -> Key:
    plain = ("id", "name", "owner", "created_at", "expires_at", "revoked_at", "last_used_at")
    values = {name: row._mapping[name] for name in plain}
    return Key(**values, scopes=tuple(row.scopes.split()), limits=read_limits(row))
