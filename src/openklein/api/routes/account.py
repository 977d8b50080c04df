"""Tell a key what it may do and what it used; the scopes are checked before the route (`auth.py`)."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query

from openklein.api.account_schemas import AccountBody, BucketBody, SumBody, UsageBody, UsageQuery
from openklein.api.auth import FIXED_KEY
from openklein.api.dependencies import KeyDep, ServiceDep
from openklein.api.schemas import ErrorBody
from openklein.errors import InvalidRequest
from openklein.storage.database import Database
from openklein.storage.keys import Key
from openklein.storage.limits import Meter, read_meters
from openklein.storage.usage import sum_usage

DEFAULT_RANGE: Final = timedelta(days=30)
MAX_BUCKETS: Final = 1000
SHORTEST: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=28)}

router = APIRouter(tags=["account"], responses={401: {"model": ErrorBody}})


@router.get("/v1/account")
async def account(service: ServiceDep, key: KeyDep) -> AccountBody:
    """Show the key that asks, and what is left of each of its limits."""
    return AccountBody.of(key, await asyncio.to_thread(read_own_meters, service.database, key))


def read_own_meters(database: Database, key: Key) -> list[Meter]:
    if key is FIXED_KEY:  # not in the database, and without limits
        return []
    with database.read() as connection:
        return read_meters(connection, key.id, datetime.now(UTC))


@router.get("/v1/usage", responses={status: {"model": ErrorBody} for status in (403, 422)})
async def usage(service: ServiceDep, key: KeyDep, query: Annotated[UsageQuery, Query()]) -> UsageBody:
    """Add up the requests of the key that asks, or, for a key with the scope admin, of all keys."""
    end = query.end or datetime.now(UTC)
    start = query.start or end - DEFAULT_RANGE
    if start >= end:
        raise InvalidRequest(f"start cannot be {start.isoformat()}: a time before end, {end.isoformat()}, is allowed.")
    if end - start > MAX_BUCKETS * SHORTEST[query.bucket]:
        raise InvalidRequest(f"The range cannot be {end - start}: up to {MAX_BUCKETS} {query.bucket}s are allowed.")
    key_id = None if key.allows("admin") else key.id
    add_up = partial(sum_usage, service.database, start, end, query.bucket, query.group_by, key_id)
    sums = await asyncio.to_thread(add_up)
    return UsageBody(
        start=start,
        end=end,
        bucket=query.bucket,
        group_by=query.group_by,
        data=[BucketBody.of(part, start=part.start, group=part.group) for part in sums],
        total=SumBody.of(*sums),
    )
