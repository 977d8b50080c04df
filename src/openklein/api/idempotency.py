"""Tell a request that is sent again by its Idempotency-Key."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime
from functools import partial

from fastapi import Request
from starlette.datastructures import Headers

from openklein.api.bodies import GenerateCall
from openklein.api.dependencies import Service
from openklein.errors import InvalidRequest
from openklein.storage.idempotency import Answer, Claim, claim_name

MAX_NAME = 255


async def claim(request: Request, service: Service, call: GenerateCall) -> Claim | Answer | None:
    """Claim the name that a request has, or give the answer to the first that had it; None for one without a name.

    Raises InvalidRequest, Conflict and Gone, as `claim_name` does.
    """
    name = read_name(request.headers)
    if name is None:
        return None
    now = datetime.now(UTC)
    wanted = Claim(
        key_id=request.state.key.id,
        name=name,
        fingerprint=await asyncio.to_thread(fingerprint, request.url.path, call),
        request_id=request.state.request_id,
        expires_at=now + service.ledger.lease,
    )
    return await service.ledger.run(partial(claim_name, service.database, wanted, now)) or wanted


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
