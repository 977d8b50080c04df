"""Check what is asked for, and what it is held to, when the weights that ship learn edits in any words."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import pytest

from tests.training.conftest import WIDE
from training import further
from training.batches import Latents, Pool
from training.families import Sample
from training.further import KNOWN, NEW, captions, changes, endless_walk
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.scenes import SQUARE


@pytest.fixture
def with_samples(small_pool: Path) -> Callable[..., Pool]:
    """Open the small pool with more samples."""

    def opened(*samples: Sample) -> Pool:
        index_file = small_pool / "pool" / "samples.json"
        index = json.loads(index_file.read_text())
        index["samples"] += map(asdict, samples)
        index_file.write_text(json.dumps(index))
        return Pool(small_pool, caption_dropout=0.0)

    return opened


def test_captions_are_told_in_their_plainest_words(with_samples: Callable[..., Pool]) -> None:
    for _, samples, told in islice(captions(with_samples()), 20):
        assert told == ["an apple on a red background"] * len(samples)


def test_changes_are_drawn_by_their_shares_and_squares_most(with_samples: Callable[..., Pool]) -> None:
    drawn = list(islice(changes(with_samples(Sample(2, (2,), "background")), KNOWN), 400))
    assert all(told is None for _, _, told in drawn)
    counts = Counter((samples[0].change, shape) for shape, samples, _ in drawn)
    assert set(counts) == {("background", (SQUARE, SQUARE)), ("background", (WIDE, WIDE)), ("mirror", (SQUARE, SQUARE))}
    background = counts["background", (SQUARE, SQUARE)] + counts["background", (WIDE, WIDE)]
    assert 0.5 < background / 400 < 0.68, "0.2 of 0.34"
    assert 0.05 < counts["background", (WIDE, WIDE)] / background < 0.3, "one sixth"


def test_what_is_new_is_told_by_a_caption_where_one_says_all(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples(Sample(1, (0,), "restyle"), Sample(3, (0,), "replace"))  # the second's outcome is mirrored
    for _, samples, told in islice(changes(pool, NEW, told=True), 20):
        assert {sample.change for sample in samples} == {"restyle"}
        assert told == ["an apple on a blue background"] * len(samples)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_a_model_that_draws_as_told_has_nothing_to_learn(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_samples(Sample(1, (0,), "restyle"))
    shipped, latents = load_shipped()[0].to(DEVICE).requires_grad_(False), Latents(small_pool)
    student: MiniModel = load_shipped()[0].to(DEVICE).requires_grad_(True)

    def first_losses(source: further.Asked) -> list[float]:
        return [loss.item() for loss in islice(endless_walk(student, shipped, latents, pool, iter([source])), 4)]

    caption, edit = next(captions(pool)), next(changes(pool, NEW, told=True))
    monkeypatch.setattr(further, "PLAIN_SHARE", 1.0)
    same = first_losses((caption[0], caption[1][:4], caption[2] and caption[2][:4]))
    assert max(same) < 3e-3, "no more than a rounded noise level makes"
    assert min(first_losses((edit[0], edit[1][:4], edit[2] and edit[2][:4]))) > 10 * 3e-3
    loss = next(endless_walk(student, shipped, latents, pool, iter([edit])))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [part.parameters() for part in (student.text_encoder, student.transformer)]
    assert all(any(p.grad is not None and p.grad.abs().sum() > 0 for p in part) for part in gradients)
