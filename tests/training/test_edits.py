"""Check which edits count as right, and which are counted apart."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from training import edits
from training.bench import Case
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


def test_additions_that_need_room_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Scene(arrange([APPLE, OWL], 2, SQUARE), "white", SQUARE)
    beside, filled = (Scene((thing,), "white", SQUARE) for thing in (both.things[0], APPLE))
    cases = [Case("add an owl", both, (before,)) for before in (beside, beside, filled, filled)]
    monkeypatch.setattr(edits, "judge_edits", lambda *_: np.array([True, True, True, False]))
    shares = edits.edits(Painted(), (("add", case) for case in cases), "edit")  # type: ignore[arg-type]
    assert shares == {"add": 0.75, "add_to_full": 0.5}
