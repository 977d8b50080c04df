"""Measure one image after another through the API, as a client on this machine sees it.

    python -m benchmarks.engine [--device cpu] [--model klein-mini] [--images 20] [--aspect square] [--cores 2]
    python -m benchmarks.engine --crowded
    python -m benchmarks.engine --device cuda [--compile] [--quantize fp8]

Starts a server of its own and prints a table: latency by stage, PNG encoding, loading, memory, and the matrix-product
ceiling of this machine beside them. On a CPU the model is klein-mini and the server has the first `--cores` cores; on
a GPU it is flux2-klein-4b from the data folder, and the goal on an H100 is a p50 under 0.40 s and a p95 under 0.6 s.
The last line on stdout is one JSON document. Run it on a Linux machine that does nothing else.
"""

import argparse
import json
import os
import platform
import re
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from openklein.contract import DEFAULT_MODEL, MINI_MODEL, RESOLUTIONS, SERVABLE_MODEL_IDS
from openklein.engine.device import choose_device, cpu_flags, synchronize
from openklein.engine.images import encode_png
from openklein.engine.weights import installed, load_pipeline
from openklein.settings import Settings

PROMPT = "a red apple on a blue background"
START_TIMEOUT_S = 600
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
RELEVANT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


def main() -> None:
    arguments = parse_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"--device cuda: PyTorch {torch.__version__} sees no CUDA device; docs/deploy.md says which to install"
        )
    if not installed(arguments.model, arguments.settings.models_dir):
        sys.exit(
            f"{arguments.model} is not installed in {arguments.settings.models_dir}; `openklein models pull "
            f"{arguments.model}` downloads it, and benchmarks.random_checkpoint writes one with random weights"
        )
    if arguments.device == "cpu":
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))  # inherited by the server
        torch.set_num_threads(arguments.cores)
    with running_server(arguments) as (client, process_id):
        if arguments.crowded:
            crowd(process_id)
        picture = generate(client, arguments.model, "landscape", seed=0)[1]
        samples = [
            generate(client, arguments.model, arguments.aspect, seed)[0]
            for seed in range(arguments.images + arguments.warm_up)
        ]
        peak_bytes, device_bytes = peak_memory(process_id), device_memory(client)
    width, height = RESOLUTIONS[arguments.aspect]
    report = {
        "benchmark": "engine",
        "model": arguments.model,
        "quantize": arguments.quantize,
        "compile": arguments.compile,
        "size": [width, height],
        "images": arguments.images,
        "crowded": arguments.crowded,
        "machine": describe_machine(arguments.device, arguments.cores),
        "latency_s": by_stage(samples[arguments.warm_up :]),
        "png_1344x768_s": summarize([timed(lambda: encode_png(picture, {"seed": "0"})) for _ in range(30)]),
        "load_s": summarize([timed(lambda: load(arguments)) for _ in range(3)]),
        "peak_rss_mb": round(peak_bytes / 1e6),
        "device_memory_mb": round(device_bytes / 1e6),
        "matmul_gflops": {
            str(dtype): round(matmul_gflops(arguments.device, dtype)) for dtype in (torch.bfloat16, torch.float32)
        },
    }
    print_table(report)
    print(json.dumps(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs (default cpu)")
    parser.add_argument("--model", choices=SERVABLE_MODEL_IDS, help="default klein-mini on a CPU, else the 4B")
    parser.add_argument("--data-dir", help="data folder with models/<id> (default: the server's own)")
    parser.add_argument("--quantize", default="none", help="as of openklein serve")
    parser.add_argument("--compile", action="store_true", help="as of openklein serve")
    parser.add_argument("--images", type=int, default=20, help="images to time (default 20)")
    parser.add_argument("--warm-up", type=int, default=3, help="images before the first that counts (default 3)")
    parser.add_argument("--aspect", choices=RESOLUTIONS, default="square", help="aspect ratio (default square)")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for the server (default 2)")
    parser.add_argument("--crowded", action="store_true", help="once it runs, leave the server one of its cores")
    arguments = parser.parse_args()
    arguments.settings = Settings.load(os.environ, {"data_dir": arguments.data_dir} if arguments.data_dir else {})
    arguments.model = arguments.model or (MINI_MODEL if arguments.device == "cpu" else DEFAULT_MODEL)
    return arguments


@contextmanager
def running_server(arguments: argparse.Namespace) -> Iterator[tuple[httpx.Client, int]]:
    """Serve the model on a free port, with a database of its own, until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = secrets.token_urlsafe(32)
    source = str(Path(__file__).parent.parent / "src")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OPENKLEIN_")},
            "PYTHONPATH": source,
            "OPENKLEIN_API_KEY": key,
            "OPENKLEIN_DATABASE_URL": f"sqlite:///{folder}/openklein.db",
            "OPENKLEIN_DATA_DIR": folder if arguments.model == MINI_MODEL else str(arguments.settings.data_dir),
            "OPENKLEIN_MODEL": arguments.model,
            "OPENKLEIN_QUANTIZE": arguments.quantize,
            "OPENKLEIN_COMPILE": str(arguments.compile).lower(),
            "OPENKLEIN_PORT": str(port),
            "OPENKLEIN_LOG_LEVEL": "warning",
        }
        if arguments.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        run = "import sys; from openklein.cli.main import main; sys.argv = ['openklein', 'serve']; sys.exit(main())"
        server = subprocess.Popen([sys.executable, "-c", run], env=environment, stdout=sys.stderr)
        try:
            headers = {"Authorization": f"Bearer {key}"}
            with httpx.Client(
                base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120, trust_env=False
            ) as client:
                wait_until_ready(client, server)
                yield client, server.pid
        finally:
            server.terminate()
            server.wait()


def crowd(process_id: int) -> None:
    """Put all threads of a process on one core, as other programs at times make the system do."""
    for task in Path(f"/proc/{process_id}/task").iterdir():
        os.sched_setaffinity(int(task.name), {min(os.sched_getaffinity(0))})


def wait_until_ready(client: httpx.Client, server: "subprocess.Popen[bytes]") -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if server.poll() is not None:
            sys.exit(f"the server ended with exit code {server.returncode}")
        try:
            if client.get("/health/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit(f"the server was not ready after {START_TIMEOUT_S} s")


def generate(client: httpx.Client, model: str, aspect: str, seed: int) -> tuple[dict[str, float], Image.Image]:
    """Make one image; return the seconds of each stage and of the whole, and the image."""
    started = time.perf_counter()
    prompt = f"{PROMPT}, {seed}"  # one that was not read before
    body = {"model": model, "prompt": prompt, "aspect_ratio": aspect, "seed": seed}
    response = client.post("/v1/generate", json=body)
    total_s = time.perf_counter() - started
    response.raise_for_status()
    stages = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    return {"total": total_s} | {name: float(ms) / 1000 for name, ms in stages}, Image.open(BytesIO(response.content))


def peak_memory(process_id: int) -> int:
    """Read the most bytes that a process has held in memory so far."""
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    return 1024 * int(kibibytes)


def device_memory(client: httpx.Client) -> int:
    """Ask the server how many bytes its tensors take on a GPU, or the process on a CPU."""
    (number,) = re.findall(r"^openklein_device_memory_bytes (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return int(float(number))


def by_stage(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {stage: summarize([sample[stage] for sample in samples]) for stage in samples[0]}


def summarize(seconds: list[float]) -> dict[str, float]:
    p95 = sorted(seconds)[ceil(0.95 * len(seconds)) - 1]
    return {"p50": round(statistics.median(seconds), 5), "p95": round(p95, 5), "min": round(min(seconds), 5)}


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def load(arguments: argparse.Namespace) -> None:
    """Load the model as the server does, and let go of it."""
    choice = choose_device(arguments.device)
    load_pipeline(arguments.model, arguments.settings.models_dir, choice, quantization=arguments.quantize)


def matmul_gflops(device: str, dtype: torch.dtype) -> float:
    """Measure the best of ten products of two square matrices."""
    size = MATRIX_SIZE[device]
    a, b = torch.randn(2, size, size).to(device, dtype)

    def multiply() -> None:
        torch.matmul(a, b)
        synchronize(a.device)

    return 2 * size**3 / min(timed(multiply) for _ in range(10)) / 1e9


def describe_machine(device: str, cores: int) -> dict[str, Any]:
    choice = choose_device(device)
    gpu = torch.cuda.get_device_properties(choice.device) if device == "cuda" else None
    return {
        "gpu": gpu and f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}",
        "cores": cores,
        "cpu_flags": [flag for flag in RELEVANT_FLAGS if flag in cpu_flags()],
        "device": str(choice.device),
        "dtype": str(choice.dtype),
        "reason": choice.reason,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def print_table(report: dict[str, Any]) -> None:
    machine, (width, height) = report["machine"], report["size"]
    settings = f"quantize {report['quantize']}, compile {str(report['compile']).lower()}"
    settings += ", crowded" if report["crowded"] else ""
    print(f"{report['model']}, {width}x{height}, {report['images']} images, {settings}, {machine['cores']} cores")
    print(f"{machine['gpu'] or machine['device']}, {machine['dtype']} ({machine['reason']})")
    print(" ".join(machine["cpu_flags"]))
    print(f"\n{'':16}{'p50 ms':>12}{'p95 ms':>12}{'min ms':>12}")
    for stage, seconds in [
        *report["latency_s"].items(),
        ("png 1344x768", report["png_1344x768_s"]),
        ("loading", report["load_s"]),
    ]:
        print(f"{stage:16}" + "".join(f"{1000 * seconds[name]:12.1f}" for name in ("p50", "p95", "min")))
    print(f"\npeak memory of the server: {report['peak_rss_mb']} MB; its tensors on a GPU, or all it has: ", end="")
    print(f"{report['device_memory_mb']} MB")
    for dtype, gflops in report["matmul_gflops"].items():
        print(f"matrix products in {dtype.removeprefix('torch.')}: {gflops} GFLOPS at best")


if __name__ == "__main__":
    main()
