"""Put requests to a loaded model, and judge what comes back against scenes that are known exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from openklein.contract import RESOLUTIONS
from openklein.engine.mini_autoencoder import CANVAS_SCALE
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import Grid
from openklein.engine.types import ImageRequest
from training.data import STYLES, is_held_out, load_sprites, read_concepts
from training.families import shown_styles
from training.judge import load_judge, rank, read_pictures
from training.measures import DELTA_E_LIMIT, Pixels, border, crop, delta_e, psnr
from training.scenes import CANVAS_TOKEN_PX, POSED_SIZE, SQUARE, VISIBLE, Scene, Thing, mask_and_paint, paint

THUMBNAIL_PX = 128
SHOWN_ON_SHEET = 48
FAILURES_PER_GROUP = 2
SEED = 7
Verdicts = NDArray[np.bool_]
Shares = dict[str, float]  # of the cases that came out right, or decibels


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and the scene that would answer it exactly, before it is extended to the aspect ratio."""

    prompt: str
    target: Scene
    sources: tuple[Scene, ...] = ()
    aspect: str = "square"


def alone(thing: int, style: int, background: str = "white", grid: Grid = SQUARE) -> Scene:
    """Show one thing as captions describe it."""
    return Scene((Thing(thing, style, POSED_SIZE),), background, grid)


def make(pipeline: Pipeline, prompt: str, seed: int, *references: Image.Image, aspect: str = "square") -> Image.Image:
    return pipeline.generate(ImageRequest(prompt, *RESOLUTIONS[aspect], seed, references)).image


