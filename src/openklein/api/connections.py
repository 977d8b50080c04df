"""Serve connections with uvicorn, and hang up on clients that send or read too slowly."""

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 16_384  # request line and headers together
HEADERS_TIMEOUT_S = 20  # from the connection, or the last answer, to the end of a request's headers
READING_TIMEOUT_S = 120.0  # for the client to read what it was sent


class TimedConnection(H11Protocol):
    """Bound the waits that uvicorn leaves open: for headers that trickle in, and for answers that nobody reads."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio leaves this out for a listener of socket.create_server, and small answers would wait 40 ms for an ACK
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(0)  # so that writing pauses as soon as anything is left unread
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        # As uvicorn's, but for one line: there any byte ends the wait, here complete headers do (in handle_events).
        self.conn.receive_data(data)
        self.handle_events()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort = self.loop.call_later(READING_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._abort.cancel()


def server_config(app: ASGIApp, *, stop_timeout_s: int) -> uvicorn.Config:
    """Configure uvicorn for an app, its answers at a stop bounded by `stop_timeout_s`."""
    return uvicorn.Config(
        app,
        http=TimedConnection,  # on h11, which bounds headers; uvicorn's other parser does not
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=HEADERS_TIMEOUT_S,
        timeout_graceful_shutdown=stop_timeout_s,
        ws="none",
        log_config=None,
        access_log=False,  # the app writes one line per request, without what its address may hold
        server_header=False,
        proxy_headers=False,
    )
