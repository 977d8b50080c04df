"""Judge whether a model fits into memory before anything of it is loaded."""

from pathlib import Path
from typing import Final

import psutil
import torch
from torch import nn

LOADING_OVERHEAD: Final = 1.15  # memory that loading takes at its peak, in sizes of what is loaded
CGROUP: Final = Path("/sys/fs/cgroup")  # where a container on Linux sees its own limits


def weight_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Count the bytes of a module whose floating-point tensors have this dtype."""
    tensors = module.state_dict().values()
    return sum(
        tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors
    )


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
