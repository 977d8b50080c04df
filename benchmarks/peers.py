"""Time the stages of the 4B beside its peers in one sitting, on one checkpoint with random weights.

    python -m benchmarks.random_checkpoint CHECKPOINT
    python -m benchmarks.native_peers CHECKPOINT FOLDER
    python -m benchmarks.peers CHECKPOINT [--native FOLDER] [--flux2c PROGRAM] [--stages step-512 text] [--rounds 2]

Contenders take turns, each in a process of its own that loads nothing but the part it needs, once every round; the
first run in a process is not counted. Ratios are of the best times, with diffusers (or transformers) in bfloat16 as 1.
stable-diffusion.cpp and flux2.c, which prepare nothing in a first step, are left out unless given: `--native` is the
folder that the second line writes for the former, `--flux2c` the latter's program. The last line on stdout is one JSON
document. It takes 14 GB of memory. Linux only.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from benchmarks.loading import reset_peak, status
from benchmarks.native_peers import NATIVE, measure_c, measure_cpp, missing, versions
from benchmarks.report import comparison_report
from openklein.engine.autoencoder import Autoencoder
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.checkpoint import fill, find_files, match, read_headers
from openklein.engine.device import DeviceChoice
from openklein.engine.quantize import quantize_blocks
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.tokens import image_ids, text_ids
from openklein.engine.transformer import FlowTransformer
from openklein.engine.weights import empty_modules, used_layers

TEXT_TOKENS = 512
WARM_UP_PX = 256  # as the server warms up
CHOICE = DeviceChoice(torch.device("cpu"), torch.bfloat16, "asked for")
CORES: Final = os.cpu_count() or 1
STEP: Final = ("diffusers", "openklein", "diffusers compiled", "openklein int8", *NATIVE)
STAGES: Final = {  # stage: its contenders, the first of which is 1; runs that count in each process
    "step-512": (STEP, 2),
    "step-1024": (STEP, 1),
    "text": (("transformers", "openklein"), 2),
    "decode-1024": (("diffusers", "openklein", "openklein small decoder"), 2),
}
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the 4B in diffusers' layout")
    parser.add_argument("--native", type=Path, metavar="FOLDER", help="what benchmarks.native_peers wrote")
    parser.add_argument("--flux2c", type=Path, metavar="PROGRAM", help="flux2.c, built")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--contenders", nargs="+", help="only these; the first that takes part in a stage is its 1")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("STAGE", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments, *arguments.measure)))
        return
    rows = [row for stage in arguments.stages for row in compare(arguments, stage)]
    report = comparison_report("peers", rows)
    report["versions"] |= versions()
    print(json.dumps(report))


def compare(arguments: argparse.Namespace, stage: str) -> list[dict[str, Any]]:
    """Have the contenders of a stage take turns; print and return a row for each."""
    contenders = [name for name in STAGES[stage][0] if takes_part(name, arguments)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int] = {}
    others: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name in contenders:
            command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:], "--measure", stage, name]
            started, idle, own = time.perf_counter(), idle_seconds(), time_of_children()
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            took = time.perf_counter() - started
            others[name] = max(others.get(name, 0), CORES - (idle_seconds() - idle + time_of_children() - own) / took)
            result = json.loads(output.splitlines()[-1])
            seconds[name] += result["seconds"]
            peaks[name] = max(peaks.get(name, 0), result["peak_mb"])
            print(f"{stage:<12} {name:<26} {min(result['seconds']):8.2f} s {result['peak_mb']:>7} MB", flush=True)
    base = min(seconds[contenders[0]])
    return [
        {
            "stage": stage,
            "contender": name,
            "seconds": [round(second, 3) for second in seconds[name]],
            "times_as_fast": round(base / min(seconds[name]), 3),
            "peak_mb_over_loaded": peaks[name],
            "cores_taken_by_others": round(others[name], 2),
        }
        for name in contenders
    ]


def idle_seconds() -> float:
    """Read how long cores have been idle or waiting for a disk since the machine started."""
    _, _, _, _, idle, waiting, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


def time_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def takes_part(contender: str, arguments: argparse.Namespace) -> bool:
    """Tell whether a contender is asked for and can run; print why it cannot."""
    if arguments.contenders and contender not in arguments.contenders:
        return False
    lack = missing(contender, arguments.native, arguments.flux2c) if contender in NATIVE else None
    if lack:
        print(f"{contender} is left out: {lack}", flush=True)
    return lack is None


@torch.inference_mode()
def measure(arguments: argparse.Namespace, stage: str, contender: str) -> dict[str, Any]:
    """Load one part, run it once to warm up, then as often as counts; the peak is over what was loaded.

    It counts from the warm-up on where that is the same run, since what a first run frees stays with the process.
    """
    torch.manual_seed(0)
    checkpoint: Path = arguments.checkpoint
    if contender in NATIVE:
        side_px, steps = int(stage.removeprefix("step-")), STAGES[stage][1]
        if contender == "flux2.c":
            return measure_c(checkpoint, arguments.flux2c, side_px, steps)
        measure_cpp(checkpoint, arguments.native, contender, side_px, steps)
    make = {"text": make_text, "decode-1024": make_decode}.get(stage)
    if make:
        warm_up = run = make(checkpoint, contender)
    else:
        warm_up, run = make_step(checkpoint, contender, int(stage.removeprefix("step-")))
    reset_peak()
    loaded, mapped = status("VmRSS"), status("RssFile")
    warm_up()
    if warm_up is not run:
        reset_peak()
        loaded, mapped = status("VmRSS"), status("RssFile")
    seconds = []
    for _ in range(STAGES[stage][1]):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    read = status("RssFile") - mapped  # of mapped weights, which are not the run's own
    return {"seconds": seconds, "peak_mb": round((status("VmHWM") - loaded - read) / 1e6)}


def load_part(checkpoint: Path, part: str, *, quantized: bool = False) -> nn.Module:
    """Load one of our modules as the server would, and without the others."""
    modules = dict(
        zip(("text_encoder", "transformer", "autoencoder"), empty_modules(KLEIN_4B, KLEIN_4B.autoencoder), strict=True)
    )
    module, headers = modules[part], read_headers(find_files(checkpoint, KLEIN_4B.files[part]))
    if isinstance(module, TextEncoder):
        headers = used_layers(headers, KLEIN_4B.text_encoder)
    source = match(module, headers, part)
    if isinstance(module, FlowTransformer) and quantized:
        quantize_blocks(module, CHOICE, torch.int8)
    fill(module, source, headers, CHOICE)
    return module.eval()


def make_step(checkpoint: Path, contender: str, side_px: int) -> tuple[Run, Run]:
    """Prepare a warm-up, a smaller one where nothing is compiled, and one denoise step from a prompt."""
    text = torch.randn(1, TEXT_TOKENS, KLEIN_4B.transformer.joint_attention_dim).bfloat16()
    time_of_step = torch.full((1,), 0.75, dtype=torch.bfloat16)
    ours: Any = None
    if contender.startswith("openklein"):
        ours = load_part(checkpoint, "transformer", quantized=contender.endswith("int8"))
    else:
        theirs = Flux2Transformer2DModel.from_pretrained(checkpoint / "transformer", torch_dtype=torch.bfloat16)
    if contender.endswith("int8"):
        for block in ours.blocks:
            block.compile(fullgraph=True, dynamic=True)
    if contender.endswith("compiled"):
        for block in (*theirs.transformer_blocks, *theirs.single_transformer_blocks):
            block.compile(dynamic=False)

    def step(side_px: int) -> Run:
        side = side_px // KLEIN_4B.token_px
        image = torch.randn(1, side * side, KLEIN_4B.transformer.in_channels).bfloat16()
        if ours is not None:
            rotary = ours.rotary(torch.cat([text_ids(TEXT_TOKENS), image_ids(side, side)]))
            return lambda: ours(image, text, time_of_step, rotary)
        ids = {"img_ids": image_ids(side, side)[None], "txt_ids": text_ids(TEXT_TOKENS)[None]}
        return lambda: theirs(
            hidden_states=image, encoder_hidden_states=text, timestep=time_of_step, **ids, return_dict=False
        )

    return step(side_px if contender.endswith(("int8", "compiled")) else WARM_UP_PX), step(side_px)


def make_text(checkpoint: Path, contender: str) -> Run:
    """Prepare one prompt of 64 tokens, padded as the pipelines do."""
    ids = torch.randint(1000, (1, TEXT_TOKENS))
    mask = torch.arange(TEXT_TOKENS)[None] < 64
    if contender == "openklein":
        ours = load_part(checkpoint, "text_encoder")
        return lambda: ours(ids, mask)
    theirs = Qwen3ForCausalLM.from_pretrained(checkpoint / "text_encoder", dtype=torch.bfloat16)
    return lambda: theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False)


def make_decode(checkpoint: Path, contender: str) -> Run:
    """Prepare the decoding of one 1024 x 1024 picture in channels_last."""
    latents: Tensor
    if contender.startswith("openklein"):
        ours: Any = load_part(checkpoint, "autoencoder") if contender == "openklein" else make_small_autoencoder()
        ours.to(memory_format=torch.channels_last)
        latents = torch.randn(1, KLEIN_4B.transformer.in_channels, 64, 64).bfloat16()
        return lambda: ours.decode(latents)
    theirs = AutoencoderKLFlux2.from_pretrained(checkpoint / "vae", torch_dtype=torch.bfloat16)
    theirs.to(memory_format=torch.channels_last)
    latents = torch.randn(1, KLEIN_4B.transformer.in_channels // 4, 128, 128).bfloat16()
    return lambda: theirs.decode(latents.to(memory_format=torch.channels_last), return_dict=False)


def make_small_autoencoder() -> Autoencoder:
    """Make the variant with the smaller decoder, which the checkpoint lacks, with weights at random."""
    assert KLEIN_4B.small_autoencoder is not None
    return Autoencoder(KLEIN_4B.small_autoencoder).bfloat16().eval()


if __name__ == "__main__":
    main()
