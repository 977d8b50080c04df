"""Keep bytes that outlive their request: answers to repeat, pictures of jobs, and what is asked of jobs to be done.

What was made is kept for a bounded time and in bounded space; what is asked has no time, and goes when its job ends.
"""

from datetime import datetime

from sqlalchemy import Connection, delete, func, select, text, tuple_

from openklein.storage.database import Database
from openklein.storage.tables import FILES, IDEMPOTENCY_KEYS, JOBS

PURGE_LOCK = 7_211_310_502  # any number that no other program on the same PostgreSQL uses
EXPIRING = (IDEMPOTENCY_KEYS, JOBS, FILES)


def keep_file(connection: Connection, request_id: str, name: str, content: bytes, expires_at: datetime | None) -> None:
    """Keep bytes of a request under a name until `expires_at`, or until newer ones need the space."""
    row = {"request_id": request_id, "name": name, "content": content, "size": len(content), "expires_at": expires_at}
    connection.execute(FILES.insert().values(row))


def read_file(database: Database, request_id: str, name: str) -> bytes | None:
    """Return the bytes kept of a request under a name, None where there are none."""
    find = select(FILES.c.content).where(FILES.c.request_id == request_id, FILES.c.name == name)
    with database.read() as connection:
        content: bytes | None = connection.execute(find).scalar_one_or_none()
    return content


def purge(database: Database, now: datetime, max_bytes: int) -> None:
    """Delete what has expired, and of the files the oldest until the rest has at most `max_bytes` together."""
    with database.write() as connection:
        if connection.dialect.name == "postgresql":  # two that delete the same rows could wait for each other
            lock = text("SELECT pg_try_advisory_xact_lock(:lock)")
            if not connection.execute(lock, {"lock": PURGE_LOCK}).scalar_one():
                return
        for table in EXPIRING:
            connection.execute(delete(table).where(table.c.expires_at <= now))
        up_to_this = func.sum(FILES.c.size).over(order_by=FILES.c.expires_at.desc()).label("up_to_this")
        sizes = select(FILES.c.request_id, FILES.c.name, up_to_this).where(FILES.c.expires_at.is_not(None)).subquery()
        too_many = select(sizes.c.request_id, sizes.c.name).where(sizes.c.up_to_this > max_bytes)
        connection.execute(delete(FILES).where(tuple_(FILES.c.request_id, FILES.c.name).in_(too_many)))
