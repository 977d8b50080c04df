import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openklein.engine.device import device_memory_bytes
from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, ask, expect_error
from tests.waiting import wait_until

MADE = {"model": "klein-mini", "workflow": "text-to-image"}


def samples(site: Site) -> Iterator[tuple[str, dict[str, str], float]]:
    response = httpx.get(f"http://127.0.0.1:{site.port}/metrics", trust_env=False)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def value(site: Site, name: str, **labels: str) -> float:
    """Read one sample; 0 where there is none."""
    return sum(number for found, its, number in samples(site) if (found, its) == (name, labels))


def requests(site: Site, route: str, code: int) -> float:
    return value(site, "openklein_requests_total", route=route, code=str(code))


def test_a_picture_is_counted_and_timed(make_site: MakeSite) -> None:
    with make_site() as site:
        assert value(site, "openklein_images_total", **MADE) == 0
        assert site.generate(aspect_ratio="landscape").status_code == 200
        assert site.generate(image_uris=[data_uri(plain())]).status_code == 200
        wait_until(lambda: requests(site, "/v1/generate", 200) == 2)
        assert value(site, "openklein_images_total", **MADE) == 1
        assert value(site, "openklein_megapixels_total", **MADE) == pytest.approx(1344 * 768 / 1e6)
        assert value(site, "openklein_megapixels_total", **{**MADE, "workflow": "image-to-image"}) == pytest.approx(
            1.048576
        )
        assert value(site, "openklein_queue_wait_seconds_count") == 2
        counts = {
            stage: value(site, "openklein_stage_seconds_count", stage=stage)
            for stage in ("text", "denoise", "decode", "png")
        }
        assert counts == dict.fromkeys(counts, 2)
        assert value(site, "openklein_stage_seconds_count", stage="references") == 1
        assert value(site, "openklein_stage_seconds_sum", stage="denoise") > 0
        assert value(site, "openklein_request_seconds_count", route="/v1/generate") == 2
        assert value(site, "openklein_ready") == 1
        assert value(site, "process_resident_memory_bytes") > 10e6
        assert value(site, "openklein_batch_size_bucket", le="1.0") == 2


def test_what_was_spent_on_a_failure_is_timed_and_nothing_counted_as_made(make_site: MakeSite) -> None:
    with make_site() as site:
        site.pipeline.error_at_step = RuntimeError("ours")
        site.refusal(500)
        site.refusal(422, image_uris=[data_uri(b"no picture")])
        wait_until(lambda: requests(site, "/v1/generate", 422) == requests(site, "/v1/generate", 500) == 1)
        counts = {its["stage"]: n for name, its, n in samples(site) if name == "openklein_stage_seconds_count"}
        assert counts == {"fetch": 2, "text": 1, "denoise": 1}
        assert value(site, "openklein_queue_wait_seconds_count") == 1
        assert value(site, "openklein_stage_seconds_sum", stage="denoise") > 0
        made = ("openklein_images_total", "openklein_megapixels_total", "openklein_batch_size_count")
        assert sum(number for name, _, number in samples(site) if name in made) == 0


def test_a_request_that_is_given_up_in_the_queue_tells_how_long_it_waited(make_site: MakeSite) -> None:
    with make_site() as site, site.pipeline.held(), ask(site), ask(site):
        wait_until(lambda: site.worker.scheduler.depth == 1)
        with ask(site):
            wait_until(lambda: site.worker.scheduler.depth == 2)
            queued_at = time.monotonic()
            time.sleep(0.05)
            waited_s = time.monotonic() - queued_at
        wait_until(lambda: value(site, "openklein_queue_wait_seconds_count") == 1)
        assert value(site, "openklein_queue_wait_seconds_sum") >= waited_s
        assert value(site, "openklein_stage_seconds_count", stage="text") == 0


