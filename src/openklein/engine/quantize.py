"""Keep the transformer's large weights in 8 bits, fp8 (e4m3) or int8, with one scale for each row of a matrix.

Only the linear layers inside its blocks are quantised, 95 % of the weights. Embedders, modulation and output, which are
small and touch everything, stay as they are, as in the presets of SGLang and others.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openklein.engine.device import DeviceChoice, cpu_flags, multiplies_fp8
from openklein.engine.transformer import FlowTransformer
from openklein.errors import InvalidSetting
from openklein.settings import Quantization

FP8: Final = torch.float8_e4m3fn
DTYPES: Final[dict[Quantization, torch.dtype]] = {"fp8": FP8, "int8": torch.int8}
FP8_MAX: Final = torch.finfo(FP8).max
INT8_MAX: Final = 127  # so that negative numbers round as positive ones do
INT8_FLAGS: Final = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


class Fp8Linear(nn.Module):
    """A linear layer without bias: weight in fp8 (out, in), weight_scale in float32 (out,).

    Where `is_native`, rows of the input are rounded to fp8 too and multiplied as such, in bfloat16 out; both sides must
    be multiples of 16. Elsewhere the weight is turned into the input's dtype, which is exact, for each product.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, *, is_native: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=FP8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))
        self.is_native = is_native

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_native:
            return F.linear(x, self.weight.to(x.dtype)) * self.weight_scale.to(x.dtype)
        values, scale = quantize_rows(x.flatten(0, -2))
        out = torch._scaled_mm(
            values, self.weight.t(), scale_a=scale[:, None], scale_b=self.weight_scale[None], out_dtype=x.dtype
        )
        return torch.unflatten(out, 0, x.shape[:-1])


class Int8Linear(nn.Module):
    """A linear layer without bias: weight in int8 (out, in), weight_scale in float32 (out,).

    Rows of the input are rounded to int8 too and multiplied as such, exactly; the result has the input's dtype.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(out_features, in_features, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        values, scale = quantize_rows(x.flatten(0, -2), torch.int8)
        product = torch._int_mm(values, self.weight.t())  # int32
        out = (product.float() * scale[:, None] * self.weight_scale).to(x.dtype)
        return torch.unflatten(out, 0, x.shape[:-1])


def quantize_rows(x: Tensor, dtype: torch.dtype = FP8) -> tuple[Tensor, Tensor]:
    """Round x (R, C) to fp8 or int8, each row by a scale that brings its largest value to 448 or 127.

    Scales are float32 (R,).
    """
    limit = FP8_MAX if dtype == FP8 else INT8_MAX
    scale = x.abs().amax(dim=-1).float().clamp(min=torch.finfo(torch.float32).tiny * limit) / limit
    values = x.float() / scale[:, None]
    return (values if dtype == FP8 else values.round()).to(dtype), scale


def quantize_blocks(transformer: FlowTransformer, choice: DeviceChoice, dtype: torch.dtype = FP8) -> None:
    """Put fp8 or int8 layers in the place of those in the blocks, before any weights are there."""
    is_native = choice.dtype == torch.bfloat16 and multiplies_fp8(choice.device)

    def quantized(layer: nn.Linear) -> Fp8Linear | Int8Linear:
        if dtype == FP8:
            return Fp8Linear(layer.in_features, layer.out_features, is_native=is_native)
        return Int8Linear(layer.in_features, layer.out_features)

    for block in transformer.blocks:
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear):
                with torch.device("meta"):
                    block.set_submodule(name, quantized(layer))


def check_quantization(quantization: Quantization, device: torch.device) -> None:
    """Raise InvalidSetting for a kind of weights that this device does not run."""
    if quantization == "fp8" and device.type != "cuda":
        raise InvalidSetting(f"--quantize fp8 is for NVIDIA GPUs, and the model runs on {device.type}; leave it out.")
    if quantization == "int8" and device.type != "cpu":
        raise InvalidSetting(f"--quantize int8 is for CPUs, and the model runs on {device.type}; leave it out.")
    if quantization == "int8" and not INT8_FLAGS & cpu_flags():
        raise InvalidSetting(
            f"--quantize int8 needs a CPU with one of {', '.join(sorted(INT8_FLAGS))}, without which it is slow; "
            "leave it out."
        )
