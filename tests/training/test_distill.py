"""Check where a student is led from noise."""

from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from training import distill
from training.batches import Batch, Latents, Pool
from training.distill import (
    NEW,
    Goal,
    descend,
    goals,
    guided,
    known,
    renewed,
    straight,
    velocity_at,
    walk,
)
from training.families import Sample
from training.model import MiniModel
from training.scenes import SQUARE

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    return Batch(
        torch.randn(2, 4, 128), torch.randn(2, 2, 128), ids, torch.ones_like(ids, dtype=torch.bool), (2, 2), ((1, 2),)
    )


def test_straight_ways_end_at_the_picture(batch: Batch) -> None:
    noise = torch.randn_like(batch.target)
    halfway = straight(batch, noise, (0.8, 0.7, 0.6))
    torch.testing.assert_close(halfway, 0.25 * batch.target + 0.75 * noise)
    torch.testing.assert_close(straight(batch, halfway, (0.6, 0.0)), batch.target)


def test_only_what_differs_and_may_is_drawn_anew(model: MiniModel, batch: Batch) -> None:
    new = torch.tensor([True, False, False, True])[:, None]
    before = torch.where(new, batch.target + 1, batch.target + 0.01)
    edit = Batch(batch.target, torch.cat([before, before], dim=1), batch.ids, batch.mask, batch.grid, ((2, 2), (2, 2)))
    noise, levels = torch.randn_like(batch.target), (0.8, 0.4)
    allowed = torch.tensor([True, True, False, False])[:, None]
    outcome = renewed(edit, lambda tokens, _: -tokens, allowed)(noise, levels)
    torch.testing.assert_close(outcome, torch.where(new & allowed, -noise, 0.5 * (batch.target + noise)))


def test_known_ways_are_those_of_the_model(model: MiniModel, batch: Batch) -> None:
    noise = torch.randn_like(batch.target)
    with torch.no_grad():
        expected = noise - 0.4 * velocity_at(model, batch, noise, 1.0)
    torch.testing.assert_close(known(model, batch)(noise, (1.0, 0.6)), expected)


@pytest.mark.parametrize("follow_student", [False, True])
def test_a_student_that_goes_there_already_has_nothing_to_learn(
    model: MiniModel, batch: Batch, follow_student: bool
) -> None:
    def loss(goal: Goal) -> Tensor:
        optimizer = torch.optim.SGD(model.transformer.parameters(), lr=0.0)
        return descend(model, walk(model, goal, batch, follow_student=follow_student), optimizer)

    assert loss(known(model, batch)) < 1e-3
    assert loss(partial(straight, batch)) > 0.1


def test_new_things_lead_to_what_a_caption_of_the_outcome_does(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, latents = with_samples(Sample(1, (0,), "restyle"), told=NEW), Latents(small_pool)
    monkeypatch.setattr(distill, "NEW_SHARE", 1.0)
    batch, goal = next(goals(model, pool, latents))
    noise, count = torch.randn_like(batch.target), len(batch.ids)
    ids, mask = pool.tokenizer.encode(["an apple on a blue background"] * count)
    caption = guided(model, Batch(batch.target, batch.references[:, :0], ids, mask, batch.grid, ()), pool)
    torch.testing.assert_close(goal(noise, (1.0, 0.9)), caption(noise, (1.0, 0.9)))
    assert batch.references.shape == (count, 64, 128)
    monkeypatch.setattr(distill, "NEW_SHARE", 0.0)
    pool.shares.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    for batch, goal in islice(goals(model, pool, latents), 4):  # other edits
        assert torch.equal(goal(torch.randn_like(batch.target), (1.0, 0.0)), batch.target)


def test_what_stays_beside_new_things_is_not_drawn_anew(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "NEW_SHARE", 1.0)
    batch, goal = next(goals(model, with_samples(Sample(1, (1,), "restyle"), told=NEW), Latents(small_pool)))
    assert torch.equal(goal(torch.randn_like(batch.target), (1.0, 0.0)), batch.target)


def test_what_makes_room_for_an_addition_is_not_drawn_anew(
    model: MiniModel, small_pool: Path, with_addition: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "NEW_SHARE", 1.0)
    batch, goal = next(goals(model, with_addition, Latents(small_pool)))
    drawn = (goal(torch.randn_like(batch.target), (1.0, 0.0)) != batch.target).any(-1).view(-1, *SQUARE)
    assert bool(drawn[:, 2:6, :4].all()), "the owl"
    assert not bool(drawn[:, :, 4:].any()), "the apple"
