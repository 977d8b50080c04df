"""Answer a request that is sent again with the same Idempotency-Key once, across all processes that share the database.

The first request claims the name it gave. Settling it keeps its answer in the same transaction; failing releases the
name. A claim expires, so that a killed process does not hold it for good.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update
from sqlalchemy.exc import IntegrityError

from openklein.errors import Conflict, Gone, InvalidRequest
from openklein.storage.database import Database
from openklein.storage.files import keep_file, read_file
from openklein.storage.tables import IDEMPOTENCY_KEYS

ANSWER = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One request's hold on a name that its API key chose, until it is answered or expires."""

    key_id: str
    name: str
    fingerprint: bytes  # 32, equal for requests that ask for the same
    request_id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request was answered, whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def claim_name(database: Database, wanted: Claim, now: datetime) -> Answer | None:
    """Claim a name and return None, or return the answer that it got before.

    Raises InvalidRequest where the name stands for another request, Conflict while the first one runs, and Gone where
    its answer had to make room for newer ones.
    """
    expired = and_(_is_named(wanted), IDEMPOTENCY_KEYS.c.expires_at <= now)
    try:
        with database.write() as connection:
            connection.execute(delete(IDEMPOTENCY_KEYS).where(expired))
            connection.execute(IDEMPOTENCY_KEYS.insert().values(asdict(wanted)))
        return None
    except IntegrityError:  # of all that claim it together, the database lets one through
        return _read_answer(database, wanted)


def keep_answer(connection: Connection, claim: Claim, answer: Answer, expires_at: datetime) -> None:
    """Keep an answer until `expires_at`; raises Conflict where the claim expired and another request has the name."""
    head = json.dumps({"status": answer.status, "headers": dict(answer.headers)})
    held = and_(_is_named(claim), IDEMPOTENCY_KEYS.c.request_id == claim.request_id)
    keep = update(IDEMPOTENCY_KEYS).where(held).values(answer=head, expires_at=expires_at)
    if connection.execute(keep).rowcount != 1:
        raise Conflict("The request took so long that another one with its Idempotency-Key has begun.")
    keep_file(connection, claim.request_id, ANSWER, answer.body, expires_at)


def release_name(database: Database, claim: Claim) -> None:
    """Give a name back, unless its request is answered or has lost it."""
    held = and_(_is_named(claim), IDEMPOTENCY_KEYS.c.request_id == claim.request_id)
    with database.write() as connection:
        connection.execute(delete(IDEMPOTENCY_KEYS).where(held, IDEMPOTENCY_KEYS.c.answer.is_(None)))


def _read_answer(database: Database, wanted: Claim) -> Answer:
    with database.read() as connection:
        row = connection.execute(select(IDEMPOTENCY_KEYS).where(_is_named(wanted))).one_or_none()
    if row is not None and row.fingerprint != wanted.fingerprint:
        raise InvalidRequest("Idempotency-Key was used for another request; send a new one with this request.")
    if row is None or row.answer is None:
        raise Conflict("A request with this Idempotency-Key is still running; send it again for the same answer.")
    body = read_file(database, row.request_id, ANSWER)
    if body is None:
        raise Gone("The request with this Idempotency-Key was answered, but its answer is no longer kept.")
    return Answer(**json.loads(row.answer), body=body)


def _is_named(claim: Claim) -> ColumnElement[bool]:
    return and_(IDEMPOTENCY_KEYS.c.key_id == claim.key_id, IDEMPOTENCY_KEYS.c.name == claim.name)
