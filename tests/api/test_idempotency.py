import socket
import threading
from typing import Any

import httpx
import pytest

from openklein.api import background
from openklein.api.bodies import GenerateCall
from openklein.api.idempotency import fingerprint
from openklein.api.schemas import read_fields
from openklein.storage.tables import FILES, IDEMPOTENCY_KEYS
from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, expect_error, expect_image
from tests.api.test_settlement import reserved, rows
from tests.waiting import wait_until

PROMPT = {"prompt": "a red apple", "aspect_ratio": "square"}


def send(client: httpx.Client, name: str = "order 7", **fields: Any) -> httpx.Response:
    return client.post("/v1/generate", json={**PROMPT, **fields}, headers={"idempotency-key": name})


def outcomes(site: Site) -> list[str]:
    return [row["outcome"] for row in rows(site.database)]


def test_a_repeat_gets_the_same_answer_and_costs_nothing(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=1, requests_per_minute=1) as client:
        first = send(client)
        expect_image(first)
        assert "idempotent-replayed" not in first.headers
        again = send(client)
        assert (again.status_code, again.content) == (first.status_code, first.content)
        own = {"x-request-id", "date", "idempotent-replayed"}
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
        assert [pair for pair in again.headers.items() if pair[0] not in own] == [
            pair for pair in first.headers.items() if pair[0] not in own
        ]
        assert len(site.pipeline.requests) == 1
        assert [row["request_id"] for row in rows(site.database)] == [first.headers["x-request-id"]]
        assert reserved(site.database) == 0


def test_without_the_header_nothing_is_kept(make_site: MakeSite) -> None:
    with make_site() as site:
        assert site.generate(seed=1).content == site.generate(seed=1).content
        assert outcomes(site) == ["succeeded"] * 2
        with site.database.read() as connection:
            assert connection.execute(FILES.select()).all() == []
            assert connection.execute(IDEMPOTENCY_KEYS.select()).all() == []


def test_the_same_request_as_a_form_is_the_same(site: Site) -> None:
    headers = {"idempotency-key": "as a form"}
    png = plain("#123456")

    def ask() -> httpx.Response:
        return site.client.post("/v1/generate", data=PROMPT, files={"images": ("a.png", png)}, headers=headers)

    first = ask()
    expect_image(first)
    assert ask().content == first.content
    assert len(site.pipeline.requests) == 1


def test_another_request_with_the_same_key_is_refused(site: Site) -> None:
    assert send(site.client, "taken").status_code == 200
    for fields in ({"prompt": "a green apple"}, {"seed": 1}, {"image_uris": [data_uri(plain("#123456"))]}):
        assert "used for another request" in expect_error(send(site.client, "taken", **fields), 422)
    assert len(site.pipeline.requests) == 1


def test_another_api_key_is_another_client(site: Site) -> None:
    assert send(site.client, "ours").status_code == 200
    with site.as_key() as other:
        answer = send(other, "ours", prompt="a green apple")
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers


def test_a_repeat_while_the_first_runs_is_told_so_and_then_answered(site: Site) -> None:
    answers: list[httpx.Response] = []
    with site.pipeline.held():
        thread = threading.Thread(target=lambda: answers.append(send(site.client, "slow")))
        thread.start()
        wait_until(site.pipeline.is_inside.is_set)
        early = send(site.client, "slow")
        assert "still running" in expect_error(early, 409)
        assert early.headers["retry-after"] == "1"
    thread.join()
    assert send(site.client, "slow").content == answers[0].content
    assert len(site.pipeline.requests) == 1


def test_after_a_failure_the_request_runs_again(make_site: MakeSite) -> None:
    with make_site() as site, site.as_key(images_per_day=1) as client:
        site.pipeline.error = RuntimeError("the device is gone")
        assert send(client).status_code == 500
        site.pipeline.error = None
        assert send(client, image_uris=["data:image/png;base64,AAAA"]).status_code == 422
        assert send(client, model="flux2-klein-base-4b").status_code == 422
        assert send(client).status_code == 200
        assert send(client, "order 8").status_code == 429
        assert send(client).status_code == 200
        assert outcomes(site) == ["error", "invalid_image", "succeeded"]


