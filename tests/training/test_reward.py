"""Check what is asked for, what is looked at, and what is held, when a critic is shown what is drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training import reward
from training.batches import Batch, Latents, Pool, bare
from training.critic import Critic
from training.data import STYLES, is_held_out
from training.families import Sample, counted, shown_styles
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.reward import (
    Scenes,
    ask,
    caption_losses,
    draw,
    edit_losses,
    join_losses,
    look_at_joined,
    look_at_new,
)
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange, halved

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


@pytest.fixture
def scenes(with_samples: Callable[..., Pool]) -> Scenes:
    pool = with_samples()
    concept = pool.concepts[0]
    pool.concepts = [type(concept)(name, ()) for name in ("apple", "bus", "cat", "dog", "owl")]
    return Scenes(pool)


def test_captions_tell_of_one_thing_of_two_and_of_several_alike(scenes: Scenes) -> None:
    drawn = [scenes.draw() for _ in range(300)]
    alone = [scene for scene in drawn if len(scene.things) == 1]
    assert 0.25 < len(alone) / 300 < 0.5
    assert max(len(scene.things) for scene in drawn) == 4
    for scene in drawn:
        for thing in scene.things:
            assert thing.style in shown_styles(scenes.pool.concepts[thing.concept])
    names = {(thing.concept, thing.style) for scene in drawn for thing in scene.things}
    assert not any(is_held_out(scenes.pool.concepts[c].label, list(STYLES)[s]) for c, s in names)


def test_of_several_alike_one_is_looked_at_and_of_what_covers_another_the_upper(scenes: Scenes) -> None:
    one, two = Thing(0, 0, POSED_SIZE), Thing(1, 0, POSED_SIZE)
    assert scenes.look_at(3, Scene((one,), "red", SQUARE)) == [(3, one)]
    alike = counted(one, 3, "red")
    seen = {view for _ in range(40) for view in scenes.look_at(0, alike)}
    assert len(scenes.look_at(0, alike)) == 1
    assert {thing for _, thing in seen} == set(alike.things)
    before = halved(two, down=0.5)
    assert scenes.look_at(0, Scene((one, before), "red", SQUARE)) == [(0, before)]


def test_losses_are_of_what_is_drawn_and_go_back_through_every_step(
    scenes: Scenes, small_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward, "DRAWN", 4)
    monkeypatch.setattr(reward, "draw_background", lambda _: "blue")
    monkeypatch.setattr(reward, "ALONE", 1.0)
    monkeypatch.setattr(reward, "rounded", lambda sigma: sigma)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    student: MiniModel = load_shipped()[0].to(DEVICE)
    student.transformer.requires_grad_(True)
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    asked, generator = ask(scenes), torch.Generator(DEVICE).manual_seed(0)
    assert len(asked.batch.target) == len(asked.views) == 4
    assert bool(asked.alone.all())
    behind = bare(scenes.pool, Latents(small_pool), asked.backgrounds[:2])
    losses = caption_losses(student, shipped, critic, asked, behind, generator)
    assert losses["sure"] < 1e-6, "the same model"
    assert losses["bare"] == 0, "no picture is near a background of fives"
    assert 0 < losses["named"] < 5
    losses["named"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.transformer.blocks[0].parameters())
    with torch.no_grad():
        drawn = draw(shipped, replace(asked.batch, target=asked.batch.target[:4]))
        near = caption_losses(shipped, shipped, critic, asked, drawn[:2] + 0.1, generator)
        torch.nn.init.normal_(student.transformer.proj_out.weight, std=0.1)
        far = caption_losses(student, shipped, critic, asked, drawn[:2] + 0.1, generator)
        elsewhere = caption_losses(student, shipped, critic, asked, behind, generator)
    assert near["bare"].item() == pytest.approx(0.01, abs=1e-4)
    assert far["bare"] > 0.1
    assert far["sure"] == 0, "what is bare is held to the background alone"
    assert elsewhere["sure"] > 0.001, "to what was drawn, as sure as a critic is who has learned nothing"


def test_what_is_new_is_looked_at_and_nothing_else(with_samples: Callable[..., Pool]) -> None:
    pool = with_samples()
    kept, gone, come = Thing(0, 0, 0.5, x=0.25), Thing(1, 0, 0.5, x=0.75), Thing(2, 0, 0.5, x=0.75)
    restyled = replace(kept, style=1)
    scenes = ((kept, gone), (kept, come), (restyled, gone))
    pool.scenes = [Scene(things, "red", SQUARE) for things in scenes]
    samples = [Sample(1, (0,), "replace"), Sample(2, (0,), "restyle"), Sample(0, (0,), "recolour")]
    assert look_at_new(pool, samples) == [(0, come), (1, restyled)]


def test_what_makes_room_for_what_is_new_is_looked_at_too(with_samples: Callable[..., Pool]) -> None:
    pool, (kept, come) = with_samples(), arrange([Thing(0, 0, POSED_SIZE), Thing(1, 0, POSED_SIZE)], 2, SQUARE)
    before = replace(kept, size=POSED_SIZE, x=0.5)
    pool.scenes = [Scene(things, "red", SQUARE) for things in ((before,), (kept,), (kept, come))]
    assert look_at_new(pool, [Sample(2, (0,), "add"), Sample(2, (1,), "add")]) == [(0, kept), (0, come), (1, come)]


def test_what_an_edit_draws_anew_is_doubted_and_the_rest_held_to_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    before = torch.zeros(2, 64, 128, device=DEVICE)
    target = before.clone()
    target[:, :32] = 1.0
    ids, mask = torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.bool)
    batch = Batch(target, before, ids, mask, SQUARE, (SQUARE,))
    starts = []

    def drawn(_: MiniModel, batch: Batch) -> torch.Tensor:
        starts.append(batch.target)
        return torch.full_like(target, 2.0)

    monkeypatch.setattr(reward, "draw", drawn)
    student, views = load_shipped()[0], [(0, Thing(0, 0, 0.5)), (1, Thing(1, 0, 0.5)), (1, Thing(2, 1, 0.5))]

    generator = torch.Generator(DEVICE).manual_seed(0)
    losses = edit_losses(student, critic, batch, views, generator)
    assert losses["stays"].item() == pytest.approx((0.1 * 1 + 4) / 2, rel=1e-5)
    named, styled = 1.5 * torch.tensor(5.0).log().item(), 1.5 * torch.tensor(float(len(STYLES))).log().item()
    assert losses["new"].item() == pytest.approx(named + 0.3 * styled, rel=0.3)
    assert all(0.9 < start.std() < 1.1 and start.mean().abs() < 0.1 for start in starts), "from noise"


def test_all_that_is_joined_is_doubted_and_what_is_around_it_held_to_the_outcome(
    with_samples: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = with_samples()
    things = tuple(Thing(i, i, 0.25, x=0.125 + 0.25 * i) for i in range(3))
    pool.scenes = [Scene(things, "red", SQUARE), *(Scene((thing,), "red", SQUARE) for thing in things)]
    views = look_at_joined(pool, 2 * [Sample(0, (1, 2, 3), "row")])
    assert views == [(number, thing) for number in (0, 1) for thing in things]
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    target, ids = torch.zeros(2, 64, 128, device=DEVICE), torch.zeros(2, 8, dtype=torch.long)
    target[:, 32:] = 1.0
    batch = Batch(target, target.repeat(1, 3, 1), ids, ids.bool(), SQUARE, 3 * (SQUARE,))
    monkeypatch.setattr(reward, "draw", lambda _, batch: torch.full_like(batch.target, 2.0))
    losses = join_losses(load_shipped()[0], critic, batch, views, torch.Generator(DEVICE).manual_seed(0))
    assert losses["around"].item() == pytest.approx((4 + 0.1 * 1) / 2, rel=1e-5)
    expected = torch.tensor(5.0).log() + 0.3 * torch.tensor(float(len(STYLES))).log()
    assert losses["joined"].item() == pytest.approx(expected.item(), rel=0.2)
