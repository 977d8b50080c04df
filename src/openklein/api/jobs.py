"""Run jobs beside the requests of this process, and settle them as requests are."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from typing import Final

from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from openklein import errors
from openklein.api.auth import FIXED_KEY
from openklein.api.dependencies import Service
from openklein.api.error_responses import status_of
from openklein.api.pictures import Picture, draw, time_limit, unless
from openklein.api.records import RequestRecord
from openklein.api.settlement import Admission, outcome_of
from openklein.engine.types import ImageRequest
from openklein.storage.jobs import Job, Status, change_job, end_job, read_asked, take_job
from openklein.storage.keys import get_key
from openklein.storage.usage import SUCCEEDED

logger = logging.getLogger(__name__)

POLL_S = 1.0  # how often a server looks for jobs that were posted to others
LEASE = timedelta(seconds=30)  # how long the job of a killed server waits for another
MAX_ATTEMPTS: Final = 3
MAX_AGE: Final = timedelta(hours=24)
PROMPT: Final = "prompt"
STATUSES: Final[Mapping[str, Status]] = {SUCCEEDED: "succeeded", errors.Cancelled.code: "cancelled"}  # else failed


async def run_jobs(service: Service) -> None:
    """Make the pictures of jobs, one after the other and only while no request waits, until cancelled."""
    while True:
        try:
            while job := await take(service):
                await work(service, job)
        except Exception:  # a border: neither a job nor a database that is away ends the others
            logger.exception("a job could not be run")
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await service.new_job.wait()
        service.new_job.clear()


async def take(service: Service) -> Job | None:
    """Take a job that the loaded model is asked for, unless requests wait for it."""
    worker = service.worker
    if not worker.ready or worker.scheduler.depth:
        return None
    model, now = worker.pipeline.card.id, datetime.now(UTC)
    return await service.ledger.run(partial(take_job, service.database, model, now, LEASE, MAX_AGE))


async def work(service: Service, job: Job) -> None:
    """Make the picture of a job and end it, or put it back where the server stops."""
    limit_s = service.settings.request_timeout_s
    timings: dict[str, float] = {}
    try:
        async with time_limit(limit_s, deadline := time.monotonic() + limit_s):
            making = make_picture(service, job, deadline, timings)
            picture = await unless(lease_is_lost(service, job), making, "The job is not this server's any more.")
        await settle_job(service, job, None, timings, picture)
    except (errors.Cancelled, errors.Conflict):
        logger.info("job %s was cancelled, or taken by another server", job.id)
    except (errors.ShuttingDown, errors.QueueFull):
        await put_back(service, job)
    except asyncio.CancelledError:
        await put_back(service, job)
        raise
    except SQLAlchemyError:
        raise  # nothing is known of the job; its lease runs out
    except Exception as error:  # noqa: BLE001 - a border: the job's owner reads what may be told of it
        with suppress(errors.Conflict):
            await settle_job(service, job, error, timings)


async def make_picture(service: Service, job: Job, deadline: float, timings: dict[str, float]) -> Picture:
    """Make the picture that a job asks for; `timings` takes the seconds of each stage."""
    wanted = await asyncio.to_thread(read_request, service, job)
    return await draw(service, wanted, job.key_id, deadline, timings)


def read_request(service: Service, job: Job) -> ImageRequest:
    """Read what a job asks for; raises where it is not to be begun."""
    if datetime.now(UTC) - job.created_at > MAX_AGE:
        raise errors.ServiceError(f"The job waited for more than {MAX_AGE // timedelta(hours=1)} hours.")
    if job.attempts > MAX_ATTEMPTS:
        raise errors.ServiceError(f"The job was begun {MAX_ATTEMPTS} times, and each time its server was lost.")
    key = FIXED_KEY if job.key_id == FIXED_KEY.id else get_key(service.database, job.key_id)
    if key is None or not key.is_valid:
        raise errors.Unauthorized("The API key of this job is not valid any more.")
    asked = read_asked(service.database, job)
    if not asked:
        raise errors.Cancelled("The job has ended.")
    prompt = asked.pop(PROMPT).decode()
    # These were judged as they came; made smaller, they may miss a limit of form by a hair.
    references = tuple(Image.open(BytesIO(png), formats=("PNG",)).convert("RGB") for png in asked.values())
    return ImageRequest(prompt, job.width, job.height, job.seed, references)


async def lease_is_lost(service: Service, job: Job) -> None:
    """Renew the lease of a job; return once it is another's, or the job's owner has cancelled it."""
    while True:
        await asyncio.sleep(LEASE.total_seconds() / 6)
        with suppress(SQLAlchemyError):  # a database that is away for less than the lease
            renew = partial(change_job, service.database, job, leased_until=datetime.now(UTC) + LEASE)
            if not await service.ledger.run(renew):
                return


async def put_back(service: Service, job: Job) -> None:
    """Let a job wait again as if it had not been taken, unless its lease is lost."""
    waiting = {"status": "queued", "lease": "", "leased_until": None, "started_at": None, "attempts": job.attempts - 1}
    await service.ledger.run(partial(change_job, service.database, job, **waiting))


async def settle_job(
    service: Service, job: Job, error: Exception | None, timings: Mapping[str, float], picture: Picture | None = None
) -> None:
    """End a job and append its row to the ledger, both or neither; raises Conflict where its lease is lost."""
    now = datetime.now(UTC)
    outcome = SUCCEEDED if error is None else outcome_of(error)
    ended = replace(
        job,
        status=STATUSES.get(outcome, "failed"),
        ended_at=now,
        expires_at=now + timedelta(seconds=service.settings.results_kept_s),
        price=service.settings.price_per_image * (error is None),
        detail=None if error is None else sentence_on(error, job),
        timings=timings,
    )
    admission = Admission(
        job.id, job.key_id, job.model, job.workflow, job.width, job.height, job.references, job.created_at
    )
    image = None if picture is None else picture.png
    await service.ledger.settle(admission, outcome, partial(end_job, ended=ended, image=image))
    code = 200 if error is None else 0 if isinstance(error, errors.Cancelled) else status_of(error)
    seconds = (now - job.created_at).total_seconds()
    result = None if picture is None else picture.result
    record = RequestRecord(job.id, "RUN", "job", code, seconds, job.key_id, admission, timings, result=result)
    for observe in service.observers:
        observe(record)


def sentence_on(error: Exception, job: Job) -> str:
    """Say what may be told of an error; of a fault of ours the log has the rest."""
    if status_of(error) != 500:
        return str(error)
    logger.error("job %s failed", job.id, exc_info=error)
    return f"Unexpected server error; its request id is {job.id}."
