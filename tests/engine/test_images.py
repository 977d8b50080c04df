import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from openklein.contract import MAX_REFERENCE_ASPECT, MIN_REFERENCE_SIDE_PX, RESOLUTIONS
from openklein.engine.images import crop_reference, encode_png, extend, nearest_size, to_image, to_tensor, trim
from tests.engine.pictures import gradient, largest_difference


class TestEncodePng:
    def test_pillow_reads_back_pixels_and_metadata(self) -> None:
        with Image.open(BytesIO(encode_png(gradient(), {"model": "klein-mini", "seed": "7"}))) as read:
            assert (read.format, read.mode) == ("PNG", "RGB")
            assert read.info == {"model": "klein-mini", "seed": "7"}
            assert largest_difference(read.copy(), gradient()) == 0

    @pytest.mark.parametrize("size", [(1, 1), (1, 50), (257, 3), (1344, 768)])
    def test_any_size(self, size: tuple[int, int]) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
        with Image.open(BytesIO(encode_png(Image.fromarray(noise), {}))) as read:
            assert np.array_equal(np.asarray(read), noise)

    def test_every_chunk_is_valid(self) -> None:
        data = encode_png(gradient(), {"model": "klein-mini"})
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        kinds, position = [], 8
        while position < len(data):
            length, kind = struct.unpack_from(">I4s", data, position)
            content = data[position + 8 : position + 8 + length]
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
            assert checksum == zlib.crc32(kind + content), kind
            if kind == b"IDAT":  # strict: the checksum of the stream holds, and nothing follows it
                stream = zlib.decompressobj()
                assert len(stream.decompress(content)) == 80 * (1 + 3 * 96)
                assert stream.eof and not stream.unused_data
            kinds.append(kind)
            position += 12 + length
        assert kinds == [b"IHDR", b"tEXt", b"IDAT", b"IEND"]

    def test_the_same_picture_gives_the_same_bytes(self) -> None:
        assert encode_png(gradient(), {"seed": "7"}) == encode_png(gradient(), {"seed": "7"})
        assert encode_png(gradient(), {"seed": "7"}) != encode_png(gradient(), {"seed": "8"})

    def test_it_compresses(self) -> None:
        assert len(encode_png(gradient(960, 800), {})) < 0.2 * 960 * 800 * 3


AREA = 1024 * 1024


def crop_to_16(image: Image.Image) -> Image.Image:
    return crop_reference(image, multiple=16, max_area=AREA)


