"""Train klein-mini's autoencoder on windows of sprites over many backgrounds, in two runs.

The first, `canvas`, reconstructs the canvas alone (a quarter of the output each way), which costs a fraction.
The decoder's tail is linear, so that the mean of each 4x4 block of its output is the canvas: the same weights
serve both. The second, `full`, keeps the encoder, whose latents the flow learns meanwhile, and teaches the
decoder full resolution.
`python -m training.autoencoder canvas --work FOLDER --minutes 15` resumes FOLDER/autoencoder, `full` FOLDER/decoder.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from openklein.engine.mini_autoencoder import (
    CANVAS_SCALE,
    STEM_SCALE,
    TAIL_SCALE,
    MiniAutoencoder,
    MiniAutoencoderConfig,
)
from training.art import load_art, load_photos
from training.checkpoints import Average, Run
from training.data import STYLES, is_held_out, load_sprites, read_concepts
from training.precision import DEVICE, autocast

CANVAS_PX = 256
LATENT_NOISE = 0.05


def sources(work: Path, shrink: int) -> list[tuple[float, NDArray[np.uint8]]]:
    """Give arrays of pictures (N, size, size, 4), each with its share; none is held out."""
    sprites = load_sprites(work)
    shown = [not is_held_out(concept.label, style) for concept in read_concepts() for style in STYLES]
    sprites = sprites[: len(shown) // len(STYLES)]
    flat = sprites.reshape(-1, *sprites.shape[2:])[:, ::shrink, ::shrink]
    art, photos = load_art(work)[:, ::shrink, ::shrink], load_photos(work)[:, ::shrink, ::shrink]
    return [(0.6, flat[np.flatnonzero(shown)]), (0.25, np.array(art)), (0.15, np.array(photos))]


def crop(pictures: NDArray[np.uint8], crop_px: int, canvas_px: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut one window (crop_px, crop_px, 4) out of a picture, at the size it has on a canvas of canvas_px."""
    pixels = pictures[rng.integers(len(pictures))]
    size_px = canvas_px * np.exp(rng.uniform(np.log(0.3), np.log(0.95)))
    window = crop_px * len(pixels) / size_px
    low, high = sorted((-0.2 * window, len(pixels) - 0.8 * window))
    left, top = rng.uniform(low, high, 2)
    # resize() wants its box inside the picture, so cut first
    piece = Image.fromarray(pixels).crop((int(left), int(top), int(left + window), int(top + window)))
    resized = np.asarray(piece.resize((crop_px, crop_px), Image.Resampling.BILINEAR))
    return resized[:, ::-1] if rng.random() < 0.5 else resized


def backdrops(count: int, size_px: int, rng: np.random.Generator) -> Tensor:
    """Make (count, 3, size_px, size_px) backgrounds in 0..255: plain, gradient, or soft random."""
    grids = torch.from_numpy(rng.uniform(0, 255, (count, 3, 16, 16)).astype(np.float32))
    kinds = rng.random(count)
    corners = [1 if kind < 0.7 else 2 if kind < 0.85 else int(rng.integers(3, 17)) for kind in kinds]
    grids[torch.from_numpy(kinds < 0.3)] = 255
    scaled = [
        F.interpolate(grid[None, :, :n, :n], (size_px, size_px), mode="bilinear", align_corners=True)
        for grid, n in zip(grids, corners, strict=True)
    ]
    return torch.cat(scaled)


class Crops(IterableDataset[Tensor]):
    """Endless batches (size, 3, crop_px, crop_px) in [-1, 1]; made in a process beside the trainer."""

    def __init__(self, work: Path, size: int, scale: int, seed: int) -> None:
        self.work, self.size, self.scale, self.seed = work, size, scale, seed

    def __iter__(self) -> Iterator[Tensor]:
        rng = np.random.default_rng(self.seed)
        shares, arrays = zip(*sources(self.work, shrink=2 if self.scale == 1 else 1), strict=True)
        crop_px, canvas_px = CANVAS_PX // 2 * self.scale, CANVAS_PX * self.scale
        while True:
            chosen = rng.choice(len(arrays), size=self.size, p=shares)
            windows = np.stack([crop(arrays[i], crop_px, canvas_px, rng) for i in chosen])
            pixels = torch.from_numpy(windows).permute(0, 3, 1, 2)
            pictures = torch.lerp(backdrops(self.size, crop_px, rng), pixels[:, :3].float(), pixels[:, 3:] / 255)
            grey = torch.from_numpy(rng.random(self.size) < 0.06)
            pictures[grey] = pictures[grey].mean(1, keepdim=True).expand_as(pictures[grey])
            yield pictures.div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


