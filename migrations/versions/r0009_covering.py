"""Indexes of properties that have the other properties too; years in SQLite's R*Tree, not days.

Revision ID: 0009
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from firnline.properties import Number, Word

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_BEHIND: list[Any] = [
    sa.text("end_datetime DESC"),
    "collection",
    "id",
    "start_datetime",
    "retired",
]
_INDEXED = {
    "ix_items_proj_code": (Word, "proj:code"),
    "ix_items_region": (Word, "itslive:region"),
    "ix_items_granule_count": (Number, "itslive:granule_count"),
}
_YEAR = 365.25  # days


def upgrade() -> None:
    _index(covering=True)
    _rebuild_tree(f"/ {_YEAR}")


def downgrade() -> None:
    _index(covering=False)
    _rebuild_tree(f"* {_YEAR}")


def _index(*, covering: bool) -> None:
    connection = op.get_bind()
    values = {
        index: sa.text(str(kind(sa.column("properties"), name).compile(connection)))
        for index, (kind, name) in _INDEXED.items()
    }
    for index, value in values.items():
        others = [other for name, other in values.items() if covering and name != index]
        op.drop_index(index, "items")
        op.create_index(index, "items", [value, *_BEHIND, *others])


def _rebuild_tree(scaled: str) -> None:
    """A tree of the same boxes, with other times; it rounds them outwards once more."""
    if op.get_bind().dialect.name != "sqlite":
        return
    names = '(id, west, east, south, north, start, "end")'
    op.execute(f"CREATE VIRTUAL TABLE items_rtree_new USING rtree{names}")
    op.execute(
        f"INSERT INTO items_rtree_new SELECT id, west, east, south, north, start {scaled}, "  # noqa: S608
        f'"end" {scaled} FROM items_rtree ORDER BY id'
    )
    op.execute("DROP TABLE items_rtree")
    op.execute("ALTER TABLE items_rtree_new RENAME TO items_rtree")
