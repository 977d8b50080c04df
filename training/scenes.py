"""Compose pictures that are known exactly: things, places, backgrounds and tones.

A picture here has canvas size: a quarter of the output's width and height, 32 pixels a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import ceil, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from openklein.contract import DEFAULT_ASPECT_RATIO, RESOLUTIONS
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import CANVAS_SCALE
from openklein.engine.tokens import Grid
from training.data import SKIN_TONES, STYLES, Concept, is_held_out

CANVAS_TOKEN_PX = KLEIN_MINI.token_px // CANVAS_SCALE
COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (222, 44, 44),
    "orange": (246, 142, 36),
    "yellow": (250, 214, 60),
    "green": (62, 168, 80),
    "blue": (52, 104, 220),
    "light blue": (150, 206, 246),
    "teal": (28, 150, 150),
    "purple": (132, 72, 190),
    "pink": (246, 152, 192),
    "brown": (132, 86, 52),
    "gray": (150, 150, 150),
    "black": (22, 22, 22),
}
PLACES: dict[str, tuple[tuple[int, int, int], ...]] = {  # sky above, sky at the horizon, ground
    "in a meadow": ((120, 190, 245), (205, 232, 250), (104, 178, 84)),
    "on a beach": ((90, 180, 240), (190, 226, 245), (238, 214, 160)),
    "in the snow": ((150, 180, 215), (220, 230, 242), (246, 249, 253)),
    "in the desert": ((240, 180, 110), (250, 220, 170), (214, 160, 92)),
    "at night": ((14, 18, 52), (44, 50, 104), (28, 40, 44)),
    "at sunset": ((110, 60, 130), (250, 150, 80), (66, 50, 74)),
    "on the sea": ((130, 196, 244), (214, 234, 248), (40, 110, 180)),
}
HORIZON = 0.64
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Tone = Literal["", "greyscale", "invert", "brighten", "darken", "outline"]
Layout = Literal["row", "grid"]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def grid_of(width: int, height: int) -> Grid:
    return ceil(height / KLEIN_MINI.token_px), ceil(width / KLEIN_MINI.token_px)


def visible_sizes() -> dict[Grid, tuple[int, int]]:
    """Give for each token grid the (height, width) in canvas pixels that every aspect ratio on it shows."""
    sizes: dict[Grid, tuple[int, int]] = {}
    for width, height in RESOLUTIONS.values():
        grid = grid_of(width, height)
        seen = sizes.get(grid, (height, width))
        sizes[grid] = (min(seen[0], height // CANVAS_SCALE), min(seen[1], width // CANVAS_SCALE))
    return sizes


VISIBLE = visible_sizes()
SQUARE: Grid = grid_of(*RESOLUTIONS["square"])
DEFAULT_GRID: Grid = grid_of(*RESOLUTIONS[DEFAULT_ASPECT_RATIO])
POSED_SIZE = 0.84375  # captions describe a thing in one pose: centred, at this share of the shorter side
SLOT_PX = VISIBLE[SQUARE][0] // 2  # beside others it has half the size that it has in a square, amid whole tokens


@dataclass(frozen=True, slots=True)
class Thing:
    """One sprite on the canvas: size and centre relative to the visible part, before mirroring."""

    concept: int
    style: int
    size: float
    x: float = 0.5
    y: float = 0.5
    mirrored: bool = False
    tint: str = ""  # a colour that it does not have by nature
    skin_row: int = 0  # of its sprite in another skin tone, or 0

    @property
    def skin_tone(self) -> str:
        return SKIN_TONES[(-1 - self.skin_row) % len(SKIN_TONES)] if self.skin_row else ""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, exactly. `background` is a colour, two joined by `to` or `and`, or a place."""

    things: tuple[Thing, ...]
    background: str
    grid: Grid
    tone: Tone = ""
    quarter_turns: int = 0  # of the whole picture, which is then square, to the left

    def mirror(self) -> "Scene":
        things = tuple(replace(t, x=1 - t.x, mirrored=not t.mirrored) for t in self.things)
        return replace(self, things=things)


def every_background() -> list[str]:
    """List the colours, the places, and all pairs of colours."""
    return [*COLOURS, *PLACES, *(f"{a} {joint} {b}" for joint in ("to", "and") for a, b in permutations(COLOURS, 2))]


def background_column(background: str, height: int) -> Floats:
    """Give a background's colour in each row (height, 3): plain, a gradient `red to blue`, halves, or a place."""
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    if background in PLACES:
        top, horizon, ground = (np.array(colour, np.float32) for colour in PLACES[background])
        share = np.clip(rows / HORIZON, 0, 1)
        return np.where(rows < HORIZON, top + share * (horizon - top), ground * (1.06 - 0.16 * rows))
    if " to " in background:
        first, second = (np.array(COLOURS[name], np.float32) for name in background.split(" to "))
        return first + rows * (second - first)
    if " and " in background:
        first, second = (np.array(COLOURS[name], np.float32) for name in background.split(" and "))
        return np.where(rows < 0.5, first, second)
    return np.full((height, 3), COLOURS[background], np.float32)


