import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.api.conftest import MakeSite
from tests.api.listener import Listener
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, expect_error
from tests.waiting import wait_until


def test_faults_of_ours_are_opaque_and_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.pipeline.error = RuntimeError("secret internals")
    try:
        response = site.generate(prompt="a secret prompt")
    finally:
        site.pipeline.error = None
    request_id = response.headers["x-request-id"]
    assert expect_error(response, 500) == f"Unexpected server error; its request id is {request_id}."
    (record,) = [record for record in caplog.records if record.exc_info]
    assert request_id in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret internals"
    assert "a secret prompt" not in caplog.text
    assert site.generate().status_code == 200


def test_a_full_queue_refuses(make_site: MakeSite) -> None:
    with make_site(queue_size=1) as site, ThreadPoolExecutor(2) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = threads.submit(site.generate)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        assert "queue is full" in site.refusal(503)
        site.pipeline.gate.set()
        assert running.result().status_code == waiting.result().status_code == 200


def test_a_server_without_a_model_refuses_after_judging(make_site: MakeSite) -> None:
    with make_site(is_ready=False) as site:
        assert "starting or stopping" in site.refusal(503)
        assert "prompt is required" in expect_error(site.client.post("/v1/generate", json={}), 422)
        site.worker.error = RuntimeError("no weights")
        assert "could not be loaded" in site.refusal(503)


def test_a_server_that_stops_fails_what_waits(make_site: MakeSite) -> None:
    with make_site() as site, ThreadPoolExecutor(3) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = threads.submit(site.generate)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        closing = threads.submit(site.worker.close, 10)
        assert "shutting down" in expect_error(waiting.result(), 503)
        assert "starting or stopping" in site.refusal(503)
        site.pipeline.gate.set()
        assert running.result().status_code == 200
        closing.result()


ALLOWED_S = (1, 5, 25)  # tried in turn, since on a slow machine the model may not be reached within the first


def test_the_deadline_is_answered_in_the_middle_of_a_step(make_site: MakeSite) -> None:
    for allowed_s in ALLOWED_S:
        with make_site(request_timeout_s=allowed_s) as site:
            with site.pipeline.held():
                assert site.refusal(504) == f"The request took longer than the {allowed_s} s allowed."
                assert site.pipeline.steps == 0
            if site.pipeline.is_inside.is_set():
                wait_until(lambda site=site: site.pipeline.ended == 1)  # type: ignore[misc]
                assert site.pipeline.steps == 1, "the work went on after the deadline"
                return
    pytest.fail("the model was never reached")


def test_the_deadline_covers_the_queue(make_site: MakeSite) -> None:
    for allowed_s in ALLOWED_S:
        with make_site(request_timeout_s=allowed_s) as site, ThreadPoolExecutor(2) as threads, site.pipeline.held():
            answers = [threads.submit(site.generate) for _ in range(2)]
            assert [answer.result().status_code for answer in answers] == [504, 504]
            assert len(site.pipeline.requests) <= 1
            if site.pipeline.requests:
                return
    pytest.fail("the model was never reached")


def test_the_deadline_covers_fetching(make_site: MakeSite, listener: Listener) -> None:
    url = listener.answer("/", lambda _: time.sleep(1.5))
    with make_site(request_timeout_s=0.3) as site:
        site.refusal(504, image_uris=[url])
        assert site.pipeline.requests == []


def test_the_log_quotes_nothing_that_was_sent(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="openklein")
    caplog.set_level("DEBUG", logger="uvicorn")
    response = site.generate(prompt="a secret prompt", image_uris=[data_uri(plain())], seed=1)
    site.refusal(422, prompt="a secret prompt", model="secret model")
    site.client.get("/secret/path?key=secret")
    wait_until(lambda: caplog.text.count("openklein.api.records") >= 3)
    # uvicorn's access log is off; pytest listens to it all the same.
    text = "\n".join(record.getMessage() for record in caplog.records if record.name != "uvicorn.access")
    assert response.headers["x-request-id"] in text
    assert "secret" not in text
    assert site.key not in text
