import json
import time
from typing import Any

import httpx
import pytest

from openklein.contract import MAX_SEED
from tests.api.conftest import MakeSite
from tests.api.pictures import data_uri
from tests.api.sites import Site, expect_error


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "klein_abc", "Basic YTpi", "Bearer klein_abc", "Bearer a b", "Token x"]
)
def test_other_keys_are_refused_before_the_body_is_judged(value: str | None, site: Site) -> None:
    headers = {} if value is None else {"authorization": value}
    url = f"http://127.0.0.1:{site.port}/v1/generate"
    response = httpx.post(url, content=b"not even a body", headers=headers, trust_env=False)
    assert "API key" in expect_error(response, 401) or "Authorization" in expect_error(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"prompt": ""}, "prompt cannot be ''"),
        ({"prompt": "  \n"}, "prompt cannot be"),
        ({"prompt": None}, "prompt cannot be"),
        ({"prompt": "word " * 501}, "500"),
        ({"model": "sdxl"}, "model cannot be 'sdxl'; it must be one of flux2-klein-4b, klein-mini"),
        ({"aspect_ratio": "4:3"}, "aspect_ratio cannot be '4:3'; it must be one of square, landscape"),
        ({"steps": 4}, "There is no field 'steps'"),
        ({"seed": -1}, "seed cannot be -1"),
        ({"seed": MAX_SEED + 1}, "seed cannot be"),
        ({"seed": 1.5}, "seed cannot be 1.5"),
        ({"image_uris": "[1"}, "image_uris cannot be '[1'"),
        ({"image_uris": {"a": 1}}, "image_uris cannot be"),
        ({"image_uris": [1]}, "image_uris cannot be [1]"),
        ({"image_uris": ["data:image/png;base64,####"]}, "image_uris[0]: the base64 text"),
        ({"image_uris": ["data:text/plain;base64,aGk="]}, "image_uris[0]: the data URI holds 'text/plain'"),
        ({"image_uris": [data_uri(b"hello")]}, "image_uris[0]: "),
        ({"image_uris": ["file:///etc/passwd"]}, "image_uris[0]: the scheme 'file' is not allowed"),
        ({"image_uris": ["ftp://images.test/a.png"]}, "image_uris[0]: the scheme 'ftp' is not allowed"),
        ({"image_uris": ["photo.png"]}, "image_uris[0]: the scheme '' is not allowed"),
        ({"image_uris": ["http://images.test:1/a.png"]}, "image_uris[0]: no connection"),
        ({"images": ["http://images.test/"]}, "images cannot be"),
    ],
)
def test_fields_that_are_wrong(fields: dict[str, Any], part: str, site: Site) -> None:
    assert part in site.refusal(422, **fields)
    assert site.pipeline.requests == []


def test_a_prompt_of_megabytes_is_refused_within_seconds(site: Site) -> None:
    started = time.process_time()
    assert "tokens or more; at most 500" in site.refusal(422, prompt="word " * 4_000_000)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("body", "kind", "part"),
    [
        (b"", "application/json", "not valid JSON"),
        (b"prompt=a", "application/json", "not valid JSON"),
        (b'["a"]', "application/json", "not an object"),
        (b'{"prompt": "a", "prompt": "b"}', "application/json", "not valid JSON"),
        (b'{"prompt": "\\ud83d"}', "application/json", "prompt cannot be"),
        (b"[" * 200_000, "application/json", "not valid JSON"),
        (b"prompt=a", "application/x-www-form-urlencoded", "Content-Type cannot be"),
        (b"a", "text/plain", "Content-Type cannot be 'text/plain'"),
        (b"", "", "Content-Type cannot be ''"),
        (b"a", "multipart/form-data", "multipart form"),
        (b"a", "multipart/form-data; boundary=x", "multipart form"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "prompt is required"),
        (
            b"--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\na\r\n",
            "multipart/form-data; boundary=x",
            "cut short",
        ),
    ],
)
def test_bodies_that_are_wrong(body: bytes, kind: str, part: str, site: Site) -> None:
    response = site.client.post("/v1/generate", content=body, headers={"content-type": kind})
    assert part in expect_error(response, 422)


def test_a_form_gives_a_field_once(site: Site) -> None:
    files = [("prompt", (None, "a")), ("prompt", (None, "b"))]
    assert "'prompt' is given twice" in expect_error(site.client.post("/v1/generate", files=files), 422)


def test_the_body_may_have_the_size_allowed_and_no_byte_more(make_site: MakeSite) -> None:
    body = json.dumps({"prompt": "a", "aspect_ratio": "square"}).encode()
    headers = {"content-type": "application/json"}
    with make_site(max_body_bytes=len(body)) as site:
        assert site.client.post("/v1/generate", content=body, headers=headers).status_code == 200
        detail = expect_error(site.client.post("/v1/generate", content=body + b" ", headers=headers), 413)
        assert f"{len(body) + 1} bytes" in detail
        chunked = site.client.post("/v1/generate", content=iter([body, b" "]), headers=headers)
        assert f"at most {len(body)}" in expect_error(chunked, 413)
