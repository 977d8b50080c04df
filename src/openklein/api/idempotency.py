"""Answer a request that carries an Idempotency-Key once, and its repeats with the same answer."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial

from fastapi import Request, Response
from starlette.datastructures import Headers

from openklein.api.bodies import GenerateCall
from openklein.api.dependencies import Service
from openklein.errors import InvalidRequest
from openklein.storage.idempotency import Answer, Claim, claim_name, keep_answer, release_name
from openklein.storage.usage import Write

MAX_NAME = 255

Keep = Callable[[Response], tuple[Write, ...]]  # the writes that make an answer repeatable, for its transaction


async def answer_once(
    request: Request, service: Service, call: GenerateCall, answer: Callable[[Keep], Awaitable[Response]]
) -> Response:
    """Answer a request, or repeat what was answered to the first with its Idempotency-Key; a failure is no answer.

    `answer` has to write what it is handed in the transaction that settles the request. Without the header there is
    nothing to write.
    """
    name = read_name(request.headers)
    if name is None:
        return await answer(lambda _: ())
    now = datetime.now(UTC)
    claim = Claim(
        key_id=request.state.key.id,
        name=name,
        fingerprint=await asyncio.to_thread(fingerprint, request.url.path, call),
        request_id=request.state.request_id,
        expires_at=now + service.ledger.lease,
    )
    if kept := await service.ledger.run(partial(claim_name, service.database, claim, now)):
        return Response(kept.body, kept.status, {**kept.headers, "idempotent-replayed": "true"})

    def keep(response: Response) -> tuple[Write, ...]:
        expires_at = datetime.now(UTC) + timedelta(seconds=service.settings.results_kept_s)
        whole = Answer(response.status_code, dict(response.headers), bytes(response.body))
        return (lambda connection: keep_answer(connection, claim, whole, expires_at),)

    try:
        return await answer(keep)
    except BaseException:
        await service.ledger.run(partial(release_name, service.database, claim))
        raise


def read_name(headers: Headers) -> str | None:
    """Return the Idempotency-Key, None where there is none; raises InvalidRequest."""
    names = headers.getlist("idempotency-key")
    if not names:
        return None
    name = names[0]
    if len(names) > 1 or not (1 <= len(name) <= MAX_NAME and name.isascii() and name.isprintable()):
        raise InvalidRequest(f"Idempotency-Key must be given once, with 1 to {MAX_NAME} printable ASCII characters.")
    return name


def fingerprint(path: str, call: GenerateCall) -> bytes:
    """Hash what a request asks for into 32 bytes; the bytes of a form differ each time it is sent."""
    unset = set() if "seed" in call.body.model_fields_set else {"seed"}  # which is drawn anew each time
    uploads = [hashlib.sha256(upload).hexdigest() for upload in call.uploads]
    asked = {"path": path, "uploads": uploads, **call.body.model_dump(exclude=unset)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
