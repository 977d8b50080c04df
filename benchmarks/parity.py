"""Compare the model with diffusers and transformers at its full size, stage by stage.

    python -m benchmarks.random_checkpoint CHECKPOINT
    python -m benchmarks.parity --full-size CHECKPOINT [--work FOLDER]

One denoise step for each workflow at 256x256 in float32 and one at 1024x1024 in bfloat16, on a checkpoint with random
weights. Ours and theirs run one after the other, each in a process of its own, and leave what they made in the work
folder: a run that was interrupted goes on where it ended. It takes 20 GB of memory and a quarter of an hour on two
cores. The error is the relative one in the 2-norm; every stage also runs with a bug, which must miss by a factor of
100. The last line on stdout is one JSON document. Small sizes, at every aspect ratio, are in `tests/parity`.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.parity_sides import CARD, PROMPTS, RUNS, our_pictures, our_text, reference_pictures, reference_text
from benchmarks.report import comparison_report
from openklein.contract import RESOLUTIONS
from openklein.engine.schedule import sigmas

TOLERANCE, PIPELINE_TOLERANCE, PSNR, BUG_FACTOR = 1e-5, 1e-4, 50.0, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-size", type=Path, required=True, metavar="CHECKPOINT", help="the diffusers folder")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "openklein-parity")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        run_job(arguments.full_size, arguments.work, *arguments.job)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    for dtype in RUNS:
        for stage in ("text", "pictures"):
            for side in ("reference", "ours"):
                if not result_path(arguments.work, side, stage, dtype).exists():
                    print(f"{side} {stage} in {dtype}", file=sys.stderr, flush=True)
                    command = [sys.executable, "-m", "benchmarks.parity", "--full-size", str(arguments.full_size)]
                    subprocess.run([*command, "--work", str(arguments.work), "--job", side, stage, dtype], check=True)
    rows = [*compare_schedule(), *compare_float32(arguments.work), *compare_bfloat16(arguments.work)]
    for row in rows:
        print(f"{row['run']:<28} {row['stage']:<34} {row['measured']:>10.3g} {row['bound']:>9g} {row['bug']:>10.3g}")
    print(json.dumps(comparison_report("parity", rows)))


def result_path(work: Path, side: str, stage: str, dtype: str) -> Path:
    return work / f"{stage}-{side}-{dtype}.safetensors"


@torch.inference_mode()
def run_job(checkpoint: Path, work: Path, side: str, stage: str, dtype_name: str) -> None:
    """Make one side's tensors of a stage; they count only once they are all there."""
    dtype: torch.dtype = getattr(torch, dtype_name)
    if stage == "text":
        make = our_text if side == "ours" else reference_text
        tensors = make(checkpoint, dtype)
    else:
        text = load_file(result_path(work, side, "text", dtype_name))["short"]
        theirs = load_file(result_path(work, "reference", stage, dtype_name)) if side == "ours" else {}
        tensors = (
            our_pictures(checkpoint, dtype, text, theirs) if theirs else reference_pictures(checkpoint, dtype, text)
        )
    path = result_path(work, side, stage, dtype_name)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)


def error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """Give the peak signal-to-noise ratio in dB of two pictures from -1 to 1, rounded to 8 bits."""
    a, b = ((127.5 * (pixels.double() + 1)).round() for pixels in (ours, theirs))
    return float(10 * torch.log10(255**2 / (a - b).square().mean()))


def row(run: str, stage: str, measured: float, bug: float, bound: float = TOLERANCE) -> dict[str, Any]:
    """Hold a measured figure against its bound, and the bug's against the hundredfold."""
    is_psnr = bound == PSNR
    passed = measured >= bound if is_psnr else measured <= bound
    seen = bug <= bound - 10 * math.log10(BUG_FACTOR) if is_psnr else bug >= BUG_FACTOR * bound
    return {"run": run, "stage": stage, "measured": measured, "bound": bound, "bug": bug, "ok": passed and seen}


def compare_schedule() -> list[dict[str, Any]]:
    rows = []
    for name, (width, height) in RESOLUTIONS.items():
        count = width // CARD.token_px * (height // CARD.token_px)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 4, 4), mu=compute_empirical_mu(count, 4))
        ours, wrong = torch.tensor(sigmas(count, 4)), torch.tensor(sigmas(2 * count, 4))
        rows.append(row(name, "schedule, 4 steps", error(ours, scheduler.sigmas), error(wrong, scheduler.sigmas)))
    return rows


def compare_float32(work: Path) -> list[dict[str, Any]]:
    ours, theirs = (load_file(result_path(work, side, "text", "float32")) for side in ("ours", "reference"))
    bug = error(ours["bug"], theirs["short"])
    rows = [row(f"{name} prompt", "prompt embeddings", error(ours[name], theirs[name]), bug) for name in PROMPTS]
    ours, theirs = (load_file(result_path(work, side, "pictures", "float32")) for side in ("ours", "reference"))
    size, workflows = RUNS["float32"]
    targets = (size // CARD.token_px) ** 2
    shared_time = ours["multi-reference ids"].clone()
    shared_time[:, 0].clamp_(max=10)
    bugs = {
        "ids": error(shared_time, theirs["multi-reference ids"]),
        "references": error(ours["bug references"], theirs["multi-reference tokens"][:, targets:]),
        "latents": error(ours["bug latents"], theirs["multi-reference latents"]),
        "pixels": error(ours["bug pixels"], theirs["multi-reference pixels"]),
    }
    for name, count in workflows.items():
        assert theirs[f"{name} pixels"].std() > 0.2
        rows.append(row(name, "position ids", error(ours[f"{name} ids"], theirs[f"{name} ids"]), bugs["ids"]))
        if count:
            encoded = error(ours[f"{name} references"], theirs[f"{name} tokens"][:, targets:])
            rows.append(row(name, "autoencoder, encode", encoded, bugs["references"]))
        start = theirs[f"{name} tokens"][:, :targets]
        velocity = error(start - ours[f"{name} latents"], theirs[f"{name} velocity"][:, :targets])
        wrong = error(start - ours["bug latents"], theirs["multi-reference velocity"][:, :targets])
        rows.append(row(name, "velocity, from our own embeddings", velocity, wrong))
        rows.append(
            row(name, "autoencoder, decode", error(ours[f"{name} decoded"], theirs[f"{name} pixels"]), bugs["pixels"])
        )
        whole = error(ours[f"{name} pixels"], theirs[f"{name} pixels"])
        rows.append(row(name, "whole picture", whole, bugs["pixels"], PIPELINE_TOLERANCE))
    return rows


def compare_bfloat16(work: Path) -> list[dict[str, Any]]:
    ours, theirs = (load_file(result_path(work, side, "pictures", "bfloat16")) for side in ("ours", "reference"))
    expected, name = theirs["text-to-image pixels"], "text-to-image, 1024, bf16"
    bug = psnr(ours["bug pixels"], expected)
    matched = psnr(ours["matched pixels"], expected)
    return [
        row(name, "picture, casts matched, PSNR in dB", matched, bug, PSNR),
        row(name, "picture as served, PSNR in dB", psnr(ours["text-to-image pixels"], expected), bug, PSNR),
    ]


if __name__ == "__main__":
    main()
