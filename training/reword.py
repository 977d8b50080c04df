"""Have klein-mini's text encoder take any wording of a wish as the plainest, through the transformer as it is.

Each picture of the pool is asked for in any words and in the plainest. At one of the product's noise levels the
transformer tells what either leads to, and the difference goes back through it into the text encoder. Another style
or thing, which the plainest words get wrong too often themselves, are led to what a caption of the outcome draws.
Captions and plain edits are held to their features: those that nothing held came to draw something else.
`python -m training.reword --work FOLDER --minutes 50` resumes FOLDER/reword, begun from the weights that ship, and
leaves the whole model in FOLDER/reword_weights.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool, word_plainly
from training.checkpoints import Average, Run
from training.distill import rounded, velocity_at
from training.export import export
from training.families import Sample
from training.flow import compile_blocks
from training.further import redraws
from training.model import MiniModel, load_shipped
from training.precision import BATCH_SCALE, DEVICE
from training.wording import Plainest, with_article, word_concept, word_new_style

T = TypeVar("T")
SHARES = (0.05, 0.25, 0.55, 0.15)  # of the kinds of training.batches
TOGETHER = 3  # batches of a step, each of one kind and shape
ASKED = 12  # wishes of a batch
REDRAWN = ("replace", "restyle")  # changes led by captions, in turns
REDRAWN_WEIGHT = 1.5
HELD = (24, 32, 16, 16)  # captions in the plainest words and in any, edits, bare names: of a step
HELD_WEIGHT = 5.0  # they end a hundredth of their mean square off, which weighs half as much as what is learned
BY_NAME = 0.7  # of the restylings, which the transformer can make where the thing is named
LARGE_ERROR = 0.1  # from which on errors no longer count as squares: a background misread is fifty times as large


def wishes(pool: Pool, latents: Latents) -> Iterator[tuple[Batch, Batch]]:
    """Draw endlessly some of the pool's samples, of one shape, in any words and in the plainest."""
    while True:
        shape, samples = pool.choose()
        samples = samples[: BATCH_SCALE * ASKED]
        words, plain = zip(*(word_both(pool, sample) for sample in samples), strict=True)
        drawn = latents.batch(pool.draw(shape, samples, words))
        ids, mask = pool.tokenizer.encode(plain)
        yield drawn, replace(drawn, ids=ids, mask=mask)


def word_both(pool: Pool, sample: Sample) -> tuple[str, str]:
    """Word a wish in any words and in the plainest; of another style, both name the thing or neither does."""
    if sample.change == "restyle":
        (thing,), by_name = pool.scenes[sample.target].things, bool(pool.rng.random() < BY_NAME)
        words, plain = (word_new_style(thing, pool.concepts, rng, by_name=by_name) for rng in (pool.rng, Plainest()))
        return words, plain
    return pool.word(sample), word_plainly(pool, [sample])[0]


def held_words(pool: Pool) -> Iterator[list[str]]:
    """Draw endlessly captions and edits in the plainest words, captions in any, and things by any of their names."""
    captions, edits = (list(chain.from_iterable(pool.shapes[kind].values())) for kind in ("text", "edit"))
    plain, worded, edited, bare = HELD

    def draw(known: Sequence[T], count: int) -> list[T]:
        return [known[i] for i in pool.rng.integers(len(known), size=count)]

    while True:
        yield [
            *word_plainly(pool, [*draw(captions, plain), *draw(edits, edited)]),
            *(pool.word(sample) for sample in draw(captions, worded)),
            *(with_article(word_concept(thing, pool.rng)) for thing in draw(pool.concepts, bare)),
        ]


def drift(student: MiniModel, shipped: MiniModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Tell how far the features of words are off what they were, padding too, as a share of their mean square."""
    with torch.no_grad():
        goal = shipped.text_encoder(ids, mask)
    off: Tensor = (student.text_encoder(ids, mask) - goal).square().mean() / goal.square().mean()
    return off


def drawn_otherwise(student: MiniModel, shipped: MiniModel, asked: Batch, plain: Batch) -> Tensor:
    """Compare what words lead the student to with what the plain ones lead the shipped model to, at a noise level."""
    levels = sigmas(asked.target.shape[1], KLEIN_MINI.steps)[:-1]
    sigma = levels[max(0, int(torch.randint(-1, len(levels), ())))]  # the first, which decides most, twice as often
    tokens = torch.lerp(asked.target, torch.randn_like(asked.target), sigma)
    sigma = rounded(sigma)
    with torch.no_grad():
        goal = velocity_at(shipped, plain, tokens, sigma)
    errors = (velocity_at(student, asked, tokens, sigma) - goal).square().mean((1, 2))
    return (errors + LARGE_ERROR).sqrt().mean() - math.sqrt(LARGE_ERROR)


def make_student(shipped: MiniModel) -> MiniModel:
    """Copy the text encoder, whose layers learn, and share the transformer, which does not."""
    student = deepcopy(shipped)
    student.transformer = shipped.transformer
    student.text_encoder.requires_grad_(True).train()
    student.text_encoder.embedding.requires_grad_(False)  # or words that no phrasing has would be left behind
    return student


def train(work: Path, minutes: float, peak_rate: float = 1.5e-4) -> None:
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student = make_student(shipped)
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], peak_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    average = Average(student.text_encoder, 0.99)
    run = Run(work / "reword", minutes, {"model": student.text_encoder, "optimizer": optimizer, "average": average})
    compile_blocks(shipped)
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0, told=REDRAWN), Latents(work)
    pool.shares.copy_(torch.tensor(SHARES))
    torch.manual_seed(run.step)
    drawn, redrawn = wishes(pool, latents), [redraws(student, shipped, latents, pool, change) for change in REDRAWN]
    held = held_words(pool)
    for step in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=30)
        for asked, plain in islice(drawn, TOGETHER):
            loss = drawn_otherwise(student, shipped, asked, plain)
            (loss / TOGETHER).backward()  # type: ignore[no-untyped-call]
            run.record(loss=loss, **{f"of_{len(asked.reference_grids)}": loss})
        off = next(redrawn[step % len(REDRAWN)])
        (REDRAWN_WEIGHT * torch.stack([*off.values()]).sum()).backward()  # type: ignore[no-untyped-call]
        drifted = drift(student, shipped, *pool.tokenizer.encode(next(held)))
        (HELD_WEIGHT * drifted).backward()  # type: ignore[no-untyped-call]
        run.record(**off, held=drifted)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(student.text_encoder)
    shipped.text_encoder.load_state_dict(average.module.state_dict())
    export(shipped, work, work / "reword_weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=50)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
