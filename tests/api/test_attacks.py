"""Try on this server what happened to others; docs/security.md lists the cases, and what stops each."""

import re
import resource
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import event

from openklein.storage.keys import create_key, list_keys, revoke_key
from tests.api.conftest import MakeSite
from tests.api.listener import Listener
from tests.api.pictures import data_uri, encode, plain
from tests.api.sites import Site, expect_error

ROOT = Path(__file__).parent.parent.parent


def form(site: Site, *parts: tuple[str, Any]) -> httpx.Response:
    return site.client.post("/v1/generate", files=[("prompt", (None, "a")), *parts])


# Files and paths

PATH_FIELDS = (
    "perf_dump_path",
    "upscaling_model_path",
    "diffusers_kwargs",
    "save_disk_path",
    "output_path",
    "lora_weights",
    "response_format",
    "callback_url",
    "__class__",
)


@pytest.mark.parametrize("field", PATH_FIELDS)
def test_fields_that_named_files_elsewhere_do_not_exist(field: str, site: Site) -> None:
    assert f"There is no field '{field}'" in site.refusal(422, **{field: "/tmp/x"})
    assert f"There is no field '{field}'" in expect_error(form(site, (field, (None, "/tmp/x"))), 422)
    assert site.pipeline.requests == []


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/etc/passwd", "https://evil.test/model", "klein-mini/..", "user/repo"]
)
def test_a_model_is_chosen_from_a_list_and_never_loaded_by_name(model: str, site: Site) -> None:
    assert "it must be one of" in site.refusal(422, model=model)


@pytest.mark.parametrize("name", ["../../../x.png", "/tmp/x.png", "..\\x.png", "x\0.png", "%2e%2e%2fx.png", "~/x.png"])
def test_the_name_of_an_upload_leads_nowhere(name: str, make_site: MakeSite, tmp_path: Path) -> None:
    with make_site() as site:
        before = {path for path in tmp_path.rglob("*") if "openklein.db" not in path.name}
        assert form(site, ("images", (name, plain()))).status_code == 200
        assert {path for path in tmp_path.rglob("*") if "openklein.db" not in path.name} == before


@pytest.mark.parametrize(
    "path", ["/../settings.py", "/..%2fsettings.py", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/app.js/../x"]
)
def test_no_path_leads_out_of_the_page(path: str, site: Site) -> None:
    with httpx.Client(trust_env=False) as client:
        url = httpx.URL(f"http://127.0.0.1:{site.port}", raw_path=path.encode())
        expect_error(client.get(url), 404)


def test_answers_name_no_path_of_the_server(site: Site) -> None:
    site.pipeline.error = RuntimeError(f"in {ROOT}")
    try:
        answers = [site.generate()]
    finally:
        site.pipeline.error = None
    answers += [site.generate(), site.generate(prompt=""), site.client.get("/nowhere"), site.client.get("/v1/models")]
    for answer in answers:
        shown = str(answer.headers) + (answer.text if answer.status_code != 200 else "")
        assert str(ROOT) not in shown
        assert str(site.settings.data_dir) not in shown
        assert "Traceback" not in shown


# Addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "0.0.0.0", "[::]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "inside.test"]
)
def test_urls_do_not_reach_this_machine(host: str, site: Site, listener: Listener) -> None:
    listener.serve("/", plain())
    assert "not public" in site.refusal(422, image_uris=[f"http://{host}:{listener.port}/"])
    assert listener.hits == []


@pytest.mark.parametrize(
    "uri",
    [
        "http://images.test\\@127.0.0.1:{port}/",
        "http://images.test:80\\@127.0.0.1:{port}/",
        "http://images.test@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\.images.test/",
        "http://127.0.0.1:{port}#@images.test/",
        "http:///127.0.0.1:{port}/",
        "http:127.0.0.1:{port}",
        "file:///etc/passwd",
        "gopher://127.0.0.1:{port}/",
        "unix:///var/run/docker.sock",
    ],
)
def test_no_parser_is_talked_into_another_host(uri: str, site: Site, listener: Listener) -> None:
    listener.serve("/", plain())
    site.refusal(422, image_uris=[uri.format(port=listener.port)])
    assert listener.hits == []


def test_redirects_are_judged_and_carry_no_secret(site: Site, listener: Listener) -> None:
    inside = f"http://127.0.0.1:{listener.port}/secret"
    seen: list[dict[str, str]] = []

    def redirect(handler: Any) -> None:
        seen.append({name.lower(): value for name, value in handler.headers.items()})
        handler.send_response(302)
        handler.send_header("location", inside)
        handler.end_headers()

    site.refusal(422, image_uris=[listener.answer("/start", redirect)])
    assert [path for _, path in listener.hits] == ["/start"]
    assert not seen[0].keys() & {"authorization", "cookie", "referer", "x-request-id"}


# Bombs


def png_bomb() -> bytes:
    small = plain()
    return small[:16] + struct.pack(">II", 50_000, 50_000) + small[24:]


def jpeg_bomb() -> bytes:
    small = plain(kind="JPEG")
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", 65_500, 65_500) + small[at + 4 :]


