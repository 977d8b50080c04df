from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from openklein.storage.keys import list_keys
from openklein.storage.usage import settle
from tests.api.conftest import MakeSite
from tests.api.sites import Site, expect_error
from tests.storage.rows import usage_row

FEBRUARY = datetime(2026, 2, 1, tzinfo=UTC)
RANGE = {"start": "2026-02-01", "end": "2026-03-01"}


def test_the_account_tells_what_is_left_of_each_limit(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=5, dollars_per_month=Decimal("0.01")) as client:
        assert client.post("/v1/generate", json={"prompt": "a"}).status_code == 200
        account = client.get("/v1/account").json()
        today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        assert account["object"] == "account"
        assert (account["key"]["name"], account["key"]["images_per_day"]) == ("another", 5)
        assert account["key"]["last_used_at"] is not None or account["key"]["id"]
        assert account["limits"]["images_per_day"] == {
            "limit": 5,
            "left": 4,
            "frees_at": f"{today + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
        }
        month = account["limits"]["dollars_per_month"]
        assert (month["limit"], month["left"]) == ("0.01", "0.007")
        assert len(account["limits"]) == 2


def test_the_fixed_key_has_an_account_without_limits(make_site: MakeSite) -> None:
    with make_site(api_key="fixed") as site:
        account = site.client.get("/v1/account", headers={"authorization": "Bearer fixed"}).json()
        assert (account["key"]["id"], account["key"]["scopes"]) == ("fixed", ["generate", "read", "admin"])
        assert account["limits"] == {}


def test_usage_is_added_up_by_bucket_and_group(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(scopes=("admin",)) as admin:
        own = list_keys(site.database)[0].id
        for day, model, key_id in ((1, "klein-mini", own), (1, "klein-mini", own), (3, "flux2-klein-4b", "other")):
            at = FEBRUARY + timedelta(days=day, hours=2)
            settle(site.database, usage_row(key_id=key_id, model=model, settled_at=at, milliseconds=1500))
        failed = {"images": 0, "pixels": 0, "price": Decimal(0), "outcome": "error", "model": "klein-mini"}
        settle(site.database, usage_row(key_id=own, settled_at=FEBRUARY, **failed))

        everything = admin.get("/v1/usage", params={**RANGE, "group_by": "model"}).json()
        assert [(part["start"], part["group"], part["requests"], part["images"]) for part in everything["data"]] == [
            ("2026-02-01T00:00:00Z", "klein-mini", 1, 0),
            ("2026-02-02T00:00:00Z", "klein-mini", 2, 2),
            ("2026-02-04T00:00:00Z", "flux2-klein-4b", 1, 1),
        ]
        assert everything["total"] == {
            "requests": 4,
            "succeeded": 3,
            "images": 3,
            "megapixels": "3.145728",
            "seconds": "5.5",
            "price": "0.009",
        }
        assert (everything["object"], everything["bucket"], everything["group_by"]) == ("usage", "day", "model")
        assert (everything["start"], everything["end"]) == ("2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z")

        mine = site.client.get("/v1/usage", params={**RANGE, "bucket": "month", "group_by": "key"}).json()
        assert [(part["start"], part["group"], part["price"]) for part in mine["data"]] == [
            ("2026-02-01T00:00:00Z", own, "0.006")
        ]
        hours = site.client.get("/v1/usage", params={**RANGE, "bucket": "hour"}).json()
        assert [part["start"] for part in hours["data"]] == ["2026-02-01T00:00:00Z", "2026-02-02T02:00:00Z"]
        assert {part["group"] for part in hours["data"]} == {None}


def test_usage_is_that_of_30_days_where_no_range_is_given(site: Site) -> None:
    body = site.client.get("/v1/usage").json()
    start, end = (datetime.fromisoformat(body[name]) for name in ("start", "end"))
    assert end - start == timedelta(days=30)
    assert abs(datetime.now(UTC) - end) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("query", "start"),
    [
        ({"bucket": "week"}, "bucket cannot be 'week': "),
        ({"group_by": "prompt"}, "group_by cannot be 'prompt': "),
        ({"key": "a"}, "There is no field 'key'."),
        ({"start": "yesterday"}, "start cannot be 'yesterday': "),
        ({"start": "2026-02-02T00:00:00"}, "start cannot be '2026-02-02T00:00:00': "),
        ({"start": "2026-02-02", "end": "2026-02-02"}, "start cannot be 2026-02-02T00:00:00+00:00: "),
        ({"start": "2025-01-01", "end": "2026-01-01", "bucket": "hour"}, "The range cannot be 365 days"),
    ],
)
def test_wrong_questions_are_told_what_is_allowed(site: Site, query: dict[str, str], start: str) -> None:
    assert expect_error(site.client.get("/v1/usage", params=query), 422).startswith(start)
