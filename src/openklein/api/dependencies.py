"""Hand the routes what the app was made of."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from openklein.api.metrics import Metrics
from openklein.api.records import Observe
from openklein.api.references import ReferenceReader
from openklein.api.settlement import Ledger
from openklein.engine.worker import Worker
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import Key


@dataclass(frozen=True, slots=True)
class Service:
    """The parts behind one app."""

    settings: Settings
    worker: Worker
    references: ReferenceReader
    metrics: Metrics
    database: Database
    ledger: Ledger
    observers: Sequence[Observe]  # told of each request and job
    new_job: asyncio.Event = field(default_factory=asyncio.Event)  # set when one was posted here


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_key(request: Request) -> Key:
    key: Key = request.state.key
    return key


ServiceDep = Annotated[Service, Depends(get_service)]
KeyDep = Annotated[Key, Depends(get_key)]  # the key of a request under /v1
