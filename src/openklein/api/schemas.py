"""Describe what goes over the wire: the fields of a request, and the answers that are JSON."""

import json
import reprlib
import secrets
from collections.abc import Callable, Collection
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from openklein.contract import (
    DEFAULT_ASPECT_RATIO,
    DEFAULT_MODEL,
    MAX_SEED,
    MODEL_IDS,
    RESOLUTIONS,
    SERVABLE_MODEL_IDS,
    Workflow,
)
from openklein.errors import InvalidRequest, UnknownModel
from openklein.storage.jobs import Status
from openklein.storage.tables import format_amount

MAX_JSON_MARKS = 10_000  # brackets and commas; parsed, each may take 20 times the bytes it came in


def one_of(allowed: Collection[str]) -> Callable[[str], str]:
    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(value)
        return value

    return check


def readable(value: str) -> str:
    value.encode()  # JSON can spell halves of characters, which no tokenizer reads; the error is a ValueError
    if not value.strip():
        raise ValueError(value)
    return value


def read_uris(value: Any) -> Any:
    """Read a list that came as a string, the only way a form can carry one."""
    return read_json(value) if isinstance(value, str) else value


class GenerateBody(BaseModel):
    """The fields of POST /v1/generate that are not files; nothing else is let in, and nothing is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: Annotated[str, AfterValidator(readable)]
    model: Annotated[str, AfterValidator(one_of(SERVABLE_MODEL_IDS))] = DEFAULT_MODEL
    image_uris: Annotated[list[str], BeforeValidator(read_uris)] = []
    aspect_ratio: Annotated[str, AfterValidator(one_of(RESOLUTIONS))] = DEFAULT_ASPECT_RATIO
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = Field(default_factory=lambda: secrets.randbelow(MAX_SEED + 1))


ALLOWED = {
    "prompt": "text that is not blank",
    "model": f"one of {', '.join(MODEL_IDS)}",
    "images": "files in a multipart form; in JSON use image_uris",
    "image_uris": "a JSON array of strings, each a URL or a base64 data URI of an image",
    "aspect_ratio": f"one of {', '.join(RESOLUTIONS)}",
    "seed": f"a whole number from 0 to {MAX_SEED}",
}


def read_fields(fields: dict[str, Any]) -> GenerateBody:
    """Judge the fields of a request; raises InvalidRequest with one sentence on the first that is wrong."""
    for name in fields:
        if name not in ALLOWED:
            raise InvalidRequest(f"There is no field {reprlib.repr(name)}; the fields are {', '.join(ALLOWED)}.")
    if "prompt" not in fields:
        raise InvalidRequest(f"prompt is required; it must be {ALLOWED['prompt']}.")
    try:
        return GenerateBody.model_validate(fields)
    except ValidationError as error:
        name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
    raise refusal(name, fields[name])


def refusal(name: str, value: Any) -> InvalidRequest:
    """Make the error that says which value a field cannot have, and what it must be."""
    kind = UnknownModel if name == "model" else InvalidRequest
    return kind(f"{name} cannot be {reprlib.repr(value)}; it must be {ALLOWED[name]}.")


def read_json(text: str | bytes) -> Any:
    """Parse JSON of few values in which no member is given twice; raises ValueError for everything else."""
    raw = text.encode() if isinstance(text, str) else text
    if sum(map(raw.count, (b"[", b"{", b","))) > MAX_JSON_MARKS:
        raise ValueError("too many values")
    try:
        return json.loads(text, object_pairs_hook=_unique_members)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is given twice")
    return members


class ErrorBody(BaseModel):
    """What every error answers."""

    detail: str


class HealthBody(BaseModel):
    status: str
    model: str | None = None


class ModelBody(BaseModel):
    """One model id that requests may name, and the model that answers for it."""

    id: str
    object: str = "model"
    served_by: str
    licence: str
    steps: int


class ModelsBody(BaseModel):
    object: str = "list"
    data: list[ModelBody]


class JobBody(BaseModel):
    """A job; what is not known yet is null."""

    model_config = ConfigDict(from_attributes=True)

    object: Literal["job"] = "job"
    id: str
    status: Status
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime | None  # when it is forgotten
    model: str
    workflow: Workflow
    width: int
    height: int
    seed: int
    price: Annotated[Decimal, PlainSerializer(format_amount, return_type=str)] | None
    detail: str | None
    timings: dict[str, float]  # seconds by stage


class JobsBody(BaseModel):
    object: Literal["list"] = "list"
    data: list[JobBody]
