"""Check what is held, to what, and what is asked for anew, when the weights that ship go on learning."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import get_args

import pytest
import torch

from training import further
from training.batches import Batch, Latents, Pool
from training.families import Sample
from training.further import (
    EDITED,
    HARD,
    JOINED,
    KNOWN,
    MADE,
    ROWS,
    WEIGHTS,
    edit_walk,
    in_turn,
    joins,
    make_optimizers,
    makes,
)
from training.model import MiniModel, load_shipped
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import POSED_SIZE, SQUARE, Layout, Thing, Tone, arrange
from training.wording import Edit, Join

WIDE = (6, 11)

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


def test_edits_are_held_to_what_they_were_and_to_their_outcomes(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(further, "PLAIN_SHARE", 1.0)
    monkeypatch.setattr(further, "EDITED", 2)
    pool, latents = with_samples(), Latents(small_pool)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    other: MiniModel = load_shipped()[0].to(DEVICE).requires_grad_(False)
    torch.nn.init.normal_(other.transformer.proj_out.weight, std=0.1)
    same = list(islice(edit_walk(shipped, shipped, latents, pool, {"mirror": 1.0}), 4))
    assert all(off["held"] < 1e-6 and off["known"] > 0.1 for off in same)
    assert all(off["held"] > 0.1 for off in islice(edit_walk(other, shipped, latents, pool, {"mirror": 1.0}), 4))
    alone = list(islice(edit_walk(other, None, latents, pool, {"mirror": 1.0}), 4))
    assert all(off.keys() == {"hard"} and off["hard"] > 0.1 for off in alone)


def test_edits_in_any_words_are_held_to_what_the_plainest_led_to(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    shipped, student = MiniModel(), MiniModel()
    asked: dict[MiniModel, list[tuple[int, ...]]] = {shipped: [], student: []}

    def still(model: MiniModel, batch: Batch, tokens: torch.Tensor, _: float) -> torch.Tensor:
        asked[model] += map(tuple, batch.ids.tolist())
        return tokens

    monkeypatch.setattr(further, "velocity_at", still)
    monkeypatch.setattr(further, "PLAIN_SHARE", 0.0)
    list(islice(edit_walk(student, shipped, latents, pool, {"mirror": 1.0}), 4))
    assert set(asked[shipped]) == set(map(tuple, pool.tokenizer.encode(["mirror the image"])[0].tolist()))
    assert len(set(asked[student])) > EDITED // 2


def test_what_edits_draw_is_looked_at_in_wide_pictures_too(small_pool: Path, with_samples: Callable[..., Pool]) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    pool.concepts = [type(pool.concepts[0])(name, ()) for name in ("apple", "owl", "bus")]
    owl, bus = arrange([Thing(1, 0, POSED_SIZE), Thing(2, 0, POSED_SIZE)], 2, WIDE)
    pool.scenes[2] = replace(pool.scenes[2], things=(owl, bus))
    pool.scenes.append(replace(pool.scenes[2], things=(owl, replace(bus, concept=0))))
    pool.starts[6] = pool.starts[2]
    pool.shapes["edit"] = {(WIDE, WIDE): [Sample(2, (6,), "replace")]}
    batch, views = next(makes(pool, latents))
    assert batch.grid == WIDE
    assert views == [(number, thing) for number in range(BATCH_SCALE * EDITED) for thing in (owl, bus)]


def test_some_restylings_whose_drawings_are_looked_at_are_described(
    small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_samples()
    said: list[Sample] = []

    def word(_: Pool, samples: Sequence[Sample]) -> list[str]:
        said.extend(samples)
        return ["a flat apple"] * len(samples)

    pool.shapes["edit"] = {(grid, grid): [Sample(i, (i,), "restyle")] for i, grid in ((0, SQUARE), (2, WIDE))}
    monkeypatch.setattr(further, "word", word)
    grids = [batch.grid for batch, _ in islice(makes(pool, Latents(small_pool)), 60)]
    assert 20 < grids.count(WIDE) < 40, "as often as there are such"
    described = [sample.change is None for sample in said]
    assert 0.2 < sum(described) / len(described) < 0.4


@pytest.mark.parametrize("shares", [KNOWN, HARD, MADE, ROWS])
def test_shares_are_of_changes_that_there_are_and_make_a_whole(shares: dict[str, float]) -> None:
    there_are = {change for kind in (Edit, Join, Layout, Tone) for change in get_args(kind)}
    assert set(shares) <= there_are, "any other would never be drawn"
    assert sum(shares.values()) == pytest.approx(1)


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
