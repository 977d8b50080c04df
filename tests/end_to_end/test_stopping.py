import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.servers import Server, StartServer


def ask(server: Server) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/generate", json={"prompt": "a red apple", "seed": 1})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_images_ends_the_server_in_order(
    start_server: StartServer, tmp_path: Path, number: signal.Signals
) -> None:
    with start_server(tmp_path / "data") as server, ThreadPoolExecutor(6) as threads:
        server.wait_until_ready()
        answers = [threads.submit(ask, server) for _ in range(6)]
        time.sleep(0.7)
        began = time.monotonic()
        server.process.send_signal(number)
        assert server.process.wait(timeout=20) == 0, server.log
        assert time.monotonic() - began < 10
        responses = [answer.result(timeout=20) for answer in answers]
    statuses = {response.status_code for response in responses}
    assert statuses <= {200, 503}, statuses
    assert 200 in statuses
    for response in responses:
        if response.status_code == 200:
            assert response.content.startswith(b"\x89PNG")
        else:
            assert set(response.json()) >= {"detail"}
    assert "Traceback" not in server.log


def test_a_signal_before_the_model_is_ready_ends_the_server(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        give_up_at = time.monotonic() + 60
        while "listening on" not in server.log and time.monotonic() < give_up_at:
            time.sleep(0.02)
        began = time.monotonic()
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0, server.log
        assert time.monotonic() - began < 10


def test_an_idle_connection_does_not_hold_the_server(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        server.wait_until_ready()
        with server.client() as client:
            assert client.get("/health/live").status_code == 200
            began = time.monotonic()
            server.process.terminate()
            assert server.process.wait(timeout=20) == 0, server.log
            assert time.monotonic() - began < 5
