from typing import Any

import pytest

from openklein.storage.keys import find_key, list_keys
from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error

LIMITS = {
    "requests_per_minute": 60,
    "concurrent_requests": 2,
    "images_per_day": None,
    "images_per_month": None,
    "dollars_per_day": "0.1",
    "dollars_per_month": None,
}


def test_a_key_is_made_with_all_its_fields_and_its_secret_is_shown_once(site: Site) -> None:
    fields = {"name": "app", "owner": "Ada", "scopes": ["read"], "expires_at": "2099-01-01T02:00:00+02:00", **LIMITS}
    with site.as_key(scopes=("admin",)) as admin:
        made = admin.post("/v1/keys", json=fields)
        assert made.status_code == 201
        body = made.json()
        secret = body.pop("secret")
        assert {name: body[name] for name in fields} == {**fields, "expires_at": "2099-01-01T00:00:00Z"}
        assert (body["object"], body["revoked_at"], body["last_used_at"]) == ("key", None, None)
        assert admin.get(f"/v1/keys/{body['id']}").json() == body
        listed = admin.get("/v1/keys")
        assert body in listed.json()["data"]
        assert secret not in listed.text
    key = find_key(site.database, secret)
    assert key is not None
    assert key.id == body["id"]


def test_a_key_made_of_nothing_may_generate_and_read(site: Site) -> None:
    with site.as_key(scopes=("admin",)) as admin:
        body = admin.post("/v1/keys", json={}).json()
    assert (body["scopes"], body["expires_at"]) == (["generate", "read"], None)
    assert all(body[name] is None for name in LIMITS)


def test_a_change_works_from_the_next_request_on(site: Site) -> None:
    with site.as_key(scopes=("admin",)) as admin, site.as_key(images_per_day=1, owner="Ada") as client:
        key_id = client.get("/v1/account").json()["key"]["id"]
        changed = admin.patch(f"/v1/keys/{key_id}", json={"images_per_day": None, "scopes": ["generate"]})
        assert changed.status_code == 200
        body = changed.json()
        assert (body["images_per_day"], body["scopes"], body["owner"]) == (None, ["generate"], "Ada")
        assert client.get("/v1/account").json()["limits"] == {}
        expect_error(client.get("/v1/usage"), 403)


def test_a_revoked_key_is_refused_at_once_and_stays_listed(site: Site) -> None:
    with site.as_key(scopes=("admin",)) as admin, site.as_key() as client:
        key_id = client.get("/v1/account").json()["key"]["id"]
        revoked = admin.delete(f"/v1/keys/{key_id}").json()
        assert revoked["revoked_at"] is not None
        assert expect_error(client.get("/v1/account"), 401) == "The API key is not valid."
        assert admin.delete(f"/v1/keys/{key_id}").json() == revoked
        assert revoked in admin.get("/v1/keys").json()["data"]


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_a_key_that_is_not_there(site: Site, method: str) -> None:
    with site.as_key(scopes=("admin",)) as admin:
        body: dict[str, str] | None = {} if method == "PATCH" else None
        assert "There is no key with this id" in expect_error(admin.request(method, "/v1/keys/none", json=body), 404)


@pytest.mark.parametrize(
    ("fields", "start"),
    [
        ({"colour": "red"}, "There is no field 'colour'."),
        ({"id": "a"}, "There is no field 'id'."),
        ({"name": 3}, "name cannot be 3: "),
        ({"name": "two\nlines"}, "name cannot be 'two\\nlines': "),
        ({"name": "x" * 101}, "name cannot be "),
        ({"scopes": []}, "scopes cannot be []: "),
        ({"scopes": ["read", "read"]}, "scopes cannot be ['read', 'read']: "),
        ({"scopes": ["root"]}, "scopes.0 cannot be 'root': "),
        ({"expires_at": "soon"}, "expires_at cannot be 'soon': "),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at cannot be '2099-01-01T00:00:00': "),
        ({"expires_at": 4070908800}, "expires_at cannot be 4070908800: "),
        ({"images_per_day": 0}, "images_per_day cannot be 0: "),
        ({"images_per_day": True}, "images_per_day cannot be True: "),
        ({"images_per_day": "7"}, "images_per_day cannot be '7': "),
        ({"dollars_per_day": "0.0000001"}, "dollars_per_day cannot be '0.0000001': "),
        ({"dollars_per_day": -1}, "dollars_per_day cannot be -1: "),
        ({"dollars_per_day": "NaN"}, "dollars_per_day cannot be 'NaN': "),
        ([], "The body cannot be []: "),
    ],
)
def test_wrong_fields_are_named_and_change_nothing(site: Site, fields: Any, start: str) -> None:
    with site.as_key(scopes=("admin",)) as admin:
        before = list_keys(site.database)
        for answer in (admin.post("/v1/keys", json=fields), admin.patch(f"/v1/keys/{before[0].id}", json=fields)):
            assert expect_error(answer, 422).startswith(start)
        assert {key.id for key in list_keys(site.database)} == {key.id for key in before}


def test_a_body_that_is_no_json_or_too_large(make_site: MakeSite) -> None:
    with make_site(max_body_bytes=1000) as site, site.as_key(scopes=("admin",)) as admin:
        as_json = {"content-type": "application/json"}
        assert expect_error(admin.post("/v1/keys", content=b"{", headers=as_json), 422) == "The body is not valid JSON."
        expect_error(admin.post("/v1/keys", content=b"x" * 1001, headers=as_json), 413)
        expect_error(admin.post("/v1/keys"), 422)