def canvas_weights(tail: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Average the tail's weight and bias over the 4x4 output pixels of each canvas pixel."""
    assert tail.bias is not None
    blocks, block = TAIL_SCALE // CANVAS_SCALE, (2, 4)
    shape = (3, blocks, CANVAS_SCALE, blocks, CANVAS_SCALE)
    weight = torch.unflatten(tail.weight, 0, shape).mean(block).flatten(0, 2)
    return weight, torch.unflatten(tail.bias, 0, shape).mean(block).flatten()


@torch.no_grad()
def spread_canvas(tail: nn.Conv2d) -> None:
    """Let every output pixel start as its canvas pixel."""
    assert tail.bias is not None
    blocks = TAIL_SCALE // CANVAS_SCALE
    for values, canvas in zip((tail.weight, tail.bias), canvas_weights(tail), strict=True):
        pixels = torch.unflatten(canvas, 0, (3, blocks, 1, blocks, 1))
        spread = pixels.expand(3, blocks, CANVAS_SCALE, blocks, CANVAS_SCALE, *canvas.shape[1:])
        values.copy_(spread.flatten(0, 4))


def error_measure(error: Tensor) -> Tensor:
    """Weigh pixels and edges of the difference between two pictures."""
    loss = error.abs().mean() + 4 * error.square().mean()
    return loss + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def canvas_loss(model: MiniAutoencoder, canvas: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct the canvas alone; return loss and mean squared error."""
    latents = model.encoder(F.pixel_unshuffle(canvas, STEM_SCALE)).float()
    *trunk, tail = model.decoder
    x = latents + LATENT_NOISE * torch.randn_like(latents)
    for layer in trunk:
        x = layer(x)
    assert isinstance(tail, nn.Conv2d)
    output = F.pixel_shuffle(F.conv2d(x, *canvas_weights(tail), padding=1), TAIL_SCALE // CANVAS_SCALE)
    error = output.float() - canvas
    return error_measure(error) + 1e-3 * latents.square().mean(), error.square().mean()


def full_loss(model: MiniAutoencoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct at full resolution from latents that are kept; return loss and mean squared error."""
    with torch.no_grad():
        latents = model.compress(image).float()
    error = model.reconstruct(latents + LATENT_NOISE * torch.randn_like(latents)).float() - image
    return error_measure(error) + error_measure(F.avg_pool2d(error, CANVAS_SCALE)), error.square().mean()


def load_average(run: Path) -> dict[str, Tensor]:
    """Read the averaged weights of a run."""
    weights: dict[str, Tensor] = torch.load(run / "last.pt", weights_only=True, map_location="cpu")["parts"]["average"][
        "module"
    ]
    return weights


def train(stage: str, work: Path, minutes: float, batch: int = 16, peak_rate: float = 1e-3) -> None:
    torch.manual_seed(0)
    model = MiniAutoencoder(MiniAutoencoderConfig()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    measure: Callable[[MiniAutoencoder, Tensor], tuple[Tensor, Tensor]] = canvas_loss
    folder, scale, trained = work / "autoencoder", 1, list(model.parameters())
    if stage == "full":
        model.load_state_dict(load_average(folder))
        spread_canvas(model.decoder[-1])
        measure = full_loss
        folder, scale, trained = work / "decoder", CANVAS_SCALE, list(model.decoder.parameters())
    model.to(DEVICE)
    optimizer = torch.optim.AdamW(trained, peak_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    average = Average(model, 0.998)
    run = Run(folder, minutes, {"model": model, "optimizer": optimizer, "average": average})
    crops = Crops(work, batch, scale, seed=run.step)
    stream = iter(DataLoader(crops, batch_size=None, num_workers=1, prefetch_factor=4))
    compiled = torch.compile(measure)
    for _ in run:
        optimizer.param_groups[0]["lr"] = peak_rate * run.learning_rate_scale(decay_from=0.3)
        with autocast():
            loss, squared = compiled(model, next(stream).to(DEVICE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average.update(model)
        run.record(loss=squared)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("canvas", "full"))
    parser.add_argument("--work", type=Path, required=True, help="folder of training.data")
    parser.add_argument("--minutes", type=float, default=15)
    arguments = parser.parse_args()
    train(arguments.stage, arguments.work, arguments.minutes)
