"""Precompute latents for the flow's training: pictures in families, so that every edit has its pair.

`python -m training.pool --work FOLDER --families 5000` leaves FOLDER/pool/{latents.npy,samples.json,statistics.json};
`--things 300` draws the first 300 things alone.
"""

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import STEM_SCALE, MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.tokens import Grid, pack, patchify
from training.autoencoder import load_average
from training.data import Concept, load_sprites, read_concepts
from training.families import Family, Sample, draw_family, portraits, shown_styles
from training.people import draw_people
from training.precision import DEVICE, autocast
from training.scenes import SQUARE, Scene, every_background, paint

SPRITE_PX = 256  # enough for a canvas
ENCODED_TOGETHER = 64


def small_sprites(work: Path) -> NDArray[np.uint8]:
    """Scale all sprites to canvas size, once."""
    path = work / f"sprites_{SPRITE_PX}.npy"
    if not path.exists():
        large = load_sprites(work)
        small = np.empty((*large.shape[:2], SPRITE_PX, SPRITE_PX, 4), np.uint8)
        for row, column in np.ndindex(*large.shape[:2]):
            picture = Image.fromarray(large[row, column])
            small[row, column] = picture.resize((SPRITE_PX, SPRITE_PX), Image.Resampling.LANCZOS)
        np.save(path, small)
    sprites: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return sprites


Painted = tuple[list[int], NDArray[np.uint8]]  # scenes of one shape, and their pictures (B, H, W, 3)


class Families(IterableDataset[tuple[Family, list[Painted]]]):
    """Painted families: bare backgrounds, portraits of every concept, so that none is missed, people, then others.

    Made in processes beside the encoder, which paint every so many-th family each.
    """

    def __init__(self, work: Path, count: int, seed: int, things: int | None = None) -> None:
        self.work, self.count, self.seed, self.things = work, count, seed, things

    def __iter__(self) -> Iterator[tuple[Family, list[Painted]]]:
        sprites, worker = small_sprites(self.work), get_worker_info()
        families = self.draw(read_concepts()[: self.things], np.random.default_rng(self.seed))
        for family in islice(families, worker.id, None, worker.num_workers) if worker else families:
            by_grid: dict[Grid, list[int]] = {}
            for number, scene in enumerate(family.scenes):
                by_grid.setdefault(scene.grid, []).append(number)
            yield family, [(n, np.stack([paint(family.scenes[i], sprites) for i in n])) for n in by_grid.values()]

    def draw(self, concepts: list[Concept], rng: np.random.Generator) -> Iterator[Family]:
        yield Family([Scene((), background, SQUARE) for background in every_background()])
        styles = [shown_styles(concept) for concept in concepts]
        shown = [concept for concept, its in enumerate(styles) if its]
        for concept in shown:
            yield portraits(concept, styles[concept], rng)
        yield from draw_people(concepts, styles, rng)
        order: list[int] = []
        for number in range(self.count):
            if len(order) < 4:
                order += rng.permutation(shown).tolist()
            yield draw_family(number, order, styles, rng)


def load_autoencoder(work: Path) -> MiniAutoencoder:
    """Take the averaged weights of the autoencoder's run."""
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    model = MiniAutoencoder(KLEIN_MINI.autoencoder)
    model.load_state_dict(load_average(work / "autoencoder"))
    return model.eval()


@torch.inference_mode()
def encode_canvas(model: MiniAutoencoder, pictures: Tensor) -> Tensor:
    """Map canvas pictures (B, H, W, 3) to packed latents (B, tokens, channels), not yet normalised."""
    pixels = pictures.to(DEVICE).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # in channels_last
    with autocast():
        latents = model.encoder(F.pixel_unshuffle(pixels, STEM_SCALE))
    return pack(patchify(latents.float()))


class Encoder:
    """Encode pictures of one shape together as they come, some at a time."""

    def __init__(self, model: MiniAutoencoder) -> None:
        self.model = model.to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.waiting: dict[torch.Size, tuple[list[int], list[Tensor]]] = {}
        self.latents: dict[int, NDArray[np.float16]] = {}

    def add(self, numbers: Sequence[int], pictures: Tensor) -> None:
        waiting, parts = self.waiting.setdefault(pictures.shape[1:], ([], []))
        waiting += numbers
        parts.append(pictures)
        if len(waiting) >= ENCODED_TOGETHER:
            self._encode(self.waiting.pop(pictures.shape[1:]))

    def finish(self) -> NDArray[np.float16]:
        """Give all latents (rows, channels) in the order of their pictures' numbers."""
        while self.waiting:
            self._encode(self.waiting.popitem()[1])
        return np.concatenate([self.latents[number] for number in range(len(self.latents))])

    def _encode(self, waiting: tuple[list[int], list[Tensor]]) -> None:
        numbers, parts = waiting
        self.latents.update(zip(numbers, encode_canvas(self.model, torch.cat(parts)).half().cpu().numpy(), strict=True))


def build(work: Path, families: int, seed: int, things: int | None = None) -> None:
    """Paint and encode `families` families; their mean and variance become the autoencoder's, if it has none yet."""
    folder = work / "pool"
    folder.mkdir(exist_ok=True)
    encoder = Encoder(load_autoencoder(work))
    scenes: list[Scene] = []
    samples: list[Sample] = []
    small_sprites(work)  # before others look for them
    processes = os.cpu_count() or 1
    stream = DataLoader(Families(work, families, seed, things), batch_size=None, num_workers=processes)
    for family, painted in tqdm(stream, desc="pool", mininterval=5):
        start = len(scenes)
        scenes += family.scenes
        samples += [
            replace(s, target=s.target + start, references=tuple(r + start for r in s.references))
            for s in family.samples
        ]
        for numbers, pictures in painted:
            encoder.add([start + number for number in numbers], pictures)
    flat = encoder.finish()
    np.save(folder / "latents.npy", flat)
    statistics = {"mean": flat.mean(0, np.float64).tolist(), "var": flat.var(0, np.float64).tolist()}
    known_mean, known_var = encoder.model.bn.running_mean, encoder.model.bn.running_var
    if known_mean is not None and known_var is not None and known_mean.any():
        statistics = {"mean": known_mean.tolist(), "var": known_var.tolist()}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    index = {"scenes": [asdict(s) for s in scenes], "samples": [asdict(s) for s in samples]}
    (folder / "samples.json").write_text(json.dumps(index))


def read_statistics(work: Path) -> tuple[Tensor, Tensor]:
    """Read mean and variance of each channel of the pool's latents."""
    statistics = json.loads((work / "pool" / "statistics.json").read_text())
    return torch.tensor(statistics["mean"]), torch.tensor(statistics["var"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    parser.add_argument("--families", type=int, default=5000)
    parser.add_argument("--things", type=int, help="draw the first so many things alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.work, arguments.families, arguments.seed, arguments.things)
