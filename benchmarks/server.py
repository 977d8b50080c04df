"""Measure what the API adds to a request: its latency less the wait in the queue, the engine and the PNG.

    python benchmarks/server.py [--requests 1000] [--clients 1 50] [--engine-ms 20] [--cores 2]

Serves the whole app on loopback in a process of its own, with a key and a database as an operator has them, and a
stand-in for the model that sleeps `--engine-ms` and returns one fixed picture. Each client sends its next request as
soon as it has read its last answer, so the rate is the stand-in's. The last line on stdout is one JSON document. Run it
on a Linux machine that does nothing else.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvicorn
from PIL import Image

from openklein.api.app import create_app
from openklein.api.connections import server_config
from openklein.cli.store import open_database
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.device import choose_device
from openklein.engine.pipeline import Pipeline
from openklein.engine.scheduler import Scheduler
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.worker import Worker
from openklein.settings import Settings
from openklein.storage.keys import create_key

BODY = json.dumps({"prompt": "a red apple on a blue background", "aspect_ratio": "square", "seed": 1}).encode()
NOT_OURS = ("queue", "text", "references", "denoise", "decode", "png")
START_TIMEOUT_S = 60
WARM_UP = 3  # requests of each client


class StandIn:
    """Take a fixed time for every picture, and always return the same."""

    def __init__(self, engine_s: float) -> None:
        self.card = KLEIN_MINI
        self.choice = choose_device("cpu")
        self._engine_s = engine_s
        rows, columns = np.mgrid[0:1024, 0:1024]
        pixels = np.stack([rows // 4, columns // 4, (rows ^ columns) // 4], axis=2).astype(np.uint8)
        self._image = Image.fromarray(pixels)

    def check(self, prompt: str) -> None:
        """Accept every prompt."""

    def generate(
        self, request: ImageRequest, on_step: Callable[[Progress], None], timings: dict[str, float] | None = None
    ) -> ImageResult:
        started = time.perf_counter()
        on_step(Progress(0, 1))
        time.sleep(self._engine_s)
        on_step(Progress(1, 1))
        timings = {} if timings is None else timings
        timings |= {"text": 0.0, "denoise": time.perf_counter() - started, "decode": 0.0}
        return ImageResult(self._image, self.card.id, request.seed, timings)


def serve(listener: socket.socket, folder: str, engine_s: float, parent: Connection) -> None:
    """Run the server until it is terminated; tell the parent a key once it can be used."""
    settings = Settings(data_dir=Path(folder), queue_size=1000)
    database = open_database(settings)
    worker = Worker(lambda: cast(Pipeline, StandIn(engine_s)), Scheduler(settings.queue_size))
    worker.start()
    while not worker.ready:
        time.sleep(0.01)
    parent.send(create_key(database, "benchmark").secret)
    config = server_config(create_app(settings, database, worker), stop_timeout_s=1)
    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def running_server(engine_s: float) -> Iterator[tuple[int, str]]:
    """Give the port and a key of a server that runs until the context ends."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        process = spawn.Process(target=serve, args=(listener, folder, engine_s, theirs))
        process.start()
        try:
            if not ours.poll(START_TIMEOUT_S):
                sys.exit(f"the server did not start within {START_TIMEOUT_S} s")
            yield listener.getsockname()[1], ours.recv()
        finally:
            process.terminate()
            process.join()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> tuple[float, float]:
    """Make one picture; return the seconds it took, and those of them that the API added."""
    head = f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    kind = f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    started = time.perf_counter()
    writer.write((head + kind).encode() + BODY)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(re.findall(r"content-length: (\d+)", answer)[0]))
    took_s = time.perf_counter() - started
    if not answer.startswith("http/1.1 200 "):
        sys.exit(f"the server answered {answer.splitlines()[0]}")
    stages = re.findall(r"(\w+);dur=([\d.]+)", answer)
    return took_s, took_s - sum(float(ms) / 1000 for stage, ms in stages if stage in NOT_OURS)


async def load(port: int, key: str, clients: int, requests: int) -> dict[str, Any]:
    """Send `requests` in all from `clients` at once; the first of each, which come in one burst, do not count."""

    async def client(count: int) -> list[tuple[float, float]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
        samples = [await ask(reader, writer, key) for _ in range(WARM_UP + count)]
        writer.close()
        return samples

    each = max(1, requests // clients)
    started = time.perf_counter()
    by_client = await asyncio.gather(*(client(each) for _ in range(clients)))
    images_per_s = clients * (WARM_UP + each) / (time.perf_counter() - started)
    samples = list(chain.from_iterable(samples[WARM_UP:] for samples in by_client))
    latency, overhead = zip(*samples, strict=True)
    return {
        "clients": clients,
        "requests": len(samples),
        "images_per_s": round(images_per_s, 1),
        "latency_ms": percentiles(latency),
        "overhead_ms": percentiles(overhead),
    }


def percentiles(seconds: tuple[float, ...]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(1000 * cuts[49], 2), "p99": round(1000 * cuts[98], 2)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, help="requests at each number of clients (default 1000)")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 50], help="clients at once (default 1 50)")
    parser.add_argument("--engine-ms", type=float, default=20, help="time of the stand-in in ms (default 20)")
    parser.add_argument("--cores", type=int, default=2, help="CPU cores for server and clients (default 2)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: arguments.cores]))  # inherited by the server
    with running_server(arguments.engine_ms / 1000) as (port, key):
        loads = [asyncio.run(load(port, key, clients, arguments.requests)) for clients in arguments.clients]
    print(f"{'clients':>8}{'images/s':>10}{'latency p50':>13}{'p99':>9}{'overhead p50':>14}{'p99':>9}   (ms)")
    for row in loads:
        latency, overhead = row["latency_ms"], row["overhead_ms"]
        print(
            f"{row['clients']:8}{row['images_per_s']:10}{latency['p50']:13}{latency['p99']:9}"
            f"{overhead['p50']:14}{overhead['p99']:9}"
        )
    machine = {"cores": arguments.cores, "python": platform.python_version(), "load_average": os.getloadavg()[0]}
    print(json.dumps({"benchmark": "server", "engine_ms": arguments.engine_ms, "machine": machine, "loads": loads}))


if __name__ == "__main__":
    main()
