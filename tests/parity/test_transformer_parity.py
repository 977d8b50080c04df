"""The flow transformer against diffusers' `Flux2Transformer2DModel`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from openklein.engine import transformer
from openklein.engine.tokens import image_ids, reference_ids, text_ids
from openklein.engine.transformer import FlowTransformer, TransformerConfig
from tests.parity.compare import assert_far, assert_same, randomize

CONFIG = TransformerConfig(
    in_channels=8,
    num_layers=2,
    num_single_layers=3,
    num_heads=2,
    head_dim=24,
    joint_attention_dim=20,
    axes_dims=(4, 8, 8, 4),
)
GRID = (3, 5)
REFERENCE_GRIDS = [(2, 4), (3, 3), (1, 5), (4, 2)]
TEXT_LENGTH = 7
SIGMAS = torch.tensor([0.967384, 0.25])

Inputs = tuple[Tensor, Tensor]  # image tokens (2, N, 8), text features (2, 7, 20)


def reference_for(config: TransformerConfig) -> Flux2Transformer2DModel:
    reference: Flux2Transformer2DModel = Flux2Transformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.num_layers,
        num_single_layers=config.num_single_layers,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.joint_attention_dim,
        timestep_guidance_channels=config.timestep_channels,
        mlp_ratio=float(config.mlp_ratio),
        axes_dims_rope=config.axes_dims,
        rope_theta=int(config.rope_theta),
        eps=config.eps,
        guidance_embeds=False,
    ).eval()
    return reference


def pair(config: TransformerConfig = CONFIG) -> tuple[FlowTransformer, Flux2Transformer2DModel]:
    reference = reference_for(CONFIG)
    randomize(reference)
    ours = FlowTransformer(config).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    return ours, reference


def inputs(references: int = len(REFERENCE_GRIDS)) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    grids = [GRID, *REFERENCE_GRIDS[:references]]
    count = sum(height * width for height, width in grids)
    image = torch.randn(2, count, CONFIG.in_channels, generator=generator)
    return image, torch.randn(2, TEXT_LENGTH, CONFIG.joint_attention_dim, generator=generator)


def target_and_reference_ids(count: int) -> Tensor:
    return torch.cat([image_ids(*GRID), reference_ids(REFERENCE_GRIDS)])[:count]


@torch.no_grad()
def predict(model: FlowTransformer, tokens: Inputs, sigma: Tensor = SIGMAS) -> Tensor:
    image, text = tokens
    rotary = model.rotary(torch.cat([text_ids(TEXT_LENGTH), target_and_reference_ids(image.shape[1])]))
    velocity: Tensor = model(image, text, sigma, rotary)
    return velocity


@torch.no_grad()
def expect(model: Flux2Transformer2DModel, tokens: Inputs) -> Tensor:
    image, text = tokens
    velocity: Tensor = model(
        hidden_states=image,
        encoder_hidden_states=text,
        timestep=SIGMAS,
        img_ids=target_and_reference_ids(image.shape[1]),
        txt_ids=text_ids(TEXT_LENGTH),
        guidance=None,
        return_dict=False,
    )[0]
    assert velocity.std() > 0.2
    return velocity


@pytest.mark.parametrize("references", range(5))
def test_velocity(monkeypatch: pytest.MonkeyPatch, references: int) -> None:
    ours, reference = pair()
    tokens = inputs(references)
    expected = expect(reference, tokens)
    assert_same(predict(ours, tokens), expected)
    monkeypatch.setattr(transformer, "rotate", half_rotation)
    assert_far(predict(ours, tokens), expected)


def test_the_state_dict_is_the_checkpoints() -> None:
    ours, reference = pair()
    randomize(ours, seed=2)
    reference.load_state_dict(ours.state_dict(), strict=True)
    assert_same(predict(ours, inputs()), expect(reference, inputs()))


def test_every_weight_matters() -> None:
    ours, _ = pair()
    image, text = inputs()
    rotary = ours.rotary(torch.cat([text_ids(TEXT_LENGTH), target_and_reference_ids(image.shape[1])]))
    ours(image, text, SIGMAS, rotary).square().sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def half_rotation(x: Tensor, rotary: transformer.Rotary) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cos, sin = rotary[:, None].real, rotary[:, None].imag
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def swapped_swiglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * value


def sine_first(sigma: Tensor, channels: int) -> Tensor:
    cos, sin = EMBEDDING(sigma, channels).chunk(2, dim=-1)
    return torch.cat([sin, cos], dim=-1)


def scale_for_shift(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return MODULATE(x, scale, shift, eps)


def unrotated(x: Tensor, rotary: transformer.Rotary) -> Tensor:
    return x


EMBEDDING, MODULATE = transformer.timestep_embedding, transformer.modulate


class TestBugsAreSeen:
    """Each of these has been made somewhere; the comparison must notice."""

    @pytest.mark.parametrize(
        ("function", "wrong"),
        [
            ("rotate", half_rotation),
            ("rotate", unrotated),
            ("swiglu", swapped_swiglu),
            ("timestep_embedding", sine_first),
            ("modulate", scale_for_shift),
        ],
        ids=lambda value: value if isinstance(value, str) else value.__name__,
    )
    def test_in_a_function(self, monkeypatch: pytest.MonkeyPatch, function: str, wrong: Callable[..., Tensor]) -> None:
        ours, reference = pair()
        expected = expect(reference, inputs())
        monkeypatch.setattr(transformer, function, wrong)
        assert_far(predict(ours, inputs()), expected)

    @pytest.mark.parametrize("change", [{"rope_theta": 10_000.0}, {"eps": 1e-2}, {"axes_dims": (4, 4, 8, 8)}], ids=str)
    def test_in_the_sizes(self, change: dict[str, Any]) -> None:
        ours, reference = pair(replace(CONFIG, **change))
        assert_far(predict(ours, inputs()), expect(reference, inputs()))

    def test_in_the_order_of_the_final_halves(self) -> None:
        ours, reference = pair()
        expected = expect(reference, inputs())
        with torch.no_grad():
            weight = ours.norm_out.linear.weight
            weight.copy_(torch.cat(weight.chunk(2)[::-1]))
        assert_far(predict(ours, inputs()), expected)

    def test_in_the_time(self) -> None:
        ours, reference = pair()
        assert_far(predict(ours, inputs(), SIGMAS * 1.001), expect(reference, inputs()))

    def test_in_the_streams(self) -> None:
        ours, reference = pair()
        expected = expect(reference, inputs())
        ours.double_stream_modulation_img, ours.double_stream_modulation_txt = (
            ours.double_stream_modulation_txt,
            ours.double_stream_modulation_img,
        )
        assert_far(predict(ours, inputs()), expected)
