"""Have klein-mini's text encoder take any wording of a wish as the plainest, for the transformer as it is.

What a wish asks for the transformer reads in the padding after it, and what it names in the words that name it. So both
are led to what the plainest words leave there, as the transformer reads it, by the text encoder alone. Where a thing is
added, taken away, replaced or resized, which takes more, the transformer itself tells besides, at one of the product's
noise levels, what either wording leads to. Captions and plain edits are held to what they were: those that nothing held
came to draw something else.
`python -m training.reword --work FOLDER --minutes 50` resumes FOLDER/reword, begun from the weights that ship, and
leaves the whole model in FOLDER/reword_weights.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool, changes, word_plainly
from training.checkpoints import Average, Run
from training.distill import rounded, velocity_at
from training.export import export
from training.families import Sample
from training.flow import compile_blocks
from training.model import MiniModel, load_shipped
from training.precision import BATCH_SCALE, DEVICE
from training.wording import Plainest, with_article, word_concept, word_new_style

T = TypeVar("T")
Pairs = list[tuple[str, str]]  # any words for a wish, and those that they should be read as
WORDED = {  # shares of the edits and joins that are worded: most of those whose words are missed most
    "rotate": 0.13, "resize": 0.11, "remove": 0.09, "add": 0.08, "replace": 0.08, "background": 0.07, "darken": 0.07,
    "brighten": 0.06, "greyscale": 0.06, "invert": 0.06, "mirror": 0.05, "outline": 0.05, "recolour": 0.05,
    "restyle": 0.05, "grid": 0.02, "move": 0.02, "row": 0.02, "skin": 0.02, "insert": 0.01, "place": 0.01,
    "stack": 0.01, "style": 0.01, "expression": 0.01,
}  # fmt: skip
SHOWN = {  # and of those that are shown to the transformer
    "add": 0.35, "remove": 0.2, "replace": 0.2, "restyle": 0.1, "resize": 0.1, "grid": 0.05,
}  # fmt: skip
EDITED, CAPTIONED = 12, 64  # wishes of a step: edits, that many times `CHANGED_TOGETHER`, and captions
ASKED = 12  # of which the transformer is shown as many
TOGETHER = 64  # read at once, of much the same length: padded as far as the product would
READ_WEIGHT = 3.0
HELD = (24, 32, 16, 16)  # captions in the plainest words and in any, edits, bare names: of a step
HELD_WEIGHT = 20.0
BY_NAME = 0.7  # of the restylings, which the transformer can make where the thing is named
LARGE_ERROR = 0.1  # from which on errors no longer count as squares: a background misread is fifty times as large


def wishes(pool: Pool) -> Iterator[Pairs]:
    """Draw endlessly edits, joins and captions in any words and in the plainest."""
    edits, captions = changes(pool, WORDED), list(chain.from_iterable(pool.shapes["text"].values()))
    while True:
        samples = [sample for _, drawn, _ in islice(edits, EDITED) for sample in drawn]
        samples += [captions[i] for i in pool.rng.integers(len(captions), size=BATCH_SCALE * CAPTIONED)]
        yield [word_both(pool, sample) for sample in samples]


def shown_wishes(pool: Pool, latents: Latents) -> Iterator[tuple[Batch, Batch]]:
    """Draw endlessly edits of one shape in any words, and in the plainest."""
    for shape, samples, _ in changes(pool, SHOWN):
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


def held_words(pool: Pool) -> Iterator[Pairs]:
    """Draw endlessly captions and edits in the plainest words, captions in any, and things by any of their names."""
    captions, edits = (list(chain.from_iterable(pool.shapes[kind].values())) for kind in ("text", "edit"))
    plain, worded, edited, bare = HELD

    def draw(known: Sequence[T], count: int) -> list[T]:
        return [known[i] for i in pool.rng.integers(len(known), size=count)]

    while True:
        words = [
            *word_plainly(pool, [*draw(captions, plain), *draw(edits, edited)]),
            *(pool.word(sample) for sample in draw(captions, worded)),
            *(with_article(word_concept(thing, pool.rng)) for thing in draw(pool.concepts, bare)),
        ]
        yield [(said, said) for said in words]


def read(model: MiniModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Embed words as the transformer's blocks read them before they scale and shift (B, T, hidden)."""
    context: Tensor = model.transformer.context_embedder(model.text_encoder(ids, mask))
    return F.layer_norm(context, context.shape[-1:])


def encode_both(pool: Pool, pairs: Pairs) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Give ids and mask (B, T) of either wording, both of one length."""
    ids, mask = pool.tokenizer.encode([said for pair in pairs for said in pair])
    return (ids[::2], mask[::2]), (ids[1::2], mask[1::2])


def alike(ids: Tensor, mask: Tensor, plain_ids: Tensor, plain_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Find what should be read alike: for each token of a wording (B, T) the plain one's token, and whether it has one.

    Those are the last token, which knows all, and the padding after either, each with what stands at its place; and
    the longest run of tokens that both have, such as a name.
    """
    ends, plain_ends = mask.sum(1).tolist(), plain_mask.sum(1).tolist()
    there = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    has = torch.zeros_like(mask)
    for row, (end, plain_end) in enumerate(zip(ends, plain_ends, strict=True)):
        has[row, max(end - 1, plain_end) :] = True
        words, plain = ids[row, :end].tolist(), plain_ids[row, :plain_end].tolist()
        run = SequenceMatcher(None, words, plain, autojunk=False).find_longest_match(1, end - 1, 1, plain_end - 1)
        there[row, run.a : run.a + run.size] = torch.arange(run.b, run.b + run.size)
        has[row, run.a : run.a + run.size] = True
    return there, has


def misread(student: MiniModel, shipped: MiniModel, pool: Pool, pairs: Pairs) -> Tensor:
    """Tell how far off the plain wording, as the shipped model reads it, the student reads the other (square, of 1)."""
    pairs = sorted(pairs, key=lambda pair: max(map(len, pair)))
    parts = [pairs[start : start + TOGETHER] for start in range(0, len(pairs), TOGETHER)]
    return torch.cat([misread_each(student, shipped, pool, part) for part in parts]).mean()


def misread_each(student: MiniModel, shipped: MiniModel, pool: Pool, pairs: Pairs) -> Tensor:
    """Tell so of each pair (B,)."""
    asked, plain = encode_both(pool, pairs)
    there, has = (part.to(DEVICE) for part in alike(*asked, *plain))
    with torch.no_grad():
        goal = read(shipped, *plain)
        goal = goal.gather(1, there[..., None].expand_as(goal))
    off = (read(student, *asked) - goal).square().mean(-1)
    return (has * off).sum(1) / has.sum(1).clamp(min=1)  # a wish counts as much with little padding


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


def train(work: Path, minutes: float, peak_rate: float = 3e-4) -> None:
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student = make_student(shipped)
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], peak_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    average = Average(student.text_encoder, 0.99)
    run = Run(work / "reword", minutes, {"model": student.text_encoder, "optimizer": optimizer, "average": average})
    compile_blocks(shipped)
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0), Latents(work)
    torch.manual_seed(run.step)
    wished, shown, held = wishes(pool), shown_wishes(pool, latents), held_words(pool)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=30)
        losses = {
            "read": READ_WEIGHT * misread(student, shipped, pool, next(wished)),
            "drawn": drawn_otherwise(student, shipped, *next(shown)),
            "held": HELD_WEIGHT * misread(student, shipped, pool, next(held)),
        }
        loss = torch.stack([*losses.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        run.record(loss=loss, **losses)
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
