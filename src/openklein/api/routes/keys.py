"""Manage keys: make, list, change and revoke them. The scope is checked before the route (`auth.py`)."""

import asyncio
from typing import Any

from fastapi import APIRouter

from openklein.api.account_schemas import KeyBody, KeyFields, KeysBody, NewKeyBody
from openklein.api.dependencies import Service, ServiceDep
from openklein.api.schemas import ErrorBody
from openklein.errors import NotFound
from openklein.storage import keys

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (401, 403, 422)}
router = APIRouter(prefix="/v1/keys", tags=["keys"], responses=ERRORS)


@router.post("", status_code=201)
async def create_key(service: ServiceDep, fields: KeyFields) -> NewKeyBody:
    """Make a key; the answer is the only one that ever holds its secret."""
    new = await asyncio.to_thread(keys.create_key, service.database, **fields.model_dump())
    key = await read_key(service, new.id)
    return NewKeyBody(**key.model_dump(), secret=new.secret)


@router.get("")
async def list_keys(service: ServiceDep) -> KeysBody:
    """List all keys, oldest first, revoked and expired ones included."""
    return KeysBody(data=[KeyBody.of(key) for key in await asyncio.to_thread(keys.list_keys, service.database)])


@router.get("/{key_id}", responses={404: {"model": ErrorBody}})
async def get_key(service: ServiceDep, key_id: str) -> KeyBody:
    """Show a key."""
    return await read_key(service, key_id)


@router.patch("/{key_id}", responses={404: {"model": ErrorBody}})
async def change_key(service: ServiceDep, key_id: str, fields: KeyFields) -> KeyBody:
    """Change the fields that are given, from the next request on; null takes a limit or the expiry away."""
    await asyncio.to_thread(keys.update_key, service.database, key_id, fields.model_dump(exclude_unset=True))
    return await read_key(service, key_id)


@router.delete("/{key_id}", responses={404: {"model": ErrorBody}})
async def revoke_key(service: ServiceDep, key_id: str) -> KeyBody:
    """Make a key worthless, for good and from the next request on; it stays listed."""
    await asyncio.to_thread(keys.revoke_key, service.database, key_id)
    return await read_key(service, key_id)


async def read_key(service: Service, key_id: str) -> KeyBody:
    """Read a key; raises NotFound."""
    key = await asyncio.to_thread(keys.get_key, service.database, key_id)
    if key is None:
        raise NotFound("There is no key with this id; GET /v1/keys lists them.")
    return KeyBody.of(key)
