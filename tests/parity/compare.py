"""Measure how far our modules are from the reference libraries'."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Levels = np.ndarray[Any, np.dtype[np.int16]]

TOLERANCE = 1e-5  # relative, in float32
PIPELINE_TOLERANCE = 1e-4  # of whole pictures, before they are rounded to 8 bits
BFLOAT16_PSNR = 50.0  # dB, of whole pictures in 8 bits
BUG_FACTOR = 100  # a wrong implementation must miss the tolerance by this much, as mean square error where it is a PSNR


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Give ||ours - theirs|| / ||theirs|| of two tensors of the same shape."""
    assert ours.shape == theirs.shape
    return float(torch.linalg.vector_norm((ours - theirs).double()) / torch.linalg.vector_norm(theirs.double()))


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(ours, theirs) <= tolerance


def assert_far(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(ours, theirs) >= BUG_FACTOR * tolerance


def psnr(ours: Levels, theirs: Levels) -> float:
    """Give the peak signal-to-noise ratio in dB of two pictures in 8 bits, infinite where they are equal."""
    error = float(np.square((ours - theirs).astype(np.float64)).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter and running statistic so that signals keep their size and every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    statistics = [(name, tensor) for name, tensor in module.named_buffers() if "running_" in name]
    for name, tensor in [*module.named_parameters(), *statistics]:
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        elif name.endswith("running_var"):
            tensor.copy_(1 + 2 * noise.abs())
        elif name.endswith("weight"):  # of a norm
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.3 * noise)
