"""Draw batches of precomputed pictures, each of one shape, and word what is asked for."""

import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import Grid, image_ids, reference_ids, text_ids
from openklein.engine.transformer import Rotary, rotary_embedding
from training.data import read_concepts
from training.families import Sample, word_sample
from training.pool import read_statistics
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing, default_style
from training.synonyms import with_synonyms
from training.wording import Plainest, added

T = TypeVar("T")
KINDS = {  # kind: its share of the steps in each stage, batch size
    "plain": ((0.75, 0.12), 32),  # in the style that a prompt without a style gets
    "text": ((0.17, 0.42), 32),
    "edit": ((0.08, 0.32), 20),
    "layout": ((0.00, 0.14), 12),
}
COMMON_THINGS, COMMON_WEIGHT = 300, 2.0  # the first in the list are drawn so much more often on their own
FAVOURED_EDITS = {"tone": 2.0}  # beside others: five tones are one sort
SQUARE_WEIGHT = 5.0  # among the shapes of one change; it also counts by the square of how many references there are
CAPTION_DROPOUT = 0.1
LONG_TEXT_SHARE = 0.15
CHANGED_TOGETHER = 16  # samples of one change
DRAWING_PROCESSES = 6  # keep a GPU busy


def stage_shares(stage: int) -> list[float]:
    """Give each kind's share of the steps in a stage, 0 or 1."""
    return [shares[stage] for shares, _ in KINDS.values()]


