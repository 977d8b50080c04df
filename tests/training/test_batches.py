"""Check what is drawn from a pool, in one process and in several."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.tokens import image_ids, reference_ids, text_ids
from openklein.engine.transformer import FlowTransformer
from tests.training.conftest import SAMPLES, SCENES, WIDE
from training.batches import KINDS, Latents, Pool, bare, changes, from_captions, is_told, rotary_of, stands_new
from training.distill import NEW
from training.families import Sample
from training.precision import BATCH_SCALE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange


def test_a_batch_holds_the_pictures_of_its_samples(small_pool: Path) -> None:
    pool, latents = Pool(small_pool), Latents(small_pool)
    batch = latents.batch(pool.draw((WIDE, SQUARE, SQUARE), [SAMPLES[4]] * 2, ["a row", "them in a row"]))
    assert batch.target.shape == (2, 66, 128)
    assert batch.references.shape == (2, 128, 128)
    for part, number in ((batch.target, 2), (batch.references[:, :64], 0), (batch.references[:, 64:], 1)):
        assert bool((part.round() == number).all())
    assert (batch.grid, batch.reference_grids) == (WIDE, (SQUARE, SQUARE))
    assert len(batch.rotary) == batch.ids.shape[1] + 66 + 128


def test_a_rotation_is_that_of_the_transformer() -> None:
    ids = torch.cat([text_ids(16), image_ids(*WIDE), reference_ids((SQUARE, WIDE))])
    with torch.device("meta"):
        transformer = FlowTransformer(KLEIN_MINI.transformer)
    assert torch.equal(rotary_of(16, WIDE, (SQUARE, WIDE)).cpu(), transformer.rotary(ids))


def test_processes_draw_differently_and_heed_what_the_shares_become(small_pool: Path) -> None:
    pool = Pool(small_pool, caption_dropout=0.0)
    pool.shares.copy_(torch.tensor([float(kind == "edit") for kind in KINDS]))
    drawn = list(islice(DataLoader(pool, batch_size=None, num_workers=2, prefetch_factor=1), 4))
    assert {draw.shape for draw in drawn} == {(SQUARE, SQUARE)}
    assert all(len(draw.targets) == BATCH_SCALE * KINDS["edit"][1] for draw in drawn)
    assert not all(torch.equal(drawn[0].targets, draw.targets) for draw in drawn[1:2])
    stream = iter(DataLoader(pool, batch_size=None, num_workers=1, prefetch_factor=1))
    next(stream)
    pool.shares.copy_(torch.tensor([float(kind == "layout") for kind in KINDS]))
    assert [len(draw.shape) for draw in islice(stream, 4)][-1] == 3


def test_changes_are_drawn_by_their_shares_and_squares_most(with_samples: Callable[..., Pool]) -> None:
    shares = {"background": 0.2, "mirror": 0.14, "rotate": 0.66}  # of which there is none
    drawn = list(islice(changes(with_samples(Sample(2, (2,), "background")), shares), 400))
    assert all(told is None for _, _, told in drawn)
    counts = Counter((samples[0].change, shape) for shape, samples, _ in drawn)
    assert set(counts) == {("background", (SQUARE, SQUARE)), ("background", (WIDE, WIDE)), ("mirror", (SQUARE, SQUARE))}
    background = counts["background", (SQUARE, SQUARE)] + counts["background", (WIDE, WIDE)]
    assert 0.5 < background / 400 < 0.68, "0.2 of 0.34"
    assert 0.05 < counts["background", (WIDE, WIDE)] / background < 0.3, "one sixth"


def test_joins_of_more_references_are_drawn_more(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples(Sample(0, (0, 1), "row"), Sample(0, (0, 1, 3), "row"))
    counts = Counter(len(shape) - 1 for shape, _, _ in islice(changes(pool, {"row": 1.0}), 400) if shape[0] == SQUARE)
    assert 0.6 < counts[3] / counts.total() < 0.78, "nine to four"


def test_what_is_new_is_told_by_a_caption_where_one_says_all(with_samples: Callable[..., Pool]) -> None:
    mirrored, wide = Sample(3, (0,), "replace"), Sample(2, (2,), "restyle")  # which captions do not describe
    pool = with_samples(Sample(1, (0,), "restyle"), mirrored, wide)
    for _, samples, told in islice(changes(pool, NEW, told=True), 20):
        assert {sample.change for sample in samples} == {"restyle"}
        assert told == ["an apple on a blue background"] * len(samples)


def test_a_caption_tells_of_two_things_where_each_stands() -> None:
    one, two = Thing(0, 0, POSED_SIZE), Thing(1, 0, POSED_SIZE)
    pair = Scene(arrange([one, two], 2, SQUARE), "red", SQUARE)
    assert is_told(pair)
    assert not is_told(replace(pair, grid=WIDE))
    assert not is_told(replace(pair, things=arrange([one, one], 2, SQUARE)))
    assert not is_told(replace(pair, things=arrange([one, two, replace(one, concept=2)], 2, SQUARE)))


def test_what_is_told_by_a_caption_is_not_drawn_elsewhere(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples(Sample(1, (0,), "restyle"), Sample(3, (0,), "replace"), told=NEW)
    pool.shares.copy_(torch.tensor([float(kind == "edit") for kind in KINDS]))
    drawn = {sample.change for _, samples in islice(pool.choices(), 20) for sample in samples}
    assert drawn == {"background", "mirror", "replace"}


def test_a_bare_background_shows_nothing_else(small_pool: Path) -> None:
    behind = bare(Pool(small_pool), Latents(small_pool), ["blue", "red"])
    assert behind.shape == (2, 64, 128)
    assert behind[:, 0, 0].tolist() == [5, 4]


def test_an_outcome_told_by_a_caption_needs_no_reference(small_pool: Path) -> None:
    pool, latents = Pool(small_pool), Latents(small_pool)
    batch = latents.batch(pool.draw((SQUARE, SQUARE), [SAMPLES[2]] * 2, ["make it blue"] * 2))
    alone = from_captions(pool, batch, ["an apple on a blue background"] * 2)
    assert torch.equal(alone.target, batch.target)
    assert alone.references.shape == (2, 0, 128)
    assert len(alone.rotary) == alone.ids.shape[1] + 64


def test_new_is_what_is_added_not_what_made_room_and_of_other_edits_anything(with_samples: Callable[..., Pool]) -> None:
    pool, (one,) = with_samples(), SCENES[0].things
    upper, lower = arrange([one, replace(one, concept=1)], 1, SQUARE)
    pool.scenes[3] = replace(SCENES[0], things=(upper, lower))
    below, replaced = stands_new(pool, [Sample(3, (0,), "add"), Sample(3, (0,), "replace")]).view(2, *SQUARE).cpu()
    assert bool(replaced.all())
    assert below.nonzero().tolist() == [[row, column] for row in range(4, 8) for column in range(2, 6)]
