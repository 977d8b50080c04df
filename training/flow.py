"""Train klein-mini's flow transformer on precomputed latents; the text encoder stays as it was taught.

`python -m training.flow --work FOLDER --minutes 100` resumes FOLDER/flow.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import Grid, image_ids, reference_ids, text_ids
from openklein.engine.transformer import Rotary
from training.autoencoder import load_average
from training.checkpoints import Average, Run
from training.data import read_concepts
from training.families import Sample, word_sample
from training.model import MiniModel
from training.muon import Muon
from training.precision import autocast
from training.samples import draw_samples
from training.scenes import Scene, Thing, default_style
from training.synonyms import with_synonyms
from training.wording import caption

KINDS = {  # kind: its share of the steps in each stage, batch size
    "plain": ((0.85, 0.36), 32),  # in the style that a prompt without a style gets
    "text": ((0.10, 0.30), 32),
    "edit": ((0.05, 0.27), 20),
    "layout": ((0.00, 0.07), 12),
}
HIGH_NOISE_SHARES = (0.9, 0.6)  # in each stage: nouns are learned there, and fastest alone
SECOND_STAGE = 0.57  # of the run is over when it starts
COMMON_THINGS, COMMON_WEIGHT = 300, 2.0  # the first in the list are drawn so much more often on their own
FAVOURED_EDITS = {"background": 3.0}  # beside others
CAPTION_DROPOUT = 0.1
SIGMA_SHIFT = 3.5
LONG_TEXT_SHARE = 0.15
MUON_RATE, NORM_RATE, CONTEXT_RATE, OTHER_RATE = 4e-3, 1e-2, 1e-4, 2e-3
CONTEXT_STD, CONTEXT_CAPTIONS = 5.0, 2048
NOISE_RANGES = ((0.0, 0.7), (0.7, 0.85), (0.85, 0.95), (0.95, 1.01))  # whose losses are kept apart
SAMPLES_EVERY_MINUTES = 20


def initialise(model: MiniModel, work: Path) -> None:
    """Start every block as the identity, and the text encoder as it was taught, to stay so."""
    for name, parameter in model.transformer.named_parameters():
        if "modulation" in name or name.startswith(("norm_out", "proj_out")):
            nn.init.zeros_(parameter)
    model.text_encoder.load_state_dict(load_average(work / "text"))
    model.text_encoder.requires_grad_(False)


@torch.no_grad()
def whiten_context(model: MiniModel, pool: "Pool") -> None:
    """Set the context embedder so that every direction of the text features counts alike.

    A learned one grows along the few directions that pay first, those of the background's colour, until
    layer normalisation leaves next to nothing of the many that tell one thing from another.
    """
    captions = [caption(scene, pool.concepts, pool.rng) for scene in pool.scenes if len(scene.things) == 1]
    chosen = [captions[i] for i in pool.rng.integers(len(captions), size=CONTEXT_CAPTIONS)]
    ids, mask = pool.tokenizer.encode(chosen)
    features = model.text_encoder(ids, mask)[mask.bool()]
    power, directions = torch.linalg.eigh(features.T @ features / len(features))
    kept = slice(-model.transformer.context_embedder.out_features, None)
    power, directions = power[kept], directions[:, kept]
    rotation = nn.init.orthogonal_(torch.empty(len(power), len(power)))
    scale = CONTEXT_STD / torch.sqrt(power + 0.003 * power.max())
    model.transformer.context_embedder.weight.copy_(rotation @ (directions * scale).T)


def stage_shares(stage: int) -> list[float]:
    """Give each kind's share of the steps in a stage, 0 or 1."""
    return [shares[stage] for shares, _ in KINDS.values()]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples of one shape."""

    target: Tensor  # (B, N, C), normalised latents
    references: Tensor  # (B, M, C)
    ids: Tensor
    mask: Tensor
    grid: Grid
    reference_grids: tuple[Grid, ...]

    def rotary(self, model: MiniModel) -> Rotary:
        ids = [text_ids(self.ids.shape[1]), image_ids(*self.grid), reference_ids(self.reference_grids)]
        return model.transformer.rotary(torch.cat(ids))


class Pool:
    """The precomputed pictures, and endless batches of them, each of one shape."""

    def __init__(
        self,
        work: Path,
        seed: int = 0,
        keep: Callable[[Sample, Sequence[Scene]], bool] | None = None,
        favoured_edits: Mapping[str, float] = FAVOURED_EDITS,
    ) -> None:
        index: dict[str, Any] = json.loads((work / "pool" / "samples.json").read_text())
        self.concepts = with_synonyms(read_concepts(), work)
        self.scenes = [
            Scene(tuple(Thing(**t) for t in s.pop("things")), grid=tuple(s.pop("grid")), **s) for s in index["scenes"]
        ]
        sizes = [scene.grid[0] * scene.grid[1] for scene in self.scenes]
        self.starts = np.concatenate([[0], np.cumsum(sizes)])
        self.mean, self.var = torch.tensor(index["mean"]), torch.tensor(index["var"])
        std = torch.sqrt(self.var + KLEIN_MINI.autoencoder.batch_norm_eps)
        latents = torch.from_numpy(np.load(work / "pool" / "latents.npy"))
        self.latents = torch.cat([((part - self.mean) / std).bfloat16() for part in torch.split(latents, 1 << 16)])
        self.tokenizer = PromptTokenizer(Tokenizer.from_file(str(work / "tokenizer.json")), KLEIN_MINI.text_encoder)
        self.rng = np.random.default_rng(seed)
        self.shares, self.favoured_edits = stage_shares(1), favoured_edits
        self.shapes: dict[str, dict[tuple[Grid, ...], list[Sample]]] = {kind: {} for kind in KINDS}
        for row in index["samples"]:
            sample = Sample(row["target"], tuple(row["references"]), row["change"])
            if keep and not keep(sample, self.scenes):
                continue
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
        return self.favoured_edits.get(str(sample.change), 1.0)

    def sort(self, kind: str, sample: Sample) -> Hashable:
        """Tell plain samples by their thing, captions by whether they name several things, all others by the change."""
        if kind == "plain":
            return self.thing(sample)
        return len(self.scenes[sample.target].things) > 1 if kind == "text" else sample.change

    def is_plain(self, sample: Sample) -> bool:
        things = self.scenes[sample.target].things
        return len(things) == 1 and things[0].style == default_style(self.concepts[things[0].concept])

    def thing(self, sample: Sample) -> int:
        return self.scenes[sample.target].things[0].concept

    def tokens(self, picture: int) -> Tensor:
        return self.latents[self.starts[picture] : self.starts[picture + 1]]

    def word(self, sample: Sample) -> str:
        if self.rng.random() < CAPTION_DROPOUT:
            return ""
        return word_sample(sample, self.scenes, self.concepts, self.rng)

    def choose(self) -> tuple[tuple[Grid, ...], list[Sample]]:
        """Draw a kind by its share, a shape by its samples' weight, and samples of that shape by theirs."""
        kind = list(KINDS)[self.rng.choice(len(KINDS), p=self.shares)]
        totals = np.array([weights.sum() for weights in self.weights[kind]])
        number = self.rng.choice(len(totals), p=totals / totals.sum())
        shape, samples = list(self.shapes[kind].items())[number]
        shares = self.weights[kind][number] / totals[number]
        return shape, [samples[i] for i in self.rng.choice(len(samples), size=KINDS[kind][1], p=shares)]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            shape, samples = self.choose()
            yield self.batch(shape, samples, [self.word(sample) for sample in samples])

    def batch(self, shape: tuple[Grid, ...], samples: Sequence[Sample], words: Sequence[str]) -> Batch:
        """Put samples of one shape together, each asked for in its words."""
        ids, mask = self.tokenizer.encode(words)
        if self.rng.random() < LONG_TEXT_SHARE:  # as a longer prompt would make it: more padding
            length = ids.shape[1]
            ids, mask = F.pad(ids, (0, length), value=int(ids[0, -1])), F.pad(mask, (0, length))
        target = torch.stack([self.tokens(s.target) for s in samples]).float()
        references = [torch.cat([target[0, :0], *map(self.tokens, s.references)]) for s in samples]
        return Batch(target, torch.stack(references).float(), ids, mask, shape[0], shape[1:])


