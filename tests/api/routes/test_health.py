import httpx

from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error


def test_health_needs_no_key(site: Site) -> None:
    for path, body in (
        ("/health/live", {"status": "live"}),
        ("/health/ready", {"status": "ready", "model": "klein-mini"}),
    ):
        response = httpx.get(f"http://127.0.0.1:{site.port}{path}", trust_env=False)
        assert (response.status_code, response.json()) == (200, body)


def test_a_server_lives_before_it_is_ready(make_site: MakeSite) -> None:
    with make_site(is_ready=False) as site:
        assert site.client.get("/health/live").status_code == 200
        assert "starting or stopping" in expect_error(site.client.get("/health/ready"), 503)
        site.worker.error = RuntimeError("secret")
        assert "could not be loaded" in expect_error(site.client.get("/health/ready"), 503)
