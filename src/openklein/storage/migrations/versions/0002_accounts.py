"""Owners, scopes, expiry and limits of keys; the ledger; reservations."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    columns: list[sa.Column[Any]] = [
        sa.Column("owner", sa.String(200), nullable=False, server_default=""),
        sa.Column("scopes", sa.String(200), nullable=False, server_default="generate read"),
        sa.Column("expires_at", time),
        sa.Column("last_used_at", time),
        *(
            sa.Column(name, sa.Integer)
            for name in ("requests_per_minute", "concurrent_requests", "images_per_day", "images_per_month")
        ),
        *(sa.Column(name, sa.BigInteger) for name in ("dollars_per_day", "dollars_per_month")),
    ]
    for column in columns:
        op.add_column("api_keys", column)
    op.create_table(
        "usage",
        sa.Column("request_id", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("started_at", time, nullable=False),
        sa.Column("settled_at", time, nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("workflow", sa.String(32), nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("width", "height", "references", "images")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("pixels", "milliseconds", "price")),
        sa.Column("outcome", sa.String(32), nullable=False),
    )
    op.create_index("ix_usage_settled_at", "usage", ["settled_at"])
    op.create_index("ix_usage_spent", "usage", ["key_id", "settled_at", "images", "price"])
    op.create_table(
        "reservations",
        sa.Column("request_id", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("started_at", time, nullable=False),
        sa.Column("expires_at", time, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("price", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_reservations_key_id", "reservations", ["key_id"])
