"""Go on from the weights that ship, for whoever has no run to resume: lay them out, and have what they draw named.

`python -m training.further begin --work FOLDER` lays out tokenizer and autoencoder for training.pool.
`captions --minutes N` resumes FOLDER/further_captions: what the transformer draws in its four steps is shown to
training.critic, whose doubts go back through all four (direct reward fine-tuning, arXiv:2309.17400). What it draws well
and every edit are held to what they were; the text encoder stays. It leaves the whole model in FOLDER/further_weights.
"""

import argparse
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool, bare, changes, word_plainly
from training.checkpoints import Average, Run
from training.critic import Critic, View, doubts, load_critic, shown_whole
from training.distill import first, rounded, velocity_at
from training.export import export
from training.families import counted, draw_background, shown_styles, two_things
from training.flow import compile_blocks
from training.model import SHIPPED, MiniModel, load_shipped
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing
from training.wording import Plainest, caption

DRAWN, HELD = 24, 8  # captions of a step, and how many of them the shipped model draws too
ALONE, TOGETHER = 0.36, 0.54  # shares of the captions: of one thing, of two unlike; the others are of several alike
COMMON_POWER = 1.2  # by which the first in the list are drawn more often
DEFAULT_STYLE_SHARE = 0.3  # at least, of the things
PLAIN_SHARE = 0.25  # of the captions, in the plainest words; of edits four fifths of that
DOUBT_WEIGHT, STYLE_SHARE = 0.3, 0.3  # of the doubts, and of those about a single thing's style among them
SURE_WEIGHT, BARE_WEIGHT = 2.0, 4.0  # of what the shipped model draws surely, and of bare background
BARE = 0.02  # mean square by which a token shows more than the background
EDIT_WEIGHT, OUTCOME_WEIGHT = 40.0, 1.0  # of what the shipped model makes of edits, and of their outcomes themselves
KNOWN = {  # shares of edits and joins that the shipped model makes well, so that their outcomes are asked for too,
    "recolour": 0.25, "background": 0.22, "mirror": 0.12, "greyscale": 0.1, "rotate": 0.06, "darken": 0.04,
    "invert": 0.04, "outline": 0.04, "brighten": 0.04, "resize": 0.04, "move": 0.04, "insert": 0.03, "grid": 0.03,
    "stack": 0.02, "place": 0.02,
}  # fmt: skip
OTHERS = {  # and of those that it does not
    "remove": 0.08, "add": 0.08, "replace": 0.08, "restyle": 0.08, "skin": 0.04, "expression": 0.04, "row": 0.06,
}  # fmt: skip
EDITED = 12  # samples of each of two walks


def begin(work: Path) -> None:
    """Lay out what ships as training.pool and training.export look for it."""
    shutil.copy(SHIPPED / KLEIN_MINI.files["tokenizer"][0], work / "tokenizer.json")
    (work / "autoencoder").mkdir(exist_ok=True)
    average = {"updates": 0, "module": load_shipped()[1].state_dict()}
    torch.save({"step": 0, "elapsed": 0.0, "parts": {"average": average}}, work / "autoencoder" / "last.pt")


class Scenes:
    """Draw endlessly what captions can tell: no pool limits them, since nothing has to be painted."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.rng = pool, pool.rng
        self.styles = [shown_styles(concept) for concept in pool.concepts]
        self.shown = [number for number, styles in enumerate(self.styles) if styles]

    def draw(self) -> Scene:
        kind, (concept, style) = self.rng.random(), self._draw_thing()
        thing = Thing(concept, style, POSED_SIZE)
        if kind < ALONE:
            return Scene((thing,), draw_background(self.rng), SQUARE)
        if kind < ALONE + TOGETHER:
            other = self._draw_thing(style)
            return two_things([(concept, style), other, other], SQUARE, self.rng).scenes[0]
        return counted(thing, int(self.rng.integers(2, 5)), draw_background(self.rng))

    def _draw_thing(self, like: int | None = None) -> tuple[int, int]:
        """Draw a thing and one of its styles: the one given, if it was shown in that."""
        concept = self.shown[int(len(self.shown) * self.rng.random() ** COMMON_POWER)]
        styles = self.styles[concept]
        if like in styles:
            return concept, like
        return concept, styles[0] if self.rng.random() < DEFAULT_STYLE_SHARE else int(self.rng.choice(styles))

    def look_at(self, picture: int, scene: Scene) -> list[View]:
        """List what has to be seen: of several alike any one, and nothing that stands behind."""
        things = shown_whole(scene)
        if len(things) > 1 and len({thing.concept for thing in things}) == 1:
            things = [things[self.rng.integers(len(things))]]
        return [(picture, thing) for thing in things]


@dataclass(frozen=True, slots=True)
class Asked:
    """Captions, the noise to draw them from, and what is to be seen in the pictures."""

    batch: Batch  # with noise in place of pictures
    views: list[View]
    alone: Tensor  # of each view: is its thing the only one
    backgrounds: list[str]


def ask(scenes: Scenes) -> Asked:
    """Word what some scenes show, a quarter in the plainest words."""
    pool, rng = scenes.pool, scenes.rng
    drawn = [scenes.draw() for _ in range(BATCH_SCALE * DRAWN)]
    words = [caption(scene, pool.concepts, Plainest() if rng.random() < PLAIN_SHARE else rng) for scene in drawn]
    noise = torch.randn(len(drawn), SQUARE[0] * SQUARE[1], KLEIN_MINI.transformer.in_channels, device=DEVICE)
    batch = Batch(noise, noise[:, :0], *pool.tokenizer.encode(words), SQUARE, ())
    views = [view for picture, scene in enumerate(drawn) for view in scenes.look_at(picture, scene)]
    alone = torch.tensor([len(drawn[picture].things) == 1 for picture, _ in views], device=DEVICE)
    return Asked(batch, views, alone, [scene.background for scene in drawn])


def draw(model: MiniModel, batch: Batch) -> Tensor:
    """Draw from the noise of a batch in the product's steps (B, N, C)."""
    tokens = batch.target
    for here, there in pairwise(sigmas(tokens.shape[1], KLEIN_MINI.steps)):
        tokens = tokens + (there - here) * velocity_at(model, batch, tokens, rounded(here))
    return tokens


