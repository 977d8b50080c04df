"""Make the web app out of the parts it is given; no globals, and nothing is started here."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware import Middleware

import openklein
from openklein.api import error_responses, openapi
from openklein.api.addresses import Resolve, resolver
from openklein.api.auth import KeyCheck
from openklein.api.dependencies import Service
from openklein.api.fetch import Fetcher
from openklein.api.middleware import BodyLimit, HostCheck, RequestBorder
from openklein.api.references import ReferenceReader
from openklein.api.routes import generate, health, models, page
from openklein.engine.worker import Worker
from openklein.settings import Settings
from openklein.storage.database import Database

DECODING_THREADS = 2  # a decoded reference may take 150 MB, so few at a time
RESOLVING_THREADS = 8  # of their own, so that a slow name service holds up nothing else


def create_app(settings: Settings, database: Database, worker: Worker, *, resolve: Resolve | None = None) -> FastAPI:
    """Join engine and storage into an app; `resolve` replaces the system's name service."""
    decoding = ThreadPoolExecutor(DECODING_THREADS, "openklein-decode")
    resolving = ThreadPoolExecutor(RESOLVING_THREADS, "openklein-resolve")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        for threads in (decoding, resolving):
            threads.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="openklein",
        version=openklein.__version__,
        summary="The Klein image API, self-hosted",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(RequestBorder),
            Middleware(HostCheck, settings),
            Middleware(BodyLimit, settings.max_body_bytes),
            Middleware(KeyCheck, settings, database),
        ],
    )
    fetcher = Fetcher(settings, resolve or resolver(resolving))
    app.state.service = Service(settings, worker, ReferenceReader(settings, fetcher, decoding))
    error_responses.install(app)
    for module in (generate, models, health, page):
        app.include_router(module.router)
    openapi.complete(app)
    return app
