"""Make the same small picture with our pipeline and with diffusers' `Flux2KleinPipeline`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openklein.engine import pipeline as pipeline_module
from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.images import to_image
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import unpack
from openklein.engine.types import ImageRequest
from tests.tiny import TINY_CARD, tiny_modules, tiny_tokenizer

CARD = replace(
    KLEIN_4B,
    transformer=replace(TINY_CARD.transformer, in_channels=16, num_layers=2, num_single_layers=2),
    text_encoder=replace(
        TINY_CARD.text_encoder,
        prefix=KLEIN_4B.text_encoder.prefix,
        suffix=KLEIN_4B.text_encoder.suffix,
        pad_multiple=KLEIN_4B.text_encoder.pad_multiple,
    ),
    autoencoder=AutoencoderConfig(
        block_out_channels=(4, 8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4
    ),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
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


def request(references: Sequence[Image.Image] = ()) -> ImageRequest:
    return ImageRequest(PROMPT, WIDTH, HEIGHT, seed=5, references=tuple(references))


@cache
def reference_pipeline(*, is_distilled: bool = True) -> Flux2KleinPipeline:
    """Build diffusers' pipeline with the weights of `tiny_pipeline(CARD)`."""
    text, flow, autoencoder = CARD.text_encoder, CARD.transformer, CARD.autoencoder
    assert isinstance(autoencoder, AutoencoderConfig)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.feature_layers[-1] + 1,
            num_attention_heads=text.num_heads,
            num_key_value_heads=text.num_kv_heads,
            head_dim=text.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": text.rope_theta},
            tie_word_embeddings=True,
        )
    )
    transformer = Flux2Transformer2DModel(
        in_channels=flow.in_channels,
        num_layers=flow.num_layers,
        num_single_layers=flow.num_single_layers,
        attention_head_dim=flow.head_dim,
        num_attention_heads=flow.num_heads,
        joint_attention_dim=flow.joint_attention_dim,
        timestep_guidance_channels=flow.timestep_channels,
        axes_dims_rope=flow.axes_dims,
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=autoencoder.block_out_channels,
        layers_per_block=autoencoder.layers_per_block,
        latent_channels=autoencoder.latent_channels,
        norm_num_groups=autoencoder.norm_num_groups,
    )
    for theirs, ours in zip((text_encoder, transformer, vae), tiny_modules(CARD), strict=True):
        theirs.load_state_dict(ours.state_dict(), strict=theirs is not text_encoder)
        theirs.eval()
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer(), pad_token=text.pad_token, chat_template=CHAT_TEMPLATE
        ),
        transformer=transformer,
        is_distilled=is_distilled,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expect(
    pipeline: Pipeline, references: Sequence[Image.Image] = (), *, steps: int = CARD.steps, guidance: float = 1.0
) -> Made:
    """Let diffusers make the picture from our pipeline's noise; guidance makes its model the base model."""
    reference = reference_pipeline(is_distilled=guidance == 1)
    tokens: list[Tensor] = []

    def note(_pipeline: Any, _step: int, _time: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens.append(values["latents"])
        return values

    (pixels,) = reference(
        prompt=PROMPT,
        image=list(references) or None,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=pipeline._noise(seed=5, height=HEIGHT // 16, width=WIDTH // 16),
        text_encoder_out_layers=CARD.text_encoder.feature_layers,
        callback_on_step_end=note,
        output_type="pt",
    ).images
    assert len(tokens) == steps and pixels.std() > 0.1
    processor = reference.image_processor
    (picture,) = processor.numpy_to_pil(processor.pt_to_numpy(pixels[None]))
    return Made(tokens[-1], 2 * pixels - 1, picture)


def make(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, references: Sequence[Image.Image] = ()) -> Made:
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
        picture = pipeline.generate(request(references)).image
    tokens, pixels = noted
    return Made(tokens, pixels, picture)


def levels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.asarray(picture, np.int16)
