"""Hand the routes what the app was made of."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from openklein.api.metrics import Metrics
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


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def get_key(request: Request) -> Key:
    key: Key = request.state.key
    return key


ServiceDep = Annotated[Service, Depends(get_service)]
KeyDep = Annotated[Key, Depends(get_key)]  # the key of a request under /v1
