"""Say what `--quantize int8` costs in accuracy, stage by stage, on a 4B checkpoint.

    python -m benchmarks.int8_error CHECKPOINT [--side 512]

Reads a prompt, goes the four steps from the same noise in bfloat16 and in int8, and decodes both. Errors are those of
int8 against bfloat16, relative in the 2-norm: of the first step, whose inputs are the same, and of later ones, each
from where its own way has led. Reading and decoding are the same modules in both. The last line on stdout is one JSON
document. It takes 10 GB of memory, and some minutes on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks.peers import load_part
from benchmarks.report import comparison_report
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.images import to_image
from openklein.engine.sampler import denoise
from openklein.engine.schedule import sigmas
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import image_ids, text_ids, unpack

PROMPT = "a red fox in the snow, watching a bird"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the diffusers folder")
    parser.add_argument("--side", type=int, default=512, help="of the picture, in pixels")
    arguments = parser.parse_args()
    side, features = arguments.side // KLEIN_4B.token_px, read(arguments.checkpoint)
    exact, quantized = (walk(arguments.checkpoint, features, side, quantized=int8) for int8 in (False, True))
    decoder: Any = load_part(arguments.checkpoint, "autoencoder")
    pictures = [
        np.asarray(to_image(decoder.decode(unpack(tokens.bfloat16(), side, side))[0]), np.float64)
        for *_, tokens in (exact, quantized)
    ]
    names = [*(f"velocity of step {number + 1}" for number in range(KLEIN_4B.steps)), "latents at the end"]
    rows = [
        {"stage": name, "error": ((ours - theirs).norm() / theirs.norm()).item()}
        for name, ours, theirs in zip(names, quantized, exact, strict=True)
    ]
    mean_square = np.mean((pictures[0] - pictures[1]) ** 2)
    rows.append({"stage": "picture, PSNR in dB", "error": float(10 * np.log10(255**2 / mean_square))})
    for row in rows:
        print(f"{row['stage']:<24} {row['error']:.4g}")
    print(json.dumps(comparison_report("int8_error", rows) | {"side": arguments.side}))


def read(checkpoint: Path) -> Tensor:
    (path,) = checkpoint.glob(KLEIN_4B.files["tokenizer"][0])
    tokenizer = PromptTokenizer(Tokenizer.from_file(str(path)), KLEIN_4B.text_encoder)
    features: Tensor = load_part(checkpoint, "text_encoder")(*tokenizer.encode([PROMPT]))
    return features


def walk(checkpoint: Path, features: Tensor, side: int, *, quantized: bool) -> list[Tensor]:
    """Give the velocity of each step and where they lead, float32 (1, N, C)."""
    transformer: Any = load_part(checkpoint, "transformer", quantized=quantized)
    if quantized:
        for block in transformer.blocks:
            block.compile(fullgraph=True, dynamic=True)
    rotary = transformer.rotary(torch.cat([text_ids(features.shape[1]), image_ids(side, side)]))
    velocities: list[Tensor] = []

    def predict(tokens: Tensor, sigma: float) -> Tensor:
        times = torch.full((1,), 1000 * sigma, dtype=features.dtype) / 1000
        velocities.append(transformer(tokens, features, times, rotary))
        return velocities[-1]

    noise = torch.randn(1, side * side, KLEIN_4B.transformer.in_channels, generator=torch.Generator().manual_seed(0))
    tokens = denoise(noise.bfloat16(), sigmas(side * side, KLEIN_4B.steps), predict, lambda _: None)
    return [tensor.float() for tensor in (*velocities, tokens)]


if __name__ == "__main__":
    main()
