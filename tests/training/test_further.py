"""Check what the weights that ship are held to, and what they are taught, when they learn more."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from training.data import Concept
from training.families import Sample
from training.further import at_ends, draw_renamed, known_words
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing

CONCEPTS = [Concept("Apple", ("fruit",))]
APPLE = Thing(0, 0, POSED_SIZE)
ON_WHITE = Scene((APPLE,), "white", SQUARE)


def scene(background: str = "white", **changes: object) -> Scene:
    return Scene((replace(APPLE, **changes),), background, SQUARE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (ON_WHITE, "an apple"),
        (scene("red"), "an apple on a red background"),
        (scene("red", style=1), "a flat apple on a red background"),
        (scene("at night"), None),
        (scene("red to blue"), None),
        (scene(style=3), None),
        (scene(tint="blue"), None),
        (scene(size=0.5), None),
        (replace(ON_WHITE, things=(APPLE, APPLE)), None),
    ],
)
def test_a_caption_is_known_if_the_weights_that_ship_were_taught_it(after: Scene, words: str | None) -> None:
    assert known_words(Sample(0), [after], CONCEPTS) == words


@pytest.mark.parametrize(
    ("change", "after", "words"),
    [
        ("background", scene("red"), "change the background to red"),
        ("background", scene("at night"), None),
        ("mirror", ON_WHITE.mirror(), "mirror the image"),
        ("tone", replace(ON_WHITE, tone="greyscale"), "make it black and white"),
        ("tone", replace(ON_WHITE, tone="invert"), None),
        ("recolour", scene(tint="blue"), None),
    ],
)
def test_an_edit_is_known_if_the_weights_that_ship_were_taught_it(change: str, after: Scene, words: str | None) -> None:
    sample = Sample(1, (0,), change)  # type: ignore[arg-type]
    assert known_words(sample, [ON_WHITE, after], CONCEPTS) == words


def test_every_other_word_for_a_thing_is_asked_for_as_often_and_means_the_thing() -> None:
    concepts = [Concept("Apple", ("fruit", "pippin")), Concept("Anvil", ()), Concept("Dog", ("hound",))]
    wishes = list(islice(draw_renamed(concepts, np.random.default_rng(0)), 600))
    said: Counter[str] = Counter()
    for words, sample, scenes in wishes:
        (thing,) = scenes[sample.target].things
        (alias,) = (a for concept in concepts for a in concept.aliases if a in words)
        assert alias in concepts[thing.concept].aliases
        assert not any(concept.label.lower() in words for concept in concepts)
        assert (known := known_words(sample, scenes, concepts)) is None or concepts[
            thing.concept
        ].label.lower() in known
        said[alias] += 1
    assert min(said.values()) > 150


def test_features_are_taken_from_the_last_token_on() -> None:
    features = torch.arange(14.0).view(1, 7, 2).expand(2, 7, 2)
    mask = torch.tensor([[True] * 2 + [False] * 5, [True] * 4 + [False] * 3])
    assert at_ends(features, mask)[:, :, 0].tolist() == [[2, 4, 6, 8], [6, 8, 10, 12]]
