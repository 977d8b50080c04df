"""Compose pictures whose caption, layout and every edit are known exactly, and word them.

A picture here has canvas size: a quarter of the output's width and height, 32 pixels a token.
"""

from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openklein.contract import RESOLUTIONS
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import CANVAS_SCALE
from openklein.engine.tokens import Grid
from training.data import STYLES, Concept, is_held_out

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
Pixels = NDArray[np.uint8]
Edit = Literal["background", "mirror", "greyscale", "restyle"]
Layout = Literal["row", "grid"]


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


@dataclass(frozen=True, slots=True)
class Thing:
    """One sprite on the canvas: size and centre relative to the visible part, before mirroring."""

    concept: int
    style: int
    size: float
    x: float = 0.5
    y: float = 0.5
    mirrored: bool = False


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, exactly."""

    things: tuple[Thing, ...]
    background: str
    grid: Grid
    greyscale: bool = False

    def mirror(self) -> "Scene":
        things = tuple(replace(t, x=1 - t.x, mirrored=not t.mirrored) for t in self.things)
        return replace(self, things=things)


def mask_and_paint(scene: Scene, sprites: NDArray[np.uint8]) -> tuple[Pixels, NDArray[np.float32]]:
    """Draw a scene; return pixels (H, W, 3) and how much of each pixel belongs to things (H, W)."""
    height, width = (CANVAS_TOKEN_PX * n for n in scene.grid)
    seen_height, seen_width = VISIBLE[scene.grid]
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = COLOURS[scene.background]
    covered = np.zeros((height, width), np.float32)
    for thing in scene.things:
        size = round(thing.size * min(seen_height, seen_width))
        sprite = Image.fromarray(sprites[thing.concept, thing.style])
        rgba = np.asarray(sprite.resize((size, size), Image.Resampling.BILINEAR), np.float32)
        if thing.mirrored:
            rgba = rgba[:, ::-1]
        top = round((height - seen_height) / 2 + thing.y * seen_height - size / 2)
        left = round((width - seen_width) / 2 + thing.x * seen_width - size / 2)
        top, left = max(0, min(top, height - size)), max(0, min(left, width - size))
        alpha = rgba[..., 3:] / 255
        window = np.s_[top : top + size, left : left + size]
        picture[window] = rgba[..., :3] * alpha + picture[window] * (1 - alpha)
        covered[window] = np.maximum(covered[window], alpha[..., 0])
    if scene.greyscale:
        picture[:] = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return np.asarray(picture.round().clip(0, 255), np.uint8), covered


def paint(scene: Scene, sprites: NDArray[np.uint8]) -> Pixels:
    return mask_and_paint(scene, sprites)[0]


def arrange(things: list[Thing], layout: Layout, grid: Grid) -> tuple[Thing, ...]:
    """Lay things out from left to right in one row, or in two rows."""
    seen_height, seen_width = VISIBLE[grid]
    columns = len(things) if layout == "row" else ceil(sqrt(len(things)))
    rows = ceil(len(things) / columns)
    size = 0.86 * min(seen_width / columns, seen_height / rows) / min(seen_width, seen_height)
    return tuple(
        replace(t, size=size, x=(i % columns + 0.5) / columns, y=(i // columns + 0.5) / rows)
        for i, t in enumerate(things)
    )


def default_style(concept: Concept) -> int:
    """Give the style drawn when none is named: the first of `STYLES` that is not held out."""
    return next((i for i, style in enumerate(STYLES) if not is_held_out(concept.label, style)), 0)


def pick(rng: np.random.Generator, *options: str) -> str:
    return options[rng.integers(len(options))]


def word_concept(concept: Concept, rng: np.random.Generator) -> str:
    """Name a thing by its label or another word for it."""
    use_alias = concept.aliases and rng.random() < 0.5
    return (pick(rng, *concept.aliases) if use_alias else concept.label).lower()


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def caption(scene: Scene, concepts: list[Concept], rng: np.random.Generator) -> str:
    """Describe a scene with one thing in one of many phrasings."""
    (thing,) = scene.things
    concept = concepts[thing.concept]
    noun, style = word_concept(concept, rng), list(STYLES)[thing.style]
    named = with_article(noun) if not noun.endswith("s") and rng.random() < 0.6 else noun
    if thing.style == default_style(concept) and rng.random() < 0.6:
        text = pick(rng, named, named, named, f"a picture of {named}", f"an image of {named}")
    else:
        text = pick(
            rng, f"{style} {noun}", f"{with_article(style)} {noun}", f"{named}, {style} style",
            f"{with_article(style)} drawing of {named}", f"{named} in {style} style",
            f"{with_article(style)} icon of {named}",
        )  # fmt: skip
    colour, article = scene.background, with_article(scene.background)
    if colour == "white" and rng.random() < 0.8:
        return text
    return text + pick(
        rng, f" on {article} background", f" on {article} background", f" with {article} background",
        f", {colour} background", f" on {colour}",
    )  # fmt: skip


def word_edit(edit: Edit, result: Scene, rng: np.random.Generator) -> str:
    """Ask for an edit whose outcome is `result`."""
    colour, style = result.background, list(STYLES)[result.things[0].style]
    if edit == "background":
        return pick(
            rng, f"change the background to {colour}", f"make the background {colour}", f"{colour} background",
                f"put it on {with_article(colour)} background", f"turn the background {colour}",
            f"set the background to {colour}",
        )  # fmt: skip
    if edit == "mirror":
        return pick(
            rng, "mirror the image", "mirror it", "flip it horizontally", "flip the image", "mirror image",
            "flip horizontally", "turn it to face the other way",
        )  # fmt: skip
    if edit == "greyscale":
        return pick(
            rng, "make it black and white", "convert to greyscale", "make it grayscale", "remove the colors",
            "turn it into a black and white picture", "greyscale",
        )  # fmt: skip
    return pick(
        rng, f"make it {style}", f"in {style} style", f"turn it into {style} style", f"redraw it in {style} style",
        f"the same thing as {with_article(style)} drawing", f"change the style to {style}",
    )  # fmt: skip


def word_layout(layout: Layout, result: Scene, rng: np.random.Generator) -> str:
    """Ask for the things of several references in one picture."""
    count = ("", "", "two", "three", "four")[len(result.things)]
    them = pick(rng, "them", "these", f"the {count} things", f"the {count} images", "all of them")
    if layout == "grid":
        text = pick(rng, f"put {them} in a grid", f"arrange {them} in a grid", f"a grid of {them}")
    else:
        text = pick(
            rng, f"put {them} side by side", f"put {them} in a row", f"{them} next to each other",
            f"arrange {them} in a row", f"{them} side by side",
        )  # fmt: skip
    return text if result.background == "white" else f"{text} on {with_article(result.background)} background"
