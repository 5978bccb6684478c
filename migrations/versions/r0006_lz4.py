"""Items are compressed by lz4 on PostgreSQL, where it is there: twice the upserts, the same size.

Rows that are there keep what they are compressed by until they are written again.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _compress("lz4")


def downgrade() -> None:
    _compress("default")


def _compress(method: str) -> None:
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    # from PostgreSQL 14 on, and only if it was built with it
    known = "SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
    if connection.exec_driver_sql(known).scalar():
        for column in ("content", "footprint"):
            op.execute(f"ALTER TABLE items ALTER COLUMN {column} SET COMPRESSION {method}")