def webp_bomb() -> bytes:
    stream = b"\x2f" + struct.pack("<I", 16_383 - 1 | (16_383 - 1) << 14) + bytes(50)
    chunk = b"VP8L" + struct.pack("<I", len(stream)) + stream + b"\0" * (len(stream) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def many_scans() -> bytes:
    """Make a progressive JPEG whose last scan is there 2,000 times: 500 KB that would decode for a minute."""
    image = encode(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True, quality=10)
    at = image.rindex(b"\xff\xda")
    return image[:at] + image[at:-2] * 2_000 + image[-2:]


@pytest.mark.parametrize("bomb", [png_bomb, jpeg_bomb, webp_bomb, many_scans])
def test_bombs_are_refused_before_they_go_off(bomb: Any, site: Site) -> None:
    content = bomb()
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    for response in (form(site, ("images", ("a.png", content))), site.generate(image_uris=[data_uri(content)])):
        assert re.search(r"(megapixels; at most|more than 64 scans|not a readable)", expect_error(response, 422))
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


JSON_BOMBS = {
    "nested": b'{"prompt": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep": b"[" * 200_000,
    "values": b'{"prompt": [' + b"{}," * 1_000_000 + b"{}]}",
    "members": b"{" + b",".join(b'"%d": 0' % n for n in range(200_000)) + b"}",
    "digits": b'{"seed": ' + b"9" * 1_000_000 + b"}",
}


@pytest.mark.parametrize("body", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_json_is_not_unfolded_without_end(body: bytes, site: Site) -> None:
    started = time.process_time()
    response = site.client.post("/v1/generate", content=body, headers={"content-type": "application/json"})
    assert "not valid JSON" in expect_error(response, 422)
    assert time.process_time() - started < 2


FORM_BOMBS = {
    "parts": b'--x\r\ncontent-disposition: form-data; name="images"\r\n\r\n\r\n' * 20_000,
    "header": b"--x\r\ncontent-disposition: form-data; name=" + b"a" * 2_000_000,
    "headers": b"--x\r\n" + b"x: y\r\n" * 100_000,
    "parameters": b"--x\r\ncontent-disposition: form-data" + b"; a=b" * 200_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("body", FORM_BOMBS.values(), ids=FORM_BOMBS)
def test_forms_are_not_unfolded_without_end(body: bytes, site: Site) -> None:
    started = time.process_time()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused = expect_error(site.client.post("/v1/generate", content=body, headers=headers), 422)
    assert re.search(r"not a valid multipart form|more than 100 parts", refused)
    assert time.process_time() - started < 2


# Keys


def test_every_path_of_the_api_takes_a_key(make_site: MakeSite) -> None:
    with make_site(public=True, host="0.0.0.0") as site:
        paths = site.client.get("/openapi.json").json()["paths"]
        calls = [(method, path) for path, its in paths.items() for method in its if path.startswith("/v1/")]
        assert ("post", "/v1/generate") in calls
        with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as stranger:
            for method, path in calls:
                expect_error(stranger.request(method, re.sub(r"\{\w+\}", "x", path)), 401)
            for path in ("/v1/", "/v1/nowhere", "/v1//generate", "/v1/../v1/models"):
                assert stranger.get(path).status_code in (401, 404)


def test_a_key_counts_in_its_header_alone(site: Site) -> None:
    """A page elsewhere can make a browser send cookies and forms, and URLs end up in logs."""
    with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as stranger:
        expect_error(stranger.get("/v1/models", params={"key": site.key, "api_key": site.key, "token": site.key}), 401)
        expect_error(stranger.get("/v1/models", headers={"cookie": f"authorization=Bearer {site.key}"}), 401)
        expect_error(stranger.get("/v1/models", headers={"x-api-key": site.key}), 401)
        expect_error(stranger.get("/v1/models", headers={"authorization": f"Basic {site.key}"}), 401)
    assert "set-cookie" not in site.client.get("/v1/models").headers


def test_unknown_and_revoked_keys_cost_the_same_work(make_site: MakeSite) -> None:
    with make_site() as site:
        revoked = create_key(site.database, "revoked")
        revoke_key(site.database, revoked.id)
        statements: list[str] = []

        def note(*given: Any) -> None:
            if "api_keys" in given[2]:  # what runs in the background does not ask for keys
                statements.append(given[2])

        event.listen(site.database._engine, "before_cursor_execute", note)
        work = {}
        for secret in ("klein_unknown", revoked.secret, "x" * 5000, "é"):
            statements.clear()
            with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as stranger:
                headers = {b"authorization": b"Bearer " + secret.encode()}
                refused = expect_error(stranger.get("/v1/models", headers=headers), 401)
            work[secret] = (refused, tuple(statements))
        assert len(set(work.values())) == 1
        assert statements


def test_the_database_cannot_give_a_key_away(make_site: MakeSite, tmp_path: Path) -> None:
    with make_site() as site:
        assert site.client.get("/v1/models").status_code == 200
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("openklein.db*"))
        assert list_keys(site.database)[0].id.encode() in stored
        assert site.key.encode() not in stored
        assert site.key.removeprefix("klein_").encode() not in stored


# HTTP


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: -5",
        "Content-Length: +5",
        "Content-Length: 0x5",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length : 5",
        "X: y\r\nTransfer-Encoding : chunked",
    ],
)
def test_a_body_whose_end_is_ambiguous_is_refused(framing: str, site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port), timeout=10) as connection:
        head = f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\n{framing}\r\nConnection: close\r\n\r\nhello"
        connection.sendall(head.encode())
        answer = connection.recv(65_536)
    assert answer.split(b" ")[1] in (b"400", b"501")
