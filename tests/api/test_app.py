import httpx
import pytest

from tests.api.conftest import MakeSite
from tests.api.sites import Site

ORIGIN = "https://app.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}


def preflight(site: Site, origin: str) -> httpx.Response:
    with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as client:
        return client.options("/v1/generate", headers={"origin": origin, **PREFLIGHT})


def cors_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control-")}


def test_no_page_of_another_origin_may_call_unless_configured(site: Site) -> None:
    assert preflight(site, ORIGIN).status_code == 401
    assert cors_headers(preflight(site, ORIGIN)) == {}
    response = site.client.get("/v1/models", headers={"origin": ORIGIN})
    assert (response.status_code, cors_headers(response)) == (200, {})


def test_pages_of_configured_origins_may(make_site: MakeSite) -> None:
    with make_site(cors_origins=(ORIGIN, "http://localhost:3000")) as site:
        asked = preflight(site, ORIGIN)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        for key, status in ((site.key, 200), ("wrong", 401)):
            headers = {"origin": ORIGIN, "authorization": f"Bearer {key}"}
            answered = site.client.get("/v1/models", headers=headers)
            assert answered.status_code == status
            assert answered.headers["access-control-allow-origin"] == ORIGIN
            assert "x-klein-seed" in answered.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answered.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil.example", "null", "https://app.example:8443"]
)
def test_pages_of_others_still_may_not(origin: str, make_site: MakeSite) -> None:
    with make_site(cors_origins=(ORIGIN,)) as site:
        assert "access-control-allow-origin" not in cors_headers(preflight(site, origin))
        response = site.client.get("/v1/models", headers={"origin": origin})
        assert "access-control-allow-origin" not in cors_headers(response)