@cache
def rotary_of(text_length: int, grid: Grid, reference_grids: tuple[Grid, ...]) -> Rotary:
    """Prepare the rotation of a shape's tokens, once."""
    config = KLEIN_MINI.transformer
    ids = torch.cat([text_ids(text_length), image_ids(*grid), reference_ids(reference_grids)])
    return rotary_embedding(ids, config.axes_dims, config.rope_theta).to(DEVICE)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples of one shape."""

    target: Tensor  # (B, N, C), normalised latents
    references: Tensor  # (B, M, C)
    ids: Tensor  # of the text, as mask on the CPU
    mask: Tensor
    grid: Grid
    reference_grids: tuple[Grid, ...]

    @property
    def rotary(self) -> Rotary:
        return rotary_of(self.ids.shape[1], self.grid, self.reference_grids)


@dataclass(frozen=True, slots=True)
class Draw:
    """Some samples of one shape, by where the latents of their pictures begin."""

    targets: Tensor  # (B,), rows of the pool's latents
    references: Tensor  # (B, R)
    ids: Tensor
    mask: Tensor
    shape: tuple[Grid, ...]


class Latents:
    """The precomputed pictures, normalised, on the device."""

    def __init__(self, work: Path) -> None:
        mean, var = read_statistics(work)
        std = torch.sqrt(var + KLEIN_MINI.autoencoder.batch_norm_eps)
        raw = torch.from_numpy(np.load(work / "pool" / "latents.npy", mmap_mode="c"))
        self.rows = torch.empty(raw.shape, dtype=torch.bfloat16, device=DEVICE)
        for part, rows in zip(torch.split(raw, 1 << 18), torch.split(self.rows, 1 << 18), strict=True):
            rows.copy_((part.to(DEVICE) - mean.to(DEVICE)) / std.to(DEVICE))

    def picture(self, starts: Tensor, grid: Grid) -> Tensor:
        """Take pictures (B, N, C), float32, that begin at rows `starts` (B,)."""
        return self.rows[starts.to(DEVICE)[:, None] + torch.arange(grid[0] * grid[1], device=DEVICE)].float()

    def batch(self, draw: Draw) -> Batch:
        grid, *others = draw.shape
        target = self.picture(draw.targets, grid)
        pictures = [self.picture(starts, other) for starts, other in zip(draw.references.T, others, strict=True)]
        references = torch.cat([target[:, :0], *pictures], dim=1)
        return Batch(target, references, draw.ids, draw.mask, grid, tuple(others))


class Pool(IterableDataset[Draw]):
    """What the precomputed pictures show and make of each other, and endless draws from it, each of one shape."""

    def __init__(
        self,
        work: Path,
        seed: int = 0,
        caption_dropout: float = CAPTION_DROPOUT,
        told: Collection[str] = (),  # changes that are left out where a caption tells their outcome
    ) -> None:
        index: dict[str, Any] = json.loads((work / "pool" / "samples.json").read_text())
        self.concepts = with_synonyms(read_concepts(), work)
        self.scenes = [
            Scene(tuple(Thing(**t) for t in s.pop("things")), grid=tuple(s.pop("grid")), **s) for s in index["scenes"]
        ]
        sizes = [scene.grid[0] * scene.grid[1] for scene in self.scenes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.bare = {scene.background: i for i, scene in enumerate(self.scenes) if not scene.things}
        self.tokenizer = PromptTokenizer(Tokenizer.from_file(str(work / "tokenizer.json")), KLEIN_MINI.text_encoder)
        self.rng = np.random.default_rng(seed)
        self.seed, self.caption_dropout, self.told = seed, caption_dropout, told
        self.shares = torch.tensor(stage_shares(1)).share_memory_()  # type: ignore[no-untyped-call] # by all that draw
        self.shapes: dict[str, dict[tuple[Grid, ...], list[Sample]]] = {kind: {} for kind in KINDS}
        for row in index["samples"]:
            sample = Sample(row["target"], tuple(row["references"]), row["change"])
            kind = ("text", "edit", "layout")[min(2, len(sample.references))]  # joins count as layouts
            shape = tuple(self.scenes[i].grid for i in (sample.target, *sample.references))
            self.shapes[kind].setdefault(shape, []).append(sample)
            if kind == "text" and self.is_plain(sample):
                self.shapes["plain"].setdefault(shape, []).append(sample)
        self.weights = {kind: self.weigh(kind, list(shapes.values())) for kind, shapes in self.shapes.items()}

    def weigh(self, kind: str, shapes: list[list[Sample]]) -> list[NDArray[np.float64]]:
        """Weigh samples so that each sort of them is drawn by the square root of its number, and as it is favoured."""
        counts = Counter(self.sort(kind, sample) for sample in chain.from_iterable(shapes))
        return [
            np.array([self.favour(kind, s) * counts[self.sort(kind, s)] ** -0.5 for s in shape]) for shape in shapes
        ]

    def favour(self, kind: str, sample: Sample) -> float:
        """Have what newcomers ask for first drawn more often: a common thing on its own, some edits."""
        if kind == "plain":
            return COMMON_WEIGHT if self.thing(sample) < COMMON_THINGS else 1.0
        if sample.change in self.told and is_told(self.scenes[sample.target]):
            return 0.0
        return FAVOURED_EDITS.get(str(sample.change), 1.0)

    def sort(self, kind: str, sample: Sample) -> Hashable:
        """Tell plain samples by their thing, captions by how many things they name, all others by the change."""
        if kind == "plain":
            return self.thing(sample)
        things = self.scenes[sample.target].things
        return (len(things) > 1, len({t.concept for t in things})) if kind == "text" else sample.change

    def is_plain(self, sample: Sample) -> bool:
        things = self.scenes[sample.target].things
        return len(things) == 1 and things[0].style == default_style(self.concepts[things[0].concept])

    def thing(self, sample: Sample) -> int:
        return self.scenes[sample.target].things[0].concept

    def word(self, sample: Sample) -> str:
        if self.rng.random() < self.caption_dropout:
            return ""
        return word_sample(sample, self.scenes, self.concepts, self.rng)

    def choose(self) -> tuple[tuple[Grid, ...], list[Sample]]:
        """Draw a kind by its share, a shape by its samples' weight, and samples of that shape by theirs."""
        shares = self.shares.double().numpy()
        kind = list(KINDS)[self.rng.choice(len(KINDS), p=shares / shares.sum())]
        totals = np.array([weights.sum() for weights in self.weights[kind]])
        number = self.rng.choice(len(totals), p=totals / totals.sum())
        shape, samples = list(self.shapes[kind].items())[number]
        count, weights = BATCH_SCALE * KINDS[kind][1], self.weights[kind][number] / totals[number]
        return shape, [samples[i] for i in self.rng.choice(len(samples), size=count, p=weights)]

    def choices(self) -> Iterator[tuple[tuple[Grid, ...], list[Sample]]]:
        """Draw samples of one shape endlessly, others in each process."""
        if worker := get_worker_info():
            self.rng = np.random.default_rng((self.seed, worker.id))
        while True:
            yield self.choose()

    def __iter__(self) -> Iterator[Draw]:
        for shape, samples in self.choices():
            yield self.draw(shape, samples, [self.word(sample) for sample in samples])

    def draw(self, shape: tuple[Grid, ...], samples: Sequence[Sample], words: Sequence[str]) -> Draw:
        """Put samples of one shape together, each asked for in its words."""
        ids, mask = self.tokenizer.encode(words)
        if self.rng.random() < LONG_TEXT_SHARE:  # as a longer prompt would make it: more padding
            length = ids.shape[1]
            ids, mask = F.pad(ids, (0, length), value=int(ids[0, -1])), F.pad(mask, (0, length))
        targets = torch.from_numpy(self.starts[[sample.target for sample in samples]])
        references = torch.from_numpy(self.starts[np.array([sample.references for sample in samples], np.int64)])
        return Draw(targets, references, ids, mask, shape)


