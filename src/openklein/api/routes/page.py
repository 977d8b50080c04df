"""Serve the page at / and the files beside it, to which nothing from elsewhere may be added."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

FOLDER = Path(__file__).parents[2] / "playground"
MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".webp": "image/webp",
}
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


def answer_with(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def answer() -> FileResponse:
        return FileResponse(path, headers=HEADERS, media_type=MEDIA_TYPES[path.suffix])

    return answer


router.add_api_route("/", answer_with(FOLDER / "index.html"), methods=["GET", "HEAD"])
for file in (path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES):
    router.add_api_route(f"/{file.relative_to(FOLDER).as_posix()}", answer_with(file), methods=["GET", "HEAD"])
