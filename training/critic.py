"""Train a critic that names what the latents of a picture show, noisy or not, in any window.

`training.further` has what the transformer draws named by it, and takes its doubts back through the four steps. So it
sees what the transformer makes, latents, and noise on them: what only noise-free latents could tell would be easy to
feign. `python -m training.critic --work FOLDER --minutes 15` resumes FOLDER/critic, and prints its accuracy on pictures
of the pool that it has not met. The figures come from another one, `training.judge`, which sees pixels.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from openklein.engine.tokens import unpack, unpatchify
from training.batches import Latents, Pool
from training.checkpoints import Average, Run
from training.data import STYLES
from training.judge import Block
from training.precision import BATCH_SCALE, DEVICE, autocast
from training.scenes import SQUARE, Scene, Thing

STEM, WIDTHS = 160, (192, 320, 448)
SIDE, CHANNELS = 2 * SQUARE[0], 32  # of a square's latents
BATCH = 128
NOISE_FREE = 0.25  # of the pictures; the others have noise of a deviation up to 1, as the latents themselves
Frame = tuple[float, float, float]  # how wide a window is, at least and at most, and how far off, in sizes of its thing
LEARNED: Frame = (1.0, 1.5, 0.09)
ASKED: Frame = (1.05, 1.35, 0.06)
HELD_OUT_EVERY, HELD_OUT_SCENES = 40, 40  # neighbouring scenes of the pool: families lie together
UNSEEN = 2048  # views, at the end, to see how many are named right
FLOOR = 0.01  # probability added: what is hopeless anyway counts little
View = tuple[int, Thing]  # where a picture's latents begin, or its place in a batch, and what to look at


class Critic(nn.Module):
    """Map windows of latents (B, 32, 16, 16) and their noise (B,) to logits of things and of styles."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS + 1, STEM, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip((STEM, *WIDTHS[:-1]), WIDTHS, strict=True)))
        self.things, self.styles = nn.Linear(WIDTHS[-1], things), nn.Linear(WIDTHS[-1], len(STYLES))

    def forward(self, windows: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.look(windows, noise)[-1].mean((2, 3))
        with autocast():
            return self.things(hidden).float(), self.styles(hidden).float()

    def look(self, windows: Tensor, noise: Tensor) -> list[Tensor]:
        """Give what each block makes of windows: features (B, width, side, side)."""
        level = noise[:, None, None, None].expand(-1, 1, *windows.shape[2:])
        shown = torch.cat([windows, level], dim=1).contiguous(memory_format=torch.channels_last)
        with autocast():
            stages = accumulate(self.blocks, lambda hidden, block: block(hidden), initial=F.relu(self.stem(shown)))
            return list(stages)[1:]


def shown_whole(scene: Scene) -> list[Thing]:
    """List the things of an upright square that keep their looks and that no other one covers."""
    if scene.grid != SQUARE or scene.quarter_turns or scene.tone == "outline":
        return []
    return [thing for i, thing in enumerate(scene.things) if not any(covers(o, thing) for o in scene.things[i + 1 :])]


def covers(upper: Thing, lower: Thing) -> bool:
    """Tell whether more than the edges of one thing lie above another."""
    reach = 0.8 * (upper.size + lower.size) / 2
    return abs(upper.x - lower.x) < reach and abs(upper.y - lower.y) < reach


def cut(tokens: Tensor, things: Sequence[Thing], margins: Tensor, offsets: Tensor) -> Tensor:
    """Cut one window (B, 32, 16, 16) out of each square (B, 64, 128), where its thing stands.

    A window is `margins` (B,) as wide as its thing, and `offsets` (B, 2) of the thing's size beside it.
    """
    size, x, y = torch.tensor([(t.size, t.x, t.y) for t in things], device=tokens.device).T
    across, nought = margins * size, torch.zeros_like(size)
    right, down = 2 * (x + offsets[:, 0] * size) - 1, 2 * (y + offsets[:, 1] * size) - 1
    rows = torch.stack([across, nought, right, nought, across, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, [len(things), CHANNELS, SIDE, SIDE], align_corners=False)
    latents = unpatchify(unpack(tokens, *SQUARE))
    return F.grid_sample(latents, grid, padding_mode="border", align_corners=False)


def draw_windows(
    tokens: Tensor, things: Sequence[Thing], noise: Tensor, frame: Frame, generator: torch.Generator
) -> Tensor:
    """Put so much noise (B,) on squares (B, 64, 128), and cut windows about where their things stand."""
    noisy = tokens + noise[:, None, None] * torch.randn(tokens.shape, generator=generator, device=tokens.device)
    low, high, off = frame
    random = torch.rand(3, len(things), generator=generator, device=tokens.device)
    return cut(noisy, things, low + (high - low) * random[0], off * (2 * random[1:].T - 1))


def doubts(critic: Critic, tokens: Tensor, views: Sequence[View], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Say how little the critic sees the thing and the style of each view in squares (B, 64, 128): two of (views,).

    A doubt is the negative log-likelihood, bounded, under noise (0.1 to 0.9) that is drawn anew each time.
    """
    things = [thing for _, thing in views]
    chosen = tokens[[picture for picture, _ in views]]
    noise = 0.1 + 0.8 * torch.rand(len(views), generator=generator, device=tokens.device)
    logits = critic(draw_windows(chosen, things, noise, ASKED, generator), noise)
    numbers = torch.tensor([(t.concept, t.style) for t in things], device=tokens.device).T
    named, styled = (
        -torch.log(part.softmax(-1).gather(1, right[:, None])[:, 0] + FLOOR)
        for part, right in zip(logits, numbers, strict=True)
    )
    return named, styled


def unlikeness(
    critic: Critic, tokens: Tensor, real: Tensor, things: Sequence[Thing], generator: torch.Generator
) -> Tensor:
    """Say how unlike what squares (B, 64, 128) show is to what real ones do, about one thing each: (B,).

    To the critic: how far its features are apart, each of length 1, under the same noise (0 to 0.5), as LPIPS compares
    them (arXiv:1801.03924).
    """
    noise = 0.5 * torch.rand(len(things), generator=generator, device=tokens.device)
    again = generator.clone_state()
    seen = critic.look(draw_windows(tokens, things, noise, ASKED, generator), noise)
    meant = critic.look(draw_windows(real, things, noise, ASKED, again), noise)
    apart = [F.normalize(s.float(), dim=1) - F.normalize(m.float(), dim=1) for s, m in zip(seen, meant, strict=True)]
    return torch.stack([off.square().sum(1).mean((1, 2)) for off in apart]).mean(0)


class Views:
    """What the pool's pictures show, and batches of it; every sort of thing as often by the root of its number."""

    def __init__(self, pool: Pool, latents: Latents, *, held_out: bool) -> None:
        self.latents, self.rng = latents, pool.rng
        self.views: list[View] = [
            (int(start), thing)
            for number, (start, scene) in enumerate(zip(pool.starts, pool.scenes, strict=False))
            if held_out == (number // HELD_OUT_SCENES % HELD_OUT_EVERY == HELD_OUT_EVERY - 1)
            for thing in shown_whole(scene)
        ]
        counts = Counter((thing.concept, thing.style) for _, thing in self.views)
        weights = np.array([counts[thing.concept, thing.style] ** -0.5 for _, thing in self.views])
        self.shares: NDArray[np.float64] = np.cumsum(weights / weights.sum())

    def draw(self, count: int) -> tuple[Tensor, list[Thing]]:
        numbers = np.searchsorted(self.shares[:-1], self.rng.random(count))
        starts = torch.tensor([self.views[number][0] for number in numbers])
        return self.latents.picture(starts, SQUARE), [self.views[number][1] for number in numbers]


def load_critic(work: Path) -> Critic:
    saved = torch.load(work / "critic" / "last.pt", weights_only=True, map_location="cpu")["parts"]["average"]["module"]
    critic = Critic(len(saved["things.bias"]))
    critic.load_state_dict(saved)
    return critic.eval().requires_grad_(False)


def train(work: Path, minutes: float, peak_rate: float = 2e-3) -> None:
    torch.manual_seed(0)
    pool, latents = Pool(work), Latents(work)
    critic = Critic(len(pool.concepts)).to(DEVICE)
    optimizer = torch.optim.AdamW(critic.parameters(), peak_rate, weight_decay=0.05)
    average = Average(critic, 0.995)
    run = Run(work / "critic", minutes, {"model": critic, "optimizer": optimizer, "average": average})
    pool.rng = np.random.default_rng(run.step)
    generator = torch.Generator(DEVICE).manual_seed(run.step)
    views = Views(pool, latents, held_out=False)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(decay_from=0.35)
        tokens, things = views.draw(BATCH * BATCH_SCALE)
        noise, free = torch.rand(2, len(things), generator=generator, device=DEVICE)
        noise = torch.where(free < NOISE_FREE, 0, noise)
        named, styled = critic(draw_windows(tokens, things, noise, LEARNED, generator), noise)
        numbers = torch.tensor([(t.concept, t.style) for t in things], device=DEVICE)
        loss = F.cross_entropy(named, numbers[:, 0], label_smoothing=0.05)
        loss = loss + 0.5 * F.cross_entropy(styled, numbers[:, 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update(critic)
        run.record(loss=loss, right=(named.argmax(1) == numbers[:, 0]).float().mean())
    unseen = Views(pool, latents, held_out=True)
    if unseen.views:
        print(f"unseen views named right: {measure(load_critic(work).to(DEVICE), unseen, generator):.3f}")


@torch.inference_mode()
def measure(critic: Critic, views: Views, generator: torch.Generator) -> float:
    """Give the share of noise-free views that the critic names right."""
    tokens, things = views.draw(UNSEEN)
    noise = torch.zeros(len(things), device=DEVICE)
    named, _ = critic(draw_windows(tokens, things, noise, LEARNED, generator), noise)
    right = named.argmax(1) == torch.tensor([thing.concept for thing in things], device=DEVICE)
    return float(right.float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.pool")
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes)
