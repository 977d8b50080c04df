"""Predict the flow's velocity: the FLUX.2 transformer, with the parameter names of the diffusers checkpoint.

Text and image tokens go through double blocks with weights of their own, joined in attention, and then
through single blocks as one sequence. Modulation is shared by all blocks of a kind. Every linear layer
is free of bias. Source: black-forest-labs/flux2 `model.py`, diffusers `transformer_flux2.py`.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.attention import attention

Rotary = Tensor  # complex64 (S, head_dim / 2), each number of absolute value 1


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Sizes of a flow transformer; `axes_dims` split the head dimension over the axes (t, h, w, l)."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    num_heads: int
    head_dim: int
    joint_attention_dim: int
    axes_dims: tuple[int, int, int, int]
    mlp_ratio: int = 3
    timestep_channels: int = 256
    rope_theta: float = 2000.0
    eps: float = 1e-6

    @property
    def hidden_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def mlp_size(self) -> int:
        return self.hidden_size * self.mlp_ratio


def linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False)


def rotary_embedding(ids: Tensor, axes_dims: tuple[int, ...], theta: float) -> Rotary:
    """Turn position ids (S, 4) into the rotation of each pair of channels, complex64 (S, head_dim / 2)."""
    angles = []
    for axis, dim in enumerate(axes_dims):
        omega = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=ids.device) / dim)
        angles.append(ids[:, axis, None].double() * omega)
    angle = torch.cat(angles, dim=-1)
    return torch.complex(angle.cos().float(), angle.sin().float())


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring channels (0, 1), (2, 3), ... of x (B, S, H, D), in float32, as complex numbers."""
    pairs = torch.view_as_complex(torch.unflatten(x.float(), -1, (-1, 2)))
    return torch.view_as_real(pairs * rotary[:, None]).flatten(-2).to(x.dtype)


def timestep_embedding(sigma: Tensor, channels: int) -> Tensor:
    """Embed sigma (B,) in [0, 1] as cosines and sines of 1000 * sigma, float32 (B, channels).

    The product is rounded in sigma's own dtype, as in both reference implementations.
    """
    half = channels // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device) / half)
    angle = (1000 * sigma).float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=eps) + shift


def swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    return torch.unflatten(x, -1, (num_heads, -1))  # (B, S, H, D)


def attend(query: Tensor, key: Tensor, value: Tensor, rotary: Rotary) -> Tensor:
    """Let every token see every token; (B, S, H, D) to (B, S, H * D)."""
    return attention(rotate(query, rotary), rotate(key, rotary), value)


class TimestepEmbedder(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_1 = linear(config.timestep_channels, config.hidden_size)
        self.linear_2 = linear(config.hidden_size, config.hidden_size)

    def forward(self, embedding: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(embedding)))
        return out


class Modulation(nn.Module):
    """Give `sets` triples (shift, scale, gate), each (B, 1, hidden), from the conditioning vector."""

    def __init__(self, config: TransformerConfig, sets: int) -> None:
        super().__init__()
        self.linear = linear(config.hidden_size, 3 * sets * config.hidden_size)
        self.sets = sets

    def forward(self, vector: Tensor) -> list[tuple[Tensor, ...]]:
        parts = self.linear(F.silu(vector))[:, None].chunk(3 * self.sets, dim=-1)
        return [parts[3 * i : 3 * i + 3] for i in range(self.sets)]


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear_in = linear(config.hidden_size, 2 * config.mlp_size)
        self.linear_out = linear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_out(swiglu(self.linear_in(x)))
        return out


