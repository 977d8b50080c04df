from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from openklein.storage.database import Database
from openklein.storage.keys import create_key
from openklein.storage.limits import reserve
from openklein.storage.tables import RESERVATIONS, USAGE
from openklein.storage.usage import Bucket, GroupBy, UsageRow, UsageSum, settle, sum_usage
from tests.storage.rows import reservation, settled, usage_row

FIRST, LAST = datetime(2025, 12, 30, tzinfo=UTC), datetime(2026, 3, 2, tzinfo=UTC)
SUMMED = ("requests", "succeeded", "images", "pixels", "milliseconds", "price")

times = st.datetimes(FIRST.replace(tzinfo=None), LAST.replace(tzinfo=None), timezones=st.just(UTC))
offsets = st.integers(-12, 14).map(lambda hours: timezone(timedelta(hours=hours)))
ledger_rows = st.builds(
    usage_row,
    key_id=st.sampled_from("abc"),
    settled_at=st.builds(datetime.astimezone, times, offsets),
    model=st.sampled_from(["klein-mini", "flux2-klein-4b"]),
    workflow=st.sampled_from(["text-to-image", "multi-reference"]),
    images=st.integers(0, 4),
    pixels=st.integers(0, 2**40),
    milliseconds=st.integers(0, 2**40),
    price=st.integers(0, 10**12).map(lambda amount: Decimal(amount).scaleb(-6)),
    outcome=st.sampled_from(["succeeded", "cancelled", "error"]),
)


@pytest.fixture
def ledger(database: Database) -> Iterator[Database]:
    yield database
    database.close()


def totals(rows: list[UsageRow]) -> tuple[object, ...]:
    return (
        len(rows),
        sum(row.outcome == "succeeded" for row in rows),
        *(sum(getattr(row, name) for row in rows) for name in SUMMED[2:]),
    )


def starts_in(bucket: Bucket, time: datetime) -> datetime:
    hour = time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return {"hour": hour, "day": hour.replace(hour=0), "month": hour.replace(day=1, hour=0)}[bucket]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ledger_rows, max_size=12),
    start=times,
    length=st.timedeltas(timedelta(0), timedelta(days=70)),
    bucket=st.sampled_from(get_args(Bucket)),
    group_by=st.sampled_from([None, *get_args(GroupBy)]),
    key_id=st.sampled_from([None, "a"]),
)
def test_buckets_add_up_to_the_rows(
    database: Database,
    rows: list[UsageRow],
    start: datetime,
    length: timedelta,
    bucket: Bucket,
    group_by: GroupBy | None,
    key_id: str | None,
) -> None:
    with database.write() as connection:
        connection.execute(delete(USAGE))
    for row in rows:
        settle(database, row)
    end = start + length
    inside = [row for row in rows if start <= row.settled_at < end and key_id in (None, row.key_id)]
    sums = sum_usage(database, start, end, bucket, group_by, key_id)

    def place(row: UsageRow) -> tuple[datetime, str | None]:
        column = {"key": row.key_id, "model": row.model, "workflow": row.workflow, None: None}[group_by]
        return starts_in(bucket, row.settled_at), column

    expected = {place(row): totals([other for other in inside if place(other) == place(row)]) for row in inside}
    found = {(part.start, part.group): tuple(getattr(part, name) for name in SUMMED) for part in sums}
    assert found == expected
    assert len(found) == len(sums)
    assert [(part.start, part.group or "") for part in sums] == sorted((s, g or "") for s, g in found)


def test_rows_come_back_as_they_went_in(database: Database) -> None:
    row = usage_row(price=Decimal("123456.000001"))
    settle(database, row)
    with database.read() as connection:
        stored = connection.execute(select(USAGE)).one()._mapping
    assert UsageRow(**stored) == row


def test_a_request_is_settled_once(database: Database) -> None:
    row = usage_row()
    settle(database, row)
    with pytest.raises(IntegrityError):
        settle(database, row)
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(USAGE)).scalar() == 1


def test_a_row_and_the_end_of_its_reservation_are_one(database: Database) -> None:
    wanted = reservation(create_key(database, "").id)
    reserve(database, wanted)
    other = reservation(wanted.key_id)
    reserve(database, other)

    def reserved() -> set[str]:
        with database.read() as connection:
            return set(connection.execute(select(RESERVATIONS.c.request_id)).scalars())

    with pytest.raises(IntegrityError):
        settle(database, settled(wanted, model=None))
    assert reserved() == {wanted.request_id, other.request_id}
    settle(database, settled(wanted))
    assert reserved() == {other.request_id}


def test_a_settled_row_outlives_the_process(database_url: str, tmp_path: Path) -> None:
    with closing(Database(database_url)) as database:
        settle(database, usage_row())
    with closing(Database(database_url)) as again:
        now = datetime.now(UTC)
        (found,) = sum_usage(again, now - timedelta(days=1), now + timedelta(days=1), "month")
        assert isinstance(found, UsageSum)
        assert (found.requests, found.price) == (1, Decimal("0.003"))
