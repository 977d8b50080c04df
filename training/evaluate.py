"""Measure what klein-mini does against what it was asked, group by group, at fixed seeds.

Names are judged by `training.judge`, which never saw a generated picture; everything else is measured in pixels
against the true outcome, which is known because prompts and references come from scenes.
`python -m training.evaluate --work FOLDER --to docs/klein-mini` writes figures.json, a sheet for each group, and a
page of failures; with `--of-real` only possible.json, the figures of the true outcomes.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.device import choose_device
from openklein.engine.tokens import Grid
from openklein.engine.weights import load_card, load_pipeline
from training.batches import COMMON_THINGS
from training.bench import Bench, Case, Verdicts, shrink
from training.data import STYLES, Concept
from training.export import export
from training.families import Family, Sample, changed_scenes, counted, joined_things, moved, two_things, word_sample
from training.fidelity import photographs, round_trips
from training.measures import DELTA_E_LIMIT, border, count_parts, delta_e, is_exact, psnr
from training.model import load_model
from training.people import draw_people
from training.scenes import (
    COLOURS,
    POSED_SIZE,
    SQUARE,
    Layout,
    Scene,
    Thing,
    arrange,
    columns_of,
    default_style,
    grid_of,
    halved,
)
from training.wording import NUMBERS, plural, word_edit, word_join, word_noun

PROMPTS = Path(__file__).with_name("prompts")
HELD_OUT_WORDS, PLAIN_WORDS = PROMPTS / "held_out", PROMPTS / "plain" / "edits.txt"
TEACHER_STEPS, TEACHER_GUIDANCE = 30, 3.0
UNCHANGED_PSNR_DB, KEPT_PSNR_DB = 30.0, 20.0
Shares = dict[str, float]


def alone(thing: int, style: int, background: str = "white", grid: Grid = SQUARE) -> Scene:
    return Scene((Thing(thing, style, POSED_SIZE),), background, grid)


def named(bench: Bench, thing: int, style: int) -> str:
    return f"{list(STYLES)[style]} {bench.concepts[thing].label.lower()}"


def name_things(bench: Bench, group: str, cases: list[Case]) -> Shares:
    """Draw things, and see how often the judge names each first, and among its first five."""
    results = bench.run(cases, group)
    ranks = bench.ranks(results, [case.target.things[0] for case in cases])
    return {"top_1": float((ranks == 0).mean()), "top_5": bench.share(group, cases, results, ranks < 5)}


def one_thing(bench: Bench, group: str, *, held_out: bool = False) -> Shares:
    pairs = bench.pairs(held_out=held_out)
    return name_things(bench, group, [Case(named(bench, *pair), alone(*pair)) for pair in pairs])


def by_name(
    bench: Bench, group: str, among: Sequence[int], name: Callable[[Concept], str], aspect: str = "square"
) -> Shares:
    """Ask for things by a name alone, in the style that they get without one."""
    chosen = bench.rng.permutation(among)[: bench.size]
    things = [(bench.concepts[i], alone(i, default_style(bench.concepts[i]))) for i in chosen]
    cases = [Case(word_noun(name(concept).lower()), scene, aspect=aspect) for concept, scene in things]
    return name_things(bench, group, cases)


def teacher(bench: Bench) -> Shares:
    """Draw the seen pairs with the model before its distillation, in thirty guided steps."""
    folder = bench.work / "teacher"
    export(load_model(bench.work / "flow"), bench.work, folder)
    card = replace(KLEIN_MINI, steps=TEACHER_STEPS, guidance=TEACHER_GUIDANCE)
    bench = Bench(bench.work, bench.folder, load_card(card, folder, choose_device()), len(bench.concepts), bench.size)
    return one_thing(bench, "teacher")  # with the same numbers at random as the student's


def aspects(bench: Bench) -> Shares:
    pairs, shares = bench.pairs(), {}
    for aspect in RESOLUTIONS:
        cases = [Case(named(bench, *pair), alone(*pair), aspect=aspect) for pair in pairs]
        shares[aspect] = name_things(bench, f"aspect_{aspect.replace(':', '_')}", cases)["top_1"]
    return shares


def backgrounds(bench: Bench) -> Shares:
    cases = [
        Case(f"{word_noun(bench.concepts[i].label.lower())} on a {colour} background", alone(i, 0, str(colour)))
        for (i, _), colour in zip(bench.pairs(), np.resize(list(COLOURS), bench.size), strict=False)
    ]
    results = bench.run(cases, "backgrounds")
    return {"right": bench.share("backgrounds", cases, results, background_distances(results, cases) < DELTA_E_LIMIT)}


def background_distances(results: Sequence[Image.Image], cases: Sequence[Case]) -> NDArray[np.float64]:
    pairs = zip(results, cases, strict=True)
    return np.array([delta_e(border(np.asarray(result)), case.target.background) for result, case in pairs])


def two_side_by_side(bench: Bench) -> Shares:
    """Ask for two things side by side; look for each on its own side, and on either."""
    cases = []
    for (one, style), (two, _) in zip(bench.pairs(), bench.pairs(), strict=True):
        things = arrange([Thing(one, style, POSED_SIZE), Thing(two, style, POSED_SIZE)], 2, SQUARE)
        left, right = (word_noun(bench.concepts[i].label.lower()) for i in (one, two))
        cases.append(Case(f"{left} to the left of {right}", Scene(things, "white", SQUARE)))
    results = bench.run(cases, "pairs")
    here = [bench.ranks(results, [case.target.things[side] for case in cases]) < 5 for side in (0, 1)]
    there = [bench.ranks(results, [case.target.mirror().things[side] for case in cases]) < 5 for side in (0, 1)]
    return {
        "both_present": float(((here[0] | there[0]) & (here[1] | there[1])).mean()),
        "positions_right": bench.share("pairs", cases, results, here[0] & here[1]),
    }


def counts(bench: Bench, group: str, aspect: str = "square") -> Shares:
    """Ask for one to four of a thing; one of several parts counts as many, so compare with as many real ones."""
    cases, grid = [], grid_of(*RESOLUTIONS[aspect])
    for number, (thing, _) in enumerate(bench.pairs()):
        count, noun = 1 + number % 4, bench.concepts[thing].label.lower()
        one = alone(thing, default_style(bench.concepts[thing]), grid=grid)
        prompt = f"{NUMBERS[count]} {noun if count == 1 else plural(noun)}"
        target = one if count == 1 else counted(one.things[0], count, "white", grid)
        cases.append(Case(prompt, target, aspect=aspect))
    results = bench.run(cases, group)
    right = [
        count_parts(np.asarray(result)) == count_parts(np.asarray(bench.picture(case.target)))
        for result, case in zip(results, cases, strict=True)
    ]
    return {"right": bench.share(group, cases, results, np.array(right))}


def restyled(bench: Bench, scene: Scene) -> Scene:
    """Redraw the thing of a scene in its next style."""
    (thing,) = scene.things
    shown = [*bench.styles[thing.concept], thing.style]
    return replace(scene, things=(replace(thing, style=shown[(shown.index(thing.style) + 1) % len(shown)]),))


def edit_case(bench: Bench, family: Family, sample: Sample) -> Case:
    before, after = family.scenes[sample.references[0]], family.scenes[sample.target]
    return Case(word_sample(sample, family.scenes, bench.concepts, bench.rng), after, (before,))


def edit_cases(bench: Bench, grid: Grid = SQUARE) -> Iterator[tuple[str, Case]]:
    """Make every kind of edit of one thing and of two."""
    names = list(COLOURS)
    for number, (thing, style) in enumerate(bench.pairs()):
        base = alone(thing, style, names[number % len(names)], grid)
        edits: list[tuple[str, Scene]] = list(changed_scenes(base, bench.rng))
        edits.append(("background", replace(base, background=names[(number + 5) % len(names)])))
        edits.append(("tone", replace(base, tone="greyscale")))
        edits.append(("restyle", restyled(bench, base)))
        for change, after in edits:
            if psnr(bench.paint(after), bench.paint(base)) < UNCHANGED_PSNR_DB:  # as a mirrored ball is not
                prompt = word_edit(change, base, after, bench.concepts, bench.rng)  # type: ignore[arg-type]
                yield (after.tone or change), Case(prompt, after, (base,))
        small = replace(base, things=(halved(base.things[0]),))  # which leaves room
        after = moved(small, bench.rng)
        yield "move", Case(word_edit("move", small, after, bench.concepts, bench.rng), after, (small,))
        one, two = bench.pairs()[:2]
        pair = two_things([(thing, style), one, two], grid, bench.rng)
        for family in (pair, joined_things([one, two], [], grid, bench.rng)):
            for sample in family.samples:
                if sample.change in ("add", "remove", "replace"):
                    yield sample.change, edit_case(bench, family, sample)


def people_cases(bench: Bench) -> Iterator[tuple[str, Case]]:
    """Make the edits that people and faces alone can have."""
    families = list(draw_people(bench.concepts, bench.styles, bench.rng))
    for number in bench.rng.permutation(len(families))[: 2 * bench.size]:
        sample = families[number].samples[0]
        assert sample.change in ("skin", "expression")
        yield sample.change, edit_case(bench, families[number], sample)


def judge_edits(bench: Bench, change: str, cases: Sequence[Case], results: Sequence[Image.Image]) -> Verdicts:
    """Tell which edits are right: by name where something new is drawn, in pixels everywhere else.

    A restyled thing has to be named right, and be nearer to itself in the style asked for than in any other.
    """
    if change in ("add", "replace", "expression"):
        return bench.all_in_place(results, cases)
    if change == "restyle":
        right = [nearest_style(bench, result, case) for result, case in zip(results, cases, strict=True)]
        return np.array(right) & bench.all_in_place(results, cases)
    unchanged = (bench.paint(replace(case.sources[0], grid=case.target.grid)) for case in cases)
    pictures = zip(results, (bench.paint(case.target) for case in cases), unchanged, strict=True)
    return np.array([is_exact(*triple) for triple in pictures])


def nearest_style(bench: Bench, result: Image.Image, case: Case) -> bool:
    (thing,) = case.target.things
    real = [bench.paint(replace(case.target, things=(replace(thing, style=i),))) for i in range(len(STYLES))]
    return int(np.argmax([psnr(shrink(result, picture), picture) for picture in real])) == thing.style


def edits(bench: Bench, asked: Iterable[tuple[str, Case]], group: str) -> Shares:
    """Make edits, and see which are right; of a changed background also how well it keeps the thing."""
    by_change: dict[str, list[Case]] = {}
    for change, case in asked:
        by_change.setdefault(change, []).append(case)
    shares = {}
    for change, cases in by_change.items():
        results = bench.run(cases, f"{group}_{change}")
        shares[change] = bench.share(f"{group}_{change}", cases, results, judge_edits(bench, change, cases, results))
        if change == "background":
            decibels = np.array([bench.object_psnr(result, case) for result, case in zip(results, cases, strict=True)])
            right = background_distances(results, cases) < DELTA_E_LIMIT
            shares["object_psnr_db"] = float(decibels.mean())
            shares["coloured_and_kept"] = float((right & (decibels >= KEPT_PSNR_DB)).mean())
    return shares


def references(bench: Bench, group: str, aspect: str = "square") -> Shares:
    """Make one picture of several; everything has to be recognised in its place."""
    by_change: dict[str, list[Case]] = {}
    grid = grid_of(*RESOLUTIONS[aspect])
    pairs = [*bench.pairs(), *bench.pairs()]
    for number in range(bench.size // 2):
        things = [Thing(*pairs[i % len(pairs)], POSED_SIZE) for i in range(3 * number, 3 * number + 2 + number % 3)]
        sources = tuple(Scene((thing,), "white", grid) for thing in things)
        layouts: tuple[Layout, ...] = ("row", "grid") if len(things) > 2 else ("row",)
        for layout in layouts:
            target = Scene(arrange(things, columns_of(layout, len(things)), grid), "white", grid)
            by_change.setdefault(layout, []).append(Case(f"put them in a {layout}", target, sources, aspect))
        family = joined_things([pairs[2 * number], pairs[2 * number + 1]], [], grid, bench.rng)
        for sample in family.samples:
            if sample.change == "replace":  # which is an edit of one picture
                continue
            assert sample.change in ("insert", "place", "stack")
            shown = tuple(family.scenes[i] for i in sample.references)
            case = Case(word_join(sample.change, bench.rng), family.scenes[sample.target], shown, aspect)
            by_change.setdefault(sample.change, []).append(case)
    shares = {}
    for change, cases in by_change.items():
        results = bench.run(cases, f"{group}_{change}")
        shares[change] = bench.share(f"{group}_{change}", cases, results, bench.all_in_place(results, cases))
    return shares


def held_out_words(bench: Bench) -> Shares:
    """Ask in words that no training prompt has used."""
    captions = (HELD_OUT_WORDS / "captions.txt").read_text("utf-8").splitlines()
    pairs = bench.pairs()
    cases = [
        Case(captions[n % len(captions)].format(thing=word_noun(named(bench, *pair))), alone(*pair))
        for n, pair in enumerate(pairs)
    ]
    shares = {f"caption_{name}": share for name, share in name_things(bench, "words_caption", cases).items()}
    return shares | edits(bench, reworded(bench, HELD_OUT_WORDS / "edits.txt"), "words")


def reworded(bench: Bench, file: Path, aspect: str = "square") -> Iterator[tuple[str, Case]]:
    """Ask for edits in the words of a file, lines of a change and a phrasing: every other one of a square picture."""
    words: dict[str, list[str]] = {}
    for line in file.read_text("utf-8").splitlines():
        change, _, text = line.partition(" | ")
        words.setdefault(change, []).append(text)
    for number, (change, case) in enumerate(edit_cases(bench, grid_of(*RESOLUTIONS[aspect]))):
        if change in words:
            (thing, *_), text = case.target.things, words[change][number % len(words[change])]
            colour = thing.tint or case.target.background
            prompt = text.format(colour=colour, style=list(STYLES)[thing.style])
            sources = tuple(replace(scene, grid=SQUARE) for scene in case.sources) if number % 2 else case.sources
            yield change, replace(case, prompt=prompt, sources=sources, aspect=aspect)


def evaluate(work: Path, folder: Path, things: int, size: int, *, of_real: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = None if of_real else load_pipeline(MINI_MODEL, Path("/nonexistent"))
    bench = Bench(work, folder, pipeline, things, size)
    every = range(len(bench.concepts))
    with_aliases = [i for i in every if bench.concepts[i].aliases]
    figures: dict[str, Shares] = {
        "seen": one_thing(bench, "seen"),
        "held_out": one_thing(bench, "held_out", held_out=True),
        "synonyms": by_name(bench, "synonyms", with_aliases, lambda c: c.aliases[-1]),
        "held_out_words": held_out_words(bench),
        "backgrounds": backgrounds(bench),
        "pairs": two_side_by_side(bench),
        "counts": counts(bench, "counts"),
        "plain_words": edits(bench, reworded(bench, PLAIN_WORDS), "plain_words"),
        "edits": edits(bench, chain(edit_cases(bench), people_cases(bench)), "edit"),
        "references": references(bench, "references"),
        "aspects": aspects(bench),
        "by_name": by_name(bench, "by_name", every, lambda c: c.label),
        "by_name_landscape": by_name(bench, "by_name_landscape", every, lambda c: c.label, "landscape"),
        "common": by_name(bench, "common", every[:COMMON_THINGS], lambda c: c.label),
        "landscape_counts": counts(bench, "landscape_counts", "landscape"),
        "landscape_references": references(bench, "landscape_references", "landscape"),
        "landscape_words": edits(bench, reworded(bench, PLAIN_WORDS, "landscape"), "landscape_words"),
    }
    if bench.pipeline:
        figures["photographs"] = photographs(work, bench.pipeline)
        figures["round_trips"] = round_trips(bench)
        if (work / "flow").exists():
            figures["teacher"] = teacher(bench)
        bench.write_failures()
    else:  # a teacher would draw them no better
        figures["teacher"] = figures["seen"]
    rounded = {group: {name: round(value, 4) for name, value in row.items()} for group, row in figures.items()}
    report = {"things": len(bench.concepts), "cases_per_group": size, **rounded}
    (folder / ("possible.json" if of_real else "figures.json")).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.judge and training.flow")
    parser.add_argument("--to", type=Path, required=True, help="folder for the figures and sheets")
    parser.add_argument("--things", type=int, default=10_000, help="count the first so many things alone")
    parser.add_argument("--size", type=int, default=100, help="cases in each group")
    parser.add_argument("--of-real", action="store_true", help="judge the true outcomes: the most that is possible")
    arguments = parser.parse_args()
    evaluate(arguments.work, arguments.to, arguments.things, arguments.size, of_real=arguments.of_real)
