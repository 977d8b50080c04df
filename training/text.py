"""Teach klein-mini's text encoder to name what a prompt asks for, before the flow reads its features.

A linear reading of every position from the end of the prompt on, padding included, must tell things, style,
background, colour, number and change. The transformer then finds them anywhere there, instead of having to
discover, one rare noun at a time, which token to look at.
`python -m training.text --work FOLDER --minutes 15` resumes FOLDER/text.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder
from training.checkpoints import Average, Run
from training.data import SKIN_TONES, STYLES, Concept, read_concepts
from training.families import Family, Sample, draw_sample, shown_styles, word_sample
from training.people import draw_people
from training.precision import DEVICE, autocast
from training.scenes import COLOURS, PLACES, Layout, Scene, Thing, Tone
from training.synonyms import with_synonyms
from training.wording import BIG, SMALL, Edit, Join, added

BATCH = 160
READ = 1000  # prompts, at the end, to see how many are read right
NONE = 0  # the class of what a prompt does not say
BACKGROUNDS = (*COLOURS, *PLACES)
JOINTS = ("to", "and")
CHANGES = tuple(
    f"{change} {detail}".strip()
    for change in (*get_args(Edit), *get_args(Layout), *get_args(Join))
    for detail in {"tone": get_args(Tone)[1:], "rotate": ("1", "2", "3"), "move": ("left", "right", "up", "down"),
                   "resize": ("small", "big"), "skin": SKIN_TONES}.get(change, ("",))
)  # fmt: skip
RELATIONS = ("beside", "above", "before")


def position(options: Sequence[str], name: str) -> int:
    return 1 + options.index(name) if name else NONE


def split_background(background: str) -> tuple[str, str, str]:
    """Give the first colour or place, the second colour, and the word that joins them."""
    for joint in JOINTS:
        first, found, second = background.partition(f" {joint} ")
        if found:
            return first, second, joint
    return background, "", ""


def describe_change(sample: Sample, before: Scene, after: Scene) -> str:
    """Give the change of an edit as `CHANGES` lists it."""
    match sample.change:
        case "tone":
            return f"tone {after.tone}"
        case "rotate":
            return f"rotate {after.quarter_turns}"
        case "skin":
            return f"skin {after.things[0].skin_tone}"
        case "move" | "resize":
            (old,), (new,) = before.things, after.things
            if sample.change == "resize":
                return "resize big" if new.size > old.size else "resize small"
            if new.x != old.x:
                return "move left" if new.x < old.x else "move right"
            return "move up" if new.y < old.y else "move down"
    return str(sample.change or "")


def relation(things: tuple[Thing, ...]) -> str:
    if len(things) != 2 or things[0].concept == things[1].concept:
        return ""
    a, b = things
    if abs(a.x - b.x) > abs(a.y - b.y):
        return "beside"
    return "above" if a.size == b.size else "before"


def named_things(text: str, sample: Sample, before: Scene, after: Scene, concepts: list[Concept]) -> list[Thing]:
    """Give the things that the wording names: what is new first, then what it takes the place of."""
    match sample.change:
        case None:
            return [*after.things]
        case "add":
            return [added(before, after)]
        case "expression":
            return [after.things[-1]]
        case "restyle":
            return [thing for thing in after.things if names(text, concepts[thing.concept])]
        case "remove" | "replace":
            new, old = ([t for t in a.things if t not in b.things] for a, b in ((after, before), (before, after)))
            return new + [thing for thing in old if names(text, concepts[thing.concept])]
    return []


def names(text: str, concept: Concept) -> bool:
    """Tell whether a text has one of a thing's names, as whole words."""
    return any(re.search(rf"\b{re.escape(name.lower())}\b", text) for name in (concept.label, *concept.aliases))


