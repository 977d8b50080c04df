"""Measure klein-mini as it ships, at fixed seeds: contact sheets, and figures on one JSON line.

`python -m training.evaluate --work FOLDER --to docs/klein-mini` writes into the second folder:
  smoke.png, smoke_key.json   the plain prompts, shuffled, and which is which (for a blind reader)
  backgrounds.png, edits.png, more_edits.png, references.png, aspects.png
  readme.png                  drawn and edited pictures for the README
"""

import argparse
import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.pipeline import Pipeline
from openklein.engine.types import ImageRequest
from openklein.engine.weights import load_pipeline
from training.data import STYLES, load_sprites, read_concepts
from training.families import POSED_SIZE, shown_styles
from training.measures import DELTA_E_LIMIT, Pixels, border, delta_e, psnr
from training.scenes import COLOURS, SQUARE, Scene, Thing, mask_and_paint, paint

PROMPTS_FILE = Path(__file__).with_name("prompts") / "smoke.txt"
THUMBNAIL_PX = 192
OBJECT_PSNR_DB = 20.0
EDIT_CASES = 40
SHOWN = ("a lion", "a strawberry", "a soccer ball", "a hamburger", "a penguin on a light blue background")


def make(pipeline: Pipeline, prompt: str, seed: int, *references: Image.Image, aspect: str = "square") -> Image.Image:
    return pipeline.generate(ImageRequest(prompt, *RESOLUTIONS[aspect], seed, references)).image


def sheet(pictures: list[Image.Image], columns: int, path: Path) -> None:
    """Write pictures row by row as one small PNG."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * THUMBNAIL_PX, rows * THUMBNAIL_PX), "white")
    for i, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        canvas.paste(small, (i % columns * THUMBNAIL_PX, i // columns * THUMBNAIL_PX))
    canvas.save(path, optimize=True)


def plain_prompts(pipeline: Pipeline, prompts: list[str], sprites: Pixels, folder: Path) -> float:
    """Draw the plain prompts, shuffled for a blind reader; return the share nearest to a real render of its thing."""
    order = np.random.default_rng(32).permutation(len(prompts))
    pictures = [make(pipeline, prompts[i], seed=0) for i in order]
    sheet(pictures, 8, folder / "smoke.png")
    key = {f"row {n // 8 + 1}, column {n % 8 + 1}": prompts[i] for n, i in enumerate(order)}
    (folder / "smoke_key.json").write_text(json.dumps(key, indent=1) + "\n")
    concepts = read_concepts()
    names = [[name.lower() for name in (concept.label, *concept.aliases)] for concept in concepts]
    renders = np.stack([thumbnail(render) for render in real_renders(sprites)])  # thing by thing, a row for each style
    nearest = [int(((renders - thumbnail(picture)) ** 2).sum(1).argmin()) // len(STYLES) for picture in pictures]
    wanted = [prompts[i].split(" ", 1)[1] for i in order]
    return sum(name in names[thing] for name, thing in zip(wanted, nearest, strict=True)) / len(prompts)


def real_renders(sprites: Pixels) -> Iterator[Image.Image]:
    """Paint every thing in every style as captions describe it, on white."""
    for concept, style in np.ndindex(*sprites.shape[:2]):
        yield Image.fromarray(paint(Scene((Thing(concept, style, POSED_SIZE),), "white", SQUARE), sprites))


def thumbnail(picture: Image.Image) -> NDArray[np.float32]:
    """Give a picture's pixels at 48 x 48, in a row."""
    return np.asarray(picture.resize((48, 48), Image.Resampling.BOX), np.float32).ravel()


def background_colours(pipeline: Pipeline, prompts: list[str], folder: Path) -> float:
    """Ask for a colour behind each thing; return the share that came out within DELTA_E_LIMIT."""
    pictures, right = [], 0
    for prompt, colour in zip(prompts, cycle(COLOURS), strict=False):
        picture = make(pipeline, f"{prompt} on a {colour} background", seed=1)
        right += delta_e(border(np.asarray(picture)), colour) < DELTA_E_LIMIT
        pictures.append(picture)
    sheet(pictures, 8, folder / "backgrounds.png")
    return right / len(prompts)


