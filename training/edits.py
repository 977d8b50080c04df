"""Ask for every kind of edit and join, of scenes whose true outcome is known, and judge what comes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from openklein.contract import RESOLUTIONS
from openklein.engine.tokens import Grid
from training.bench import Bench, Case, Shares, Verdicts, alone, backgrounds_right, shrink
from training.data import STYLES
from training.families import Family, Sample, changed_scenes, joined_things, moved, two_things, word_sample
from training.measures import is_exact, psnr
from training.people import draw_people
from training.phrases import read_phrases
from training.scenes import COLOURS, POSED_SIZE, SQUARE, Layout, Scene, Thing, arrange, columns_of, grid_of, halved
from training.wording import TURNS, added, caption, say, side_added, with_article, word_edit, word_new_style

UNCHANGED_PSNR_DB, KEPT_PSNR_DB = 30.0, 20.0
RESTYLES = ("restyle", "restyle_by_name", "restyle_described")  # it; the thing by its name; what should come


def edit_cases(bench: Bench, grid: Grid = SQUARE) -> Iterator[tuple[str, Case]]:
    """Make every kind of edit of one thing and of two."""
    names = list(COLOURS)
    for number, (thing, style) in enumerate(bench.pairs()):
        base = alone(thing, style, names[number % len(names)], grid)
        edits: list[tuple[str, Scene]] = list(changed_scenes(base, bench.rng))
        edits.append(("background", replace(base, background=names[(number + 5) % len(names)])))
        edits.append(("tone", replace(base, tone="greyscale")))
        for change, after in edits:
            if differ(bench, base, after):
                prompt = word_edit(change, base, after, bench.concepts, bench.rng)  # type: ignore[arg-type]
                yield (after.tone or change), Case(prompt, after, (base,))
        after = restyled(bench, base)
        if differ(bench, base, after):
            new, words = after.things[0], (bench.concepts, bench.rng)
            yield "restyle", Case(word_new_style(new, *words, by_name=False), after, (base,))
            yield "restyle_by_name", Case(word_new_style(new, *words, by_name=True), after, (base,))
            yield "restyle_described", Case(caption(after, *words), after, (base,))
        small = replace(base, things=(halved(base.things[0]),))  # which leaves room
        after = moved(small, bench.rng)
        yield "move", Case(word_edit("move", small, after, bench.concepts, bench.rng), after, (small,))
        one, two = bench.pairs()[:2]
        pair = two_things([(thing, style), one, two], grid, bench.rng)
        for family in (pair, joined_things([one, two], [], bench.rng)):
            for sample in family.samples:
                if sample.change in ("add", "remove", "replace"):
                    yield sample.change, edit_case(bench, family, sample)


def differ(bench: Bench, before: Scene, after: Scene) -> bool:
    """Tell whether two scenes look different, as a ball and its mirror image do not."""
    return psnr(bench.paint(after), bench.paint(before)) < UNCHANGED_PSNR_DB


def restyled(bench: Bench, scene: Scene) -> Scene:
    """Redraw the thing of a scene in its next style."""
    (thing,) = scene.things
    shown = [*bench.styles[thing.concept], thing.style]
    return replace(scene, things=(replace(thing, style=shown[(shown.index(thing.style) + 1) % len(shown)]),))


def edit_case(bench: Bench, family: Family, sample: Sample) -> Case:
    before, after = family.scenes[sample.references[0]], family.scenes[sample.target]
    return Case(word_sample(sample, family.scenes, bench.concepts, bench.rng), after, (before,))


def people_cases(bench: Bench) -> Iterator[tuple[str, Case]]:
    """Make the edits that people and faces alone can have."""
    families = list(draw_people(bench.concepts, bench.styles, bench.rng))
    for number in bench.rng.permutation(len(families))[: 2 * bench.size]:
        sample = families[number].samples[0]
        assert sample.change in ("skin", "expression")
        yield sample.change, edit_case(bench, families[number], sample)


def reworded(bench: Bench, file: Path, aspect: str = "square") -> Iterator[tuple[str, Case]]:
    """Ask for edits in the words of a file, lines of a kind and a phrasing: every other one of a square picture."""
    words = read_phrases(file)
    for number, (change, case) in enumerate(edit_cases(bench, grid_of(*RESOLUTIONS[aspect]))):
        if phrases := words.get(kind_of(change, case)):
            prompt = phrases[number % len(phrases)].format(**asked_for(bench, case))
            if number % 2:
                case = replace(case, target=squared(case.target), sources=tuple(map(squared, case.sources)))
            yield change, replace(case, prompt=prompt, aspect=aspect)


def kind_of(change: str, case: Case) -> str:
    """Tell under which name the phrasings of an edit are listed."""
    match change:
        case "rotate":
            return TURNS[case.target.quarter_turns]
        case "resize":
            return "smaller"
        case "add":
            return f"add {side_added(case.sources[0], case.target)}"
    return change


def asked_for(bench: Bench, case: Case) -> dict[str, str]:
    """Give what a phrasing may name: the thing that changes, another one, a colour and a style."""
    before, after = case.sources[0], case.target
    old = next((thing for thing in before.things if thing not in after.things), before.things[0])
    new = added(before, after) if set(after.things) - set(before.things) else after.things[0]
    thing, other = (bench.concepts[t.concept].label.lower() for t in (old, new))
    colour, style = new.tint or after.background, list(STYLES)[new.style]
    return {"thing": thing, "other": with_article(other), "colour": colour, "style": style}


def squared(scene: Scene) -> Scene:
    return replace(scene, grid=SQUARE)


def edits(bench: Bench, asked: Iterable[tuple[str, Case]], group: str) -> Shares:
    """Make edits, and see which are right.

    Of additions and replacements, also each sort; of changed backgrounds, also how well the thing is kept.
    """
    by_change: dict[str, list[Case]] = {}
    for change, case in asked:
        by_change.setdefault(change, []).append(case)
    shares = {}
    for change, cases in by_change.items():
        results = bench.run(cases, f"{group}_{change}")
        right = judge_edits(bench, change, cases, results)
        shares[change] = bench.share(f"{group}_{change}", cases, results, right)
        shares |= sorted_apart([sort_of(change, case) for case in cases], right)
        if change == "background":
            decibels = np.array([bench.object_psnr(result, case) for result, case in zip(results, cases, strict=True)])
            coloured = backgrounds_right(results, cases)
            shares["object_psnr_db"] = float(decibels.mean())
            shares["coloured_and_kept"] = float((coloured & (decibels >= KEPT_PSNR_DB)).mean())
    return shares


def sort_of(change: str, case: Case) -> str:
    """Tell additions apart by where they go and whether that takes room, replacements by what stays, rows by length."""
    before = case.sources[0].things
    match change:
        case "add":
            full = "" if before[0] in case.target.things else "_to_full"
            return f"add{full}_{side_added(case.sources[0], case.target)}"
        case "replace":
            return "replace_of_two" if len(before) > 1 else "replace_alone"
        case "row":
            return f"row_of_{len(case.sources)}"
    return ""


def sorted_apart(sorts: Sequence[str], right: Verdicts) -> Shares:
    """Give the share that is right of each sort that has a name."""
    return {sort: float(right[[sort == other for other in sorts]].mean()) for sort in sorted(set(sorts)) if sort}


def judge_edits(bench: Bench, change: str, cases: Sequence[Case], results: Sequence[Image.Image]) -> Verdicts:
    """Tell which edits are right: by name where something new is drawn, in pixels everywhere else.

    A restyled thing has to be named right, and be nearer to itself in the style asked for than in any other.
    """
    if change in ("add", "replace", "expression"):
        return bench.all_in_place(results, cases)
    if change in RESTYLES:
        right = [nearest_style(bench, result, case) for result, case in zip(results, cases, strict=True)]
        return np.array(right) & bench.all_in_place(results, cases)
    unchanged = (bench.paint(replace(case.sources[0], grid=case.target.grid)) for case in cases)
    pictures = zip(results, (bench.paint(case.target) for case in cases), unchanged, strict=True)
    return np.array([is_exact(*triple) for triple in pictures])


def nearest_style(bench: Bench, result: Image.Image, case: Case) -> bool:
    (thing,) = case.target.things
    real = [bench.paint(replace(case.target, things=(replace(thing, style=i),))) for i in range(len(STYLES))]
    return int(np.argmax([psnr(shrink(result, picture), picture) for picture in real])) == thing.style


def references(bench: Bench, group: str, aspect: str = "square") -> Shares:
    """Make one picture of several, all in this aspect ratio; everything has to be recognised in its place."""
    by_change: dict[str, list[Case]] = {}
    grid = grid_of(*RESOLUTIONS[aspect])
    pairs = [*bench.pairs(), *bench.pairs()]
    for number in range(bench.size // 2):
        things = [Thing(*pairs[i % len(pairs)], POSED_SIZE) for i in range(3 * number, 3 * number + 2 + number % 3)]
        sources = tuple(Scene((thing,), "white", grid) for thing in things)
        layouts: tuple[Layout, ...] = ("row", "grid") if len(things) > 2 else ("row",)
        for layout in layouts:
            target = Scene(arrange(things, columns_of(layout, len(things)), SQUARE), "white", SQUARE)
            by_change.setdefault(layout, []).append(Case(f"put them in a {layout}", target, sources, aspect))
        family = joined_things([pairs[2 * number], pairs[2 * number + 1]], [], bench.rng)
        for sample in family.samples:
            if sample.change == "replace":  # which is an edit of one picture
                continue
            assert sample.change in ("insert", "place", "stack")
            shown = tuple(replace(family.scenes[i], grid=grid) for i in sample.references)
            case = Case(say(bench.rng, sample.change), family.scenes[sample.target], shown, aspect)
            by_change.setdefault(sample.change, []).append(case)
    shares = {}
    for change, cases in by_change.items():
        results = bench.run(cases, f"{group}_{change}")
        right = bench.all_in_place(results, cases)
        shares[change] = bench.share(f"{group}_{change}", cases, results, right)
        shares |= sorted_apart([sort_of(change, case) for case in cases], right)
    return shares
