"""Check that things are found where they stand, and that prompts mean what is said to be meant."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training.batches import Latents, Pool
from training.data import Concept
from training.precision import DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange, halved
from training.slots import NOTHING, SLOT, Slots, shown_things, slot_of

PAIR = arrange([Thing(0, 0, POSED_SIZE), Thing(1, 0, POSED_SIZE)], 2, SQUARE)
FOUR = arrange([Thing(i, 0, POSED_SIZE) for i in range(4)], 2, SQUARE)
TOKENS = SQUARE[0] * SQUARE[1]


@pytest.fixture
def slots(small_pool: Path, with_samples: Callable[..., Pool]) -> Slots:
    """Show four things in a grid, one of them turned, and one alone; each token's latents are its number."""
    pool, latents = with_samples(), Latents(small_pool)
    grid = Scene(FOUR, "red", SQUARE)
    pool.scenes = [grid, replace(grid, quarter_turns=1), Scene((Thing(2, 0, POSED_SIZE),), "red", SQUARE)]
    pool.starts = np.arange(4) * TOKENS
    pool.concepts = [Concept(name, ()) for name in ("apple", "bus", "cat", "dog")]
    latents.rows = torch.arange(3 * TOKENS, device=DEVICE)[:, None].expand(-1, 128)
    return Slots(pool, latents)


def test_things_beside_each_other_fill_slots() -> None:
    assert [slot_of(thing) for thing in PAIR] == [(2, 0), (2, 4)]
    assert [slot_of(thing) for thing in FOUR] == [(0, 0), (0, 4), (4, 0), (4, 4)]
    alone = Thing(0, 0, POSED_SIZE)
    assert slot_of(halved(alone)) == (2, 2)
    assert slot_of(alone) is None
    assert slot_of(replace(halved(alone), x=0.45)) is None
    assert slot_of(replace(PAIR[0], x=0.0)) is None, "half outside"


def test_every_token_of_a_thing_shows_it(slots: Slots) -> None:
    grid, turned, alone = shown_things(slots.pool).reshape(3, *SQUARE)
    assert [grid[i, j] for i in (1, 6) for j in (1, 6)] == [0, 1, 2, 3]
    assert set(turned.ravel()) == {NOTHING}
    assert set(alone[1:-1, 1:-1].ravel()) == {2}
    assert set(alone[0]) == {NOTHING}
    slots.pool.scenes[0] = Scene(PAIR, "red", SQUARE)
    pair = shown_things(slots.pool)[:TOKENS].reshape(SQUARE)
    assert set(pair[:2].ravel()) == {NOTHING}
    assert pair[3].tolist() == [0] * SLOT + [1] * SLOT


def test_prompts_mean_one_thing_of_four(slots: Slots) -> None:
    shown = slots.draw(20, 3)
    assert shown.tokens.shape == (23, TOKENS, 128)
    numbers = shown.tokens[:, :, 0].cpu().numpy().astype(int)
    named = np.where(numbers < TOKENS, shown_things(slots.pool)[numbers], 2)  # alone, to the edges
    assert (shown.things.cpu().numpy() == named).all()
    for row, things, meant, prompt in zip(
        numbers[:20].reshape(20, *SQUARE), shown.things.cpu(), shown.meant.cpu(), shown.prompts, strict=False
    ):
        corner = row[:SLOT, :SLOT]
        assert (corner - corner[0, 0] == SQUARE[1] * np.arange(SLOT)[:, None] + np.arange(SLOT)).all()
        (thing,) = set(things[meant].tolist())
        assert slots.pool.concepts[thing].label in prompt
        assert thing not in things[~meant]
    assert shown.prompts[20:] == [""] * 3
    assert (numbers[20:] == np.arange(2 * TOKENS, 3 * TOKENS)).all()
