"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and have what they draw named.

`python -m training.further begin --work FOLDER` lays out tokenizer and autoencoder for training.pool.
`train --minutes N` resumes FOLDER/further: what the transformer draws in its four steps, from captions, by edits and of
several pictures in a row, is shown to training.critic, and what captions and edits draw is compared with the real
picture. Edits in any words are held to what the shipped model makes of plain ones where it makes them well, other
edits to their outcomes. The text encoder stays as it is. The whole model is left in FOLDER/further_weights.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Latents, Pool, changes, word_plainly
from training.checkpoints import Average, Run
from training.critic import Critic, load_critic
from training.distill import velocity_at
from training.export import export
from training.families import Sample
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.muon import Muon, is_hidden
from training.precision import BATCH_SCALE, DEVICE
from training.reward import Asked, captions, drawn_losses, join_losses, look_at
from training.scenes import SQUARE

EDITED = 12  # edits of a walk; half as many where there are many references
DESCRIBED_SHARE = 0.3  # of the restylings whose drawings are looked at, asked for by a caption of the outcome
JOINED = 25  # pictures of a step in all, in rows and as their references
PLAIN_SHARE = 0.2  # of the edits, in the plainest words
WEIGHTS = {  # of each loss among the others
    "named": 0.4, "styled": 0.35,  # doubts about what captions draw
    "unlike": 9.0, "off": 1.6,  # how unlike the real picture that is, to the critic and in latents
    "joined": 0.4, "around": 2.0,  # doubts about what is joined, and what is around it
    "held": 10.0, "known": 5.0,  # how far off what the shipped model makes of edits is, and their outcomes
    "hard": 2.5,  # how far off the outcomes of other edits are
    "made_named": 0.4, "made_styled": 0.2, "made_unlike": 9.0, "made_off": 4.0,  # of what edits draw, as of captions
}  # fmt: skip
KNOWN = {  # shares of edits and joins that the shipped model makes well, asked in plain words
    "background": 0.26, "recolour": 0.17, "mirror": 0.12, "greyscale": 0.09, "rotate": 0.07, "resize": 0.06,
    "brighten": 0.05, "darken": 0.05, "invert": 0.04, "move": 0.03, "insert": 0.02, "grid": 0.02, "stack": 0.01,
    "place": 0.01,
}  # fmt: skip
HARD = {  # and of those it does not
    "remove": 0.45, "skin": 0.2, "recolour": 0.15, "expression": 0.12, "outline": 0.08,
}  # fmt: skip
MADE = {"replace": 0.5, "remove": 0.2, "restyle": 0.2, "add": 0.1}  # and of those whose drawings are looked at
ROWS = {"row": 1.0}  # and of joins that draw their things at another size
Losses = dict[str, Tensor]