def test_batches_and_prompts_read_before_are_counted(make_site: MakeSite) -> None:
    with make_site() as site:
        prompt = "counted once it has been read"
        assert site.generate(prompt=prompt).status_code == 200
        wait_until(lambda: requests(site, "/v1/generate", 200) == 1)
        assert value(site, "openklein_prompt_cache_hits_total") == 0
        site.pipeline.result_facts = {"batch_size": 4}
        assert site.generate(prompt=prompt).status_code == 200
        wait_until(lambda: requests(site, "/v1/generate", 200) == 2)
        assert value(site, "openklein_prompt_cache_hits_total") == 1
        assert [value(site, "openklein_batch_size_bucket", le=most) for most in ("1.0", "2.0", "4.0")] == [1, 1, 2]
        assert value(site, "openklein_batch_size_sum") == 5


def test_refusals_are_counted_by_route_and_code(make_site: MakeSite) -> None:
    with make_site() as site:
        site.refusal(422, model="nonsense")
        site.client.post("/v1/generate", headers={"authorization": "Bearer wrong"})
        wait_until(lambda: requests(site, "/v1/generate", 401) == 1)
        assert requests(site, "/v1/generate", 422) == 1
        assert value(site, "openklein_images_total", **MADE) == 0


def test_the_queue_is_counted_while_it_waits(make_site: MakeSite) -> None:
    with make_site() as site, ThreadPoolExecutor(3) as threads:
        with site.pipeline.held():
            assert value(site, "openklein_queue_depth") == 0
            asked = [threads.submit(site.generate) for _ in range(3)]
            wait_until(lambda: value(site, "openklein_queue_depth") == 2)  # and one is being made
        assert [answer.result().status_code for answer in asked] == [200] * 3
        assert value(site, "openklein_queue_depth") == 0


def test_a_server_without_a_model_is_not_ready(make_site: MakeSite) -> None:
    with make_site(is_ready=False) as site:
        assert value(site, "openklein_ready") == 0


def test_no_client_can_add_a_label(make_site: MakeSite) -> None:
    with make_site() as site:
        for n in range(20):
            site.client.get(f"/secret-{n}")
            site.client.get(f"/v1/secret-{n}")
            site.client.request(f"SECRET{n}", "/v1/generate")
            site.client.get("/v1/models", headers={"host": f"secret-{n}.test"})
            site.refusal(422, model=f"secret-{n}", prompt=f"secret-{n}")
        wait_until(lambda: requests(site, "/v1/generate", 422) == 20)
        labels = [labels for _, labels, _ in samples(site)]
        assert "secret" not in str(labels).lower()
        routes = {its["route"] for its in labels if "route" in its}
        assert routes == {"none", "/v1/generate", "/v1/models", "/metrics"}


def test_each_app_counts_for_itself(make_site: MakeSite, site: Site) -> None:
    with make_site() as other:
        before = requests(site, "/v1/models", 200)
        assert other.client.get("/v1/models").status_code == 200
        wait_until(lambda: requests(other, "/v1/models", 200) == 1)
        assert requests(site, "/v1/models", 200) == before


def test_the_memory_of_the_device_is_told(site: Site) -> None:
    assert value(site, "openklein_device_memory_bytes") == pytest.approx(device_memory_bytes(), rel=0.2)


# Who may read them


def get(site: Site, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.get(f"http://127.0.0.1:{site.port}/metrics", headers=headers, trust_env=False)


def test_a_public_server_shows_no_metrics_unless_a_key_is_set(make_site: MakeSite) -> None:
    with make_site(public=True) as site:
        for key in (None, site.key):
            assert "OPENKLEIN_METRICS_KEY" in expect_error(get(site, key), 401)


@pytest.mark.parametrize("public", [True, False])
def test_the_metrics_key_opens_metrics_and_nothing_else(public: bool, make_site: MakeSite) -> None:
    with make_site(public=public, metrics_key="for-scrapers") as site:
        assert get(site, "for-scrapers").status_code == 200
        assert "is missing" in expect_error(get(site, None), 401)
        for key in (site.key, "for-scraper", "for-scrapersx"):
            assert expect_error(get(site, key), 401) == "The metrics key is not valid."
        wrong = {"authorization": "Bearer for-scrapers"}
        expect_error(site.client.get("/v1/models", headers=wrong), 401)


def test_metrics_are_no_part_of_the_documented_api(site: Site) -> None:
    assert "/metrics" not in site.client.get("/openapi.json").json()["paths"]
