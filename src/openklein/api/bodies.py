"""Parse the body of POST /v1/generate by its content type: a multipart form, or JSON."""

import asyncio
from dataclasses import dataclass
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from openklein.api.multipart import Part, read_parts
from openklein.api.schemas import GenerateBody, read_fields, read_json, refusal
from openklein.errors import Cancelled, InvalidRequest


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A request as it came: its fields, and the bytes of its uploaded files."""

    body: GenerateBody
    uploads: tuple[bytes, ...] = ()


async def read_call(request: Request) -> GenerateCall:
    """Read and judge a whole body, parsing off the event loop; raises InvalidRequest, BodyTooLarge or Cancelled."""
    try:
        raw = await request.body()
    except ClientDisconnect as error:
        raise Cancelled("The client left before its request was complete.") from error
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind == b"application/json":
        return await asyncio.to_thread(_read_json_call, raw)
    if kind == b"multipart/form-data":
        return await asyncio.to_thread(_read_form_call, raw, options.get(b"boundary", b""))
    shown = kind.decode("latin-1")[:60]
    raise InvalidRequest(f"Content-Type cannot be {shown!r}; send multipart/form-data or application/json.")


def _read_json_call(raw: bytes) -> GenerateCall:
    try:
        fields = read_json(raw)
    except ValueError as error:
        raise InvalidRequest(
            "The body is not valid JSON, gives a field twice, or holds thousands of values."
        ) from error
    if not isinstance(fields, dict):
        raise InvalidRequest("The body is JSON but not an object; send an object with at least a prompt.")
    files = fields.pop("images", [])
    if files != []:
        raise refusal("images", files)
    return GenerateCall(read_fields(fields))


def _read_form_call(raw: bytes, boundary: bytes) -> GenerateCall:
    fields: dict[str, Any] = {}
    uploads: list[bytes] = []
    for part in read_parts(raw, boundary):
        if part.name != "images":
            _add_text(fields, part)
        elif part.file_name or part.content:
            # A browser sends a file input that was left empty as a part without a file name and without bytes.
            uploads.append(part.content)
    seed = fields.get("seed", "")
    if seed.isascii() and seed.isdigit() and len(seed) < 20:
        fields["seed"] = int(seed)
    return GenerateCall(read_fields(fields), tuple(uploads))


def _add_text(fields: dict[str, Any], part: Part) -> None:
    shown = repr(part.name[:60])
    if part.file_name is not None:
        raise InvalidRequest(f"The field {shown} came as a file; only images can be files.")
    if part.name in fields:
        raise InvalidRequest(f"The field {shown} is given twice; only images can be given several times.")
    try:
        fields[part.name] = part.content.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The field {shown} is not UTF-8 text.") from error
