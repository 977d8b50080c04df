"""The fitting of reference pictures against what diffusers' `Flux2KleinPipeline` does to them."""

from io import BytesIO

import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from PIL import Image
from torch import Tensor

from openklein.engine.images import crop_reference, decode_image, to_tensor
from tests.parity.compare import assert_far, assert_same

MULTIPLE = 16
MAX_AREA = 1024 * 1024


def noise(width: int, height: int) -> Image.Image:
    pixels = torch.randint(256, (height // 8 + 1, width // 8 + 1, 3), generator=torch.Generator().manual_seed(0))
    coarse = Image.fromarray(pixels.to(torch.uint8).numpy())
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def expect(image: Image.Image) -> Tensor:
    processor = Flux2ImageProcessor(vae_scale_factor=MULTIPLE)
    processor.check_image_input(image)
    if image.width * image.height > MAX_AREA:
        image = processor._resize_to_target_area(image, MAX_AREA)
    width, height = image.width // MULTIPLE * MULTIPLE, image.height // MULTIPLE * MULTIPLE
    tensor: Tensor = processor.preprocess(image, height=height, width=width, resize_mode="crop")[0]
    return tensor


@pytest.mark.parametrize("size", [(64, 64), (600, 401), (1000, 530), (1344, 768), (1500, 1501), (4000, 500)])
def test_cap_and_crop(size: tuple[int, int]) -> None:
    image = noise(*size)
    fitted = crop_reference(image, multiple=MULTIPLE, max_area=MAX_AREA)
    assert_same(to_tensor(fitted), expect(image))


@pytest.mark.parametrize("bug", [None, "orientation", "alpha"])
def test_orientation_and_alpha_are_settled_before(bug: str | None) -> None:
    """The reference pipeline knows neither: it is given the picture as a viewer would show it."""
    turned, mask = noise(700, 1500), noise(700, 1500).getchannel("G")
    shown = Image.composite(turned, Image.new("RGB", turned.size, "white"), mask).transpose(Image.Transpose.ROTATE_270)
    stored = turned.copy()
    if bug != "alpha":
        stored.putalpha(mask)
    exif = Image.Exif()
    exif[0x0112] = 1 if bug == "orientation" else 6  # to be turned by 90 degrees clockwise
    file = BytesIO()
    stored.save(file, "PNG", exif=exif)
    decoded = decode_image(file.getvalue())
    if bug == "orientation":
        decoded = decoded.resize(shown.size)
    fitted = to_tensor(crop_reference(decoded, multiple=MULTIPLE, max_area=MAX_AREA))
    (assert_far if bug else assert_same)(fitted, expect(shown))


def test_a_crop_at_the_corner_is_seen() -> None:
    image = noise(601, 411)
    assert_far(to_tensor(image.crop((0, 0, 592, 400))), expect(image))
