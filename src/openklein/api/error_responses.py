"""Turn every error into one shape: `{"detail": "<one clear sentence>"}`."""

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from openklein.errors import (
    BodyTooLarge,
    CallerError,
    DeadlineExceeded,
    OpenKleinError,
    ServiceError,
    Unauthorized,
)

# The first class that fits names the status; what fits none is a fault of ours, whose text stays in the log.
STATUSES: tuple[tuple[type[OpenKleinError], int], ...] = (
    (Unauthorized, 401),
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
    for kind, status in STATUSES:
        if isinstance(error, kind):
            headers = {"www-authenticate": "Bearer"} if status == 401 else None
            return JSONResponse({"detail": str(error)}, status, headers)
    raise error


def fault_response(request_id: str) -> JSONResponse:
    """Answer a fault of ours without saying anything about it."""
    return JSONResponse({"detail": f"Unexpected server error; its request id is {request_id}."}, 500)


def install(app: FastAPI) -> None:
    """Make the framework's own errors and ours answer in the one shape."""

    @app.exception_handler(OpenKleinError)
    async def answer_ours(_request: Request, error: OpenKleinError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def answer_http(_request: Request, error: HTTPException) -> JSONResponse:
        sentence = HTTP_SENTENCES.get(error.status_code, error.detail)
        return JSONResponse({"detail": sentence}, error.status_code, error.headers)
