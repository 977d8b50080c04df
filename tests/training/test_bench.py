import numpy as np
import pytest
from PIL import Image

from openklein.contract import RESOLUTIONS
from openklein.engine.images import extend
from training.bench import canvas_of
from training.scenes import VISIBLE, grid_of


@pytest.mark.parametrize("asked", RESOLUTIONS.values(), ids=RESOLUTIONS)
@pytest.mark.parametrize("canvas", ["square", "landscape", "portrait"])
def test_what_was_extended_is_judged_without_what_was_added(canvas: str, asked: tuple[int, int]) -> None:
    width, height = RESOLUTIONS[canvas]
    pixels = np.random.default_rng(0).integers(256, size=(height // 8, width // 8, 3), dtype=np.uint8)
    made = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
    grid = grid_of(width, height)
    seen = canvas_of(extend(made, *asked), grid)
    shape = VISIBLE[grid][1] / VISIBLE[grid][0]
    assert seen.width / seen.height == pytest.approx(shape, rel=0.01)
    small = (seen.width // 8, seen.height // 8)
    whole, part = (np.asarray(picture.resize(small, Image.Resampling.BOX), float) for picture in (made, seen))
    assert np.abs(whole - part).mean() < 12
