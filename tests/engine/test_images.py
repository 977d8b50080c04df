import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from openklein.contract import MAX_REFERENCE_ASPECT, MIN_REFERENCE_SIDE_PX, RESOLUTIONS
from openklein.engine.images import crop_reference, encode_png, extend_reference, nearest_size, to_image, to_tensor
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


@pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_what_has_an_aspect_ratio_of_the_api_is_nearest_to_it(size: tuple[int, int]) -> None:
    assert nearest_size(Image.new("RGB", (size[0] // 3 + 1, size[1] // 3))) == size


class TestExtendReference:
    @pytest.mark.parametrize(
        ("size", "inside"),
        [((100, 100), (50, 0, 150, 100)), ((400, 100), (0, 25, 200, 75)), ((10, 40), (87, 0, 112, 100)),
         ((200, 100), (0, 0, 200, 100))],
    )  # fmt: skip
    def test_all_of_the_picture_is_shown_in_the_middle(
        self, size: tuple[int, int], inside: tuple[int, int, int, int]
    ) -> None:
        shown = extend_reference(gradient(*size), 200, 100, multiple=50)
        smaller = inside[2] - inside[0], inside[3] - inside[1]
        assert shown.size == (200, 100)
        expected = gradient(*size).resize(smaller, Image.Resampling.LANCZOS)
        assert largest_difference(shown.crop(inside), expected) == 0

    @pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
    def test_every_accepted_reference_is_shown_in_whole_tokens(self, size: tuple[int, int]) -> None:
        smallest, longest = MIN_REFERENCE_SIDE_PX, MIN_REFERENCE_SIDE_PX * MAX_REFERENCE_ASPECT
        whole = tuple(-(-side // 128) * 128 for side in size)
        for accepted in ((smallest, smallest), (smallest, longest), (longest, smallest)):
            assert extend_reference(gradient(*accepted), *size, multiple=128).size == whole

    def test_the_border_is_repeated_around_it(self) -> None:
        image = gradient(100, 100)
        shown = extend_reference(image, 200, 100, multiple=50)
        assert {shown.getpixel((x, 37)) for x in range(50)} == {image.getpixel((0, 37))}
        assert {shown.getpixel((x, 81)) for x in range(150, 200)} == {image.getpixel((99, 81))}
        tall = extend_reference(image, 100, 150, multiple=50)
        assert {tall.getpixel((12, y)) for y in range(25)} == {image.getpixel((12, 0))}

    @pytest.mark.parametrize(
        ("size", "fitted"), [((1344, 768), (1408, 768)), ((832, 1248), (896, 1280)), ((1024, 1024), (1024, 1024))]
    )
    def test_a_picture_of_that_size_is_not_scaled_but_filled_to_whole_tokens(
        self, size: tuple[int, int], fitted: tuple[int, int]
    ) -> None:
        image = gradient(*size)
        filled = extend_reference(image, *size, multiple=128)
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
