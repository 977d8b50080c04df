"""Measure how much memory loading takes at its peak, in sizes of the loaded weights.

    python -m benchmarks.loading [--hidden 768] [--full-size CHECKPOINT]

Writes transformers with random weights, shaped as the 4B's but narrower, in each published layout, loads each in a
process of its own that then reads every weight once, and prints a table; then the same with all parts of a whole
checkpoint, such as `benchmarks.random_checkpoint` writes. The last line on stdout is one JSON document. The mark is
1.15. Linux only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.engine import describe_machine
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.checkpoint import fill, match, read_headers
from openklein.engine.device import DeviceChoice
from openklein.engine.layouts import locate
from openklein.engine.memory import LOADING_OVERHEAD, weight_bytes
from openklein.engine.transformer import FlowTransformer, TransformerConfig
from openklein.engine.weights import load_card

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
CASES = [  # layout, dtype in the file, dtype when loaded
    ("diffusers", torch.bfloat16, torch.bfloat16),
    ("diffusers", torch.bfloat16, torch.float32),
    ("diffusers", torch.float32, torch.bfloat16),
    ("single file", torch.bfloat16, torch.bfloat16),
    ("single file", FP8, torch.bfloat16),
    ("single file", FP8, torch.float32),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768, help="width, a multiple of 128; the 4B has 3072")
    parser.add_argument("--full-size", type=Path, metavar="CHECKPOINT", help="a diffusers folder of the 4B")
    parser.add_argument("--load", nargs=2, metavar=("FILE", "DTYPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = narrow(arguments.hidden)
    if arguments.load:
        path, dtype = Path(arguments.load[0]), getattr(torch, arguments.load[1])
        load = partial(load_checkpoint, path) if path.is_dir() else partial(load_transformer, config, path)
        print(json.dumps(measure(load, dtype)))
        return
    print(f"{'layout':<14} {'stored':<14} {'loaded':<9} {'weights MB':>10} {'peak MB':>8} {'ratio':>6} {'s':>6}")
    results = []
    for layout, stored, loaded in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "transformer.safetensors"
            write(path, config, layout, stored)
            results.append(measure_apart(path, layout, stored, loaded, arguments.hidden))
    if arguments.full_size:
        bfloat16 = torch.bfloat16
        results.append(measure_apart(arguments.full_size, "the whole 4B", bfloat16, bfloat16, arguments.hidden))
    report = {"benchmark": "loading", "date": date.today().isoformat(), "mark": LOADING_OVERHEAD, "results": results}
    print(json.dumps({**report, "machine": describe_machine("cpu", torch.get_num_threads())}))


def measure_apart(
    path: Path, layout: str, stored: torch.dtype, loaded: torch.dtype, hidden: int
) -> dict[str, str | float]:
    """Measure in a process of its own, and print a row."""
    command = [sys.executable, "-m", "benchmarks.loading", "--hidden", str(hidden), "--load", str(path), name(loaded)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(
        f"{layout:<14} {name(stored):<14} {name(loaded):<9} {found['weights_mb']:>10} {found['peak_mb']:>8} "
        f"{found['ratio']:>6} {found['seconds']:>6}"
    )
    return {"layout": layout, "stored": name(stored), "loaded": name(loaded), **found}


def narrow(hidden: int) -> TransformerConfig:
    return replace(KLEIN_4B.transformer, num_heads=hidden // KLEIN_4B.transformer.head_dim)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write(path: Path, config: TransformerConfig, layout: str, dtype: torch.dtype) -> None:
    """Write random weights; in the single file those of blocks may be fp8, each with a scale."""
    with torch.device("meta"):
        shapes = {key: tensor.shape for key, tensor in FlowTransformer(config).state_dict().items()}
    if layout == "single file":
        shapes = makers_shapes(shapes)
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        is_fp8 = dtype == FP8 and len(shape) == 2 and "_blocks." in key
        tensors[key] = torch.randn(shape).to(dtype if is_fp8 or dtype != FP8 else torch.bfloat16)
        if is_fp8:
            tensors[f"{key}_scale"] = torch.tensor(0.01)
    save_file(tensors, path)


def makers_shapes(shapes: Mapping[str, torch.Size]) -> dict[str, torch.Size]:
    """Give the makers' tensors in which these parameters are."""
    sources = locate(shapes, {"single_stream_modulation.lin.weight"})
    return {source.key: torch.Size(source.stored_shape(tuple(shapes[key]))) for key, source in sources.items()}


def load_transformer(config: TransformerConfig, path: Path, dtype: torch.dtype) -> list[nn.Module]:
    with torch.device("meta"):
        module = FlowTransformer(config)
    headers = read_headers([path])
    fill(module, match(module, headers, "the transformer"), headers, DeviceChoice(CPU, dtype, "asked for"))
    return [module]


def load_checkpoint(folder: Path, dtype: torch.dtype) -> list[nn.Module]:
    pipeline = load_card(KLEIN_4B, folder, DeviceChoice(CPU, dtype, "asked for"))
    return [module for module in vars(pipeline).values() if isinstance(module, nn.Module)]


def measure(load: Callable[[torch.dtype], list[nn.Module]], dtype: torch.dtype) -> dict[str, float]:
    """Load, read every weight, and compare the most memory ever used with what was used before."""
    torch.set_num_threads(1)
    reset_peak()
    before = status("VmRSS")
    started = time.perf_counter()
    modules = load(dtype)
    seconds = time.perf_counter() - started
    for module in modules:
        for tensor in module.state_dict().values():
            assert bool(torch.isfinite(tensor.sum()))
    peak, weights = status("VmHWM") - before, sum(weight_bytes(module, dtype) for module in modules)
    return {
        "weights_mb": round(weights / 1e6),
        "peak_mb": round(peak / 1e6),
        "ratio": round(peak / weights, 3),
        "seconds": round(seconds, 2),
    }


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def status(field: str) -> int:
    """Read a number of bytes from what Linux says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


if __name__ == "__main__":
    main()
