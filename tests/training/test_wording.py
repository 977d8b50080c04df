"""Check that captions and instructions say what the scenes hold."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from string import Formatter

import numpy as np
import pytest

from training.data import STYLES, Concept
from training.evaluate import HELD_OUT_WORDS
from training.phrases import CAPTIONS, EDITS, WORDS, read_phrases
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, default_style
from training.wording import (
    Plainest,
    added,
    caption,
    plural,
    word_edit,
    word_layout,
    word_new_style,
    word_relation,
)

CONCEPTS = [Concept("red apple", ("apple",)), Concept("dog", ())]


def test_captions_name_thing_style_and_colour() -> None:
    rng, plain_style = np.random.default_rng(0), default_style(CONCEPTS[0])
    for style, name in enumerate(STYLES):
        texts = [caption(Scene((Thing(0, style, 0.8),), "purple", SQUARE), CONCEPTS, rng) for _ in range(40)]
        assert all("apple" in text and "purple" in text for text in texts)
        named = [text for text in texts if name in text]
        assert (len(named) == len(texts)) == (style != plain_style)


def test_captions_count_things_of_a_kind_and_name_their_colour() -> None:
    rng, things = np.random.default_rng(0), (Thing(1, 0, 0.4, tint="teal"),) * 3
    texts = [caption(Scene(things, "white", SQUARE), CONCEPTS, rng) for _ in range(20)]
    assert all("three teal dogs" in text for text in texts)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (Thing(0, 0, 0.4, x=0.2), Thing(1, 0, 0.4, x=0.8), {"A and B", "A left of B", "B to the right of A"}),
        (Thing(0, 0, 0.4, x=0.8), Thing(1, 0, 0.4, x=0.2), {"B and A", "B left of A", "A to the right of B"}),
        (Thing(0, 0, 0.4, y=0.2), Thing(1, 0, 0.4, y=0.8), {"A above B", "B below A", "A over B"}),
        (Thing(0, 0, 0.7, y=0.4), Thing(1, 0, 0.4, y=0.6), {"B in front of A", "A behind B"}),
    ],
)
def test_relations_follow_the_places(first: Thing, second: Thing, words: set[str]) -> None:
    rng = np.random.default_rng(0)
    said = {word_relation("A", "B", (first, second), rng) for _ in range(60)}
    assert words <= said
    if "A above B" in words:
        assert said == words


def test_sizes_are_named_for_what_stands_alone() -> None:
    rng = np.random.default_rng(0)
    for size, words in ((0.45, ("small", "little")), (0.96, ("big", "large"))):
        texts = [caption(Scene((Thing(1, 0, size),), "white", SQUARE), CONCEPTS, rng) for _ in range(20)]
        assert all(any(word in text for word in words) for text in texts)


@pytest.mark.parametrize(
    ("first", "second", "places", "others"),
    [
        (Thing(0, 0, 0.4, x=0.25), Thing(1, 0, 0.4, x=0.75), ("right", "next to"), ("left", "below", "front")),
        (Thing(0, 0, 0.4, y=0.25), Thing(1, 0, 0.4, y=0.75), ("below",), ("right", "next to", "above", "front")),
        (Thing(0, 0, 0.8), Thing(1, 0, 0.4, y=0.75), ("front",), ("right", "next to", "below")),
        (Thing(0, 0, 0.4, x=0.75), Thing(1, 0, 0.4, x=0.25), ("left",), ("right", "next to", "below")),
        (Thing(0, 0, 0.4, y=0.75), Thing(1, 0, 0.4, y=0.25), ("above",), ("right", "left", "below", "front")),
    ],
)
def test_what_is_added_is_asked_for_where_it_stands(
    first: Thing, second: Thing, places: tuple[str, ...], others: tuple[str, ...]
) -> None:
    rng, before = np.random.default_rng(0), Scene((first,), "white", SQUARE)
    filled, either = replace(before, things=(Thing(0, 0, POSED_SIZE),)), [(first, second), (second, first)]
    texts = [
        word_edit("add", shown, replace(before, things=things), CONCEPTS, rng)
        for shown in (before, filled)
        for things in either
        for _ in range(20)
    ]
    assert all("a dog" in text for text in texts)
    assert all(any(place in text for text in texts) for place in places)
    assert not any(place in text for text in texts for place in others)


def test_of_two_of_a_kind_the_one_that_was_not_there_is_added() -> None:
    left, right = (Thing(1, 0, POSED_SIZE / 2, x=x) for x in (0.25, 0.75))
    both, alone = Scene((left, right), "white", SQUARE), Thing(1, 0, POSED_SIZE)
    for there, new in ((left, right), (right, left), (alone, right)):
        assert added(replace(both, things=(there,)), both) == new


def test_instructions_name_their_outcome() -> None:
    rng = np.random.default_rng(0)
    before = Scene((Thing(0, 0, 0.5, x=0.3), Thing(1, 0, 0.3, x=0.8)), "white", SQUARE)
    after = Scene((Thing(0, 1, 0.5, x=0.3), Thing(1, 1, 0.3, x=0.8)), "orange", SQUARE)
    assert "orange" in word_edit("background", before, after, CONCEPTS, rng)
    restyled = [word_edit("restyle", before, after, CONCEPTS, rng) for _ in range(60)]
    assert all("flat" in text for text in restyled)
    assert 30 < sum("apple" in text for text in restyled) < 55
    for by_name in (False, True):
        asked = [word_new_style(after.things[0], CONCEPTS, rng, by_name=by_name) for _ in range(40)]
        assert {"apple" in text for text in asked} == {by_name}
    assert word_layout("row", after, rng).endswith("on an orange background")
    rows = {word_layout("row", replace(after, background="white"), rng) for _ in range(300)}
    assert any("two" in text for text in rows)
    assert not any("{" in text for text in rows)
    alone = Scene(before.things[:1], "white", SQUARE)
    assert "dog" in word_edit("remove", before, alone, CONCEPTS, rng)
    added = {word_edit("add", alone, before, CONCEPTS, rng) for _ in range(30)}
    assert all("dog" in text for text in added)
    assert any("on the right" in text for text in added)
    assert not any("on the left" in text for text in added)


def test_moves_and_sizes_go_the_way_they_are_called() -> None:
    rng, here = np.random.default_rng(0), Scene((Thing(1, 0, 0.5),), "white", SQUARE)
    left = Scene((Thing(1, 0, 0.5, x=0.2),), "white", SQUARE)
    assert "to the left" in word_edit("move", here, left, CONCEPTS, rng)
    assert "to the right" in word_edit("move", left, here, CONCEPTS, rng)
    big = Scene((Thing(1, 0, 0.9),), "white", SQUARE)
    for before, after, size in ((here, big, "bigger"), (big, here, "smaller")):
        assert word_edit("resize", before, after, CONCEPTS, Plainest()) == f"make it {size}"
        listed = {text.replace("{thing}", "dog") for phrase in EDITS[size] for text in instructions(phrase)}
        assert {word_edit("resize", before, after, CONCEPTS, rng) for _ in range(100)} <= listed


def test_plurals() -> None:
    assert [plural(noun) for noun in ("dog", "box", "peach", "cherry", "monkey", "glasses")] == [
        "dogs", "boxes", "peaches", "cherries", "monkeys", "glasses",
    ]  # fmt: skip


def instructions(phrase: str) -> Iterator[str]:
    """Give all that a phrasing may become, but for what is asked for, in every frame."""
    names = [name for _, name, _, _ in Formatter().parse(phrase) if name]
    asked = {
        "a_colour": ("a {colour}",),
        "a_style": ("a {style}",),
        "it": ("it", "the {thing}"),
        "where": WORDS["right"],
    }
    for words in product(*({**WORDS, **asked, "where": WORDS["right"]}.get(name, (f"{{{name}}}",)) for name in names)):
        text = phrase.format(**dict(zip(names, words, strict=True)))
        yield from (text, *(frame.replace("{}", text) for frame in WORDS["worded"]))


def test_held_out_phrasings_are_never_said() -> None:
    said = {text for phrases in EDITS.values() for phrase in phrases for text in instructions(phrase)}
    assert {"mirror the image", "could you please make my photo b&w", "please paint the {thing} {colour}"} <= said
    held_out = read_phrases(HELD_OUT_WORDS / "edits.txt")
    assert len(held_out) == 16
    assert not said & {phrase for phrases in held_out.values() for phrase in phrases}
    captions = (HELD_OUT_WORDS / "captions.txt").read_text().splitlines()
    before, after = (
        ["", *(f"{words} " for words in CAPTIONS["asking"])], ["", *(f", {words}" for words in CAPTIONS["asked"])]
    )  # fmt: skip
    assert len(captions) > 20
    assert not {f"{first}{{thing}}{last}" for first, last in product(before, after)} & set(captions)


def test_phrasings_name_all_that_is_asked_for_and_nothing_else() -> None:
    asked_for = {
        "background": {"colour"}, "onto": {"place"}, "gradient": {"colours"}, "recolour": {"it", "colour"},
        "restyle": {"style"}, "restyle_by_name": {"thing", "style"}, "remove": {"thing"}, "replace": {"it", "other"},
        "add": {"other", "where"}, "add_anywhere": {"other"}, "move": {"it", "where"}, "skin": {"tone"},
    }  # fmt: skip
    for kind, phrases in EDITS.items():
        for phrase in phrases:
            named = {name.removeprefix("a_") for _, name, _, _ in Formatter().parse(phrase) if name} - set(WORDS)
            it_or_all = {"it"} & named if kind in ("smaller", "bigger") else set()
            assert named == asked_for.get(kind, it_or_all), f"{kind} | {phrase}"
    assert len({phrase for phrases in EDITS.values() for phrase in phrases}) == sum(map(len, EDITS.values()))


def test_what_is_said_is_what_the_phrasings_list() -> None:
    rng, dog = np.random.default_rng(0), Thing(1, 0, POSED_SIZE)
    before, after = (Scene((dog,), background, SQUARE) for background in ("white", "teal"))
    listed = {text.replace("{colour}", "teal") for phrase in EDITS["background"] for text in instructions(phrase)}
    said = {word_edit("background", before, after, CONCEPTS, rng) for _ in range(500)}
    assert len(said) > 300
    assert said <= listed
