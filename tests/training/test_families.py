"""Check that every edit pair differs in what was asked for, and in nothing else."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from training.data import STYLES, is_held_out, read_concepts
from training.families import (
    ROWS_OF_A_FAMILY,
    Family,
    Sample,
    counted,
    draw_family,
    draw_sample,
    joined_things,
    one_thing,
    portraits,
    several_things,
    shown_styles,
    two_things,
    word_sample,
)
from training.people import draw_people
from training.scenes import CANVAS_TOKEN_PX, DEFAULT_GRID, POSED_SIZE, SQUARE, VISIBLE, Scene, Thing, halved


def references(family: Family) -> Iterator[tuple[Scene, Scene, str]]:
    """List the edits of one reference as (before, after, change)."""
    for sample in family.samples:
        if len(sample.references) == 1:
            yield family.scenes[sample.references[0]], family.scenes[sample.target], str(sample.change)


def undo(change: str, before: Scene, after: Scene) -> Scene:
    """Take back of `after` what `change` may change, and nothing else."""
    old, new = before.things[0], after.things[0]
    match change:
        case "background":
            return replace(after, background=before.background)
        case "mirror":
            return after.mirror()
        case "tone":
            return replace(after, tone="")
        case "rotate":
            return replace(after, quarter_turns=0)
        case "restyle":
            return replace(after, things=(replace(new, style=old.style),))
        case "recolour":
            return replace(after, things=(replace(new, tint=""),))
        case "resize" | "move":
            return replace(after, things=(replace(new, size=old.size, x=old.x, y=old.y),))
    raise AssertionError(f"a change nobody asked for: {change}")


def test_edits_of_one_thing_differ_only_in_what_was_asked() -> None:
    seen = set()
    for seed in range(40):
        grid = (SQUARE, DEFAULT_GRID, (11, 6))[seed % 3]
        family = one_thing(5, [0, 1, 2], seed % 2 == 0, grid, np.random.default_rng(seed))
        for before, after, change in references(family):
            seen.add((change, after.grid))
            assert before != after
            undone = undo(change, before, after)
            x = undone.things[0].x  # mirroring twice may round
            assert replace(undone, things=(replace(undone.things[0], x=before.things[0].x),)) == before
            assert abs(x - before.things[0].x) < 1e-9
            if change == "resize":
                assert after.things[0] == halved(before.things[0]) or before.things[0] == halved(after.things[0])
    changes = {"background", "restyle", "mirror", "tone", "recolour", "resize", "move"}
    assert {change for change, grid in seen if grid == SQUARE} == changes | {"rotate"}
    assert all({change for change, grid in seen if grid == wide} == changes for wide in (DEFAULT_GRID, (11, 6)))


def test_edits_of_one_reference_keep_its_shape() -> None:
    styles, rng = [[0, 1, 2]] * 40, np.random.default_rng(0)
    families = [draw_family(n, list(range(40)), styles, rng) for n in range(64)] + [portraits(5, [0, 1], rng)]
    edits = [(before.grid, after.grid) for family in families for before, after, _ in references(family)]
    assert all(before == after for before, after in edits)
    assert {(SQUARE, SQUARE), (DEFAULT_GRID, DEFAULT_GRID)} <= set(edits)


def test_captions_and_joins_are_shown_in_squares() -> None:
    concepts, rng = read_concepts(), np.random.default_rng(0)
    styles = [shown_styles(concept) for concept in concepts]
    families = [draw_family(n, list(range(40)), styles, rng) for n in range(64)] + [portraits(5, [0, 1], rng)]
    families += draw_people(concepts, styles, rng)
    shown = [
        {family.scenes[i].grid for i in (sample.target, *sample.references)}
        for family in families
        for sample in family.samples
        if len(sample.references) != 1
    ]
    assert len(shown) > 100
    assert set.union(*shown) == {SQUARE}


def test_portraits_show_a_thing_in_every_style_on_white_and_elsewhere() -> None:
    family = portraits(5, [0, 2, 3], np.random.default_rng(0))
    described = [family.scenes[sample.target] for sample in family.samples if sample.change is None]
    assert Counter(scene.things[0].style for scene in described) == {0: 2, 2: 2, 3: 2}
    assert {s.things[0].style for s in described if s.background == "white"} == {0, 2, 3}
    assert {s.things[0].size for s in described} == {POSED_SIZE}
    for before, after, change in references(family):
        assert undo(change, before, after) == before
        assert before != after


def test_a_move_keeps_the_size_and_goes_one_way() -> None:
    for seed in range(20):
        grid = list(VISIBLE)[seed % len(VISIBLE)]
        family = one_thing(5, [0], seed % 4 < 2, grid, np.random.default_rng(seed))
        for before, after, change in references(family):
            if change == "move":
                height, width = VISIBLE[after.grid]
                old, new = before.things[0], after.things[0]
                assert new.size == old.size
                assert (new.x == old.x) != (new.y == old.y)
                tokens = (abs(new.x - old.x) * width + abs(new.y - old.y) * height) / CANVAS_TOKEN_PX
                assert tokens == pytest.approx(round(tokens))
                half = new.size * min(height, width) / 2
                assert half <= new.x * width <= width - half
                assert half <= new.y * height <= height - half


def test_edits_of_two_things_leave_the_other_as_it_was() -> None:
    changed: set[tuple[object, bool]] = set()
    added: set[tuple[bool, bool]] = set()
    for seed in range(20):
        grid = list(VISIBLE)[seed % len(VISIBLE)]
        family = two_things([(1, 0), (2, 0), (3, 0)], grid, np.random.default_rng(seed))
        for before, after, change in references(family):
            assert (before.background, after.grid) == (after.background, grid)
            match change:
                case "add":
                    ((was, is_now),) = ((a, b) for a in before.things for b in after.things if a.concept == b.concept)
                    added.add((was == is_now, is_now == after.things[0]))
                    assert was == is_now or was == replace(is_now, size=POSED_SIZE, x=0.5, y=0.5)
                case "remove":
                    assert set(after.things) < set(before.things)
                case "replace" | "recolour":
                    ((old, new),) = ((a, b) for a, b in zip(before.things, after.things, strict=True) if a != b)
                    assert replace(new, concept=old.concept, tint="") == old
                    assert new.concept == (3 if change == "replace" else old.concept)
                    changed.add((change, old == before.things[0]))
                case _:
                    raise AssertionError(f"a change nobody asked for: {change}")
    assert len(changed) == 4, "either thing is replaced, and either recoloured"
    assert len(added) == 4, "either thing is added, where there is room and where that has to be made"


def test_two_references_join_in_their_order() -> None:
    family = joined_things([(1, 0), (2, 1)], [0, 1], np.random.default_rng(0))
    for sample in family.samples:
        after = family.scenes[sample.target]
        if sample.change == "replace":
            before = family.scenes[sample.references[0]]
            assert replace(after, things=before.things) == before
            assert (before.things[0].concept, after.things[0].concept) == (2, 1)
            assert before.things[0].style == after.things[0].style == 1, "nobody asked for another style"
            continue
        first, second = (family.scenes[i] for i in sample.references)
        assert (first.things[0].concept, second.things[0].concept) == (1, 2)
        match sample.change:
            case "insert":
                assert after.things[:1] == second.things
                assert after.things[1].concept == 1
            case "place":
                assert (after.things, after.background) == (first.things, second.background)
            case "stack":
                assert {t.concept: t.y < 0.5 for t in after.things} == {1: True, 2: False}
            case "style":
                assert after == replace(first, things=(replace(first.things[0], style=1),))
    assert {sample.change for sample in family.samples} == {"insert", "place", "replace", "stack", "style"}


def test_every_sample_can_be_worded() -> None:
    concepts, rng = read_concepts(), np.random.default_rng(0)
    styles = [shown_styles(concept) for concept in concepts]
    people = list(draw_people(concepts, styles, rng))
    texts = [word_sample(*draw_sample(styles, people, rng), concepts, rng) for _ in range(500)]
    assert all(texts)
    assert len(set(texts)) > 250


def test_families_take_turns_at_what_they_show() -> None:
    styles, rng = [[0, 1]] * 30, np.random.default_rng(0)
    changes = [{s.change for s in draw_family(n, list(range(30)), styles, rng).samples} for n in range(8)]
    assert all("mirror" in changes[n] for n in range(3))
    assert all("add" in changes[n] for n in (3, 4))
    assert changes[5] == {None}
    assert changes[6] & {"row", "grid"}
    assert "insert" in changes[7]


def test_captions_describe_one_pose_alone() -> None:
    for seed in range(20):
        for posed in (True, False):
            family = one_thing(5, [0, 1, 2], posed, SQUARE, np.random.default_rng(seed))
            described = [family.scenes[s.target].things[0] for s in family.samples if not s.references]
            assert bool(described) == posed
            assert {(t.x, t.y, t.mirrored) for t in described} <= {(0.5, 0.5, False)}
            assert {t.size for t in described} <= {POSED_SIZE, POSED_SIZE / 2}


@pytest.mark.parametrize(("count", "rows"), [(2, [2]), (3, [2, 1]), (4, [2, 2])])
def test_as_many_are_shown_as_are_counted(count: int, rows: list[int]) -> None:
    things = counted(Thing(5, 0, POSED_SIZE), count, "white").things
    assert len({(t.x, t.y) for t in things}) == count
    assert [n for _, n in sorted(Counter(t.y for t in things).items())] == rows


def test_several_things_come_together_often_each_time_in_the_order_and_style_of_the_references() -> None:
    chosen = [(3, 0), (7, 2), (9, 1), (4, 3)]
    family = several_things(chosen, np.random.default_rng(0))
    alone, joins = family.samples[:4], family.samples[4:]

    def shown(sample: Sample) -> list[tuple[int, int]]:
        return [(thing.concept, thing.style) for thing in family.scenes[sample.target].things]

    assert [shown(sample) for sample in alone] == [[pair] for pair in chosen]
    assert all(shown(join) == [chosen[i] for i in join.references] for join in joins)
    assert Counter(join.change for join in joins) == {"grid": 1, "row": ROWS_OF_A_FAMILY}
    rows = [join.references for join in joins if join.change == "row"]
    assert {len(references) for references in rows} == {2, 3, 4}
    assert len(set(rows)) == len(rows) > 1
    assert any(list(references) != sorted(references) for references in rows)
    drawn = draw_family(6, list(range(8)), 8 * [[0]], np.random.default_rng(0))
    assert sum(not sample.references for sample in drawn.samples) == 4, "a row may have four"


def test_held_out_pairs_are_never_shown() -> None:
    concepts = read_concepts()
    partly_held_out = 0
    for number, concept in enumerate(concepts):
        styles = shown_styles(concept)
        partly_held_out += 0 < len(styles) < len(STYLES)
        if styles:
            family = one_thing(number, styles, True, SQUARE, np.random.default_rng(number))
            shown = {list(STYLES)[thing.style] for scene in family.scenes for thing in scene.things}
            assert not any(is_held_out(concept.label, style) for style in shown)
    assert partly_held_out > 50
