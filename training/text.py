"""Teach klein-mini's text encoder to name what a caption asks for, before the flow reads its features.

A linear reading of every position from the end of the prompt on, padding included, must tell thing, style,
background and change. The transformer then finds them anywhere there, instead of having to discover, one
rare noun at a time, which token to look at.
`python -m training.text --work FOLDER --minutes 3` resumes FOLDER/text.
"""

import argparse
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
from training.data import STYLES, Concept, read_concepts
from training.scenes import COLOURS, SQUARE, Edit, Layout, Scene, Thing, caption, word_edit, word_layout

BATCH = 192
NONE = 0  # the class of what a caption does not ask for
CHANGES = (*get_args(Edit), *get_args(Layout))


def example(concepts: list[Concept], rng: np.random.Generator) -> tuple[str, list[int]]:
    """Word something; return it with its classes of thing, style, background and change."""
    style, colour = int(rng.integers(len(STYLES))), int(rng.integers(len(COLOURS)))
    background = list(COLOURS)[colour]
    if rng.random() < 0.6:
        concept = int(rng.integers(len(concepts)))
        text = caption(Scene((Thing(concept, style, 0.8),), background, SQUARE), concepts, rng)
        return text, [1 + concept, 1 + style, 1 + colour, NONE]
    change = CHANGES[rng.integers(len(CHANGES))]
    count = int(rng.integers(2, 5)) if change in get_args(Layout) else 1
    scene = Scene((Thing(0, style, 0.8),) * count, background, SQUARE)
    if change == "row" or change == "grid":
        return word_layout(change, scene, rng), [NONE, NONE, 1 + colour, 1 + CHANGES.index(change)]
    text = word_edit(change, scene, rng)
    style_class = 1 + style if change == "restyle" else NONE
    colour_class = 1 + colour if change == "background" else NONE
    return text, [NONE, style_class, colour_class, 1 + CHANGES.index(change)]


class Reader(nn.Module):
    """The text encoder and a linear reading of its features."""

    def __init__(self, concept_count: int) -> None:
        super().__init__()
        self.text_encoder = TextEncoder(KLEIN_MINI.text_encoder)
        sizes = (1 + concept_count, 1 + len(STYLES), 1 + len(COLOURS), 1 + len(CHANGES))
        self.heads = nn.ModuleList(nn.Linear(KLEIN_MINI.text_encoder.feature_size, size) for size in sizes)

    def loss(self, ids: Tensor, mask: Tensor, classes: Tensor) -> tuple[Tensor, float]:
        """Give the mean cross-entropy at the end of the prompts, and the share of things named right there."""
        features = self.text_encoder(ids, mask)
        last = mask.sum(1, keepdim=True) - 1
        at_end = torch.arange(ids.shape[1]) >= last  # (B, T)
        rows = at_end.nonzero()[:, 0]
        logits = [head(features[at_end]).float() for head in self.heads]
        losses = [F.cross_entropy(part, classes[rows, i]) for i, part in enumerate(logits)]
        return torch.stack(losses).mean(), float((logits[0].argmax(1) == classes[rows, 0]).float().mean())


def train(work: Path, minutes: float, peak_rate: float = 1e-3) -> None:
    torch.manual_seed(0)
    concepts = read_concepts()
    tokenizer = PromptTokenizer(Tokenizer.from_file(str(work / "tokenizer.json")), KLEIN_MINI.text_encoder)
    model = Reader(len(concepts))
    optimizer = torch.optim.AdamW(model.parameters(), peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    average = Average(model.text_encoder, 0.99)
    run = Run(work / "text", minutes, {"model": model, "optimizer": optimizer, "average": average})
    rng = np.random.default_rng(run.step)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20)
        texts, classes = zip(*(example(concepts, rng) for _ in range(BATCH)), strict=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss(*tokenizer.encode(texts), torch.tensor(classes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model.text_encoder)
        run.record(loss.item())
    with torch.no_grad():
        texts, classes = zip(*(example(concepts, rng) for _ in range(1000)), strict=True)
        print(f"things named right: {model.loss(*tokenizer.encode(texts), torch.tensor(classes))[1]:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.tokenizer")
    parser.add_argument("--minutes", type=float, default=3)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
