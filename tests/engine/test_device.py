import platform

import pytest
import torch

from openklein.engine.device import choose_device, cpu_flags, cpu_vendor


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux lists the CPU's instruction sets in a file")
def test_cpu_flags_are_read() -> None:
    assert {"fpu", "sse2"} <= cpu_flags() or platform.machine() != "x86_64"
    assert all(flag and flag.strip() == flag for flag in cpu_flags())
    assert cpu_vendor().isalnum() or platform.machine() != "x86_64"


@pytest.mark.parametrize(
    ("vendor", "flags", "dtype", "reason"),
    [
        ("AuthenticAMD", {"avx512_bf16", "avx2"}, torch.bfloat16, "this AMD CPU has avx512_bf16"),
        ("GenuineIntel", {"amx_bf16", "avx512_bf16"}, torch.bfloat16, "this CPU has amx_bf16"),
        ("GenuineIntel", {"avx512_bf16", "avx2"}, torch.float32, "neither amx_bf16 nor AMD's avx512_bf16"),
        ("AuthenticAMD", {"avx2", "avx512f"}, torch.float32, "neither amx_bf16 nor AMD's avx512_bf16"),
        ("", set(), torch.float32, "neither amx_bf16 nor AMD's avx512_bf16"),
    ],
)
def test_the_cpu_gets_bfloat16_only_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, vendor: str, flags: set[str], dtype: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr("openklein.engine.device.cpu_vendor", lambda: vendor)
    monkeypatch.setattr("openklein.engine.device.cpu_flags", lambda: frozenset(flags))
    choice = choose_device("cpu")
    assert (choice.device, choice.dtype) == (torch.device("cpu"), dtype)
    assert reason in choice.reason


def test_a_named_dtype_is_kept() -> None:
    choice = choose_device("cpu", torch.float64)
    assert choice.dtype is torch.float64
    assert choice.reason == "torch.float64 was asked for"


def test_the_best_device_here_is_chosen() -> None:
    accelerator = torch.cuda.is_available() or torch.backends.mps.is_available()
    assert (choose_device().device.type == "cpu") is not accelerator
