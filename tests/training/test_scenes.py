"""Check that pictures are what their captions and instructions say."""

from dataclasses import replace

import numpy as np
import pytest

from openklein.contract import RESOLUTIONS
from openklein.engine.tokens import Grid
from training.data import is_held_out, read_concepts
from training.scenes import (
    CANVAS_TOKEN_PX,
    COLOURS,
    DEFAULT_GRID,
    PLACES,
    POSED_SIZE,
    SQUARE,
    VISIBLE,
    Scene,
    Thing,
    arrange,
    columns_of,
    grid_of,
    halved,
    mask_and_paint,
    paint,
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
    picture, covered = mask_and_paint(replace(scene, tone="greyscale"), sprites)
    assert (picture == picture[..., :1]).all()
    assert (covered == mask_and_paint(scene, sprites)[1]).all()


@pytest.mark.parametrize(("columns", "order"), [(2, [(0.25, 0.5), (0.75, 0.5)]), (1, [(0.5, 0.25), (0.5, 0.75)])])
def test_two_things_stand_in_the_order_of_their_references(columns: int, order: list[tuple[float, float]]) -> None:
    arranged = arrange([Thing(0, 0, 0.9), Thing(1, 0, 0.9)], columns, SQUARE)
    assert [(t.x, t.y) for t in arranged] == order
    assert [t.concept for t in arranged] == [0, 1]


@pytest.mark.parametrize("grid", VISIBLE)
def test_arranged_things_never_touch_and_stay_visible(grid: Grid) -> None:
    height, width = VISIBLE[grid]
    for columns in (columns_of("row", 4), columns_of("grid", 4), 1):
        arranged = arrange([Thing(0, 0, 0.9)] * 4, columns, grid)
        side = arranged[0].size * min(height, width)
        for i, thing in enumerate(arranged):
            assert side / 2 <= thing.x * width <= width - side / 2
            for other in arranged[i + 1 :]:
                apart = max(abs(thing.x - other.x) * width, abs(thing.y - other.y) * height)
                assert apart >= side


def test_a_halved_thing_stands_the_same_on_its_tokens_in_every_slot(sprites: np.ndarray) -> None:
    posed, slot = Thing(0, 0, POSED_SIZE), 4 * CANVAS_TOKEN_PX

    def shown(scene: Scene, row: int, column: int) -> np.ndarray:
        top, left = row * CANVAS_TOKEN_PX, column * CANVAS_TOKEN_PX
        return paint(scene, sprites)[top : top + slot, left : left + slot]

    middle = shown(Scene((halved(posed),), "white", SQUARE), 2, 2)
    assert (middle != 255).any(-1).sum() == (paint(Scene((halved(posed),), "white", SQUARE), sprites) != 255).any(
        -1
    ).sum()
    corner = Scene((halved(posed, right=0.5, down=-0.5),), "white", SQUARE)
    assert (shown(corner, 0, 4) == middle).all()
    for grid, row, columns in ((SQUARE, 2, (0, 4)), (DEFAULT_GRID, 1, (1, 6))):
        both = Scene(arrange([posed, posed], 2, grid), "white", grid)
        assert all((shown(both, row, column) == middle).all() for column in columns)


def test_what_is_halved_is_the_picture_at_half_its_size(sprites: np.ndarray) -> None:
    scene = Scene((Thing(0, 0, 0.5, x=0.375, y=0.625),), "white", SQUARE)
    whole, small = (
        paint(replace(scene, things=(t,)), sprites).astype(int) for t in (scene.things[0], halved(scene.things[0]))
    )
    assert np.abs(small[64:192, 64:192] - whole.reshape(128, 2, 128, 2, 3).mean((1, 3))).mean() < 2


def test_visible_part_fits_every_aspect_ratio() -> None:
    for width, height in RESOLUTIONS.values():
        grid = grid_of(width, height)
        assert VISIBLE[grid][0] * 4 <= height <= grid[0] * CANVAS_TOKEN_PX * 4
        assert VISIBLE[grid][1] * 4 <= width <= grid[1] * CANVAS_TOKEN_PX * 4


@pytest.mark.parametrize("background", ["red to blue", "red and blue", *PLACES])
def test_backgrounds_change_from_top_to_bottom_alone(background: str) -> None:
    picture = paint(Scene((), background, SQUARE), np.zeros((1, 1, 8, 8, 4), np.uint8)).astype(int)
    assert (picture == picture[:, :1]).all()
    assert np.abs(picture[0, 0] - picture[-1, 0]).max() > 10


def test_a_gradient_begins_and_ends_with_its_colours(sprites: np.ndarray) -> None:
    picture = paint(Scene((), "teal to pink", SQUARE), sprites)
    assert tuple(picture[0, 0]) == COLOURS["teal"]
    assert tuple(picture[-1, 0]) == COLOURS["pink"]


def test_a_tint_changes_the_colour_but_not_the_shape(sprites: np.ndarray) -> None:
    natural = Scene((Thing(0, 0, 0.5),), "white", SQUARE)
    tinted = Scene((Thing(0, 0, 0.5, tint="blue"),), "white", SQUARE)
    picture, covered = mask_and_paint(tinted, sprites)
    assert (covered == mask_and_paint(natural, sprites)[1]).all()
    inside = picture[covered == 1].astype(int)
    assert (inside[:, 2] > inside[:, 0]).all()  # what was red is blue


def test_tones_do_what_they_say(sprites: np.ndarray) -> None:
    scene = Scene((Thing(1, 0, 0.5),), "orange", SQUARE)
    plain = paint(scene, sprites).astype(int)
    assert (paint(replace(scene, tone="invert"), sprites) == 255 - plain).all()
    assert (paint(replace(scene, tone="brighten"), sprites) >= plain).all()
    assert (paint(replace(scene, tone="darken"), sprites) <= plain).all()
    outline = paint(replace(scene, tone="outline"), sprites)
    assert (outline[0, 0] == 255).all()  # no edge there
    assert outline.min() < 100


def test_a_quarter_turn_to_the_left_moves_the_right_side_up(sprites: np.ndarray) -> None:
    scene = Scene((Thing(0, 0, 0.4, x=0.75),), "white", SQUARE)
    turned = mask_and_paint(replace(scene, quarter_turns=1), sprites)[1]
    rows, columns = np.nonzero(turned)
    assert rows.mean() < 80
    assert abs(columns.mean() - 128) < 3


def test_held_out_pairs_are_a_tenth_and_stay_the_same() -> None:
    pairs = [(c.label, s) for c in read_concepts() for s in ("cartoon", "flat", "3d")]
    share = sum(is_held_out(*pair) for pair in pairs) / len(pairs)
    assert 0.07 < share < 0.13
    assert is_held_out("dog", "flat") == is_held_out("dog", "flat")
