"""Check which pictures the flow learns from."""

from pathlib import Path

import numpy as np
import torch

from training.data import read_concepts
from training.families import shown_styles
from training.model import load_shipped
from training.pool import Encoder, Families, encode_canvas
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


def test_every_background_is_shown_bare_too() -> None:
    bare, *others = Families(Path(), count=400, seed=0).draw(read_concepts()[:20], np.random.default_rng(0))
    assert not any(scene.things for scene in bare.scenes)
    backgrounds = {scene.background for family in others for scene in family.scenes}
    assert len(backgrounds) > 50
    assert backgrounds <= {scene.background for scene in bare.scenes}


def test_latents_come_in_the_order_of_the_pictures_numbers_whatever_order_those_come_in() -> None:
    _, autoencoder, _ = load_shipped()
    generator = torch.Generator().manual_seed(0)
    square, wide = (torch.randint(256, (2, h, w, 3), generator=generator).byte() for h, w in ((64, 64), (64, 128)))
    encoder = Encoder(autoencoder)
    encoder.add([3, 0], square)
    encoder.add([2, 1], wide)
    expected = [
        encode_canvas(encoder.model, picture[None])[0].half() for picture in (square[1], wide[1], wide[0], square[0])
    ]
    torch.testing.assert_close(torch.from_numpy(encoder.finish()), torch.cat(expected).cpu(), atol=5e-3, rtol=5e-3)
