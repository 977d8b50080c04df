"""Take the order for a picture through what getting it now and getting it later have in common."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from fastapi import Request, Response

from openklein.api.bodies import GenerateCall, read_call
from openklein.api.dependencies import Service
from openklein.api.idempotency import claim
from openklein.api.models import check_model, check_ready
from openklein.api.pictures import time_limit
from openklein.api.references import check_count
from openklein.api.settlement import Admission, outcome_of
from openklein.contract import RESOLUTIONS, select_workflow
from openklein.errors import OpenKleinError
from openklein.storage.idempotency import Answer, Claim, keep_answer, release_name
from openklein.storage.usage import Write


@dataclass(frozen=True, slots=True)
class Order:
    """An admitted request for a picture."""

    request: Request
    service: Service
    call: GenerateCall
    admission: Admission
    deadline: float  # in `time.monotonic` seconds
    timings: dict[str, float] = field(default_factory=dict)


Finish = Callable[..., Awaitable[None]]  # settles an order, doing the writes it is handed in the same transaction
Carry = Callable[[Order], Awaitable[tuple[Response, Finish]]]


async def answer(request: Request, service: Service, carry_out: Carry) -> Response:
    """Answer a request for a picture; one with an Idempotency-Key that has been answered is answered the same."""
    limit_s = service.settings.request_timeout_s
    deadline = time.monotonic() + limit_s
    async with time_limit(limit_s, deadline):
        call = await read_call(request)
    held = await claim(request, service, call)
    if isinstance(held, Answer):
        return Response(held.body, held.status, {**held.headers, "idempotent-replayed": "true"})
    try:
        async with time_limit(limit_s, deadline):
            admission = request.state.admission = await admit(service, call, request)
        await service.ledger.reserve(admission, request.state.key.limits)
        return await settle(Order(request, service, call, admission, deadline), carry_out, held)
    except BaseException:
        if held is not None:
            await service.ledger.run(partial(release_name, service.database, held))
        raise


async def settle(order: Order, carry_out: Carry, held: Claim | None) -> Response:
    """Carry an order out, and settle it with its answer or its failure."""
    ledger, settings = order.service.ledger, order.service.settings
    try:
        async with time_limit(settings.request_timeout_s, order.deadline):
            response, finish = await carry_out(order)
    except BaseException as error:
        await ledger.settle(order.admission, outcome_of(error))
        raise
    try:
        await finish(*keep(held, response, settings.results_kept_s))
    except OpenKleinError as error:  # after all else nobody knows whether it is settled
        await ledger.settle(order.admission, outcome_of(error))
        raise
    return response


def keep(held: Claim | None, response: Response, seconds: float) -> tuple[Write, ...]:
    """Give the writes that make an answer repeatable; none for a request without an Idempotency-Key."""
    if held is None:
        return ()
    whole = Answer(response.status_code, dict(response.headers), bytes(response.body))
    expires_at = datetime.now(UTC) + timedelta(seconds=seconds)
    return (partial(keep_answer, claim=held, answer=whole, expires_at=expires_at),)


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
        key_id=request.state.key.id,
        model=pipeline.card.id,
        workflow=select_workflow(references),
        width=width,
        height=height,
        references=references,
    )
