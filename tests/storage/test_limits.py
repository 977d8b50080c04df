from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from openklein.errors import LimitExceeded
from openklein.storage.database import Database
from openklein.storage.keys import create_key, update_key
from openklein.storage.limits import Meter, read_meters, reserve
from openklein.storage.usage import settle
from tests.storage.race import race
from tests.storage.rows import reservation, settled, usage_row

NOON = datetime(2026, 2, 28, 12, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def run_request(database: Database, key_id: str, at: datetime, **facts: Any) -> None:
    """Reserve and settle at one moment."""
    wanted = reservation(key_id, started_at=at, expires_at=at + timedelta(minutes=3))
    reserve(database, wanted)
    settle(database, settled(wanted, settled_at=at, **facts))


def used(database: Database, key_id: str, at: datetime) -> dict[str, int | Decimal]:
    with database.read() as connection:
        return {meter.name: meter.used for meter in read_meters(connection, key_id, at)}


def refusal(database: Database, key_id: str, at: datetime) -> tuple[str, int]:
    with pytest.raises(LimitExceeded) as refused:
        run_request(database, key_id, at)
    return str(refused.value), refused.value.retry_after_s


def test_requests_in_any_60_seconds(database: Database) -> None:
    key_id = create_key(database, "", requests_per_minute=2).id
    run_request(database, key_id, NOON)
    run_request(database, key_id, NOON + 20 * SECOND, images=0, outcome="cancelled")
    assert refusal(database, key_id, NOON + 50 * SECOND) == (
        "This key's limit requests_per_minute is 2, of which 2 is used or reserved; it frees at 2026-02-28T12:01:00Z.",
        10,
    )
    run_request(database, key_id, NOON + 60 * SECOND)
    assert refusal(database, key_id, NOON + 61 * SECOND)[1] == 19


def test_a_lowered_limit_frees_when_enough_requests_are_old(database: Database) -> None:
    key_id = create_key(database, "", requests_per_minute=3).id
    for at in range(3):
        run_request(database, key_id, NOON + at * SECOND)
    update_key(database, key_id, {"requests_per_minute": 1})
    assert refusal(database, key_id, NOON + 10 * SECOND)[1] == 52
    run_request(database, key_id, NOON + 62 * SECOND)


def test_requests_at_a_time(database: Database) -> None:
    key_id = create_key(database, "", concurrent_requests=2).id
    held = [reservation(key_id), reservation(key_id)]
    for wanted in held:
        reserve(database, wanted)
    assert refusal(database, key_id, datetime.now(UTC)) == (
        "This key's limit concurrent_requests is 2, of which 2 is used or reserved; "
        "it frees as soon as one of them ends.",
        1,
    )
    settle(database, settled(held[0], images=0, price=Decimal(0), outcome="error"))
    reserve(database, reservation(key_id))


def test_what_a_killed_process_held_frees_in_time(database: Database) -> None:
    key_id = create_key(database, "", concurrent_requests=1, images_per_day=1).id
    reserve(database, reservation(key_id, started_at=NOON, expires_at=NOON + 150 * SECOND))
    assert used(database, key_id, NOON + 149 * SECOND) == {"concurrent_requests": 1, "images_per_day": 1}
    assert "concurrent_requests" in refusal(database, key_id, NOON + 149 * SECOND)[0]
    assert used(database, key_id, NOON + 150 * SECOND) == {"concurrent_requests": 0, "images_per_day": 0}
    run_request(database, key_id, NOON + 150 * SECOND)
    assert used(database, key_id, NOON + 150 * SECOND) == {"concurrent_requests": 0, "images_per_day": 1}


@pytest.mark.parametrize(
    ("limits", "frees_at"),
    [
        ({"images_per_day": 2}, "2026-03-01T00:00:00Z"),
        ({"images_per_month": 2}, "2026-03-01T00:00:00Z"),
        ({"dollars_per_day": Decimal("0.006")}, "2026-03-01T00:00:00Z"),
        ({"dollars_per_month": Decimal("0.008999")}, "2026-03-01T00:00:00Z"),
    ],
)
def test_images_and_dollars_of_a_day_and_a_month(database: Database, limits: dict[str, Any], frees_at: str) -> None:
    key_id = create_key(database, "", **limits).id
    run_request(database, key_id, NOON, images=0, price=Decimal(0), outcome="invalid_image")
    run_request(database, key_id, NOON)
    reserve(database, reservation(key_id, started_at=NOON, expires_at=NOON + DAY))
    sentence, retry_after_s = refusal(database, key_id, NOON)
    ((name, limit),) = limits.items()
    assert sentence.startswith(f"This key's limit {name} is {limit}, of which ")
    assert sentence.endswith(f"it frees at {frees_at}.")
    assert retry_after_s == 12 * 3600
    run_request(database, key_id, datetime(2026, 3, 1, tzinfo=UTC) + HOUR + DAY)


def test_a_day_begins_at_midnight_utc_and_a_month_on_its_first(database: Database) -> None:
    key_id = create_key(database, "", images_per_day=1, images_per_month=2).id
    run_request(database, key_id, NOON - DAY)
    run_request(database, key_id, NOON)
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    assert "images_per_day" in refusal(database, key_id, midnight - SECOND)[0]
    run_request(database, key_id, midnight)
    run_request(database, key_id, midnight + DAY)
    assert "images_per_month" in refusal(database, key_id, midnight + 30 * DAY)[0]


def test_keys_do_not_count_for_each_other(database: Database) -> None:
    first, second = (create_key(database, "", images_per_day=1, requests_per_minute=1).id for _ in range(2))
    run_request(database, first, NOON)
    assert "is 1, of which 1 is used" in refusal(database, first, NOON)[0]
    assert used(database, second, NOON) == {"requests_per_minute": 0, "images_per_day": 0}
    run_request(database, second, NOON)
    for key_id in (first, second):
        assert used(database, key_id, NOON) == {"requests_per_minute": 1, "images_per_day": 1}


def test_a_refused_request_takes_nothing(database: Database) -> None:
    key_id = create_key(database, "", images_per_day=1, requests_per_minute=5).id
    run_request(database, key_id, NOON)
    for _ in range(5):
        assert "images_per_day" in refusal(database, key_id, NOON)[0]


def test_meters_tell_what_is_left(database: Database) -> None:
    key_id = create_key(
        database, "", requests_per_minute=1, concurrent_requests=1, images_per_day=2, dollars_per_month=Decimal(1)
    ).id
    settle(database, usage_row(key_id=key_id, started_at=NOON - 10 * SECOND, settled_at=NOON))
    with database.read() as connection:
        assert read_meters(connection, key_id, NOON) == [
            Meter("requests_per_minute", 1, 1, NOON + 50 * SECOND),
            Meter("concurrent_requests", 1, 0, None),
            Meter("images_per_day", 2, 1, NOON + 12 * HOUR),
            Meter("dollars_per_month", Decimal(1), Decimal("0.003"), NOON + 12 * HOUR),
        ]
    assert Meter("images_per_day", 1, 3, None).left == 0
    assert Meter("dollars_per_month", Decimal(1), Decimal("0.003"), None).left == Decimal("0.997")


def test_processes_that_race_let_exactly_as_many_through(database: Database, database_url: str) -> None:
    limits: list[dict[str, Any]] = [{"concurrent_requests": 5}, {"images_per_month": 5}, {"requests_per_minute": 5}]
    key_ids = [create_key(database, "", **limit).id for limit in limits]
    assert race(database_url, *key_ids, processes=2, attempts=20) == [5, 5, 5]
