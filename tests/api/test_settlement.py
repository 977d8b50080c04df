import socket
import threading
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from openklein.engine.pipeline import Pipeline
from openklein.storage.database import Database
from openklein.storage.tables import RESERVATIONS, USAGE
from tests.api.conftest import MakeSite
from tests.api.sites import expect_error, running_site
from tests.postgres import Postgres
from tests.waiting import wait_until

PROMPT = {"prompt": "a red apple", "aspect_ratio": "square"}


def rows(database: Database) -> list[dict[str, Any]]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(USAGE.select().order_by(USAGE.c.settled_at)).mappings()]


def reserved(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(RESERVATIONS)).scalar_one()


def test_a_picture_is_in_the_ledger_when_its_answer_arrives(make_site: MakeSite) -> None:
    with make_site() as site:
        answer = site.generate()
        (row,) = rows(site.database)
        assert answer.headers["x-klein-price"] == "0.003"
        assert row["request_id"] == answer.headers["x-request-id"]
        assert str(row["price"].normalize()) == "0.003"
        facts = ("model", "workflow", "width", "height", "references", "images", "pixels", "outcome")
        assert [row[name] for name in facts] == [
            "klein-mini",
            "text-to-image",
            1024,
            1024,
            0,
            1,
            1024 * 1024,
            "succeeded",
        ]
        assert row["milliseconds"] > 0
        assert row["started_at"] < row["settled_at"]


def test_the_price_is_a_setting(make_site: MakeSite) -> None:
    with make_site(price_per_image=Decimal("1.25")) as site:
        assert site.generate().headers["x-klein-price"] == "1.25"
        assert rows(site.database)[0]["price"] == Decimal("1.25")


def test_a_free_image_has_a_price_too(make_site: MakeSite) -> None:
    with make_site(price_per_image=Decimal(0)) as site:
        assert site.generate().headers["x-klein-price"] == "0"


def test_what_fails_costs_nothing(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=1) as client:
        site.pipeline.error = RuntimeError("the device is gone")
        assert client.post("/v1/generate", json=PROMPT).status_code == 500
        site.pipeline.error = None
        broken = {**PROMPT, "image_uris": ["data:image/png;base64,AAAA"]}
        assert client.post("/v1/generate", json=broken).status_code == 422
        assert client.post("/v1/generate", json=PROMPT).status_code == 200
        outcomes = [(row["outcome"], row["images"], row["price"] == 0) for row in rows(site.database)]
        assert outcomes == [("error", 0, True), ("invalid_image", 0, True), ("succeeded", 1, False)]
        assert reserved(site.database) == 0


def test_a_client_that_leaves_pays_nothing(make_site: MakeSite) -> None:
    with make_site() as site, site.pipeline.held():
        with socket.create_connection(("127.0.0.1", site.port)) as client:
            client.sendall(
                f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.key}\r\n"
                'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'.encode()
            )
            wait_until(site.pipeline.is_inside.is_set)
        wait_until(lambda: len(rows(site.database)) == 1)
        assert [(row["outcome"], row["images"]) for row in rows(site.database)] == [("cancelled", 0)]


def test_a_request_whose_fields_are_wrong_is_no_request(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(requests_per_minute=1) as client:
        assert client.post("/v1/generate", json={"prompt": ""}).status_code == 422
        assert client.post("/v1/generate", json=PROMPT).status_code == 200
        assert len(rows(site.database)) == 1


def test_a_limit_is_named_with_the_time_it_frees(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=1) as client:
        assert client.post("/v1/generate", json=PROMPT).status_code == 200
        refused = client.post("/v1/generate", json=PROMPT)
        sentence = expect_error(refused, 429)
        assert sentence.startswith("This key's limit images_per_day is 1, of which 1 is used or reserved; it frees at ")
        assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
        assert len(rows(site.database)) == 1
        assert len(site.pipeline.requests) == 1


def test_servers_on_one_postgresql_share_limits(tiny_pipeline: Pipeline, postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.make_database()
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(running_site(tmp_path / name, tiny_pipeline, database_url=url)) for name in "ab"
        )
        client = stack.enter_context(first.as_key(concurrent_requests=1))
        key = {"authorization": client.headers["authorization"]}
        answers: list[httpx.Response] = []
        with first.pipeline.held():
            thread = threading.Thread(target=lambda: answers.append(client.post("/v1/generate", json=PROMPT)))
            thread.start()
            wait_until(first.pipeline.is_inside.is_set)
            refused = second.client.post("/v1/generate", json=PROMPT, headers=key)
            assert "concurrent_requests is 1" in expect_error(refused, 429)
        thread.join()
        assert answers[0].status_code == 200
        assert second.client.post("/v1/generate", json=PROMPT, headers=key).status_code == 200
