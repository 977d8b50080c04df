"""Lay out the tables as the newest migration leaves them."""

from datetime import UTC, datetime
from decimal import Context, Decimal, Inexact, InvalidOperation

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

MICRO_DOLLAR = Decimal("0.000001")
EXACT = Context(traps=[Inexact, InvalidOperation])


class UtcDateTime(TypeDecorator[datetime]):
    """Keep aware UTC times on databases that store none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


class Dollars(TypeDecorator[Decimal]):
    """Keep exact amounts as whole micro-dollars, so that sums are exact on every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value.quantize(MICRO_DOLLAR, context=EXACT).scaleb(6))

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else Decimal(value).scaleb(-6)


def format_amount(amount: int | Decimal) -> str:
    """Write a number in full, without an exponent or zeros at its end."""
    return f"{Decimal(amount).normalize():f}"


METADATA = MetaData()

KEYS = Table(
    "api_keys",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True, index=True),  # SHA-256 of the secret
    Column("created_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    Column("owner", String(200), nullable=False, server_default=""),
    Column("scopes", String(200), nullable=False, server_default="generate read"),  # separated by blanks
    Column("expires_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Column("requests_per_minute", Integer),
    Column("concurrent_requests", Integer),
    Column("images_per_day", Integer),
    Column("images_per_month", Integer),
    Column("dollars_per_day", Dollars),
    Column("dollars_per_month", Dollars),
)

USAGE = Table(
    "usage",
    METADATA,
    Column("request_id", String(32), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("settled_at", UtcDateTime, nullable=False),
    Column("model", String(100), nullable=False),
    Column("workflow", String(32), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("references", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("pixels", BigInteger, nullable=False),  # of all its images together
    Column("milliseconds", BigInteger, nullable=False),
    Column("price", Dollars, nullable=False),
    Column("outcome", String(32), nullable=False),
    Index("ix_usage_settled_at", "settled_at"),
    Index("ix_usage_spent", "key_id", "settled_at", "images", "price"),  # holds all that a limit's sum needs
)

RESERVATIONS = Table(
    "reservations",
    METADATA,
    Column("request_id", String(32), primary_key=True),
    Column("key_id", String(32), nullable=False, index=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),  # frees what a killed process held
    Column("images", Integer, nullable=False),
    Column("price", Dollars, nullable=False),
)

IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("key_id", String(32), primary_key=True),
    Column("name", String(255), primary_key=True),  # chosen by the client
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("request_id", String(32), nullable=False),
    Column("answer", Text),  # status and headers as JSON; none while the request runs. Its body is a file.
    Column("expires_at", UtcDateTime, nullable=False, index=True),
)

FILES = Table(
    "files",
    METADATA,
    Column("request_id", String(32), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("expires_at", UtcDateTime, index=True),
    Column("content", LargeBinary, nullable=False),  # last, because SQLite would read through it for the others
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("key_id", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("model", String(100), nullable=False),
    Column("workflow", String(32), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("references", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("lease", String(32), nullable=False),
    Column("leased_until", UtcDateTime),
    Column("started_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("expires_at", UtcDateTime, index=True),
    Column("detail", Text),
    Column("price", Dollars),
    Column("timings", JSON, nullable=False),
    Index("ix_jobs_due", "status", "created_at"),
    Index("ix_jobs_own", "key_id", "created_at"),
)