def test_a_request_that_lost_its_claim_is_neither_answered_nor_charged(make_site: MakeSite) -> None:
    answers: list[httpx.Response] = []
    with make_site() as site:
        with site.pipeline.held():
            thread = threading.Thread(target=lambda: answers.append(send(site.client)))
            thread.start()
            wait_until(site.pipeline.is_inside.is_set)
            with site.database.write() as connection:
                connection.execute(IDEMPOTENCY_KEYS.update().values(request_id="another"))
        thread.join()
        assert "another one with its Idempotency-Key has begun" in expect_error(answers[0], 409)
        assert [(row["outcome"], row["images"]) for row in rows(site.database)] == [("conflict", 0)]
        assert "still running" in expect_error(send(site.client), 409)


def test_after_a_client_left_the_request_runs_again(make_site: MakeSite) -> None:
    with make_site() as site:
        with site.pipeline.held():
            with socket.create_connection(("127.0.0.1", site.port)) as client:
                client.sendall(
                    f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.key}\r\n"
                    "Idempotency-Key: order 7\r\n"
                    'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'.encode()
                )
                wait_until(site.pipeline.is_inside.is_set)
            wait_until(lambda: outcomes(site) == ["cancelled"])
        again: dict[str, Any] = {"json": {"prompt": "a"}, "headers": {"idempotency-key": "order 7"}}
        wait_until(lambda: site.client.post("/v1/generate", **again).status_code != 409)
        assert outcomes(site) == ["cancelled", "succeeded"]


def test_a_repeat_is_answered_while_no_model_is_ready(make_site: MakeSite) -> None:
    with make_site() as site:
        first = send(site.client)
        site.worker.close(timeout_s=10)
        assert send(site.client).content == first.content
        assert send(site.client, "order 8").status_code == 503


@pytest.mark.parametrize("names", [[""], ["x" * 256], ["caf\xe9"], ["a\tb"], ["one", "two"]])
def test_a_key_that_is_none_is_refused(names: list[str], site: Site) -> None:
    headers = [("idempotency-key", name.encode("latin-1")) for name in names]
    refused = site.client.post("/v1/generate", json=PROMPT, headers=headers)  # type: ignore[arg-type]
    assert "1 to 255 printable ASCII characters" in expect_error(refused, 422)
    assert site.pipeline.requests == []


@pytest.mark.parametrize("name", ["x", "x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a b~!"])
def test_any_printable_text_is_a_key(name: str, site: Site) -> None:
    first = send(site.client, name)
    assert first.status_code == 200
    assert send(site.client, name).content == first.content


def test_an_answer_that_made_room_is_gone_and_not_made_again(
    make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PURGE_EVERY_S", 0.01)
    with make_site(results_kept_bytes=0) as site:
        assert send(site.client).status_code == 200
        wait_until(lambda: send(site.client).status_code == 410)
        assert "no longer kept" in expect_error(send(site.client), 410)
        assert outcomes(site) == ["succeeded"]


def test_an_answer_is_kept_for_the_time_in_the_settings(make_site: MakeSite) -> None:
    with make_site(results_kept_s=0.001) as site:
        first = send(site.client)
        wait_until(lambda: send(site.client).headers["x-request-id"] != first.headers["x-request-id"])
        assert outcomes(site) == ["succeeded"] * 2


def test_a_random_seed_is_not_part_of_what_is_asked() -> None:
    def hash_of(path: str = "/v1/generate", **fields: Any) -> bytes:
        return fingerprint(path, GenerateCall(read_fields({**PROMPT, **fields})))

    assert hash_of() == hash_of()
    assert hash_of() == hash_of(model="flux2-klein-4b")
    different = [hash_of(), hash_of(seed=0), hash_of(seed=1), hash_of(prompt="b"), hash_of("/v1/jobs")]
    assert len(set(different)) == len(different)
