"""Check which edits count as right, and which are counted apart."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from training import edits
from training.bench import Case
from training.data import STYLES, Concept
from training.measures import Pixels
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange

APPLE, OWL = Thing(0, 2, POSED_SIZE), Thing(1, 2, POSED_SIZE)


class Painted:
    """Stand in for a bench whose pictures are as bright as their style's number says, and that makes no edit."""

    def paint(self, scene: Scene) -> Pixels:
        return np.full((64, 64, 3), 60 * scene.things[0].style, np.uint8)

    def run(self, cases: Sequence[Case], _: str) -> list[Image.Image]:
        return [Image.new("RGB", (64, 64)) for _ in cases]

    def share(self, _: str, __: Sequence[Case], ___: Sequence[Image.Image], right: np.ndarray) -> float:
        return float(right.mean())


@pytest.mark.parametrize(("brightness", "nearest"), [(0, 0), (70, 1), (115, 2), (255, 3)])
def test_a_thing_is_in_the_style_that_it_is_nearest_to(brightness: int, nearest: int) -> None:
    result = Image.new("RGB", (256, 256), (brightness,) * 3)
    cases = [Case("", Scene((Thing(0, style, POSED_SIZE),), "white", SQUARE)) for style in range(4)]
    found = [edits.nearest_style(Painted(), result, case) for case in cases]  # type: ignore[arg-type]
    assert found == [style == nearest for style in range(4)]


def test_sorts_of_additions_and_replacements_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Scene(arrange([APPLE, OWL], 2, SQUARE), "white", SQUARE)
    beside, filled = (Scene((thing,), "white", SQUARE) for thing in (both.things[0], APPLE))
    added = [("add", Case("add an owl", both, (before,))) for before in (beside, beside, filled, filled)]
    replaced = [("replace", Case("", filled, (before,))) for before in (both, both, beside, both)]
    monkeypatch.setattr(edits, "judge_edits", lambda *_: np.array([True, True, True, False]))
    shares = edits.edits(Painted(), added + replaced, "edit")  # type: ignore[arg-type]
    of_additions = {"add": 0.75, "add_right": 1, "add_to_full_right": 0.5}
    assert shares == {**of_additions, "replace": 0.75, "replace_alone": 1, "replace_of_two": pytest.approx(2 / 3)}
    assert edits.sort_of("row", Case("", both, (filled, beside))) == "row_of_2"
    assert edits.sort_of("mirror", Case("", both, (filled,))) == ""


def test_phrasings_name_what_changes() -> None:
    bench = SimpleNamespace(concepts=[Concept("red apple", ()), Concept("owl", ())])
    both = Scene(arrange([APPLE, OWL], 2, SQUARE), "teal", SQUARE)
    alone, first = (replace(both, things=(thing,)) for thing in (OWL, both.things[0]))
    tinted = replace(alone, things=(replace(OWL, tint="pink"),))
    asked = [
        edits.asked_for(bench, Case("", after, (before,)))  # type: ignore[arg-type]
        for before, after in [(both, first), (first, both), (replace(both, things=(APPLE,)), alone), (alone, tinted)]
    ]
    assert [words["thing"] for words in asked] == ["owl", "red apple", "red apple", "owl"]
    assert [words["other"] for words in asked[1:3]] == ["an owl", "an owl"]
    assert [words["colour"] for words in asked] == ["teal", "teal", "teal", "pink"]
    assert {words["style"] for words in asked} == {list(STYLES)[2]}


def test_phrasings_are_listed_by_kind() -> None:
    both = Scene(arrange([APPLE, OWL], 2, SQUARE), "white", SQUARE)
    alone = replace(both, things=(APPLE,))
    turned = [Case("", replace(alone, quarter_turns=turns), (alone,)) for turns in (1, 2, 3)]
    assert [edits.kind_of("rotate", case) for case in turned] == ["rotate left", "upside down", "rotate right"]
    assert edits.kind_of("add", Case("", both, (alone,))) == "add right"
    assert edits.kind_of("resize", Case("", alone, (alone,))) == "smaller"
    assert edits.kind_of("greyscale", Case("", alone, (alone,))) == "greyscale"
