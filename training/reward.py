"""Have a critic see what the transformer draws in its four steps, and take its doubts back through all of them.

Direct reward fine-tuning, arXiv:2309.17400. Captions are of pictures of the pool, which what is drawn is compared with.
Pictures of several put together are doubted alone, and what is around them held to the outcome.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.schedule import sigmas
from training.batches import Batch, Latents, Pool
from training.critic import Critic, View, doubts, shown_whole, unlikeness
from training.distill import rounded, velocity_at
from training.families import Sample
from training.model import MiniModel
from training.precision import BATCH_SCALE
from training.scenes import SQUARE
from training.wording import Plainest, caption

DRAWN = 20  # captions of a step
ALONE = 0.6  # share of the captions that are of one thing
COMMON_POWER = 1.2  # by which the first in the list are drawn more often
DEFAULT_STYLE_SHARE = 0.3  # at least, of what is alone
PLAIN_SHARE = 0.25  # of the captions, in the plainest words
STYLE_SHARE = 0.3  # of the doubts about a style among the others, in a row
BARE = 0.02  # mean square by which a token shows more than the background
JOINED_SHARE = 0.1  # of what differs from the outcome, where that is joined: more than one will do
Asked = tuple[Batch, list[View]]  # pictures and the words for them, and what is to be seen in each


class Captioned:
    """Draw endlessly pictures of the pool that a caption tells: of one thing, of two unlike, of several alike."""

    def __init__(self, pool: Pool) -> None:
        self.rng = pool.rng
        self.alone: dict[int, dict[int, list[int]]] = {}  # of each thing, in each style
        self.several: dict[int, list[int]] = {}  # of those that show it beside others
        for sample in pool.shapes["text"][SQUARE,]:
            things = pool.scenes[sample.target].things
            if len(things) == 1:
                self.alone.setdefault(things[0].concept, {}).setdefault(things[0].style, []).append(sample.target)
            elif len({thing.style for thing in things}) == 1:  # a caption names one
                for concept in {thing.concept for thing in things}:
                    self.several.setdefault(concept, []).append(sample.target)

    def draw(self) -> int:
        if self.rng.random() < ALONE:
            styles = self.alone[self._draw_concept(self.alone)]
            default = self.rng.random() < DEFAULT_STYLE_SHARE
            found = styles[min(styles) if default else int(self.rng.choice(sorted(styles)))]
        else:
            found = self.several[self._draw_concept(self.several)]
        return found[self.rng.integers(len(found))]

    def _draw_concept(self, shown: Collection[int]) -> int:
        return sorted(shown)[int(len(shown) * self.rng.random() ** COMMON_POWER)]


def captions(pool: Pool, latents: Latents) -> Iterator[Asked]:
    """Draw pictures of the pool endlessly and word them, a quarter in the plainest words.

    All that stands behind nothing is to be seen, but of several alike any one.
    """
    captioned, rng = Captioned(pool), pool.rng
    while True:
        drawn = [captioned.draw() for _ in range(BATCH_SCALE * DRAWN)]
        scenes = [pool.scenes[number] for number in drawn]
        words = [caption(scene, pool.concepts, Plainest() if rng.random() < PLAIN_SHARE else rng) for scene in scenes]
        batch = latents.batch(pool.draw((SQUARE,), [Sample(number) for number in drawn], words))
        views: list[View] = []
        for picture, scene in enumerate(scenes):
            things = shown_whole(scene)
            if len(things) > 1 and len({thing.concept for thing in things}) == 1:
                things = [things[rng.integers(len(things))]]
            views += [(picture, thing) for thing in things]
        yield batch, views


def draw(model: MiniModel, batch: Batch) -> Tensor:
    """Draw from the noise of a batch in the product's steps (B, N, C)."""
    tokens = batch.target
    for here, there in pairwise(sigmas(tokens.shape[1], KLEIN_MINI.steps)):
        tokens = tokens + (there - here) * velocity_at(model, batch, tokens, rounded(here))
    return tokens


def look_at_joined(pool: Pool, samples: Sequence[Sample]) -> list[View]:
    """List what pictures of several should draw: all that their outcomes show whole."""
    return [(i, thing) for i, sample in enumerate(samples) for thing in shown_whole(pool.scenes[sample.target])]


def drawn_losses(
    student: MiniModel, critic: Critic, batch: Batch, views: Sequence[View], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw what a batch asks for, doubt each view of it, and compare it with the real picture."""
    pictures = draw(student, replace(batch, target=torch.randn_like(batch.target)))
    chosen, things = [picture for picture, _ in views], [thing for _, thing in views]
    named, styled = doubts(critic, pictures, views, generator)
    unlike = unlikeness(critic, pictures[chosen], batch.target[chosen], things, generator)
    return {
        "named": named.mean(),
        "styled": styled.mean(),
        "unlike": unlike.mean(),
        "off": (pictures - batch.target).square().mean(),
    }


def join_losses(
    student: MiniModel, critic: Critic, batch: Batch, views: Sequence[View], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw squares of several things, doubt each, and compare with the outcome: fully only where that is bare."""
    pictures = draw(student, replace(batch, target=torch.randn_like(batch.target)))
    is_bare = (batch.target - batch.target[:, :1]).square().mean(-1, keepdim=True) < BARE
    error = torch.where(is_bare, 1.0, JOINED_SHARE) * (pictures - batch.target).square()
    named, styled = doubts(critic, pictures, views, generator)
    return {"joined": (named + STYLE_SHARE * styled).mean(), "around": error.mean()}
