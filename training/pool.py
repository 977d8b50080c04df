"""Precompute latents for the flow's training: pictures in families, so that every edit has its pair.

`python -m training.pool --work FOLDER --families 5000` leaves FOLDER/pool/{latents.npy,samples.json}.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import STEM_SCALE, MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.tokens import Grid, pack, patchify
from training.autoencoder import load_average
from training.data import STYLES, Concept, is_held_out, load_sprites, read_concepts
from training.scenes import COLOURS, SQUARE, VISIBLE, Edit, Layout, Scene, Thing, arrange, paint

SPRITE_PX = 256  # enough for a canvas
POSED_SIZE = 0.84  # captions describe things in one pose, centred at this size; edits see them in any
GRID_WEIGHTS: dict[Grid, float] = {(6, 11): 0.46, (11, 6): 0.12, (7, 10): 0.18, (10, 7): 0.12, (6, 13): 0.12}
assert set(GRID_WEIGHTS) == set(VISIBLE) - {SQUARE}


@dataclass(frozen=True, slots=True)
class Sample:
    """Make picture `target` from pictures `references`: `change` is the edit or layout asked for."""

    target: int
    references: tuple[int, ...] = ()
    change: Edit | Layout | None = None


@dataclass(slots=True)
class Family:
    """Scenes that belong together, and what can be learned from them; indices count from `scenes[0]`."""

    scenes: list[Scene] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def add(self, scene: Scene) -> int:
        self.scenes.append(scene)
        return len(self.scenes) - 1


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
    sprites: NDArray[np.uint8] = np.load(path)
    return sprites


def shown_styles(concept: Concept) -> list[int]:
    return [i for i, style in enumerate(STYLES) if not is_held_out(concept.label, style)]


def loose(concept: int, rng: np.random.Generator) -> Thing:
    """Place a thing anywhere, at any size that shows it well."""
    size = rng.uniform(0.5, 0.92)
    x, y = 0.5 + rng.uniform(-0.5, 0.5, 2) * (0.97 - size)
    return Thing(concept, 0, size, x, y, bool(rng.random() < 0.4))


def one_thing(concept: int, styles: list[int], posed: bool, rng: np.random.Generator) -> Family:
    """Draw one thing in every style on two backgrounds, mirrored, grey, and in another aspect ratio."""
    family = Family()
    names = list(COLOURS)
    first = "white" if rng.random() < 0.5 else names[rng.integers(len(names))]
    second = names[(names.index(first) + rng.integers(1, len(names))) % len(names)]
    base = Scene((Thing(concept, 0, POSED_SIZE) if posed else loose(concept, rng),), first, SQUARE)

    def variant(style: int, background: str, grid: Grid = SQUARE) -> Scene:
        return replace(base, things=(replace(base.things[0], style=style),), background=background, grid=grid)

    square = {(s, b): family.add(variant(s, b)) for s in styles for b in (first, second)}
    style, other = (styles[i] for i in rng.permutation(len(styles) + 1)[:2] % len(styles))
    grids = list(GRID_WEIGHTS)
    grid = grids[rng.choice(len(grids), p=list(GRID_WEIGHTS.values()))]
    plain, turned = square[style, first], square[style, second]
    wide = family.add(variant(style, first, grid))
    wide_turned = family.add(variant(style, second, grid))
    mirrored = family.add(family.scenes[plain].mirror())
    grey = family.add(replace(family.scenes[plain], greyscale=True))
    if posed:
        family.samples += [Sample(i) for i in (*square.values(), wide, wide_turned)]
    family.samples += [Sample(square[s, second], (square[s, first],), "background") for s in styles]
    family.samples += [
        Sample(plain, (turned,), "background"),
        Sample(mirrored, (plain,), "mirror"),
        Sample(plain, (mirrored,), "mirror"),
        Sample(grey, (plain,), "greyscale"),
        Sample(wide_turned, (plain,), "background"),
        Sample(wide_turned, (wide,), "background"),
    ]
    if style != other:
        family.samples.append(Sample(square[style, first], (square[other, first],), "restyle"))
        family.samples.append(Sample(square[other, second], (square[style, second],), "restyle"))
        family.samples.append(Sample(wide, (square[other, first],), "restyle"))
    return family


def several_things(concepts: list[tuple[int, int]], rng: np.random.Generator) -> Family:
    """Draw two to four things each alone, and all together."""
    family = Family()
    names = list(COLOURS)
    things = []
    for concept, style in concepts:
        things.append(Thing(concept, style, POSED_SIZE))
        background = "white" if rng.random() < 0.5 else names[rng.integers(len(names))]
        family.samples.append(Sample(family.add(Scene((things[-1],), background, SQUARE))))
    layout: Layout = "grid" if len(things) > 2 and rng.random() < 0.5 else "row"
    grid: Grid = SQUARE if rng.random() < 0.4 else (6, 11)
    background = "white" if rng.random() < 0.6 else names[rng.integers(len(names))]
    target = family.add(Scene(arrange(things, layout, grid), background, grid))
    family.samples.append(Sample(target, tuple(range(len(things))), layout))
    return family


class Families(IterableDataset[tuple[Family, list[NDArray[np.uint8]]]]):
    """Painted families, concepts in turn; made in a process beside the encoder."""

    def __init__(self, work: Path, count: int, seed: int) -> None:
        self.work, self.count, self.seed = work, count, seed

    def __iter__(self) -> Iterator[tuple[Family, list[NDArray[np.uint8]]]]:
        rng = np.random.default_rng(self.seed)
        sprites, concepts = small_sprites(self.work), read_concepts()
        order: list[int] = []
        for number in range(self.count):
            if len(order) < 4:
                order += rng.permutation(len(concepts)).tolist()
            if number % 4 == 3:
                chosen = [order.pop() for _ in range(rng.integers(2, 5))]
                pairs = [(c, int(rng.choice(shown_styles(concepts[c]) or [0]))) for c in chosen]
                family = several_things(pairs, rng)
            else:
                concept = order.pop()
                family = one_thing(concept, shown_styles(concepts[concept]) or [0], number % 4 < 2, rng)
            yield family, [paint(scene, sprites) for scene in family.scenes]


def load_autoencoder(work: Path) -> MiniAutoencoder:
    """Take the averaged weights of the autoencoder's run."""
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    model = MiniAutoencoder(KLEIN_MINI.autoencoder)
    model.load_state_dict(load_average(work / "autoencoder"))
    return model.eval()


