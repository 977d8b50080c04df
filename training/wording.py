"""Say in words what a scene shows, and what turns one scene into another, in many phrasings."""

from typing import Literal

import numpy as np

from training.data import STYLES, Concept
from training.phrases import CAPTIONS, EDITS, WORDS
from training.scenes import PLACES, Layout, Scene, Thing, default_style

Edit = Literal[
    "background", "mirror", "tone", "rotate", "restyle", "recolour", "add", "remove", "replace", "move", "resize",
    "skin", "expression",
]  # fmt: skip
Join = Literal["insert", "place", "style", "stack"]  # what two references make together
SMALL, BIG = 0.5, 0.93  # sizes of a single thing that are called small and big
TURNS = ("", "rotate left", "upside down", "rotate right")  # by quarters
NUMBERS = ("", "one", "two", "three", "four")
ANYWHERE_SHARE = 0.25  # of additions on the right
WORDED_SHARE = 0.4  # of the instructions, which have a word more than it takes


class Plainest(np.random.Generator):
    """Draw the first of all options always, and no flourish: what is worded with it is in the plainest words."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64())

    def random(self) -> float:  # type: ignore[override]
        return 1.0

    def integers(self, end: int) -> int:  # type: ignore[override]
        return 0


def pick(rng: np.random.Generator, *options: str) -> str:
    return options[rng.integers(len(options))]


def say(rng: np.random.Generator, kind: str, **given: str) -> str:
    """Pick a phrasing of an instruction, and fill in what is given and any word for what it leaves open."""
    return pick(rng, *EDITS[kind]).format(**given, **{slot: pick(rng, *words) for slot, words in WORDS.items()})


def word_concept(concept: Concept, rng: np.random.Generator) -> str:
    """Name a thing by its label or another word for it."""
    use_alias = concept.aliases and rng.random() < 0.5
    return (pick(rng, *concept.aliases) if use_alias else concept.label).lower()


def with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def word_noun(noun: str) -> str:
    return noun if noun.endswith("s") else with_article(noun)


def plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es" if not noun.endswith("s") else noun
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def word_thing(thing: Thing, concepts: list[Concept], rng: np.random.Generator, *, sized: bool = False) -> str:
    """Name a thing with its colour, and its size where it stands alone."""
    noun = word_concept(concepts[thing.concept], rng)
    size = "" if not sized or SMALL < thing.size < BIG else pick(rng, "small ", "little ") if thing.size <= SMALL else (
        pick(rng, "big ", "large ")
    )  # fmt: skip
    praise = f"{pick(rng, *CAPTIONS['praise'])} " if sized and rng.random() < 0.15 else ""
    words = f"{praise}{size}{thing.tint + ' ' if thing.tint else ''}{noun}"
    if thing.skin_row:
        return f"{with_article(words)} with {thing.skin_tone} skin"
    return words if words == noun and (noun.endswith("s") or rng.random() < 0.3) else with_article(words)


def word_background(background: str, rng: np.random.Generator) -> str:
    """Name what is behind, ready to follow a description."""
    if background in PLACES:
        return f" {background}"
    if " to " in background:
        return pick(rng, f" on a gradient from {background}", f" with a {background} gradient background")
    if " and " in background:
        return pick(rng, f" on a {background} background", f" with a two-tone {background} background")
    if background == "white" and rng.random() >= 0.2:
        return ""
    article = with_article(background)
    return pick(
        rng, f" on {article} background", f" on {article} background", f" with {article} background",
        f", {background} background", f" on {background}",
    )  # fmt: skip


def word_relation(first: str, second: str, things: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """Say how two things stand to each other; the second one covers the first where they overlap."""
    a, b = things
    if b.size < a.size and abs(a.x - b.x) < 0.2 and abs(a.y - b.y) < 0.3:
        return pick(rng, f"{second} in front of {first}", f"{first} behind {second}")
    if abs(a.x - b.x) > abs(a.y - b.y):
        left, right = (first, second) if a.x < b.x else (second, first)
        return pick(
            rng, f"{left} and {right}", f"{left} to the left of {right}", f"{left} left of {right}",
            f"{right} to the right of {left}", f"{left} on the left and {right} on the right",
        )  # fmt: skip
    upper, lower = (first, second) if a.y < b.y else (second, first)
    return pick(rng, f"{upper} above {lower}", f"{lower} below {upper}", f"{upper} over {lower}")


def caption(scene: Scene, concepts: list[Concept], rng: np.random.Generator) -> str:
    """Describe one thing, several of a kind, or two, in one of many phrasings."""
    things, first = scene.things, scene.things[0]
    if len(things) > 1 and all(t.concept == first.concept for t in things):
        noun = f"{first.tint} {word_concept(concepts[first.concept], rng)}".strip()
        text = f"{NUMBERS[len(things)]} {plural(noun)}"
    elif len(things) == 2:
        one, other = (word_thing(t, concepts, rng) for t in things)
        text = word_relation(one, other, things, rng)
    else:
        text = ", ".join(word_thing(t, concepts, rng, sized=len(things) == 1) for t in things)
        text += f" {pick(rng, *CAPTIONS['doing'])}" if rng.random() < 0.06 else ""
    style = list(STYLES)[first.style]
    if first.style != default_style(concepts[first.concept]) or rng.random() < 0.4:
        text = pick(
            rng, f"{text}, {style} style", f"{text} in {style} style", f"{with_article(style)} drawing of {text}",
            f"{with_article(style)} icon of {text}", f"{style} {text.removeprefix('a ').removeprefix('an ')}",
        )  # fmt: skip
    text += word_background(scene.background, rng)
    if rng.random() < 0.3:
        text = f"{pick(rng, *CAPTIONS['asking'])} {text}"
    return f"{text}, {pick(rng, *CAPTIONS['asked'])}" if rng.random() < 0.1 else text


def word_edit(change: Edit, before: Scene, after: Scene, concepts: list[Concept], rng: np.random.Generator) -> str:
    """Ask for the edit that makes `after` of `before`, at times with a word more than it takes."""
    text = word_plain_edit(change, before, after, concepts, rng)
    return pick(rng, *WORDS["worded"]).format(text) if rng.random() < WORDED_SHARE else text


def word_plain_edit(
    change: Edit, before: Scene, after: Scene, concepts: list[Concept], rng: np.random.Generator
) -> str:
    match change:
        case "background":
            return word_new_background(after.background, rng)
        case "mirror":
            return say(rng, "mirror")
        case "tone":
            return say(rng, after.tone)
        case "rotate":
            return say(rng, TURNS[after.quarter_turns])
        case "restyle":
            return word_new_style(after.things[0], concepts, rng, by_name=rng.random() < 0.7)
        case "skin":
            return say(rng, "skin", tone=after.things[0].skin_tone)
        case "expression":
            return word_new_expression(concepts[after.things[0].concept].label.lower(), rng)
        case _:
            return word_change_of_things(change, before, after, concepts, rng)


def word_new_background(background: str, rng: np.random.Generator) -> str:
    if background in PLACES:
        return say(rng, "onto", place=background)
    if " to " in background:
        return say(rng, "gradient", colours=background)
    return say(rng, "background", colour=background, a_colour=with_article(background))


def word_new_style(thing: Thing, concepts: list[Concept], rng: np.random.Generator, *, by_name: bool) -> str:
    """Ask for the style that a thing has now: of the thing by its name, or of whatever the picture shows."""
    noun, style = word_concept(concepts[thing.concept], rng), list(STYLES)[thing.style]
    kind = "restyle_by_name" if by_name else "restyle"
    return say(rng, kind, thing=noun, style=style, a_style=with_article(style))


def word_new_expression(face: str, rng: np.random.Generator) -> str:
    """Name the face to make, or what it looks like if its name says no more than that."""
    look = face.removesuffix(" face")
    if look != face and " " not in look and rng.random() < 0.5:
        return pick(rng, f"make it {look}", f"make the face {look}", f"a {look} expression", f"let it look {look}")
    return pick(
        rng, f"make it {with_article(face)}", f"change the expression to {face}", f"turn it into {with_article(face)}",
        f"give it the expression of {with_article(face)}",
    )  # fmt: skip


def word_change_of_things(
    change: Edit, before: Scene, after: Scene, concepts: list[Concept], rng: np.random.Generator
) -> str:
    """Ask for another colour, thing, place or size; what changes is where the two scenes differ."""
    if change == "add":
        return word_addition(before, after, concepts, rng)
    if change == "remove":
        gone = next(t for t in before.things if t not in after.things)
        noun = word_concept(concepts[gone.concept], rng)
        return say(rng, "remove", thing=noun)
    old, new = next((a, b) for a, b in zip(before.things, after.things, strict=True) if a != b)
    noun = word_concept(concepts[old.concept], rng)
    it = f"the {noun}" if len(before.things) > 1 or rng.random() < 0.4 else "it"
    if change == "recolour":
        return say(rng, "recolour", it=it, colour=new.tint, a_colour=with_article(new.tint))
    if change == "replace":
        other = with_article(word_concept(concepts[new.concept], rng))
        return say(rng, "replace", it=it, other=other)
    if change == "resize":
        return say(rng, "smaller" if new.size < old.size else "bigger", it=it)
    where = (
        ("to the left" if new.x < old.x else "to the right") if new.x != old.x else "up" if new.y < old.y else "down"
    )
    return say(rng, "move", it=it, where=where)


def added(before: Scene, after: Scene) -> Thing:
    """Give the thing that is new: the one that was there may have made room for it, and be another of its kind."""
    others = [thing for thing in after.things if thing not in before.things]
    known = {thing.concept for thing in before.things}
    return next((thing for thing in others if thing.concept not in known), others[-1])


def side_added(before: Scene, after: Scene) -> str:
    """Tell on which side of the other a thing that is new stands."""
    new = added(before, after)
    (old,) = (thing for thing in after.things if thing is not new)
    if new.x != old.x:
        return "right" if new.x > old.x else "left"
    return "front" if new.size < old.size else "below" if new.y > old.y else "above"


def word_addition(before: Scene, after: Scene, concepts: list[Concept], rng: np.random.Generator) -> str:
    """Ask for one more thing, where it stands; on the right of another it need not be said."""
    noun, side = with_article(word_concept(concepts[added(before, after).concept], rng)), side_added(before, after)
    if side == "right" and rng.random() < ANYWHERE_SHARE:
        return say(rng, "add_anywhere", other=noun)
    return say(rng, "add", other=noun, where=pick(rng, *WORDS[side]))


def word_layout(layout: Layout, result: Scene, rng: np.random.Generator) -> str:
    """Ask for the things of several references in one picture."""
    text = say(rng, layout).format(count=NUMBERS[len(result.things)])  # as "the {count} pictures" asks
    return text if result.background == "white" else f"{text} on {with_article(result.background)} background"
