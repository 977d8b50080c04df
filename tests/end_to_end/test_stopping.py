import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.end_to_end.servers import ROOT, StartServer, is_ready, running
from tests.waiting import wait_until

IMAGES = 8  # more than are made before the signal arrives, so that one is running then


def ask(client: httpx.Client, note: Callable[[str, object], None] = lambda *_: None) -> httpx.Response:
    return client.post("/v1/generate", json={"prompt": "a red apple", "seed": 1}, extensions={"trace": note})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_images_ends_the_server_in_order(
    start_server: StartServer, tmp_path: Path, number: signal.Signals
) -> None:
    sent = threading.Semaphore(0)

    def note(event: str, _: object) -> None:
        if event == "http11.send_request_body.complete":
            sent.release()

    with start_server(tmp_path / "data") as server, ThreadPoolExecutor(IMAGES) as threads:
        server.wait_until_ready()
        with server.client() as client:
            answers = [threads.submit(ask, client, note) for _ in range(IMAGES)]
            assert all(sent.acquire(timeout=60) for _ in range(IMAGES))
            wait_until(lambda: is_ready(server))  # a later connection is answered, so the earlier ones were read
            began = time.monotonic()
            server.process.send_signal(number)
            responses = [answer.result(timeout=20) for answer in answers]
        assert server.process.wait(timeout=20) == 0, server.log
        assert time.monotonic() - began < 10
    for response in responses:
        if response.status_code == 200:
            assert response.content.startswith(b"\x89PNG")
        else:
            assert response.status_code == 503
            assert response.json()["detail"]
    assert "Traceback" not in server.log


def test_the_image_that_runs_is_answered_whole_and_others_in_words(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.end_to_end.held_server", "--port", "0", "--data-dir", f"{tmp_path}/data"]
    env = {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OPENKLEIN_API_KEY": "any"}
    with running(command, tmp_path, env) as server, ThreadPoolExecutor(1) as threads:
        server.wait_until_ready()
        with server.client("any") as client:
            image = threads.submit(ask, client)
            wait_until(lambda: "held" in server.stdout)
            server.process.terminate()
            wait_until(lambda: not is_ready(server))
            with server.client("any") as newcomer:
                refusal = ask(newcomer)
            assert refusal.status_code == 503
            assert "starting or stopping" in refusal.json()["detail"]
            server.process.send_signal(signal.SIGUSR1)
            assert image.result(timeout=20).status_code == 200
            assert Image.open(BytesIO(image.result().content)).convert("RGB").size == (1344, 768)
        assert server.process.wait(timeout=20) == 0, server.log


def test_a_signal_before_the_model_is_ready_ends_the_server(start_server: StartServer, tmp_path: Path) -> None:
    with start_server(tmp_path / "data") as server:
        wait_until(lambda: "listening on" in server.log, timeout_s=60)
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