@torch.inference_mode()
def encode_canvas(model: MiniAutoencoder, pictures: NDArray[np.uint8]) -> Tensor:
    """Map canvas pictures (B, H, W, 3) to packed latents (B, tokens, channels), not yet normalised."""
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encoder(F.pixel_unshuffle(pixels, STEM_SCALE))
    return pack(patchify(latents.float()))


def build(work: Path, families: int, seed: int) -> None:
    """Paint and encode `families` families; the pool's mean and variance become the autoencoder's."""
    folder = work / "pool"
    folder.mkdir(exist_ok=True)
    model = load_autoencoder(work)
    latents: list[NDArray[np.float16]] = []
    scenes: list[Scene] = []
    samples: list[Sample] = []
    stream = DataLoader(Families(work, families, seed), batch_size=None, num_workers=1, prefetch_factor=16)
    for family, pictures in tqdm(stream, total=families, desc="pool"):
        start = len(scenes)
        scenes += family.scenes
        samples += [
            replace(s, target=s.target + start, references=tuple(r + start for r in s.references))
            for s in family.samples
        ]
        encoded: list[NDArray[np.float16]] = [np.empty(0, np.float16)] * len(pictures)
        for grid in {scene.grid for scene in family.scenes}:
            chosen = [i for i, scene in enumerate(family.scenes) if scene.grid == grid]
            batch = encode_canvas(model, np.stack([pictures[i] for i in chosen])).half().numpy()
            for i, tokens in zip(chosen, batch, strict=True):
                encoded[i] = tokens
        latents += encoded
    flat = np.concatenate(latents)
    np.save(folder / "latents.npy", flat)
    statistics = {"mean": flat.mean(0, np.float64).tolist(), "var": flat.var(0, np.float64).tolist()}
    index = {"scenes": [asdict(s) for s in scenes], "samples": [asdict(s) for s in samples], **statistics}
    (folder / "samples.json").write_text(json.dumps(index))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    parser.add_argument("--families", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.work, arguments.families, arguments.seed)
