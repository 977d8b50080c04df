"""Read a part of a model from safetensors files: judged by their headers first, then one tensor at a time.

No other format is opened. A tensor that has its final dtype already stays mapped from its file; any other is made of a
mapping of its own, which is given back at once, so that no two copies of a model are ever in memory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from openklein.engine.device import DeviceChoice
from openklein.engine.layouts import Source, locate
from openklein.engine.quantize import quantize_rows
from openklein.errors import WeightsInvalid, WeightsMissing

FLOATS: Final = ("F32", "F16", "BF16", "F8_E4M3")
MATRICES: Final = (*FLOATS, "I8")
SCALED: Final = {"F8_E4M3": "one number", "I8": "one number for each row"}  # that has to be stored beside such weights
DEQUANTIZED_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file, as the file's header has it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


def find_files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """List the files of the first pattern that has any; of sharded ones those that their index names.

    Raises WeightsMissing, naming the file.
    """
    for pattern in patterns:
        if indexes := sorted(folder.glob(f"{pattern}.index.json")):
            return sorted({shard for index in indexes for shard in read_index(index)})
        if found := sorted(folder.glob(pattern)):
            return found
    raise WeightsMissing(f"{folder / patterns[0]} does not exist; download the model's files into {folder}.")


def read_index(index: Path) -> list[Path]:
    """List the files that the index of a sharded checkpoint names, all of which must be there."""
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
        if not names:
            raise ValueError("it names no file")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsInvalid(f"{index} is not the index of a sharded checkpoint; download it again.") from error
    shards = [index.with_name(Path(str(name)).name) for name in names]
    for shard in shards:
        if not shard.exists():
            raise WeightsMissing(f"{shard} does not exist, but {index.name} names it; download it too.")
    return shards


def read_headers(paths: Sequence[Path]) -> dict[str, Stored]:
    """Give every tensor of the files by its key; raises WeightsInvalid for a file that is broken or one too many."""
    tensors: dict[str, Stored] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - the reader is no mapping
                    if key in tensors:
                        raise WeightsInvalid(f"{key} is both in {tensors[key].path} and in {path}; keep one of them.")
                    header = file.get_slice(key)
                    tensors[key] = Stored(path, tuple(header.get_shape()), header.get_dtype())
        except (SafetensorError, OSError) as error:
            raise WeightsInvalid(f"{path} is not a complete safetensors file ({error}); download it again.") from error
    return tensors


def match(module: nn.Module, tensors: Mapping[str, Stored], what: str) -> dict[str, Source]:
    """Say where each parameter of `module` is; raise WeightsInvalid unless the tensors are exactly those it needs.

    The error names the file and the first key that is missing, unexpected, or of another shape or type; `what` is the
    module's name in it. Scales of activations in fp8 files are passed over: only weights are kept in 8 bits.
    """
    parameters = module.state_dict()
    sources = locate(parameters, tensors.keys())
    paths = " and ".join(sorted({str(stored.path) for stored in tensors.values()}))

    def misfit(path: Path | str, problem: str) -> WeightsInvalid:
        return WeightsInvalid(f"{path} does not hold {what}: {problem}; put the right file there.")

    unused = set(tensors)
    for name, source in sources.items():
        stored = tensors.get(source.key)
        if stored is None:
            raise misfit(paths, f"it lacks {source.key}")
        unused.discard(source.key)
        shape = source.stored_shape(tuple(parameters[name].shape))
        if stored.shape != shape:
            raise misfit(stored.path, f"{source.key} has shape {stored.shape}, and {shape} is needed")
        dtypes = (MATRICES if len(shape) == 2 else FLOATS) if parameters[name].is_floating_point() else ("I64",)
        if stored.dtype not in dtypes:
            raise misfit(stored.path, f"{source.key} is stored as {stored.dtype}, and {' or '.join(dtypes)} is needed")
        if stored.dtype in SCALED:
            scale, fitting = tensors.get(f"{source.key}_scale"), [shape[:1]] if stored.dtype == "I8" else [(), (1,)]
            if scale is None or scale.shape not in fitting:
                needed = f"{source.key}_scale with {SCALED[stored.dtype]}"
                raise misfit(stored.path, f"{source.key} is stored as {stored.dtype}, and {needed} is needed")
            unused -= {f"{source.key}_scale", f"{source.key.removesuffix('weight')}input_scale"}
    for key in sorted(unused):
        raise misfit(tensors[key].path, f"{key} is not part of it")
    return sources


def fill(module: nn.Module, sources: Mapping[str, Source], tensors: Mapping[str, Stored], choice: DeviceChoice) -> None:
    """Give `module` its parameters, floating-point ones in the chosen dtype, fp8 and int8 ones with their scales.

    Where the file has such weights too, they are taken as they are.
    """

    def read(key: str) -> Tensor:
        with safe_open(tensors[key].path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(key)
        return tensor

    wanted = module.state_dict()
    filled: dict[str, Tensor] = {}
    for name, source in sources.items():
        tensor, scales = source.take(read(source.key)), None
        if tensors[source.key].dtype in SCALED:
            scales = read(f"{source.key}_scale").float()
            scales = source.take(scales) if scales.numel() > 1 else scales.expand(len(tensor))
        if scales is not None and tensor.dtype != wanted[name].dtype:
            tensor, scales = dequantize(tensor, scales, choice.dtype), None
        if wanted[name].dtype in (torch.float8_e4m3fn, torch.int8):
            tensor = tensor.to(choice.device)
            if scales is None:
                tensor, scales = quantize_rows(tensor, wanted[name].dtype)
            filled |= {name: tensor, f"{name}_scale": scales.to(choice.device).contiguous()}
        else:
            filled[name] = tensor.to(choice.device, choice.dtype if tensor.is_floating_point() else tensor.dtype)
    module.load_state_dict(filled, strict=True, assign=True)
    module.requires_grad_(False).eval()


def dequantize(stored: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply rows by their scales (R,), float32, and round once.

    That takes some rows at a time: the whole of a tensor in float32 would take twice it.
    """
    result = torch.empty(stored.shape, dtype=dtype)
    column = scales.reshape(-1, *[1] * (stored.ndim - 1))
    for rows, stored_rows, factors in zip(
        *(torch.split(tensor, DEQUANTIZED_ROWS) for tensor in (result, stored, column)), strict=True
    ):
        rows.copy_(stored_rows.float().mul_(factors))
    return result
