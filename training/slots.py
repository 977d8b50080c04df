"""Show things in references: in slots among others, or alone, with a prompt that means one of them."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.batches import Latents, Pool
from training.phrases import RECOLOUR, REMOVE, REPLACE
from training.precision import DEVICE
from training.scenes import CANVAS_TOKEN_PX, COLOURS, POSED_SIZE, SQUARE, VISIBLE, Scene, Thing
from training.wording import pick, with_article, word_concept

SLOT = SQUARE[0] // 2  # tokens on each side of a thing among others
NOTHING = -1


def shown_things(pool: Pool) -> NDArray[np.int64]:
    """Tell for every token of the pool's upright squares which thing it shows, if any."""
    shown = np.full(pool.starts[-1], NOTHING)
    middles = (np.arange(SQUARE[0]) + 0.5) / SQUARE[0]
    for start, scene in zip(pool.starts, pool.scenes, strict=False):
        if is_upright(scene):
            picture = shown[start : start + SQUARE[0] * SQUARE[1]].reshape(SQUARE)
            for thing in scene.things:
                down, right = (np.abs(middles - middle) < thing.size / 2 for middle in (thing.y, thing.x))
                picture[np.ix_(down, right)] = thing.concept
    return shown


def is_upright(scene: Scene) -> bool:
    """Tell whether a scene is an upright square whose things keep their looks."""
    return scene.grid == SQUARE and not scene.quarter_turns and scene.tone != "outline"


def slot_of(thing: Thing) -> tuple[int, int] | None:
    """Give the row and column of tokens in a square where the slot of a thing begins, if it fills one exactly."""
    if thing.size != POSED_SIZE / 2:
        return None
    corner = [(VISIBLE[SQUARE][0] / CANVAS_TOKEN_PX) * middle - SLOT / 2 for middle in (thing.y, thing.x)]
    top, left = map(round, corner)
    fits = max(abs(corner[0] - top), abs(corner[1] - left)) < 0.1 and 0 <= min(top, left) <= max(top, left) <= SLOT
    return (top, left) if fits else None


@dataclass(frozen=True, slots=True)
class Shown:
    """Pictures made up of slots, a prompt for each that means one of its things, and pictures of one, with none."""

    tokens: Tensor  # (B, N, C)
    things: Tensor  # (B, N)
    meant: Tensor  # (A, N), of the first A pictures
    prompts: list[str]


class Slots:
    """The pool's things, each in a slot of its own, or alone, and endless batches of them."""

    def __init__(self, pool: Pool, latents: Latents) -> None:
        self.pool, self.latents = pool, latents
        within = (SQUARE[1] * np.arange(SLOT)[:, None] + np.arange(SLOT)).ravel()
        slots: list[tuple[int, int]] = []  # where it begins, and what it shows
        alone: list[tuple[int, int]] = []
        for start, scene in zip(pool.starts, pool.scenes, strict=False):
            for thing in scene.things if is_upright(scene) else ():
                if (corner := slot_of(thing)) is not None:
                    slots.append((start + corner[0] * SQUARE[1] + corner[1], thing.concept))
                elif thing.size >= POSED_SIZE and len(scene.things) == 1:
                    alone.append((start, thing.concept))
        starts, self.things = np.array(slots, np.int64).reshape(-1, 2).T
        self.rows = starts[:, None] + within
        self.alone = np.array(alone, np.int64).reshape(-1, 2)

    def draw(self, among_others: int, alone: int) -> Shown:
        rng, count = self.pool.rng, SQUARE[0] * SQUARE[1]
        chosen = rng.integers(len(self.rows), size=(among_others, 2, 2))
        corners = self.rows[chosen].reshape(among_others, 2, 2, SLOT, SLOT).swapaxes(2, 3)
        starts, whole = self.alone[rng.integers(len(self.alone), size=alone)].T
        rows = np.concatenate([corners.reshape(among_others, count), starts[:, None] + np.arange(count)])
        asked = self.things[
            chosen.reshape(among_others, 4)[np.arange(among_others), rng.integers(4, size=among_others)]
        ]
        corner_things = np.repeat(np.repeat(self.things[chosen], SLOT, axis=1), SLOT, axis=2)
        things = np.concatenate([corner_things.reshape(among_others, count), np.repeat(whole[:, None], count, axis=1)])
        return Shown(
            self.latents.rows[torch.from_numpy(rows).to(DEVICE)].float(),
            torch.from_numpy(things).to(DEVICE),
            torch.from_numpy(things[:among_others] == asked[:, None]).to(DEVICE),
            [self.ask_for(thing) for thing in asked] + [""] * alone,
        )

    def ask_for(self, thing: int) -> str:
        """Word a change of one thing among others."""
        rng, concepts = self.pool.rng, self.pool.concepts
        noun = word_concept(concepts[thing], rng)
        match rng.integers(3):
            case 0:
                return pick(rng, *REMOVE).format(thing=noun)
            case 1:
                return pick(rng, *RECOLOUR).format(it=f"the {noun}", colour=pick(rng, *COLOURS))
        other = word_concept(concepts[rng.integers(len(concepts))], rng)
        return pick(rng, *REPLACE).format(it=f"the {noun}", other=with_article(other))
