"""Choose device and dtype once, and keep the reason."""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where the model runs, in which floating-point type, and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str


def choose_device(device: str | None = None, dtype: torch.dtype | None = None) -> DeviceChoice:
    """Pick the fastest device here and its best dtype, where the caller does not name them."""
    name = device or _best_device()
    best_dtype, reason = _best_dtype(torch.device(name))
    if dtype is not None:
        reason = f"{dtype} was asked for"
    return DeviceChoice(torch.device(name), dtype or best_dtype, reason)


def cpu_flags() -> frozenset[str]:
    """List the instruction sets that Linux reports for this CPU; empty on other systems."""
    return frozenset(_cpuinfo("flags").split())


def cpu_vendor() -> str:
    """Name who designed this CPU as Linux reports it, such as `AuthenticAMD`; empty on other systems."""
    return _cpuinfo("vendor_id")


def device_memory_bytes() -> int:
    """Count the bytes that tensors take on the GPU; where there is none, those that this process has in memory."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    if torch.backends.mps.is_available():
        return torch.mps.current_allocated_memory()
    resident: int = psutil.Process().memory_info().rss
    return resident


def multiplies_fp8(device: torch.device) -> bool:
    """Tell whether a device multiplies matrices in fp8: NVIDIA GPUs from Ada and Hopper on."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 9)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock tells its time; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _cpuinfo(key: str) -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _best_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU multiplies bfloat16 natively"
        return torch.float32, "this GPU has no native bfloat16"
    if device.type == "cpu":
        flags = cpu_flags()
        if "amx_bf16" in flags:
            return torch.bfloat16, "this CPU has amx_bf16"
        if "avx512_bf16" in flags and cpu_vendor() == "AuthenticAMD":
            return torch.bfloat16, "this AMD CPU has avx512_bf16"
        # Intel's avx512_bf16 multiplies at half the rate of its float32
        return torch.float32, "this CPU has neither amx_bf16 nor AMD's avx512_bf16, without which bfloat16 is slow"
    if torch.backends.mps.is_macos_or_newer(14, 0):
        return torch.bfloat16, "Apple GPUs have bfloat16 from macOS 14 on"
    return torch.float32, "Apple GPUs have bfloat16 from macOS 14 on only"
