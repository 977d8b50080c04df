import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from openklein.errors import Conflict, Gone, InvalidRequest
from openklein.storage.database import Database
from openklein.storage.files import purge
from openklein.storage.idempotency import Answer, Claim, claim_name, keep_answer, release_name
from openklein.storage.tables import FILES, USAGE
from openklein.storage.usage import settle
from tests.storage.rows import usage_row

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
ANSWER = Answer(200, {"content-type": "image/png", "x-klein-seed": "7"}, b"\x89PNG\0 bytes")


def claim(request_id: str = "first", **facts: Any) -> Claim:
    wanted = {"key_id": "a", "name": "order 7", "fingerprint": b"f" * 32, "expires_at": NOW + timedelta(seconds=150)}
    return Claim(**{**wanted, "request_id": request_id, **facts})


def answer(database: Database, held: Claim) -> None:
    """Settle the request of a claim with its answer."""
    row = usage_row(request_id=held.request_id, key_id=held.key_id)
    settle(database, row, lambda connection: keep_answer(connection, held, ANSWER, NOW + DAY))


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_repeat_gets_the_answer_whole(database: Database) -> None:
    assert claim_name(database, claim(), NOW) is None
    answer(database, claim())
    for request_id in ("second", "third"):
        assert claim_name(database, claim(request_id), NOW) == ANSWER


def test_a_repeat_while_the_first_runs_is_told_so(database: Database) -> None:
    assert claim_name(database, claim(), NOW) is None
    with pytest.raises(Conflict, match="still running"):
        claim_name(database, claim("second"), NOW)


@pytest.mark.parametrize("is_answered", [True, False])
def test_another_request_cannot_have_the_name(is_answered: bool, database: Database) -> None:
    claim_name(database, claim(), NOW)
    if is_answered:
        answer(database, claim())
    with pytest.raises(InvalidRequest, match="used for another request"):
        claim_name(database, claim("second", fingerprint=b"g" * 32), NOW)


def test_api_keys_do_not_share_names(database: Database) -> None:
    claim_name(database, claim(), NOW)
    answer(database, claim())
    assert claim_name(database, claim("second", key_id="b", fingerprint=b"g" * 32), NOW) is None
    assert claim_name(database, claim("third", name="order 8"), NOW) is None


def test_a_name_given_back_is_free(database: Database) -> None:
    claim_name(database, claim(), NOW)
    release_name(database, claim())
    assert claim_name(database, claim("second", fingerprint=b"g" * 32), NOW) is None


def test_nobody_gives_back_what_is_answered_or_anothers(database: Database) -> None:
    claim_name(database, claim(), NOW)
    release_name(database, claim("second"))
    with pytest.raises(Conflict):
        claim_name(database, claim("third"), NOW)
    answer(database, claim())
    release_name(database, claim())
    assert claim_name(database, claim("third"), NOW) == ANSWER


def test_what_a_killed_process_held_frees_in_time(database: Database) -> None:
    claim_name(database, claim(), NOW)
    with pytest.raises(Conflict):
        claim_name(database, claim("second"), NOW + timedelta(seconds=149))
    late = NOW + timedelta(seconds=150)
    assert claim_name(database, claim("second", expires_at=late + DAY), late) is None


def test_a_process_that_lost_its_claim_neither_answers_nor_charges(database: Database) -> None:
    claim_name(database, claim(), NOW)
    late = NOW + timedelta(seconds=151)
    claim_name(database, claim("second", expires_at=late + DAY), late)
    with pytest.raises(Conflict):
        answer(database, claim())
    assert (count(database, USAGE), count(database, FILES)) == (0, 0)
    answer(database, claim("second"))
    assert count(database, USAGE) == 1
    assert claim_name(database, claim("third"), late) == ANSWER


def test_what_cannot_be_charged_is_not_kept(database: Database) -> None:
    claim_name(database, claim(), NOW)
    settle(database, usage_row(request_id="first"))
    with pytest.raises(IntegrityError):
        answer(database, claim())
    assert count(database, FILES) == 0
    with pytest.raises(Conflict):
        claim_name(database, claim("second"), NOW)


def test_an_answer_is_kept_until_it_expires(database: Database) -> None:
    claim_name(database, claim(), NOW)
    answer(database, claim())
    assert claim_name(database, claim("second"), NOW + DAY - timedelta(seconds=1)) == ANSWER
    assert claim_name(database, claim("second", expires_at=NOW + 2 * DAY), NOW + DAY) is None


def test_an_answer_that_made_room_is_not_made_again(database: Database) -> None:
    claim_name(database, claim(), NOW)
    answer(database, claim())
    purge(database, NOW, 0)
    with pytest.raises(Gone, match="no longer kept"):
        claim_name(database, claim("second"), NOW)


def run_together(database_url: str, *claims: Claim) -> list[object]:
    """Claim from as many threads as there are claims, over two engines; give what each got, errors by their class."""
    start = threading.Barrier(len(claims))

    def run(database: Database, wanted: Claim) -> object:
        start.wait(60)
        try:
            return claim_name(database, wanted, NOW)
        except Conflict as error:
            return type(error)

    with (
        closing(Database(database_url)) as one,
        closing(Database(database_url)) as other,
        ThreadPoolExecutor(len(claims)) as threads,
    ):
        databases = [(one, other)[index % 2] for index in range(len(claims))]
        return list(threads.map(run, databases, claims))


@pytest.mark.parametrize("has_expired", [True, False])
def test_of_a_race_one_gets_the_name(has_expired: bool, database: Database, database_url: str) -> None:
    if has_expired:
        claim_name(database, claim("old", expires_at=NOW), NOW - DAY)
    outcomes = run_together(database_url, *(claim(f"racer {number}") for number in range(8)))
    assert Counter(outcomes) == {None: 1, Conflict: 7}
