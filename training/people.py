"""Draw families of people and faces, whose skin or expression changes and nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from training.data import SKIN_TONES, Concept, skin_row
from training.families import Family, Sample, draw_background, draw_grid
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing


def skins(concept: int, person: int, style: int, rng: np.random.Generator) -> Family:
    """Draw the `person`th concept that comes in skin tones as its set draws it and with two of them."""
    family = Family()
    plain = Thing(concept, style, POSED_SIZE, mirrored=bool(rng.random() < 0.3))
    base = Scene((plain,), draw_background(rng), draw_grid(rng))
    first = family.add(base)
    toned = [
        family.add(replace(base, things=(replace(plain, skin_row=skin_row(person, int(tone))),)))
        for tone in rng.permutation(len(SKIN_TONES))[:2]
    ]
    family.samples += [Sample(after, (first,), "skin") for after in toned]
    family.samples += [Sample(toned[0], (toned[1],), "skin"), Sample(toned[1], (toned[0],), "skin")]
    if base.grid == SQUARE and not plain.mirrored:
        family.samples += [Sample(after) for after in toned]
    return family


def expressions(faces: Sequence[int], style: int, rng: np.random.Generator) -> Family:
    """Draw faces in the same place, each to be made of the one before."""
    family, background, grid = Family(), draw_background(rng), draw_grid(rng)
    drawn = [family.add(Scene((Thing(face, style, POSED_SIZE),), background, grid)) for face in faces]
    family.samples += [
        Sample(after, (before,), "expression") for before, after in zip(drawn, drawn[1:] + drawn[:1], strict=True)
    ]
    return family


def draw_people(concepts: Sequence[Concept], styles: list[list[int]], rng: np.random.Generator) -> Iterator[Family]:
    """Draw everyone in every style that they are shown in, and every face among two others."""
    people = [i for i, concept in enumerate(concepts) if concept.varies == "skin"]
    for person, concept in enumerate(people):
        for style in styles[concept]:
            yield skins(concept, person, style, rng)
    faces = [i for i, concept in enumerate(concepts) if concept.varies == "face"]
    for face in faces:
        for style in styles[face]:
            others = [other for other in rng.permutation(faces).tolist() if other != face and style in styles[other]]
            yield expressions([face, *others[:2]], style, rng)
