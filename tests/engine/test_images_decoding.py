import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFile, ImageOps

from openklein.engine import images
from openklein.engine.images import decode_image
from openklein.errors import InvalidImage
from tests.engine.pictures import gradient, largest_difference, saved

ORIENTATION = 0x0112


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Write a PNG chunk by chunk, whatever they hold."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (*chunks, (b"IEND", b""))
    )


def png_header(width: int, height: int, bits: int = 8) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)


class TestFormats:
    @pytest.mark.parametrize(
        ("file_format", "options", "tolerance"),
        [("PNG", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 100, "subsampling": 0}, 4)],
    )
    def test_pixels_survive(self, file_format: str, options: dict[str, Any], tolerance: int) -> None:
        decoded = decode_image(saved(gradient(), file_format, **options))
        assert largest_difference(decoded, gradient()) <= tolerance

    @pytest.mark.parametrize("file_format", ["GIF", "BMP", "TIFF", "PPM", "ICO", "TGA", "PDF", "EPS"])
    def test_other_formats_are_refused(self, file_format: str) -> None:
        with pytest.raises(InvalidImage, match="PNG, JPEG or WebP"):
            decode_image(saved(gradient(), file_format))

    @pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"])
    def test_what_is_no_image_is_refused(self, data: bytes) -> None:
        with pytest.raises(InvalidImage, match=rf"\b{len(data)} bytes"):
            decode_image(data)

    @pytest.mark.parametrize("file_format", images.FORMATS)
    def test_cut_short_anywhere_is_refused(self, file_format: str) -> None:
        data = saved(gradient(), file_format)
        for length in itertools.chain(range(1, len(data), 29), range(len(data) - 16, len(data))):
            with pytest.raises(InvalidImage):
                decode_image(data[:length])

    @pytest.mark.filterwarnings("ignore:.*EXIF", "ignore:.*[Tt]ag")
    def test_damaged_files_raise_nothing_but_invalid_image(self) -> None:
        chance = np.random.default_rng(0)
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        originals = [saved(gradient(), file_format, exif=exif) for file_format in images.FORMATS]
        originals.append(saved(gradient().quantize(16), "PNG", transparency=3))
        refused = 0
        for data in originals * 60:
            damaged = bytearray(data)
            for _ in range(3):
                damaged[chance.integers(len(damaged))] = chance.integers(256)
            try:
                decode_image(bytes(damaged))
            except InvalidImage:
                refused += 1
        assert refused > 60


