"""Check what the judge is shown, and how it ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.judge import INPUT_PX, Judge, Renders, rank, read_pictures


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Two things in two styles: opaque squares, red and green."""
    sprites = np.zeros((2, 2, 128, 128, 4), np.uint8)
    sprites[..., 3] = 255
    sprites[0, ..., 0] = sprites[1, ..., 1] = 255
    np.save(tmp_path / "sprites.npy", sprites)
    return tmp_path


def test_renders_show_what_their_numbers_say(work: Path) -> None:
    pictures, things = Renders(work, things=2, styles=2, seed=0).draw(64)
    assert pictures.shape == (64, 3, INPUT_PX, INPUT_PX)
    assert set(things.tolist()) == {0, 1}
    middle = pictures[:, :, 28:36, 28:36].mean((2, 3))
    assert ((middle[:, 0] > middle[:, 1]) == (things == 0)).all()


def test_renders_of_a_seed_are_the_same_and_of_another_are_not(work: Path) -> None:
    first, again, other = (Renders(work, things=2, styles=2, seed=seed).draw(8)[1].tolist() for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_rank_counts_the_likelier_things() -> None:
    torch.manual_seed(0)
    judge = Judge(5).eval()
    picture = read_pictures([Image.new("RGB", (200, 100), "red")] * 5)
    assert sorted(rank(judge, picture, torch.arange(5)).tolist()) == [0, 1, 2, 3, 4]


def test_a_judge_of_fewer_things_is_shown_no_other(work: Path) -> None:
    _, things = Renders(work, things=1, styles=2, seed=0).draw(16)
    assert set(things.tolist()) == {0}
