"""Check which pictures the flow learns from."""

from pathlib import Path

import numpy as np

from training.data import read_concepts
from training.families import shown_styles
from training.pool import Families
from training.scenes import SQUARE


def test_no_thing_is_missed_in_a_style_that_it_is_shown_in_and_none_is_shown_in_another() -> None:
    concepts = read_concepts()
    pairs = {(number, style) for number, concept in enumerate(concepts) for style in shown_styles(concept)}
    on_white, seen = set(), set()
    for family in Families(Path(), count=8, seed=0).draw(concepts, np.random.default_rng(0)):
        for sample in family.samples:
            scene = family.scenes[sample.target]
            shown = {(thing.concept, thing.style) for thing in scene.things}
            seen |= shown
            if sample.change is None and (scene.background, scene.grid) == ("white", SQUARE):
                on_white |= shown
    assert on_white == seen == pairs
