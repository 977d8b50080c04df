from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error


def test_the_stand_in_is_listed_under_both_names(site: Site) -> None:
    body = site.client.get("/v1/models").json()
    assert body["object"] == "list"
    assert [(model["id"], model["served_by"]) for model in body["data"]] == [
        ("klein-mini", "klein-mini"),
        ("flux2-klein-4b", "klein-mini"),
    ]


def test_a_strict_server_lists_what_it_has(make_site: MakeSite) -> None:
    with make_site(strict_model=True) as site:
        assert [model["id"] for model in site.client.get("/v1/models").json()["data"]] == ["klein-mini"]


def test_the_list_needs_a_key_and_a_model(make_site: MakeSite) -> None:
    with make_site(is_ready=False) as site:
        expect_error(site.client.get("/v1/models"), 503)
        expect_error(site.client.get("/v1/models", headers={"authorization": "Bearer wrong"}), 401)
