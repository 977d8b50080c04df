"""Turn every error into one shape: `{"detail": "<one clear sentence>"}`."""

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from openklein.errors import (
    BodyTooLarge,
    CallerError,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    Gone,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    OpenKleinError,
    ServiceError,
    Unauthorized,
)

# The first class that fits names the status; what fits none is a fault of ours, whose text stays in the log.
STATUSES: tuple[tuple[type[OpenKleinError], int], ...] = (
    (Unauthorized, 401),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (Gone, 410),
    (LimitExceeded, 429),
    (BodyTooLarge, 413),
    (CallerError, 422),
    (DeadlineExceeded, 504),
    (ServiceError, 503),
)
HTTP_SENTENCES = {
    404: "There is nothing at this path; the API is POST /v1/generate.",
    405: "This path does not take this method.",
}


def error_response(error: OpenKleinError) -> JSONResponse:
    """Answer an error on purpose; raises it again where it is a fault of ours."""
    if (status := status_of(error)) == 500:
        raise error
    return JSONResponse({"detail": str(error)}, status, _headers(error))


def status_of(error: Exception) -> int:
    """Give the status that says whose fault an error is; 500 for one of ours."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def _headers(error: OpenKleinError) -> dict[str, str]:
    if isinstance(error, LimitExceeded):
        return {"retry-after": str(error.retry_after_s)}
    if isinstance(error, Conflict):
        return {"retry-after": "1"}
    return {"www-authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}


def fault_response(request_id: str) -> JSONResponse:
    """Answer a fault of ours without saying anything about it."""
    return JSONResponse({"detail": f"Unexpected server error; its request id is {request_id}."}, 500)


def install(app: FastAPI) -> None:
    """Make the framework's own errors and ours answer in the one shape."""

    @app.exception_handler(OpenKleinError)
    async def answer_ours(_request: Request, error: OpenKleinError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def answer_validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(InvalidRequest(sentence_of(error.errors()[0])))

    @app.exception_handler(HTTPException)
    async def answer_http(_request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, OpenKleinError):  # the framework wraps what reading a body raises
            return error_response(error.__cause__)
        sentence = HTTP_SENTENCES.get(error.status_code, error.detail)
        return JSONResponse({"detail": sentence}, error.status_code, error.headers)


def sentence_of(error: Mapping[str, Any]) -> str:
    """Say in one sentence what pydantic found wrong, as `ValidationError.errors()` lists it."""
    name = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
    match error["type"]:
        case "json_invalid":
            return "The body is not valid JSON."
        case "missing":
            return f"{name or 'A body'} is required."
        case "extra_forbidden":
            return f"There is no field {reprlib.repr(name)}."
    message = error["msg"][:1].lower() + error["msg"][1:]
    return f"{name or 'The body'} cannot be {reprlib.repr(error['input'])}: {message}."
