import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from openklein.api import connections
from openklein.api.connections import MAX_HEADER_BYTES, TimedConnection, server_config
from tests.waiting import wait_until

LARGE = 64_000_000  # more than any kernel keeps for a client that does not read


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the length of the body, or with many bytes."""
    if scope["type"] == "http":
        body = await Request(scope, receive).body()
        answer = bytes(LARGE) if scope["path"] == "/large" else str(len(body)).encode()
        await Response(answer)(scope, receive, send)


@contextmanager
def running(headers_timeout_s: float = 30) -> Iterator[tuple[uvicorn.Server, Callable[[], socket.socket]]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = server_config(app, stop_timeout_s=1)
        assert config.timeout_keep_alive == connections.HEADERS_TIMEOUT_S
        config.timeout_keep_alive = headers_timeout_s  # type: ignore[assignment]
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield server, lambda: socket.create_connection(listener.getsockname(), timeout=20)
        finally:
            server.should_exit = True
            thread.join()


def is_hung_up_on(client: socket.socket, drop: bytes) -> bool:
    """Send a drop every 50 ms until the other side has closed the connection, for 10 seconds at most."""
    client.settimeout(0.05)
    for _ in range(200):
        try:
            client.sendall(drop)
            if client.recv(100) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def read_answer(client: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += client.recv(65_536)
    return answer


def test_small_answers_do_not_wait_for_an_acknowledgement() -> None:
    with running() as (server, connect), connect():
        wait_until(lambda: len(server.server_state.connections) == 1)
        (connection,) = server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_client_whose_headers_trickle_in_is_hung_up_on() -> None:
    with running(headers_timeout_s=0.3) as (_, connect), connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        assert is_hung_up_on(client, b"x")


def test_so_is_one_that_sends_nothing() -> None:
    with running(headers_timeout_s=0.3) as (_, connect), connect() as client:
        assert client.recv(1) == b""


def test_so_is_one_whose_second_request_trickles_in() -> None:
    with running(headers_timeout_s=1) as (_, connect), connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(client).startswith(b"HTTP/1.1 200 ")
        assert is_hung_up_on(client, b"G")


def test_a_body_may_take_longer_than_headers() -> None:
    with running(headers_timeout_s=1) as (_, connect), connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n")
        for _ in range(2):
            time.sleep(0.6)
            client.sendall(b"xx")
        answer = read_answer(client)
        if answer.endswith(b"\r\n\r\n"):  # its body may come in a segment of its own
            answer += client.recv(1)
        assert answer.endswith(b"\r\n\r\n4")


def test_headers_are_bounded() -> None:
    with running() as (_, connect), connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (MAX_HEADER_BYTES + 1))
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")
    with running() as (_, connect), connect() as client:
        client.sendall(b"GET /" + b"x" * (MAX_HEADER_BYTES + 1))
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_does_not_read_its_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READING_TIMEOUT_S", 0.3)
    with running() as (server, connect), connect() as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: bool(server.server_state.connections))
        wait_until(lambda: not server.server_state.connections)
        received = 0
        while chunk := client.recv(1_000_000):
            received += len(chunk)
        assert received < LARGE


def test_one_that_reads_stays() -> None:
    with running() as (server, connect), connect() as client:
        for _ in range(2):
            client.sendall(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
            head, _, body = read_answer(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            (connection,) = server.server_state.connections
            assert isinstance(connection, TimedConnection)
            wait_until(lambda connection=connection: connection.flow.write_paused)  # type: ignore[misc]
            hanging_up = connection._abort
            assert not hanging_up.cancelled()
            left = LARGE - len(body)
            while left:
                received = client.recv(min(left, 1_000_000))
                assert received, "it was hung up on"
                left -= len(received)
            wait_until(hanging_up.cancelled)
