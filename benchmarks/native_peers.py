"""Feed the 4B to programs in C and C++ that implement it too, and time their denoise steps.

    python -m benchmarks.native_peers CHECKPOINT FOLDER

That writes into the folder what stable-diffusion.cpp reads (16 GB, and 8 GB more while it writes): the transformer in
its makers' layout and, by its own converter, in q8_0, and the text encoder in q8_0. Installed with this machine's own
instructions: CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON" pip install stable-diffusion-cpp-python.
"""

import argparse
import importlib
import itertools
import json
import os
import re
import resource
import struct
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

import torch

from benchmarks.loading import reset_peak, status
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.checkpoint import find_files
from openklein.engine.layouts import locate

PACKAGE: Final = "stable_diffusion_cpp"
FLOW: Final = {  # contender: the file of its transformer
    "stable-diffusion.cpp bf16": "transformer-bf16.safetensors",
    "stable-diffusion.cpp q8_0": "transformer-q8_0.gguf",
}
NATIVE: Final = (*FLOW, "flux2.c")
TEXT: Final = "text_encoder-q8_0.gguf"
COPIED_BYTES: Final = 2**26
PROMPT = "a red apple on a blue background"


@dataclass(frozen=True, slots=True)
class Span:
    """Where the bytes of a tensor, or of some of its rows, are in a file."""

    path: Path
    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    def halves(self) -> "list[Span]":
        rows, *rest = self.shape
        middle = (self.start + self.end) // 2
        ranges = ((self.start, middle), (middle, self.end))
        return [Span(self.path, start, end, self.dtype, (rows // 2, *rest)) for start, end in ranges]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the 4B in diffusers' layout")
    parser.add_argument("folder", type=Path, help="where to write; made if it does not exist")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    flow, quantized_flow = (arguments.folder / name for name in FLOW.values())
    write(flow, in_makers_layout(read_spans(find_files(arguments.checkpoint, KLEIN_4B.files["transformer"]))))
    convert(flow, quantized_flow)
    text = arguments.folder / "text_encoder.safetensors"
    shards = read_spans(find_files(arguments.checkpoint, KLEIN_4B.files["text_encoder"]))
    write(text, {key: [span] for key, span in shards.items()})
    convert(text, arguments.folder / TEXT)
    text.unlink()


def read_spans(paths: Sequence[Path]) -> dict[str, Span]:
    """Say where each tensor of safetensors files is."""
    spans = {}
    for path in paths:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for key, tensor in header.items():
            start, end = (8 + length + offset for offset in tensor["data_offsets"])
            spans[key] = Span(path, start, end, tensor["dtype"], tuple(tensor["shape"]))
    return spans


def in_makers_layout(spans: Mapping[str, Span]) -> dict[str, list[Span]]:
    """Say which rows, one after another, make each tensor of the makers' transformer."""
    parts: dict[str, dict[int, list[Span]]] = defaultdict(dict)
    for name, source in locate(spans, {"single_stream_modulation.lin.weight"}).items():
        span = spans[name]
        parts[source.key][source.part] = span.halves()[::-1] if source.has_swapped_halves else [span]
    return {key: [span for part in sorted(ranges) for span in ranges[part]] for key, ranges in parts.items()}


def write(path: Path, tensors: Mapping[str, Sequence[Span]]) -> None:
    """Write a safetensors file whose tensors are these rows, copied byte by byte."""
    header, end = {}, 0
    for key, spans in tensors.items():
        start, end = end, end + sum(span.end - span.start for span in spans)
        first = spans[0]
        shape = (sum(span.shape[0] for span in spans), *first.shape[1:])
        header[key] = {"dtype": first.dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for span in (span for spans in tensors.values() for span in spans):
            with span.path.open("rb") as source:
                source.seek(span.start)
                for start in range(span.start, span.end, COPIED_BYTES):
                    target.write(source.read(min(COPIED_BYTES, span.end - start)))


def convert(path: Path, target: Path) -> None:
    """Have stable-diffusion.cpp write a file of its own in q8_0."""
    package = importlib.import_module(PACKAGE)
    if not package.convert(bytes(path), b"", bytes(target), int(package.GGMLType.SD_TYPE_Q8_0), b"", False):
        raise SystemExit(f"stable-diffusion.cpp could not convert {path}")


def missing(contender: str, folder: Path | None, flux2c: Path | None) -> str | None:
    """Say what a contender in C or C++ lacks here, if anything."""
    if contender == "flux2.c":
        return None if flux2c else "not built: --flux2c names its program"
    if not find_spec(PACKAGE):
        return "stable-diffusion-cpp-python is not installed"
    return None if folder else "no files for it: --native names the folder that benchmarks.native_peers wrote"


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("stable-diffusion-cpp-python",) if find_spec(PACKAGE)}


def measure_cpp(checkpoint: Path, folder: Path, contender: str, side_px: int, steps: int) -> NoReturn:
    """Print the seconds of each step in stable-diffusion.cpp, and end the process.

    It ends within the callback of the last step, since the picture would be decoded after it.
    """
    output = os.dup(1)  # the package silences the file descriptor while it runs
    model = importlib.import_module(PACKAGE).StableDiffusion(
        diffusion_model_path=str(folder / FLOW[contender]),
        llm_path=str(folder / TEXT),
        vae_path=str(checkpoint / "vae" / "diffusion_pytorch_model.safetensors"),
        vae_decode_only=True,
        n_threads=torch.get_num_threads(),
        diffusion_flash_attn=True,  # 30.5 s a step in bf16 at 512x512, and 33.5 without
        verbose=False,
    )
    loaded = status("VmRSS")
    times: list[float] = []

    def on_progress(step: int, of: int, _: float) -> None:
        times.append(time.perf_counter())
        if step == 0:  # the prompt has been read
            reset_peak()
        if step == of:
            seconds = [after - before for before, after in itertools.pairwise(times)]
            result = {"seconds": seconds, "peak_mb": round((status("VmHWM") - loaded) / 1e6)}
            os.write(output, json.dumps(result).encode())
            os._exit(0)

    size = {"width": side_px, "height": side_px}
    model.generate_image(PROMPT, **size, sample_steps=steps, cfg_scale=1.0, progress_callback=on_progress)
    raise SystemExit(f"{contender} made a picture in fewer than {steps} steps")


def measure_c(checkpoint: Path, program: Path, side_px: int, steps: int) -> dict[str, Any]:
    """Give the seconds of each step in flux2.c, with random features of a prompt; it need not decode."""
    features = torch.randn(512, KLEIN_4B.transformer.joint_attention_dim).numpy()
    with tempfile.TemporaryDirectory() as work:
        Path(work, "text.bin").write_bytes(features.tobytes())
        options = ["-e", f"{work}/text.bin", "-o", f"{work}/picture.png", "-W", str(side_px), "-H", str(side_px), "-v"]
        command = [str(program), "-d", str(checkpoint), "-p", PROMPT, "-s", str(steps), *options]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr
            lines = []
            for line in process.stderr:
                lines.append(line)
                if "Total denoising" in line:
                    process.kill()
    seconds = [float(ms) / 1000 for ms in re.findall(r"^  Step \d+: ([\d.]+) ms", "".join(lines), re.MULTILINE)]
    if len(seconds) != steps:
        raise SystemExit(f"flux2.c ended with exit code {process.returncode}: {''.join(lines[-5:])}")
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of all it maps: it says not when it has loaded
    return {"seconds": seconds, "peak_mb": round(peak_kib * 1024 / 1e6)}


if __name__ == "__main__":
    main()
