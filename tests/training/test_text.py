"""Check what the text encoder is taught to find in a prompt: every thing that it names, and no other."""

from dataclasses import replace

import pytest

from training.data import Concept
from training.families import Sample
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing
from training.text import NONE, classes_of
from training.wording import Edit

CONCEPTS = [Concept("Crab", ("decapod",)), Concept("owl", ()), Concept("Bowl", ())]
CRAB, OWL, BOWL = (1 + number for number in range(3))  # their classes
CROWD = Scene((Thing(0, 0, POSED_SIZE), Thing(1, 0, POSED_SIZE)), "red", SQUARE)
ALONE = replace(CROWD, things=CROWD.things[:1])
FLAT = replace(ALONE, things=(Thing(0, 1, POSED_SIZE),))


@pytest.mark.parametrize(
    ("text", "change", "before", "after", "named"),
    [
        ("make the crab flat", "restyle", ALONE, FLAT, [CRAB, NONE]),
        ("the flat version of the decapod", "restyle", ALONE, FLAT, [CRAB, NONE]),
        ("make it flat", "restyle", ALONE, FLAT, [NONE, NONE]),
        ("remove the owl", "remove", CROWD, ALONE, [OWL, NONE]),
        ("add an owl on the right", "add", ALONE, CROWD, [OWL, NONE]),
        ("add a crab on the left", "add", replace(CROWD, things=CROWD.things[1:]), CROWD, [CRAB, NONE]),
        ("mirror it", "mirror", ALONE, ALONE, [NONE, NONE]),
    ],
)
def test_the_things_that_an_edit_names_are_to_be_found(
    text: str, change: Edit, before: Scene, after: Scene, named: list[int]
) -> None:
    assert classes_of(text, Sample(0, (1,), change), [after, before], CONCEPTS)[:2] == named


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("replace the crab with a bowl", [BOWL, CRAB]),
        ("turn it into a bowl", [BOWL, NONE]),
    ],
)
def test_what_is_replaced_is_found_where_it_is_named(text: str, named: list[int]) -> None:
    after = replace(CROWD, things=(Thing(2, 0, POSED_SIZE), CROWD.things[1]))
    assert classes_of(text, Sample(0, (1,), "replace"), [after, CROWD], CONCEPTS)[:2] == named


def test_a_name_within_a_word_is_none() -> None:
    bowl = replace(ALONE, things=(Thing(1, 1, POSED_SIZE),))
    assert classes_of("the flat version of the bowl", Sample(0, (1,), "restyle"), [bowl, ALONE], CONCEPTS)[0] == NONE
