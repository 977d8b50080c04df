"""Check what is asked for, what is looked at, and what is held, when the weights that ship are shown to a critic."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from training import further
from training.batches import Latents, Pool, bare
from training.critic import Critic
from training.data import STYLES, is_held_out
from training.families import counted, shown_styles
from training.further import Scenes, ask, caption_losses, draw, edit_walk
from training.model import MiniModel, load_shipped
from training.precision import DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, halved

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
    monkeypatch.setattr(further, "DRAWN", 4)
    monkeypatch.setattr(further, "draw_background", lambda _: "blue")
    monkeypatch.setattr(further, "ALONE", 1.0)
    monkeypatch.setattr(further, "rounded", lambda sigma: sigma)
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


def test_edits_are_held_to_what_they_were_and_known_ones_to_their_outcomes(
    small_pool: Path, with_samples: Callable[..., Pool]
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    shipped = load_shipped()[0].to(DEVICE).requires_grad_(False)
    other: MiniModel = load_shipped()[0].to(DEVICE).requires_grad_(False)
    torch.nn.init.normal_(other.transformer.proj_out.weight, std=0.1)
    for shares, is_known in (({"mirror": 1.0}, True), ({"row": 1.0}, False)):
        same = list(islice(edit_walk(shipped, shipped, latents, pool, shares), 4))
        assert all(held == 0 for held, _ in same)
        assert all((outcome > 0.1) == is_known for _, outcome in same)
        assert all(held > 0.1 for held, _ in islice(edit_walk(other, shipped, latents, pool, shares), 4))
