"""Serve the image API until a signal or a model that cannot load ends it."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from math import ceil
from types import FrameType
from typing import NoReturn

import uvicorn

from openklein.api.app import create_app
from openklein.api.connections import server_config
from openklein.cli.loading import choose_model, describe_choice
from openklein.cli.logs import set_up_logging
from openklein.cli.store import open_database
from openklein.cli.tracing import tracing
from openklein.engine.device import choose_device
from openklein.engine.scheduler import Scheduler
from openklein.engine.weights import load_pipeline
from openklein.engine.worker import Worker
from openklein.errors import InvalidSetting, OpenKleinError
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import create_key, list_keys

logger = logging.getLogger(__name__)

# A stop takes less than 10 s: the image that is being made, then the answers, then whatever is left.
FINISH_IMAGE_S = 6.0
FINISH_ANSWERS_S = 8
GIVE_UP_S = 9.5
POLL_S = 0.1


def serve(settings: Settings) -> int:
    """Run the server; return 0 after a signal, 1 where the model cannot be loaded."""
    if not (settings.public or settings.is_loopback):
        raise InvalidSetting(
            f"--host {settings.host} lets other machines reach this server; add --public if that is meant."
        )
    set_up_logging(settings.log_level, settings.log_format)
    database = open_database(settings)
    check_keys(settings, database)
    listener = listen(settings)
    model_id = choose_model(settings)
    url = base_url(settings.host, listener.getsockname()[1])
    logger.info("%s", describe_choice(settings, model_id))
    choice = choose_device()
    logger.info("device: %s, %s: %s", choice.device, str(choice.dtype).removeprefix("torch."), choice.reason)
    load = partial(
        load_pipeline,
        model_id,
        settings.models_dir,
        choice,
        quantization=settings.quantize,
        compiled=settings.compile,
    )
    worker = Worker(load, Scheduler(settings.queue_size))
    with tracing(settings.otlp_endpoint) as observers:
        app = create_app(settings, database, worker, observers=observers)
        config = server_config(app, stop_timeout_s=FINISH_ANSWERS_S)
        exit_code = asyncio.run(run(settings, database, worker, config, listener, url))
    database.close()
    # A worker that is deep in one step would crash an orderly end of the interpreter, so there is none.
    leave(exit_code)


def listen(settings: Settings) -> socket.socket:
    """Bind before anything slow or final happens; raises InvalidSetting where the address cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InvalidSetting(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}.") from error


def check_keys(settings: Settings, database: Database) -> None:
    """Tell where no key is good; raises InvalidSetting where others can reach a server that then serves nobody."""
    keys = list_keys(database)
    if settings.api_key or not keys or any(key.is_valid for key in keys):
        return  # where there is none at all, the first one is made
    sentence = "all API keys are revoked or expired; openklein keys create makes one"
    if not settings.is_loopback:
        raise InvalidSetting(f"{sentence}.")
    logger.warning("%s", sentence)


def announce(settings: Settings, database: Database, url: str) -> None:
    """Make the first key where there is none, and print it, never log it, with a line to try it."""
    if settings.api_key or list_keys(database):
        return
    key = create_key(database, "first key", scopes=("admin",))
    print(
        "\nThis is your API key. It is shown this once:\n\n"
        f"    {key.secret}\n\n"
        "Try it:\n\n"
        f"    curl {url}/v1/generate -H 'Authorization: Bearer {key.secret}' "
        "-F prompt='a red apple on a blue background' -o apple.png\n",
        flush=True,
    )


def warn_if_slow(estimate_s: float, limit_s: float) -> None:
    """Say at start what every client would otherwise find out by a 504."""
    if estimate_s > limit_s:
        logger.warning(
            "An image of 1024x1024 is expected to take %.1f s here, judged by the warm-up at 256x256, and a request "
            "may take %g s: such requests will end in 504. Raise --request-timeout-s, serve a smaller model (--model), "
            "or use a faster device.",
            estimate_s,
            limit_s,
        )


def base_url(host: str, port: int) -> str:
    """Give an address that reaches the server from this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


class Server(uvicorn.Server):
    """Note that a stop is wished, and keep serving: until the last image is made, others are refused in words."""

    stop_asked = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; uvicorn would close the door at once, on requests that have just arrived."""
        self.stop_asked = True


async def run(
    settings: Settings, database: Database, worker: Worker, config: uvicorn.Config, listener: socket.socket, url: str
) -> int:
    server = Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)  # before uvicorn does the same, and after it undoes it
    logger.info("listening on %s; images can be asked for once the model is warm", url)
    worker.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    is_announced = False
    while not (server.stop_asked or serving.done()):
        if worker.error is not None:
            logger.error("The server stops: %s", describe(worker.error))
            break
        if worker.ready and not is_announced:
            warn_if_slow(worker.estimate_s, settings.request_timeout_s)
            announce(settings, database, url)
            is_announced = True
        await asyncio.sleep(POLL_S)
    logger.info("stopping")
    began = time.monotonic()
    await close(worker)
    config.timeout_graceful_shutdown = max(1, ceil(FINISH_ANSWERS_S - (time.monotonic() - began)))
    server.should_exit = True
    await serving
    return exit_code_of(worker)


async def close(worker: Worker) -> None:
    """Stop the worker, while the server refuses new requests; leave for good if anything hangs."""
    backstop = threading.Timer(GIVE_UP_S, leave, args=[exit_code_of(worker)])
    backstop.daemon = True
    backstop.start()
    await asyncio.to_thread(worker.close, FINISH_IMAGE_S)


def exit_code_of(worker: Worker) -> int:
    return 0 if worker.error is None else 1


def describe(error: BaseException) -> str:
    return str(error) if isinstance(error, OpenKleinError) else f"{type(error).__name__}: {error}"


def leave(exit_code: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
