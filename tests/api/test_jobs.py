import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from openklein.api import jobs
from openklein.api.dependencies import Service
from openklein.engine.pipeline import Pipeline
from openklein.storage.jobs import Job, find_job
from openklein.storage.keys import list_keys, revoke_key
from openklein.storage.tables import JOBS
from tests.api.conftest import MakeSite
from tests.api.routes.test_jobs import ended, posted, status_of
from tests.api.routes.test_metrics import MADE, value
from tests.api.sites import Site, running_site
from tests.api.test_records import facts_of
from tests.api.test_settlement import rows
from tests.waiting import wait_until


def job_of(site: Site, path: str) -> Job:
    job = find_job(site.database, path.rpartition("/")[2], list_keys(site.database)[0].id)
    assert job is not None
    return job


def test_a_fault_of_ours_is_told_to_the_log_alone(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    with make_site() as site:
        site.pipeline.error = RuntimeError("the device is gone")
        path = posted(site.client)
        job = ended(site.client, path)
        assert (job["status"], job["price"]) == ("failed", "0")
        assert job["detail"] == f"Unexpected server error; its request id is {job['id']}."
        assert [(row["outcome"], row["images"]) for row in rows(site.database)] == [("error", 0)]
        assert "the device is gone" in caplog.text
        assert value(site, "openklein_requests_total", route="job", code="500") == 1


def test_a_job_has_the_time_of_a_request(make_site: MakeSite) -> None:
    with make_site(request_timeout_s=0.3) as site, site.pipeline.held():
        job = ended(site.client, posted(site.client))
        assert (job["status"], job["detail"]) == ("failed", "The request took longer than the 0.3 s allowed.")
        assert [row["outcome"] for row in rows(site.database)] == ["deadline_exceeded"]


def test_a_stop_lets_a_job_wait_for_the_next_start(tiny_pipeline: Pipeline, tmp_path: Path) -> None:
    with running_site(tmp_path, tiny_pipeline) as site:
        site.pipeline.gate.clear()
        path = posted(site.client)
        wait_until(site.pipeline.is_inside.is_set)
        key = {"authorization": site.client.headers["authorization"]}
    with running_site(tmp_path, tiny_pipeline) as site:
        site.client.headers.update(key)
        assert ended(site.client, path)["status"] == "succeeded"
        assert job_of(site, path).attempts == 1
        assert [row["outcome"] for row in rows(site.database)] == ["succeeded"]


def test_a_worker_that_stops_lets_a_job_wait(make_site: MakeSite) -> None:
    with make_site() as site:
        site.pipeline.gate.clear()
        path = posted(site.client)
        wait_until(site.pipeline.is_inside.is_set)
        site.worker.close(timeout_s=0)
        wait_until(lambda: status_of(site.client, path) == "queued")
        assert job_of(site, path).attempts == 0
        assert rows(site.database) == []


def test_a_lease_is_renewed_as_long_as_the_work_goes_on(make_site: MakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "LEASE", timedelta(seconds=0.3))
    with make_site() as site, site.pipeline.held():
        path = posted(site.client)
        wait_until(site.pipeline.is_inside.is_set)
        first = job_of(site, path).leased_until
        assert first is not None
        wait_until(lambda: (job_of(site, path).leased_until or first) > first + timedelta(seconds=0.3))


def test_the_work_on_a_cancelled_job_stops(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openklein.api.jobs")
    monkeypatch.setattr(jobs, "LEASE", timedelta(seconds=0.3))
    with make_site() as site:
        with site.pipeline.held():
            path = posted(site.client)
            wait_until(site.pipeline.is_inside.is_set)
            site.client.delete(path)
            wait_until(lambda: "was cancelled" in caplog.text)
        wait_until(lambda: site.pipeline.ended == 1)
        assert site.pipeline.steps == 1


def change_waiting(site: Site, **values: Any) -> str:
    """Post a job while another runs, change its row, and let both go on; return its path."""
    with site.pipeline.held():
        posted(site.client)
        wait_until(site.pipeline.is_inside.is_set)
        path = posted(site.client)
        with site.database.write() as connection:
            connection.execute(update(JOBS).where(JOBS.c.status == "queued").values(values))
    return path


def test_a_job_that_took_too_many_servers_down_fails(make_site: MakeSite) -> None:
    with make_site() as site:
        job = ended(site.client, change_waiting(site, attempts=3))
        assert job["detail"] == "The job was begun 3 times, and each time its server was lost."
        assert [row["outcome"] for row in rows(site.database)] == ["succeeded", "service_error"]


def test_a_job_that_waited_too_long_fails(make_site: MakeSite) -> None:
    with make_site() as site:
        job = ended(site.client, change_waiting(site, created_at=datetime.now(UTC) - timedelta(hours=25)))
        assert job["detail"] == "The job waited for more than 24 hours."
        assert [row["outcome"] for row in rows(site.database)] == ["succeeded", "service_error"]


def test_a_revoked_key_makes_no_more_pictures(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key() as client:
        with site.pipeline.held():
            running = posted(site.client)
            wait_until(site.pipeline.is_inside.is_set)
            posted(client)
            revoke_key(site.database, list_keys(site.database)[1].id)
        assert ended(site.client, running)["status"] == "succeeded"
        wait_until(lambda: len(rows(site.database)) == 2)
        assert [row["outcome"] for row in rows(site.database)] == ["succeeded", "unauthorized"]


def test_a_job_is_counted_and_logged_as_what_it_made(make_site: MakeSite, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "openklein")
    with make_site() as site:
        job = ended(site.client, posted(site.client))
        wait_until(lambda: value(site, "openklein_requests_total", route="job", code="200") == 1)
        assert value(site, "openklein_images_total", **MADE) == 1
        assert value(site, "openklein_stage_seconds_count", stage="denoise") == 1
        (facts,) = [facts for facts in facts_of(caplog) if facts["route"] == "job"]
        assert (facts["request_id"], facts["status"], facts["model"]) == (job["id"], 200, "klein-mini")


def test_one_that_cannot_be_run_ends_no_other(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = OperationalError("the database is away", None, Exception())
    take, answers = jobs.take, iter([broken])

    async def take_once_it_is_back(service: Service) -> Job | None:
        for error in answers:
            raise error
        return await take(service)

    monkeypatch.setattr(jobs, "take", take_once_it_is_back)
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    with make_site() as site:
        assert ended(site.client, posted(site.client))["status"] == "succeeded"
    assert "the database is away" in caplog.text
