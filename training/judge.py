"""Train a judge that names what a picture shows; it learns from real renders alone and never sees generated ones.

`python -m training.judge --work FOLDER --minutes 20` resumes FOLDER/judge, and prints its accuracy on renders in
poses, on backgrounds and with blur that it has not met; with `--things 300` it knows the first 300 things alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from training.checkpoints import Average, Run
from training.data import STYLES, load_sprites, read_concepts
from training.precision import BATCH_SCALE, DEVICE, autocast
from training.scenes import COLOURS, PLACES, every_background, paint_background

INPUT_PX = 64
BATCH = 96
UNSEEN = 4096  # renders, at the end, to see how many are named right
WIDTHS = (48, 96, 192, 320)


class Block(nn.Module):
    """Two convolutions around a shortcut, at half the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(hidden + self.shortcut(F.avg_pool2d(x, 2)))


class Judge(nn.Module):
    """Map pictures (B, 3, 64, 64) in [-1, 1] to logits (B, things)."""

    def __init__(self, things: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(i, o) for i, o in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True)))
        self.head = nn.Linear(WIDTHS[-1], things)

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(pictures).mean((2, 3)))
        return logits


def read_pictures(pictures: Sequence[Image.Image]) -> Tensor:
    """Scale pictures to the judge's size (B, 3, 64, 64), in [-1, 1]."""
    small = [np.asarray(p.convert("RGB").resize((INPUT_PX, INPUT_PX), Image.Resampling.BOX)) for p in pictures]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


def small_sprites(work: Path) -> Tensor:
    """Scale all sprites down, once: uint8 (things * styles, 4, 64, 64)."""
    path = work / "judge" / "sprites.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        large = load_sprites(work)[: len(read_concepts())]
        flat = large.reshape(-1, *large.shape[2:])
        step = flat.shape[1] // INPUT_PX
        blocks = (row.reshape(INPUT_PX, step, INPUT_PX, step, 4).mean((1, 3)).astype(np.uint8) for row in flat)
        np.save(path, np.stack(list(blocks)))
    sprites: NDArray[np.uint8] = np.load(path)
    return torch.from_numpy(sprites).permute(0, 3, 1, 2).contiguous()


def backgrounds() -> Tensor:
    """Paint every pair of colours, every place ten times and every colour thirty times: (N, 3, 64, 64), 0 to 255."""
    names = [*29 * list(COLOURS), *9 * list(PLACES), *every_background()]
    painted = np.stack([paint_background(name, INPUT_PX, INPUT_PX) for name in names])
    return torch.from_numpy(painted).permute(0, 3, 1, 2).contiguous()


class Renders:
    """Batches of things in any style, pose and place, blurred now and then, with their numbers."""

    def __init__(self, work: Path, things: int, styles: int, seed: int) -> None:
        self.sprites, self.styles = small_sprites(work)[: things * styles].to(DEVICE), styles
        self.backgrounds = backgrounds().to(DEVICE)
        self.generator = torch.Generator(DEVICE).manual_seed(seed)

    def below(self, end: int, count: int) -> Tensor:
        return torch.randint(end, (count,), generator=self.generator, device=DEVICE)

    def uniform(self, low: float, high: float, count: int) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator, device=DEVICE)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        chosen = self.below(len(self.sprites), count)
        rgba = self.sprites[chosen].float()
        rgba[:, :3] *= rgba[:, 3:] / 255  # so that edges do not take the colour of what is transparent
        size = self.uniform(0.55, 1.0, count)
        side = torch.where(self.uniform(0, 1, count) < 0.4, -1.0, 1.0)
        shift = (self.uniform(-1, 1, 2 * count).view(2, count) * (1.04 - size)).unbind(0)
        zero = torch.zeros_like(size)
        rows = torch.stack([side / size, zero, -shift[0] * side / size, zero, 1 / size, -shift[1] / size], dim=1)
        grid = F.affine_grid(rows.view(count, 2, 3), [count, 4, INPUT_PX, INPUT_PX], align_corners=False)
        placed = F.grid_sample(rgba, grid, align_corners=False)
        behind = self.backgrounds[self.below(len(self.backgrounds), count)]
        pictures = placed[:, :3] + behind * (1 - placed[:, 3:] / 255)
        blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        share = self.uniform(0, 1, count).square()[:, None, None, None]
        pictures = torch.lerp(pictures, blurred, share)
        pictures += 10 * self.uniform(0, 1, count)[:, None, None, None] * torch.randn_like(pictures)
        return pictures / 127.5 - 1, chosen // self.styles


@torch.inference_mode()
def rank(judge: Judge, pictures: Tensor, things: Tensor) -> Tensor:
    """Give for each picture how many things the judge finds likelier than the right one; 0 is best."""
    logits: Tensor = judge(pictures)
    return (logits > logits.gather(1, things[:, None])).sum(1)


def load_judge(work: Path) -> Judge:
    saved = torch.load(work / "judge" / "last.pt", weights_only=True, map_location="cpu")["parts"]["average"]["module"]
    judge = Judge(len(saved["head.bias"]))
    judge.load_state_dict(saved)
    return judge.eval()


def train(work: Path, minutes: float, things: int | None = None, peak_rate: float = 2e-3) -> None:
    torch.manual_seed(0)
    things, styles = things or len(read_concepts()), len(STYLES)
    judge = Judge(things).to(DEVICE).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(judge.parameters(), peak_rate, weight_decay=0.02)
    average = Average(judge, 0.995)
    run = Run(work / "judge", minutes, {"model": judge, "optimizer": optimizer, "average": average})
    renders = Renders(work, things, styles, seed=run.step)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(decay_from=0.3)
        pictures, numbers = renders.draw(BATCH * BATCH_SCALE)
        with autocast():
            loss = F.cross_entropy(judge(pictures.to(memory_format=torch.channels_last)).float(), numbers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update(judge)
        run.record(loss=loss)
    unseen = Renders(work, things, styles, seed=1 << 40)
    trained = load_judge(work).to(DEVICE)
    ranks = torch.cat([rank(trained, *unseen.draw(256)) for _ in range(UNSEEN // 256)])
    top_1, top_5 = ((ranks < count).float().mean().item() for count in (1, 5))
    print(f"unseen renders named right: {top_1:.3f}, within five: {top_5:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--things", type=int, help="tell the first so many things apart")
    arguments = parser.parse_args()
    train(arguments.work, arguments.minutes, arguments.things)
