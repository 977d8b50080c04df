"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and teach them edits in any words.

`python -m training.further begin --work FOLDER` lays out tokenizer and autoencoder for training.pool.
`edits --minutes N` goes on from training.recogniser and resumes FOLDER/further_edits: the transformer learns, the text
encoder stays. It leaves the whole model in FOLDER/further_weights.
"""

import argparse
import shutil
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from training.autoencoder import load_average
from training.batches import Asked, Latents, Pool, bare_of, changes, from_captions, word_plainly
from training.checkpoints import Average, Run
from training.distill import NEW, Goal, cleared, known, renewed, straight, walk
from training.export import export
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.muon import Muon
from training.precision import DEVICE
from training.recogniser import Recogniser, load_heads, weigh

HARD = {"remove": 0.5, "row": 0.3, "skin": 0.2}  # shares of what seldom came right,
KNOWN = {  # and of what did
    "recolour": 0.25, "background": 0.22, "mirror": 0.12, "greyscale": 0.1, "rotate": 0.06, "darken": 0.04,
    "invert": 0.04, "outline": 0.04, "brighten": 0.04, "resize": 0.04, "move": 0.04, "insert": 0.03, "grid": 0.03,
    "stack": 0.02, "place": 0.02,
}  # fmt: skip
CAPTIONS_WEIGHT = 5.0  # of their loss
MEANING = ("new", "hard")  # a thing: of known edits, what changes is seldom what a prompt names
PLAIN_SHARE = 0.2  # of the prompts, in the plainest words; the others in any
AMONG_OTHERS, ALONE, RECOGNISED_WEIGHT = 24, 8, 0.1  # pictures of a step, and what recognising them counts
RATE, MUON_RATE = 1.5e-4, 7e-4
PULL = 1e-3  # of the way back to the shipped weights, each step: what no loss needs is as it was


def begin(work: Path) -> None:
    """Lay out what ships as training.pool and training.export look for it."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    (work / "autoencoder").mkdir(exist_ok=True)
    average = {"updates": 0, "module": load_shipped()[1].state_dict()}
    torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / "autoencoder" / "last.pt")


def train_edits(work: Path, minutes: float) -> None:
    """Have the transformer that ships make edits in any words, and draw captions as it does in the plainest.

    Every step goes once, at one noise level each, for captions and for each sort of edits. Leaves the model in
    `work / "further_weights"`, as the package has it.
    """
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student, heads = deepcopy(shipped).train(), load_heads(work).to(DEVICE)
    student.load_state_dict(load_average(work / "recogniser"))
    named = dict(student.transformer.requires_grad_(True).named_parameters())
    hidden = [named.pop(name) for name in list(named) if "_blocks." in name and named[name].ndim == 2]
    muon = Muon(hidden, MUON_RATE)
    adam = torch.optim.AdamW([*named.values(), *heads.parameters()], RATE, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.995)
    parts = {"model": student, "heads": heads, "average": average, "muon": muon, "adam": adam}
    run = Run(work / "further_edits", minutes, parts)
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0), Latents(work)
    recogniser = Recogniser(student, heads, pool, latents)
    torch.manual_seed(run.step)
    for model in (student, shipped):
        compile_blocks(model)
    learning: list[Tensor] = list(student.transformer.parameters())
    shipped_weights: list[Tensor] = list(shipped.transformer.parameters())
    sources = {
        "captions": captions(pool),
        "new": changes(pool, NEW, told=True),
        "hard": changes(pool, HARD),
        "known": changes(pool, KNOWN),
    }
    walks = {  # each at another noise level
        name: islice(endless_walk(recogniser, shipped, latents, pool, source, name in MEANING), ahead, None)
        for ahead, (name, source) in enumerate(sources.items())
    }
    for _ in run:
        scale = run.learning_rate_scale(warmup=30, decay_from=0.1)
        muon.param_groups[0]["lr"], adam.param_groups[0]["lr"] = MUON_RATE * scale, RATE * scale
        recognised = recogniser.losses(AMONG_OTHERS, ALONE)
        losses = {name: next(walk) for name, walk in walks.items()}
        loss = sum(losses.values(), (CAPTIONS_WEIGHT - 1) * losses["captions"])
        loss = loss + RECOGNISED_WEIGHT * weigh(recognised)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning, 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(learning, shipped_weights, PULL * scale)
        average.update(student)
        run.record(loss=loss, **losses, **recognised)
    assert isinstance(average.module, MiniModel)
    export(average.module, work, work / "further_weights")


def endless_walk(
    recogniser: Recogniser, shipped: MiniModel, latents: Latents, pool: Pool, source: Iterator[Asked], is_meaning: bool
) -> Iterator[Tensor]:
    """Walk from noise to what is asked for, again and again; give the loss at each noise level.

    Of edits that mean some of what they are shown, that is recognised as well. Where a caption tells the outcome, what
    the shipped model draws from it is the goal: something new can be drawn in many ways, whose mean would be a blur.
    Where that is next to nothing, the bare background is.
    """
    for shape, samples, told in source:
        pairs = zip(samples, word_plainly(pool, samples), strict=True)
        words = [plain if pool.rng.random() < PLAIN_SHARE else pool.word(sample) for sample, plain in pairs]
        draw = pool.draw(shape, samples, words)
        batch = latents.batch(draw)
        goal: Goal = partial(straight, batch)
        if told:
            goal = cleared(bare_of(pool, latents, samples), known(shipped, from_captions(pool, batch, told)))
            if batch.reference_grids:
                goal = renewed(batch, goal)
        for loss in walk(recogniser.model, goal, batch, follow_student=bool(pool.rng.random() < 0.5)):
            yield loss + recogniser.beside(draw, batch) if is_meaning else loss


def captions(pool: Pool) -> Iterator[Asked]:
    """Draw captions endlessly, each told in its plainest words."""
    pool.shares.copy_(torch.tensor((0.5, 0.5, 0.0, 0.0)))
    for shape, samples in pool.choices():
        yield shape, samples, word_plainly(pool, samples)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "edits"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    if arguments.stage == "begin":
        begin(arguments.work)
    else:
        train_edits(arguments.work, arguments.minutes)
