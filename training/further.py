"""Teach the weights that ship more, from where they stand: first their text encoder, then the four steps themselves.

An edit has one right outcome, which the pool holds. A caption has one too, but from noise alone that teaches a blur:
there the weights that ship, guided away from what they draw without a caption, teach themselves. Neither needs a flow
over all noise levels: hours less, for whoever has the weights that ship and no run to resume.
`python -m training.further begin --work FOLDER` lays out FOLDER for training.pool; `text` and `transformer` with
`--minutes N` resume FOLDER/further_text and FOLDER/further.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import IterableDataset, get_worker_info

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from openklein.engine.text_encoder import PromptTokenizer
from training.autoencoder import load_average
from training.batches import KINDS, Batch, Latents, Pool, stream
from training.checkpoints import Average, Run
from training.data import STYLES, Concept, read_concepts
from training.distill import GUIDANCE, guide
from training.families import (
    Family,
    Sample,
    draw_background,
    draw_sample,
    shown_styles,
    word_sample,
)
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.people import draw_people
from training.precision import DEVICE, FAST_DTYPE, autocast
from training.scenes import COLOURS, DEFAULT_GRID, POSED_SIZE, SQUARE, Scene, Thing, default_style
from training.synonyms import with_synonyms
from training.text import Reader, classes_of
from training.wording import caption, word_noun

THINGS = 300  # the first in the list, which the weights that ship know
STYLES_KNOWN = 3
SHARES = {"plain": 0.32, "text": 0.42, "edit": 0.23, "layout": 0.03}
FAVOURED_GRIDS = {DEFAULT_GRID: 2.0, SQUARE: 0.7}  # beside other aspects, in captions
TAUGHT = ("background", "mirror", "tone", "recolour", "place")  # few changes, so that there is time for each
FAVOURED_EDITS = {"tone": 4.0, "recolour": 3.0}  # five tones, and ten colours
TEXT_BATCH, TEXT_RATE, HEADS_RATE = 64, 4e-4, 2e-3
RENAMED_BATCH = 64  # beside them, in words that are each too rare among them
LEVEL_SHARES = (0.4, 0.25, 0.2, 0.15)  # of the four noise levels; in an edit the first decides most
CAPTION_LEVEL_SHARES = (0.1, 0.1, 0.35, 0.45)  # where they learn something
GUIDED_BELOW = 0.9  # guidance at higher noise overshoots far and gains nothing (arXiv:2404.07724)
FOLLOWED_SHARE = 0.5
LIKENESS = 4.0  # weighs what was known against what is new
POSITIONS = 4  # from the end of a prompt on
SHORT, SHORT_SHARE = 45, 0.8  # letters of the longest wording in so many of the batches, so that little is padding


class Wish(NamedTuple):
    """What is asked for, in words and exactly."""

    words: str
    sample: Sample
    scenes: list[Scene]


def begin(work: Path) -> None:
    """Lay out the tokenizer and the autoencoder that ship as training.pool and training.export look for them."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    _, autoencoder, _ = load_shipped()
    (work / "autoencoder").mkdir(exist_ok=True)
    average = {"updates": 0, "module": autoencoder.state_dict()}
    torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / "autoencoder" / "last.pt")


def known_words(sample: Sample, scenes: list[Scene], concepts: list[Concept]) -> str | None:
    """Word what is asked for as the weights that ship know it for certain, if they do."""
    after = scenes[sample.target]
    if sample.change == "background":
        return f"change the background to {after.background}" if after.background in COLOURS else None
    if sample.change == "mirror":
        return "mirror the image"
    if sample.change == "tone":
        return "make it black and white" if after.tone == "greyscale" else None
    (thing, *others) = after.things
    is_known = thing.style < STYLES_KNOWN and not (thing.tint or thing.skin_row) and after.background in COLOURS
    if sample.change or others or not is_known or thing.size != POSED_SIZE:
        return None
    concept = concepts[thing.concept]
    style = "" if thing.style == default_style(concept) else f"{list(STYLES)[thing.style]} "
    behind = "" if after.background == "white" else f" on a {after.background} background"
    return f"{word_noun(style + concept.label.lower())}{behind}"


def at_ends(features: Tensor, mask: Tensor) -> Tensor:
    """Take the features of the last token and of the padding after it, (B, POSITIONS, C)."""
    places = mask.sum(1, keepdim=True) - 1 + torch.arange(POSITIONS)
    return features.gather(1, places[..., None].expand(-1, -1, features.shape[2]).to(features.device))


