"""Measure in dB PSNR what is left of a picture: through the autoencoder and back, and after an edit of its tone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openklein.contract import RESOLUTIONS
from openklein.engine.images import to_image, to_tensor
from openklein.engine.pipeline import Pipeline
from training.art import HELD_OUT_PHOTOS
from training.bench import SEED, Bench, make
from training.measures import psnr
from training.model import load_shipped
from training.precision import DEVICE, FAST_DTYPE
from training.scenes import Tone, apply_tone

TONES: dict[str, Tone] = {"make it black and white": "greyscale", "make it brighter": "brighten"}
SIZE = RESOLUTIONS["square"]


def held_out_photos(work: Path) -> Iterator[tuple[str, Image.Image]]:
    """Cut the photographs that were held out to a square at output size."""
    for name in HELD_OUT_PHOTOS:
        photo = Image.open(work / "photos" / f"{Path(name).stem}.png").convert("RGB")
        side = min(photo.size)
        yield Path(name).stem, photo.crop((0, 0, side, side)).resize(SIZE, Image.Resampling.LANCZOS)


def photographs(work: Path, pipeline: Pipeline) -> dict[str, float]:
    """Edit the tone of photographs, and compare with the true result."""
    decibels = {}
    for name, photo in held_out_photos(work):
        for prompt, tone in TONES.items():
            truth = apply_tone(np.asarray(photo, np.float32), tone).round().astype(np.uint8)
            decibels[f"{name}_{tone}"] = psnr(np.asarray(make(pipeline, prompt, SEED, photo)), truth)
    return decibels


@torch.inference_mode()
def round_trips(bench: Bench) -> dict[str, float]:
    """Encode and decode photographs, and things in styles that were held out, at full resolution."""
    _, autoencoder, _ = load_shipped()
    autoencoder = autoencoder.to(DEVICE, FAST_DTYPE).eval()

    def round_trip(picture: Image.Image) -> float:
        latents = autoencoder.encode(to_tensor(picture)[None].to(DEVICE, FAST_DTYPE))
        return psnr(np.asarray(to_image(autoencoder.decode(latents)[0])), np.asarray(picture))

    decibels = {name: round_trip(photo) for name, photo in held_out_photos(bench.work)}
    art = []
    for thing, style in bench.pairs(held_out=True):
        sprite = Image.fromarray(bench.sprites[thing, style])
        picture = Image.new("RGB", SIZE, "white")
        picture.paste(sprite, ((SIZE[0] - sprite.width) // 2, (SIZE[1] - sprite.height) // 2), sprite)
        art.append(round_trip(picture))
    return {**decibels, "art_mean": float(np.mean(art)), "art_least": min(art)}
