"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and mend one part alone.

`python -m training.further begin --work FOLDER` lays out tokenizer, autoencoder and text encoder for training.pool and
training.flow. `text --minutes N` resumes FOLDER/further_text, a text encoder that reads more wordings and takes the
shipped one's place in all stages; `edits --minutes N` resumes FOLDER/further_edits, a transformer that edits and joins
in landscape too. Either leaves the whole model in FOLDER/further_weights.
"""

import argparse
import math
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.autoencoder import load_average
from training.batches import Batch, Draw, Latents, Pool, rotary_of, stream
from training.checkpoints import Average, Run
from training.distill import descend, known, straight
from training.export import export
from training.families import Sample, word_sample
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.precision import DEVICE, autocast
from training.scenes import DEFAULT_GRID
from training.wording import Plainest

SHARES = (0.38, 0.36, 0.23, 0.03)  # of the kinds of training.batches
PLAIN_SHARE = 0.2  # of the prompts, which stay as they are
RATE = 1.5e-4
EDITS_SHARES = (0.25, 0.10, 0.47, 0.18)
EDITS_PLAIN_SHARE = 0.6
EDITS_RATE = 2e-4
LANDSCAPE_WEIGHT, RESHAPED_WEIGHT = 5.0, 2.0  # of an outcome in landscape, and of one that its references differ from
HARD, HARD_WEIGHT = {"restyle", "style", "rotate", "add", "remove", "replace"}, 0.3  # take more than such a run
LEARNED_SHARE = 0.5  # half way keeps most of what is learned, and what small batches wear off
LARGE_ERROR = 0.1  # from which on errors no longer count as squares: a background misread is fifty times as large


def begin(work: Path) -> None:
    """Lay out what ships as training.pool, training.flow and training.export look for it."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    model, autoencoder, _ = load_shipped()
    for name, part in (("autoencoder", autoencoder), ("text", model.text_encoder)):
        (work / name).mkdir(exist_ok=True)
        average = {"updates": 0, "module": part.state_dict()}
        torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / name / "last.pt")


@dataclass(frozen=True, slots=True)
class Rewording:
    """Some samples of one shape in any words, and the same in the plainest."""

    draw: Draw
    plain_ids: Tensor
    plain_mask: Tensor


class Rewordings(IterableDataset[Rewording]):
    """What a pool's samples ask for, endlessly."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __iter__(self) -> Iterator[Rewording]:
        pool = self.pool
        for shape, samples in pool.choices():
            words, plain = phrase(pool, samples, PLAIN_SHARE)
            yield Rewording(pool.draw(shape, samples, words), *pool.tokenizer.encode(plain))


def phrase(pool: Pool, samples: list[Sample], plain_share: float) -> tuple[list[str], list[str]]:
    """Word what samples ask for, a share of them in the plainest words, and then all of them in those."""
    plainest = Plainest()
    plain = [word_sample(sample, pool.scenes, pool.concepts, plainest) for sample in samples]
    pairs = zip(samples, plain, strict=True)
    return [words if pool.rng.random() < plain_share else pool.word(sample) for sample, words in pairs], plain


def train_text(work: Path, minutes: float) -> None:
    """Have any wording draw what the plainest one of the same wish draws, by the transformer that ships as it is.

    Leaves both in `work / "further_weights"`, as the package has them.
    """
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    compile_blocks(shipped)
    pool, latents = Pool(work, caption_dropout=0.0), Latents(work)
    text_encoder = deepcopy(shipped.text_encoder).requires_grad_(True).train()
    optimizer = torch.optim.AdamW(text_encoder.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(text_encoder, 0.99)
    run = Run(work / "further_text", minutes, {"model": text_encoder, "optimizer": optimizer, "average": average})
    pool.seed = run.step
    torch.manual_seed(run.step)
    pool.shares.copy_(torch.tensor(SHARES))
    rewordings = stream(Rewordings(pool))
    for _ in run:
        optimizer.param_groups[0]["lr"] = RATE * run.learning_rate_scale(warmup=50)
        rewording = next(rewordings)
        batch = latents.batch(rewording.draw)
        with autocast():
            features = text_encoder(batch.ids, batch.mask)
            loss = drawn_otherwise(shipped, batch, features, (rewording.plain_ids, rewording.plain_mask))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(text_encoder.parameters(), 1.0)
        optimizer.step()
        average.update(text_encoder)
        run.record(loss=loss)
    shipped.text_encoder.load_state_dict(average.module.state_dict())
    export(shipped, work, work / "further_weights")


def drawn_otherwise(model: MiniModel, batch: Batch, features: Tensor, plain: tuple[Tensor, Tensor]) -> Tensor:
    """Compare the velocity that text features lead to, at a noise level of the product, with the plain words' own."""
    levels = sigmas(batch.target.shape[1], KLEIN_MINI.steps)[:-1]
    sigma = levels[max(0, int(torch.randint(-1, len(levels), ())))]  # the first, which decides most, twice as often
    noisy = torch.lerp(batch.target, torch.randn_like(batch.target), sigma)
    image, times = torch.cat([noisy, batch.references], dim=1), torch.full((len(noisy),), sigma, device=DEVICE)
    with torch.no_grad():
        goal = model(image, *plain, times, rotary_of(plain[0].shape[1], batch.grid, batch.reference_grids))
    velocity = model.transformer(image, features, times, batch.rotary)
    errors: Tensor = (velocity - goal)[:, : noisy.shape[1]].float().square().mean((1, 2))
    return (errors + LARGE_ERROR).sqrt().mean() - math.sqrt(LARGE_ERROR)


