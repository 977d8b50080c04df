"""Keep the ledger: one row for each settled request, appended once and never changed; add it up."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import ColumnElement, Connection, String, case, delete, func, literal, select

from openklein.storage.database import Database
from openklein.storage.tables import RESERVATIONS, USAGE, UtcDateTime

Bucket = Literal["hour", "day", "month"]
GroupBy = Literal["key", "model", "workflow"]
Write = Callable[[Connection], None]  # one that joins a transaction

SUCCEEDED = "succeeded"  # every other outcome is the code of an error
GROUPS = {"key": USAGE.c.key_id, "model": USAGE.c.model, "workflow": USAGE.c.workflow}
SUMMED = ("images", "pixels", "milliseconds", "price")
SQLITE_STARTS = {
    "hour": "%Y-%m-%d %H:00:00.000000",
    "day": "%Y-%m-%d 00:00:00.000000",
    "month": "%Y-%m-01 00:00:00.000000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """One settled request; what failed has no images, no pixels and no price."""

    request_id: str
    key_id: str
    started_at: datetime
    settled_at: datetime
    model: str
    workflow: str
    width: int
    height: int
    references: int
    images: int
    pixels: int
    milliseconds: int
    price: Decimal
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSum:
    """The rows of one bucket, and of one group where they are grouped, added up."""

    start: datetime
    group: str | None
    requests: int
    succeeded: int
    images: int
    pixels: int
    milliseconds: int
    price: Decimal


def settle(database: Database, row: UsageRow, *others: Write) -> None:
    """Append a row, free what its request had reserved, and do the other writes: all or nothing, durable on return."""
    with database.write() as connection:
        for other in others:
            other(connection)
        connection.execute(USAGE.insert().values(asdict(row)))
        connection.execute(delete(RESERVATIONS).where(RESERVATIONS.c.request_id == row.request_id))


def sum_usage(
    database: Database,
    start: datetime,
    end: datetime,
    bucket: Bucket,
    group_by: GroupBy | None = None,
    key_id: str | None = None,
) -> list[UsageSum]:
    """Add up the rows settled from `start` to before `end` by buckets of UTC, in order; empty ones are left out."""
    with database.read() as connection:
        rows = select(
            _bucket_start(bucket, connection.dialect.name).label("start"),
            (literal(None, String) if group_by is None else GROUPS[group_by]).label("group"),
            case((USAGE.c.outcome == SUCCEEDED, 1), else_=0).label("succeeded"),
            *(USAGE.c[name] for name in SUMMED),
        ).where(USAGE.c.settled_at >= start, USAGE.c.settled_at < end)
        if key_id is not None:
            rows = rows.where(USAGE.c.key_id == key_id)
        # A subquery, because PostgreSQL does not see that two expressions with parameters are the same.
        counted = rows.subquery()
        groups = (counted.c.start, counted.c.group)
        sums = (func.sum(counted.c[name]) for name in ("succeeded", *SUMMED))
        statement = select(*groups, func.count(), *sums).group_by(*groups).order_by(*groups)
        return [_to_sum(*row) for row in connection.execute(statement)]


def _bucket_start(bucket: Bucket, dialect: str) -> ColumnElement[datetime]:
    if dialect == "sqlite":
        return func.strftime(SQLITE_STARTS[bucket], USAGE.c.settled_at, type_=UtcDateTime)
    return func.date_trunc(bucket, USAGE.c.settled_at, "UTC", type_=UtcDateTime)


def _to_sum(start: datetime, group: str | None, *sums: int | Decimal) -> UsageSum:
    *counts, price = sums
    requests, succeeded, images, pixels, milliseconds = map(int, counts)  # PostgreSQL adds up to decimals
    return UsageSum(
        start=start,
        group=group,
        requests=requests,
        succeeded=succeeded,
        images=images,
        pixels=pixels,
        milliseconds=milliseconds,
        price=Decimal(price),
    )
