"""Compress pictures for klein-mini, which looks at a quarter of the output's width and height.

Same `encode` and `decode` as FLUX.2's autoencoder: normalised latents of `4 * latent_channels` channels,
one position per token. Here a token covers 128 x 128 output pixels, and the decoder's tail goes straight
from 1/8 resolution to full resolution with a pixel shuffle, since wide convolutions at full resolution
are what makes autoencoders slow on a CPU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.tokens import patchify, unpatchify

CANVAS_SCALE = 4  # output pixels per canvas pixel, each way
STEM_SCALE = 4  # canvas pixels per stem feature
TAIL_SCALE = 8  # output pixels per tail feature


@dataclass(frozen=True, slots=True)
class MiniAutoencoderConfig:
    """Sizes of klein-mini's autoencoder; channels and blocks go from the finest to the coarsest level."""

    latent_channels: int = 32
    encoder_channels: tuple[int, int, int] = (48, 96, 192)
    encoder_blocks: tuple[int, int, int] = (1, 2, 2)
    decoder_channels: tuple[int, int, int] = (64, 128, 256)
    decoder_blocks: tuple[int, int, int] = (2, 3, 3)
    tail_channels: int = 32
    batch_norm_eps: float = 1e-4


class ResidualBlock(nn.Module):
    """Add two convolutions to the input; it is normalised pixel by pixel, so that distant parts never interact."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normal = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],), eps=1e-6).permute(0, 3, 1, 2)
        hidden: Tensor = self.conv2(F.silu(self.conv1(normal)))
        return x + hidden


class Upsample(nn.Module):
    """Double width and height with a pixel shuffle."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


def residual_blocks(channels: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(count)]


class MiniEncoder(nn.Sequential):
    def __init__(self, config: MiniAutoencoderConfig) -> None:
        fine, middle, coarse = config.encoder_channels
        blocks = config.encoder_blocks
        super().__init__(
            nn.Conv2d(3 * STEM_SCALE**2, fine, 3, padding=1),
            *residual_blocks(fine, blocks[0]),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            *residual_blocks(middle, blocks[1]),
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
            *residual_blocks(coarse, blocks[2]),
            nn.Conv2d(coarse, config.latent_channels, 3, padding=1),
        )


class MiniDecoder(nn.Sequential):
    def __init__(self, config: MiniAutoencoderConfig) -> None:
        fine, middle, coarse = config.decoder_channels
        blocks = config.decoder_blocks
        super().__init__(
            nn.Conv2d(config.latent_channels, coarse, 3, padding=1),
            *residual_blocks(coarse, blocks[2]),
            Upsample(coarse, middle),
            *residual_blocks(middle, blocks[1]),
            Upsample(middle, fine),
            *residual_blocks(fine, blocks[0]),
            Upsample(fine, config.tail_channels),
            ResidualBlock(config.tail_channels),
            nn.Conv2d(config.tail_channels, 3 * TAIL_SCALE**2, 3, padding=1),
        )


class MiniAutoencoder(nn.Module):
    """Encode output-size pictures to klein-mini's latents, and decode them."""

    def __init__(self, config: MiniAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MiniEncoder(config)
        self.decoder = MiniDecoder(config)
        self.bn = nn.BatchNorm2d(
            4 * config.latent_channels, eps=config.batch_norm_eps, affine=False, track_running_stats=True
        )

    def compress(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], sides multiples of 128, to raw latents (B, C, H/64, W/64)."""
        canvas = F.avg_pool2d(image, CANVAS_SCALE)
        latents: Tensor = self.encoder(F.pixel_unshuffle(canvas, STEM_SCALE))
        return latents

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Map raw latents (B, C, h, w) to pictures (B, 3, 64h, 64w), about [-1, 1]."""
        return F.pixel_shuffle(self.decoder(latents), TAIL_SCALE)

    def encode(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], sides multiples of 128, to normalised (B, 4C, H/128, W/128)."""
        packed = patchify(self.compress(image))
        mean, std = self._statistics(packed)
        return (packed - mean) / std

    def decode(self, latents: Tensor) -> Tensor:
        """Map normalised (B, 4C, h, w) to (B, 3, 128h, 128w), clamped to [-1, 1]."""
        mean, std = self._statistics(latents)
        return self.reconstruct(unpatchify(latents * std + mean)).clamp(-1, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None and var is not None
        std = torch.sqrt(var + self.bn.eps)
        return mean.to(like.dtype)[:, None, None], std.to(like.dtype)[:, None, None]
