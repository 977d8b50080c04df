"""Have a critic name what the transformer draws in its four steps, and take its doubts back through all of them.

Direct reward fine-tuning, arXiv:2309.17400. Captions of one thing are those of the pool's pictures, which what is drawn
is compared with; captions of several are composed freely, as nothing has to be painted. Pictures of several put
together are drawn from the pool's; what is around them is held to the outcome.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool, bare
from training.critic import Critic, View, doubts, shown_whole, unlikeness
from training.distill import first, rounded, velocity_at
from training.families import Sample, counted, draw_background, two_things
from training.model import MiniModel
from training.precision import BATCH_SCALE, DEVICE
from training.scenes import POSED_SIZE, SQUARE, Scene, Thing
from training.wording import Plainest, caption

DRAWN = 20  # captions of a step
SURE = 3  # of them those that the shipped model draws too
ALONE, TOGETHER = 0.6, 0.3  # shares of the captions: of one thing, of two unlike; the others are of several alike
COMMON_POWER = 1.2  # by which the first in the list are drawn more often
DEFAULT_STYLE_SHARE = 0.3  # at least, of the things
PLAIN_SHARE = 0.25  # of the captions, in the plainest words
STYLE_SHARE = 0.3  # of the doubts about a style among the others
BARE = 0.02  # mean square by which a token shows more than the background
JOINED_SHARE = 0.1  # of what differs from the outcome, where that is joined: more than one will do


class Scenes:
    """Draw endlessly what captions can tell: one thing as the pool has painted it, and several in any way."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.rng = pool, pool.rng
        self.painted: dict[Scene, int] = {}  # what the pool's pictures show of one thing as captions describe it
        self.alone: dict[int, dict[int, list[Scene]]] = {}  # the same of each thing, in each style
        for number, scene in enumerate(pool.scenes):
            for thing in scene.things[:1]:
                if scene == Scene((Thing(thing.concept, thing.style, POSED_SIZE),), scene.background, SQUARE):
                    self.painted[scene] = number
                    self.alone.setdefault(thing.concept, {}).setdefault(thing.style, []).append(scene)
        self.shown = sorted(self.alone)

    def draw(self) -> Scene:
        kind, (concept, style) = self.rng.random(), self._draw_thing()
        thing = Thing(concept, style, POSED_SIZE)
        if kind < ALONE:
            scenes = self.alone[concept][style]
            return scenes[self.rng.integers(len(scenes))]
        if kind < ALONE + TOGETHER:
            other = self._draw_thing(style)
            return two_things([(concept, style), other, other], SQUARE, self.rng).scenes[0]
        return counted(thing, int(self.rng.integers(2, 5)), draw_background(self.rng))

    def _draw_thing(self, like: int | None = None) -> tuple[int, int]:
        """Draw a thing and one of its styles: the one given, if it was shown in that."""
        concept = self.shown[int(len(self.shown) * self.rng.random() ** COMMON_POWER)]
        styles = sorted(self.alone[concept])
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
    real: Tensor  # pictures of those (A, N, C)
    behind: Tensor  # backgrounds of the first pictures, those that the shipped model draws too


def ask(scenes: Scenes, latents: Latents) -> Asked:
    """Word what some scenes show, a quarter in the plainest words."""
    pool, rng = scenes.pool, scenes.rng
    drawn = [scenes.draw() for _ in range(BATCH_SCALE * DRAWN)]
    words = [caption(scene, pool.concepts, Plainest() if rng.random() < PLAIN_SHARE else rng) for scene in drawn]
    noise = torch.randn(len(drawn), SQUARE[0] * SQUARE[1], KLEIN_MINI.transformer.in_channels, device=DEVICE)
    batch = Batch(noise, noise[:, :0], *pool.tokenizer.encode(words), SQUARE, ())
    views = [view for picture, scene in enumerate(drawn) for view in scenes.look_at(picture, scene)]
    alone = torch.tensor([len(drawn[picture].things) == 1 for picture, _ in views], device=DEVICE)
    starts = [pool.starts[scenes.painted[scene]] for scene in drawn if len(scene.things) == 1]
    real = latents.picture(torch.tensor(starts, dtype=torch.long), SQUARE)
    behind = bare(pool, latents, [scene.background for scene in drawn[: BATCH_SCALE * SURE]])
    return Asked(batch, views, alone, real, behind)


def draw(model: MiniModel, batch: Batch) -> Tensor:
    """Draw from the noise of a batch in the product's steps (B, N, C)."""
    tokens = batch.target
    for here, there in pairwise(sigmas(tokens.shape[1], KLEIN_MINI.steps)):
        tokens = tokens + (there - here) * velocity_at(model, batch, tokens, rounded(here))
    return tokens


def caption_losses(
    student: MiniModel, shipped: MiniModel, critic: Critic, asked: Asked, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw captions, doubt what is drawn, and compare things alone with real ones.

    What the shipped model draws surely of several is held to that, and what is bare to the background.
    """
    pictures, count, behind = draw(student, asked.batch), len(asked.batch.target), asked.behind
    named, styled = doubts(critic, pictures, asked.views, generator)
    portraits = [view for view, alone in zip(asked.views, asked.alone.tolist(), strict=True) if alone]
    some = first(asked.batch, len(behind))
    with torch.no_grad():
        was = draw(shipped, some)
        views = [view for view in asked.views if view[0] < len(behind)]
        doubted, _ = doubts(critic, was, views, generator)
        worst = doubted.new_zeros(len(behind))
        worst = worst.scatter_reduce(0, torch.tensor([p for p, _ in views], device=DEVICE), doubted, "amax")
        empty = (was - behind).square().mean(-1, keepdim=True) < BARE
        sure = torch.where(empty, 0, torch.exp(-worst)[:, None, None])
        sure[[picture for picture, _ in portraits if picture < len(behind)]] = 0
    now = pictures[: len(behind)]
    mine = pictures[[picture for picture, _ in portraits]]
    unlike = unlikeness(critic, mine, asked.real, [thing for _, thing in portraits], generator)
    return {
        "named": named.sum() / count,
        "styled": (styled * asked.alone).sum() / count,
        "unlike": unlike.sum() / count,
        "off": (mine - asked.real).square().mean((1, 2)).sum() / count,
        "sure": (sure * (now - was).square()).mean(),
        "bare": (empty * (now - behind).square()).mean(),
    }


def look_at_joined(pool: Pool, samples: Sequence[Sample]) -> list[View]:
    """List what pictures of several should draw: all that their outcomes show whole."""
    return [(i, thing) for i, sample in enumerate(samples) for thing in shown_whole(pool.scenes[sample.target])]


def join_losses(
    student: MiniModel, critic: Critic, batch: Batch, views: Sequence[View], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw squares of several things, doubt each, and compare with the outcome: fully only where that is bare."""
    pictures = draw(student, replace(batch, target=torch.randn_like(batch.target)))
    is_bare = (batch.target - batch.target[:, :1]).square().mean(-1, keepdim=True) < BARE
    error = torch.where(is_bare, 1.0, JOINED_SHARE) * (pictures - batch.target).square()
    named, styled = doubts(critic, pictures, views, generator)
    return {"joined": (named + STYLE_SHARE * styled).mean(), "around": error.mean()}
