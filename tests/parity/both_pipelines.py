"""Make the same small picture with our pipeline and with diffusers' `Flux2KleinPipeline`, from the same files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from PIL import Image
from torch import Tensor

from benchmarks.random_checkpoint import write_checkpoint
from openklein.engine import pipeline as pipeline_module
from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.catalog import KLEIN_4B, ModelCard
from openklein.engine.images import to_image
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import unpack
from openklein.engine.types import ImageRequest
from openklein.engine.weights import load_card
from tests.parity.compare import Levels
from tests.tiny import CHOICE, TINY_CARD

AUTOENCODER = AutoencoderConfig(
    block_out_channels=(4, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
)
CARD = replace(
    KLEIN_4B,
    transformer=TINY_CARD.transformer,
    text_encoder=replace(
        KLEIN_4B.text_encoder,
        vocab_size=1024,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=32,
        feature_layers=(1, 2),
    ),
    autoencoder=AUTOENCODER,
    small_autoencoder=replace(AUTOENCODER, decoder_block_out_channels=(4, 4, 4, 4)),
)
TEXT_LAYERS = 4  # two more than are used
PROMPT = "a red apple on a blue background"
WIDTH, HEIGHT = 96, 64


def noise_picture(width: int, height: int, seed: int) -> Image.Image:
    coarse = torch.randint(256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC)


REFERENCES = [noise_picture(64, 64, 0), noise_picture(101, 83, 1), noise_picture(64, 130, 2), noise_picture(160, 70, 3)]


@dataclass(frozen=True, slots=True)
class Made:
    """A picture, and what it was before."""

    tokens: Tensor  # after the last step
    pixels: Tensor  # (3, H, W) from -1 to 1
    picture: Image.Image


def request(references: Sequence[Image.Image] = (), *, width: int = WIDTH, height: int = HEIGHT) -> ImageRequest:
    return ImageRequest(PROMPT, width, height, seed=5, references=tuple(references))


def our_pipeline(card: ModelCard = CARD, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Load a checkpoint that is laid out as the makers' folder on the model hub."""
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), card, text_layers=TEXT_LAYERS, dtype=dtype)
        return load_card(card, Path(folder), replace(CHOICE, dtype=dtype))


class ExactSteps(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Multiply in float32, as we do: the original rounds the product to bfloat16, and on CPUs both factors before."""

    def step(self, velocity: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor]:
        (latents,) = super().step(velocity.float(), *arguments, **options)
        return (latents.to(velocity.dtype),)


def reference_pipeline(*, is_distilled: bool = True, dtype: torch.dtype = torch.float32) -> Flux2KleinPipeline:
    """Let diffusers and transformers load the same, once."""
    return load_reference(is_distilled, dtype)


@cache
def load_reference(is_distilled: bool, dtype: torch.dtype) -> Flux2KleinPipeline:
    card = CARD if is_distilled else replace(CARD, guidance=4.0)
    with TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), card, text_layers=TEXT_LAYERS, dtype=dtype)
        pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype)
    assert pipeline.config.is_distilled == is_distilled
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = ExactSteps.from_config(pipeline.scheduler.config)
    # its pictures come with channels last, in which GroupNorm's sums are less exact
    pipeline.vae.encoder.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return pipeline


def expect(
    pipeline: Pipeline,
    references: Sequence[Image.Image] = (),
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
    steps: int = CARD.steps,
    guidance: float = 1.0,
    reference: Flux2KleinPipeline | None = None,
) -> Made:
    """Let diffusers make the picture from our pipeline's noise; guidance makes its model the base model."""
    reference = reference or reference_pipeline(is_distilled=guidance == 1, dtype=pipeline.choice.dtype)
    tokens: list[Tensor] = []

    def note(_pipeline: Any, _step: int, _time: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens.append(values["latents"])
        return values

    (pixels,) = reference(
        prompt=PROMPT,
        image=list(references) or None,
        width=width,
        height=height,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=pipeline._noise(seed=5, height=height // 16, width=width // 16),
        text_encoder_out_layers=CARD.text_encoder.feature_layers,
        callback_on_step_end=note,
        output_type="pt",
    ).images
    assert len(tokens) == steps and (2 * pixels).std() > 0.2
    processor = reference.image_processor
    (picture,) = processor.numpy_to_pil(processor.pt_to_numpy(pixels[None]))
    return Made(tokens[-1], 2 * pixels - 1, picture)


def make(
    monkeypatch: pytest.MonkeyPatch,
    pipeline: Pipeline,
    references: Sequence[Image.Image] = (),
    *,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Made:
    """Make the picture with our pipeline."""
    noted: list[Tensor] = []

    def note_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
        noted.append(tokens)
        return unpack(tokens, height, width)

    def note_pixels(pixels: Tensor) -> Image.Image:
        noted.append(pixels)
        return to_image(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "unpack", note_tokens)
        patch.setattr(pipeline_module, "to_image", note_pixels)
        picture = pipeline.generate(request(references, width=width, height=height)).image
    tokens, pixels = noted
    return Made(tokens, pixels, picture)


def levels(picture: Image.Image) -> Levels:
    return np.asarray(picture, np.int16)
