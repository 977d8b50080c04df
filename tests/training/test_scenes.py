"""Check that pictures are what their captions and instructions say."""

from dataclasses import replace

import numpy as np
import pytest

from openklein.contract import RESOLUTIONS
from openklein.engine.tokens import Grid
from training.data import Concept, is_held_out, read_concepts
from training.scenes import (
    CANVAS_TOKEN_PX,
    COLOURS,
    SQUARE,
    VISIBLE,
    Layout,
    Scene,
    Thing,
    arrange,
    caption,
    default_style,
    grid_of,
    mask_and_paint,
    paint,
    word_edit,
    word_layout,
)


@pytest.fixture
def sprites() -> np.ndarray:
    """Two concepts in three styles: opaque squares whose left half is red and whose right half has its own colour."""
    art = np.zeros((2, 3, 32, 32, 4), np.uint8)
    art[..., 3] = 255
    art[..., :16, 0] = 255
    for concept in range(2):
        art[concept, :, :, 16:, 1 + concept] = 255
    return art


def test_background_has_exactly_the_named_colour(sprites: np.ndarray) -> None:
    picture = paint(Scene((Thing(0, 0, 0.5),), "teal", SQUARE), sprites)
    assert picture.shape == (256, 256, 3)
    assert tuple(picture[0, 0]) == COLOURS["teal"]


def test_mirrored_scene_is_the_picture_flipped(sprites: np.ndarray) -> None:
    scene = Scene((Thing(0, 0, 0.5, x=0.4, y=0.5),), "blue", SQUARE)
    assert np.abs(paint(scene, sprites)[:, ::-1].astype(int) - paint(scene.mirror(), sprites)).max() <= 1
    assert scene.mirror().mirror().things[0].x == pytest.approx(scene.things[0].x)


def test_greyscale_has_equal_channels_and_keeps_the_layout(sprites: np.ndarray) -> None:
    scene = Scene((Thing(1, 0, 0.5),), "orange", SQUARE)
    picture, covered = mask_and_paint(replace(scene, greyscale=True), sprites)
    assert (picture == picture[..., :1]).all()
    assert (covered == mask_and_paint(scene, sprites)[1]).all()


@pytest.mark.parametrize(
    ("layout", "order"), [("row", [(0.25, 0.5), (0.75, 0.5)]), ("grid", [(0.25, 0.5), (0.75, 0.5)])]
)
def test_two_things_stand_in_the_order_of_their_references(layout: Layout, order: list[tuple[float, float]]) -> None:
    arranged = arrange([Thing(0, 0, 0.9), Thing(1, 0, 0.9)], layout, SQUARE)
    assert [(t.x, t.y) for t in arranged] == order
    assert [t.concept for t in arranged] == [0, 1]


@pytest.mark.parametrize("grid", VISIBLE)
def test_arranged_things_never_touch_and_stay_visible(grid: Grid) -> None:
    height, width = VISIBLE[grid]
    layouts: tuple[Layout, ...] = ("row", "grid")
    for layout in layouts:
        arranged = arrange([Thing(0, 0, 0.9)] * 4, layout, grid)
        side = arranged[0].size * min(height, width)
        for i, thing in enumerate(arranged):
            assert side / 2 <= thing.x * width <= width - side / 2
            for other in arranged[i + 1 :]:
                apart = max(abs(thing.x - other.x) * width, abs(thing.y - other.y) * height)
                assert apart >= side


def test_visible_part_fits_every_aspect_ratio() -> None:
    for width, height in RESOLUTIONS.values():
        grid = grid_of(width, height)
        assert VISIBLE[grid][0] * 4 <= height <= grid[0] * CANVAS_TOKEN_PX * 4
        assert VISIBLE[grid][1] * 4 <= width <= grid[1] * CANVAS_TOKEN_PX * 4


def test_captions_name_thing_style_and_colour() -> None:
    concepts, rng = [Concept("red apple", ("apple",))], np.random.default_rng(0)
    plain_style = default_style(concepts[0])
    for style in range(3):
        texts = [caption(Scene((Thing(0, style, 0.8),), "purple", SQUARE), concepts, rng) for _ in range(40)]
        assert all("apple" in text and "purple" in text for text in texts)
        named = [text for text in texts if ("cartoon", "flat", "3d")[style] in text]
        assert (len(named) == len(texts)) == (style != plain_style)


def test_instructions_name_their_outcome() -> None:
    rng = np.random.default_rng(0)
    result = Scene((Thing(0, 1, 0.5), Thing(1, 1, 0.5)), "orange", SQUARE)
    assert "orange" in word_edit("background", result, rng)
    assert "flat" in word_edit("restyle", result, rng)
    assert word_layout("row", result, rng).endswith("on an orange background")


def test_held_out_pairs_are_a_tenth_and_stay_the_same() -> None:
    pairs = [(c.label, s) for c in read_concepts() for s in ("cartoon", "flat", "3d")]
    share = sum(is_held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.07 < share < 0.13
    assert is_held_out("dog", "flat") == is_held_out("dog", "flat")