def padded(tokenizer: PromptTokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encode texts with no more padding than is read."""
    ids, mask = tokenizer.encode(texts)
    end = int(tokenizer.encode([""])[0][0, -1])
    length = int(mask.sum(1).max()) + POSITIONS - 1
    return F.pad(ids, (0, POSITIONS), value=end)[:, :length], F.pad(mask, (0, POSITIONS))[:, :length]


def draw_wishes(
    concepts: list[Concept], styles: list[list[int]], people: list[Family], rng: np.random.Generator
) -> Iterator[Wish]:
    """Word what asks for one thing, or for one more beside it, endlessly."""
    while True:
        sample, scenes = draw_sample(styles, people, rng)
        if len(scenes[sample.target].things) == 1 or sample.change in ("insert", "stack"):
            yield Wish(word_sample(sample, scenes, concepts, rng), sample, scenes)


def draw_renamed(concepts: list[Concept], rng: np.random.Generator) -> Iterator[Wish]:
    """Ask for a thing by another word for it, each such word as often, endlessly."""
    names = [(number, alias) for number, concept in enumerate(concepts) for alias in concept.aliases]
    while True:
        number, alias = names[rng.integers(len(names))]
        known = concepts[number]
        thing = Thing(0, default_style(known), POSED_SIZE)
        scene = Scene((thing,), draw_background(rng), SQUARE)
        words = caption(scene, [replace(known, label=alias, aliases=())], rng)
        yield Wish(words, Sample(0), [replace(scene, things=(replace(thing, concept=number),))])


@dataclass(frozen=True, slots=True)
class Reading:
    """Wishes in tokens, and those of them that are known in the words that are known."""

    ids: Tensor
    mask: Tensor
    classes: Tensor
    is_known: Tensor
    known_ids: Tensor
    known_mask: Tensor


class Wishes(IterableDataset[Reading]):
    """Endless batches of wishes."""

    def __init__(self, concepts: list[Concept], tokenizer: PromptTokenizer, seed: int) -> None:
        self.concepts, self.tokenizer, self.seed = concepts, tokenizer, seed

    def __iter__(self) -> Iterator[Reading]:
        worker = get_worker_info()
        rng = np.random.default_rng((self.seed, worker.id) if worker else self.seed)
        styles = [shown_styles(concept) for concept in self.concepts]
        wishes = draw_wishes(self.concepts, styles, list(draw_people(self.concepts, styles, rng)), rng)
        renamed = draw_renamed(self.concepts, rng)
        while True:
            most_letters = SHORT if rng.random() < SHORT_SHARE else 1000
            drawn = [*islice(wishes, TEXT_BATCH), *islice(renamed, RENAMED_BATCH)]
            yield self.read([wish for wish in drawn if len(wish.words) <= most_letters])

    def read(self, wishes: list[Wish]) -> Reading:
        known = [known_words(wish.sample, wish.scenes, self.concepts) for wish in wishes]
        ids, mask = padded(self.tokenizer, [wish.words for wish in wishes])
        known_ids, known_mask = padded(self.tokenizer, [words for words in known if words is not None])
        classes = torch.tensor([classes_of(wish.sample, wish.scenes) for wish in wishes])
        is_known = torch.tensor([words is not None for words in known])
        return Reading(ids, mask, classes, is_known, known_ids, known_mask)


def train_text(work: Path, minutes: float, things: int = THINGS) -> None:
    """Have new wordings say to the transformer what known ones of the same thing say, and tell all wishes apart."""
    torch.manual_seed(0)
    concepts = with_synonyms(read_concepts()[:things], work)
    shipped, _, tokenizer = load_shipped()
    before = shipped.text_encoder.eval().to(DEVICE)
    embed = shipped.transformer.context_embedder.requires_grad_(False).to(DEVICE)
    reader = Reader(len(concepts)).to(DEVICE)
    reader.text_encoder.load_state_dict(before.state_dict())
    groups = [{"params": reader.text_encoder.parameters()}, {"params": reader.heads.parameters()}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(reader.text_encoder, 0.99)
    run = Run(work / "further_text", minutes, {"model": reader, "optimizer": optimizer, "average": average})
    wishes = stream(Wishes(concepts, tokenizer, run.step))
    for _ in run:
        for group, rate in zip(optimizer.param_groups, (TEXT_RATE, HEADS_RATE), strict=True):
            group["lr"] = rate * run.learning_rate_scale(warmup=20)
        wish = next(wishes)
        with autocast():
            features = reader.text_encoder(wish.ids, wish.mask)
            reading, _ = reader.loss(features, wish.mask, wish.classes)
            with torch.no_grad():
                known = before(wish.known_ids, wish.known_mask)
                goal = embed(at_ends(known, wish.known_mask)).float()
            # what is asked for in known words stays as it is, and in other words becomes the same
            reworded = at_ends(features[wish.is_known.to(DEVICE)], wish.mask[wish.is_known])
            kept = at_ends(reader.text_encoder(wish.known_ids, wish.known_mask), wish.known_mask)
            errors = [F.mse_loss(embed(part).float(), goal) for part in (reworded, kept)]
            likeness = torch.stack(errors).mean() / goal.var()
        optimizer.zero_grad(set_to_none=True)
        (reading + LIKENESS * likeness).backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        average.update(reader.text_encoder)
        run.record(loss=reading, likeness=likeness)


def is_taught(sample: Sample, scenes: Sequence[Scene]) -> bool:
    """Leave out several things, and changes that would take longer than there is."""
    return len(scenes[sample.target].things) == 1 and (sample.change is None or sample.change in TAUGHT)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Some samples of one shape, and captions also in words that are known, with how far beyond those to go."""

    batch: Batch
    known: Batch
    guidance: float


def draw_lesson(pool: Pool, latents: Latents) -> Lesson:
    shape, samples = pool.choose()
    scenes, concepts = pool.scenes, pool.concepts
    words = [word_sample(sample, scenes, concepts, pool.rng) for sample in samples]
    known = [known_words(s, scenes, concepts) or asked for s, asked in zip(samples, words, strict=True)]
    # square pictures in the style of prompts without one have been guided before
    is_guided = shape == (SQUARE,) and all(map(pool.is_plain, samples))
    asked, in_known_words = (latents.batch(pool.draw(shape, samples, said)) for said in (words, known))
    return Lesson(asked, in_known_words, 1.0 if is_guided else GUIDANCE)


def velocity(model: MiniModel, batch: Batch, tokens: Tensor, sigma: Tensor) -> Tensor:
    with autocast():
        image = torch.cat([tokens, batch.references], dim=1)
        predicted: Tensor = model(image, batch.ids, batch.mask, sigma, batch.rotary)
    return predicted[:, : tokens.shape[1]].float()


def guided_velocity(before: MiniModel, lesson: Lesson, pool: Pool, tokens: Tensor, sigma: Tensor) -> Tensor:
    if lesson.guidance == 1:
        return velocity(before, lesson.known, tokens, sigma)
    guidance = torch.where(sigma < GUIDED_BELOW, lesson.guidance, 1.0)
    teacher = guide(before, lesson.known, pool, guidance[:, None, None])
    return teacher.velocity(tokens, lesson.known.references, sigma, lesson.known.rotary).clone()


def lesson_loss(student: MiniModel, before: MiniModel, lesson: Lesson, pool: Pool, *, follow_student: bool) -> Tensor:
    """Compare velocities at the product's noise levels with those to the right outcome, or with guided ones."""
    batch, target = lesson.batch, lesson.batch.target
    levels = torch.tensor(sigmas(target.shape[1], KLEIN_MINI.steps)[:-1])
    shares = LEVEL_SHARES if batch.reference_grids else CAPTION_LEVEL_SHARES
    sigma = levels[torch.multinomial(torch.tensor(shares), len(target), replacement=True)].to(DEVICE)
    if torch.rand(()) < 0.5:  # as a bfloat16 pipeline rounds it
        sigma = (1000 * sigma.bfloat16()).float() / 1000
    width = sigma[:, None, None]
    noise = torch.randn_like(target)
    with torch.no_grad():
        if follow_student:  # from where its own first step leads, so that it learns to mend its errors
            tokens = noise + (width - 1) * velocity(student, batch, noise, torch.ones_like(sigma))
        else:
            tokens = torch.lerp(target, noise, width)
        if batch.reference_grids:
            goal = (tokens - target) / width
        else:
            goal = guided_velocity(before, lesson, pool, tokens, sigma)
    return F.mse_loss(velocity(student, batch, tokens, sigma), goal)


def train_transformer(work: Path, minutes: float, peak_rate: float = 4e-4) -> None:
    """Learn the right outcomes of edits at the four noise levels, and of captions what guidance makes of them."""
    torch.manual_seed(0)
    student = load_shipped()[0].to(DEVICE)
    before = deepcopy(student).to(FAST_DTYPE).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.transformer.parameters(), peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.998)
    run = Run(work / "further", minutes, {"model": student, "optimizer": optimizer, "average": average})
    for model in (student, average.module):  # which a resumed run would have as it was
        model.text_encoder.load_state_dict(load_average(work / "further_text"))  # type: ignore[union-attr]
    torch.manual_seed(run.step)
    for model in (student, before):
        compile_blocks(model)
    pool, latents = Pool(work, seed=run.step, keep=is_taught, favoured_edits=FAVOURED_EDITS), Latents(work)
    pool.shares.copy_(torch.tensor([SHARES[kind] for kind in KINDS]))
    for kind in ("plain", "text"):
        for (grid,), weights in zip(pool.shapes[kind], pool.weights[kind], strict=True):
            weights *= FAVOURED_GRIDS.get(grid, 1.0)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20, decay_from=0.65)
        lesson = draw_lesson(pool, latents)
        loss = lesson_loss(student, before, lesson, pool, follow_student=bool(pool.rng.random() < FOLLOWED_SHARE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        average.update(student)
        run.record(loss=loss.item())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "text", "transformer"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data and training.synonyms")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    if arguments.stage == "begin":
        begin(arguments.work)
    elif arguments.stage == "text":
        train_text(arguments.work, arguments.minutes)
    else:
        train_transformer(arguments.work, arguments.minutes)
