import logging
from typing import Any

import pytest

from openklein.api.auth import FIXED_KEY
from openklein.api.records import RequestRecord, log_request, record_request
from openklein.api.settlement import Admission
from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, ask
from tests.waiting import wait_until

ADMISSION = Admission("abc", FIXED_KEY.id, "klein-mini", "text-to-image", 1024, 768, 0)
TIMINGS = {"fetch": 0.5, "queue": 0.25, "text": 1.0, "denoise": 2.0, "decode": 3.0, "png": 7.0}


def facts_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.__dict__["facts"] for record in caplog.records if "facts" in record.__dict__]


def test_the_line_of_a_picture_has_all_facts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="openklein")
    log_request(RequestRecord("abc", "POST", "/v1/generate", 200, 7.00012, "key1", ADMISSION, TIMINGS))
    (facts,) = facts_of(caplog)
    assert facts == {
        "request_id": "abc",
        "method": "POST",
        "route": "/v1/generate",
        "status": 200,
        "ms": 7000.1,
        "key_id": "key1",
        "model": "klein-mini",
        "workflow": "text-to-image",
        "queue_s": 0.25,
        "engine_s": 6.0,
    }
    line = caplog.records[0].getMessage()
    assert line.startswith("request request_id=abc method=POST route=/v1/generate status=200 ms=7000.1 key_id=key1 ")
    assert line.endswith(" model=klein-mini workflow=text-to-image queue_s=0.25 engine_s=6.0")


@pytest.mark.parametrize("route", ["/health/live", "/health/ready", "/metrics"])
def test_probes_do_not_fill_the_log(route: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="openklein")
    log_request(RequestRecord("abc", "GET", route, 200, 0.001))
    log_request(RequestRecord("abc", "GET", "/v1/models", 200, 0.001))
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO"]


def test_odd_methods_share_a_name() -> None:
    scope = {"type": "http", "method": "SECRET", "path": "/", "headers": []}
    record = record_request(scope, [], "abc", 400, 0.5)
    assert (record.method, record.route, record.status, record.seconds) == ("other", "none", 400, 0.5)
    assert record_request({**scope, "method": "GET"}, [], "abc", 400, 0.5).method == "GET"


@pytest.mark.parametrize(
    ("method", "path", "status", "route"),
    [
        ("GET", "/v1/models", 200, "/v1/models"),
        ("GET", "/v1/generate", 405, "/v1/generate"),
        ("GET", "/v1/secret", 404, "none"),
        ("GET", "/secret", 404, "none"),
        ("GET", "/", 200, "/"),
    ],
)
def test_requests_are_named_by_their_route(
    method: str, path: str, status: int, route: str, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="openklein")
    assert site.client.request(method, path).status_code == status
    # among others: the end of a request of the test before may be noted only now
    wait_until(lambda: any(facts["route"] == route for facts in facts_of(caplog)))
    assert [facts["status"] for facts in facts_of(caplog) if facts["route"] == route] == [status]


def test_so_are_those_that_never_reached_one(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="openklein")
    wrong = {"authorization": "Bearer wrong"}
    assert site.client.post("/v1/generate", headers=wrong).status_code == 401
    assert site.client.get("/v1/models", headers={"host": "evil.test"}).status_code == 422
    wait_until(lambda: len(facts_of(caplog)) == 2)
    assert [facts["route"] for facts in facts_of(caplog)] == ["/v1/generate", "/v1/models"]
    assert all("key_id" not in facts for facts in facts_of(caplog))


def test_a_request_whose_client_left_has_no_status(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="openklein")
    with site.pipeline.held():
        with ask(site):
            wait_until(site.pipeline.is_inside.is_set)
            assert facts_of(caplog) == []
        wait_until(lambda: bool(facts_of(caplog)))
    (facts,) = facts_of(caplog)
    assert (facts["route"], facts["status"]) == ("/v1/generate", 0)


MARKS = ("prompt-mark", "key-mark", "file-mark", "path-mark", "query-mark", "model-mark", "header-mark")


def test_nothing_that_was_sent_is_logged(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)  # of every library
    with make_site(api_key="fixed-key-mark") as site:
        image = data_uri(plain("#123456"))
        fields: dict[str, Any] = {"prompt": "prompt-mark", "image_uris": [image], "seed": 1}
        headers = {"x-request-id": "header-mark", "user-agent": "header-mark"}
        generate = "/v1/generate?query=query-mark"
        for key in (site.key, "fixed-key-mark", "wrong-key-mark", "key-mark\\"):
            site.client.post(generate, json=fields, headers={**headers, "authorization": f"Bearer {key}"})
        files: dict[str, Any] = {
            "prompt": (None, "prompt-mark"),
            "images": ("file-mark.png", b"file-mark", "image/file-mark"),
        }
        site.client.post(generate, files=files)
        site.client.post(generate, content=b"prompt-mark", headers={"content-type": "application/json"})
        site.client.post(generate, content=b"file-mark", headers={"content-type": "multipart/form-data; boundary=x"})
        site.client.post(generate, json={**fields, "model": "model-mark"})
        site.client.post(generate, json={**fields, "image_uris": ["http://path-mark.test/query-mark"]})
        site.client.request("KEY-MARK", "/path-mark?query-mark")
        site.pipeline.error = RuntimeError("ours")
        assert site.client.post(generate, json=fields).status_code == 500
        wait_until(lambda: len(facts_of(caplog)) == 11)
        # pytest listens to the access log and to the test's own client too, which the server does not have.
        ours = [record for record in caplog.records if record.name not in ("uvicorn.access", "httpx")]
        formatter = logging.Formatter()
        text = "\n".join(formatter.format(record) + str(record.__dict__.get("facts")) for record in ours)
    assert "Traceback" in text
    assert [mark for mark in MARKS if mark in text.lower()] == []
    assert site.key not in text
    assert image[40:80] not in text
