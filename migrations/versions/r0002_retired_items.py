"""Retired items: what a source no longer has is kept, and hidden.

A plain ADD COLUMN, since alembic's batch mode would copy the table on SQLite and drop triggers.

Revision ID: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NEWEST: list[Any] = [sa.text("end_datetime DESC"), "collection", "id", "start_datetime"]


def upgrade() -> None:
    op.add_column("items", sa.Column("retired", sa.BigInteger))
    op.drop_index("ix_items_newest", "items")
    op.create_index("ix_items_newest", "items", [*NEWEST, "retired"])


def downgrade() -> None:
    # Without the column they would be there again. Their boxes went when they were retired.
    op.execute("DELETE FROM items WHERE retired IS NOT NULL")
    op.drop_index("ix_items_newest", "items")
    op.drop_column("items", "retired")
    op.create_index("ix_items_newest", "items", NEWEST)
