"""Turn uploads, data URIs and URLs into decoded reference images, in the order they were given."""

import asyncio
import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from math import sqrt

import httpx
from PIL import Image

from openklein.api.fetch import Fetcher, read_url
from openklein.contract import MAX_REFERENCES
from openklein.engine.images import decode_image
from openklein.errors import InvalidImage, InvalidRequest
from openklein.settings import Settings

# A request that waits keeps no more than this; the model's own fitting, to half of it, then loses nothing visible.
KEPT_AREA_PX = 2 * 1024 * 1024


class ReferenceReader:
    """Read references within the limits in the settings; decoding runs in `threads`, never on the event loop."""

    def __init__(self, settings: Settings, fetcher: Fetcher, threads: Executor) -> None:
        self._settings = settings
        self._fetcher = fetcher
        self._threads = threads

    async def read(self, uploads: Sequence[bytes], uris: Sequence[str]) -> tuple[Image.Image, ...]:
        """Return upright RGB images of at most two megapixels, uploads first; raises InvalidRequest.

        Everything that came with the request is judged before any URL is fetched.
        """
        files = {f"images[{index}]": upload for index, upload in enumerate(uploads)}
        urls: dict[str, httpx.URL] = {}
        fields = [*files, *(f"image_uris[{index}]" for index in range(len(uris)))]
        for field, uri in zip(fields[len(uploads) :], uris, strict=True):
            with naming(field):
                if uri[:5].lower() == "data:":
                    files[field] = await asyncio.to_thread(read_data_uri, uri, self._settings.max_file_bytes)
                else:
                    urls[field] = read_url(uri)
        images = {field: await self._decode(field, body) for field, body in files.items()}
        images |= await self._fetch_all(urls)
        return tuple(images[field] for field in fields)

    async def _fetch_all(self, urls: Mapping[str, httpx.URL]) -> dict[str, Image.Image]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {field: group.create_task(self._fetch(field, url)) for field, url in urls.items()}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {field: task.result() for field, task in tasks.items()}

    async def _fetch(self, field: str, url: httpx.URL) -> Image.Image:
        with naming(field):
            body = await self._fetcher.fetch(url)
        return await self._decode(field, body)

    async def _decode(self, field: str, body: bytes) -> Image.Image:
        with naming(field):
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode_now, body)

    def _decode_now(self, body: bytes) -> Image.Image:
        check_bytes(len(body), self._settings.max_file_bytes)
        return shrink(decode_image(body, max_pixels=self._settings.max_image_pixels))


def check_count(uploads: Sequence[bytes], uris: Sequence[str]) -> None:
    """Refuse more references than a request may carry; files and URIs count together."""
    count = len(uploads) + len(uris)
    if count > MAX_REFERENCES:
        raise InvalidRequest(
            f"The request has {count} reference images ({len(uploads)} in images, {len(uris)} in image_uris); "
            f"at most {MAX_REFERENCES} are allowed."
        )


def shrink(image: Image.Image) -> Image.Image:
    """Bring an image down to the area that is kept; leave smaller ones as they are."""
    scale = sqrt(KEPT_AREA_PX / (image.width * image.height))
    if scale >= 1:
        return image
    return image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.LANCZOS)


def read_data_uri(uri: str, max_bytes: int) -> bytes:
    """Return the bytes in a base64 data URI of an image type; raises InvalidImage."""
    head, comma, payload = uri.partition(",")
    kind, *parameters = head[5:].lower().split(";")
    if not comma or not parameters or parameters[-1].strip() != "base64":
        raise InvalidImage("this is not a base64 data URI; it must look like data:image/png;base64,iVBORw0...")
    if not kind.strip().startswith("image/"):
        raise InvalidImage(f"the data URI holds {kind[:40]!r}, not an image; use image/png, image/jpeg or image/webp")
    check_bytes(len(payload) * 3 // 4 - payload[-2:].count("="), max_bytes)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidImage("the base64 text in the data URI is damaged or cut short") from error


def check_bytes(count: int, max_bytes: int) -> None:
    if count > max_bytes:
        raise InvalidImage(f"the file has {count} bytes; at most {max_bytes} are allowed")


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Say in errors which of the references is meant."""
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(f"{field}: {error}") from error
