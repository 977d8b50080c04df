"""Compute on the GPU where there is one, in the floating-point type that the device multiplies fastest."""

import torch

from openklein.engine.device import choose_device

_CHOICE = choose_device("cuda" if torch.cuda.is_available() else "cpu")
DEVICE, FAST_DTYPE = _CHOICE.device, _CHOICE.dtype
BATCH_SCALE = 16 if DEVICE.type == "cuda" else 1  # batches of a size that two CPU cores train best on leave a GPU idle


def autocast() -> torch.autocast:
    """Compute matrix products in bfloat16 where the device has it natively; elsewhere it takes four times as long."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=FAST_DTYPE is torch.bfloat16)
