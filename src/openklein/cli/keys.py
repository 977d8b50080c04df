"""Manage API keys from the command line."""

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict

from pydantic import ValidationError

from openklein.api.account_schemas import KeyFields
from openklein.cli.store import open_database
from openklein.errors import InvalidRequest
from openklein.settings import Settings, flag_name
from openklein.storage.keys import Key, create_key, list_keys, revoke_key, update_key
from openklein.storage.tables import format_amount

TEXTS = ("name", "owner")
HEADER = ("ID", "CREATED", "EXPIRES", "REVOKED", "LAST USED", "SCOPES", "LIMITS", "OWNER", "NAME")


def create(settings: Settings, given: Mapping[str, str]) -> int:
    """Print the new secret alone on stdout, so that scripts can keep it."""
    fields = read_fields(given)
    with closing(open_database(settings)) as database:
        new = create_key(database, **fields.model_dump())
    print(f"Key {new.id}; keep its secret now, it is not shown again:", file=sys.stderr, flush=True)
    print(new.secret)
    return 0


def show(settings: Settings) -> int:
    with closing(open_database(settings)) as database:
        rows = [HEADER, *map(cells, list_keys(database))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def update(settings: Settings, key_id: str, given: Mapping[str, str]) -> int:
    fields = read_fields(given)
    with closing(open_database(settings)) as database:
        is_known = update_key(database, key_id, fields.model_dump(exclude_unset=True))
    check_known(key_id, is_known=is_known)
    print(f"Key {key_id} is changed.")
    return 0


def revoke(settings: Settings, key_id: str) -> int:
    with closing(open_database(settings)) as database:
        is_known = revoke_key(database, key_id)
    check_known(key_id, is_known=is_known)
    print(f"Key {key_id} is revoked.")
    return 0


def check_known(key_id: str, *, is_known: bool) -> None:
    if not is_known:
        raise InvalidRequest(f"there is no key {key_id!r}; openklein keys list shows the ids.")


def read_fields(given: Mapping[str, str]) -> KeyFields:
    """Judge fields as the API does; raises InvalidRequest with the flag that is wrong."""
    try:
        return KeyFields.model_validate({name: read_field(name, text) for name, text in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
    name = str(first["loc"][0])
    message = first["msg"][:1].lower() + first["msg"][1:]
    raise InvalidRequest(f"{flag_name(name)} cannot be {given[name]!r}: {message}.")


def read_field(name: str, text: str) -> object:
    if name in TEXTS:
        return text
    if name == "scopes":
        return [scope.strip() for scope in text.split(",")]
    if text == "none":
        return None
    return int(text) if text.isascii() and text.isdigit() and not name.startswith("dollars") else text


def cells(key: Key) -> tuple[str, ...]:
    times = (key.created_at, key.expires_at, key.revoked_at, key.last_used_at)
    limits = [f"{name}={format_amount(limit)}" for name, limit in asdict(key.limits).items() if limit is not None]
    return (
        key.id,
        *(f"{time:%Y-%m-%d %H:%M}" if time else "-" for time in times),
        ",".join(key.scopes),
        ",".join(limits) or "-",
        key.owner or "-",
        key.name,
    )
