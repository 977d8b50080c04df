from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from openklein.errors import Conflict, QueueFull
from openklein.storage.database import Database
from openklein.storage.files import purge, read_file
from openklein.storage.jobs import (
    IMAGE,
    Job,
    change_job,
    create_job,
    end_job,
    find_job,
    list_jobs,
    read_asked,
    take_job,
)
from openklein.storage.keys import create_key
from openklein.storage.limits import read_meters, reserve
from openklein.storage.tables import FILES, USAGE
from openklein.storage.usage import settle
from tests.storage.rows import reservation, usage_row

NOW = datetime.now(UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)
LEASE = 30 * SECOND
ASKED = {"prompt": "a red apple \0 \u2603".encode(), "reference 0": b"\x89PNG first", "reference 1": b"\x89PNG second"}


def make_job(database: Database, number: int = 0, *, most: int = 99, **facts: Any) -> Job:
    """Queue a job that is as many seconds younger as its number says."""
    plain: dict[str, Any] = {
        "id": f"job {number}",
        "key_id": "a",
        "created_at": NOW + number * SECOND,
        "seed": 2**63 - 1,
        "model": "klein-mini",
        "workflow": "multi-reference",
        "width": 1344,
        "height": 768,
        "references": 2,
    }
    job = Job(**{**plain, **facts})
    with database.write() as connection:
        create_job(connection, job, ASKED, NOW + DAY, most)
    return job


def take(database: Database, at: datetime = NOW, model: str = "klein-mini") -> Job | None:
    return take_job(database, model, at, LEASE, DAY)


def taken(database: Database, at: datetime = NOW) -> Job:
    job = take(database, at)
    assert job is not None
    return job


def end(database: Database, job: Job, image: bytes | None = b"\x89PNG made") -> Job:
    """Settle a job with its row."""
    facts: dict[str, Any] = {"status": "succeeded", "price": Decimal("0.003"), "timings": {"queue": 0.25, "text": 1.5}}
    ended = replace(job, ended_at=NOW + SECOND, expires_at=NOW + DAY, **facts)
    settle(database, usage_row(request_id=job.id), partial(end_job, ended=ended, image=image))
    return ended


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_job_comes_back_as_it_went_in(database: Database) -> None:
    job = make_job(database)
    assert find_job(database, job.id, "a") == job
    assert read_asked(database, job) == ASKED
    assert list(read_asked(database, job)) == list(ASKED)


def test_a_job_belongs_to_its_key(database: Database) -> None:
    job = make_job(database)
    make_job(database, 1, key_id="b")
    assert find_job(database, job.id, "b") is None
    assert find_job(database, "another", "a") is None
    assert list_jobs(database, "a", 9) == [job]


def test_the_newest_are_listed_first(database: Database) -> None:
    jobs = [make_job(database, number) for number in range(4)]
    assert list_jobs(database, "a", 3) == jobs[:0:-1]


def test_the_oldest_is_taken_first_and_by_one(database: Database) -> None:
    for number in (1, 0):
        make_job(database, number)
    first, second = taken(database), taken(database)
    assert (first.id, second.id) == ("job 0", "job 1")
    assert (first.status, first.attempts, first.started_at, first.leased_until) == ("running", 1, NOW, NOW + LEASE)
    assert first.lease != second.lease
    assert take(database) is None


def test_a_job_waits_for_a_server_with_its_model(database: Database) -> None:
    make_job(database)
    assert take(database, model="flux2-klein-4b") is None
    assert taken(database).model == "klein-mini"


def test_one_too_old_to_be_done_is_any_servers_to_end(database: Database) -> None:
    make_job(database)
    assert take(database, NOW + DAY, "flux2-klein-4b") is None
    found = take(database, NOW + DAY + SECOND, "flux2-klein-4b")
    assert found is not None
    assert found.id == "job 0"


def test_the_job_of_a_killed_process_is_taken_again(database: Database) -> None:
    make_job(database)
    first = taken(database)
    assert take(database, NOW + 29 * SECOND) is None
    again = taken(database, NOW + LEASE)
    assert (again.id, again.attempts) == (first.id, 2)
    assert again.lease != first.lease


