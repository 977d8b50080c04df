"""Check what is held, to what, and what is asked for anew, when the weights that ship go on learning."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import get_args

import pytest
import torch

from training import further
from training.batches import CHANGED_TOGETHER, Batch, Latents, Pool, from_captions
from training.distill import Goal, known
from training.families import Sample
from training.further import (
    HARD,
    JOINED,
    KNOWN,
    ROWS,
    WEIGHTS,
    edit_walk,
    in_turn,
    joins,
    make_optimizers,
    redraws,
)
from training.model import MiniModel, load_shipped
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import SQUARE, Layout, Thing, Tone
from training.wording import Edit, Join

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


def test_edits_are_held_to_what_they_were_and_to_their_outcomes(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "EDITED", 2)
    pool, latents = with_samples(), Latents(small_pool)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    other: MiniModel = load_shipped()[0].to(DEVICE).requires_grad_(False)
    torch.nn.init.normal_(other.transformer.proj_out.weight, std=0.1)
    same = list(islice(edit_walk(shipped, shipped, latents, pool, {"mirror": 1.0}), 4))
    assert all(off["held"] == 0 and off["known"] > 0.1 for off in same)
    assert all(off["held"] > 0.1 for off in islice(edit_walk(other, shipped, latents, pool, {"mirror": 1.0}), 4))
    alone = list(islice(edit_walk(other, None, latents, pool, {"mirror": 1.0}), 4))
    assert all(off.keys() == {"hard"} and off["hard"] > 0.1 for off in alone)


@pytest.mark.parametrize("shares", [KNOWN, HARD, ROWS])
def test_shares_are_of_changes_that_there_are_and_make_a_whole(shares: dict[str, float]) -> None:
    there_are = {change for kind in (Edit, Join, Layout, Tone) for change in get_args(kind)}
    assert set(shares) <= there_are, "any other would never be drawn"
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("change", ["restyle", "replace"])
def test_a_thing_is_redrawn_as_a_caption_of_the_outcome_is_drawn(
    model: MiniModel,
    small_pool: Path,
    with_samples: Callable[..., Pool],
    monkeypatch: pytest.MonkeyPatch,
    change: Edit,
) -> None:
    edit, walks, words = Sample(1, (0,), change), [], []
    pool, latents = with_samples(edit), Latents(small_pool)

    def walked(_: MiniModel, goal: Goal, batch: Batch, *, follow_student: bool) -> Iterator[torch.Tensor]:
        walks.append((goal, batch))
        yield torch.ones(())

    def word(sample: Sample) -> str:
        words.append(sample)
        return "a flat apple"

    monkeypatch.setattr(further, "walk", walked)
    monkeypatch.setattr(pool, "word", word)
    assert next(redraws(model, model, latents, pool, change)) == {change: 1}
    ((goal, batch),), count = walks, BATCH_SCALE * CHANGED_TOGETHER
    assert batch.references.shape == (count, 64, 128)
    assert set(words) == ({edit, Sample(1)} if change == "restyle" else {edit})
    assert words.count(Sample(1)) < count // 2
    noise, captions = torch.randn_like(batch.target), count * ["an apple on a blue background"]
    expected = known(model, from_captions(pool, batch, captions))(noise, (1.0, 0.9))
    torch.testing.assert_close(goal(noise, (1.0, 0.9)), expected)


def test_an_addition_is_redrawn_where_it_stands_and_what_made_room_is_not(
    model: MiniModel, small_pool: Path, with_addition: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    walks = []

    def walked(_: MiniModel, goal: Goal, batch: Batch, *, follow_student: bool) -> Iterator[torch.Tensor]:
        walks.append((goal, batch))
        yield torch.ones(())

    monkeypatch.setattr(further, "walk", walked)
    assert next(redraws(model, model, Latents(small_pool), with_addition, "add")) == {"add": 1}
    ((goal, batch),) = walks
    noise = torch.randn_like(batch.target)
    drawn = (goal(noise, (1.0, 0.0)) != batch.target).any(-1).view(-1, *SQUARE)
    assert bool(drawn[:, 2:6, :4].all()), "the owl, of half the size, on the left"
    assert not bool(drawn[:, :, 4:].any()), "the apple, that filled the picture"


def test_only_rows_of_squares_are_joined_anew(small_pool: Path, with_samples: Callable[..., Pool]) -> None:
    pool, latents = with_samples(Sample(3, (0, 0, 0), "row"), Sample(3, (0, 2), "row")), Latents(small_pool)
    pool.scenes[3] = replace(pool.scenes[0], things=(Thing(0, 1, 0.25, x=0.125), Thing(1, 1, 0.25, x=0.375)))
    for batch, views in islice(joins(pool, latents), 4):
        assert batch.grid == SQUARE
        assert batch.reference_grids == (SQUARE, SQUARE, SQUARE), "no wide reference"
        assert len(batch.target) == JOINED // 4
        assert views == [(number, thing) for number in range(JOINED // 4) for thing in pool.scenes[3].things]
    pool.shapes["layout"] = {shape: found for shape, found in pool.shapes["layout"].items() if len(set(shape)) > 1}
    with pytest.raises(AssertionError, match="for ever"):
        next(joins(pool, latents))


def test_what_comes_every_third_step_counts_three_times() -> None:
    two, one = torch.tensor(2.0), torch.tensor(1.0)
    learned = [(1, repeat({"named": two, "off": one})), (3, repeat({"hard": one}))]
    steps = [[(round(loss.item(), 4), set(drawn)) for loss, drawn in in_turn(learned, step)] for step in range(6)]
    often = (round(2 * WEIGHTS["named"] + WEIGHTS["off"], 4), {"named", "off"})
    seldom = (round(3 * WEIGHTS["hard"], 4), {"hard"})
    assert steps == 2 * [[often], [often], [often, seldom]]


def test_muon_takes_the_matrices_of_the_blocks_and_adam_all_else_of_the_transformer() -> None:
    student = load_shipped()[0].requires_grad_(False)
    muon, adam = make_optimizers(student, 4e-4)
    taken = [{id(p) for p in o.param_groups[0]["params"]} for o in (muon, adam)]
    matrices = {id(p) for block in student.transformer.blocks for p in block.parameters() if p.ndim == 2}
    assert matrices, "or there would be nothing to take"
    learned = {id(p) for p in student.transformer.parameters()}
    assert taken == [matrices, learned - matrices]
    assert {id(p) for p in student.parameters() if p.requires_grad} == learned, "the text encoder stays"
    assert (muon.param_groups[0]["lr"], adam.param_groups[0]["lr"]) == (4e-4, 2e-4)
