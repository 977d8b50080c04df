import pkgutil
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, ask
from tests.waiting import wait_until


def test_a_client_that_leaves_withdraws_its_request(site: Site) -> None:
    with site.pipeline.held():
        with ask(site):
            wait_until(site.pipeline.is_inside.is_set)
            ticket = site.worker._running
            with ask(site):
                wait_until(lambda: site.worker.scheduler.depth == 1)
            wait_until(lambda: site.worker.scheduler.depth == 0)
            assert ticket is not None
            assert not ticket.future.done()
        wait_until(ticket.future.done)
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


@pytest.mark.parametrize("held", ["openklein.api.references.decode_image", "openklein.api.pictures.encode_png"])
def test_the_event_loop_is_free_while_images_are_decoded_and_encoded(
    held: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, is_inside, gate = pkgutil.resolve_name(held), threading.Event(), threading.Event()

    def wait_then_work(*given: Any, **named: Any) -> Any:
        is_inside.set()
        assert gate.wait(60)
        return work(*given, **named)

    monkeypatch.setattr(held, wait_then_work)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(site.generate, image_uris=[data_uri(plain())])
        try:
            assert is_inside.wait(60)
            assert site.client.get("/health/live", timeout=10).status_code == 200
        finally:
            gate.set()
        assert answer.result().status_code == 200


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
