"""Serve the page at / and its two files, to which nothing from elsewhere may be added."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parents[2] / "playground"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def index() -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.api_route("/app.js", methods=["GET", "HEAD"])
async def script() -> FileResponse:
    return FileResponse(FOLDER / "app.js", headers=HEADERS, media_type="text/javascript")


@router.api_route("/style.css", methods=["GET", "HEAD"])
async def style() -> FileResponse:
    return FileResponse(FOLDER / "style.css", headers=HEADERS, media_type="text/css")
