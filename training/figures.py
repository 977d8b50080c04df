"""Measure what klein-mini can do against what it was asked, group by group, at fixed seeds.

Names are judged by `training.judge`, which never saw a generated picture; everything else is measured in pixels
against the true outcome, which is known because prompts and references come from scenes.
`python -m training.figures --work FOLDER --to docs/klein-mini` writes figures.json and a sheet for each group.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.pipeline import Pipeline
from openklein.engine.weights import load_pipeline
from training.art import HELD_OUT_PHOTOS
from training.data import STYLES, Concept, is_held_out, load_sprites, read_concepts
from training.evaluate import make, sheet
from training.families import POSED_SIZE, changed_scenes, shown_styles, two_things
from training.judge import load_judge, rank, read_pictures
from training.measures import DELTA_E_LIMIT, border, count_parts, crop, delta_e, is_exact, psnr
from training.scenes import COLOURS, LUMA, SQUARE, Scene, Thing, arrange, mask_and_paint, paint
from training.wording import NUMBERS, plural, with_article, word_edit


@dataclass(frozen=True, slots=True)
class Case:
    """One request, and the scene that would answer it exactly."""

    prompt: str
    target: Scene
    sources: tuple[Scene, ...] = ()
    aspect: str = "square"


class Bench:
    """What every group needs: the model, the judge, the art, and which things count."""

    def __init__(self, work: Path, folder: Path, things: int, size: int) -> None:
        self.work, self.folder, self.size = work, folder, size
        self.pipeline: Pipeline = load_pipeline(MINI_MODEL, Path("/nonexistent"))
        self.concepts = read_concepts()[:things]
        self.sprites = load_sprites(work)
        self.judge = load_judge(work, len(self.sprites))
        self.styles = [shown_styles(concept) for concept in self.concepts]
        self.rng = np.random.default_rng(2026)

    def pairs(self, *, held_out: bool) -> list[tuple[int, int]]:
        """Choose (thing, style) pairs that were shown in training, or that were not."""
        every = [
            (i, style)
            for i, concept in enumerate(self.concepts)
            for style, name in enumerate(STYLES)
            if is_held_out(concept.label, name) == held_out
        ]
        return [every[i] for i in self.rng.permutation(len(every))[: self.size]]

    def run(self, cases: list[Case], group: str) -> list[Image.Image]:
        """Make the pictures of a group and keep the first of them on a sheet, after their sources."""
        results, shown = [], []
        for case in cases:
            sources = [self.picture(scene) for scene in case.sources]
            results.append(make(self.pipeline, case.prompt, 7, *sources, aspect=case.aspect))
            shown += [*sources, results[-1]]
        sheet(shown[:48], 8, self.folder / f"{group}.png")
        return results

    def picture(self, scene: Scene) -> Image.Image:
        return Image.fromarray(paint(scene, self.sprites)).resize(RESOLUTIONS["square"], Image.Resampling.BICUBIC)

    def ranks(self, results: list[Image.Image], things: list[Thing]) -> NDArray[np.int64]:
        """Rank each thing where it should stand in its picture."""
        crops = [crop(result, thing.size, thing.x, thing.y) for result, thing in zip(results, things, strict=True)]
        ranks = [
            rank(self.judge, read_pictures(crops[i : i + 64]), self.numbers(things[i : i + 64]))
            for i in range(0, len(crops), 64)
        ]
        return np.concatenate([part.numpy() for part in ranks])

    @staticmethod
    def numbers(things: list[Thing]) -> Tensor:
        return torch.tensor([thing.concept for thing in things])


def top(ranks: NDArray[np.int64]) -> dict[str, float]:
    return {"top_1": float((ranks == 0).mean()), "top_5": float((ranks < 5).mean())}


def alone(thing: int, style: int) -> Scene:
    return Scene((Thing(thing, style, POSED_SIZE),), "white", SQUARE)


def one_thing(bench: Bench, group: str, name: Callable[[Concept], str], *, held_out: bool) -> dict[str, float]:
    cases = [
        Case(f"{list(STYLES)[style]} {name(bench.concepts[thing])}", alone(thing, style))
        for thing, style in bench.pairs(held_out=held_out)
    ]
    return top(bench.ranks(bench.run(cases, group), [case.target.things[0] for case in cases]))


def synonyms(bench: Bench) -> dict[str, float]:
    named = [i for i, concept in enumerate(bench.concepts) if concept.aliases]
    cases = [
        Case(with_article(bench.concepts[i].aliases[-1]), alone(i, 0))
        for i in bench.rng.permutation(named)[: bench.size]
    ]
    return top(bench.ranks(bench.run(cases, "synonyms"), [case.target.things[0] for case in cases]))


def aspects(bench: Bench) -> dict[str, float]:
    shares = {}
    pairs = bench.pairs(held_out=False)[: max(8, bench.size // 4)]
    for aspect in RESOLUTIONS:
        cases = [
            Case(f"{list(STYLES)[style]} {bench.concepts[thing].label}", alone(thing, style), aspect=aspect)
            for thing, style in pairs
        ]
        results = bench.run(cases, f"aspect_{aspect.replace(':', '_')}")
        shares[aspect] = top(bench.ranks(results, [case.target.things[0] for case in cases]))["top_1"]
    return shares


def backgrounds(bench: Bench) -> dict[str, float]:
    cases = []
    for (thing, _), colour in zip(bench.pairs(held_out=False), np.resize(list(COLOURS), bench.size), strict=False):
        scene = replace(alone(thing, 0), background=str(colour))
        cases.append(Case(f"{with_article(bench.concepts[thing].label)} on a {colour} background", scene))
    results = bench.run(cases, "backgrounds")
    right = [
        delta_e(border(np.asarray(result)), case.target.background) < DELTA_E_LIMIT
        for result, case in zip(results, cases, strict=True)
    ]
    return {"right": float(np.mean(right))}


def pair_of_things(bench: Bench) -> dict[str, float]:
    """Ask for two things side by side; look for each on its own side, and on either."""
    cases = []
    for (one, style), (two, _) in zip(*(bench.pairs(held_out=False) for _ in range(2)), strict=True):
        things = (Thing(one, style, 0.47, x=0.26), Thing(two, style, 0.47, x=0.74))
        left, right = (with_article(bench.concepts[i].label.lower()) for i in (one, two))
        cases.append(Case(f"{left} to the left of {right}", Scene(things, "white", SQUARE)))
    results = bench.run(cases, "pairs")
    here = [bench.ranks(results, [case.target.things[side] for case in cases]) < 5 for side in (0, 1)]
    there = [bench.ranks(results, [case.target.mirror().things[side] for case in cases]) < 5 for side in (0, 1)]
    return {
        "both_present": float(((here[0] | there[0]) & (here[1] | there[1])).mean()),
        "positions_right": float((here[0] & here[1]).mean()),
    }


def counts(bench: Bench) -> dict[str, float]:
    cases = []
    for number, (thing, _) in enumerate(bench.pairs(held_out=False)):
        count = 1 + number % 4
        noun = bench.concepts[thing].label.lower()
        prompt = f"{NUMBERS[count]} {noun if count == 1 else plural(noun)}"
        cases.append(
            Case(prompt, Scene(arrange([Thing(thing, 0, POSED_SIZE)] * count, "row", SQUARE), "white", SQUARE))
        )
    results = bench.run(cases, "counts")
    # a thing of several parts counts as many: compare with the parts of as many real ones
    right = [
        count_parts(np.asarray(result)) == count_parts(np.asarray(bench.picture(case.target)))
        for result, case in zip(results, cases, strict=True)
    ]
    return {"right": float(np.mean(right))}


def edit_cases(bench: Bench) -> Iterator[tuple[str, Case]]:
    """Make every kind of edit of one thing and of two."""
    for number, (thing, style) in enumerate(bench.pairs(held_out=False)):
        names = list(COLOURS)
        base = replace(alone(thing, style), background=names[number % len(names)])
        edits: list[tuple[str, Scene]] = list(changed_scenes(base, bench.rng))
        edits.append(("background", replace(base, background=names[(number + 5) % len(names)])))
        edits.append(("tone", replace(base, tone="greyscale")))
        other = bench.styles[thing][(bench.styles[thing].index(style) + 1) % len(bench.styles[thing])]
        if other != style:
            edits.append(("restyle", replace(base, things=(replace(base.things[0], style=other),))))
        for change, after in edits:
            prompt = word_edit(change, base, after, bench.concepts, bench.rng)  # type: ignore[arg-type]
            yield (after.tone or change), Case(prompt, after, (base,))
        family = two_things([(thing, style), *(p for p in bench.pairs(held_out=False)[:2])], bench.rng)
        for sample in family.samples:
            if sample.change in ("add", "remove", "replace"):
                before, after = family.scenes[sample.references[0]], family.scenes[sample.target]
                prompt = word_edit(sample.change, before, after, bench.concepts, bench.rng)
                yield sample.change, Case(prompt, after, (before,))


def edits(bench: Bench) -> dict[str, float]:
    by_change: dict[str, list[Case]] = {}
    for change, case in edit_cases(bench):
        by_change.setdefault(change, []).append(case)
    shares = {}
    for change, cases in by_change.items():
        results = bench.run(cases, f"edit_{change}")
        right = [
            is_exact(result, paint(case.target, bench.sprites), paint(case.sources[0], bench.sprites))
            for result, case in zip(results, cases, strict=True)
        ]
        shares[change] = float(np.mean(right))
        if change == "background":
            shares["object_psnr_db"] = float(
                np.mean([object_psnr(bench, *pair) for pair in zip(results, cases, strict=True)])
            )
    return shares


def object_psnr(bench: Bench, result: Image.Image, case: Case) -> float:
    """Compare what is well inside the thing with the true outcome."""
    target, covered = mask_and_paint(case.target, bench.sprites)
    pixels = np.asarray(result.resize((target.shape[1], target.shape[0]), Image.Resampling.BOX))
    inside = covered > 0.98
    return psnr(pixels[inside], target[inside])


def joined(bench: Bench) -> dict[str, float]:
    """Join two to four references in a row or a grid; every one has to be recognised in its place."""
    pairs = bench.pairs(held_out=False)
    cases = []
    for number in range(bench.size // 2):
        things = [Thing(*pairs[i % len(pairs)], POSED_SIZE) for i in range(3 * number, 3 * number + 2 + number % 3)]
        layout, words = (("row", "put them in a row"), ("grid", "put them in a grid"))[
            number % 2 if len(things) > 2 else 0
        ]
        target = Scene(arrange(things, layout, SQUARE), "white", SQUARE)  # type: ignore[arg-type]
        cases.append(Case(words, target, tuple(Scene((thing,), "white", SQUARE) for thing in things)))
    results = bench.run(cases, "references")
    right = [
        bool((bench.ranks([result] * len(case.sources), list(case.target.things)) < 5).all())
        for result, case in zip(results, cases, strict=True)
    ]
    return {"all_in_place": float(np.mean(right))}


def photographs(bench: Bench) -> dict[str, float]:
    """Take the colour out of photographs that were held out, and compare with the true result."""
    decibels = {}
    for name in HELD_OUT_PHOTOS:
        photo = Image.open(bench.work / "photos" / f"{Path(name).stem}.png").convert("RGB")
        side = min(photo.size)
        photo = photo.crop((0, 0, side, side)).resize(RESOLUTIONS["square"], Image.Resampling.LANCZOS)
        result = np.asarray(make(bench.pipeline, "make it black and white", 7, photo))
        truth = np.repeat((np.asarray(photo, np.float32) @ LUMA)[..., None], 3, axis=2).round().astype(np.uint8)
        decibels[Path(name).stem] = psnr(result, truth)
    return decibels


def measure(work: Path, folder: Path, things: int, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, folder, things, size)
    figures: dict[str, dict[str, float]] = {
        "seen": one_thing(bench, "seen", lambda concept: concept.label, held_out=False),
        "held_out": one_thing(bench, "held_out", lambda concept: concept.label, held_out=True),
        "synonyms": synonyms(bench),
        "backgrounds": backgrounds(bench),
        "pairs": pair_of_things(bench),
        "counts": counts(bench),
        "edits": edits(bench),
        "references": joined(bench),
        "photographs": photographs(bench),
        "aspects": aspects(bench),
    }
    rounded = {group: {name: round(value, 4) for name, value in row.items()} for group, row in figures.items()}
    report = {"model": MINI_MODEL, "things": things, "cases_per_group": size, **rounded}
    (folder / "figures.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.judge")
    parser.add_argument("--to", type=Path, required=True, help="folder for the figures and sheets")
    parser.add_argument("--things", type=int, default=10_000, help="count the first so many things alone")
    parser.add_argument("--size", type=int, default=100, help="cases in each group")
    arguments = parser.parse_args()
    measure(arguments.work, arguments.to, arguments.things, arguments.size)