def train_edits(work: Path, minutes: float) -> None:
    """Have the transformer that ships make edits and joins outright, most in landscape, and captions as it does.

    Leaves it with the text encoder in `work / "further_weights"`, as the package has them.
    """
    torch.manual_seed(0)
    shipped = load_shipped()[0]
    if (work / "further_text").exists():
        shipped.text_encoder.load_state_dict(load_average(work / "further_text"))
    shipped = shipped.to(DEVICE).eval().requires_grad_(False)
    student = deepcopy(shipped).train()
    student.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.transformer.parameters(), EDITS_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    run = Run(work / "further_edits", minutes, {"model": student, "optimizer": optimizer, "average": average})
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0), Latents(work)
    torch.manual_seed(run.step)
    for model in (student, shipped):
        compile_blocks(model)
    draws, rng = edits_in_landscape(pool), np.random.default_rng(run.step)
    for _ in run:
        optimizer.param_groups[0]["lr"] = EDITS_RATE * run.learning_rate_scale(warmup=10)
        batch, follow = latents.batch(next(draws)), bool(rng.random() < 0.5)
        goal = partial(straight, batch) if batch.reference_grids else known(shipped, batch)
        loss = descend(student, goal, batch, optimizer, follow_student=follow, substeps=(1, 1, 1, 1))
        run.record(loss=loss, **{"taught" if batch.reference_grids else "held": loss})
        average.update(student)
    for parameter, learned in zip(shipped.parameters(), average.module.parameters(), strict=True):
        parameter.lerp_(learned, LEARNED_SHARE)
    export(shipped, work, work / "further_weights")


def edits_in_landscape(pool: Pool) -> Iterator[Draw]:
    """Draw endlessly, edits and joins most of all, with outcomes in landscape, in the plainest words."""
    pool.shares.copy_(torch.tensor(EDITS_SHARES))
    for kind in ("edit", "layout"):
        for (shape, samples), weights in zip(pool.shapes[kind].items(), pool.weights[kind], strict=True):
            weights *= LANDSCAPE_WEIGHT if shape[0] == DEFAULT_GRID else 1.0
            weights *= RESHAPED_WEIGHT if len(set(shape)) > 1 else 1.0
            weights *= [HARD_WEIGHT if sample.change in HARD else 1.0 for sample in samples]
    for shape, samples in pool.choices():
        yield pool.draw(shape, samples, phrase(pool, samples, EDITS_PLAIN_SHARE)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "text", "edits"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    match arguments.stage:
        case "begin":
            begin(arguments.work)
        case "text":
            train_text(arguments.work, arguments.minutes)
        case "edits":
            train_edits(arguments.work, arguments.minutes)
