"""Check that every edit pair differs in what was asked for, and in nothing else."""

from dataclasses import replace

import numpy as np

from training.data import STYLES, is_held_out, read_concepts
from training.pool import POSED_SIZE, one_thing, several_things, shown_styles


def test_edit_pairs_differ_only_in_what_was_asked() -> None:
    for seed in range(20):
        family = one_thing(5, [0, 1, 2], seed % 2 == 0, np.random.default_rng(seed))
        for sample in family.samples:
            target = family.scenes[sample.target]
            for reference in (family.scenes[i] for i in sample.references):
                before = replace(reference, grid=target.grid)
                match sample.change:
                    case "background":
                        assert before.background != target.background
                        assert replace(before, background=target.background) == target
                    case "mirror":
                        assert before.mirror().things[0].mirrored == target.things[0].mirrored
                        assert before.background == target.background
                    case "greyscale":
                        assert replace(before, greyscale=True) == target
                    case "restyle":
                        assert before.things[0].style != target.things[0].style
                        assert replace(target.things[0], style=before.things[0].style) == before.things[0]
                    case _:
                        raise AssertionError(f"a change nobody asked for: {sample}")


def test_captions_describe_one_pose_alone() -> None:
    for seed in range(20):
        for posed in (True, False):
            family = one_thing(5, [0, 1, 2], posed, np.random.default_rng(seed))
            described = [family.scenes[s.target].things[0] for s in family.samples if not s.references]
            assert bool(described) == posed
            assert {(t.size, t.x, t.y, t.mirrored) for t in described} <= {(POSED_SIZE, 0.5, 0.5, False)}


def test_several_things_keep_their_order_and_style() -> None:
    chosen = [(3, 0), (7, 2), (9, 1)]
    family = several_things(chosen, np.random.default_rng(0))
    together = family.samples[-1]
    assert [(t.concept, t.style) for t in family.scenes[together.target].things] == chosen
    assert [
        (family.scenes[i].things[0].concept, family.scenes[i].things[0].style) for i in together.references
    ] == chosen
    assert together.change in ("row", "grid")


def test_held_out_pairs_are_never_shown() -> None:
    concepts = read_concepts()
    partly_held_out = 0
    for number, concept in enumerate(concepts):
        styles = shown_styles(concept)
        partly_held_out += 0 < len(styles) < len(STYLES)
        if styles:
            family = one_thing(number, styles, True, np.random.default_rng(number))
            shown = {list(STYLES)[thing.style] for scene in family.scenes for thing in scene.things}
            assert not any(is_held_out(concept.label, style) for style in shown)
    assert partly_held_out > 50