def draw_sigma(count: int, high_noise_share: float) -> Tensor:
    """Draw noise levels: a shifted logit-normal, and as often those where caption and references decide alone."""
    uniform = torch.sigmoid(torch.randn(count))
    shifted = SIGMA_SHIFT * uniform / (1 + (SIGMA_SHIFT - 1) * uniform)
    return torch.where(torch.rand(count) < high_noise_share, 0.85 + 0.15 * torch.rand(count), shifted)


def flow_loss(model: MiniModel, batch: Batch, high_noise_share: float) -> tuple[Tensor, dict[str, float]]:
    """Compare the predicted velocity with noise minus picture: over all, and in each range of noise that was drawn."""
    sigma = draw_sigma(len(batch.target), high_noise_share)
    if torch.rand(()) < 0.5:  # as a bfloat16 pipeline rounds it
        sigma = (1000 * sigma.bfloat16()).float() / 1000
    noise = torch.randn_like(batch.target)
    noisy = torch.lerp(batch.target, noise, sigma[:, None, None])
    with autocast():
        image = torch.cat([noisy, batch.references], dim=1)
        velocity = model(image, batch.ids, batch.mask, sigma, batch.rotary(model))[:, : noisy.shape[1]]
    errors = (velocity.float() - (noise - batch.target)).square().mean((1, 2))
    drawn = [(low, high, (low <= sigma) & (sigma < high)) for low, high in NOISE_RANGES]
    return errors.mean(), {f"from_{low}": errors[some].mean().item() for low, high, some in drawn if some.any()}


