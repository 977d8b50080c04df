"""Turn latents into tokens and back, and give every token its place on four axes (t, h, w, l).

Layout from FLUX.2's `prc_img`, `prc_txt` and reference handling (black-forest-labs/flux2, `sampling.py`):
target tokens (0, row, column, 0), text tokens (0, 0, 0, index), tokens of reference k (10 + 10k, row, column, 0).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

REFERENCE_TIME_STEP = 10

Grid = tuple[int, int]  # rows and columns of tokens


def patchify(latents: Tensor) -> Tensor:
    """Fold 2x2 positions into channels: (B, C, 2h, 2w) to (B, 4C, h, w), channel index c*4 + row*2 + column."""
    b, c, h, w = latents.shape
    folded = latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return folded.reshape(b, 4 * c, h // 2, w // 2)


def unpatchify(latents: Tensor) -> Tensor:
    """Undo `patchify`: (B, 4C, h, w) to (B, C, 2h, 2w)."""
    b, c, h, w = latents.shape
    unfolded = latents.reshape(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return unfolded.reshape(b, c // 4, 2 * h, 2 * w)


def pack(latents: Tensor) -> Tensor:
    """List the positions of (B, C, h, w) row by row as tokens (B, h*w, C)."""
    return latents.flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Lay tokens (B, h*w, C) out as latents (B, C, h, w)."""
    return torch.unflatten(tokens.transpose(1, 2), 2, (height, width))


def text_ids(length: int) -> Tensor:
    """Give the position ids of `length` text tokens, int64 (length, 4)."""
    ids = torch.zeros(length, 4, dtype=torch.int64)
    ids[:, 3] = torch.arange(length)
    return ids


def image_ids(height: int, width: int, time: int = 0) -> Tensor:
    """Give the position ids of a (height, width) grid of tokens, int64 (height*width, 4)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    times = torch.full_like(rows, time)
    return torch.stack([times, rows, columns, torch.zeros_like(rows)], dim=-1).reshape(-1, 4)


def reference_ids(grids: Sequence[Grid]) -> Tensor:
    """Give the position ids of the references of one sample, each with a time of its own, int64 (N, 4)."""
    times = range(REFERENCE_TIME_STEP, REFERENCE_TIME_STEP * (len(grids) + 1), REFERENCE_TIME_STEP)
    per_reference = [image_ids(h, w, time) for (h, w), time in zip(grids, times, strict=True)]
    return torch.cat([torch.zeros(0, 4, dtype=torch.int64), *per_reference])
