"""Make pictures for whoever asks, a request or a job, and say how it was done."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from openklein.api.dependencies import Service
from openklein.engine.images import encode_png
from openklein.engine.pipeline import stage
from openklein.engine.types import ImageRequest, ImageResult
from openklein.errors import Cancelled, DeadlineExceeded
from openklein.storage.tables import format_amount

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Picture:
    """What the model made, encoded."""

    png: bytes
    result: ImageResult


@asynccontextmanager
async def time_limit(limit_s: float, deadline: float) -> AsyncIterator[None]:
    """Raise DeadlineExceeded where the block does not end before the deadline, in `time.monotonic` seconds."""
    try:
        async with asyncio.timeout(deadline - time.monotonic()):
            yield
    except (TimeoutError, DeadlineExceeded) as error:
        raise DeadlineExceeded(f"The request took longer than the {limit_s:g} s allowed.") from error


async def unless(leaving: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T], why: str) -> T:
    """Do the work; raise Cancelled with the sentence `why` where `leaving` ends first."""
    tasks = working, _ = asyncio.create_task(work), asyncio.create_task(leaving)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled(why)
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def draw(
    service: Service, wanted: ImageRequest, group: str, deadline: float, timings: dict[str, float]
) -> Picture:
    """Wait for the model, and encode what it made; `timings` takes the seconds of each stage."""
    ticket = service.worker.scheduler.submit(wanted, deadline=deadline, group=group)
    try:
        result = await asyncio.wrap_future(ticket.future)  # cancelling this wait cancels the ticket's future too
    finally:
        waited_s = time.monotonic() - ticket.submitted_at  # of one that was never taken out of the queue
        timings.update({"queue": waited_s} | ticket.timings)
    with stage(timings, "png"):
        png = await asyncio.to_thread(encode_png, result.image, {"model": result.model, "seed": str(result.seed)})
    return Picture(png, result)


def facts(model: str, seed: int, workflow: str, price: Decimal, timings: Mapping[str, float]) -> dict[str, str]:
    """Say in headers how a picture was made."""
    return {
        "x-klein-model": model,
        "x-klein-seed": str(seed),
        "x-klein-workflow": workflow,
        "x-klein-price": format_amount(price),
        "server-timing": ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in timings.items()),
    }
