import pytest
from starlette.datastructures import Headers

from openklein.api.auth import read_secret
from openklein.errors import Unauthorized
from openklein.storage.keys import list_keys, revoke_key
from tests.api.conftest import MakeSite
from tests.api.sites import expect_error


def headers(*values: bytes) -> Headers:
    return Headers(raw=[(b"authorization", value) for value in values])


@pytest.mark.parametrize(
    ("value", "secret"),
    [
        (b"Bearer klein_abc", "klein_abc"),
        (b"bearer klein_abc", "klein_abc"),
        (b"BEARER   klein_abc ", "klein_abc"),
        (b"Bearer a key with blanks", "a key with blanks"),
        ("Bearer kéy".encode(), "kéy"),
        ("Bearer kéy".encode("latin-1"), "kéy"),
    ],
)
def test_the_secret_is_what_follows_bearer(value: bytes, secret: str) -> None:
    assert read_secret(headers(value)) == secret


@pytest.mark.parametrize(
    "values", [(b"",), (b"Bearer",), (b"Bearer ",), (b"klein_abc",), (b"Basic YTpi",), (b"Token a",)]
)
def test_other_headers_are_malformed(values: tuple[bytes, ...]) -> None:
    with pytest.raises(Unauthorized, match="malformed"):
        read_secret(headers(*values))


def test_two_headers_are_malformed_and_none_is_missing() -> None:
    with pytest.raises(Unauthorized, match="malformed"):
        read_secret(headers(b"Bearer a", b"Bearer b"))
    with pytest.raises(Unauthorized, match="missing"):
        read_secret(headers())


def test_keys_work_until_they_are_revoked(make_site: MakeSite) -> None:
    with make_site() as site:
        assert site.client.get("/v1/models").status_code == 200
        (key,) = list_keys(site.database)
        assert revoke_key(site.database, key.id)
        revoked = site.client.get("/v1/models")
        unknown = site.client.get("/v1/models", headers={"authorization": "Bearer klein_unknown"})
        assert expect_error(revoked, 401) == expect_error(unknown, 401) == "The API key is not valid."
        assert revoked.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("fixed", ["any string at all", "kéy ☃", "klein_x"])
def test_the_fixed_key_may_be_any_string(fixed: str, make_site: MakeSite) -> None:
    with make_site(api_key=fixed) as site:
        good = {b"authorization": f"Bearer {fixed}".encode()}
        assert site.client.get("/v1/models", headers=good).status_code == 200
        assert site.client.get("/v1/models").status_code == 200
        bad = {b"authorization": f"Bearer x{fixed}".encode()}
        assert site.client.get("/v1/models", headers=bad).status_code == 401
