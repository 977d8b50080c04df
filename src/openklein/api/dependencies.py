"""Hand the routes what the app was made of."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from openklein.api.metrics import Metrics
from openklein.api.references import ReferenceReader
from openklein.engine.worker import Worker
from openklein.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """The parts behind one app."""

    settings: Settings
    worker: Worker
    references: ReferenceReader
    metrics: Metrics


async def get_service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