def sheet(pictures: Sequence[Image.Image], columns: int, path: Path, side: int = THUMBNAIL_PX) -> None:
    """Write pictures row by row as one small picture."""
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (columns * side, rows * side), "white")
    for i, picture in enumerate(pictures):
        small = picture.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        canvas.paste(small, (i % columns * side, i // columns * side))
    canvas.save(path, optimize=True, quality=85)


class Bench:
    """What every group of figures needs: the model, the judge, the art, and which things count.

    Without a model the true outcomes are judged in its place: what comes is the most that a group's figure can be.
    """

    def __init__(self, work: Path, folder: Path, pipeline: Pipeline | None, things: int, size: int) -> None:
        self.work, self.folder, self.pipeline, self.size = work, folder, pipeline, size
        concepts = read_concepts()
        self.concepts = concepts[:things]
        self.sprites = load_sprites(work)
        self.judge = load_judge(work)
        if (known := self.judge.head.out_features) < len(self.concepts):
            raise ValueError(f"the judge knows {known} things, and {len(self.concepts)} are to be measured")
        self.styles = [shown_styles(concept) for concept in self.concepts]
        self.rng = np.random.default_rng(2026)
        self.failures: list[tuple[str, Case, Image.Image]] = []

    def pairs(self, *, held_out: bool = False) -> list[tuple[int, int]]:
        """Choose (thing, style) pairs that were shown in training, or that were not."""
        every = [
            (i, style)
            for i, concept in enumerate(self.concepts)
            for style, name in enumerate(STYLES)
            if is_held_out(concept.label, name) == held_out
        ]
        return [every[i] for i in self.rng.permutation(len(every))[: self.size]]

    def run(self, cases: Sequence[Case], group: str) -> list[Image.Image]:
        """Make the pictures of a group and keep the first of them on a sheet, each after its sources."""
        if self.pipeline is None:
            return [self.picture(case.target) for case in cases]
        results, shown = [], []
        for case in cases:
            sources = [self.picture(scene) for scene in case.sources]
            made = make(self.pipeline, case.prompt, SEED, *sources, aspect=case.aspect)
            results.append(canvas_of(made, case.target.grid))
            shown += [*sources, made]
        sheet(shown[:SHOWN_ON_SHEET], 8, self.folder / f"{group}.webp")
        return results

    def share(self, group: str, cases: Sequence[Case], results: Sequence[Image.Image], right: Verdicts) -> float:
        """Give the share that came out right, and keep some of what did not for the page of failures."""
        wrong = np.flatnonzero(~right)[:FAILURES_PER_GROUP]
        self.failures += [(group, cases[i], results[i]) for i in wrong]
        return float(right.mean())

    def paint(self, scene: Scene) -> Pixels:
        return paint(scene, self.sprites)[seen(scene)]

    def picture(self, scene: Scene) -> Image.Image:
        height, width = (CANVAS_SCALE * side for side in VISIBLE[scene.grid])
        return Image.fromarray(self.paint(scene)).resize((width, height), Image.Resampling.BICUBIC)

    def ranks(self, results: Sequence[Image.Image], things: Sequence[Thing]) -> NDArray[np.int64]:
        """Rank each thing where it should stand in its picture: how many others the judge finds likelier."""
        crops = [crop(result, thing.size, thing.x, thing.y) for result, thing in zip(results, things, strict=True)]
        numbers = torch.tensor([thing.concept for thing in things])
        parts = [
            rank(self.judge, read_pictures(crops[i : i + 64]), numbers[i : i + 64]) for i in range(0, len(crops), 64)
        ]
        return torch.cat(parts).numpy()

    def all_in_place(self, results: Sequence[Image.Image], cases: Sequence[Case]) -> Verdicts:
        """Tell whether every thing of each case's target is among the judge's first five where it should stand."""
        return np.array(
            [
                bool((self.ranks([result] * len(case.target.things), case.target.things) < 5).all())
                for result, case in zip(results, cases, strict=True)
            ]
        )

    def object_psnr(self, result: Image.Image, case: Case) -> float:
        """Compare what is well inside the thing with the true outcome, in dB."""
        window = seen(case.target)
        painted, covered = mask_and_paint(case.target, self.sprites)
        target, inside = painted[window], covered[window] > 0.98
        return psnr(shrink(result, target)[inside], target[inside])

    def write_failures(self) -> None:
        """Show what was asked for, as it would be right, beside what came, and list the prompts."""
        pictures = [p for _, case, result in self.failures for p in (self.picture(case.target), result)]
        sheet(pictures, 8, self.folder / "failures.webp")
        lines = [
            f"| {n // 4 + 1}, {n % 4 + 1} | {group} | {case.prompt} |"
            for n, (group, case, _) in enumerate(self.failures)
        ]
        head = ["# What klein-mini gets wrong", "", FAILURES_INTRODUCTION, "", "![failures](failures.webp)", ""]
        table = ["| row, pair | group | prompt |", "| --- | --- | --- |", *lines]
        (self.folder / "failures.md").write_text("\n".join([*head, *table]) + "\n")


FAILURES_INTRODUCTION = (
    "The first failures of each group of figures, not chosen: what would be right, and what came, four pairs a row."
)


def seen(scene: Scene) -> tuple[slice, slice]:
    """Give the rows and columns of a scene's canvas that the product shows."""
    sides = zip(scene.grid, VISIBLE[scene.grid], strict=True)
    rows, columns = (slice((CANVAS_TOKEN_PX * n - side) // 2, (CANVAS_TOKEN_PX * n + side) // 2) for n, side in sides)
    return rows, columns


def canvas_of(made: Image.Image, grid: Grid) -> Image.Image:
    """Cut out of a picture the canvas of this grid that was extended to it."""
    height, width = VISIBLE[grid]
    scale = min(made.height / height, made.width / width)
    height, width = round(scale * height), round(scale * width)
    left, top = (made.width - width) // 2, (made.height - height) // 2
    return made.crop((left, top, left + width, top + height))


def shrink(result: Image.Image, target: Pixels) -> Pixels:
    """Scale a result down to the true outcome's size."""
    return np.asarray(result.resize((target.shape[1], target.shape[0]), Image.Resampling.BOX))


def backgrounds_right(results: Sequence[Image.Image], cases: Sequence[Case]) -> Verdicts:
    """Tell which pictures have the background of their true outcome along the border."""
    pairs = zip(results, cases, strict=True)
    return np.array([delta_e(border(np.asarray(r)), case.target.background) < DELTA_E_LIMIT for r, case in pairs])
