"""Make the web app out of the parts it is given; no globals."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.middleware.cors import CORSMiddleware

import openklein
from openklein.api import error_responses, openapi
from openklein.api.addresses import Resolve, resolver
from openklein.api.auth import KeyCheck
from openklein.api.background import purge_regularly
from openklein.api.dependencies import Service
from openklein.api.fetch import Fetcher
from openklein.api.jobs import run_jobs
from openklein.api.metrics import Metrics
from openklein.api.middleware import BodyLimit, HostCheck, RequestBorder
from openklein.api.records import Observe, log_request
from openklein.api.references import ReferenceReader
from openklein.api.routes import account, generate, health, jobs, keys, models, page
from openklein.api.routes import metrics as metrics_route
from openklein.api.settlement import Ledger
from openklein.engine.worker import Worker
from openklein.settings import Settings
from openklein.storage.database import Database

DECODING_THREADS = 2  # a decoded reference may take 150 MB, so few at a time
LEDGER_THREADS = 4
EXPOSED_HEADERS = (
    "x-request-id",
    "x-klein-model",
    "x-klein-seed",
    "x-klein-workflow",
    "x-klein-price",
    "server-timing",
    "retry-after",
    "idempotent-replayed",
    "location",
)
RESOLVING_THREADS = 8  # of their own, so that a slow name service holds up nothing else


def create_app(
    settings: Settings,
    database: Database,
    worker: Worker,
    *,
    resolve: Resolve | None = None,
    observers: Sequence[Observe] = (),
) -> FastAPI:
    """Join engine and storage into an app.

    `resolve` replaces the system's name service; `observers` are told of each request beside log and metrics.
    """
    decoding = ThreadPoolExecutor(DECODING_THREADS, "openklein-decode")
    resolving = ThreadPoolExecutor(RESOLVING_THREADS, "openklein-resolve")
    writing = ThreadPoolExecutor(LEDGER_THREADS, "openklein-ledger")
    metrics = Metrics(worker)
    observers = (log_request, metrics.observe, *observers)
    modules = (generate, jobs, models, account, keys, health, metrics_route, page)
    routes = [route for module in modules for route in module.router.routes]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service
        tasks = [asyncio.create_task(work) for work in (purge_regularly(service), run_jobs(service))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for threads in (decoding, resolving):
            threads.shutdown(wait=False, cancel_futures=True)
        writing.shutdown(wait=True)

    app = FastAPI(
        title="openklein",
        version=openklein.__version__,
        summary="The Klein image API, self-hosted",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(RequestBorder, routes, observers),
            Middleware(HostCheck, settings),
            *cross_origin(settings),
            Middleware(BodyLimit, settings.max_body_bytes, settings.request_timeout_s),
            Middleware(KeyCheck, settings, database),
        ],
    )
    fetcher = Fetcher(settings, resolve or resolver(resolving))
    references = ReferenceReader(settings, fetcher, decoding)
    ledger = Ledger(settings, database, writing)
    app.state.service = Service(settings, worker, references, metrics, database, ledger, observers)
    error_responses.install(app)
    for module in modules:
        app.include_router(module.router)
    openapi.complete(app)
    return app


def cross_origin(settings: Settings) -> list[Middleware]:
    """Let the pages of the configured origins call the API and read its headers; none where none is configured."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("authorization", "content-type", "idempotency-key"),
            expose_headers=EXPOSED_HEADERS,
        )
    ]
