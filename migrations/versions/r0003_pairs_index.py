"""What deep reads found: facts of the cubes, and the index of their image pairs.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cubes",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("etag", sa.Text),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("pairs", sa.Integer, nullable=False),
        sa.Column("read_at", sa.BigInteger, nullable=False),
        sa.Column("layout", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_cubes"),
    )
    op.create_table(
        "cube_pairs",
        sa.Column("cube", sa.Text, nullable=False),
        sa.Column("block", sa.Integer, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sa.Column("first", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("least_dt", sa.Float, nullable=False),
        sa.Column("most_dt", sa.Float, nullable=False),
        sa.Column("satellites", sa.Text, nullable=False),
        sa.Column("mid_date", sa.LargeBinary, nullable=False),
        sa.Column("code", sa.LargeBinary, nullable=False),
        sa.Column("dt", sa.LargeBinary, nullable=False),
        sa.Column("position", sa.LargeBinary, nullable=False),
        sa.Column("valid", sa.LargeBinary, nullable=False),
        sa.Column("granule", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("cube", "block", name="pk_cube_pairs"),
        sa.ForeignKeyConstraint(
            ["cube"], ["cubes.id"], name="fk_cube_pairs_cube", ondelete="CASCADE"
        ),
    )
    if op.get_bind().dialect.name == "postgresql":
        # compressed already: PostgreSQL would try once more on every write
        for name in ("mid_date", "code", "dt", "position", "valid", "granule"):
            op.execute(f"ALTER TABLE cube_pairs ALTER COLUMN {name} SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("cube_pairs")
    op.drop_table("cubes")