Asked = tuple[tuple[Grid, ...], list[Sample], list[str] | None]  # of one shape; captions that tell the outcomes


def changes(pool: Pool, shares: dict[str, float], *, told: bool = False) -> Iterator[Asked]:
    """Draw edits and joins endlessly: a change by its share, then a shape, squares most, and samples of it.

    With `told`, only those whose outcomes a caption tells, each with that.
    """
    shapes: dict[str, dict[tuple[Grid, ...], list[Sample]]] = {}
    for shape, samples in chain(pool.shapes["edit"].items(), pool.shapes["layout"].items()):
        for sample in samples:
            after = pool.scenes[sample.target]
            change = after.tone or str(sample.change)
            if change in shares and (is_told(after) or not told):
                shapes.setdefault(change, {}).setdefault(shape, []).append(sample)
    weights = np.array([shares[change] for change in shapes])
    while True:
        found = list(list(shapes.values())[pool.rng.choice(len(shapes), p=weights / weights.sum())].items())
        favours = [(SQUARE_WEIGHT if grid == SQUARE else 1.0) * len(others) ** 2 for (grid, *others), _ in found]
        counts = np.array([len(samples) * favour for (_, samples), favour in zip(found, favours, strict=True)])
        shape, samples = found[pool.rng.choice(len(found), p=counts / counts.sum())]
        chosen = [samples[i] for i in pool.rng.integers(len(samples), size=BATCH_SCALE * CHANGED_TOGETHER)]
        yield shape, chosen, word_plainly(pool, [Sample(sample.target) for sample in chosen]) if told else None


def is_told(scene: Scene) -> bool:
    """Tell whether a caption says where everything in a scene stands: one thing as it is posed, or two unlike."""
    match scene.things if scene.grid == SQUARE else ():
        case (thing,):
            return thing == Thing(thing.concept, thing.style, POSED_SIZE)
        case (first, second):
            return first.concept != second.concept
    return False


def bare(pool: Pool, latents: Latents, backgrounds: Sequence[str]) -> Tensor:
    """Take pictures of backgrounds with nothing on them (B, N, C), square."""
    return latents.picture(torch.from_numpy(pool.starts[[pool.bare[background] for background in backgrounds]]), SQUARE)


def word_plainly(pool: Pool, samples: Sequence[Sample]) -> list[str]:
    """Word what samples ask for in the plainest words."""
    return [word_sample(sample, pool.scenes, pool.concepts, Plainest()) for sample in samples]


def from_captions(pool: Pool, batch: Batch, told: Sequence[str]) -> Batch:
    """Ask for a batch's outcomes by captions alone."""
    return Batch(batch.target, batch.references[:, :0], *pool.tokenizer.encode(told), batch.grid, ())


def stands_new(pool: Pool, samples: Sequence[Sample]) -> Tensor:
    """Tell of squares which tokens may show what an edit draws anew (B, N, 1): of an addition, where that stands.

    What made room for it is drawn at another size, but as the reference shows it.
    """
    new = torch.ones(len(samples), *SQUARE, dtype=torch.bool)
    centres = [(torch.arange(side) + 0.5) / side for side in SQUARE]
    for number, sample in enumerate(samples):
        if sample.change == "add":
            thing = added(pool.scenes[sample.references[0]], pool.scenes[sample.target])
            reach = thing.size / 2 + 0.5 / min(SQUARE)
            down, right = (abs(c - at) < reach for c, at in zip(centres, (thing.y, thing.x), strict=True))
            new[number] = down[:, None] & right
    return new.flatten(1)[..., None].to(DEVICE)


def stream(source: IterableDataset[T]) -> Iterator[T]:
    """Draw endlessly; in processes of their own where a GPU would wait for the wording."""
    processes = DRAWING_PROCESSES if DEVICE.type == "cuda" else 0
    return iter(DataLoader(source, batch_size=None, num_workers=processes, prefetch_factor=8 if processes else None))
