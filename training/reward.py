"""Have a critic name what the transformer draws in its four steps, and take its doubts back through all of them.

Direct reward fine-tuning, arXiv:2309.17400. Captions are composed freely, as nothing has to be painted. Of edits, those
that draw something new are drawn, from the pool's pictures, and pictures of several put together; what they should keep
is held to the outcome.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Pool
from training.critic import Critic, View, doubts, shown_whole
from training.distill import differs, first, rounded, velocity_at
from training.families import Sample, counted, draw_background, shown_styles, two_things
from training.model import MiniModel
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing
from training.wording import Plainest, caption

DRAWN = 6  # captions of a step
ALONE, TOGETHER = 0.36, 0.54  # shares of the captions: of one thing, of two unlike; the others are of several alike
COMMON_POWER = 1.2  # by which the first in the list are drawn more often
DEFAULT_STYLE_SHARE = 0.3  # at least, of the things
PLAIN_SHARE = 0.25  # of the captions, in the plainest words
STYLE_SHARE = 0.3  # of the doubts about a style among the others
BARE = 0.02  # mean square by which a token shows more than the background
NEW_SHARE = 0.1  # of what differs from the outcome, where that is new or joined: more than one will do


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


def look_at_new(pool: Pool, samples: Sequence[Sample]) -> list[View]:
    """List what edits of one picture should draw: what their outcomes show whole and their references not so."""
    views = []
    for number, sample in enumerate(samples):
        before, after = pool.scenes[sample.references[0]], pool.scenes[sample.target]
        views += [(number, thing) for thing in shown_whole(after) if thing not in before.things]
    return views


def look_at_joined(pool: Pool, samples: Sequence[Sample]) -> list[View]:
    """List what pictures of several should draw: all that their outcomes show whole."""
    return [(i, thing) for i, sample in enumerate(samples) for thing in shown_whole(pool.scenes[sample.target])]


def edit_losses(
    student: MiniModel, critic: Critic, batch: Batch, views: Sequence[View], generator: torch.Generator
) -> dict[str, Tensor]:
    """Edit squares, doubt what is new in them, and compare with the outcome: fully only what should stay."""
    pictures = draw(student, replace(batch, target=torch.randn_like(batch.target)))
    error = (pictures - batch.target).square()
    share = torch.where(differs(batch), NEW_SHARE, 1.0)
    named, styled = doubts(critic, pictures, views, generator)
    return {"new": (named + STYLE_SHARE * styled).sum() / len(pictures), "stays": (share * error).mean()}


def join_losses(
    student: MiniModel, critic: Critic, batch: Batch, views: Sequence[View], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw squares of several things, doubt each, and compare with the outcome: fully only where that is bare."""
    pictures = draw(student, replace(batch, target=torch.randn_like(batch.target)))
    is_bare = (batch.target - batch.target[:, :1]).square().mean(-1, keepdim=True) < BARE
    error = torch.where(is_bare, 1.0, NEW_SHARE) * (pictures - batch.target).square()
    named, styled = doubts(critic, pictures, views, generator)
    return {"joined": (named + STYLE_SHARE * styled).mean(), "around": error.mean()}
