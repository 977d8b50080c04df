"""Keep jobs: pictures to be made later, by any process that shares the database.

A process takes a job under a lease, which it renews as long as it works. Where it dies the lease runs out, and another
process takes the job. Whoever has lost the lease can change the job no more.
"""

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update

from openklein.contract import Workflow
from openklein.errors import Conflict, QueueFull
from openklein.storage.database import Database
from openklein.storage.files import keep_file
from openklein.storage.tables import FILES, JOBS, RESERVATIONS

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

IMAGE: Final = "image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One picture to make, and what became of it; its id is also that of its row in the ledger."""

    id: str
    key_id: str
    created_at: datetime
    seed: int
    model: str
    workflow: Workflow
    width: int
    height: int
    references: int
    status: Status = "queued"
    attempts: int = 0
    lease: str = ""  # it is held under; none while it waits
    leased_until: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    detail: str | None = None
    price: Decimal | None = None
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by stage


def create_job(connection: Connection, job: Job, asked: Mapping[str, bytes], hold_until: datetime, most: int) -> None:
    """Queue a job with what is asked of it, by names, and hold what it has reserved; raises QueueFull.

    At most `most` jobs may wait, whoever's they are.
    """
    waiting = connection.execute(select(func.count()).where(JOBS.c.status == "queued")).scalar_one()
    if waiting >= most:
        raise QueueFull(f"{most} jobs wait already, as many as the servers take; try again later.")
    connection.execute(JOBS.insert().values(asdict(job)))
    for name, content in asked.items():
        keep_file(connection, job.id, name, content, None)
    held = RESERVATIONS.c.request_id == job.id
    connection.execute(update(RESERVATIONS).where(held).values(expires_at=hold_until))


def take_job(database: Database, model: str, now: datetime, lease: timedelta, max_age: timedelta) -> Job | None:
    """Take the oldest job that waits or whose lease has run out; None where there is none.

    It is one for the model, or one too old to be done, which is any server's to end.
    """
    is_due = or_(JOBS.c.status == "queued", and_(JOBS.c.status == "running", JOBS.c.leased_until <= now))
    is_for_us = or_(JOBS.c.model == model, JOBS.c.created_at < now - max_age)
    oldest = select(JOBS.c.id).where(is_due, is_for_us).order_by(JOBS.c.created_at, JOBS.c.id).limit(1)
    taken = {"status": "running", "lease": secrets.token_hex(8), "leased_until": now + lease, "started_at": now}
    with database.write() as connection:
        job_id = connection.execute(oldest.with_for_update(skip_locked=True)).scalar()
        if job_id is None:
            return None
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(**taken, attempts=JOBS.c.attempts + 1))
        return Job(**connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one()._mapping)


def read_asked(database: Database, job: Job) -> dict[str, bytes]:
    """Return what is asked of a job by its names in order; nothing once it has ended."""
    with database.read() as connection:
        files = select(FILES.c.name, FILES.c.content).where(_is_asked(job)).order_by(FILES.c.name)
        return {name: content for name, content in connection.execute(files)}


def change_job(database: Database, job: Job, **values: Any) -> bool:
    """Change a job unless its lease is lost; tell whether it was."""
    with database.write() as connection:
        return connection.execute(update(JOBS).where(_is_held(job)).values(values)).rowcount == 1


def end_job(connection: Connection, ended: Job, image: bytes | None) -> None:
    """Keep a job as it ended, with its picture, and nothing of what was asked; raises Conflict without its lease."""
    if connection.execute(update(JOBS).where(_is_held(ended)).values(asdict(ended))).rowcount != 1:
        raise Conflict("The job has ended, or another server has taken it.")
    connection.execute(delete(FILES).where(_is_asked(ended)))
    if image is not None and ended.expires_at is not None:
        keep_file(connection, ended.id, IMAGE, image, ended.expires_at)


def find_job(database: Database, job_id: str, key_id: str) -> Job | None:
    """Return a job of an API key, or None."""
    with database.read() as connection:
        row = connection.execute(select(JOBS).where(JOBS.c.id == job_id, JOBS.c.key_id == key_id)).one_or_none()
    return None if row is None else Job(**row._mapping)


def list_jobs(database: Database, key_id: str, most: int) -> list[Job]:
    """List the newest jobs of an API key, newest first."""
    own = select(JOBS).where(JOBS.c.key_id == key_id).order_by(JOBS.c.created_at.desc(), JOBS.c.id).limit(most)
    with database.read() as connection:
        return [Job(**row._mapping) for row in connection.execute(own)]


def _is_held(job: Job) -> ColumnElement[bool]:
    return and_(JOBS.c.id == job.id, JOBS.c.lease == job.lease, JOBS.c.ended_at.is_(None))


def _is_asked(job: Job) -> ColumnElement[bool]:
    return and_(FILES.c.request_id == job.id, FILES.c.expires_at.is_(None))  # all else that is kept expires
