import asyncio
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from openklein.api.app import create_app
from openklein.contract import MAX_SEED, RESOLUTIONS
from tests.api.conftest import MakeSite
from tests.api.hosts import LOOPBACK_HOSTS, PRIVATE_HOSTS, resolve
from tests.api.listener import Listener
from tests.api.pictures import data_uri, encode, plain
from tests.api.sites import Site, expect_error
from tests.waiting import wait_until


def opened(response: httpx.Response) -> Image.Image:
    assert response.status_code == 200, response.text[:500]
    image = Image.open(BytesIO(response.content))
    image.load()
    return image


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """Take a PNG apart, checking every checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        at += 12 + length
    return found


# What a good request answers


@pytest.mark.parametrize(("name", "size"), RESOLUTIONS.items())
def test_each_aspect_ratio_gives_its_resolution(name: str, size: tuple[int, int], site: Site) -> None:
    response = site.generate(aspect_ratio=name)
    image = opened(response)
    assert (image.size, image.mode, image.format) == (size, "RGB", "PNG")
    assert response.headers["content-type"] == "image/png"


def test_a_prompt_in_a_form_is_all_it_takes(site: Site) -> None:
    response = site.client.post("/v1/generate", files={"prompt": (None, "a red apple")})
    assert opened(response).size == RESOLUTIONS["landscape"]
    assert site.pipeline.requests[0].prompt == "a red apple"


def test_the_bytes_are_a_strict_png_with_model_and_seed_alone(site: Site) -> None:
    parts = chunks(site.generate(seed=11).content)
    assert [kind for kind, _ in parts] == [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", parts[0][1]) == (1024, 1024, 8, 2, 0, 0, 0)
    assert [body for kind, body in parts if kind == b"tEXt"] == [b"model\0klein-mini", b"seed\x0011"]


def test_the_headers_say_how_it_was_made(site: Site) -> None:
    response = site.generate(seed=7, image_uris=[data_uri(plain())])
    assert len(response.headers["x-request-id"]) == 24
    assert response.headers["x-klein-model"] == "klein-mini"
    assert response.headers["x-klein-seed"] == "7"
    assert response.headers["x-klein-workflow"] == "image-to-image"
    stages = dict(stage.split(";dur=") for stage in response.headers["server-timing"].split(", "))
    assert set(stages) == {"queue", "fetch", "text", "references", "denoise", "decode", "png"}
    assert all(float(duration) >= 0 for duration in stages.values())


def test_the_same_seed_gives_the_same_bytes(site: Site) -> None:
    first, second, other = (site.generate(seed=seed).content for seed in (MAX_SEED, MAX_SEED, 0))
    assert first == second
    assert first != other


def test_the_seed_of_a_random_picture_makes_it_again(site: Site) -> None:
    random = site.generate()
    assert site.generate(seed=int(random.headers["x-klein-seed"])).content == random.content
    assert site.generate().headers["x-klein-seed"] != random.headers["x-klein-seed"]


def test_json_and_form_make_the_same_picture(site: Site) -> None:
    form = {"prompt": (None, "é"), "seed": (None, "3"), "aspect_ratio": (None, "square"), "model": (None, "klein-mini")}
    as_form = site.client.post("/v1/generate", files=form)
    as_json = site.generate(prompt="é", seed=3, model="klein-mini")
    assert opened(as_form) == opened(as_json)
    assert as_form.content == as_json.content


# References


@pytest.mark.parametrize(
    ("uploads", "uris", "workflow"),
    [
        (0, 0, "text-to-image"),
        (1, 0, "image-to-image"),
        (0, 1, "image-to-image"),
        (1, 1, "multi-reference"),
        (2, 2, "multi-reference"),
        (4, 0, "multi-reference"),
        (0, 4, "multi-reference"),
    ],
)
def test_the_number_of_references_selects_the_workflow(uploads: int, uris: int, workflow: str, site: Site) -> None:
    shades = [f"#{16 * n:02x}0000" for n in range(uploads + uris)]
    files: list[tuple[str, Any]] = [("prompt", (None, "a")), ("aspect_ratio", (None, "square"))]
    files += [("images", ("../../etc/passwd", plain(shade))) for shade in shades[:uploads]]
    files.append(("image_uris", (None, json.dumps([data_uri(plain(shade)) for shade in shades[uploads:]]))))
    response = site.client.post("/v1/generate", files=files)
    opened(response)
    assert response.headers["x-klein-workflow"] == workflow
    (request,) = site.pipeline.requests
    assert [image.getpixel((0, 0)) for image in request.references] == [(16 * n, 0, 0) for n in range(uploads + uris)]


@pytest.mark.parametrize(("uploads", "uris"), [(5, 0), (4, 1), (0, 5), (1, 4)])
def test_more_than_four_are_refused_before_any_is_fetched(
    uploads: int, uris: int, site: Site, listener: Listener
) -> None:
    url = listener.serve("/", plain())
    files: list[tuple[str, Any]] = [("prompt", (None, "a")), ("image_uris", (None, json.dumps([url] * uris)))]
    files += [("images", ("a.png", plain()))] * uploads
    response = site.client.post("/v1/generate", files=files)
    assert "has 5 reference images" in expect_error(response, 422)
    assert listener.hits == []


def test_urls_are_fetched_and_used(site: Site, listener: Listener) -> None:
    url = listener.serve("/a.webp", encode(Image.new("RGB", (80, 70), "#00ff00"), "WEBP", lossless=True))
    assert site.generate(image_uris=[url]).status_code == 200
    (reference,) = site.pipeline.requests[0].references
    assert reference.size == (80, 70)
    assert reference.getpixel((0, 0)) == (0, 255, 0)
    assert listener.hits == [(f"images.test:{listener.port}", "/a.webp")]


def test_a_file_input_left_empty_is_no_reference(site: Site) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x\r\nContent-Disposition: form-data; '
        b'name="images"; filename=""\r\nContent-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n'
    )
    response = site.client.post(
        "/v1/generate", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert response.headers["x-klein-workflow"] == "text-to-image"


def test_data_uris_of_megabytes_fit_into_a_form_field(site: Site) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8))
    uri = data_uri(encode(noise, compress_level=0))
    assert len(uri) > 8_000_000
    files = {"prompt": (None, "a"), "aspect_ratio": (None, "square"), "image_uris": (None, json.dumps([uri]))}
    response = site.client.post("/v1/generate", files=files)
    assert response.headers["x-klein-workflow"] == "image-to-image"


def exif_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    return encode(Image.new("RGB", (64, 128), "blue"), "JPEG", exif=exif)


def sixteen_bit() -> bytes:
    return encode(Image.fromarray(np.full((64, 64), 0x8000, np.uint16)))


def palette() -> bytes:
    return encode(Image.new("RGB", (64, 64), "#0000ff").convert("P"))


def animation() -> bytes:
    frames = [Image.new("RGB", (64, 64), color) for color in ("#0000ff", "#00ff00")]
    return encode(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)


@pytest.mark.parametrize(
    ("content", "size", "color"),
    [
        (exif_turned(), (128, 64), (0, 0, 254)),
        (encode(Image.new("RGBA", (64, 64), (255, 0, 0, 0))), (64, 64), (255, 255, 255)),
        (encode(Image.new("CMYK", (64, 64), (0, 0, 0, 0)), "JPEG"), (64, 64), (255, 255, 255)),
        (sixteen_bit(), (64, 64), (128, 128, 128)),
        (palette(), (64, 64), (0, 0, 255)),
        (animation(), (64, 64), (0, 0, 255)),
    ],
    ids=["exif", "alpha", "cmyk", "16-bit", "palette", "animation"],
)
def test_unusual_images_arrive_upright_and_rgb(
    content: bytes, size: tuple[int, int], color: tuple[int, ...], site: Site
) -> None:
    assert site.generate(image_uris=[data_uri(content)]).status_code == 200
    (reference,) = site.pipeline.requests[0].references
    assert (reference.size, reference.mode) == (size, "RGB")
    assert reference.getpixel((0, 0)) == color


# 401


@pytest.mark.parametrize(
    "value", [None, "", "Bearer", "klein_abc", "Basic YTpi", "Bearer klein_abc", "Bearer a b", "Token x"]
)
def test_other_keys_are_refused_before_the_body_is_judged(value: str | None, site: Site) -> None:
    headers = {} if value is None else {"authorization": value}
    url = f"http://127.0.0.1:{site.port}/v1/generate"
    response = httpx.post(url, content=b"not even a body", headers=headers, trust_env=False)
    assert "API key" in expect_error(response, 401) or "Authorization" in expect_error(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"


# 422


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


def bomb() -> bytes:
    """Make a PNG of a few hundred bytes that claims 50,000 x 50,000 pixels."""
    small = encode(Image.new("1", (64, 64)))
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am text",
        plain()[:-30],
        plain(kind="JPEG", size=(200, 200))[:500],
        plain()[:40],
        encode(Image.new("RGB", (64, 64)), "BMP"),
        encode(Image.new("RGB", (64, 64)), "GIF"),
        b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
        plain(size=(63, 64)),
        plain(size=(64, 63)),
        plain(size=(64, 513)),
        plain(size=(600, 70)),
        bomb(),
        encode(Image.new("1", (20_000, 20_000))),
    ],
    ids=[
        "empty",
        "text",
        "cut",
        "cut-jpeg",
        "stub",
        "bmp",
        "gif",
        "svg",
        "narrow",
        "low",
        "tall",
        "thin",
        "bomb",
        "huge",
    ],
)
def test_files_that_are_refused_within_a_second(content: bytes, site: Site) -> None:
    files: list[tuple[str, Any]] = [("prompt", (None, "a")), ("images", ("photo.png", content))]
    started = time.process_time()
    assert expect_error(site.client.post("/v1/generate", files=files), 422).startswith("images[0]: ")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("host", [*LOOPBACK_HOSTS, *PRIVATE_HOSTS[:8]])
def test_urls_that_lead_inside_are_refused_and_nothing_is_reached(host: str, site: Site, listener: Listener) -> None:
    listener.serve("/", plain())
    detail = site.refusal(422, image_uris=[f"http://{host}:{listener.port}/"])
    assert detail in (
        "image_uris[0]: the address is not public, or its host is unknown",
        "image_uris[0]: this is not a valid URL",
    )
    assert listener.hits == []


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


# The model that answers


def test_klein_mini_stands_in_and_says_so(site: Site) -> None:
    for asked in ("flux2-klein-4b", "klein-mini"):
        assert site.generate(model=asked).headers["x-klein-model"] == "klein-mini"


def test_a_strict_server_refuses_and_names_the_fix(make_site: MakeSite) -> None:
    with make_site(strict_model=True) as site:
        detail = site.refusal(422)
        assert detail.startswith("flux2-klein-4b is not installed on this server; ask for klein-mini")
        assert site.generate(model="klein-mini").status_code == 200


# 413


def test_the_body_may_have_the_size_allowed_and_no_byte_more(make_site: MakeSite) -> None:
    body = json.dumps({"prompt": "a", "aspect_ratio": "square"}).encode()
    headers = {"content-type": "application/json"}
    with make_site(max_body_bytes=len(body)) as site:
        assert site.client.post("/v1/generate", content=body, headers=headers).status_code == 200
        detail = expect_error(site.client.post("/v1/generate", content=body + b" ", headers=headers), 413)
        assert f"{len(body) + 1} bytes" in detail
        chunked = site.client.post("/v1/generate", content=iter([body, b" "]), headers=headers)
        assert f"at most {len(body)}" in expect_error(chunked, 413)


# 500


def test_faults_of_ours_are_opaque_and_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.pipeline.error = RuntimeError("secret internals")
    try:
        response = site.generate(prompt="a secret prompt")
    finally:
        site.pipeline.error = None
    request_id = response.headers["x-request-id"]
    assert expect_error(response, 500) == f"Unexpected server error; its request id is {request_id}."
    (record,) = [record for record in caplog.records if record.exc_info]
    assert request_id in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "secret internals"
    assert "a secret prompt" not in caplog.text
    assert site.generate().status_code == 200


# 503


def test_a_full_queue_refuses(make_site: MakeSite) -> None:
    with make_site(queue_size=1) as site, ThreadPoolExecutor(2) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = threads.submit(site.generate)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        assert "queue is full" in site.refusal(503)
        site.pipeline.gate.set()
        assert running.result().status_code == waiting.result().status_code == 200


def test_a_server_without_a_model_refuses_after_judging(make_site: MakeSite) -> None:
    with make_site(is_ready=False) as site:
        assert "starting or stopping" in site.refusal(503)
        assert "prompt is required" in expect_error(site.client.post("/v1/generate", json={}), 422)
        site.worker.error = RuntimeError("no weights")
        assert "could not be loaded" in site.refusal(503)


def test_a_server_that_stops_fails_what_waits(make_site: MakeSite) -> None:
    with make_site() as site, ThreadPoolExecutor(3) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = threads.submit(site.generate)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        closing = threads.submit(site.worker.close, 10)
        assert "shutting down" in expect_error(waiting.result(), 503)
        assert "starting or stopping" in site.refusal(503)
        site.pipeline.gate.set()
        assert running.result().status_code == 200
        closing.result()


# 504


def test_the_deadline_is_answered_in_the_middle_of_a_step(make_site: MakeSite) -> None:
    with make_site(request_timeout_s=1) as site:
        with site.pipeline.held():
            assert site.refusal(504) == "The request took longer than the 1 s allowed."
            assert site.pipeline.is_inside.is_set()
            assert site.pipeline.steps == 0
        wait_until(lambda: site.pipeline.ended == 1)
        assert site.pipeline.steps == 1, "the work went on after the deadline"


def test_the_deadline_covers_the_queue(make_site: MakeSite) -> None:
    with make_site(request_timeout_s=1) as site, ThreadPoolExecutor(2) as threads, site.pipeline.held():
        answers = [threads.submit(site.generate) for _ in range(2)]
        assert [answer.result().status_code for answer in answers] == [504, 504]
        assert len(site.pipeline.requests) == 1


def test_the_deadline_covers_fetching(make_site: MakeSite, listener: Listener) -> None:
    url = listener.answer("/", lambda _: time.sleep(1.5))
    with make_site(request_timeout_s=0.3) as site:
        site.refusal(504, image_uris=[url])
        assert site.pipeline.requests == []


# Clients that leave, and others


def test_a_client_that_leaves_withdraws_its_request(site: Site) -> None:
    request = (
        f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.key}\r\n"
        'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'
    ).encode()
    with site.pipeline.held():
        running = socket.create_connection(("127.0.0.1", site.port))
        running.sendall(request)
        wait_until(site.pipeline.is_inside.is_set)
        waiting = socket.create_connection(("127.0.0.1", site.port))
        waiting.sendall(request)
        wait_until(lambda: site.worker.scheduler.depth == 1)
        waiting.close()
        wait_until(lambda: site.worker.scheduler.depth == 0)
        running.close()
        time.sleep(0.2)  # until the server has seen it
    wait_until(lambda: site.pipeline.ended == 1)
    assert site.pipeline.steps == 1, "the work went on for a client that had left"


def test_the_server_answers_others_while_it_makes_a_picture(site: Site) -> None:
    with ThreadPoolExecutor(1) as threads, site.pipeline.held():
        running = threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        for path in ("/health/live", "/health/ready", "/"):
            assert site.client.get(path, timeout=10).status_code == 200  # the model is held for longer
        assert "prompt cannot be" in site.refusal(422, prompt="")
        site.pipeline.gate.set()
        assert running.result().status_code == 200


def test_the_event_loop_is_free_while_a_large_image_is_decoded(site: Site) -> None:
    large = encode(Image.linear_gradient("L").resize((6000, 6000)).convert("RGB"), "JPEG")
    delays: list[float] = []
    done = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{site.port}", trust_env=False) as client:
            while not done.is_set():
                started = time.monotonic()
                client.get("/health/live")
                delays.append(time.monotonic() - started)

    with ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        started = time.monotonic()
        response = site.client.post(
            "/v1/generate",
            files={"prompt": (None, "a"), "aspect_ratio": (None, "square"), "images": ("a.jpg", large)},
        )
        took_s = time.monotonic() - started
        done.set()
        watching.result()
    assert response.status_code == 200
    assert max(delays) < took_s / 4


def test_each_key_gets_its_turn(make_site: MakeSite) -> None:
    with make_site(api_key="fixed") as site, ThreadPoolExecutor(5) as threads, site.pipeline.held():
        threads.submit(site.generate)
        wait_until(site.pipeline.is_inside.is_set)
        for n in range(3):
            threads.submit(site.generate, prompt=f"eager {n}")
            wait_until(lambda n=n: site.worker.scheduler.depth == n + 1)  # type: ignore[misc]
        modest = threads.submit(
            site.client.post, "/v1/generate", json={"prompt": "modest"}, headers={"authorization": "Bearer fixed"}
        )
        wait_until(lambda: site.worker.scheduler.depth == 4)
        site.pipeline.gate.set()
        assert modest.result().status_code == 200
    assert [request.prompt for request in site.pipeline.requests][1:3] == ["eager 0", "modest"]


def test_two_apps_live_in_one_process_without_a_socket(site: Site, make_site: MakeSite) -> None:
    async def post(app: Any, key: str) -> int:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            headers = {"authorization": f"Bearer {key}"}
            return (await client.post("/v1/generate", json={"prompt": "a"}, headers=headers)).status_code

    with make_site() as other:
        again = create_app(site.settings, site.database, site.worker, resolve=resolve)
        assert asyncio.run(post(again, site.key)) == 200
        assert asyncio.run(post(other.app, other.key)) == 200
        assert asyncio.run(post(other.app, site.key)) == 401


def test_the_log_quotes_nothing_that_was_sent(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="openklein")
    caplog.set_level("DEBUG", logger="uvicorn")
    response = site.generate(prompt="a secret prompt", image_uris=[data_uri(plain())], seed=1)
    site.refusal(422, prompt="a secret prompt", model="secret model")
    site.client.get("/secret/path?key=secret")
    wait_until(lambda: caplog.text.count("openklein.api.middleware") >= 3)
    # uvicorn's access log is off; pytest listens to it all the same.
    text = "\n".join(record.getMessage() for record in caplog.records if record.name != "uvicorn.access")
    assert response.headers["x-request-id"] in text
    assert "secret" not in text
    assert site.key not in text
