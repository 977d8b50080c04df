import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from openklein.engine.images import encode_png, fit_reference, to_image, to_tensor
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
    return fit_reference(image, multiple=16, max_area=AREA, min_area=0, pad=False)


class TestFitReference:
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

    @pytest.mark.parametrize(("size", "fitted"), [((100, 100), (1024, 1024)), ((64, 512), (256, 2816))])
    def test_small_references_are_scaled_up(self, size: tuple[int, int], fitted: tuple[int, int]) -> None:
        assert fit_reference(gradient(*size), multiple=128, max_area=AREA, min_area=AREA, pad=False).size == fitted

    def test_the_centre_is_kept(self) -> None:
        assert largest_difference(crop_to_16(gradient(101, 83)), gradient(101, 83).crop((2, 1, 98, 81))) == 0

    @pytest.mark.parametrize(
        ("size", "fitted"),
        [((1344, 768), (1408, 768)), ((832, 1248), (896, 1280)), ((64, 64), (1024, 1024)), ((4000, 500), (2944, 384))],
    )
    def test_padding_keeps_everything(self, size: tuple[int, int], fitted: tuple[int, int]) -> None:
        padded = fit_reference(gradient(*size), multiple=128, max_area=1_070_000, min_area=1_030_000, pad=True)
        assert padded.size == fitted

    def test_padding_repeats_the_border_on_both_sides(self) -> None:
        image = gradient(95, 80)
        padded = fit_reference(image, multiple=100, max_area=AREA, min_area=0, pad=True)
        assert padded.size == (100, 100)
        assert largest_difference(padded.crop((2, 10, 97, 90)), image) == 0
        assert padded.getpixel((0, 0)) == image.getpixel((0, 0))
        assert padded.getpixel((99, 99)) == image.getpixel((94, 79))
        assert padded.getpixel((50, 3)) == image.getpixel((48, 0))

    def test_what_holds_no_token_is_our_fault(self) -> None:
        with pytest.raises(AssertionError, match="raise min_area"):
            fit_reference(gradient(100, 200), multiple=128, max_area=AREA, min_area=0, pad=False)


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
