"""Check what is asked for, and what it is held to, when the weights that ship learn edits in any words."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from training import further
from training.batches import Asked, Latents, Pool, changes
from training.distill import NEW
from training.families import Sample
from training.further import captions, endless_walk
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.recogniser import Heads, Recogniser
from training.scenes import SQUARE


def test_captions_are_told_in_their_plainest_words(with_samples: Callable[..., Pool]) -> None:
    for _, samples, told in islice(captions(with_samples()), 20):
        assert told == ["an apple on a red background"] * len(samples)


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")
def test_a_model_that_draws_as_told_has_nothing_to_learn(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_samples(Sample(1, (0,), "restyle"))
    shipped, latents = load_shipped()[0].to(DEVICE).requires_grad_(False), Latents(small_pool)
    student: MiniModel = load_shipped()[0].to(DEVICE)
    student.transformer.requires_grad_(True)
    recogniser = Recogniser(student, Heads(torch.ones(1, 384)).to(DEVICE), pool, latents)

    def first_losses(source: Asked) -> list[float]:
        walk = endless_walk(recogniser, shipped, latents, pool, iter([source]), False)
        return [loss.item() for loss in islice(walk, 4)]

    caption, edit = next(captions(pool)), next(changes(pool, NEW, told=True))
    monkeypatch.setattr(further, "PLAIN_SHARE", 1.0)
    monkeypatch.setattr(torch, "rand", lambda _: 0.0)  # the noise level as it is, not rounded
    same = first_losses((caption[0], caption[1][:4], caption[2] and caption[2][:4]))
    assert max(same) < 1e-6
    assert min(first_losses((edit[0], edit[1][:4], edit[2] and edit[2][:4]))) > 0.03
    loss = next(endless_walk(recogniser, shipped, latents, pool, iter([edit]), True))
    loss.backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.transformer.parameters())


def test_what_stays_goes_straight_and_what_is_all_but_bare_becomes_bare(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, latents, model = with_samples(Sample(1, (1,), "restyle")), Latents(small_pool), MiniModel()
    monkeypatch.setattr(further, "known", lambda *_: lambda tokens, _: torch.full_like(tokens, 4.1))
    monkeypatch.setattr(further, "walk", lambda _, goal, batch, **__: iter([goal(batch.target, (1.0, 0.0))]))
    caption: Asked = (SQUARE,), [Sample(0)] * 2, ["an apple on a red background"] * 2
    edit = next(changes(pool, NEW, told=True))
    recogniser = Recogniser(model, Heads(torch.ones(1, 384)), pool, latents)
    monkeypatch.setattr(recogniser, "beside", lambda *_: 0.5)
    for is_meaning, more in ((False, 0.0), (True, 0.5)):
        outcomes = [
            next(endless_walk(recogniser, model, latents, pool, iter([source]), is_meaning)).flatten().tolist()
            for source in (caption, edit)
        ]
        assert set(outcomes[0]) == {4.0 + more}, "the red background"
        assert set(outcomes[1]) == {1.0 + more}, "what it was"
