import logging
from datetime import UTC, datetime

import pytest
from starlette.datastructures import Headers

from openklein.api.auth import read_secret
from openklein.errors import Unauthorized
from openklein.storage.keys import Scope, list_keys, revoke_key
from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error


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


def test_the_log_tells_unknown_keys_from_revoked_and_expired_ones(
    make_site: MakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "openklein.api.auth")
    with make_site() as site, site.as_key(expires_at=datetime.now(UTC)) as expired:
        (key, late) = list_keys(site.database)
        revoke_key(site.database, key.id)
        unknown = site.client.get("/v1/models", headers={"authorization": "Bearer klein_unknown"})
        answers = [unknown, site.client.get("/v1/models"), expired.get("/v1/models")]
        assert {expect_error(answer, 401) for answer in answers} == {"The API key is not valid."}
    assert [record.getMessage() for record in caplog.records] == [
        "refused a key that is not ours",
        f"refused key {key.id}: revoked",
        f"refused key {late.id}: expired",
    ]
    assert site.key not in caplog.text
    assert "klein_unknown" not in caplog.text


PATHS = ("/v1/generate", "/v1/models", "/v1/account", "/v1/usage", "/v1/keys")


@pytest.mark.parametrize(
    ("scopes", "statuses"),  # of a blank prompt, and of asking for the rest
    [
        (("generate",), (422, 200, 200, 403, 403)),
        (("read",), (401, 200, 200, 200, 403)),
        (("generate", "read"), (422, 200, 200, 200, 403)),
        (("admin",), (422, 200, 200, 200, 200)),
    ],
)
def test_scopes_say_what_a_key_may_do(site: Site, scopes: tuple[Scope, ...], statuses: tuple[int, ...]) -> None:
    with site.as_key(scopes=scopes) as client:
        for path, status in zip(PATHS, statuses, strict=True):
            answer = client.post(path, json={"prompt": " "}) if path == "/v1/generate" else client.get(path)
            assert answer.status_code == status, path
            if status in (401, 403):
                assert expect_error(answer, status).startswith("This API key may not do this: it has the scopes ")


def test_the_last_use_of_a_key_is_kept(make_site: MakeSite) -> None:
    with make_site() as site:
        assert list_keys(site.database)[0].last_used_at is None
        site.client.get("/v1/models")
        first = list_keys(site.database)[0].last_used_at
        assert first is not None
        site.client.get("/v1/models")
        assert list_keys(site.database)[0].last_used_at == first
