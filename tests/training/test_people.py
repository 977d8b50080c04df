"""Check that skin and expression change, and nothing else does."""

import re
from dataclasses import replace

import numpy as np

from training.data import SKIN_TONES, Concept, read_concepts, skin_row
from training.families import shown_styles, word_sample
from training.people import draw_people, expressions, skins
from training.scenes import SQUARE, Scene, Thing, paint

CONCEPTS = [Concept("baby", (), "skin"), Concept("dog", ()), Concept("cook", (), "skin")]


def test_every_tone_has_its_row() -> None:
    rows = np.arange(len(CONCEPTS) + 2 * len(SKIN_TONES))
    sprites = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None, None], (len(rows), 1, 4, 4, 4)).copy()
    sprites[..., 3] = 255
    seen = set()
    for person in range(2):
        for tone, name in enumerate(SKIN_TONES):
            thing = Thing(0, 0, 0.9, skin_row=skin_row(person, tone))
            assert thing.skin_tone == name
            seen.add(int(paint(Scene((thing,), "white", SQUARE), sprites)[128, 128, 0]))
    assert seen == set(rows[len(CONCEPTS) :].tolist())
    assert Thing(0, 0, 0.9).skin_tone == ""


def test_skin_alone_changes() -> None:
    for seed in range(20):
        family = skins(2, 1, 0, np.random.default_rng(seed))
        for sample in family.samples:
            after = family.scenes[sample.target]
            tone = after.things[0].skin_tone
            text = word_sample(sample, family.scenes, CONCEPTS, np.random.default_rng(seed))
            assert [name for name in SKIN_TONES if re.search(rf"(?<![\w-]){name}(?![\w-]| blue)", text)] == [tone]
            assert "skin" in text or "complexion" in text
            for before in (family.scenes[i] for i in sample.references):
                assert before != after
                assert replace(before, things=(replace(before.things[0], skin_row=0),)) == replace(
                    after, things=(replace(after.things[0], skin_row=0),)
                )


def test_faces_alone_change() -> None:
    family = expressions([4, 5, 6], 1, np.random.default_rng(0))
    for sample in family.samples:
        before, after = family.scenes[sample.references[0]], family.scenes[sample.target]
        assert before.things[0].concept != after.things[0].concept
        assert before == replace(after, things=(replace(after.things[0], concept=before.things[0].concept),))


def test_everyone_is_shown_and_no_held_out_pair() -> None:
    concepts = read_concepts()
    styles = [shown_styles(concept) for concept in concepts]
    families = list(draw_people(concepts, styles, np.random.default_rng(0)))
    shown = {(t.concept, t.style) for family in families for scene in family.scenes for t in scene.things}
    assert shown == {(i, s) for i, concept in enumerate(concepts) if concept.varies for s in styles[i]}