def begin(work: Path) -> None:
    """Lay out what ships as training.pool and training.export look for it."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    (work / "autoencoder").mkdir(exist_ok=True)
    average = {"updates": 0, "module": load_shipped()[1].state_dict()}
    torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / "autoencoder" / "last.pt")


def edit_walk(
    student: MiniModel, shipped: MiniModel | None, latents: Latents, pool: Pool, shares: dict[str, float]
) -> Iterator[Losses]:
    """Edit again and again as the student does; give how far its velocity is off the outcome.

    With the shipped model, give how far it is off that one's velocity in the plainest words too.
    """
    for shape, samples, _ in changes(pool, shares):
        samples = samples[: BATCH_SCALE * (EDITED if len(shape) < 4 else EDITED // 2)]
        batch = latents.batch(pool.draw(shape, samples, word(pool, samples)))
        ids, mask = pool.tokenizer.encode(word_plainly(pool, samples))
        plain, tokens = replace(batch, ids=ids, mask=mask), torch.randn_like(batch.target)
        for here, there in pairwise(sigmas(SQUARE[0] * SQUARE[1], KLEIN_MINI.steps)):
            velocity = velocity_at(student, batch, tokens, here)
            outcome = (velocity - (tokens - batch.target) / here).square().mean()
            if shipped:
                with torch.no_grad():
                    was = velocity_at(shipped, plain, tokens, here)
                yield {"held": (velocity - was).square().mean(), "known": outcome}
            else:
                yield {"hard": outcome}
            tokens = tokens + (there - here) * velocity.detach()


def word(pool: Pool, samples: Sequence[Sample]) -> list[str]:
    """Word edits, a fifth in the plainest words."""
    pairs = zip(samples, word_plainly(pool, samples), strict=True)
    return [plain if pool.rng.random() < PLAIN_SHARE else pool.word(sample) for sample, plain in pairs]


def makes(pool: Pool, latents: Latents) -> Iterator[Asked]:
    """Draw edits endlessly that draw something or uncover it, and what their outcomes should show."""
    for shape, samples, _ in changes(pool, MADE, square_weight=1.0):  # things stand elsewhere in wide pictures
        samples = samples[: BATCH_SCALE * EDITED]
        asked = [
            Sample(sample.target) if sample.change == "restyle" and pool.rng.random() < DESCRIBED_SHARE else sample
            for sample in samples
        ]
        yield latents.batch(pool.draw(shape, samples, word(pool, asked))), look_at(pool, samples)


def joins(pool: Pool, latents: Latents) -> Iterator[Asked]:
    """Draw endlessly rows of squares, and what they should show."""
    squares = [samples for shape, samples in pool.shapes["layout"].items() if set(shape) == {SQUARE}]
    assert any(sample.change in ROWS for samples in squares for sample in samples), "or it would look for ever"
    for shape, samples, _ in changes(pool, ROWS):
        samples = samples[: BATCH_SCALE * (JOINED // len(shape))]
        if set(shape) == {SQUARE}:
            yield latents.batch(pool.draw(shape, samples, word(pool, samples))), look_at(pool, samples)


def make_optimizers(student: MiniModel, rate: float) -> list[torch.optim.Optimizer]:
    """Give the matrices inside the transformer's blocks to Muon, all else of it to AdamW at half the rate."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in student.transformer.requires_grad_(True).named_parameters():
        (matrices if is_hidden(name, parameter) else others).append(parameter)
    return [Muon(matrices, rate), torch.optim.AdamW(others, rate / 2, betas=(0.9, 0.98), weight_decay=0.0)]


def lessons(
    student: MiniModel, shipped: MiniModel, critic: Critic, pool: Pool, latents: Latents, generator: torch.Generator
) -> list[tuple[int, Iterator[Losses]]]:
    """List what is learned, each every so many steps: what goes through all four steps takes two seconds and more."""
    made = (drawn_losses(student, critic, *asked, generator) for asked in makes(pool, latents))
    return [
        (1, ({f"made_{name}": loss for name, loss in drawn.items()} for drawn in made)),
        (3, (drawn_losses(student, critic, *asked, generator) for asked in captions(pool, latents))),
        (3, edit_walk(student, shipped, latents, pool, KNOWN)),
        (5, edit_walk(student, None, latents, pool, HARD)),
        (3, (join_losses(student, critic, *row, generator) for row in joins(pool, latents))),
    ]


def in_turn(learned: Sequence[tuple[int, Iterator[Losses]]], step: int) -> Iterator[tuple[Tensor, Losses]]:
    """Draw what a step's turn has, each with its weighted sum: what comes seldom counts as much more."""
    for number, (every, losses) in enumerate(learned):
        if (step + number) % every == 0:
            drawn = next(losses)
            yield every * torch.stack([WEIGHTS[name] * value for name, value in drawn.items()]).sum(), drawn


def train(work: Path, minutes: float, peak_rate: float = 4e-4) -> None:
    """Have the transformer that ships draw and edit what a critic can name; leave it in `work / "further_weights"`."""
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student, critic = deepcopy(shipped).train(), load_critic(work).to(DEVICE)
    muon, adam = make_optimizers(student, peak_rate)
    average = Average(student, 0.99)
    assert isinstance(average.module, MiniModel)
    run = Run(work / "further", minutes, {"model": student, "average": average, "muon": muon, "adam": adam})
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0), Latents(work)
    torch.manual_seed(run.step)
    generator = torch.Generator(DEVICE).manual_seed(run.step)
    for model in (student, shipped):
        compile_blocks(model)
    learned = lessons(student, shipped, critic, pool, latents, generator)
    for _ in run:
        scale = run.learning_rate_scale(warmup=20, decay_from=0.3)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = scale * peak_rate, scale * peak_rate / 2
        for loss, drawn in in_turn(learned, run.step):
            loss.backward()  # type: ignore[no-untyped-call]
            run.record(loss=loss, **drawn)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(student)
    export(average.module, work, work / "further_weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "train"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool and training.critic")
    parser.add_argument("--minutes", type=float, default=100)
    arguments = parser.parse_args()
    if arguments.stage == "begin":
        begin(arguments.work)
    else:
        train(arguments.work, arguments.minutes)
