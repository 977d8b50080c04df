"""Compress pictures as FLUX.2 does: 8 times each way, then 2x2 positions folded into channels and normalised.

Parameter names are those of the published checkpoint, so that its state dict loads strictly.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.attention import attention
from openklein.engine.bands import Bands, convolve, cut, is_worth_cutting, normaliser
from openklein.engine.tokens import patchify, unpatchify

GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """Sizes of FLUX.2's autoencoder, named as in its config.json; channels go from the finest to the coarsest level."""

    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    decoder_block_out_channels: tuple[int, ...] | None = None  # None: as in the encoder
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_num_groups: int = 32
    batch_norm_eps: float = 1e-4


class ResidualBlock(nn.Module):
    """Add two normalised convolutions to the input, (B, in, H, W) to (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=GROUP_NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        total: Tensor = self._shortcut(x) + hidden
        return total

    def in_bands(self, x: Bands) -> Bands:
        """Do the same to a picture in bands, which are let go of on the way."""
        convolved = convolve(self.conv1, normaliser(self.norm1, x), x)
        hidden, shortcuts = [], []
        while x:
            shortcuts.append(self._shortcut(x[0]))
            hidden.append(next(convolved))
        convolved = convolve(self.conv2, normaliser(self.norm2, hidden), hidden)
        return [band.add_(shortcuts.pop(0)) for band in convolved]

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.conv1.in_channels == self.conv1.out_channels:
            return x
        shortcut: Tensor = self.conv_shortcut(x)
        return shortcut


class Attention(nn.Module):
    """Let every position look at every other, with one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H*W, C)
        query, key, value = (layer(tokens).unsqueeze(2) for layer in (self.to_q, self.to_k, self.to_v))
        hidden: Tensor = self.to_out(attention(query, key, value)).transpose(1, 2)  # (B, C, H*W)
        return x + hidden.reshape(x.shape)


class MiddleBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x))
        hidden: Tensor = self.resnets[1](x)
        return hidden


class Downsample(nn.Module):
    """Halve width and height; the border is padded below and on the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return hidden


class Upsample(nn.Module):
    """Double width and height."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.conv(double(x))
        return hidden

    def in_bands(self, x: Bands) -> Bands:
        """Do the same to a picture in bands, which are let go of on the way."""
        return list(convolve(self.conv, double, x, scale=2))


def double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DownBlock(nn.Module):
    """Run residual blocks, then halve the size, except on the last level."""

    def __init__(self, channels: tuple[int, int], layers: int, groups: int, *, is_last: bool) -> None:
        super().__init__()
        self.resnets = residual_blocks(channels, layers, groups)
        self.downsamplers = nn.ModuleList([] if is_last else [Downsample(channels[1])])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    """Run residual blocks, then double the size, except on the last level."""

    def __init__(self, channels: tuple[int, int], layers: int, groups: int, *, is_last: bool) -> None:
        super().__init__()
        self.resnets = residual_blocks(channels, layers, groups)
        self.upsamplers = nn.ModuleList([] if is_last else [Upsample(channels[1])])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x

    def in_bands(self, x: Bands) -> Bands:
        """Do the same to a picture in bands, which are let go of on the way."""
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer.in_bands(x)
        return x


def residual_blocks(channels: tuple[int, int], count: int, groups: int) -> nn.ModuleList:
    first, rest = channels
    return nn.ModuleList(ResidualBlock(rest if i else first, rest, groups) for i in range(count))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(channels, config.layers_per_block, groups, is_last=i == len(widths) - 1)
            for i, channels in enumerate(pairwise((widths[0], *widths)))
        )
        self.mid_block = MiddleBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)  # mean and log variance

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)
        for block in self.down_blocks:
            x = block(x)
        moments: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return moments


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = (config.decoder_block_out_channels or config.block_out_channels)[::-1]
        groups = config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock(channels, config.layers_per_block + 1, groups, is_last=i == len(widths) - 1)
            for i, channels in enumerate(pairwise((widths[0], *widths)))
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        if is_worth_cutting(x):
            return self._in_bands(cut(x))
        for block in self.up_blocks:
            x = block(x)
        image: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return image

    def _in_bands(self, x: Bands) -> Tensor:
        for block in self.up_blocks:
            assert isinstance(block, UpBlock)
            x = block.in_bands(x)
        return torch.cat(list(convolve(self.conv_out, normaliser(self.conv_norm_out, x), x)), dim=2)


class Autoencoder(nn.Module):
    """Encode pictures to FLUX.2's normalised latents, and decode them."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.bn = nn.BatchNorm2d(4 * config.latent_channels, eps=config.batch_norm_eps, affine=False)

    def encode(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], sides multiples of 16, to normalised latents (B, 4C, H/16, W/16).

        The mean of the distribution, never a sample of it.
        """
        mean, _log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        packed = patchify(mean)
        shift, scale = self._statistics(packed.dtype)
        return (packed - shift) / scale

    def decode(self, latents: Tensor) -> Tensor:
        """Map normalised latents (B, 4C, h, w) to pictures (B, 3, 16h, 16w), clamped to [-1, 1]."""
        shift, scale = self._statistics(latents.dtype)
        image: Tensor = self.decoder(self.post_quant_conv(unpatchify(latents * scale + shift)))
        return image.clamp(-1, 1)

    def _statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        mean, variance = self.bn.running_mean, self.bn.running_var  # (4C,) each
        assert mean is not None and variance is not None
        std = torch.sqrt(variance + self.bn.eps)
        return mean.to(dtype)[:, None, None], std.to(dtype)[:, None, None]
