"""Names of requests that may be sent again, and the answers kept for them."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "idempotency_keys",
        sa.Column("key_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(255), primary_key=True),
        sa.Column("fingerprint", sa.LargeBinary(32), nullable=False),
        sa.Column("request_id", sa.String(32), nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("expires_at", time, nullable=False),
    )
    op.create_table(
        "files",
        sa.Column("request_id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("expires_at", time),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    for table in ("idempotency_keys", "files"):
        op.create_index(f"ix_{table}_expires_at", table, ["expires_at"])
