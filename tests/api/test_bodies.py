import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from openklein.api.bodies import GenerateCall, read_call
from openklein.errors import Cancelled, InvalidRequest


def read(content: bytes, content_type: str | None) -> GenerateCall:
    messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]
    return read_messages(messages, content_type)


def read_messages(messages: list[Message], content_type: str | None) -> GenerateCall:
    async def receive() -> Message:
        return messages.pop(0)

    headers = [] if content_type is None else [(b"content-type", content_type.encode())]
    return asyncio.run(read_call(Request({"type": "http", "headers": headers}, receive)))


def read_form(data: dict[str, Any], files: list[tuple[str, Any]]) -> GenerateCall:
    """Read what httpx sends: a file given as ("", bytes) is one without a file name."""
    sent = httpx.Request("POST", "http://test", data=data, files=files)
    return read(sent.read(), sent.headers["content-type"])


IMAGE = ("images", ("a.png", b"one", "image/png"))


def test_json_and_form_say_the_same() -> None:
    fields = {"prompt": "é", "model": "klein-mini", "aspect_ratio": "wide", "image_uris": ["http://a/"]}
    as_json = read(json.dumps({**fields, "seed": 7}).encode(), "application/json")
    as_form = read_form({**fields, "image_uris": '["http://a/"]', "seed": "7"}, [("images", ("", b""))])
    assert as_json == as_form
    assert as_json.body.model_dump() == {**fields, "seed": 7}


def test_uploads_keep_their_order_and_need_no_name() -> None:
    call = read_form({"prompt": "a"}, [IMAGE, ("images", ("", b"two")), ("images", ("a.png", b"three"))])
    assert call.uploads == (b"one", b"two", b"three")


def test_an_empty_file_counts_only_where_it_has_a_name() -> None:
    assert read_form({"prompt": "a"}, [("images", ("", b""))]).uploads == ()
    assert read_form({"prompt": "a"}, [("images", ("empty.png", b""))]).uploads == (b"",)
    browser = b'--x\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n\r\n'
    prompt = b"--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\na\r\n--x--\r\n"
    assert read(browser + prompt, "multipart/form-data; boundary=x").uploads == ()


def test_image_uris_may_be_megabytes_long() -> None:
    uri = "data:image/png;base64," + "A" * 8_000_000
    assert read_form({"prompt": "a", "image_uris": json.dumps([uri])}, [IMAGE]).body.image_uris == [uri]


def test_json_may_say_that_it_has_no_files() -> None:
    assert read(b'{"prompt": "a", "images": []}', "application/json; charset=utf-8").uploads == ()


@pytest.mark.parametrize("seed", ["", " 7", "+7", "-1", "7.0", "0x7", "seven", "٧", "9223372036854775808", "9" * 30])
def test_seeds_in_forms_are_digits(seed: str) -> None:
    with pytest.raises(InvalidRequest, match="seed cannot be"):
        read_form({"prompt": "a", "seed": seed}, [IMAGE])


@pytest.mark.parametrize("name", ["prompt", "model", "aspect_ratio", "seed", "image_uris"])
def test_fields_of_a_form_come_once(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' is given twice"):
        read_form({"prompt": "a", name: ["1", "1"]}, [IMAGE])


@pytest.mark.parametrize("name", ["prompt", "image_uris", "mask", "images[]"])
def test_only_images_are_files(name: str) -> None:
    with pytest.raises(InvalidRequest, match="only images can be files"):
        read_form({}, [IMAGE, (name, ("a.png", b"x"))])


def test_json_carries_no_files() -> None:
    with pytest.raises(InvalidRequest, match=r"images cannot be \['http://a/'\]; it must be files in a multipart form"):
        read(b'{"prompt": "a", "images": ["http://a/"]}', "application/json")


def test_text_that_is_not_utf8_is_not_guessed() -> None:
    body = b"--x\r\nContent-Disposition: form-data; name=prompt\r\n\r\n\xe9\r\n--x--\r\n"
    with pytest.raises(InvalidRequest, match="'prompt' is not UTF-8 text"):
        read(body, "multipart/form-data; boundary=x")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"prompt=a", b'{"prompt": "a", "prompt": "b"}', b"[" * 100_000, b"\xff\xff"]
)
def test_bodies_that_are_not_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        read(body, "application/json")


@pytest.mark.parametrize("body", [b"[]", b'"prompt"', b"1", b"null"])
def test_bodies_that_are_not_objects(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not an object"):
        read(body, "application/json")


@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "image/png", "a" * 500])
def test_other_content_types_are_refused(kind: str | None) -> None:
    with pytest.raises(InvalidRequest, match=r"Content-Type cannot be '.{0,60}'; send multipart/form-data or "):
        read(b'{"prompt": "a"}', kind)


def test_a_client_that_leaves_while_sending_is_no_fault() -> None:
    half: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    with pytest.raises(Cancelled):
        read_messages(half, "application/json")