def compile_blocks(model: MiniModel) -> None:
    """Compile each kind of block once, for any number of tokens; whole models would take minutes."""
    transformer, layers = model.transformer, model.text_encoder.model["layers"]
    assert isinstance(layers, nn.ModuleList)
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks, *layers):
        block.compile(dynamic=True)


def make_optimizers(model: MiniModel) -> list[torch.optim.Optimizer]:
    """Give the matrices inside the transformer's blocks to Muon, everything else to AdamW."""
    hidden: list[nn.Parameter] = []
    others: dict[float, list[nn.Parameter]] = {CONTEXT_RATE: [], NORM_RATE: [], OTHER_RATE: []}
    for name, parameter in model.transformer.named_parameters():
        if "_blocks." in name and parameter.ndim == 2:
            hidden.append(parameter)
        else:
            is_context = name.startswith("context_embedder")
            others[CONTEXT_RATE if is_context else NORM_RATE if parameter.ndim == 1 else OTHER_RATE].append(parameter)
    groups = [{"params": parameters, "lr": rate} for rate, parameters in others.items()]
    return [
        Muon(hidden, MUON_RATE),
        torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(work: Path, minutes: float) -> None:
    torch.manual_seed(0)
    model = MiniModel()
    initialise(model, work)
    optimizers = make_optimizers(model)
    peak_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    average = Average(model, 0.999)
    parts = {"model": model, "average": average, "muon": optimizers[0], "adam": optimizers[1]}
    run = Run(work / "flow", minutes, parts)
    pool = Pool(work, seed=run.step)
    if run.step == 0:
        whiten_context(model, pool)
    torch.manual_seed(run.step)
    compile_blocks(model)
    batches = iter(pool)
    assert isinstance(average.module, MiniModel)
    for _ in run:
        stage = int(run.progress >= SECOND_STAGE)
        pool.shares = stage_shares(stage)
        batch = next(batches)
        scale = run.learning_rate_scale(decay_from=0.75)
        for optimizer, rates in zip(optimizers, peak_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        loss, by_noise = flow_loss(model, batch, HIGH_NOISE_SHARES[stage])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(model)
        run.record(loss=loss.item(), **by_noise)
        if run.is_due(SAMPLES_EVERY_MINUTES):
            draw_samples(average.module, work, run.elapsed / 60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=100)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
