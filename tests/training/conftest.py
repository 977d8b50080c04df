"""A pool of four pictures and two backgrounds, and a model of random weights."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from training import data
from training.batches import Pool
from training.families import Sample
from training.model import SHIPPED, MiniModel
from training.precision import DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, arrange

WIDE = (6, 11)
RED = Scene((Thing(0, 0, POSED_SIZE),), "red", SQUARE)
SCENES = [RED, replace(RED, background="blue"), replace(RED, grid=WIDE), RED.mirror()]
SCENES += [Scene((), background, SQUARE) for background in ("red", "blue")]
SAMPLES = [Sample(0), Sample(2), Sample(1, (0,), "background"), Sample(3, (0,), "mirror"), Sample(2, (0, 1), "row")]


@pytest.fixture
def model() -> MiniModel:
    """Draw a model's weights at random, the same each time."""
    torch.manual_seed(0)
    return MiniModel().to(DEVICE).eval()


@pytest.fixture
def small_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out pictures whose latents are their numbers."""
    monkeypatch.setattr(data, "CONCEPTS_FILE", tmp_path / "concepts.txt")
    (tmp_path / "concepts.txt").write_text("apple\n")
    (tmp_path / "synonyms.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_bytes((SHIPPED / "tokenizer.json").read_bytes())
    pool = tmp_path / "pool"
    pool.mkdir()
    rows = [np.full((h * w, 128), number, np.float16) for number, (h, w) in enumerate(s.grid for s in SCENES)]
    np.save(pool / "latents.npy", np.concatenate(rows))
    (pool / "statistics.json").write_text(json.dumps({"mean": [0.0] * 128, "var": [1.0] * 128}))
    index = {"scenes": [asdict(s) for s in SCENES], "samples": [asdict(s) for s in SAMPLES]}
    (pool / "samples.json").write_text(json.dumps(index))
    return tmp_path


@pytest.fixture
def with_samples(small_pool: Path) -> Callable[..., Pool]:
    """Open the small pool with more samples."""

    def opened(*samples: Sample, told: Collection[str] = ()) -> Pool:
        index_file = small_pool / "pool" / "samples.json"
        index = json.loads(index_file.read_text())
        index["samples"] += map(asdict, samples)
        index_file.write_text(json.dumps(index))
        return Pool(small_pool, caption_dropout=0.0, told=told)

    return opened


@pytest.fixture
def with_addition(with_samples: Callable[..., Pool]) -> Pool:
    """Open the small pool with an owl added, on the left, to an apple that filled the picture."""
    pool = with_samples(Sample(3, (0,), "add"))
    pool.concepts.append(type(pool.concepts[0])("owl", ()))
    owl, apple = arrange([Thing(1, 0, POSED_SIZE), *RED.things], 2, SQUARE)
    pool.scenes[3] = replace(RED, things=(owl, apple))
    return pool