class JointAttention(nn.Module):
    """Attend over text and image tokens together, with projections of their own."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, head_dim, eps = config.hidden_size, config.head_dim, config.eps
        self.num_heads = config.num_heads
        self.to_q, self.to_k, self.to_v = (linear(hidden, hidden) for _ in range(3))
        self.add_q_proj, self.add_k_proj, self.add_v_proj = (linear(hidden, hidden) for _ in range(3))
        self.norm_q, self.norm_k = nn.RMSNorm(head_dim, eps=eps), nn.RMSNorm(head_dim, eps=eps)
        self.norm_added_q, self.norm_added_k = nn.RMSNorm(head_dim, eps=eps), nn.RMSNorm(head_dim, eps=eps)
        self.to_out = nn.ModuleList([linear(hidden, hidden)])
        self.to_add_out = linear(hidden, hidden)

    def forward(self, image: Tensor, text: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        def heads(projection: nn.Linear, x: Tensor) -> Tensor:
            return split_heads(projection(x), self.num_heads)

        query = [self.norm_added_q(heads(self.add_q_proj, text)), self.norm_q(heads(self.to_q, image))]
        key = [self.norm_added_k(heads(self.add_k_proj, text)), self.norm_k(heads(self.to_k, image))]
        value = [heads(self.add_v_proj, text), heads(self.to_v, image)]
        mixed = attend(torch.cat(query, dim=1), torch.cat(key, dim=1), torch.cat(value, dim=1), rotary)
        parts = torch.split(mixed, [text.shape[1], image.shape[1]], dim=1)
        # in memory of their own: CPUs multiply a view of a part as a batch, at two thirds of the speed
        text_mixed, image_mixed = (part.clone(memory_format=torch.contiguous_format) for part in parts)
        return self.to_out[0](image_mixed), self.to_add_out(text_mixed)


class DoubleBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = JointAttention(config)
        self.ff = FeedForward(config)
        self.ff_context = FeedForward(config)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_modulation: list[tuple[Tensor, ...]],
        text_modulation: list[tuple[Tensor, ...]],
        rotary: Rotary,
    ) -> tuple[Tensor, Tensor]:
        (shift, scale, gate), (mlp_shift, mlp_scale, mlp_gate) = image_modulation
        (text_shift, text_scale, text_gate), (text_mlp_shift, text_mlp_scale, text_mlp_gate) = text_modulation
        image_mixed, text_mixed = self.attn(
            modulate(image, shift, scale, self.eps), modulate(text, text_shift, text_scale, self.eps), rotary
        )
        image = image + gate * image_mixed
        image = image + mlp_gate * self.ff(modulate(image, mlp_shift, mlp_scale, self.eps))
        text = text + text_gate * text_mixed
        text = text + text_mlp_gate * self.ff_context(modulate(text, text_mlp_shift, text_mlp_scale, self.eps))
        return image, text


class ParallelAttention(nn.Module):
    """Run attention and feed-forward side by side between two fused projections."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.sizes = [config.hidden_size] * 3 + [2 * config.mlp_size]
        self.to_qkv_mlp_proj = linear(config.hidden_size, sum(self.sizes))
        self.norm_q = nn.RMSNorm(config.head_dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(config.head_dim, eps=config.eps)
        self.to_out = linear(config.hidden_size + config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        query, key, value, mlp = torch.split(self.to_qkv_mlp_proj(x), self.sizes, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in (query, key, value))
        mixed = attend(self.norm_q(query), self.norm_k(key), value, rotary)
        out: Tensor = self.to_out(torch.cat([mixed, swiglu(mlp)], dim=-1))
        return out


class SingleBlock(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.attn = ParallelAttention(config)

    def forward(self, x: Tensor, modulation: tuple[Tensor, ...], rotary: Rotary) -> Tensor:
        shift, scale, gate = modulation
        out: Tensor = x + gate * self.attn(modulate(x, shift, scale, self.eps), rotary)
        return out


class FinalModulation(nn.Module):
    """Normalise and modulate before the output; the checkpoint stores (scale, shift) here."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.linear = linear(config.hidden_size, 2 * config.hidden_size)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(vector))[:, None].chunk(2, dim=-1)
        return modulate(x, shift, scale, self.eps)


class FlowTransformer(nn.Module):
    """Predict the velocity of every image token."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.x_embedder = linear(config.in_channels, hidden)
        self.context_embedder = linear(config.joint_attention_dim, hidden)
        self.time_guidance_embed = nn.ModuleDict({"timestep_embedder": TimestepEmbedder(config)})
        self.double_stream_modulation_img = Modulation(config, sets=2)
        self.double_stream_modulation_txt = Modulation(config, sets=2)
        self.single_stream_modulation = Modulation(config, sets=1)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.norm_out = FinalModulation(config)
        self.proj_out = linear(hidden, config.in_channels)

    @property
    def blocks(self) -> list[nn.Module]:
        """List all blocks, double ones first."""
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def rotary(self, ids: Tensor) -> Rotary:
        """Prepare the rotation for position ids (S, 4) of text and image tokens, in that order."""
        return rotary_embedding(ids, self.config.axes_dims, self.config.rope_theta)

    def forward(self, image: Tensor, text: Tensor, sigma: Tensor, rotary: Rotary) -> Tensor:
        """Map image tokens (B, N, C), text features (B, T, joint) and sigma (B,) to velocity (B, N, C).

        `image` holds the target's tokens and behind them those of the references; `rotary` covers T + N.
        """
        embedding = timestep_embedding(sigma, self.config.timestep_channels).to(image.dtype)
        vector = self.time_guidance_embed["timestep_embedder"](embedding)
        image_modulation = self.double_stream_modulation_img(vector)
        text_modulation = self.double_stream_modulation_txt(vector)
        (single_modulation,) = self.single_stream_modulation(vector)
        x, context = self.x_embedder(image), self.context_embedder(text)
        for block in self.transformer_blocks:
            x, context = block(x, context, image_modulation, text_modulation, rotary)
        joint = torch.cat([context, x], dim=1)
        for block in self.single_transformer_blocks:
            joint = block(joint, single_modulation, rotary)
        out: Tensor = self.proj_out(self.norm_out(joint[:, text.shape[1] :], vector))
        return out
