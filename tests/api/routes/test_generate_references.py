import json
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.api.hosts import LOOPBACK_HOSTS, PRIVATE_HOSTS
from tests.api.listener import Listener
from tests.api.pictures import data_uri, encode, plain
from tests.api.sites import Site, expect_error, expect_image


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
    expect_image(response)
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
