"""Draw families of scenes, so that every edit has its pair and every caption its picture."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from openklein.engine.tokens import Grid
from training.data import STYLES, Concept, is_held_out
from training.scenes import (
    CANVAS_TOKEN_PX,
    COLOURS,
    DEFAULT_GRID,
    PLACES,
    POSED_SIZE,
    SQUARE,
    VISIBLE,
    Layout,
    Scene,
    Thing,
    Tone,
    arrange,
    columns_of,
    halved,
)
from training.wording import Edit, Join, caption, say, word_edit, word_layout

GRID_WEIGHTS: dict[Grid, float] = {(6, 11): 0.46, (11, 6): 0.12, (7, 10): 0.18, (10, 7): 0.12, (6, 13): 0.12}
SQUARE_SHARE = 0.75  # of the pictures: all but edits of one picture happens there
assert set(GRID_WEIGHTS) == set(VISIBLE) - {SQUARE}
ROWS_OF_A_FAMILY = 6  # for each four things, since a row is but one picture more


@dataclass(frozen=True, slots=True)
class Sample:
    """Make picture `target` from pictures `references`: `change` is what is asked for."""

    target: int
    references: tuple[int, ...] = ()
    change: Edit | Layout | Join | None = None


@dataclass(slots=True)
class Family:
    """Scenes that belong together, and what can be learned from them; indices count from `scenes[0]`."""

    scenes: list[Scene] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, scene: Scene) -> int:
        self.scenes.append(scene)
        return len(self.scenes) - 1


def draw_sample(styles: list[list[int]], people: list[Family], rng: np.random.Generator) -> tuple[Sample, list[Scene]]:
    """Draw one sample of a family, and the family's scenes; captions as often as all else."""
    if people and rng.random() < 0.1:
        family = people[rng.integers(len(people))]
    else:
        order = [i for i in rng.permutation(len(styles))[:16].tolist() if styles[i]]
        family = draw_family(int(rng.integers(8)), order, styles, rng)
    captions = [sample for sample in family.samples if sample.change is None]
    samples = captions if captions and rng.random() < 0.5 else family.samples
    return samples[rng.integers(len(samples))], family.scenes


def word_sample(sample: Sample, scenes: list[Scene], concepts: list[Concept], rng: np.random.Generator) -> str:
    """Word what is asked for: a caption, an edit, a layout, or two pictures joined."""
    after = scenes[sample.target]
    change = sample.change
    if change is None:
        return caption(after, concepts, rng)
    if change == "row" or change == "grid":
        return word_layout(change, after, rng)
    if change == "insert" or change == "place" or change == "style" or change == "stack":
        return say(rng, change)
    return word_edit(change, scenes[sample.references[0]], after, concepts, rng)


def shown_styles(concept: Concept) -> list[int]:
    return [i for i, style in enumerate(STYLES) if not is_held_out(concept.label, style)]


def draw_background(rng: np.random.Generator, besides: str = "") -> str:
    """Draw a background other than `besides`: often white, mostly plain."""
    names, kind = list(COLOURS), rng.random()
    while True:
        if kind < 0.35:
            choice = "white"
        elif kind < 0.75:
            choice = names[rng.integers(len(names))]
        elif kind < 0.88:
            choice = list(PLACES)[rng.integers(len(PLACES))]
        else:
            first, second = rng.choice(len(names), 2, replace=False)
            choice = f"{names[first]}{' to ' if kind < 0.95 else ' and '}{names[second]}"
        if choice != besides:
            return choice
        kind = rng.random()


def draw_tint(rng: np.random.Generator) -> str:
    names = [name for name in COLOURS if name not in ("white", "gray", "black")]
    return names[rng.integers(len(names))]


def draw_wide_grid(rng: np.random.Generator) -> Grid:
    return list(GRID_WEIGHTS)[rng.choice(len(GRID_WEIGHTS), p=list(GRID_WEIGHTS.values()))]


def draw_grid(rng: np.random.Generator) -> Grid:
    return SQUARE if rng.random() < SQUARE_SHARE else draw_wide_grid(rng)


def loose(concept: int, rng: np.random.Generator) -> Thing:
    """Place a thing anywhere, at any size that shows it well."""
    size = rng.uniform(0.5, 0.92)
    x, y = 0.5 + rng.uniform(-0.5, 0.5, 2) * (0.97 - size)
    return Thing(concept, 0, size, x, y, bool(rng.random() < 0.4))


