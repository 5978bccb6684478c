"""What is known of single files of the sources: whether they are there, grids of COGs.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_files",
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("found", sa.Boolean, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("size", sa.BigInteger),
        sa.Column("asked", sa.BigInteger, nullable=False),
        sa.Column("grid", sa.Text),
        sa.PrimaryKeyConstraint("url", name="pk_source_files"),
    )


def downgrade() -> None:
    op.drop_table("source_files")
