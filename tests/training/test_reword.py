"""Check that any words are drawn to what the plainest lead to, and that the text encoder's layers alone learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import reword
from training.batches import CHANGED_TOGETHER, Batch, Latents, Pool, word_plainly
from training.data import Concept
from training.families import Sample
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.reword import (
    ASKED,
    CAPTIONED,
    EDITED,
    HELD,
    alike,
    drawn_otherwise,
    encode_both,
    held_words,
    make_student,
    misread,
    read,
    shown_wishes,
    wishes,
    word_both,
)
from training.scenes import POSED_SIZE, SQUARE, Thing, arrange


def test_a_wish_is_worded_in_any_way_and_in_the_plainest(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples()
    both = [word_both(pool, Sample(3, (0,), "mirror")) for _ in range(200)]
    assert {plain for _, plain in both} == {"mirror the image"}
    assert len({words for words, _ in both}) > 50


def test_another_style_is_worded_with_the_name_on_both_sides_or_on_neither(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples()
    (thing,) = pool.scenes[1].things
    pool.scenes[1] = replace(pool.scenes[1], things=(replace(thing, style=1),))
    both = [word_both(pool, Sample(1, (0,), "restyle")) for _ in range(200)]
    assert {plain for _, plain in both} == {"make the apple flat", "make it flat"}
    assert all(("apple" in words) == ("apple" in plain) for words, plain in both)
    assert 110 < sum("apple" in words for words, _ in both) < 170


def test_edits_are_wished_for_by_their_shares_and_captions_too(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples()
    drawn = [next(wishes(pool)) for _ in range(10)]
    assert {len(pairs) for pairs in drawn} == {EDITED * CHANGED_TOGETHER + CAPTIONED}
    plain = [plain for pairs in drawn for _, plain in pairs]
    background, mirror, row = (
        sum(words.startswith(start) for words in plain) for start in ("change the", "mirror", "put them side")
    )
    assert background + mirror + row == 10 * EDITED * CHANGED_TOGETHER
    assert background > mirror > row > 0
    assert set(plain[-CAPTIONED:]) <= {"an apple on a red background"}


def test_batches_that_are_shown_differ_in_words_alone(small_pool: Path, with_samples: Callable[..., Pool]) -> None:
    pool = with_samples(Sample(3, (0,), "add"))
    pool.concepts.append(Concept("owl", ()))
    apple, owl = arrange([*pool.scenes[0].things, Thing(1, 0, POSED_SIZE)], 2, SQUARE)
    pool.scenes[3] = replace(pool.scenes[0], things=(apple, owl))
    asked, plain = next(shown_wishes(pool, Latents(small_pool)))
    assert asked.target is plain.target
    assert asked.references is plain.references
    assert len(asked.ids) == len(plain.ids) == len(asked.target) == ASKED
    assert not asked.ids.equal(plain.ids)
    assert asked.reference_grids == (SQUARE,)


def test_what_both_wordings_have_is_read_alike_and_all_that_follows(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples()
    pairs = [("could you draw an owl on the left", "add an owl on the left"), ("reflect", "mirror the image")]
    asked, plain = encode_both(pool, pairs)
    there, has = alike(*asked, *plain)
    (ids, mask), (plain_ids, plain_mask) = asked, plain
    for row, (words, _) in enumerate(pairs):
        end, plain_end = int(mask[row].sum()), int(plain_mask[row].sum())
        after = max(end - 1, plain_end)
        assert has[row, after:].all()
        assert there[row, after:].tolist() == list(range(after, ids.shape[1]))
        shared = has[row, :after].nonzero().flatten()
        assert ids[row, shared].equal(plain_ids[row, there[row, shared]])
        assert 0 not in shared, "every wording begins alike"
        said = pool.tokenizer._tokenizer.decode(ids[row, shared].tolist())
        assert said.strip() == ("an owl on the left" if row == 0 else ""), words


def test_words_are_misread_by_what_they_leave_to_the_layers_of_the_text_encoder(
    with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, shipped = with_samples(), load_shipped()[0].to(DEVICE).requires_grad_(False)
    student = make_student(shipped)
    same = [("an owl on a red background",) * 2, ("mirror the image",) * 2]
    assert misread(student, shipped, pool, same).item() == 0
    right = misread(student, shipped, pool, [("mirror it", "mirror the image")])
    wrong = misread(student, shipped, pool, [("paint it red", "mirror the image")])
    assert 0 <= right < wrong / 2
    assert wrong < 3, "of what is read at unit variance, a mean over a wish's tokens"
    both = [("mirror it", "mirror the image"), ("paint it red", "mirror the image")]
    assert misread(student, shipped, pool, both).item() == pytest.approx((right + wrong).item() / 2, rel=1e-3)
    monkeypatch.setattr(reword, "TOGETHER", 1)
    found = misread(student, shipped, pool, both)
    assert found.item() == pytest.approx((right + wrong).item() / 2, rel=1e-3)
    found.backward()  # type: ignore[no-untyped-call]
    learned = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert learned
    assert all(name.startswith("text_encoder.model.layers.") for name in learned)


def test_what_is_read_has_the_same_strength_everywhere(with_samples: Callable[..., Pool]) -> None:
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    seen = read(shipped, *with_samples().tokenizer.encode(["a crab", "an owl on a red background"]))
    assert seen.shape == (2, 16, 384)
    assert seen.square().mean(-1) == pytest.approx(torch.ones(2, 16), rel=1e-2)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_what_words_lead_to_is_compared_with_what_the_plain_ones_do(
    small_pool: Path, with_samples: Callable[..., Pool]
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    student = make_student(shipped)
    samples = [Sample(1, (0,), "background")] * 4
    plain = latents.batch(pool.draw((SQUARE, SQUARE), samples, ["change the background to blue"] * 4))
    assert drawn_otherwise(student, shipped, plain, plain).item() == pytest.approx(0, abs=1e-6)
    ids, mask = pool.tokenizer.encode(["mirror the image"] * 4)
    off = drawn_otherwise(student, shipped, replace(plain, ids=ids, mask=mask), plain)
    assert off > 0.1
    off.backward()  # type: ignore[no-untyped-call]
    learned = {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert learned
    assert all(name.startswith("text_encoder.") and "embed" not in name for name in learned)
    assert student.transformer is shipped.transformer


def test_captions_and_plain_edits_and_bare_names_are_held(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples(Sample(0), Sample(3, (0,), "mirror"))
    pool.concepts = [Concept("Apple", ("pome",)), Concept("owl", ())]
    pairs = next(held_words(pool))
    assert all(words == goal for words, goal in pairs)
    words = [words for words, _ in pairs]
    captions, edited, worded, bare = np.split(words, np.cumsum((HELD[0], HELD[2], HELD[1])))
    assert set(captions) == {word_plainly(pool, [Sample(0)])[0]}
    assert set(edited) == {"mirror the image", "change the background to blue"}
    assert len({*worded}) > HELD[1] / 2
    assert len(bare) == HELD[3]
    assert set(bare) == {"an apple", "a pome", "an owl"}


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_the_first_noise_level_comes_twice_as_often(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[float] = []

    def still(_: MiniModel, batch: Batch, tokens: torch.Tensor, sigma: float) -> torch.Tensor:
        levels.append(sigma)
        return tokens

    monkeypatch.setattr(reword, "velocity_at", still)
    monkeypatch.setattr(reword, "rounded", lambda sigma: sigma)
    pool, latents = with_samples(), Latents(small_pool)
    batch = latents.batch(pool.draw((SQUARE,), [Sample(0)], ["an apple"]))
    for _ in range(300):
        assert drawn_otherwise(model, model, batch, batch).item() == pytest.approx(0, abs=1e-6)
    assert len(set(levels)) == 4
    assert 90 < levels.count(max(levels)) / 2 < 150