def paint_background(background: str, height: int, width: int) -> Pixels:
    """Draw a background, alike in every column (height, width, 3)."""
    column = background_column(background, height).round().clip(0, 255).astype(np.uint8)
    return np.repeat(column[:, None], width, axis=1)


def tint(rgb: Floats, colour: str) -> Floats:
    """Give a sprite's pixels another colour but the same shades: black by way of the colour to white."""
    light = (rgb @ LUMA / 255)[..., None]
    middle = np.array(COLOURS[colour], np.float32)
    dark, pale = middle * np.minimum(light / 0.6, 1), (255 - middle) * np.clip((light - 0.6) / 0.4, 0, 1)
    return np.asarray(dark + 0.8 * pale, np.float32)


def apply_tone(picture: Floats, tone: Tone) -> Floats:
    match tone:
        case "greyscale":
            return np.repeat((picture @ LUMA)[..., None], 3, axis=2)
        case "invert":
            return 255 - picture
        case "brighten":
            return picture + 0.45 * (255 - picture)
        case "darken":
            return 0.5 * picture
        case "outline":
            light = np.pad(picture @ LUMA, 1, mode="edge")
            steps = np.abs(light[1:-1, 2:] - light[1:-1, :-2]) + np.abs(light[2:, 1:-1] - light[:-2, 1:-1])
            return np.repeat((255 - np.clip(2 * steps, 0, 235))[..., None], 3, axis=2)
    return picture


def mask_and_paint(scene: Scene, sprites: NDArray[np.uint8]) -> tuple[Pixels, Floats]:
    """Draw a scene; return pixels (H, W, 3) and how much of each pixel belongs to things (H, W)."""
    height, width = (CANVAS_TOKEN_PX * n for n in scene.grid)
    seen_height, seen_width = VISIBLE[scene.grid]
    picture = Image.fromarray(paint_background(scene.background, height, width))
    covered = Image.new("L", picture.size)
    for thing in scene.things:
        size = round(thing.size * min(seen_height, seen_width))
        sprite = Image.fromarray(sprites[thing.skin_row or thing.concept, thing.style])
        sprite = sprite.resize((size, size), Image.Resampling.BILINEAR)
        if thing.mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        rgb, alpha = sprite.convert("RGB"), sprite.getchannel("A")
        if thing.tint:
            rgb = Image.fromarray(tint(np.asarray(rgb, np.float32), thing.tint).round().clip(0, 255).astype(np.uint8))
        top = round((height - seen_height) / 2 + thing.y * seen_height - size / 2)
        left = round((width - seen_width) / 2 + thing.x * seen_width - size / 2)
        top, left = max(0, min(top, height - size)), max(0, min(left, width - size))
        picture.paste(rgb, (left, top), alpha)
        before = covered.crop((left, top, left + size, top + size))
        covered.paste(ImageChops.lighter(before, alpha), (left, top))
    pixels = np.asarray(picture)
    if scene.tone:
        pixels = apply_tone(pixels.astype(np.float32), scene.tone).round().clip(0, 255).astype(np.uint8)
    share = np.asarray(covered, np.float32) / 255
    return np.rot90(pixels, scene.quarter_turns), np.rot90(share, scene.quarter_turns)


def paint(scene: Scene, sprites: NDArray[np.uint8]) -> Pixels:
    return mask_and_paint(scene, sprites)[0]


def halved(thing: Thing, right: float = 0.0, down: float = 0.0) -> Thing:
    """Shrink a square picture's thing with all around it to half, and set it off the middle by so many slots.

    Where that moves it by whole tokens, two by two tokens become one each, in one place as in any other.
    """
    return replace(thing, size=thing.size / 2, x=0.25 + (thing.x + right) / 2, y=0.25 + (thing.y + down) / 2)


def columns_of(layout: Layout, count: int) -> int:
    return count if layout == "row" else ceil(sqrt(count))


def arrange(things: Sequence[Thing], columns: int, grid: Grid) -> tuple[Thing, ...]:
    """Lay things out in so many columns, from left to right and then down: in slots where those fit, else smaller."""
    seen_height, seen_width = VISIBLE[grid]
    rows = ceil(len(things) / columns)
    cell = min(seen_width / columns, seen_height / rows)
    size = POSED_SIZE * min(cell, SLOT_PX) / min(seen_width, seen_height)
    apart_x, apart_y = seen_width / columns, seen_height / rows
    if cell >= SLOT_PX:  # slots of whole tokens
        apart_x = CANVAS_TOKEN_PX * (apart_x // CANVAS_TOKEN_PX)
    return tuple(
        replace(
            t,
            size=size,
            x=0.5 + (i % columns - (columns - 1) / 2) * apart_x / seen_width,
            y=0.5 + (i // columns - (rows - 1) / 2) * apart_y / seen_height,
        )
        for i, t in enumerate(things)
    )


def default_style(concept: Concept) -> int:
    """Give the style drawn when none is named: the first of `STYLES` that is not held out."""
    return next((i for i, style in enumerate(STYLES) if not is_held_out(concept.label, style)), 0)
