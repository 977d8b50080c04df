"""POST /v1/generate: make or edit one picture."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openklein.api.bodies import GenerateCall, read_call
from openklein.api.dependencies import Service, ServiceDep
from openklein.api.idempotency import Keep, answer_once
from openklein.api.models import check_model, check_ready
from openklein.api.references import check_count
from openklein.api.settlement import Admission, outcome_of
from openklein.contract import RESOLUTIONS, select_workflow
from openklein.engine.images import encode_png
from openklein.engine.pipeline import stage
from openklein.engine.types import ImageRequest, ImageResult
from openklein.errors import Cancelled, DeadlineExceeded
from openklein.storage.tables import format_amount
from openklein.storage.usage import SUCCEEDED

router = APIRouter(tags=["images"])


@dataclass(frozen=True, slots=True)
class Picture:
    """What the model made, encoded."""

    png: bytes
    result: ImageResult


@router.post("/v1/generate", response_class=Response)
async def generate(request: Request, service: ServiceDep) -> Response:
    """Make one picture from a prompt and 0 to 4 reference images, and answer with the bytes of a PNG."""
    limit_s = service.settings.request_timeout_s
    deadline = time.monotonic() + limit_s
    async with time_limit(limit_s, deadline):
        call = await read_call(request)
    return await answer_once(request, service, call, partial(answer, request, service, call, limit_s, deadline))


async def answer(
    request: Request, service: Service, call: GenerateCall, limit_s: float, deadline: float, keep: Keep
) -> Response:
    """Admit a request, make its picture, and settle it; `keep` gives the writes that make the answer repeatable."""
    async with time_limit(limit_s, deadline):
        admission = request.state.admission = await admit(service, call, request)
    await service.ledger.reserve(admission)
    timings: dict[str, float] = {}
    request.state.timings = timings
    try:
        async with time_limit(limit_s, deadline):
            picture = await while_connected(request, make_picture(service, call, admission, deadline, timings))
    except BaseException as error:
        await service.ledger.settle(admission, outcome_of(error))
        raise
    headers = facts(admission, picture, timings, service.settings.price_per_image)
    response = Response(picture.png, media_type="image/png", headers=headers)
    await service.ledger.settle(admission, SUCCEEDED, *keep(response))
    request.state.result = picture.result
    return response


@asynccontextmanager
async def time_limit(limit_s: float, deadline: float) -> AsyncIterator[None]:
    """Raise DeadlineExceeded where the block does not end before the deadline, in `time.monotonic` seconds."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except (TimeoutError, DeadlineExceeded) as error:
        raise DeadlineExceeded(f"The request took longer than the {limit_s:g} s allowed.") from error


async def admit(service: Service, call: GenerateCall, request: Request) -> Admission:
    """Judge everything that is cheap to judge; nothing is fetched, decoded or queued before."""
    body = call.body
    check_count(call.uploads, body.image_uris)
    pipeline = check_ready(service.worker)
    check_model(body.model, pipeline.card.id, strict=service.settings.strict_model)
    await asyncio.to_thread(pipeline.check, body.prompt)
    references = len(call.uploads) + len(body.image_uris)
    width, height = RESOLUTIONS[body.aspect_ratio]
    return Admission(
        request_id=request.state.request_id,
        key=request.state.key,
        model=pipeline.card.id,
        workflow=select_workflow(references),
        width=width,
        height=height,
        references=references,
    )


async def while_connected(request: Request, work: Coroutine[Any, Any, Picture]) -> Picture:
    """Do the work unless the client leaves; its body has been read already."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("The client left before its picture was made.")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def make_picture(
    service: Service, call: GenerateCall, admission: Admission, deadline: float, timings: dict[str, float]
) -> Picture:
    """Read the references, wait for the model, and encode what it made; `timings` takes the seconds of each stage."""
    body = call.body
    with stage(timings, "fetch"):
        references = await service.references.read(call.uploads, body.image_uris)
    wanted = ImageRequest(body.prompt, admission.width, admission.height, body.seed, references)
    ticket = service.worker.scheduler.submit(wanted, deadline=deadline, group=admission.key.id)
    try:
        result = await asyncio.wrap_future(ticket.future)  # cancelling this wait cancels the ticket's future too
    finally:
        waited_s = time.monotonic() - ticket.submitted_at  # of one that was never taken out of the queue
        timings.update({"queue": waited_s} | ticket.timings)
    with stage(timings, "png"):
        png = await asyncio.to_thread(encode_png, result.image, {"model": result.model, "seed": str(result.seed)})
    return Picture(png, result)


def facts(admission: Admission, picture: Picture, timings: Mapping[str, float], price: Decimal) -> dict[str, str]:
    """Say in headers how a picture was made."""
    return {
        "x-klein-model": picture.result.model,
        "x-klein-seed": str(picture.result.seed),
        "x-klein-workflow": admission.workflow,
        "x-klein-price": format_amount(price),
        "server-timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in timings.items()),
    }
