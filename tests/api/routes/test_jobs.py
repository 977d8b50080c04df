import threading
from typing import Any

import httpx
import pytest

from openklein.api import background
from openklein.storage.keys import Scope
from openklein.storage.tables import FILES
from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, expect_error, expect_image
from tests.api.test_settlement import reserved, rows
from tests.waiting import wait_until

PROMPT = {"prompt": "a red apple", "aspect_ratio": "square"}


def post(client: httpx.Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    return client.post("/v1/jobs", json={**PROMPT, **fields}, headers=headers)


def posted(client: httpx.Client, **fields: Any) -> str:
    """Post a job that is taken; return its path."""
    response = post(client, **fields)
    assert response.status_code == 202, response.text
    return str(response.headers["location"])


def status_of(client: httpx.Client, path: str) -> str:
    return str(client.get(path).json()["status"])


def ended(client: httpx.Client, path: str) -> dict[str, Any]:
    """Wait for a job to end, and return it."""
    wait_until(lambda: status_of(client, path) not in ("queued", "running"))
    job: dict[str, Any] = client.get(path).json()
    return job


def test_a_job_makes_the_picture_that_generate_makes(make_site: MakeSite) -> None:
    asked: dict[str, Any] = {"seed": 7, "image_uris": [data_uri(plain("#123456", size=(1500, 1500), kind="JPEG"))]}
    with make_site() as site:
        direct = site.generate(**asked)
        taken = post(site.client, **asked)
        job = taken.json()
        assert taken.headers["location"] == f"/v1/jobs/{job['id']}"
        assert (job["object"], job["status"], job["price"], job["timings"]) == ("job", "queued", None, {})
        done = ended(site.client, taken.headers["location"])
        assert (done["status"], done["seed"], done["price"], done["detail"]) == ("succeeded", 7, "0.003", None)
        assert (done["model"], done["workflow"], done["width"], done["height"]) == (
            "klein-mini",
            "image-to-image",
            1024,
            1024,
        )
        assert {"queue", "text", "references", "denoise", "decode", "png"} <= set(done["timings"])
        assert done["created_at"] <= done["started_at"] < done["ended_at"] < done["expires_at"]
        image = site.client.get(f"{taken.headers['location']}/image")
        expect_image(image)
        assert image.content == direct.content
        assert image.headers["content-type"] == "image/png"
        assert "denoise;dur=" in image.headers["server-timing"]
        same = ("x-klein-model", "x-klein-seed", "x-klein-workflow", "x-klein-price")
        assert [image.headers[name] for name in same] == [direct.headers[name] for name in same]
        row = rows(site.database)[1]
        assert (row["request_id"], row["outcome"], row["references"]) == (job["id"], "succeeded", 1)


def test_a_reference_of_the_most_extreme_form_is_taken_and_used(site: Site) -> None:
    uri = data_uri(plain(size=(4928, 616)))  # which is made smaller, to a little over 8 to 1
    assert ended(site.client, posted(site.client, image_uris=[uri]))["status"] == "succeeded"


def test_the_body_may_be_a_form(site: Site) -> None:
    files = {"images": ("a.png", plain("#123456"))}
    taken = site.client.post("/v1/jobs", data=PROMPT, files=files)
    assert ended(site.client, taken.headers["location"])["workflow"] == "image-to-image"


@pytest.mark.parametrize(
    "fields",
    [{"prompt": " "}, {"model": "flux2-klein-base-4b"}, {"image_uris": ["x"] * 5}, {"aspect_ratio": "4:3"}, {"n": 2}],
)
def test_what_generate_refuses_is_refused(fields: dict[str, Any], make_site: MakeSite) -> None:
    with make_site() as site:
        assert expect_error(post(site.client, **fields), 422) == site.refusal(422, **fields)
        assert site.client.get("/v1/jobs").json() == {"object": "list", "data": []}
        assert rows(site.database) == []


def test_references_are_judged_before_the_job_is_taken(make_site: MakeSite) -> None:
    with make_site() as site:
        assert expect_error(post(site.client, image_uris=["data:image/png;base64,AAAA"]), 422).startswith(
            "image_uris[0]"
        )
        assert site.client.get("/v1/jobs").json()["data"] == []
        assert [row["outcome"] for row in rows(site.database)] == ["invalid_image"]


def test_others_do_not_see_a_job(site: Site) -> None:
    path = posted(site.client)
    ended(site.client, path)
    with site.as_key(scopes=("admin",)) as other:
        assert other.get("/v1/jobs").json()["data"] == []
        for answer in (other.get(path), other.get(f"{path}/image"), other.delete(path)):
            assert expect_error(answer, 404) == "There is no job with this id; GET /v1/jobs lists the newest."


def test_the_newest_are_listed_first(make_site: MakeSite) -> None:
    with make_site() as site:
        paths = [posted(site.client, seed=seed) for seed in range(3)]
        listed = site.client.get("/v1/jobs").json()["data"]
        assert [f"/v1/jobs/{job['id']}" for job in listed] == paths[::-1]
        assert [job["seed"] for job in listed] == [2, 1, 0]


@pytest.mark.parametrize(
    ("scopes", "may_look", "may_ask"),
    [(("generate",), True, True), (("read",), True, False), (("admin",), True, True)],
)
def test_scopes_say_what_a_key_may_do(scopes: tuple[Scope, ...], may_look: bool, may_ask: bool, site: Site) -> None:
    with site.as_key(scopes=scopes) as client:
        assert (client.get("/v1/jobs").status_code == 200) is may_look
        assert (client.get("/v1/jobs/none").status_code == 404) is may_look
        assert (post(client, prompt=" ").status_code == 422) is may_ask
        assert (client.delete("/v1/jobs/none").status_code == 404) is may_ask
        if not may_ask:
            assert "lacks generate" in expect_error(post(client), 403)


def test_a_job_that_waits_is_cancelled_and_costs_nothing(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=2) as client:
        with site.pipeline.held():
            running = posted(client)
            wait_until(site.pipeline.is_inside.is_set)
            waiting = posted(client)
            assert "images_per_day is 2, of which 2 is used or reserved" in expect_error(post(client), 429)
            job = client.delete(waiting).json()
            assert (job["status"], job["price"], job["detail"]) == ("cancelled", "0", "The job was cancelled.")
            assert reserved(site.database) == 1
        assert ended(client, running)["status"] == "succeeded"
        assert client.get(waiting).json() == job
        assert "has cancelled" in expect_error(client.get(f"{waiting}/image"), 404)
        assert [(row["outcome"], row["images"]) for row in rows(site.database)] == [("cancelled", 0), ("succeeded", 1)]
        assert len(site.pipeline.requests) == 1
        assert reserved(site.database) == 0


def test_a_job_that_runs_is_cancelled_at_once(make_site: MakeSite) -> None:
    with make_site() as site:
        with site.pipeline.held():
            path = posted(site.client)
            wait_until(site.pipeline.is_inside.is_set)
            assert status_of(site.client, path) == "running"
            assert site.client.delete(path).json()["status"] == "cancelled"
        wait_until(lambda: site.pipeline.ended == 1)
        assert ended(site.client, posted(site.client))["status"] == "succeeded"
        assert status_of(site.client, path) == "cancelled"
        assert [row["outcome"] for row in rows(site.database)] == ["cancelled", "succeeded"]


def test_a_job_that_has_ended_stays_as_it_is(site: Site) -> None:
    path = posted(site.client)
    job = ended(site.client, path)
    cancelled = site.client.delete(path)
    assert (cancelled.status_code, cancelled.json()) == (200, job)
    expect_image(site.client.get(f"{path}/image"))


def test_a_picture_that_is_not_made_yet_is_asked_for_later(site: Site) -> None:
    with site.pipeline.held():
        path = posted(site.client)
        wait_until(site.pipeline.is_inside.is_set)
        early = site.client.get(f"{path}/image")
        assert "The job is running" in expect_error(early, 409)
        assert early.headers["retry-after"] == "1"
    ended(site.client, path)
    expect_image(site.client.get(f"{path}/image"))


def test_a_picture_that_made_room_is_gone(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PURGE_EVERY_S", 0.01)
    with make_site(results_kept_bytes=0) as site:
        path = posted(site.client)
        assert ended(site.client, path)["status"] == "succeeded"
        wait_until(lambda: site.client.get(f"{path}/image").status_code == 410)
        assert "no longer kept" in expect_error(site.client.get(f"{path}/image"), 410)


def test_a_job_is_forgotten_in_time(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PURGE_EVERY_S", 0.01)
    with make_site(results_kept_s=0.001) as site:
        path = posted(site.client)
        wait_until(lambda: site.client.get(path).status_code == 404)
        assert [row["outcome"] for row in rows(site.database)] == ["succeeded"]


def test_an_idempotency_key_makes_one_job(make_site: MakeSite) -> None:
    headers = {"idempotency-key": "order 7"}
    with make_site() as site:
        first = post(site.client, headers)
        ended(site.client, first.headers["location"])
        again = post(site.client, headers)
        assert (again.status_code, again.content) == (202, first.content)
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotent-replayed"] == "true"
        assert len(site.client.get("/v1/jobs").json()["data"]) == 1
        assert len(rows(site.database)) == 1
        assert "another request" in expect_error(site.client.post("/v1/generate", json=PROMPT, headers=headers), 422)


def test_so_many_jobs_may_wait(make_site: MakeSite) -> None:
    with make_site(job_queue_size=1) as site, site.as_key(concurrent_requests=9) as client:
        with site.pipeline.held():
            running = posted(client)
            wait_until(site.pipeline.is_inside.is_set)
            waiting = posted(client)
            refused = post(client, {"idempotency-key": "order 7"})
            assert "1 jobs wait already" in expect_error(refused, 503)
            assert reserved(site.database) == 2
        for path in (running, waiting):
            assert ended(client, path)["status"] == "succeeded"
        assert post(client, {"idempotency-key": "order 7"}).status_code == 202


def test_jobs_wait_until_no_request_does(site: Site) -> None:
    with site.pipeline.held():
        threads = [threading.Thread(target=site.generate, kwargs={"prompt": prompt}) for prompt in ("one", "two")]
        for thread in threads:
            thread.start()
        wait_until(lambda: site.worker.scheduler.depth == 1)
        path = posted(site.client)
        threads.append(threading.Thread(target=site.generate, kwargs={"prompt": "three"}))
        threads[-1].start()
        wait_until(lambda: site.worker.scheduler.depth == 2)
        assert status_of(site.client, path) == "queued"
    for thread in threads:
        thread.join()
    assert ended(site.client, path)["status"] == "succeeded"
    assert [request.prompt for request in site.pipeline.requests][2:] == ["three", "a red apple"]


def test_nothing_that_was_asked_outlives_a_job(make_site: MakeSite) -> None:
    with make_site() as site:
        ended(site.client, posted(site.client, image_uris=[data_uri(plain("#123456"))]))
        ended(site.client, posted(site.client, image_uris=[data_uri(plain("#123456"))]))
        with site.database.read() as connection:
            assert [row.name for row in connection.execute(FILES.select())] == ["image"] * 2
