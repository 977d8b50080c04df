"""Distil guidance and step count into klein-mini's four unguided steps.

From noise, student and teacher go down the product's four noise levels. From a prompt alone the teacher
takes several guided steps in each, and the student learns to go there in one. Most edits have one right outcome, which
the pool holds: there the student learns to go straight to it from wherever it is. Where an edit draws something
new, which could be drawn in many ways, the teacher is told the outcome by a caption; what stays has one way.
Half of the time the way goes on from where the student went, so that it learns to mend its own errors.
`python -m training.distill --work FOLDER --minutes 15` resumes FOLDER/distill.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool, changes, from_captions, stands_new, stream
from training.checkpoints import Average, Run
from training.flow import compile_blocks
from training.guidance import GuidedTeacher
from training.model import MiniModel, load_model
from training.precision import BATCH_SCALE, DEVICE, FAST_DTYPE, autocast

SUBSTEPS = (2, 2, 2, 4)  # of the teacher in each of the four steps
GUIDANCE = 3.0
NEW = {  # shares of edits that draw something new
    "restyle": 0.35, "replace": 0.35, "add": 0.17, "expression": 0.1, "style": 0.03,
}  # fmt: skip
NEW_SHARE = 0.25  # of the walks
CHANGED = 0.1  # mean square by which a token shows something else
BATCH = 16
Goal = Callable[[Tensor, Sequence[float]], Tensor]  # of tokens and the noise levels on the way there


def first(batch: Batch, count: int) -> Batch:
    """Keep so many samples of a batch: all that the teacher has time for."""
    return Batch(
        batch.target[:count], batch.references[:count], batch.ids[:count], batch.mask[:count], batch.grid,
        batch.reference_grids,
    )  # fmt: skip


def train(work: Path, minutes: float, peak_rate: float = 4e-4) -> None:
    torch.manual_seed(0)
    teacher_model = load_model(work / "flow").to(DEVICE, FAST_DTYPE).eval().requires_grad_(False)
    student = deepcopy(teacher_model).float().train()
    student.transformer.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.parameters(), peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.995)
    run = Run(work / "distill", minutes, {"model": student, "optimizer": optimizer, "average": average})
    torch.manual_seed(run.step + 1)
    for model in (student, teacher_model):
        compile_blocks(model)
    pool, latents = Pool(work, seed=run.step + 1, caption_dropout=0.0, told=NEW), Latents(work)
    asked, rng = goals(teacher_model, pool, latents), np.random.default_rng(run.step)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20, decay_from=0.4)
        batch, goal = next(asked)
        losses = walk(student, goal, batch, follow_student=bool(rng.random() < 0.5), substeps=SUBSTEPS)
        run.record(loss=descend(student, losses, optimizer))
        average.update(student)


def goals(teacher: MiniModel, pool: Pool, latents: Latents) -> Iterator[tuple[Batch, Goal]]:
    """Draw endlessly what the student is asked for, and where that leads."""
    drawn, new = stream(pool), changes(pool, NEW, told=True)
    while True:
        if pool.rng.random() < NEW_SHARE:
            shape, samples, told = next(new)
            batch = latents.batch(pool.draw(shape, samples, [pool.word(sample) for sample in samples]))
            goal = guided(teacher, from_captions(pool, batch, told or ()), pool)
            yield batch, renewed(batch, goal, stands_new(pool, samples))
        else:
            batch = first(latents.batch(next(drawn)), BATCH * BATCH_SCALE)
            yield batch, partial(straight, batch) if batch.reference_grids else guided(teacher, batch, pool)


def straight(batch: Batch, tokens: Tensor, levels: Sequence[float]) -> Tensor:
    """Go straight to the batch's pictures."""
    return torch.lerp(batch.target, tokens, levels[-1] / levels[0])


def renewed(batch: Batch, goal: Goal, new: Tensor) -> Goal:
    """Go to a goal where something new is drawn, and straight to the outcome elsewhere.

    That is where the outcome differs from the first reference and `new` (B, N, 1) is true.
    """
    changed = differs(batch) & new
    return lambda tokens, levels: torch.where(changed, goal(tokens, levels), straight(batch, tokens, levels))


def differs(batch: Batch) -> Tensor:
    """Tell where the outcome is another than the first reference (B, N, 1)."""
    before = batch.references[:, : batch.target.shape[1]]
    return (batch.target - before).square().mean(-1, keepdim=True) > CHANGED


def guided(model: MiniModel, batch: Batch, pool: Pool) -> Goal:
    """Guide the model away from what it draws without a caption."""
    ids, mask = pool.tokenizer.encode([""] * len(batch.ids))
    padding = (0, batch.ids.shape[1] - ids.shape[1])
    blanks = F.pad(ids, padding, value=int(ids[0, -1])), F.pad(mask, padding)
    teacher = GuidedTeacher(model, (batch.ids, batch.mask), blanks, GUIDANCE)
    return lambda tokens, levels: teacher.walk(tokens, batch.references, levels, batch.rotary).clone()


def known(model: MiniModel, batch: Batch) -> Goal:
    """Go where the model goes in one step."""

    def goal(tokens: Tensor, levels: Sequence[float]) -> Tensor:
        with torch.no_grad():
            return tokens + (levels[-1] - levels[0]) * velocity_at(model, batch, tokens, levels[0])

    return goal


def walk(
    student: MiniModel, goal: Goal, batch: Batch, *, follow_student: bool, substeps: Sequence[int] = (1, 1, 1, 1)
) -> Iterator[Tensor]:
    """Go from noise to picture once; give the loss at each of the product's noise levels."""
    tokens = torch.randn_like(batch.target)
    levels = sigmas(tokens.shape[1], KLEIN_MINI.steps)
    for (here, there), count in zip(pairwise(levels), substeps, strict=True):
        outcome = goal(tokens, np.linspace(here, there, count + 1).tolist())
        velocity = velocity_at(student, batch, tokens, rounded(here))
        yield F.mse_loss(velocity, (outcome - tokens) / (there - here))
        tokens = tokens + (there - here) * velocity.detach() if follow_student else outcome


def rounded(sigma: float) -> float:
    """Give a noise level as a float32 pipeline does, or as a bfloat16 pipeline rounds it, as often."""
    return sigma if torch.rand(()) < 0.5 else (1000 * torch.tensor(sigma).bfloat16()).item() / 1000


def descend(student: MiniModel, losses: Iterator[Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
    """Step after each loss of a walk; return the mean."""
    seen = []
    for loss in losses:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        seen.append(loss.detach())
    return torch.stack(seen).mean()


def velocity_at(model: MiniModel, batch: Batch, tokens: Tensor, sigma: float) -> Tensor:
    """Predict the velocity (B, N, C), float32, at `tokens` of one noise level."""
    image = torch.cat([tokens, batch.references], dim=1)
    times = torch.full((len(tokens),), sigma, device=DEVICE)
    with autocast():
        velocity: Tensor = model(image, batch.ids, batch.mask, times, batch.rotary)
    return velocity[:, : tokens.shape[1]].float()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.flow")
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
