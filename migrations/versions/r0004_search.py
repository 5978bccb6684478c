"""What searches look at: the items' properties, and indexes by collection and by property.

On SQLite the table is made anew, with the large columns at the end of the row.

Revision ID: 0004
"""

from typing import Any

import orjson
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from firnline.properties import Number, Word, searchable
from firnline.tables import Footprint

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NEWEST: list[Any] = [
    sa.text("end_datetime DESC"),
    "collection",
    "id",
    "start_datetime",
    "retired",
]
BY_COLLECTION: list[Any] = ["collection", NEWEST[0], *NEWEST[2:]]
KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        connection.connection.driver_connection.create_function("searchable", 1, _searchable)  # type: ignore[union-attr]
        _rebuild(
            [sa.Column("properties", sa.JSON, nullable=False)],
            "collection, id, start_datetime, end_datetime, retired, searchable(content), digest, "
            "source, updated, footprint, content",
        )
    else:
        op.add_column("items", sa.Column("properties", JSONB))
        _fill(connection)
        op.alter_column("items", "properties", nullable=False)
    op.create_index("ix_items_collection", "items", BY_COLLECTION)
    for index, kind, name in (
        ("ix_items_proj_code", Word, "proj:code"),
        ("ix_items_region", Word, "itslive:region"),
        ("ix_items_granule_count", Number, "itslive:granule_count"),
    ):
        by = kind(sa.column("properties"), name).compile(connection)
        op.create_index(index, "items", [sa.text(str(by)), *NEWEST])


def downgrade() -> None:
    for index in ("granule_count", "region", "proj_code", "collection"):
        op.drop_index(f"ix_items_{index}", "items")
    if op.get_bind().dialect.name == "sqlite":
        _rebuild(
            [],
            "collection, id, start_datetime, end_datetime, retired, digest, source, updated, "
            "footprint, content",
        )
    else:
        op.drop_column("items", "properties")


def _rebuild(new: list[sa.Column[Any]], selected: str) -> None:
    """Make SQLite's table again: its columns stand in the order in which they were made."""
    op.drop_index("ix_items_newest", "items")
    op.drop_index("ix_items_source", "items")
    op.rename_table("items", "items_before")
    op.create_table(
        "items",
        sa.Column("key", KEY, nullable=False),
        sa.Column("collection", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("start_datetime", sa.BigInteger, nullable=False),
        sa.Column("end_datetime", sa.BigInteger, nullable=False),
        sa.Column("retired", sa.BigInteger),
        *new,
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.Column("footprint", Footprint, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_items"),
        sa.ForeignKeyConstraint(["collection"], ["collections.id"], name="fk_items_collection"),
        sa.UniqueConstraint("collection", "id", name="uq_items_collection_id"),
    )
    op.execute(f"INSERT INTO items SELECT key, {selected} FROM items_before")  # noqa: S608
    op.drop_table("items_before")
    op.create_index("ix_items_newest", "items", NEWEST)
    op.create_index("ix_items_source", "items", ["source"])


def _searchable(content: bytes) -> str:
    return searchable(orjson.loads(content).get("properties", {})).decode()


def _fill(connection: sa.Connection) -> None:
    """The new column of every row, by batches."""
    chosen = sa.text("SELECT key, content FROM items WHERE key > :last ORDER BY key LIMIT 1000")
    put = sa.text("UPDATE items SET properties = CAST(:properties AS jsonb) WHERE key = :key")
    last = -1
    while rows := connection.execute(chosen, {"last": last}).all():
        values = [{"key": key, "properties": _searchable(bytes(content))} for key, content in rows]
        connection.execute(put, values)
        last = rows[-1][0]