def one_thing(concept: int, styles: list[int], posed: bool, grid: Grid, rng: np.random.Generator) -> Family:
    """Draw one thing in two styles on two backgrounds, in another shape, and changed in every way."""
    family = Family()
    first = draw_background(rng)
    second = draw_background(rng, besides=first)
    thing = Thing(concept, 0, POSED_SIZE) if posed else loose(concept, rng)
    style, other = (styles[i] for i in rng.permutation(len(styles) + 1)[:2] % len(styles))
    base = Scene((replace(thing, style=style),), first, grid)
    plain, turned = family.add(base), family.add(replace(base, background=second))
    elsewhere = replace(base, grid=draw_wide_grid(rng) if grid == SQUARE else SQUARE)
    reshaped, reshaped_turned = family.add(elsewhere), family.add(replace(elsewhere, background=second))
    described = [plain, turned, reshaped, reshaped_turned]
    family.samples += [
        Sample(turned, (plain,), "background"),
        Sample(plain, (turned,), "background"),
        Sample(reshaped_turned, (reshaped,), "background"),
    ]
    if style != other:
        redrawn, redrawn_turned = (family.add(restyled(family.scenes[i], other)) for i in (plain, turned))
        described += [redrawn, redrawn_turned]
        family.samples += [Sample(redrawn, (plain,), "restyle"), Sample(plain, (redrawn,), "restyle")]
        family.samples += [Sample(turned, (redrawn_turned,), "restyle")]
    for change, scene in changed_scenes(base, rng):
        after = family.add(scene)
        family.samples.append(Sample(after, (plain,), change))
        if change == "mirror":
            family.samples.append(Sample(plain, (after,), change))
        if posed and change in ("recolour", "resize"):
            described.append(after)
        if change == "resize":
            family.samples.append(Sample(plain, (after,), change))
            family.samples += [Sample(family.add(moved(scene, rng)), (after,), "move") for _ in range(2)]
    if posed:
        family.samples += [Sample(i) for i in described if family.scenes[i].grid == SQUARE]
    return family


def portraits(concept: int, styles: list[int], rng: np.random.Generator) -> Family:
    """Draw one thing as captions describe it, in every style on white and on another background; edit it wide too."""
    family = Family()
    on_white = []
    for style in styles:
        base = Scene((Thing(concept, style, POSED_SIZE),), "white", SQUARE)
        for before in (base, replace(base, grid=DEFAULT_GRID)):
            plain = family.add(before)
            after = family.add(replace(before, background=draw_background(rng, besides="white")))
            family.samples.append(Sample(after, (plain,), "background"))
            if before.grid == SQUARE:
                family.samples += [Sample(plain), Sample(after)]
                on_white.append(plain)
    family.samples += [Sample(b, (a,), "restyle") for a in on_white for b in on_white if a != b]
    return family


def restyled(scene: Scene, style: int) -> Scene:
    return replace(scene, things=tuple(replace(thing, style=style) for thing in scene.things))


def changed_scenes(base: Scene, rng: np.random.Generator) -> Iterator[tuple[Edit, Scene]]:
    """Change the one thing of a scene, or the whole picture, in one way each; only a square one is turned."""
    (thing,) = base.things
    yield "mirror", base.mirror()
    tones = get_args(Tone)[1:]
    yield "tone", replace(base, tone=tones[rng.integers(len(tones))])
    if base.grid == SQUARE:
        yield "rotate", replace(base, quarter_turns=int(rng.integers(1, 4)))
    yield "recolour", replace(base, things=(replace(thing, tint=draw_tint(rng)),))
    yield "resize", replace(base, things=(halved(thing),))


