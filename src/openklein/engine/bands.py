"""Convolve large pictures on CPUs band by band, each let go of as soon as it is used.

Little is in memory but what goes in or comes out, and there are no seams: a band is convolved with the rows next to it,
and normalised by the mean and variance of the whole picture.
"""

from collections.abc import Callable, Iterator
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE: Final = 2**22  # numbers in a picture from which on it is cut
COUNT: Final = 32  # bands of a picture, at most
SUMMED: Final = 2**18  # numbers that are summed in float32, before their sums are added in float64

Bands = list[Tensor]  # (1, C, rows, W) each, from top to bottom


def is_worth_cutting(x: Tensor) -> bool:
    """Tell whether x (B, C, H, W) is one picture on a CPU, and a large one."""
    return x.device.type == "cpu" and len(x) == 1 and x.numel() >= LARGE


def cut(x: Tensor) -> Bands:
    return list(torch.split(x, -(-x.shape[2] // COUNT), dim=2))


def convolve(conv: nn.Conv2d, prepare: Callable[[Tensor], Tensor], bands: Bands, *, scale: int = 1) -> Iterator[Tensor]:
    """Convolve what `prepare` makes of each band, by 3x3 with zeros around the picture, and leave `bands` empty.

    `prepare` gets a band with the row above and the one below it, where there are any, and makes `scale` rows of each.
    """
    above: list[Tensor] = []
    while bands:
        band, below = bands.pop(0), [following[:, :, :1] for following in bands[:1]]
        margins = [1 - scale if row else 1 for row in (above, below)]  # of the rows made of a neighbour, one is needed
        prepared = prepare(torch.cat([*above, band, *below], dim=2))
        above = [band[:, :, -1:].clone()]
        if any(margins):
            prepared = F.pad(prepared, (0, 0, *margins))
        del band
        yield F.conv2d(prepared, conv.weight, conv.bias, padding=(0, 1))


def normaliser(norm: nn.GroupNorm, bands: Bands) -> Callable[[Tensor], Tensor]:
    """Give what makes silu(norm(picture)) of any rows of the picture."""
    mean, variance = statistics(bands, norm.num_groups)
    weight, bias = norm.weight.float(), norm.bias.float()

    def normalise(rows: Tensor) -> Tensor:
        return F.silu(F.batch_norm(rows, mean, variance, weight, bias, eps=norm.eps), inplace=True)

    return normalise


def statistics(bands: Bands, groups: int) -> tuple[Tensor, Tensor]:
    """Give mean and variance of the group of each channel, float32 (C,)."""
    _, channels, _, width = bands[0].shape
    sums = torch.zeros(2, channels, dtype=torch.float64)
    for band in bands:
        for rows in torch.split(band, max(1, SUMMED // (channels * width)), dim=2):
            numbers = rows.float()
            sums += torch.stack([numbers.sum(dim=(0, 2, 3)), numbers.square().sum(dim=(0, 2, 3))])
    count = width * sum(band.shape[2] for band in bands)
    mean, square = torch.unflatten(sums / count, 1, (groups, -1)).mean(dim=-1)
    each = channels // groups
    return mean.float().repeat_interleave(each), (square - mean.square()).float().repeat_interleave(each)