def source_picture(sprites: Pixels, scene: Scene) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Paint a real picture at output size, and where its thing is, a little inside the edge."""
    painted, covered = mask_and_paint(scene, sprites)
    size = RESOLUTIONS["square"]
    picture = Image.fromarray(painted).resize(size, Image.Resampling.BICUBIC)
    mask = Image.fromarray((covered > 0.98).astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    return picture, np.asarray(mask) == 255


def background_edits(pipeline: Pipeline, sprites: Pixels, folder: Path) -> dict[str, float]:
    """Change the background of real pictures; count those with the colour right and the thing kept."""
    rng = np.random.default_rng(7)
    concepts, names = read_concepts(), list(COLOURS)
    pictures, kept, coloured, both = [], 0, 0, 0
    for _ in range(EDIT_CASES):
        concept = int(rng.integers(len(concepts)))
        style = int(rng.choice(shown_styles(concepts[concept]) or [0]))
        before, after = rng.choice(len(names), 2, replace=False)
        scene = Scene((Thing(concept, style, 0.8),), names[before], SQUARE)
        source, inside = source_picture(sprites, scene)
        result = make(pipeline, f"change the background to {names[after]}", 2, source)
        pixels = np.asarray(result)
        is_kept = psnr(pixels[inside], np.asarray(source)[inside]) >= OBJECT_PSNR_DB
        is_coloured = delta_e(border(pixels), names[after]) < DELTA_E_LIMIT
        kept, coloured, both = kept + is_kept, coloured + is_coloured, both + (is_kept and is_coloured)
        pictures += [source, result]
    sheet(pictures[:48], 8, folder / "edits.png")
    return {"object_kept": kept / EDIT_CASES, "colour_right": coloured / EDIT_CASES, "both": both / EDIT_CASES}


def other_edits(pipeline: Pipeline, sprites: Pixels, folder: Path) -> None:
    """Show mirror, greyscale, restyle, and two to four references together."""
    labels = {concept.label: i for i, concept in enumerate(read_concepts())}
    things = [labels[name] for name in ("dog", "red apple", "rocket", "penguin")]
    sources = [
        source_picture(sprites, Scene((Thing(concept, style, 0.8),), colour, SQUARE))[0]
        for concept, style, colour in zip(things, (0, 1, 2, 0), ("white", "yellow", "light blue", "white"), strict=True)
    ]
    pictures = []
    for source in sources:
        pictures.append(source)
        for instruction in ("mirror the image", "make it black and white", *(f"make it {style}" for style in STYLES)):
            pictures.append(make(pipeline, instruction, 3, source))
    sheet(pictures, 6, folder / "more_edits.png")
    groups = [
        (sources[:2], "put them side by side"),
        (sources[:3], "put them in a row on a light blue background"),
        (sources, "put them in a grid"),
        (sources[2:], "put them in a row on a yellow background"),
    ]
    sheet([make(pipeline, text, 4, *references) for references, text in groups], 4, folder / "references.png")


def first_screen(pipeline: Pipeline, folder: Path) -> None:
    """Draw from prompts, and edit what was drawn."""
    drawn = [make(pipeline, prompt, 0) for prompt in SHOWN]
    pictures = [
        *drawn,
        make(pipeline, "change the background to teal", 0, drawn[0]),
        make(pipeline, "make it black and white", 0, drawn[0]),
        make(pipeline, "mirror the image", 0, drawn[-1]),
    ]
    sheet(pictures, 8, folder / "readme.png")


def evaluate(work: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(MINI_MODEL, Path("/nonexistent"))
    prompts = PROMPTS_FILE.read_text("utf-8").splitlines()
    sprites = load_sprites(work)
    figures = {"nearest_render_right": plain_prompts(pipeline, prompts, sprites, folder)}
    figures["background_colour_right"] = background_colours(pipeline, prompts, folder)
    figures |= {f"edit_{name}": share for name, share in background_edits(pipeline, sprites, folder).items()}
    other_edits(pipeline, sprites, folder)
    first_screen(pipeline, folder)
    wide = [make(pipeline, prompt, 5, aspect=aspect) for prompt, aspect in zip(prompts, RESOLUTIONS, strict=False)]
    sheet(wide, 4, folder / "aspects.png")
    print(json.dumps({"model": MINI_MODEL, "dtype": str(pipeline.choice.dtype), **figures}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    parser.add_argument("--to", type=Path, required=True, help="folder for the sheets")
    arguments = parser.parse_args()
    evaluate(arguments.work, arguments.to)