def moved(scene: Scene, rng: np.random.Generator) -> Scene:
    """Move the one thing of a scene, which leaves room, up, down or to a side: a quarter of it, in whole tokens."""
    (thing,), sign = scene.things, float(rng.choice((-1, 1)))
    down, right = (CANVAS_TOKEN_PX * (side // 4 // CANVAS_TOKEN_PX) / side for side in VISIBLE[scene.grid])
    there = replace(thing, x=thing.x + sign * right) if rng.random() < 0.5 else replace(thing, y=thing.y + sign * down)
    return replace(scene, things=(there,))


def stand(first: Thing, second: Thing, grid: Grid, rng: np.random.Generator) -> tuple[Thing, ...]:
    """Place two things beside, above or in front of each other."""
    match int(rng.choice(3, p=(0.6, 0.25, 0.15))):
        case 0:
            return arrange([first, second], 2, grid)
        case 1:
            return arrange([first, second], 1, grid)
    return first, halved(second, down=0.5)


def two_things(pairs: list[tuple[int, int]], grid: Grid, rng: np.random.Generator) -> Family:
    """Draw two things together, with either of them gone, another in its place, or in another colour.

    What one thing fills is divided where another is added: beside it or above it each gets half the size.
    """
    family, background = Family(), draw_background(rng)
    one, two, three = (Thing(concept, style, POSED_SIZE) for concept, style in pairs)
    a, b = stand(one, two, grid, rng)
    both = family.add(Scene((a, b), background, grid))
    first = family.add(Scene((a,), background, grid))
    second = family.add(Scene((b,), background, grid))
    changes = {"concept": three.concept, "style": three.style}, {"tint": draw_tint(rng)}
    swapped, tinted = (
        family.add(Scene((replace(a, **c), b) if rng.random() < 0.5 else (a, replace(b, **c)), background, grid))
        for c in changes
    )
    if grid == SQUARE:
        family.samples += [Sample(i) for i in (both, swapped, tinted)]
    there = [first]
    if a.size == b.size:
        there += [second, *(family.add(Scene((thing,), background, grid)) for thing in (one, two))]
    family.samples += [
        *(Sample(both, (before,), "add") for before in there),
        Sample(first, (both,), "remove"),
        Sample(second, (both,), "remove"),
        Sample(swapped, (both,), "replace"),
        Sample(tinted, (both,), "recolour"),
    ]
    return family


def many_of_a_kind(concept: int, style: int, rng: np.random.Generator) -> Family:
    """Draw two to four of a thing."""
    family, background = Family(), draw_background(rng)
    thing = Thing(concept, style, POSED_SIZE, tint=draw_tint(rng) if rng.random() < 0.2 else "")
    family.samples += [Sample(family.add(counted(thing, n, background))) for n in (2, 3, 4)]
    return family


def counted(thing: Thing, count: int, background: str) -> Scene:
    """Show some of a thing."""
    return Scene(arrange([thing] * count, columns_of("grid", count), SQUARE), background, SQUARE)


def joined_things(pairs: list[tuple[int, int]], styles: list[int], rng: np.random.Generator) -> Family:
    """Make one picture of two: one thing in the other's picture, place or style, or above it."""
    family = Family()
    behind = draw_background(rng)
    one, two = (Thing(concept, style, POSED_SIZE) for concept, style in pairs)
    source = family.add(Scene((one,), draw_background(rng), SQUARE))
    inserted = arrange([two, one], 2, SQUARE)
    stacked = arrange([one, two], 1, SQUARE)
    scene = family.add(Scene(inserted[:1], behind, SQUARE))
    alone = family.add(Scene((two,), behind, SQUARE))
    placed = family.add(Scene((one,), behind, SQUARE))
    instead = replace(one, style=two.style) if two.style in styles else one  # as the picture is drawn, where it can be
    family.samples += [
        Sample(family.add(Scene(inserted, behind, SQUARE)), (source, scene), "insert"),
        Sample(placed, (source, alone), "place"),
        Sample(family.add(Scene((instead,), behind, SQUARE)), (alone,), "replace"),
        Sample(family.add(Scene(stacked, behind, SQUARE)), (source, alone), "stack"),
    ]
    if two.style in styles and two.style != one.style:
        redrawn = family.add(restyled(family.scenes[source], two.style))
        family.samples.append(Sample(redrawn, (source, alone), "style"))
    return family


def several_things(pairs: list[tuple[int, int]], rng: np.random.Generator) -> Family:
    """Draw four things each alone, then some of them together, in any order: often in a row, once in a grid."""
    family = Family()
    things = [Thing(concept, style, POSED_SIZE) for concept, style in pairs]
    for thing in things:
        family.samples.append(Sample(family.add(Scene((thing,), draw_background(rng), SQUARE))))
    names = list(COLOURS)
    for number in range(1 + ROWS_OF_A_FAMILY):
        layout: Layout = "row" if number else "grid"
        chosen = rng.permutation(len(things))[: rng.integers(2 if number else 3, len(things) + 1)].tolist()
        background = "white" if rng.random() < 0.6 else names[rng.integers(len(names))]
        together = arrange([things[i] for i in chosen], columns_of(layout, len(chosen)), SQUARE)
        family.samples.append(Sample(family.add(Scene(together, background, SQUARE)), tuple(chosen), layout))
    return family


def draw_family(number: int, order: list[int], styles: list[list[int]], rng: np.random.Generator) -> Family:
    """Take things off `order` for one family; of eight, three show one thing and five show several."""

    def take(count: int, *, alike: bool = False) -> list[tuple[int, int]]:
        chosen = [order.pop() for _ in range(count)]
        first = styles[chosen[0]]  # the one that it gets without a style most often
        style = first[0] if alike and rng.random() < 0.6 else int(rng.choice(first))
        return [(c, style if alike and style in styles[c] else int(rng.choice(styles[c]))) for c in chosen]

    grid = draw_grid(rng)
    match number % 8:
        case 3 | 4:
            return two_things(take(3, alike=True), grid, rng)
        case 5:
            return many_of_a_kind(*take(1, alike=True)[0], rng)
        case 6:
            return several_things(take(4), rng)
        case 7:
            pairs = take(2)
            return joined_things(pairs, styles[pairs[0][0]], rng)
    concept = order.pop()
    return one_thing(concept, styles[concept], number % 8 < 2, grid, rng)
