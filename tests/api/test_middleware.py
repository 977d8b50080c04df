import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from openklein.api import middleware
from openklein.api.middleware import BodyLimit, HostCheck, RequestBorder
from openklein.errors import DeadlineExceeded, QueueFull
from openklein.settings import Settings
from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error


def exchange(port: int, request: bytes, then: bytes = b"") -> bytes:
    """Send bytes, read what comes, send more, read to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = connection.recv(65_536)
        connection.sendall(then)
        while more := connection.recv(65_536):
            answer += more
        return answer


# Hosts


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8000", "localhost:"],
)
def test_loopback_hosts_are_served(host: str, site: Site) -> None:
    assert site.client.get("/health/live", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.test",
        "localhost.evil.test",
        "evil.test:8000",
        "127.0.0.1.evil.test",
        "localhost@evil.test",
        "[::2]",
        "127.0.0.2",
        "::1",
        "localhost:80:80",
        "localhost:x",
        "evil.test#localhost",
        "localhost evil.test",
        "10.0.0.1",
    ],
)
def test_names_that_a_page_may_have_pointed_here_are_not(host: str, site: Site) -> None:
    for path in ("/", "/health/live", "/v1/generate", "/nowhere"):
        response = site.client.get(path, headers={"host": host})
        assert "Host header does not name this server" in expect_error(response, 422)


def test_a_second_host_header_is_no_way_round(site: Site) -> None:
    answer = exchange(site.port, b"GET / HTTP/1.0\r\nHost: localhost\r\nHost: evil.test\r\n\r\n")
    assert answer.split(b" ")[1] in (b"400", b"422")
    assert exchange(site.port, b"GET / HTTP/1.0\r\n\r\n").split(b" ")[1] == b"422"


@pytest.mark.parametrize(
    ("host", "public", "asked", "is_served"),
    [
        ("127.0.0.1", False, "evil.test", False),
        ("127.0.0.1", False, "localhost", True),
        ("127.0.0.1", False, "localhost, evil.test", False),
        ("127.0.0.2", False, "127.0.0.2", True),
        ("localhost", False, "evil.test", False),
        ("::1", False, "[::1]:80", True),
        ("::1", False, "evil.test", False),
        ("127.0.0.1", True, "klein.example", True),
        ("0.0.0.0", True, "klein.example", True),
    ],
)
def test_the_check_belongs_to_loopback(host: str, public: bool, asked: str, is_served: bool) -> None:
    served = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        served.append(True)

    async def send(_message: Message) -> None:
        pass

    check = HostCheck(app, Settings(data_dir=Path("unused"), host=host, public=public))
    scope = {"type": "http", "headers": [(b"host", name.encode()) for name in asked.split(", ")]}
    asyncio.run(check(scope, None, send))  # type: ignore[arg-type]
    assert bool(served) == is_served


# Bytes


def upload(site: Site, size: int, **headers: str) -> httpx.Response:
    return site.client.post("/v1/generate", content=iter([bytes(10_000)] * (size // 10_000)), headers=headers)


def test_a_refused_upload_is_read_so_that_the_client_sees_its_answer(make_site: MakeSite) -> None:
    with make_site(max_body_bytes=20_000_000) as site:
        assert "not valid" in expect_error(upload(site, 15_000_000, authorization="Bearer wrong"), 401)
        assert "at most 20000000" in expect_error(upload(site, 30_000_000), 413)
        assert expect_error(site.client.post("/nowhere", content=bytes(15_000_000)), 404)


def test_a_key_is_checked_before_the_size(make_site: MakeSite) -> None:
    with make_site(max_body_bytes=1000) as site:
        big = bytes(2000)
        wrong = {"authorization": "Bearer wrong"}
        expect_error(site.client.post("/v1/generate", content=big, headers=wrong), 401)
        expect_error(site.client.post("/v1/generate", content=big), 413)


def test_a_client_that_asks_first_need_not_send(make_site: MakeSite) -> None:
    head = "POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
    with make_site(max_body_bytes=1000) as site:
        key = f"Authorization: Bearer {site.key}\r\n"
        unknown = exchange(site.port, f"{head}Content-Length: 10\r\n\r\n".encode())
        assert unknown.startswith(b"HTTP/1.1 401 ")
        large = exchange(site.port, f"{head}{key}Content-Length: 1001\r\n\r\n".encode())
        assert large.startswith(b"HTTP/1.1 413 ")
        body = json.dumps({"prompt": ""}).encode()
        json_head = f"{head}{key}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        assert exchange(site.port, json_head.encode(), body).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 ")


def test_draining_ends_with_a_client_that_sends_too_much_or_too_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    received = 0

    async def refuse(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 401, "headers": []})

    async def endless() -> Message:
        nonlocal received
        received += 100
        return {"type": "http.request", "body": bytes(100), "more_body": True}

    async def stalled() -> Message:
        await asyncio.sleep(30)
        raise AssertionError

    async def send(_message: Message) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(BodyLimit(refuse, 1000, 60)(scope, endless, send))
    assert 1000 <= received <= 1200
    monkeypatch.setattr(middleware, "DRAIN_TIMEOUT_S", 0.2)
    started = time.monotonic()
    asyncio.run(BodyLimit(refuse, 1000, 60)(scope, stalled, send))
    assert time.monotonic() - started < 15


def run_body_limit(messages: list[tuple[float, Message]], timeout_s: float) -> list[Message]:
    """Read all of `messages`, each sent after some seconds, through a BodyLimit; return what came through."""
    coming, came = iter(messages), []

    async def read(_scope: Scope, receive: Receive, _send: Send) -> None:
        for _ in messages:
            came.append(await receive())

    async def send_next() -> Message:
        pause_s, message = next(coming)
        await asyncio.sleep(pause_s)
        return message

    async def send(_message: Message) -> None:
        pass

    scope: dict[str, Any] = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    asyncio.run(BodyLimit(read, 1000, timeout_s)(scope, send_next, send))
    return came


PART = {"type": "http.request", "body": b"x", "more_body": True}
END = {"type": "http.request", "body": b"x", "more_body": False}


def test_a_body_that_trickles_in_has_a_deadline() -> None:
    with pytest.raises(DeadlineExceeded, match=r"within the 0\.3 s allowed"):
        run_body_limit([(0.05, PART)] * 100, timeout_s=0.3)


def test_a_client_may_listen_longer_than_it_may_send() -> None:
    left = {"type": "http.disconnect"}
    assert run_body_limit([(0, PART), (0, END), (1.2, left)], timeout_s=1) == [PART, END, left]


def test_bodies_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_BODIES_HELD", 2)
    part = {"type": "http.request", "body": bytes(600), "more_body": False}
    scope: dict[str, Any] = {"type": "http", "headers": [(b"content-length", b"600")]}

    async def hold(scope: Scope, receive: Receive, _send: Send) -> None:
        assert len((await receive())["body"]) == 600
        await scope["leave"].wait()

    async def next_part() -> Message:
        return part

    async def send(_message: Message) -> None:
        pass

    async def hold_and_leave() -> None:
        leave = asyncio.Event()
        limit = BodyLimit(hold, 1000, 60)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(limit({**scope, "leave": leave}, next_part, send))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="as many bytes of requests as it can"):
                await limit({**scope, "leave": leave}, next_part, send)
            leave.set()
        await limit({**scope, "leave": leave}, next_part, send)

    asyncio.run(hold_and_leave())


# Stopping


def test_a_request_that_outlasts_a_stop_is_told_so() -> None:
    sent: list[Message] = []

    async def wait(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await asyncio.sleep(30)

    async def send(message: Message) -> None:
        sent.append(message)

    async def stop() -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        task = asyncio.create_task(RequestBorder(wait, [], [])(scope, None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(stop())
    assert sent[0]["status"] == 503
    assert json.loads(sent[1]["body"]) == {"detail": "The server is shutting down."}


# Headers


def test_every_answer_carries_its_armour(make_site: MakeSite) -> None:
    with make_site() as site:
        answers = [site.generate(), site.generate(prompt=""), site.client.post("/v1/generate"), site.client.get("/x")]
        answers += [site.client.get(path) for path in ("/v1/models", "/health/ready", "/metrics", "/openapi.json")]
        answers.append(site.client.get("/", headers={"host": "evil.test"}))
        site.pipeline.error = RuntimeError("ours")
        answers.append(site.generate())
    assert {answer.status_code for answer in answers} == {200, 422, 404, 500}
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


# Ids


def test_every_answer_has_an_id_of_its_own(site: Site) -> None:
    paths = ["/", "/health/live", "/nowhere", "/v1/models", "/openapi.json"]
    ids = [site.client.get(path, headers={"x-request-id": "mine"}).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(ids)
    assert "mine" not in ids
