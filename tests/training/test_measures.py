"""Check the measures on pictures whose values are known."""

import numpy as np
import pytest
from PIL import Image

from training.measures import border, count_parts, crop, delta_e, is_exact, psnr


def plain(colour: tuple[int, int, int], side: int = 128) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


def test_colour_difference_of_black_and_white_is_a_hundred() -> None:
    assert delta_e(plain((0, 0, 0)).reshape(-1, 3), "white") == pytest.approx(100, abs=0.1)
    assert delta_e(plain((222, 44, 44)).reshape(-1, 3), "red") == pytest.approx(0, abs=1e-6)


def test_psnr_of_one_level_is_48_db() -> None:
    assert psnr(plain((10, 10, 10)), plain((11, 11, 11))) == pytest.approx(48.13, abs=0.01)


def test_border_leaves_the_inside_out() -> None:
    picture = plain((255, 255, 255))
    picture[10:-10, 10:-10] = 0
    assert (border(picture) == 255).all()


def test_parts_are_counted_where_they_do_not_touch() -> None:
    picture = plain((255, 255, 255), 256)
    assert count_parts(picture) == 0
    picture[20:80, 20:80] = 0
    picture[150:230, 20:80] = 60
    picture[20:80, 150:230] = 120
    assert count_parts(picture) == 3
    picture[40:50, 80:150] = 90  # a bridge
    assert count_parts(picture) == 2


def test_crop_takes_the_place_of_a_thing() -> None:
    picture = plain((255, 255, 255), 200)
    picture[100:200, 0:100] = 0
    inside = np.asarray(crop(Image.fromarray(picture), size=0.4, x=0.25, y=0.75))
    assert inside.shape[0] == 88
    assert (inside == 0).all()


def test_an_edit_is_right_only_when_it_came_nearer_to_the_outcome() -> None:
    source, target = plain((200, 200, 200)), plain((100, 100, 100))
    assert is_exact(Image.fromarray(plain((104, 104, 104))), target, source)
    assert not is_exact(Image.fromarray(source), target, source)
    assert not is_exact(Image.fromarray(source), source, source)  # nothing was done where nothing had to be
