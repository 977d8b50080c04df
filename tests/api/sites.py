"""Run whole apps on real sockets, with a model that can be held in the middle of a picture."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import httpx
import uvicorn
from fastapi import FastAPI
from PIL import Image

from openklein.api.app import create_app
from openklein.api.connections import server_config
from openklein.cli.store import open_database
from openklein.engine.pipeline import Pipeline
from openklein.engine.scheduler import Scheduler
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.warm_up import WARM_UP
from openklein.engine.worker import Worker
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import create_key
from tests.api.hosts import resolve
from tests.waiting import wait_until


@dataclass(slots=True)
class GatedPipeline:
    """A real pipeline that waits before each step while the gate is shut, and can be told to fail."""

    inner: Pipeline
    gate: threading.Event = field(default_factory=threading.Event)
    is_inside: threading.Event = field(default_factory=threading.Event)
    requests: list[ImageRequest] = field(default_factory=list)
    steps: int = 0
    ended: int = 0
    error: Exception | None = None  # to raise before the model is asked
    error_at_step: Exception | None = None
    result_facts: dict[str, Any] = field(default_factory=dict)  # to say of each picture

    def __post_init__(self) -> None:
        self.gate.set()
        self.card = self.inner.card
        self.choice = self.inner.choice
        self.check = self.inner.check

    card: Any = field(init=False)
    choice: Any = field(init=False)
    check: Callable[[str], None] = field(init=False)

    def generate(
        self,
        request: ImageRequest,
        on_step: Callable[[Progress], None],
        timings: dict[str, float] | None = None,
    ) -> ImageResult:
        def step(progress: Progress) -> None:
            self.is_inside.set()
            self.gate.wait(60)
            self.steps += 1
            if self.error_at_step is not None:
                raise self.error_at_step
            on_step(progress)

        if request is WARM_UP:
            return self.inner.generate(request, on_step, timings)
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        try:
            return replace(self.inner.generate(request, step, timings), **self.result_facts)
        finally:
            self.ended += 1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Shut the gate for a while."""
        self.is_inside.clear()
        self.gate.clear()
        try:
            yield
        finally:
            self.gate.set()


@dataclass(frozen=True, slots=True)
class Site:
    """One app with its parts; `client` carries a good key."""

    settings: Settings
    database: Database
    pipeline: GatedPipeline
    worker: Worker
    app: FastAPI
    key: str
    port: int
    client: httpx.Client

    def as_key(self, **fields: Any) -> httpx.Client:
        """Make a key, and a client that carries it."""
        secret = create_key(self.database, "another", **fields).secret
        return httpx.Client(
            base_url=self.client.base_url, headers={"authorization": f"Bearer {secret}"}, timeout=30, trust_env=False
        )

    def generate(self, **fields: Any) -> httpx.Response:
        """Send a request as JSON; the prompt is given where none is."""
        return self.client.post("/v1/generate", json={"prompt": "a red apple", "aspect_ratio": "square", **fields})

    def refusal(self, status: int, **fields: Any) -> str:
        """Send a request that fails with `status`, and return the sentence."""
        return expect_error(self.generate(**fields), status)


def ask(site: Site) -> socket.socket:
    """Ask for a picture over a connection that the caller closes when it likes."""
    connection = socket.create_connection(("127.0.0.1", site.port))
    connection.sendall(
        f"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {site.key}\r\n"
        'Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{"prompt": "a"}'.encode()
    )
    return connection


def expect_error(response: httpx.Response, status: int) -> str:
    """Return the one sentence of an error whose status and shape are as they must be."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    assert len(response.headers["x-request-id"]) == 24
    body = response.json()
    assert list(body) == ["detail"]
    assert isinstance(body["detail"], str)
    assert body["detail"]
    return body["detail"]


def expect_image(response: httpx.Response) -> Image.Image:
    """Return the picture of an answer, decoded to its last byte."""
    assert response.status_code == 200, response.text[:500]
    image = Image.open(BytesIO(response.content))
    image.load()
    return image


@contextmanager
def running_site(folder: Path, pipeline: Pipeline, *, is_ready: bool = True, **changes: Any) -> Iterator[Site]:
    """Serve an app on a loopback port; its settings are the defaults with `changes`."""
    settings = Settings(**{"data_dir": folder, "allowed_url_hosts": ("images.test",), **changes})
    database = open_database(settings)
    key = create_key(database, "tests").secret
    gated = GatedPipeline(pipeline)
    worker = Worker(lambda: cast("Pipeline", gated), Scheduler(settings.queue_size))
    if is_ready:
        worker.start()
        wait_until(lambda: worker.ready)
    app = create_app(settings, database, worker, resolve=resolve)
    with (
        serving(app) as port,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {key}"}, timeout=30, trust_env=False
        ) as client,
    ):
        yield Site(settings, database, gated, worker, app, key, port, client)
    gated.gate.set()
    worker.close(timeout_s=10)
    database.close()


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Run uvicorn on a thread; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(app, stop_timeout_s=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
