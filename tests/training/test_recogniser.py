"""Check what is asked of the transformer's blocks beside its pictures."""

from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openklein.engine.attention import attention
from training.batches import Batch, Latents, Pool, rotary_of
from training.distill import velocity_at
from training.families import Sample
from training.model import MiniModel
from training.precision import DEVICE
from training.recogniser import (
    ALONE_WEIGHT,
    BLOCKS,
    MEANT_BESIDE,
    MEANT_WEIGHT,
    NAMED_BESIDE,
    Heads,
    Recogniser,
    Watch,
    held,
    name_features,
    shown_noisy,
    weigh,
)
from training.scenes import SQUARE

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


def test_a_watch_sees_where_the_first_head_looks(model: MiniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[Tensor, Tensor]] = []
    real = attention

    def note(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        looked.append((query, key))
        return real(query, key, value)

    monkeypatch.setattr("openklein.engine.transformer.attention", note)
    watch, mask = Watch(model.transformer), torch.tensor([[1, 1, 1, 0]] * 2).bool()
    image, times = torch.randn(2, 64, 128, device=DEVICE), torch.full((2,), 0.9, device=DEVICE)
    out = model(image, torch.full((2, 4), 7), mask, times, rotary_of(4, SQUARE, ()))
    assert out.shape == image.shape
    query, key = (side[:, :, 0].float() for side in looked[BLOCKS - 1])
    scores = query[:, 4:] @ key[:, :3].mT / 8
    assert torch.allclose(watch.gaze(mask), scores.logsumexp(-1), atol=1e-4)


def test_recognising_teaches_the_first_blocks_alone(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    heads = Heads(torch.randn(3, 384)).to(DEVICE)
    recogniser = Recogniser(model, heads, pool, latents)
    alone = recogniser.slots.alone[[0]]
    monkeypatch.setattr(recogniser.slots, "rows", alone[:, :1].repeat(16, axis=1))
    monkeypatch.setattr(recogniser.slots, "things", alone[:, 1])
    losses = recogniser.losses(3, 2)
    assert set(losses) == {"named", "named_alone", "gaze", "meant"}
    assert len(recogniser.watch.after) == 3 + 2
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    moved = [any(p.grad is not None for p in block.parameters()) for block in model.transformer.blocks]
    assert moved == [True] * BLOCKS + [False] * (len(moved) - BLOCKS)


def test_names_can_count_alone() -> None:
    losses = {name: torch.tensor(value) for name, value in (("named", 1.0), ("named_alone", 2.0))}
    losses |= {name: torch.tensor(1.0) for name in ("gaze", "meant")}
    assert weigh(losses, 0.0) == 1.0 + 2.0 * ALONE_WEIGHT
    assert weigh(losses) - weigh(losses, 0.0) == pytest.approx(2 * MEANT_WEIGHT)


def test_references_are_named_and_what_changes_of_them_is_told(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool]
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    heads = Heads(torch.zeros(3, 384)).to(DEVICE)
    recogniser = Recogniser(model, heads, pool, latents)

    def beside(sample: Sample) -> float:
        shape = tuple(pool.scenes[i].grid for i in (sample.target, *sample.references))
        draw = pool.draw(shape, [sample] * 2, ["any words"] * 2)
        batch = latents.batch(draw)
        velocity_at(model, batch, batch.target, 0.5)
        return recogniser.beside(draw, batch).item()

    torch.nn.init.zeros_(heads.meaning.weight)
    named = NAMED_BESIDE * torch.tensor(3.0).log().item()  # all three are as likely
    for certain, wrong in ((20.0, 0.0), (-20.0, MEANT_BESIDE * 20.0)):
        torch.nn.init.constant_(heads.meaning.bias, certain)
        assert beside(Sample(0)) == 0
        assert beside(Sample(1, (0,), "background")) == pytest.approx(named + wrong, abs=1e-3), "all changes"
        assert beside(Sample(0, (4,), "add")) == pytest.approx(wrong, abs=1e-3), "nothing to name"
        assert beside(Sample(2, (0, 1), "row")) == pytest.approx(named, abs=1e-3), "joins change nothing"


def test_what_is_made_of_captions_and_edits_is_held(
    model: MiniModel, small_pool: Path, with_samples: Callable[..., Pool]
) -> None:
    pool, latents, other = with_samples(), Latents(small_pool), deepcopy(model)
    torch.nn.init.normal_(other.transformer.x_embedder.weight)
    watches = [Watch(made.transformer) for made in (model, other)]
    kinds = set()
    for batch, noisy, level in islice(shown_noisy(pool, latents), 12):
        kinds.add(len(batch.reference_grids))
        for made in (model, other):
            velocity_at(made, batch, noisy, level)
        assert held(watches[0], watches[0], batch) == 0
        assert held(watches[0], watches[1], batch) > 0.5
    assert kinds == {0, 1, 2}


def test_references_count_as_much_as_pictures_and_texts(model: MiniModel) -> None:
    one, other = Watch(model.transformer), Watch(model.transformer)
    batch = Batch(torch.zeros(1, 4, 8), torch.zeros(1, 6, 8), torch.zeros(1, 2), torch.ones(1, 2), (2, 2), ((2, 3),))
    for part, begin, end in (("text", 0, 2), ("picture", 2, 6), ("references", 6, 12)):
        one.after, other.after = torch.zeros(1, 12, 8), torch.randn(1, 12, 8)
        one.after[:] = other.after
        assert held(one, other, batch) == 0
        one.after[:, begin:end] = other.after[:, begin:end].mean((0, 1))
        assert held(one, other, batch) == pytest.approx(1.0), part


def test_names_differ_in_every_direction(small_pool: Path, with_samples: Callable[..., Pool], model: MiniModel) -> None:
    pool = with_samples()
    concept = pool.concepts[0]
    pool.concepts = [type(concept)(name, ()) for name in ("apple", "red apple", "bus", "fire engine", "dog")]
    with torch.no_grad():
        names = name_features(model, pool)
    assert names.shape == (5, 384)
    power = torch.linalg.svdvals(names)
    assert power[3] > power[0] / 4
    assert torch.allclose(names.mean(0), torch.zeros(384, device=DEVICE), atol=1e-4)