def test_a_lease_that_is_renewed_lasts(database: Database) -> None:
    make_job(database)
    job = taken(database)
    assert change_job(database, job, leased_until=NOW + 40 * SECOND)
    assert take(database, NOW + 39 * SECOND) is None
    assert taken(database, NOW + 40 * SECOND).attempts == 2


def test_whoever_lost_a_job_can_neither_keep_it_nor_end_it(database: Database) -> None:
    make_job(database)
    lost = taken(database)
    held = taken(database, NOW + LEASE)
    assert not change_job(database, lost, leased_until=NOW + DAY)
    with pytest.raises(Conflict, match="another server"):
        end(database, lost)
    assert (count(database, USAGE), read_file(database, lost.id, IMAGE)) == (0, None)
    assert find_job(database, held.id, "a") == held
    end(database, held)
    assert count(database, USAGE) == 1


def test_a_job_ends_once(database: Database) -> None:
    make_job(database)
    job = taken(database)
    ended = end(database, job)
    with pytest.raises(Conflict):
        end(database, job)
    assert count(database, USAGE) == 1
    assert find_job(database, job.id, "a") == ended
    assert not change_job(database, job, leased_until=NOW + DAY)
    assert take(database, NOW + DAY + SECOND) is None


def test_what_cannot_be_charged_is_not_ended(database: Database) -> None:
    make_job(database)
    job = taken(database)
    settle(database, usage_row(request_id=job.id))
    with pytest.raises(IntegrityError):
        end(database, job)
    assert find_job(database, job.id, "a") == job
    assert read_file(database, job.id, IMAGE) is None
    assert read_asked(database, job) == ASKED


def test_of_an_ended_job_its_picture_is_kept_and_nothing_that_was_asked(database: Database) -> None:
    make_job(database)
    make_job(database, 1)
    job = taken(database)
    end(database, job)
    assert read_asked(database, job) == {}
    assert read_file(database, job.id, IMAGE) == b"\x89PNG made"
    assert read_asked(database, taken(database)) == ASKED
    end(database, make_job(database, 2), image=None)
    assert read_file(database, "job 2", IMAGE) is None


def test_a_job_that_waits_can_be_ended_until_it_is_taken(database: Database) -> None:
    waiting, other = make_job(database), make_job(database, 1)
    end(database, waiting, image=None)
    assert taken(database).id == other.id
    with pytest.raises(Conflict):
        end(database, other, image=None)


def test_so_many_jobs_may_wait(database: Database) -> None:
    for number in range(2):
        make_job(database, number, most=2)
    with pytest.raises(QueueFull, match="2 jobs wait already"):
        make_job(database, 2, most=2)
    assert find_job(database, "job 2", "a") is None
    taken(database)
    make_job(database, 3, most=2)


def test_a_job_holds_what_it_reserved_until_it_ends(database: Database) -> None:
    key_id = create_key(database, "", images_per_day=5).id
    wanted = reservation(key_id, request_id="job 0", expires_at=NOW + SECOND)
    reserve(database, wanted)
    make_job(database, key_id=key_id)

    def left() -> object:
        with database.read() as connection:
            return read_meters(connection, key_id, NOW + 2 * SECOND)[0].left

    assert left() == 4
    end(database, taken(database))
    assert left() == 5  # the row is one of another key


def test_what_waits_is_never_purged_and_what_ended_in_time(database: Database) -> None:
    make_job(database)
    end(database, taken(database))
    waiting = make_job(database, 1)
    purge(database, NOW + DAY - SECOND, 0)
    assert find_job(database, "job 0", "a") is not None
    assert read_file(database, "job 0", IMAGE) is None
    purge(database, NOW + 9 * DAY, 0)
    assert list_jobs(database, "a", 9) == [waiting]
    assert read_asked(database, waiting) == ASKED
    assert count(database, FILES) == len(ASKED)


def test_of_a_race_each_job_is_taken_by_one(database: Database, database_url: str) -> None:
    for number in range(12):
        make_job(database, number)
    with closing(Database(database_url)) as other, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(take, [database, other] * 10))
    got = [job.id for job in found if job is not None]
    assert Counter(got) == Counter({f"job {number}": 1 for number in range(12)})
