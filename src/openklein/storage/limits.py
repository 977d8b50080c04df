"""Hold keys to their limits, across all processes that share the database.

A request reserves what it may use before any work, in one transaction that counts; settling it turns the reservation
into a row of the ledger. A reservation expires, so that a killed process does not hold it for good.
"""

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import (
    Column,
    ColumnElement,
    CompoundSelect,
    Connection,
    delete,
    func,
    literal_column,
    select,
    type_coerce,
    union_all,
)

from openklein.errors import LimitExceeded
from openklein.storage.database import Database
from openklein.storage.keys import read_limits
from openklein.storage.tables import KEYS, RESERVATIONS, USAGE, format_amount

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit of a key and how much of it is used or reserved; `frees_at` is when use ends to count, if known."""

    name: str
    limit: int | Decimal
    used: int | Decimal
    frees_at: datetime | None

    @property
    def left(self) -> int | Decimal:
        return max(self.limit - self.used, self.limit * 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one request may use, one image at `price` dollars, until it is settled or expires."""

    request_id: str
    key_id: str
    started_at: datetime
    expires_at: datetime
    images: int
    price: Decimal


def reserve(database: Database, wanted: Reservation) -> None:
    """Take what a request may use out of its key's limits; raises LimitExceeded, and then takes nothing."""
    now = wanted.started_at
    needs: dict[str, int | Decimal] = {"requests": 1, "concurrent": 1, "images": wanted.images, "dollars": wanted.price}
    with database.write() as connection:
        expired = (RESERVATIONS.c.key_id == wanted.key_id) & (RESERVATIONS.c.expires_at <= now)
        connection.execute(delete(RESERVATIONS).where(expired))
        for meter in read_meters(connection, wanted.key_id, now, is_locked=True):
            if Decimal(meter.used) + needs[meter.name.split("_")[0]] > meter.limit:
                raise _exceeded(meter, now)
        connection.execute(RESERVATIONS.insert().values(asdict(wanted)))


def read_meters(connection: Connection, key_id: str, now: datetime, *, is_locked: bool = False) -> list[Meter]:
    """Read the limits of a key and their use, in one state of the data; locked, nobody else reserves meanwhile."""
    find = select(KEYS).where(KEYS.c.id == key_id)
    row = connection.execute(find.with_for_update() if is_locked else find).one()
    limits = {name: limit for name, limit in asdict(read_limits(row)).items() if limit is not None}
    if not limits:
        return []
    uses = connection.execute(select(*(_use(name, key_id, now).label(name) for name in limits))).one()
    return [
        Meter(name, limit, used, _frees_at(connection, name, limit, key_id, now))
        for (name, limit), used in zip(limits.items(), uses, strict=True)
    ]


def _use(name: str, key_id: str, now: datetime) -> ColumnElement[int | Decimal]:
    """Add up, for one limit, what is settled and what is reserved."""
    held = (RESERVATIONS.c.key_id == key_id) & (RESERVATIONS.c.expires_at > now)
    if name == "concurrent_requests":
        return select(func.count()).where(held).scalar_subquery()
    if name == "requests_per_minute":
        return select(func.count()).select_from(_started(key_id, now).subquery()).scalar_subquery()
    column = "images" if name.startswith("images") else "price"
    start, _ = _period(name, now)
    settled = select(_sum(USAGE.c[column])).where(USAGE.c.key_id == key_id, USAGE.c.settled_at >= start)
    reserved = select(_sum(RESERVATIONS.c[column])).where(held)
    return type_coerce(settled.scalar_subquery() + reserved.scalar_subquery(), USAGE.c[column].type)


def _sum(column: Column[int] | Column[Decimal]) -> ColumnElement[int | Decimal]:
    return func.coalesce(func.sum(column), literal_column("0"))


def _started(key_id: str, now: datetime) -> CompoundSelect[datetime]:
    """Select when the key's requests of the last minute were taken."""
    after = now - MINUTE
    settled = (USAGE.c.key_id == key_id, USAGE.c.settled_at > after, USAGE.c.started_at > after)
    held = (RESERVATIONS.c.key_id == key_id, RESERVATIONS.c.started_at > after)
    return union_all(select(USAGE.c.started_at).where(*settled), select(RESERVATIONS.c.started_at).where(*held))


def _period(name: str, now: datetime) -> tuple[datetime, datetime]:
    """Give the first moment of the day or month that a limit is about, and that of the next one."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if name.endswith("_per_day"):
        return day, day + timedelta(days=1)
    month = day.replace(day=1)
    return month, (month + timedelta(days=31)).replace(day=1)


def _frees_at(connection: Connection, name: str, limit: int, key_id: str, now: datetime) -> datetime | None:
    if name == "concurrent_requests":
        return None
    if name != "requests_per_minute":
        return _period(name, now)[1]
    started = _started(key_id, now).subquery()
    nth_newest = select(started.c.started_at).order_by(started.c.started_at.desc()).limit(1).offset(limit - 1)
    first: datetime | None = connection.execute(nth_newest).scalar()
    return None if first is None else first + MINUTE


def _exceeded(meter: Meter, now: datetime) -> LimitExceeded:
    retry_after_s, when = 1, "as soon as one of them ends"
    if meter.frees_at is not None:
        retry_after_s = max(1, math.ceil((meter.frees_at - now).total_seconds()))
        when = f"at {meter.frees_at:%Y-%m-%dT%H:%M:%SZ}"
    return LimitExceeded(
        f"This key's limit {meter.name} is {format_amount(meter.limit)}, of which {format_amount(meter.used)} "
        f"is used or reserved; it frees {when}.",
        retry_after_s,
    )
