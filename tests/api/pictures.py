"""Make image files for the tests to send."""

import base64
from io import BytesIO
from typing import Any

from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(color: str = "red", size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    """Make a file of one colour."""
    return encode(Image.new("RGB", size, color), kind)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
