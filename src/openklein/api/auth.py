"""Check the API key, and what it may do, before anything of a request's body is read."""

import asyncio
import hmac
import logging
from datetime import UTC, datetime
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from openklein.api.error_responses import error_response
from openklein.errors import Forbidden, Unauthorized
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import SCOPES, Key, find_key, note_use
from openklein.storage.keys import Scope as KeyScope

HOW = "send the header 'Authorization: Bearer YOUR_API_KEY'"
FIXED_KEY: Final = Key(
    id="fixed", name="the one in the settings", scopes=SCOPES, created_at=datetime.fromtimestamp(0, UTC)
)
GENERATE: Final = "/v1/generate"
JOBS: Final = "/v1/jobs"
# The scope that a path and all below it need; None is any key. What is not listed needs `generate`.
NEEDED: Final[dict[str, KeyScope | None]] = {
    "/v1/models": None,
    "/v1/account": None,
    "/v1/usage": "read",
    "/v1/keys": "admin",
}

logger = logging.getLogger(__name__)


class KeyCheck:
    """Let requests under /v1 pass only with a valid key that may do it; `scope["state"]["key"]` is then the key."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app = app
        self._settings = settings
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                key = await asyncio.to_thread(self._identify, read_secret(Headers(scope=scope)))
                check_scope(key, scope["method"], scope["path"])
            except (Unauthorized, Forbidden) as error:
                return await error_response(error)(scope, receive, send)
            scope["state"]["key"] = key
        await self._app(scope, receive, send)

    def _identify(self, secret: str) -> Key:
        fixed = self._settings.api_key
        if fixed is not None and hmac.compare_digest(secret.encode(), fixed.encode()):
            return FIXED_KEY
        key = find_key(self._database, secret)
        if key is None or not key.is_valid:
            # The caller is told one thing; the operator, who would look for a key that is there, is told which it is.
            logger.info("refused %s", "a key that is not ours" if key is None else f"key {key.id}: {describe(key)}")
            raise Unauthorized("The API key is not valid.")
        note_use(self._database, key)
        return key


def check_scope(key: Key, method: str, path: str) -> None:
    """Raise Forbidden where a key lacks the scope for a path; for generate Unauthorized, which its clients know."""
    place = "/".join(path.split("/")[:3])
    if place == JOBS and method == "GET" and key.allows("read"):
        return
    needed = NEEDED.get(place, "generate")
    if needed is not None and not key.allows(needed):
        kind = Unauthorized if path == GENERATE else Forbidden
        raise kind(f"This API key may not do this: it has the scopes {', '.join(key.scopes)}, and lacks {needed}.")


def describe(key: Key) -> str:
    return "revoked" if key.revoked_at is not None else "expired"


def read_secret(headers: Headers) -> str:
    """Return the secret in the Authorization header; raises Unauthorized."""
    values = [value for name, value in headers.raw if name == b"authorization"]
    if not values:
        raise Unauthorized(f"The API key is missing; {HOW}.")
    scheme, _, secret = values[0].strip().partition(b" ")
    if len(values) > 1 or scheme.lower() != b"bearer" or not secret.strip():
        raise Unauthorized(f"The Authorization header is malformed; {HOW}.")
    try:
        return secret.strip().decode()
    except UnicodeDecodeError:
        return secret.strip().decode("latin-1")  # how older clients send a key that is not ASCII
