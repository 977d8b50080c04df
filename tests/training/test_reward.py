"""Check what is asked for, what is looked at, and what is held, when a critic is shown what is drawn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import reward
from training.batches import Batch, Latents, Pool
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
    join_losses,
    look_at_joined,
)
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, halved

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")


@pytest.fixture
def scenes(with_samples: Callable[..., Pool]) -> Scenes:
    """Show five things alone, on white by latents of 0, on blue of 1; of 4 and 5 with nothing there."""
    pool = with_samples()
    concept, starts = pool.concepts[0], pool.starts
    pool.concepts = [type(concept)(name, ()) for name in ("apple", "bus", "cat", "dog", "owl")]
    shown = [(c, s) for c, concept in enumerate(pool.concepts) for s in shown_styles(concept)]
    pool.scenes = [Scene((Thing(*pair, POSED_SIZE),), b, SQUARE) for pair in shown for b in ("white", "blue")]
    pool.starts = np.array([*starts[:2].tolist() * len(shown), starts[4], starts[5]])
    pool.bare = {"white": len(pool.scenes), "blue": len(pool.scenes) + 1}
    return Scenes(pool)


def test_captions_tell_of_one_thing_of_two_and_of_several_alike(scenes: Scenes) -> None:
    drawn = [scenes.draw() for _ in range(300)]
    alone = [scene for scene in drawn if len(scene.things) == 1]
    assert 0.5 < len(alone) / 300 < 0.7
    assert {scene.background for scene in alone} == {"white", "blue"}, "as the pool has painted them"
    assert len({scene.background for scene in drawn if scene not in alone}) > 10
    assert max(len(scene.things) for scene in drawn) == 4
    for scene in drawn:
        for thing in scene.things:
            assert thing.style in shown_styles(scenes.pool.concepts[thing.concept])
    names = {(thing.concept, thing.style) for scene in drawn for thing in scene.things}
    assert not any(is_held_out(scenes.pool.concepts[c].label, list(STYLES)[s]) for c, s in names)


def test_one_thing_is_drawn_only_as_it_is_painted_whole_and_plain(scenes: Scenes) -> None:
    owl = Scene((Thing(4, 0, POSED_SIZE),), "white", SQUARE)
    (thing,) = owl.things
    for other in (
        replace(owl, tone="greyscale"),
        replace(owl, quarter_turns=1),
        replace(owl, grid=(6, 11)),
        *(replace(owl, things=(replace(thing, **change),)) for change in ({"size": 0.5}, {"tint": "red"}, {"x": 0.4})),
        replace(owl, things=(thing, halved(thing, down=0.5))),
    ):
        scenes.pool.scenes = [owl, other]
        found = Scenes(scenes.pool)
        assert found.painted == {owl: 0}
        assert found.alone == {4: {0: [owl]}}


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
    monkeypatch.setattr(reward, "SURE", 2)
    monkeypatch.setattr(reward, "ALONE", 1.0)
    monkeypatch.setattr(reward, "rounded", lambda sigma: sigma)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    student: MiniModel = load_shipped()[0].to(DEVICE)
    student.transformer.requires_grad_(True)
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    asked, generator = ask(scenes, Latents(small_pool)), torch.Generator(DEVICE).manual_seed(0)
    assert len(asked.batch.target) == len(asked.views) == len(asked.real) == 4
    assert bool(asked.alone.all())
    assert (asked.real[:2] + 4).equal(asked.behind), "a thing on the background that it is painted on"
    losses = caption_losses(student, shipped, critic, asked, generator)
    assert losses["sure"] < 1e-6, "the same model"
    assert losses["bare"] == 0, "no picture is near a background of fours or fives"
    assert 0 < losses["named"] < 5
    losses["named"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.transformer.blocks[0].parameters())
    with torch.no_grad():
        drawn = draw(shipped, replace(asked.batch, target=asked.batch.target))
        asked = replace(asked, behind=drawn[:2] + 0.1, real=drawn + 0.1)
        near = caption_losses(shipped, shipped, critic, asked, generator)
        torch.nn.init.normal_(student.transformer.proj_out.weight, std=0.1)
        far = caption_losses(student, shipped, critic, asked, generator)
        asked = replace(asked, behind=asked.behind + 4)
        elsewhere = caption_losses(student, shipped, critic, asked, generator)
        last_alone = torch.tensor([False, False, True, True], device=DEVICE)
        several = replace(asked, alone=last_alone, real=asked.real[2:])
        together = caption_losses(student, shipped, critic, several, generator)
    assert [near[name].item() for name in ("bare", "off")] == pytest.approx([0.01, 0.01], abs=1e-4)
    assert far["bare"] > 0.1
    assert far["off"] > 0.1
    assert near["unlike"] < 0.2 * far["unlike"]
    assert far["sure"] == 0, "what is bare is held to the background alone"
    assert together["sure"] > 0.001, "to what was drawn, as sure as a critic is who has learned nothing"
    assert elsewhere["sure"] == 0, "what is alone is compared with the real one"


def test_only_things_alone_are_compared_with_real_ones(
    scenes: Scenes, small_pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = scenes.pool.scenes[0], counted(Thing(1, 0, POSED_SIZE), 2, "blue")
    waiting = [two, one, two]
    monkeypatch.setattr(reward, "DRAWN", 3)
    monkeypatch.setattr(scenes, "draw", waiting.pop)
    monkeypatch.setattr(reward, "draw", lambda _, batch: torch.full_like(batch.target, 3.0))
    asked = ask(scenes, Latents(small_pool))
    critic = Critic(5).to(DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE)
    losses = caption_losses(shipped, shipped, critic, asked, generator)
    assert losses["off"].item() == pytest.approx(3.0**2 / 3), "of three pictures one, whose real one is nought"
    monkeypatch.setattr(reward, "draw", lambda _, batch: torch.zeros_like(batch.target))
    assert caption_losses(shipped, shipped, critic, asked, generator)["unlike"] == 0


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