class TestCropReference:
    @pytest.mark.parametrize(
        ("size", "fitted"),
        [
            ((512, 512), (512, 512)),
            ((1024, 1024), (1024, 1024)),
            ((1000, 530), (992, 528)),
            ((2048, 2048), (1024, 1024)),
            ((4000, 500), (2896, 352)),  # 2896.3 x 362.0 by area
            ((1500, 1501), (1008, 1024)),  # 1023.7 x 1024.3 by area
            ((64, 79), (64, 64)),
        ],
    )
    def test_area_is_capped_then_sides_cropped(self, size: tuple[int, int], fitted: tuple[int, int]) -> None:
        assert crop_to_16(gradient(*size)).size == fitted

    def test_the_centre_is_kept(self) -> None:
        assert largest_difference(crop_to_16(gradient(101, 83)), gradient(101, 83).crop((2, 1, 98, 81))) == 0

    def test_what_holds_no_token_is_our_fault(self) -> None:
        with pytest.raises(AssertionError, match="holds no multiple"):
            crop_reference(gradient(100, 200), multiple=128, max_area=AREA)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_what_has_an_aspect_ratio_of_the_api_is_nearest_to_it(size: tuple[int, int]) -> None:
    assert nearest_size(Image.new("RGB", (size[0] // 3 + 1, size[1] // 3))) == size


class TestExtend:
    @pytest.mark.parametrize(
        ("size", "inside"),
        [((100, 100), (50, 0, 150, 100)), ((400, 100), (0, 25, 200, 75)), ((10, 40), (87, 0, 112, 100)),
         ((200, 100), (0, 0, 200, 100))],
    )  # fmt: skip
    def test_all_of_the_picture_is_shown_in_the_middle(
        self, size: tuple[int, int], inside: tuple[int, int, int, int]
    ) -> None:
        shown = extend(gradient(*size), 200, 100, multiple=50)
        smaller = inside[2] - inside[0], inside[3] - inside[1]
        assert shown.size == (200, 100)
        expected = gradient(*size).resize(smaller, Image.Resampling.LANCZOS)
        assert largest_difference(shown.crop(inside), expected) == 0

    @pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
    def test_every_accepted_reference_is_shown_in_whole_tokens(self, size: tuple[int, int]) -> None:
        smallest, longest = MIN_REFERENCE_SIDE_PX, MIN_REFERENCE_SIDE_PX * MAX_REFERENCE_ASPECT
        whole = tuple(-(-side // 128) * 128 for side in size)
        for accepted in ((smallest, smallest), (smallest, longest), (longest, smallest)):
            assert extend(gradient(*accepted), *size, multiple=128).size == whole

    def test_the_border_is_carried_on_around_it(self) -> None:
        image = Image.new("RGB", (1000, 1000), (10, 20, 30))
        image.paste((200, 180, 160), (0, 640, 1000, 1000))  # below a horizon
        wide = extend(image, 2000, 1000)
        assert [wide.getpixel((x, 639)) for x in (0, 499, 1500, 1999)] == [(10, 20, 30)] * 4
        assert [wide.getpixel((x, 640)) for x in (0, 499, 1500, 1999)] == [(200, 180, 160)] * 4
        tall = extend(image, 1000, 1500)
        assert (tall.getpixel((5, 0)), tall.getpixel((5, 1499))) == ((10, 20, 30), (200, 180, 160))

    def test_a_speck_on_the_border_leaves_no_streak(self) -> None:
        image = Image.new("RGB", (1000, 1000), (10, 20, 30))
        image.paste((250, 0, 0), (0, 300, 9, 340))
        left, right = (extend(image, 1400, 1000).crop((x, 0, x + 200, 1000)) for x in (0, 1200))
        assert left.getcolors() == right.getcolors() == [(200 * 1000, (10, 20, 30))]

    @pytest.mark.parametrize(
        ("size", "fitted"), [((1344, 768), (1408, 768)), ((832, 1248), (896, 1280)), ((1024, 1024), (1024, 1024))]
    )
    def test_a_picture_of_that_size_is_not_scaled_but_filled_to_whole_tokens(
        self, size: tuple[int, int], fitted: tuple[int, int]
    ) -> None:
        image = gradient(*size)
        filled = extend(image, *size, multiple=128)
        assert filled.size == fitted
        left, top = ((whole - side) // 2 for whole, side in zip(fitted, size, strict=True))
        assert largest_difference(filled.crop((left, top, left + size[0], top + size[1])), image) == 0


class TestTensors:
    def test_range_and_layout(self) -> None:
        pixels = to_tensor(Image.new("RGB", (5, 3), (0, 255, 51)))
        assert (pixels.dtype, pixels.shape) == (torch.float32, (3, 3, 5))
        assert torch.allclose(pixels[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))

    def test_round_trip_is_exact(self) -> None:
        assert largest_difference(to_image(to_tensor(gradient())), gradient()) == 0

    @pytest.mark.parametrize(
        ("value", "level"), [(-1.5, 0), (-1.0, 0), (0.0, 128), (0.003, 128), (0.9999, 255), (1.0, 255), (1.7, 255)]
    )
    def test_values_are_rounded_and_clamped(self, value: float, level: int) -> None:
        assert to_image(torch.full((3, 1, 1), value)).getpixel((0, 0)) == (level, level, level)

    def test_bfloat16_is_taken(self) -> None:
        assert to_image(torch.ones(3, 2, 2, dtype=torch.bfloat16)).getpixel((1, 1)) == (255, 255, 255)

    def test_values_that_are_not_numbers_are_our_fault(self) -> None:
        with pytest.raises(AssertionError, match="not numbers"):
            to_image(torch.full((3, 1, 1), torch.nan))


class TestTrim:
    @pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
    def test_it_takes_away_what_extending_added(self, size: tuple[int, int]) -> None:
        square = noise(400, 400)
        trimmed = trim(extend(square, *size))
        scaled = square.resize((min(size), min(size)), Image.Resampling.LANCZOS)
        assert trimmed.size == scaled.size
        assert largest_difference(trimmed, scaled) == 0

    def test_a_lossy_file_is_trimmed_as_well(self) -> None:
        image = Image.new("RGB", (1344, 768), (246, 142, 36))
        image.paste(noise(500, 500), (422, 134))
        stored = BytesIO()
        image.save(stored, "WEBP", quality=88)
        assert trim(Image.open(stored).convert("RGB")).size == (768, 768)

    def test_what_a_side_shows_is_kept(self) -> None:
        assert largest_difference(trim(noise(300, 200)), noise(300, 200)) == 0
        image = Image.new("RGB", (400, 200), "white")
        image.paste("black", (10, 50, 20, 60))  # far to the left, where the right is empty
        assert (trim(image).size, trim(image).getpixel((0, 50))) == ((380, 200), (0, 0, 0))
