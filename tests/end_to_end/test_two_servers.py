"""Run two whole servers on one PostgreSQL, each a process of its own, and treat them as one service."""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.end_to_end.servers import ROOT, StartServer, running
from tests.postgres import Postgres
from tests.waiting import wait_until

ALLOWED = 5
REQUEST = {"prompt": "a red apple", "aspect_ratio": "square"}
ADMIN = "the key of the operator"

Servers = tuple[httpx.Client, httpx.Client]


@pytest.fixture(scope="module")
def servers(
    start_server: StartServer, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """Start both at once on an empty database; give a client of each, with the operator's key."""
    env = {"OPENKLEIN_DATABASE_URL": postgres.make_database(), "OPENKLEIN_API_KEY": ADMIN}
    with ExitStack() as stack:
        first, second = (stack.enter_context(start_server(tmp_path_factory.mktemp("share"), env=env)) for _ in range(2))
        for server in (first, second):
            server.wait_until_ready()
        yield stack.enter_context(first.client(ADMIN)), stack.enter_context(second.client(ADMIN))


def make_key(client: httpx.Client, **fields: Any) -> tuple[str, dict[str, str]]:
    """Make a key; give its id, and the header that carries it."""
    made = client.post("/v1/keys", json=fields)
    assert made.status_code == 201
    return made.json()["id"], {"authorization": f"Bearer {made.json()['secret']}"}


def used_by(client: httpx.Client, key_id: str) -> tuple[object, ...]:
    """Read a key's requests, those that succeeded, its images and their price off the ledger."""
    usage = client.get("/v1/usage", params={"group_by": "key", "bucket": "month"}).json()
    (own,) = [bucket for bucket in usage["data"] if bucket["group"] == key_id]
    return own["requests"], own["succeeded"], own["images"], own["price"]


def status_of(client: httpx.Client, path: str, headers: dict[str, str] | None = None) -> str:
    return str(client.get(path, headers=headers).json()["status"])


def race(servers: Servers, key: dict[str, str]) -> Counter[int]:
    """Send twice as many requests as are allowed, all at once and to both servers in turn; count the answers."""
    start = threading.Barrier(2 * ALLOWED)

    def ask(client: httpx.Client) -> int:
        start.wait(60)
        return client.post("/v1/generate", json=REQUEST, headers=key).status_code

    with ThreadPoolExecutor(2 * ALLOWED) as threads:
        return Counter(threads.map(ask, servers * ALLOWED))


@pytest.mark.parametrize("limit", ["requests_per_minute", "images_per_day"])
def test_a_race_over_both_lets_exactly_as_many_through(limit: str, servers: Servers) -> None:
    key_id, key = make_key(servers[0], **{limit: ALLOWED})
    assert race(servers, key) == {200: ALLOWED, 429: ALLOWED}
    for client in servers:
        assert client.get("/v1/account", headers=key).json()["limits"][limit]["left"] == 0
        assert used_by(client, key_id) == (ALLOWED, ALLOWED, ALLOWED, "0.015")
        usage = client.get("/v1/usage", params={"group_by": "key"}).json()
        (own,) = [bucket for bucket in usage["data"] if bucket["group"] == key_id]
        assert own["megapixels"] == f"{ALLOWED * 1.048576:g}"
        assert usage["total"]["requests"] == sum(bucket["requests"] for bucket in usage["data"])


def test_a_key_revoked_at_one_is_refused_at_the_other_from_its_next_request_on(servers: Servers) -> None:
    first, second = servers
    key_id, key = make_key(first)
    assert second.get("/v1/models", headers=key).status_code == 200
    assert first.delete(f"/v1/keys/{key_id}").status_code == 200
    assert second.get("/v1/models", headers=key).status_code == 401
    assert second.post("/v1/generate", json=REQUEST, headers=key).status_code == 401


def test_a_limit_set_at_one_holds_at_the_other_from_its_next_request_on(servers: Servers) -> None:
    first, second = servers
    key_id, key = make_key(first)
    assert second.post("/v1/generate", json=REQUEST, headers=key).status_code == 200
    assert first.patch(f"/v1/keys/{key_id}", json={"images_per_month": 1}).status_code == 200
    assert second.post("/v1/generate", json=REQUEST, headers=key).status_code == 429


def test_one_idempotency_key_sent_to_both_at_once_makes_one_picture(servers: Servers) -> None:
    key_id, key = make_key(servers[0])
    start = threading.Barrier(4)

    def ask(client: httpx.Client) -> httpx.Response:
        start.wait(60)
        while True:  # a repeat is refused while the first request runs, and then gets its answer
            answer = client.post("/v1/generate", json=REQUEST, headers={**key, "idempotency-key": "order 7"})
            if answer.status_code != 409:
                return answer
            time.sleep(0.05)

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, servers * 2))
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({(answer.content, answer.headers["x-klein-seed"]) for answer in answers}) == 1
    assert Counter("idempotent-replayed" in answer.headers for answer in answers) == {True: 3, False: 1}
    assert used_by(servers[1], key_id) == (1, 1, 1, "0.003")


def test_jobs_posted_to_both_are_made_once_each(servers: Servers) -> None:
    key_id, key = make_key(servers[0])
    paths: list[str] = []
    for client in servers * 5:
        taken = client.post("/v1/jobs", json=REQUEST, headers=key)
        assert taken.status_code == 202
        paths.append(taken.headers["location"])
    for path in paths:
        wait_until(lambda path=path: status_of(servers[0], path, key) == "succeeded")  # type: ignore[misc]
        first, second = (client.get(f"{path}/image", headers=key) for client in servers)
        assert first.content.startswith(b"\x89PNG")
        assert first.content == second.content
    assert used_by(servers[1], key_id) == (10, 10, 10, "0.03")


def test_the_job_of_a_killed_server_is_finished_by_the_next(
    start_server: StartServer, postgres: Postgres, tmp_path: Path
) -> None:
    url = postgres.make_database()
    env = {"OPENKLEIN_DATABASE_URL": url, "OPENKLEIN_API_KEY": ADMIN}
    command = [sys.executable, "-m", "tests.end_to_end.held_server", "--port", "0", "--data-dir", f"{tmp_path}/data"]
    with running(command, tmp_path, {**env, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}) as killed:
        killed.wait_until_ready()
        with killed.client(ADMIN) as client:
            path = client.post("/v1/jobs", json=REQUEST).headers["location"]
            wait_until(lambda: "held" in killed.stdout)
            assert status_of(client, path) == "running"
        killed.process.kill()
    with start_server(tmp_path / "next", env=env) as server:
        server.wait_until_ready()
        with server.client(ADMIN) as client:
            wait_until(lambda: status_of(client, path) == "succeeded")
            assert client.get(f"{path}/image").content.startswith(b"\x89PNG")
            assert used_by(client, "fixed") == (1, 1, 1, "0.003")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT attempts FROM jobs").fetchall() == [(2,)]
