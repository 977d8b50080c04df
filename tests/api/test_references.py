import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openklein.api.fetch import Fetcher
from openklein.api.references import KEPT_AREA_PX, ReferenceReader, check_count, read_data_uri
from openklein.errors import InvalidImage, InvalidRequest, ReferenceUnavailable
from openklein.settings import Settings
from tests.api.hosts import resolve
from tests.api.listener import Listener
from tests.api.pictures import data_uri, plain


def read(uploads: list[bytes], uris: list[str], **changes: Any) -> list[Image.Image]:
    settings = Settings(data_dir=Path("unused"), allowed_url_hosts=("images.test",), **changes)
    with ThreadPoolExecutor(2) as threads:
        reader = ReferenceReader(settings, Fetcher(settings, resolve), threads)
        return list(asyncio.run(reader.read(uploads, uris)))


def colors(images: list[Image.Image]) -> list[object]:
    return [image.getpixel((0, 0)) for image in images]


def test_uploads_come_first_then_uris_each_in_their_order(listener: Listener) -> None:
    url = listener.serve("/", plain("#0000ff"))
    images = read([plain("#ff0000"), plain("#00ff00")], [url, data_uri(plain("#ffffff"))])
    assert colors(images) == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    assert {image.mode for image in images} == {"RGB"}


def test_urls_are_fetched_together(listener: Listener) -> None:
    together = threading.Barrier(4)

    def wait_for_all(handler: BaseHTTPRequestHandler) -> None:
        together.wait(timeout=9)
        alone(handler)

    listener.serve("/", plain())
    alone = listener.answers["/"]
    url = listener.answer("/", wait_for_all)
    assert len(read([], [url] * 4)) == 4


def test_what_came_with_the_request_is_judged_before_anything_is_fetched(listener: Listener) -> None:
    url = listener.serve("/", plain())
    for uploads, uris, field in (
        ([b"no image"], [url], r"images\[0\]"),
        ([plain()], [url, "data:text/plain;base64,AAAA"], r"image_uris\[1\]"),
        ([], [url, data_uri(plain()[:-20])], r"image_uris\[1\]"),
        ([], [url, "file:///etc/passwd"], r"image_uris\[1\]"),
    ):
        with pytest.raises(InvalidRequest, match=f"^{field}: "):
            read(uploads, uris)
    assert listener.hits == []


def test_the_error_of_a_url_names_it(listener: Listener) -> None:
    url = listener.serve("/", b"a page, no picture")
    with pytest.raises(InvalidImage, match=r"^image_uris\[1\]: .* not a readable PNG, JPEG or WebP"):
        read([plain()], [data_uri(plain()), url])
    with pytest.raises(ReferenceUnavailable, match=r"^image_uris\[0\]: the address is not public"):
        read([], ["http://inside.test/"])


@pytest.mark.parametrize("source", ["upload", "data", "url"])
def test_the_limit_of_a_file_holds_wherever_it_comes_from(source: str, listener: Listener) -> None:
    content = plain()
    sources: dict[str, tuple[list[bytes], list[str]]] = {
        "upload": ([content], []),
        "data": ([], [data_uri(content)]),
        "url": ([], [listener.serve("/", content)]),
    }
    assert len(read(*sources[source], max_file_bytes=len(content))) == 1
    with pytest.raises(InvalidRequest, match=rf"\[0\]: .*{len(content) - 1} (bytes )?(are )?allowed"):
        read(*sources[source], max_file_bytes=len(content) - 1)


def test_the_limit_of_pixels_is_the_one_in_the_settings() -> None:
    with pytest.raises(InvalidImage, match=r"^images\[0\]: .*100x100"):
        read([plain(size=(100, 100))], [], max_image_pixels=9_999)


def test_large_images_are_not_kept_at_full_size() -> None:
    (image,) = read([plain(size=(3000, 2000))], [])
    assert 0.99 * KEPT_AREA_PX < image.width * image.height <= KEPT_AREA_PX
    assert abs(image.width / image.height - 1.5) < 0.01


@pytest.mark.parametrize(("uploads", "uris"), [(0, 0), (4, 0), (0, 4), (2, 2), (1, 3)])
def test_up_to_four_references_are_taken(uploads: int, uris: int) -> None:
    check_count([b""] * uploads, [""] * uris)


@pytest.mark.parametrize(("uploads", "uris"), [(5, 0), (0, 5), (4, 1), (1, 4), (50, 50)])
def test_more_than_four_are_refused_with_the_count(uploads: int, uris: int) -> None:
    with pytest.raises(InvalidRequest, match=f"has {uploads + uris} reference images .*at most 4 are allowed"):
        check_count([b""] * uploads, [""] * uris)


@pytest.mark.parametrize("head", ["data:image/png;base64", "DATA:IMAGE/PNG;BASE64", "data:image/webp;charset=x;base64"])
def test_data_uris_are_read(head: str) -> None:
    assert read_data_uri(f"{head},aGk=", 2) == b"hi"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("data:", "not a base64 data URI"),
        ("data:,", "not a base64 data URI"),
        ("data:image/png", "not a base64 data URI"),
        ("data:image/png,aGk=", "not a base64 data URI"),
        ("data:image/png;base64", "not a base64 data URI"),
        ("data:image/png;base64;x,aGk=", "not a base64 data URI"),
        ("data:;base64,aGk=", "holds '', not an image"),
        ("data:text/html;base64,aGk=", "holds 'text/html', not an image"),
        ("data:application/pdf;base64,aGk=", "holds 'application/pdf', not an image"),
        ("data:image/png;base64,aGk", "damaged or cut short"),
        ("data:image/png;base64,a", "damaged or cut short"),
        ("data:image/png;base64,aG k=", "damaged or cut short"),
        ("data:image/png;base64,!!!!", "damaged or cut short"),
        ("data:image/png;base64,aGk=aGk=", "damaged or cut short"),
        ("data:image/png;base64,é", "damaged or cut short"),
        ("data:image/png;base64,\ud800", "damaged or cut short"),
        ("data:image/png;base64,aGVsbG8h", "the file has 6 bytes; at most 5 are allowed"),
    ],
)
def test_data_uris_that_are_refused(uri: str, reason: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        read_data_uri(uri, 5)
    assert reason in str(caught.value)
