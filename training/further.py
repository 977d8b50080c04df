"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and have what they draw named.

`python -m training.further begin --work FOLDER` lays out tokenizer and autoencoder for training.pool.
`train --minutes N` resumes FOLDER/further: what the transformer draws in its four steps, from captions and of several
pictures in a row, is shown to training.critic, and what captions draw is compared with the real picture. Edits that it
makes well are held to what they were, another style or thing or one more to what a caption of it draws by now, other
edits to their outcomes. The text encoder stays as it is. The whole model is left in FOLDER/further_weights.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Latents, Pool, changes, from_captions, stands_new, word_plainly
from training.checkpoints import Average, Run
from training.critic import Critic, load_critic
from training.distill import known, renewed, velocity_at, walk
from training.export import export
from training.families import Sample
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.muon import Muon, is_hidden
from training.precision import BATCH_SCALE, DEVICE
from training.reward import Asked, captions, drawn_losses, join_losses, look_at_joined
from training.scenes import SQUARE

EDITED = 12  # edits of a walk; half as many where there are many references
DESCRIBED_SHARE = 0.35  # of the restylings, asked for by the outcome's caption
JOINED = 25  # pictures of a step in all, in rows and as their references
PLAIN_SHARE = 0.2  # of the edits, in the plainest words
WEIGHTS = {  # of each loss among the others
    "named": 0.4, "styled": 0.35,  # doubts about what captions draw
    "unlike": 9.0, "off": 1.6,  # how unlike the real picture that is, to the critic and in latents
    "joined": 0.4, "around": 2.0,  # doubts about what is joined, and what is around it
    "held": 20.0, "known": 5.0,  # how far off what the shipped model makes of edits is, and their outcomes
    "hard": 2.5,  # how far off the outcomes of other edits are
    "restyle": 3.0, "replace": 3.0, "add": 3.0,  # how far what is new in them is off what a caption draws
}  # fmt: skip
KNOWN = {  # shares of edits and joins that the shipped model makes well
    "background": 0.34, "recolour": 0.19, "mirror": 0.12, "greyscale": 0.09, "brighten": 0.05, "rotate": 0.04,
    "darken": 0.03, "invert": 0.03, "resize": 0.03, "move": 0.02, "insert": 0.02, "grid": 0.02, "stack": 0.01,
    "place": 0.01,
}  # fmt: skip
HARD = {  # and of those it does not
    "remove": 0.6, "skin": 0.13, "replace": 0.1, "recolour": 0.08, "expression": 0.06, "outline": 0.03,
}  # fmt: skip
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

    With the shipped model, give how far it is off that one's velocity too.
    """
    for shape, samples, _ in changes(pool, shares):
        samples = samples[: BATCH_SCALE * (EDITED if len(shape) < 4 else EDITED // 2)]
        batch = latents.batch(pool.draw(shape, samples, word(pool, samples)))
        tokens = torch.randn_like(batch.target)
        for here, there in pairwise(sigmas(SQUARE[0] * SQUARE[1], KLEIN_MINI.steps)):
            velocity = velocity_at(student, batch, tokens, here)
            outcome = (velocity - (tokens - batch.target) / here).square().mean()
            if shipped:
                with torch.no_grad():
                    was = velocity_at(shipped, batch, tokens, here)
                yield {"held": (velocity - was).square().mean(), "known": outcome}
            else:
                yield {"hard": outcome}
            tokens = tokens + (there - here) * velocity.detach()


def word(pool: Pool, samples: Sequence[Sample]) -> list[str]:
    """Word edits, a fifth in the plainest words."""
    pairs = zip(samples, word_plainly(pool, samples), strict=True)
    return [plain if pool.rng.random() < PLAIN_SHARE else pool.word(sample) for sample, plain in pairs]


def redraws(student: MiniModel, guide: MiniModel, latents: Latents, pool: Pool, change: str) -> Iterator[Losses]:
    """Draw things in another style, others, or one more; give how far off the guide's drawing of a caption.

    The caption tells the outcome. A mean of outcomes that cannot be foreseen is a blur; what the guide draws from the
    same noise is none.
    """
    for shape, samples, told in changes(pool, {change: 1.0}, told=True):
        assert told, "by captions, or there would be nothing to follow"
        share = DESCRIBED_SHARE if change == "restyle" else 0.0
        asked = [Sample(s.target) if pool.rng.random() < share else s for s in samples]
        batch = latents.batch(pool.draw(shape, samples, [pool.word(sample) for sample in asked]))
        goal = renewed(batch, known(guide, from_captions(pool, batch, told)), stands_new(pool, samples))
        for off in walk(student, goal, batch, follow_student=bool(pool.rng.random() < 0.5)):
            yield {change: off}


def joins(pool: Pool, latents: Latents) -> Iterator[Asked]:
    """Draw endlessly rows of squares, and what they should show."""
    squares = [samples for shape, samples in pool.shapes["layout"].items() if set(shape) == {SQUARE}]
    assert any(sample.change in ROWS for samples in squares for sample in samples), "or it would look for ever"
    for shape, samples, _ in changes(pool, ROWS):
        samples = samples[: BATCH_SCALE * (JOINED // len(shape))]
        if set(shape) == {SQUARE}:
            yield latents.batch(pool.draw(shape, samples, word(pool, samples))), look_at_joined(pool, samples)


def make_optimizers(student: MiniModel, rate: float) -> list[torch.optim.Optimizer]:
    """Give the matrices inside the transformer's blocks to Muon, all else of it to AdamW at half the rate."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in student.transformer.requires_grad_(True).named_parameters():
        (matrices if is_hidden(name, parameter) else others).append(parameter)
    return [Muon(matrices, rate), torch.optim.AdamW(others, rate / 2, betas=(0.9, 0.98), weight_decay=0.0)]


def lessons(
    student: MiniModel,
    guide: MiniModel,
    shipped: MiniModel,
    critic: Critic,
    pool: Pool,
    latents: Latents,
    generator: torch.Generator,
) -> list[tuple[int, Iterator[Losses]]]:
    """List what is learned, each every so many steps: what goes through all four steps takes two seconds and more."""
    return [
        *((3, redraws(student, guide, latents, pool, change)) for change in ("restyle", "replace", "add")),
        (1, (drawn_losses(student, critic, *asked, generator) for asked in captions(pool, latents))),
        (2, edit_walk(student, shipped, latents, pool, KNOWN)),
        (4, edit_walk(student, None, latents, pool, HARD)),
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
    for model in (student, average.module, shipped):
        compile_blocks(model)
    learned = lessons(student, average.module, shipped, critic, pool, latents, generator)
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
