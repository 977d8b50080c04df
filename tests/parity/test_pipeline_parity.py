"""Whole pictures against diffusers' `Flux2KleinPipeline`: prompt, references, four steps, decoding."""

from collections.abc import Callable, Sequence
from dataclasses import replace
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
from openklein.engine.pipeline import Pipeline
from openklein.engine.schedule import sigmas
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import image_ids
from openklein.engine.types import ImageRequest
from tests.parity.compare import assert_far, assert_same
from tests.tiny import TINY_CARD, tiny_modules, tiny_pipeline, tiny_tokenizer

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


def request(references: Sequence[Image.Image] = ()) -> ImageRequest:
    return ImageRequest(PROMPT, WIDTH, HEIGHT, seed=5, references=tuple(references))


@pytest.fixture(scope="module")
def reference() -> Flux2KleinPipeline:
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
        is_distilled=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def expect(
    reference: Flux2KleinPipeline, references: Sequence[Image.Image], noise: Tensor
) -> tuple[Tensor, Image.Image]:
    """Give the tokens after the last step, and the picture."""
    steps: list[Tensor] = []

    def note(_pipeline: Any, _step: int, _time: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append(values["latents"])
        return values

    (picture,) = reference(
        prompt=PROMPT,
        image=list(references) or None,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=CARD.steps,
        guidance_scale=1.0,
        latents=noise,
        text_encoder_out_layers=CARD.text_encoder.feature_layers,
        callback_on_step_end=note,
    ).images
    assert len(steps) == CARD.steps
    return steps[-1], picture


def generate(
    monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, references: Sequence[Image.Image]
) -> tuple[Tensor, Image.Image]:
    """Give the tokens after the last step, and the picture."""
    denoised: list[Tensor] = []

    def unpack_and_note(tokens: Tensor, height: int, width: int) -> Tensor:
        denoised.append(tokens)
        return tokens.transpose(1, 2).reshape(1, -1, height, width)

    monkeypatch.setattr(pipeline_module, "unpack", unpack_and_note)
    picture = pipeline.generate(request(references)).image
    return denoised[0], picture


def own_noise(pipeline: Pipeline) -> Tensor:
    return pipeline._noise(seed=5, height=HEIGHT // 16, width=WIDTH // 16)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_pictures(monkeypatch: pytest.MonkeyPatch, reference: Flux2KleinPipeline, count: int) -> None:
    pipeline = tiny_pipeline(CARD)
    references = REFERENCES[:count]
    expected, expected_picture = expect(reference, references, own_noise(pipeline))
    tokens, picture = generate(monkeypatch, pipeline, references)
    assert_same(tokens, expected)
    levels, expected_levels = (np.asarray(image, np.int16) for image in (picture, expected_picture))
    assert expected_levels.std() > 25
    assert np.abs(levels - expected_levels).max() <= 1


def swapped(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = pipeline._encode_references
    monkeypatch.setattr(pipeline, "_encode_references", lambda references: fit(references[::-1]))


def counted_in_mu(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "sigmas", lambda count, steps: sigmas(count + 16 + 30, steps))


def at_one_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline_module, "reference_ids", lambda grids: torch.cat([image_ids(h, w, time=10) for h, w in grids])
    )


def without_padding(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CARD.text_encoder, pad_multiple=1)
    monkeypatch.setattr(pipeline, "_tokenizer", PromptTokenizer(tiny_tokenizer(), config))


def without_template(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CARD.text_encoder, prefix="<|im_start|>user\n", suffix="<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr(pipeline, "_tokenizer", PromptTokenizer(tiny_tokenizer(), config))


@pytest.mark.parametrize(
    "bug", [swapped, counted_in_mu, at_one_time, without_padding, without_template], ids=lambda bug: bug.__name__
)
def test_bugs_are_seen(
    monkeypatch: pytest.MonkeyPatch,
    reference: Flux2KleinPipeline,
    bug: Callable[[Pipeline, pytest.MonkeyPatch], None],
) -> None:
    pipeline = tiny_pipeline(CARD)
    references = REFERENCES[:2]
    expected, _ = expect(reference, references, own_noise(pipeline))
    bug(pipeline, monkeypatch)
    tokens, _ = generate(monkeypatch, pipeline, references)
    assert_far(tokens, expected)
