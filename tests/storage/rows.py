"""Make rows of the ledger and reservations, whose facts matter only where a test says so."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from openklein.storage.limits import Reservation
from openklein.storage.usage import UsageRow

PRICE = Decimal("0.003")


def usage_row(**facts: Any) -> UsageRow:
    now = datetime.now(UTC)
    row = UsageRow(
        request_id=secrets.token_hex(12),
        key_id="a",
        started_at=now - timedelta(seconds=1),
        settled_at=now,
        model="klein-mini",
        workflow="text-to-image",
        width=1024,
        height=1024,
        references=0,
        images=1,
        pixels=1024 * 1024,
        milliseconds=1000,
        price=PRICE,
        outcome="succeeded",
    )
    return replace(row, **facts)


def reservation(key_id: str, **facts: Any) -> Reservation:
    now = datetime.now(UTC)
    wanted = Reservation(
        request_id=secrets.token_hex(12),
        key_id=key_id,
        started_at=now,
        expires_at=now + timedelta(minutes=3),
        images=1,
        price=PRICE,
    )
    return replace(wanted, **facts)


def settled(wanted: Reservation, **facts: Any) -> UsageRow:
    """Make the row that settles a reservation."""
    return usage_row(request_id=wanted.request_id, key_id=wanted.key_id, started_at=wanted.started_at, **facts)
