"""Stand between the server and the routes: request ids, the last border for faults, hosts, and bytes.

Plain ASGI, because a body has to be judged before a framework parses it.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openklein.api.error_responses import error_response, fault_response
from openklein.api.records import Observe, record_request
from openklein.errors import BodyTooLarge, DeadlineExceeded, InvalidRequest, QueueFull, ShuttingDown
from openklein.settings import Settings

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0
MAX_BODIES_HELD = 16  # times the largest body allowed: 1 GB unless set otherwise
HEADERS = {  # of every answer, where a route has not set its own
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(:[0-9]*)?")


class RequestBorder:
    """Give each request an id, answer faults of ours opaquely, and tell the observers what became of it."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], observers: Sequence[Observe]) -> None:
        self._app = app
        self._routes = routes
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = secrets.token_hex(12)
        scope.setdefault("state", {})["request_id"] = request_id
        started = time.monotonic()
        answer = _Answer(request_id, receive, send)
        try:
            await self._app(scope, answer.receive, answer.send)
        except asyncio.CancelledError:  # the server stops, and has waited for this request long enough
            if not answer.status:
                await error_response(ShuttingDown("The server is shutting down."))(scope, receive, answer.send)
        except Exception:  # a border: whatever went wrong, the client gets an answer and the log the traceback
            logger.exception("request %s failed", request_id)
            if not answer.status:
                await fault_response(request_id)(scope, receive, answer.send)
        finally:
            record = record_request(scope, self._routes, request_id, answer.status, time.monotonic() - started)
            for observe in self._observers:
                observe(record)


class _Answer:
    """Give an answer its headers, and note its status; 0 where the client left before it."""

    def __init__(self, request_id: str, receive: Receive, send: Send) -> None:
        self.status = 0
        self._has_left = False
        self._request_id = request_id
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        message = await self._receive()
        self._has_left |= message["type"] == "http.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = 0 if self._has_left else message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)


class HostCheck:
    """On a loopback address, serve loopback host names alone: a web page may point a name of its own at this server."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        own = f"[{settings.host}]" if ":" in settings.host else settings.host.lower()
        self._allowed = {"localhost", "127.0.0.1", "[::1]", own}
        self._is_on = settings.is_private

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_on and scope["type"] == "http" and not self._is_allowed(Headers(scope=scope)):
            error = InvalidRequest(
                "The Host header does not name this server, which listens for this machine alone; "
                "use localhost, 127.0.0.1 or [::1]."
            )
            return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_allowed(self, headers: Headers) -> bool:
        match = HOST.fullmatch(headers.get("host", "").lower())
        return match is not None and match[1] in self._allowed and len(headers.getlist("host")) == 1


class BodyLimit:
    """Stop reading a body at its limits of bytes and time, and read the rest of an unwanted one before answering.

    A client that is still sending would otherwise see a reset in place of its answer.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._held = _Held(most=MAX_BODIES_HELD * max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = _Body(Headers(scope=scope), receive, self._max_bytes, self._timeout_s, self._held)

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
            await send(message)

        try:
            await self._app(scope, body.receive, send_after_body)
        finally:
            body.release()


@dataclass(slots=True)
class _Held:
    """How many bytes of bodies the requests of one app hold together."""

    most: int
    count: int = 0


class _Body:
    def __init__(self, headers: Headers, receive: Receive, max_bytes: int, timeout_s: float, held: _Held) -> None:
        self._receive = receive
        self._held = held
        self._kept = 0
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._declared = int(headers.get("content-length", "0"))
        self._is_unread = self._declared > 0 or "transfer-encoding" in headers
        # A client that waits for "100 Continue" sends nothing until the first read; then nothing needs draining.
        self._is_held_back = headers.get("expect", "").lower() == "100-continue"
        self._count = 0

    async def receive(self) -> Message:
        """Pass the next message on; raises BodyTooLarge, QueueFull, or DeadlineExceeded while there is body to come."""
        if self._declared > self._max_bytes:
            raise self._too_large(self._declared)
        try:
            async with asyncio.timeout_at(self._deadline if self._is_unread else None):
                message = await self._read()
        except TimeoutError as error:
            raise DeadlineExceeded(f"The body did not arrive within the {self._timeout_s:g} s allowed.") from error
        if self._count > self._max_bytes:
            raise self._too_large(self._count)
        self._held.count += self._count - self._kept
        self._kept = self._count
        if self._held.count > self._held.most:
            raise QueueFull("The server holds as many bytes of requests as it can; try again shortly.")
        return message

    def release(self) -> None:
        """Count the body as held no more."""
        self._held.count -= self._kept

    async def drain(self) -> None:
        """Read and drop the rest, up to as many bytes again as the limit."""
        if self._is_held_back:
            return
        most = self._count + self._max_bytes
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                while self._is_unread and self._count <= most:
                    await self._read()

    async def _read(self) -> Message:
        self._is_held_back = False
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self._is_unread = message["type"] == "http.request" and message.get("more_body", False)
        return message

    def _too_large(self, count: int) -> BodyTooLarge:
        return BodyTooLarge(f"The body has {count} bytes or more; at most {self._max_bytes} are accepted.")
