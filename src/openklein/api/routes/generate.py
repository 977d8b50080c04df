"""POST /v1/generate: make or edit one picture."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openklein.api.bodies import GenerateCall, read_call
from openklein.api.dependencies import Service, ServiceDep
from openklein.api.models import check_model, check_ready
from openklein.api.references import check_count
from openklein.contract import RESOLUTIONS
from openklein.engine.images import encode_png
from openklein.engine.types import ImageRequest, ImageResult
from openklein.errors import Cancelled, DeadlineExceeded

router = APIRouter(tags=["images"])


@router.post("/v1/generate", response_class=Response)
async def generate(request: Request, service: ServiceDep) -> Response:
    """Make one picture from a prompt and 0 to 4 reference images, and answer with the bytes of a PNG."""
    limit_s = service.settings.request_timeout_s
    deadline = time.monotonic() + limit_s
    try:
        async with asyncio.timeout(limit_s):
            call = await read_call(request)
            return await while_connected(request, make_picture(service, call, deadline, request.state.caller))
    except (TimeoutError, DeadlineExceeded) as error:
        raise DeadlineExceeded(f"The request took longer than the {limit_s:g} s allowed.") from error


async def while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
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


async def make_picture(service: Service, call: GenerateCall, deadline: float, caller: str) -> Response:
    """Judge everything cheap, then read the references, wait for the model, and encode what it made."""
    body = call.body
    check_count(call.uploads, body.image_uris)
    pipeline = check_ready(service.worker)
    check_model(body.model, pipeline.card.id, strict=service.settings.strict_model)
    await asyncio.to_thread(pipeline.check, body.prompt)
    started = time.monotonic()
    references = await service.references.read(call.uploads, body.image_uris)
    fetch_s = time.monotonic() - started
    width, height = RESOLUTIONS[body.aspect_ratio]
    wanted = ImageRequest(body.prompt, width, height, body.seed, references)
    ticket = service.worker.scheduler.submit(wanted, deadline=deadline, group=caller)
    result = await asyncio.wrap_future(ticket.future)  # cancelling this wait cancels the ticket's future too
    started = time.monotonic()
    png = await asyncio.to_thread(encode_png, result.image, {"model": result.model, "seed": str(result.seed)})
    timings = {**result.timings, "fetch": fetch_s, "png": time.monotonic() - started}
    return Response(png, media_type="image/png", headers=facts(wanted, result, timings))


STAGES = ("queue", "fetch", "text", "references", "denoise", "decode", "png")


def facts(wanted: ImageRequest, result: ImageResult, timings: dict[str, float]) -> dict[str, str]:
    """Say in headers how a picture was made."""
    return {
        "x-klein-model": result.model,
        "x-klein-seed": str(result.seed),
        "x-klein-workflow": wanted.workflow,
        "server-timing": ", ".join(f"{stage};dur={1000 * timings[stage]:.1f}" for stage in STAGES if stage in timings),
    }