def caption_losses(
    student: MiniModel, shipped: MiniModel, critic: Critic, asked: Asked, behind: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw captions, doubt what is drawn, and hold to the shipped model's what it draws surely.

    `behind` (A, N, C) are the backgrounds of the first pictures, those that the shipped model draws too.
    """
    pictures, count = draw(student, asked.batch), len(asked.batch.target)
    named, styled = doubts(critic, pictures, asked.views, generator)
    some = first(asked.batch, len(behind))
    with torch.no_grad():
        was = draw(shipped, some)
        views = [view for view in asked.views if view[0] < len(behind)]
        doubted, _ = doubts(critic, was, views, generator)
        worst = doubted.new_zeros(len(behind))
        worst = worst.scatter_reduce(0, torch.tensor([p for p, _ in views], device=DEVICE), doubted, "amax")
        empty = (was - behind).square().mean(-1, keepdim=True) < BARE
        sure = torch.where(empty, 0, torch.exp(-worst)[:, None, None])
    now = pictures[: len(behind)]
    return {
        "named": named.sum() / count,
        "styled": (styled * asked.alone).sum() / count,
        "sure": (sure * (now - was).square()).mean(),
        "bare": (empty * (now - behind).square()).mean(),
    }


def edit_walk(
    student: MiniModel, shipped: MiniModel, latents: Latents, pool: Pool, shares: dict[str, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Edit again and again as the student does; give how far its velocity is off the shipped model's, and the outcome.

    The second of the two is nothing where the shipped model does not get to the outcome itself.
    """
    for shape, samples, _ in changes(pool, shares):
        samples = samples[: BATCH_SCALE * EDITED]
        pairs = zip(samples, word_plainly(pool, samples), strict=True)
        words = [plain if pool.rng.random() < 0.8 * PLAIN_SHARE else pool.word(sample) for sample, plain in pairs]
        batch = latents.batch(pool.draw(shape, samples, words))
        change = pool.scenes[samples[0].target].tone or samples[0].change
        tokens = torch.randn_like(batch.target)
        for here, there in pairwise(sigmas(SQUARE[0] * SQUARE[1], KLEIN_MINI.steps)):
            with torch.no_grad():
                was = velocity_at(shipped, batch, tokens, here)
            velocity = velocity_at(student, batch, tokens, here)
            outcome = (velocity - (tokens - batch.target) / here).square().mean()
            yield (velocity - was).square().mean(), outcome if change in KNOWN else 0 * outcome
            tokens = tokens + (there - here) * velocity.detach()


def train_captions(work: Path, minutes: float, peak_rate: float = 1.2e-4) -> None:
    """Have the transformer that ships draw what a critic can name; leave it in `work / "further_weights"`."""
    torch.manual_seed(0)
    shipped = load_shipped()[0].to(DEVICE).eval().requires_grad_(False)
    student, critic = deepcopy(shipped).train(), load_critic(work).to(DEVICE)
    learning = list(student.transformer.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(learning, peak_rate, betas=(0.9, 0.98), weight_decay=0.0)
    average = Average(student, 0.99)
    run = Run(work / "further_captions", minutes, {"model": student, "average": average, "optimizer": optimizer})
    pool, latents = Pool(work, seed=run.step, caption_dropout=0.0), Latents(work)
    torch.manual_seed(run.step)
    generator = torch.Generator(DEVICE).manual_seed(run.step)
    for model in (student, shipped):
        compile_blocks(model)
    scenes = Scenes(pool)
    walks = [edit_walk(student, shipped, latents, pool, KNOWN | OTHERS) for _ in range(2)]
    for _ in range(KLEIN_MINI.steps // 2):  # so that each is at another noise level
        next(walks[0])
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(warmup=20, decay_from=0.4)
        asked = ask(scenes)
        behind = bare(pool, latents, asked.backgrounds[: BATCH_SCALE * HELD])
        losses = caption_losses(student, shipped, critic, asked, behind, generator)
        loss = DOUBT_WEIGHT * (losses["named"] + STYLE_SHARE * losses["styled"])
        loss = loss + SURE_WEIGHT * losses["sure"] + BARE_WEIGHT * losses["bare"]
        loss.backward()  # type: ignore[no-untyped-call]
        held = [torch.stack(pair).mean() for pair in zip(*(next(walk) for walk in walks), strict=True)]
        (EDIT_WEIGHT * held[0] + OUTCOME_WEIGHT * held[1]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(student)
        run.record(loss=loss, **losses, edits=held[0])
    assert isinstance(average.module, MiniModel)
    export(average.module, work, work / "further_weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("begin", "captions"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool and training.critic")
    parser.add_argument("--minutes", type=float, default=75)
    arguments = parser.parse_args()
    if arguments.stage == "begin":
        begin(arguments.work)
    else:
        train_captions(arguments.work, arguments.minutes)