class TestSizes:
    @pytest.mark.parametrize("size", [(10_000, 5_001), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
    def test_bombs_are_refused_without_decoding(self, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        decoded: list[ImageFile.ImageFile] = []
        monkeypatch.setattr(ImageFile.ImageFile, "load", decoded.append)
        with pytest.raises(InvalidImage, match=f"{size[0]}x{size[1]} = .* megapixels; at most 50 "):
            decode_image(png_of(png_header(*size), (b"IDAT", zlib.compress(bytes(64)))))
        assert decoded == []

    def test_a_bomb_in_the_metadata_is_refused(self) -> None:
        text = b"comment\0\0" + zlib.compress(bytes(200_000_000), 9)
        rows = zlib.compress(bytes(64 * (1 + 3 * 64)))
        with pytest.raises(InvalidImage):
            decode_image(png_of(png_header(64, 64), (b"zTXt", text), (b"IDAT", rows)))

    def test_the_limit_is_the_callers_and_not_pillows(self) -> None:
        data = saved(Image.new("1", (14_000, 13_000)), "PNG")  # more than Pillow's own limit of 179 megapixels
        with pytest.raises(InvalidImage, match=r"= 182\.0 megapixels; at most 50 "):
            decode_image(data)
        with pytest.raises(InvalidImage, match=r"= 182\.0 megapixels; at most 181\.5 "):
            decode_image(data, max_pixels=181_500_000)
        with pytest.raises(InvalidImage, match="damaged"):  # above Pillow's limit, and begun
            decode_image(data[:-100], max_pixels=182_000_000)

    @pytest.mark.parametrize("size", [(63, 80), (80, 63), (1, 1)])
    def test_small_sides_are_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(InvalidImage, match=f"{size[0]}x{size[1]} pixels; each side must be at least 64"):
            decode_image(saved(gradient().resize(size), "PNG"))

    @pytest.mark.parametrize("size", [(513, 64), (64, 513), (801, 100)])
    def test_thin_images_are_refused(self, size: tuple[int, int]) -> None:
        with pytest.raises(InvalidImage, match=f"{size[0]}x{size[1]} pixels; its longer side may be at most 8 times"):
            decode_image(saved(gradient().resize(size), "PNG"))

    @pytest.mark.parametrize("size", [(64, 64), (512, 64), (64, 512)])
    def test_the_limits_themselves_are_accepted(self, size: tuple[int, int]) -> None:
        assert decode_image(saved(gradient().resize(size), "PNG"), max_pixels=size[0] * size[1]).size == size


class TestUprightRgb:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("file_format", images.FORMATS)
    def test_exif_orientation_is_applied(self, file_format: str, orientation: int) -> None:
        undo: dict[int, Callable[[Image.Image], Image.Image]] = {
            1: lambda image: image,
            2: ImageOps.mirror,
            3: lambda image: image.rotate(180),
            4: ImageOps.flip,
            5: lambda image: ImageOps.flip(image.rotate(90, expand=True)),
            6: lambda image: image.rotate(90, expand=True),
            7: lambda image: ImageOps.flip(image.rotate(-90, expand=True)),
            8: lambda image: image.rotate(-90, expand=True),
        }
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options = {"quality": 100, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
        decoded = decode_image(saved(undo[orientation](gradient()), file_format, exif=exif, **options))
        assert largest_difference(decoded, gradient()) <= 4

    @pytest.mark.parametrize(("mode", "file_format"), [("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP")])
    def test_alpha_goes_over_white(self, mode: str, file_format: str) -> None:
        image = Image.new("RGB", (64, 64), "black").convert(mode)
        image.putalpha(Image.new("L", (64, 64), 51))
        options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
        assert decode_image(saved(image, file_format, **options)).getpixel((9, 9)) == (204, 204, 204)

    def test_palette_transparency_goes_over_white(self) -> None:
        image = Image.new("P", (64, 64), 1)
        image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
        image.paste(2, (0, 0, 64, 32))
        decoded = decode_image(saved(image, "PNG", transparency=bytes([255, 0, 255])))
        assert decoded.getpixel((5, 5)) == (0, 0, 200)
        assert decoded.getpixel((5, 60)) == (255, 255, 255)

    @pytest.mark.parametrize(("mode", "colour"), [("RGB", (10, 20, 30)), ("L", 10), ("1", 0)])
    def test_a_transparent_colour_goes_over_white(self, mode: str, colour: Any) -> None:
        image = Image.new(mode, (64, 64), colour)
        assert decode_image(saved(image, "PNG", transparency=colour)).getpixel((5, 5)) == (255, 255, 255)

    def test_sixteen_bit_grey_is_scaled(self) -> None:
        levels = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
        decoded = np.asarray(decode_image(saved(Image.fromarray(levels), "PNG")))
        assert np.array_equal(decoded[..., 0], np.rint(levels / 257))

    def test_sixteen_bit_colour_is_scaled(self) -> None:
        pixel = struct.pack(">HHH", 65_535, 32_768, 0)
        rows = zlib.compress((b"\0" + pixel * 64) * 64)
        data = png_of(png_header(64, 64, bits=16), (b"IDAT", rows))
        assert decode_image(data).getpixel((9, 9)) == (255, 128, 0)

    def test_cmyk_is_converted(self) -> None:
        image = Image.new("CMYK", (64, 64), (255, 0, 0, 0))  # Pillow writes it inverted, with Adobe's marker
        red, green, blue = np.asarray(decode_image(saved(image, "JPEG", quality=100)))[9, 9]
        assert red < 20 and green > 160 and blue > 200

    @pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
    def test_the_first_frame_of_an_animation_is_used(self, file_format: str) -> None:
        frames = [gradient(), ImageChops.invert(gradient())]
        data = saved(frames[0], file_format, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert largest_difference(decode_image(data), frames[0]) == 0

    def test_the_first_picture_of_a_stereo_pair_is_used(self) -> None:
        data = saved(gradient(), "MPO", save_all=True, append_images=[ImageChops.invert(gradient())], quality=95)
        assert largest_difference(decode_image(data), gradient()) < 40
