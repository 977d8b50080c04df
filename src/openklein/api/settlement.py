"""Admit requests within their keys' limits and settle each of them once: the one place that learns how it ended."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from openklein.contract import Workflow
from openklein.errors import Cancelled, OpenKleinError
from openklein.settings import Settings
from openklein.storage.database import Database
from openklein.storage.keys import NO_LIMITS, Limits
from openklein.storage.limits import Reservation, reserve
from openklein.storage.usage import SUCCEEDED, UsageRow, Write, settle

T = TypeVar("T")

SETTLING = timedelta(seconds=30)  # how long after its deadline a request still holds what it reserved


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that passed every cheap check; exactly one settlement follows it."""

    request_id: str
    key_id: str
    model: str  # the one that answers
    workflow: Workflow
    width: int
    height: int
    references: int
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Ledger:
    """Write what requests reserve and use, off the event loop, on threads that nothing else can fill."""

    def __init__(self, settings: Settings, database: Database, threads: ThreadPoolExecutor) -> None:
        self._price = settings.price_per_image
        self.lease = timedelta(seconds=settings.request_timeout_s) + SETTLING
        self._database = database
        self._threads = threads

    async def reserve(self, admission: Admission, limits: Limits) -> None:
        """Take a request out of its key's limits; raises LimitExceeded. A key without limits costs nothing."""
        if limits == NO_LIMITS:
            return
        wanted = Reservation(
            request_id=admission.request_id,
            key_id=admission.key_id,
            started_at=admission.started_at,
            expires_at=admission.started_at + self.lease,
            images=1,
            price=self._price,
        )
        await self.run(partial(reserve, self._database, wanted))

    async def settle(self, admission: Admission, outcome: str, *others: Write) -> None:
        """Append the request's row in one transaction with other writes, durable on return; what failed is free."""
        images = 1 if outcome == SUCCEEDED else 0
        now = datetime.now(UTC)
        row = UsageRow(
            request_id=admission.request_id,
            key_id=admission.key_id,
            started_at=admission.started_at,
            settled_at=now,
            model=admission.model,
            workflow=admission.workflow,
            width=admission.width,
            height=admission.height,
            references=admission.references,
            images=images,
            pixels=images * admission.width * admission.height,
            milliseconds=(now - admission.started_at) // timedelta(milliseconds=1),
            price=images * self._price,
            outcome=outcome,
        )
        await self.run(partial(settle, self._database, row, *others))

    async def write(self, *writes: Write) -> None:
        """Do several writes in one transaction."""
        await self.run(partial(self._write, writes))

    def _write(self, writes: tuple[Write, ...]) -> None:
        with self._database.write() as connection:
            for write in writes:
                write(connection)

    async def run(self, write: Callable[[], T]) -> T:
        """Run something that writes to the database."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, write)


def outcome_of(error: BaseException) -> str:
    """Name the outcome of a request that failed: the error's stable code, or `error` for a fault of ours."""
    if isinstance(error, asyncio.CancelledError):  # the server stops, and gives the request up
        return Cancelled.code
    return error.code if isinstance(error, OpenKleinError) else OpenKleinError.code
