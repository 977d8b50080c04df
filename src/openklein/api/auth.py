"""Check the API key before anything of a request's body is read."""

import asyncio
import hmac
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from openklein.api.error_responses import error_response
from openklein.errors import Unauthorized
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import Key, find_key

HOW = "send the header 'Authorization: Bearer YOUR_API_KEY'"
FIXED_KEY = Key(id="fixed", name="the one in the settings", created_at=datetime.fromtimestamp(0, UTC), revoked_at=None)


class KeyCheck:
    """Let requests under /v1 pass only with a valid key; `scope["state"]["key"]` is then it."""

    def __init__(self, app: ASGIApp, settings: Settings, database: Database) -> None:
        self._app = app
        self._settings = settings
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            try:
                key = await asyncio.to_thread(self._identify, read_secret(Headers(scope=scope)))
            except Unauthorized as error:
                return await error_response(error)(scope, receive, send)
            scope["state"]["key"] = key
        await self._app(scope, receive, send)

    def _identify(self, secret: str) -> Key:
        fixed = self._settings.api_key
        if fixed is not None and hmac.compare_digest(secret.encode(), fixed.encode()):
            return FIXED_KEY
        key = find_key(self._database, secret)
        if key is None or key.revoked_at is not None:
            raise Unauthorized("The API key is not valid.")
        return key


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
