"""Measure what klein-mini does against what it was asked, group by group, at fixed seeds.

Names are judged by `training.judge`, which never saw a generated picture; everything else is measured in pixels
against the true outcome, which is known because prompts and references come from scenes.
`python -m training.evaluate --work FOLDER --to docs/klein-mini` writes figures.json, a sheet for each group, and a
page of failures; with `--of-real` only possible.json, the figures of the true outcomes.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.device import choose_device
from openklein.engine.weights import load_card, load_pipeline
from training.batches import COMMON_THINGS
from training.bench import Bench, Case, Shares, alone, backgrounds_right
from training.data import STYLES, Concept
from training.edits import edit_cases, edits, nearest_style, people_cases, references, reworded
from training.export import export
from training.families import counted
from training.fidelity import photographs, round_trips
from training.measures import count_parts
from training.model import load_model
from training.phrases import PROMPTS
from training.scenes import COLOURS, POSED_SIZE, SQUARE, Scene, Thing, arrange, default_style
from training.wording import NUMBERS, plural, word_noun

HELD_OUT_WORDS, PLAIN_WORDS = PROMPTS / "held_out", PROMPTS / "plain" / "edits.txt"
TEACHER_STEPS, TEACHER_GUIDANCE = 30, 3.0


def named(bench: Bench, thing: int, style: int) -> str:
    return f"{list(STYLES)[style]} {bench.concepts[thing].label.lower()}"


def name_things(bench: Bench, group: str, cases: list[Case]) -> Shares:
    """Draw things; see which the judge names first, or among its first five, and which are in their style."""
    results = bench.run(cases, group)
    ranks = bench.ranks(results, [case.target.things[0] for case in cases])
    styled = np.mean([nearest_style(bench, result, case) for result, case in zip(results, cases, strict=True)])
    top_5 = bench.share(group, cases, results, ranks < 5)
    return {"top_1": float((ranks == 0).mean()), "top_5": top_5, "in_style": float(styled)}


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
    return {"right": bench.share("backgrounds", cases, results, backgrounds_right(results, cases))}


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
    cases = []
    for number, (thing, _) in enumerate(bench.pairs()):
        count, noun = 1 + number % 4, bench.concepts[thing].label.lower()
        one = alone(thing, default_style(bench.concepts[thing]))
        prompt = f"{NUMBERS[count]} {noun if count == 1 else plural(noun)}"
        target = one if count == 1 else counted(one.things[0], count, "white")
        cases.append(Case(prompt, target, aspect=aspect))
    results = bench.run(cases, group)
    right = [
        count_parts(np.asarray(result)) == count_parts(np.asarray(bench.picture(case.target)))
        for result, case in zip(results, cases, strict=True)
    ]
    return {"right": bench.share(group, cases, results, np.array(right))}


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


def evaluate(work: Path, folder: Path, things: int, size: int, *, of_real: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = None if of_real else load_pipeline(MINI_MODEL, Path("/nonexistent"))
    photos = photographs(work, pipeline) if pipeline else {}  # first: what is missing is missed in seconds
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
        figures["photographs"] = photos
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
