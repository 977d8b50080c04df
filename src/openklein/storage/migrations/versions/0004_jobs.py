"""Jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(100), nullable=False),
        sa.Column("workflow", sa.String(32), nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("width", "height", "references")),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease", sa.String(32), nullable=False),
        *(sa.Column(name, time) for name in ("leased_until", "started_at", "ended_at", "expires_at")),
        sa.Column("detail", sa.Text),
        sa.Column("price", sa.BigInteger),
        sa.Column("timings", sa.JSON, nullable=False),
    )
    op.create_index("ix_jobs_expires_at", "jobs", ["expires_at"])
    op.create_index("ix_jobs_due", "jobs", ["status", "created_at"])
    op.create_index("ix_jobs_own", "jobs", ["key_id", "created_at"])
