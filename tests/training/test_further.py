"""Check what prompts are held to when they are to be read better, and which edits are made when they are mended."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.training.conftest import SAMPLES, WIDE
from training.batches import Latents, Pool
from training.families import Sample
from training.further import Rewordings, drawn_otherwise, edits_in_landscape
from training.model import load_shipped
from training.precision import DEVICE
from training.scenes import SQUARE


@pytest.fixture
def pool(small_pool: Path) -> Pool:
    return Pool(small_pool, caption_dropout=0.0)


def test_everything_is_asked_for_in_the_plainest_words_too(small_pool: Path, pool: Pool) -> None:
    tokenizer = Tokenizer.from_file(str(small_pool / "tokenizer.json"))
    said: dict[str, str] = {}
    for rewording in islice(Rewordings(pool), 60):
        pairs = zip(rewording.draw.ids.tolist(), rewording.plain_ids.tolist(), strict=True)
        said |= {tokenizer.decode(words): tokenizer.decode(plain) for words, plain in pairs}
    assert set(said.values()) == {
        "an apple on a red background", "change the background to blue", "mirror the image",
        "put them side by side on a red background",
    }  # fmt: skip
    assert {said[plain] for plain in set(said.values())} == set(said.values()), "the plainest words stay as they are"
    assert said["mirror it"] == "mirror the image"
    assert len(said) > 100


def test_what_draws_the_same_costs_nothing_and_what_does_not_can_be_mended(small_pool: Path, pool: Pool) -> None:
    model = load_shipped()[0].to(DEVICE).requires_grad_(False)
    plain, other = (pool.draw((SQUARE,), SAMPLES[:1], [words]) for words in ("an apple", "a rocket at night"))
    batch = Latents(small_pool).batch(other)
    same, features = model.text_encoder(plain.ids, plain.mask), model.text_encoder(other.ids, other.mask)
    known = plain.ids, plain.mask
    assert drawn_otherwise(model, Latents(small_pool).batch(plain), same, known) < 1e-6
    loss = drawn_otherwise(model, batch, features.requires_grad_(), known)
    assert loss > 1e-3
    loss.backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def enlarged(small_pool: Path, sample: Sample) -> Pool:
    """Open the small pool with one more sample."""
    index_file = small_pool / "pool" / "samples.json"
    index = json.loads(index_file.read_text())
    index["samples"].append(asdict(sample))
    index_file.write_text(json.dumps(index))
    return Pool(small_pool, caption_dropout=0.0)


def test_most_edits_come_out_in_landscape_and_are_asked_for_plainly(small_pool: Path) -> None:
    pool = enlarged(small_pool, Sample(2, (1,), "background"))
    draws = [draw for draw in islice(edits_in_landscape(pool), 300) if len(draw.shape) == 2]
    in_landscape = [draw for draw in draws if draw.shape == (WIDE, SQUARE)]
    assert 0.7 < len(in_landscape) / len(draws) < 0.9, "10 of 12: one of two backgrounds, ten times as often, or mirror"
    tokenizer = Tokenizer.from_file(str(small_pool / "tokenizer.json"))
    said = [tokenizer.decode(ids) for draw in in_landscape for ids in draw.ids.tolist()]
    assert 0.55 < sum("change the background to red" in words for words in said) / len(said) < 0.75


def test_what_takes_more_than_such_a_run_is_drawn_less(small_pool: Path) -> None:
    pool = enlarged(small_pool, Sample(1, (0,), "restyle"))
    next(edits_in_landscape(pool))
    (samples,), (weights,) = pool.shapes["edit"].values(), pool.weights["edit"]
    by_change = dict(zip([sample.change for sample in samples], weights, strict=True))
    assert by_change["mirror"] == by_change["background"] == 1
    assert by_change["restyle"] < 0.5
