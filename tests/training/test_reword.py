"""Check that any words are drawn to what the plainest lead to, and that the text encoder's layers alone learn."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from training import reword
from training.batches import Batch, Latents, Pool, word_plainly
from training.data import Concept
from training.families import Sample
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.reword import ASKED, HELD, drawn_otherwise, drift, held_words, make_student, wishes, word_both
from training.scenes import SQUARE


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


def test_batches_of_a_wish_differ_in_their_words_alone(small_pool: Path, with_samples: Callable[..., Pool]) -> None:
    pool, latents = with_samples(*[Sample(3, (0,), "mirror")] * 30), Latents(small_pool)
    kinds = set()
    for asked, plain in islice(wishes(pool, latents), 20):
        assert asked.target is plain.target
        assert asked.references is plain.references
        assert 1 <= len(asked.ids) == len(plain.ids) == len(asked.target) <= ASKED
        assert plain.rotary is not None
        kinds.add(len(asked.reference_grids))
    assert kinds == {0, 1, 2}


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
    captions, edited, worded, bare = np.split(next(held_words(pool)), np.cumsum((HELD[0], HELD[2], HELD[1])))
    assert set(captions) == {word_plainly(pool, [Sample(0)])[0]}
    assert set(edited) == {"mirror the image", "change the background to blue"}
    assert len({*worded}) > HELD[1] / 2
    assert len(bare) == HELD[3]
    assert set(bare) == {"an apple", "a pome", "an owl"}


def test_drift_is_a_share_of_what_the_features_are_padding_too(with_samples: Callable[..., Pool]) -> None:
    pool, shipped = with_samples(), load_shipped()[0].to(DEVICE).requires_grad_(False)
    student = make_student(shipped)
    weight = dict(student.text_encoder.named_parameters())["model.layers.0.mlp.down_proj.weight"]
    ids, mask = pool.tokenizer.encode(["a crab", "an owl on a red background"])
    assert drift(student, shipped, ids, mask).item() == 0
    with torch.no_grad():
        goal = shipped.text_encoder(ids, mask)
        weight.mul_(1.1)
        off = (student.text_encoder(ids, mask) - goal).square()
    assert off[~mask].mean() > 0
    found = drift(student, shipped, ids, mask)
    assert found.item() == pytest.approx((off.sum() / goal.square().sum()).item(), rel=1e-4)
    found.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None


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