def classes_of(text: str, sample: Sample, scenes: list[Scene], concepts: list[Concept]) -> list[int]:
    """Give the class, for each head of a reader, of a sample and the words that ask for it."""
    after = scenes[sample.target]
    before = scenes[sample.references[0]] if sample.references else after
    things, is_caption = named_things(text, sample, before, after, concepts), sample.change is None
    second = things[1] if len(things) > 1 and things[1].concept != things[0].concept else None
    says_background = is_caption or sample.change in ("background", "row", "grid")
    first, second_colour, joint = split_background(after.background) if says_background else ("", "", "")
    tint = next((t.tint for t in after.things if t.tint), "") if is_caption or sample.change == "recolour" else ""
    alone = is_caption and len(things) == 1
    size = "" if not alone else "small" if things[0].size <= SMALL else "big" if things[0].size >= BIG else ""
    return [
        1 + things[0].concept if things else NONE,
        1 + second.concept if second else NONE,
        1 + after.things[0].style if is_caption or sample.change == "restyle" else NONE,
        position(BACKGROUNDS, first),
        position(BACKGROUNDS, second_colour),
        position(JOINTS, joint),
        position(BACKGROUNDS, tint),
        len(things) if is_caption and not second else NONE,
        position(("small", "big"), size),
        position(RELATIONS, relation(after.things) if is_caption else ""),
        position(CHANGES, describe_change(sample, before, after)),
    ]


def example(
    concepts: list[Concept], styles: list[list[int]], people: list[Family], rng: np.random.Generator
) -> tuple[str, list[int]]:
    """Word something; return it with its classes."""
    sample, scenes = draw_sample(styles, people, rng)
    text = word_sample(sample, scenes, concepts, rng)
    return text, classes_of(text, sample, scenes, concepts)


class Reader(nn.Module):
    """The text encoder and linear readings of its features."""

    def __init__(self, concept_count: int) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(KLEIN_MINI.text_encoder)
        backgrounds = len(BACKGROUNDS)
        counts = (
            concept_count, concept_count, len(STYLES), backgrounds, backgrounds, len(JOINTS), backgrounds, 4, 2,
            len(RELATIONS), len(CHANGES),
        )  # fmt: skip
        self.heads = nn.ModuleList(nn.Linear(KLEIN_MINI.text_encoder.feature_size, 1 + count) for count in counts)

    def loss(self, features: Tensor, mask: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Give the mean cross-entropy at the end of the prompts, and the share read right there by each head."""
        at_end = torch.arange(mask.shape[1]) >= mask.sum(1, keepdim=True) - 1  # (B, T)
        at_end, classes = at_end.to(features.device), classes.to(features.device)
        rows = at_end.nonzero()[:, 0]
        logits = [head(features[at_end]).float() for head in self.heads]
        losses = [F.cross_entropy(part, classes[rows, i]) for i, part in enumerate(logits)]
        right = [(part.argmax(1) == classes[rows, i]).float().mean() for i, part in enumerate(logits)]
        return torch.stack(losses).sum(), torch.stack(right)


def train(work: Path, minutes: float, peak_rate: float = 1e-3) -> None:
    torch.manual_seed(0)
    concepts = with_synonyms(read_concepts(), work)
    styles = [shown_styles(concept) for concept in concepts]
    tokenizer = PromptTokenizer(Tokenizer.from_file(str(work / "tokenizer.json")), KLEIN_MINI.text_encoder)
    model = Reader(len(concepts)).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = Average(model.text_encoder, 0.99)
    run = Run(work / "text", minutes, {"model": model, "optimizer": optimizer, "average": average})
    rng = np.random.default_rng(run.step)
    people = list(draw_people(concepts, styles, rng))
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20)
        texts, classes = zip(*(example(concepts, styles, people, rng) for _ in range(BATCH)), strict=True)
        ids, mask = tokenizer.encode(texts)
        with autocast():
            loss, _ = model.loss(model.text_encoder(ids, mask), mask, torch.tensor(classes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model.text_encoder)
        run.record(loss=loss)
    with torch.no_grad():
        texts, classes = zip(*(example(concepts, styles, people, rng) for _ in range(READ)), strict=True)
        ids, mask = tokenizer.encode(texts)
        _, right = model.loss(model.text_encoder(ids, mask), mask, torch.tensor(classes))
        print(f"read right: things {right[0]:.3f}, {right[1]:.3f}; everything else {right[2:].min():.3f} or more")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.tokenizer")
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
