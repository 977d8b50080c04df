"""Manage API keys from the command line."""

import sys
from contextlib import closing

from openklein.cli.store import open_database
from openklein.errors import InvalidRequest
from openklein.settings import Settings
from openklein.storage.keys import create_key, list_keys, revoke_key

MAX_NAME_LENGTH = 100


def create(settings: Settings, name: str) -> int:
    """Print the new secret alone on stdout, so that scripts can keep it."""
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise InvalidRequest(f"--name {name!r} cannot be: up to {MAX_NAME_LENGTH} printable characters are allowed.")
    with closing(open_database(settings)) as database:
        new = create_key(database, name)
    print(f"Key {new.id}; keep its secret now, it is not shown again:", file=sys.stderr, flush=True)
    print(new.secret)
    return 0


def show(settings: Settings) -> int:
    with closing(open_database(settings)) as database:
        keys = list_keys(database)
    print(f"{'ID':<12}  {'CREATED':<16}  {'REVOKED':<16}  NAME")
    for key in keys:
        revoked = f"{key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "-"
        print(f"{key.id:<12}  {key.created_at:%Y-%m-%d %H:%M}  {revoked:<16}  {key.name}".rstrip())
    return 0


def revoke(settings: Settings, key_id: str) -> int:
    with closing(open_database(settings)) as database:
        is_known = revoke_key(database, key_id)
    if not is_known:
        raise InvalidRequest(f"there is no key {key_id!r} in {settings.data_dir}; openklein keys list shows the ids.")
    print(f"Key {key_id} is revoked.")
    return 0
