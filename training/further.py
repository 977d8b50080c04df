"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and have prompts read better.

`python -m training.further begin --work FOLDER` lays out tokenizer, autoencoder and text encoder for training.pool and
training.flow; `text --minutes N` resumes FOLDER/further_text, which takes the text encoder's place.
"""

import argparse
import shutil
from collections.abc import Iterator, Sequence
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
from openklein.engine.text_encoder import PromptTokenizer
from training.batches import stream
from training.checkpoints import Average, Run
from training.data import STYLES, Concept, read_concepts
from training.families import (
    Family,
    Sample,
    draw_background,
    draw_sample,
    shown_styles,
    word_sample,
)
from training.model import SHIPPED, load_shipped
from training.people import draw_people
from training.precision import DEVICE, autocast
from training.scenes import COLOURS, POSED_SIZE, SQUARE, Scene, Thing, default_style
from training.synonyms import with_synonyms
from training.text import Reader, classes_of
from training.wording import caption, word_noun

STYLES_KNOWN = 3
TEXT_BATCH, TEXT_RATE, HEADS_RATE = 64, 4e-4, 2e-3
RENAMED_BATCH = 64  # beside them, in words that are each too rare among them
LIKENESS = 4.0  # weighs what was known against what is new
POSITIONS = 4  # from the end of a prompt on
SHORT, SHORT_SHARE = 45, 0.8  # letters of the longest wording in so many of the batches, so that little is padding


class Wish(NamedTuple):
    """What is asked for, in words and exactly."""

    words: str
    sample: Sample
    scenes: list[Scene]


def begin(work: Path) -> None:
    """Lay out what ships as training.pool, training.flow and training.export look for it."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    model, autoencoder, _ = load_shipped()
    for name, part in (("autoencoder", autoencoder), ("text", model.text_encoder)):
        (work / name).mkdir(exist_ok=True)
        average = {"updates": 0, "module": part.state_dict()}
        torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / name / "last.pt")


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


def train_text(work: Path, minutes: float) -> None:
    """Have new wordings say to the transformer what known ones of the same thing say, and tell all wishes apart."""
    torch.manual_seed(0)
    concepts = with_synonyms(read_concepts(), work)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "text"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data and training.synonyms")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    if arguments.stage == "begin":
        begin(arguments.work)
    else:
        train_text(arguments.work, arguments.minutes)
