"""Check where the critic looks, what counts as shown, and how it doubts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import critic
from training.batches import Latents, Pool
from training.critic import Critic, Views, cut, doubts, draw_windows, shown_whole, unlikeness
from training.precision import DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange, halved

ALONE = Thing(0, 0, POSED_SIZE)
PAIR = arrange([ALONE, Thing(1, 2, POSED_SIZE)], 2, SQUARE)


def middle_of(windows: torch.Tensor) -> torch.Tensor:
    return windows[:, :, 6:10, 6:10].mean((1, 2, 3))


def test_a_window_is_cut_where_its_thing_stands() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    tokens = torch.stack([10 * rows + columns] * 2).view(2, 64, 1).expand(-1, -1, 128)
    windows = cut(tokens, PAIR, torch.ones(2), torch.zeros(2, 2))
    assert windows.shape == (2, 32, 16, 16)
    assert middle_of(windows).tolist() == pytest.approx([35 + 1.5, 35 + 5.5], abs=0.01)
    assert (windows[0].max() - windows[0].min()).item() == pytest.approx(11 * 8 * POSED_SIZE / 2, abs=6), (
        "as wide as it"
    )
    beside = cut(tokens, PAIR, torch.ones(2), torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    size = 8 * PAIR[0].size
    assert (middle_of(beside) - middle_of(windows)).tolist() == pytest.approx([size, -10 * size], abs=0.5)


def test_only_what_can_be_seen_whole_is_looked_at() -> None:
    scene = Scene(PAIR, "red", SQUARE)
    assert shown_whole(scene) == list(PAIR)
    assert shown_whole(replace(scene, tone="greyscale")) == list(PAIR)
    assert shown_whole(replace(scene, tone="outline")) == shown_whole(replace(scene, quarter_turns=1)) == []
    assert shown_whole(replace(scene, grid=(6, 11))) == []
    before = halved(Thing(1, 0, POSED_SIZE), down=0.5)
    assert shown_whole(replace(scene, things=(ALONE, before))) == [before]


def test_noise_comes_before_the_window() -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens = torch.zeros(2, 64, 128, device=DEVICE)
    windows = draw_windows(tokens, PAIR, torch.tensor([0.0, 1.0], device=DEVICE), critic.ASKED, generator)
    assert windows[0].abs().max() == 0
    assert 0.5 < windows[1].std() < 1.1
    steps = windows[1].diff(dim=2).std() / windows[1].std()
    assert steps < 1, "a window half as wide is enlarged with its noise"


def test_a_doubt_is_of_the_thing_in_its_window_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Critic(2).to(DEVICE).eval()
    monkeypatch.setattr(
        Critic,
        "forward",
        lambda _, windows, __: (
            torch.stack([windows.mean((1, 2, 3)), -windows.mean((1, 2, 3))], dim=1),
            torch.zeros(len(windows), 4, device=windows.device),
        ),
    )
    left = torch.arange(64, device=DEVICE).view(1, 64, 1) % 8 < 4
    tokens = torch.where(left, 50.0, -50.0).expand(2, 64, 128)  # the first thing to the left, the second to the right
    generator = torch.Generator(DEVICE).manual_seed(0)
    right, wrong = PAIR, (PAIR[0], replace(PAIR[1], concept=0))
    for things, expected in ((right, 0.0), (wrong, -np.log(critic.FLOOR))):
        named, styled = doubts(model, tokens, [(0, things[0]), (1, things[1])], generator)
        assert named.tolist() == pytest.approx([-np.log(1 + critic.FLOOR), expected], abs=0.02)
        assert styled.tolist() == pytest.approx([-np.log(0.25 + critic.FLOOR)] * 2)


def test_likeness_is_of_features_under_the_same_noise_and_about_the_thing() -> None:
    model = Critic(2).to(DEVICE).eval().requires_grad_(False)
    generator = torch.Generator(DEVICE).manual_seed(0)
    real = torch.randn(2, 64, 128, device=DEVICE)
    assert unlikeness(model, real, real, PAIR, generator).tolist() == [0, 0]
    left = torch.arange(64, device=DEVICE).view(1, 64, 1) % 8 < 3
    changed = torch.where(left, torch.randn(2, 64, 128, device=DEVICE), real)
    near, far = unlikeness(model, changed, real, PAIR, generator).flip(0).tolist()
    assert near < 0.2 * far, "the second thing stands to the right"
    little = unlikeness(model, real + 0.1 * torch.randn_like(real), real, PAIR, generator)
    assert 0 < little.max() < 0.2 * far
    assert far < 2, "what looks at nothing in common"


def test_views_are_those_of_the_pool_and_families_are_held_out_whole(
    small_pool: Path, with_samples: Callable[..., Pool]
) -> None:
    pool, latents = with_samples(), Latents(small_pool)
    views = Views(pool, latents, held_out=False)
    assert [start for start, _ in views.views] == [0, 64, 128 + 66], "neither the wide picture nor what is bare"
    tokens, things = views.draw(40)
    assert tokens.shape == (40, 64, 128)
    assert set(tokens[:, 0, 0].tolist()) == {0, 1, 3}
    assert {thing.concept for thing in things} == {0}
    assert Views(pool, latents, held_out=True).views == []
    pool.scenes = [pool.scenes[0]] * 80 * critic.HELD_OUT_SCENES
    pool.starts = np.arange(len(pool.scenes) + 1)
    starts = [{start for start, _ in Views(pool, latents, held_out=held).views} for held in (True, False)]
    assert len(starts[0]) == 2 * critic.HELD_OUT_SCENES
    assert starts[0].isdisjoint(starts[1])
    assert len(starts[0] | starts[1]) == len(pool.scenes)
