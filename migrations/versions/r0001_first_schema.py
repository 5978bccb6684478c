"""The first schema: items, collections, harvests, subsets, jobs.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

from firnline.tables import Footprint

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

Key = sa.BigInteger().with_variant(sa.Integer, "sqlite")
LIVING = sa.text("status IN ('accepted', 'running')")


def upgrade() -> None:
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    if not on_sqlite:
        op.execute("CREATE EXTENSION IF NOT EXISTS postgis")
    op.create_table(
        "collections",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_collections"),
    )
    op.create_table(
        "items",
        sa.Column("key", Key, nullable=False),
        sa.Column("collection", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("start_datetime", sa.BigInteger, nullable=False),
        sa.Column("end_datetime", sa.BigInteger, nullable=False),
        sa.Column("footprint", Footprint, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_items"),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], name="fk_items_collection"),
        sa.UniqueConstraint("collection", "id", name="uq_items_collection_id"),
    )
    op.create_index(
        "ix_items_newest",
        "items",
        [sa.text("end_datetime DESC"), "collection", "id", "start_datetime"],
    )
    op.create_index("ix_items_source", "items", ["source"])
    if on_sqlite:
        op.execute(
            "CREATE VIRTUAL TABLE items_rtree USING rtree"
            '(id, west, east, south, north, start, "end")'
        )
    else:
        op.execute("CREATE INDEX ix_items_footprint ON items USING gist (footprint)")
    op.create_table(
        "harvests",
        sa.Column("id", Key, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("started", sa.BigInteger, nullable=False),
        sa.Column("finished", sa.BigInteger),
        sa.Column("report", sa.Text),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_harvests"),
    )
    op.create_table(
        "subsets",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("request_key", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("sources", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("stale", sa.Boolean, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("last_used", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subsets"),
        sa.UniqueConstraint("request_key", name="uq_subsets_request_key"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("request_key", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("progress", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("lease_expires", sa.BigInteger),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("started", sa.BigInteger),
        sa.Column("finished", sa.BigInteger),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.Column("subset", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    op.create_index(
        "uq_jobs_living",
        "jobs",
        ["request_key"],
        unique=True,
        sqlite_where=LIVING,
        postgresql_where=LIVING,
    )
    op.create_index("ix_jobs_queue", "jobs", ["status", "created"])
    op.create_table(
        "job_tiles",
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("tile", sa.Integer, nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("job", "tile", name="pk_job_tiles"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_job_tiles_job", ondelete="CASCADE"),
    )


def downgrade() -> None:
    for name in ("job_tiles", "jobs", "subsets", "harvests"):
        op.drop_table(name)
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE items_rtree")
    op.drop_table("items")
    op.drop_table("collections")
