"""Measure one image after another through the API, as a client on this machine sees it.

    python benchmarks/engine.py [--images 20] [--aspect square] [--cores 2]

Starts a server of its own with klein-mini, on the first `--cores` CPU cores, and prints a table: latency by stage,
PNG encoding, peak memory, and the matrix-product ceiling of this machine beside them. The last line on stdout is one
JSON document. Run it on a Linux machine that does nothing else.
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
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from openklein.contract import MINI_MODEL, RESOLUTIONS
from openklein.engine.device import choose_device, cpu_flags
from openklein.engine.images import encode_png

PROMPT = "a red apple on a blue background"
START_TIMEOUT_S = 120
MATRIX_SIZE = 2048
RELEVANT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")


def main() -> None:
    arguments = parse_arguments()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))  # inherited by the server
    with running_server() as (client, process_id):
        picture = generate(client, "landscape", seed=0)[1]
        samples = [generate(client, arguments.aspect, seed)[0] for seed in range(arguments.images + arguments.warm_up)]
        peak_bytes = peak_memory(process_id)
    torch.set_num_threads(arguments.cores)
    width, height = RESOLUTIONS[arguments.aspect]
    report = {
        "benchmark": "engine",
        "model": MINI_MODEL,
        "size": [width, height],
        "images": arguments.images,
        "machine": describe_machine(arguments.cores),
        "latency_s": by_stage(samples[arguments.warm_up :]),
        "png_1344x768_s": summarize([timed(lambda: encode_png(picture, {"seed": "0"})) for _ in range(30)]),
        "peak_rss_mb": round(peak_bytes / 1e6),
        "matmul_gflops": {str(dtype): round(matmul_gflops(dtype)) for dtype in (torch.bfloat16, torch.float32)},
    }
    print_table(report)
    print(json.dumps(report))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="images to time (default 20)")
    parser.add_argument("--warm-up", type=int, default=3, help="images before the first that counts (default 3)")
    parser.add_argument("--aspect", choices=RESOLUTIONS, default="square", help="aspect ratio (default square)")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for the server (default 2)")
    return parser.parse_args()


@contextmanager
def running_server() -> Iterator[tuple[httpx.Client, int]]:
    """Serve klein-mini on a free port from an empty data folder, until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = secrets.token_urlsafe(32)
    source = str(Path(__file__).parent.parent / "src")
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("OPENKLEIN_")},
            "PYTHONPATH": source,
            "OPENKLEIN_API_KEY": key,
            "OPENKLEIN_DATA_DIR": folder,
            "OPENKLEIN_MODEL": MINI_MODEL,
            "OPENKLEIN_PORT": str(port),
            "OPENKLEIN_LOG_LEVEL": "warning",
        }
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


def generate(client: httpx.Client, aspect: str, seed: int) -> tuple[dict[str, float], Image.Image]:
    """Make one image; return the seconds of each stage and of the whole, and the image."""
    started = time.perf_counter()
    body = {"prompt": f"{PROMPT}, {seed}", "aspect_ratio": aspect, "seed": seed}  # a prompt that was not read before
    response = client.post("/v1/generate", json=body)
    total_s = time.perf_counter() - started
    response.raise_for_status()
    stages = re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"])
    return {"total": total_s} | {name: float(ms) / 1000 for name, ms in stages}, Image.open(BytesIO(response.content))


def peak_memory(process_id: int) -> int:
    """Read the most bytes that a process has held in memory so far."""
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    return 1024 * int(kibibytes)


def by_stage(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {stage: summarize([sample[stage] for sample in samples]) for stage in samples[0]}


def summarize(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 5), "min": round(min(seconds), 5)}


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def matmul_gflops(dtype: torch.dtype) -> float:
    """Measure the best of ten products of two square matrices."""
    a, b = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE).to(dtype)
    return 2 * MATRIX_SIZE**3 / min(timed(lambda: a @ b) for _ in range(10)) / 1e9


def describe_machine(cores: int) -> dict[str, Any]:
    choice = choose_device()
    return {
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
    print(f"{report['model']}, {width}x{height}, {report['images']} images, {machine['cores']} cores")
    print(f"{machine['device']}, {machine['dtype']} ({machine['reason']}); {' '.join(machine['cpu_flags'])}")
    print(f"\n{'':16}{'median ms':>12}{'min ms':>12}")
    for stage, seconds in [*report["latency_s"].items(), ("png 1344x768", report["png_1344x768_s"])]:
        print(f"{stage:16}{1000 * seconds['median']:12.1f}{1000 * seconds['min']:12.1f}")
    print(f"\npeak memory of the server: {report['peak_rss_mb']} MB")
    for dtype, gflops in report["matmul_gflops"].items():
        print(f"matrix products in {dtype.removeprefix('torch.')}: {gflops} GFLOPS at best")


if __name__ == "__main__":
    main()
