import asyncio
import struct
import zlib
from typing import Any

import httpx
import pytest

from openklein.api.app import create_app
from openklein.contract import MAX_SEED, RESOLUTIONS
from tests.api.conftest import MakeSite
from tests.api.hosts import resolve
from tests.api.pictures import data_uri, plain
from tests.api.sites import Site, expect_image


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


@pytest.mark.parametrize(("name", "size"), RESOLUTIONS.items())
def test_each_aspect_ratio_gives_its_resolution(name: str, size: tuple[int, int], site: Site) -> None:
    response = site.generate(aspect_ratio=name)
    image = expect_image(response)
    assert (image.size, image.mode, image.format) == (size, "RGB", "PNG")
    assert response.headers["content-type"] == "image/png"


def test_a_prompt_in_a_form_is_all_it_takes(site: Site) -> None:
    response = site.client.post("/v1/generate", files={"prompt": (None, "a red apple")})
    assert expect_image(response).size == RESOLUTIONS["landscape"]
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
    assert expect_image(as_form) == expect_image(as_json)
    assert as_form.content == as_json.content


def test_klein_mini_stands_in_and_says_so(site: Site) -> None:
    for asked in ("flux2-klein-4b", "klein-mini"):
        assert site.generate(model=asked).headers["x-klein-model"] == "klein-mini"


def test_a_strict_server_refuses_and_names_the_fix(make_site: MakeSite) -> None:
    with make_site(strict_model=True) as site:
        detail = site.refusal(422)
        assert detail.startswith("flux2-klein-4b is not installed on this server; ask for klein-mini")
        assert site.generate(model="klein-mini").status_code == 200


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
