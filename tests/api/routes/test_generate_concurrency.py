import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
from PIL import Image

from tests.api.conftest import MakeSite
from tests.api.pictures import encode
from tests.api.sites import Site
from tests.waiting import wait_until


def test_a_client_that_leaves_withdraws_its_request(site: Site) -> None:
    request = (
        f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.key}\r\n"
        'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'
    ).encode()
    with site.pipeline.held():
        running = socket.create_connection(("127.0.0.1", site.port))
        running.sendall(request)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = socket.create_connection(("127.0.0.1", site.port))
        waiting.sendall(request)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        waiting.close()
        wait_until(lambda: site.worker.scheduler.depth == 0)
        running.close()
        time.sleep(0.2)  # until the server has seen it
    wait_until(lambda: site.pipeline.ended == 1)
    assert site.pipeline.steps == 1, "the work went on for a client that had left"


def test_the_server_answers_others_while_it_makes_a_picture(site: Site) -> None:
    with ThreadPoolExecutor(1) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        for path in ("/health/live", "/health/ready", "/"):
            assert site.client.get(path, timeout=10).status_code == 200  # the model is held for longer
        assert "prompt cannot be" in site.refusal(422, prompt="")
        site.pipeline.gate.set()
        assert running.result().status_code == 200


def test_the_event_loop_is_free_while_a_large_image_is_decoded(site: Site) -> None:
    large = encode(Image.linear_gradient("L").resize((6000, 6000)).convert("RGB"), "JPEG")
    delays: list[float] = []
    done = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as client:
            while not done.is_set():
                started = time.monotonic()
                client.get("/health/live")
                delays.append(time.monotonic() - started)

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        started = time.monotonic()
        response = site.client.post(
            "/v1/generate",
            files={"prompt": (None, "a"), "aspect_ratio": (None, "square"), "images": ("a.jpg", large)},
        )
        took_s = time.monotonic() - started
        done.set()
        watching.result()
    assert response.status_code == 200
    assert max(delays) < took_s / 4


def test_each_key_gets_its_turn(make_site: MakeSite) -> None:
    with make_site(api_key="fixed") as site, ThreadPoolExecutor(5) as threads, site.pipeline.held():
        threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        for n in range(3):
            threads.submit(site.generate, prompt=f"eager {n}")
            wait_until(lambda n=n: site.worker.scheduler.depth == n + 1)  # type: ignore[misc]
        modest = threads.submit(
            site.client.post, "/v1/generate", json={"prompt": "modest"}, headers={"authorization": "Bearer fixed"}
        )
        wait_until(lambda: site.worker.scheduler.depth == 4)
        site.pipeline.gate.set()
        assert modest.result().status_code == 200
    assert [request.prompt for request in site.pipeline.requests][1:3] == ["eager 0", "modest"]
