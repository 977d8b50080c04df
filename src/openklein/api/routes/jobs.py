"""Jobs: ask for a picture now, and fetch it later."""

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openklein.api.dependencies import KeyDep, Service, ServiceDep
from openklein.api.jobs import MAX_AGE, PROMPT, settle_job
from openklein.api.orders import Finish, Order, answer
from openklein.api.pictures import facts
from openklein.api.schemas import ErrorBody, JobBody, JobsBody
from openklein.engine.images import encode_png
from openklein.errors import Cancelled, Conflict, Gone, NotFound
from openklein.storage.files import read_file
from openklein.storage.jobs import IMAGE, Job, create_job, find_job, list_jobs
from openklein.storage.keys import Key

MOST_LISTED = 100
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 403, 404)}
IMAGE_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The bytes of a PNG"},
    **{status: {"model": ErrorBody} for status in (409, 410)},
}
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=ERRORS)


@router.post("", status_code=202)
async def create(request: Request, service: ServiceDep) -> Response:
    """Take a picture to be made later; the body is that of POST /v1/generate."""
    response = await answer(request, service, carry_out)
    service.new_job.set()
    return response


async def carry_out(order: Order) -> tuple[Response, Finish]:
    """Keep the prompt, and the references as they will be shown to the model, whatever they came as."""
    service, body, admission = order.service, order.call.body, order.admission
    images = await service.references.read(order.call.uploads, body.image_uris)
    asked = {PROMPT: body.prompt.encode()}
    for place, image in enumerate(images):
        asked[f"reference {place}"] = await asyncio.to_thread(encode_png, image, {})
    job = Job(
        id=admission.request_id,
        key_id=admission.key_id,
        created_at=admission.started_at,
        seed=body.seed,
        model=admission.model,
        workflow=admission.workflow,
        width=admission.width,
        height=admission.height,
        references=admission.references,
    )
    hold_until, most = job.created_at + MAX_AGE + service.ledger.lease, service.settings.job_queue_size
    write = partial(create_job, job=job, asked=asked, hold_until=hold_until, most=most)
    content, headers = JobBody.model_validate(job).model_dump_json(), {"location": f"/v1/jobs/{job.id}"}
    response = Response(content, status_code=202, media_type="application/json", headers=headers)
    return response, partial(service.ledger.write, write)


@router.get("")
async def list_own(service: ServiceDep, key: KeyDep) -> JobsBody:
    """List the newest jobs of the key that asks, newest first, up to 100."""
    jobs = await asyncio.to_thread(list_jobs, service.database, key.id, MOST_LISTED)
    return JobsBody(data=[JobBody.model_validate(job) for job in jobs])


@router.get("/{job_id}")
async def show(service: ServiceDep, key: KeyDep, job_id: str) -> JobBody:
    """Show a job."""
    return JobBody.model_validate(await own_job(service, key, job_id))


@router.get("/{job_id}/image", response_class=Response, responses=IMAGE_ANSWERS)
async def show_image(service: ServiceDep, key: KeyDep, job_id: str) -> Response:
    """Answer with the picture of a job that has succeeded, as POST /v1/generate does."""
    job = await own_job(service, key, job_id)
    if job.ended_at is None:
        raise Conflict(f"The job is {job.status}; its picture is not made yet.")
    if job.status != "succeeded" or job.price is None:
        raise NotFound(f"The job has {job.status}: it has no picture.")
    png = await asyncio.to_thread(read_file, service.database, job.id, IMAGE)
    if png is None:
        raise Gone("The picture of this job is no longer kept.")
    headers = facts(job.model, job.seed, job.workflow, job.price, job.timings)
    return Response(png, media_type="image/png", headers=headers)


@router.delete("/{job_id}")
async def cancel(service: ServiceDep, key: KeyDep, job_id: str) -> JobBody:
    """Cancel a job, which then costs nothing; one that has ended stays as it is."""
    while (job := await own_job(service, key, job_id)).ended_at is None:
        with suppress(Conflict):  # a server has just taken it, or ended it
            await settle_job(service, job, Cancelled("The job was cancelled."), {})
    return JobBody.model_validate(job)


async def own_job(service: Service, key: Key, job_id: str) -> Job:
    """Read a job of the key that asks; raises NotFound, for those of others too."""
    job = await asyncio.to_thread(find_job, service.database, job_id, key.id)
    if job is None:
        raise NotFound("There is no job with this id; GET /v1/jobs lists the newest.")
    return job
