"""Judge whether a model fits into memory before anything of it is loaded."""

from math import ceil
from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

from openklein.contract import MAX_REFERENCES, RESOLUTIONS
from openklein.engine.catalog import ModelCard

LOADING_OVERHEAD: Final = 1.15  # memory that loading takes at its peak, in sizes of what is loaded
WORKING_WIDTHS: Final = 24  # numbers in memory for each token where a block needs most, in widths of the transformer
MAX_TEXT_TOKENS: Final = 512
CGROUP: Final = Path("/sys/fs/cgroup")  # where a container on Linux sees its own limits


def weight_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Count the bytes of a module whose floating-point tensors have this dtype, but for those in fp8."""

    def itemsize(tensor: torch.Tensor) -> int:
        return dtype.itemsize if tensor.is_floating_point() and tensor.itemsize > 1 else tensor.itemsize

    return sum(tensor.numel() * itemsize(tensor) for tensor in module.state_dict().values())


def working_bytes(card: ModelCard, dtype: torch.dtype) -> int:
    """Bound the bytes, beside the weights, that the largest request takes: one with as many references as are allowed.

    The transformer's tokens decide; encoding and decoding take less than they do with four references.
    """
    target = max(ceil(width / card.token_px) * ceil(height / card.token_px) for width, height in RESOLUTIONS.values())
    reference = ceil(card.reference_max_area / card.token_px**2) if card.reference_max_area else target
    tokens = MAX_TEXT_TOKENS + target + MAX_REFERENCES * reference
    samples = 1 if card.guidance == 1 else 2
    return WORKING_WIDTHS * samples * tokens * card.transformer.hidden_size * dtype.itemsize


def available_bytes(device: torch.device) -> int | float:
    """Count the bytes that a program may still take on a device, without swapping."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return min(psutil.virtual_memory().available, container_bytes(CGROUP))


def container_bytes(cgroup: Path) -> int | float:
    """Count the bytes that a container's limit leaves; infinite where there is none. Cached files do not count."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else int(limit) - used + int(statistics["inactive_file"])
