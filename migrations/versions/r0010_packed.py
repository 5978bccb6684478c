"""Items are kept compressed, with a dictionary.

SQLite's file has free pages afterwards, which VACUUM gives back.

Revision ID: 0010
"""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

from firnline.contents import pack, unpack

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_BATCH = 500


def upgrade() -> None:
    _change(pack)


def downgrade() -> None:
    _change(unpack)


def _change(made: Callable[[bytes], bytes]) -> None:
    """Every row, by batches."""
    connection = op.get_bind()
    items = sa.table("items", sa.column("key"), sa.column("content", sa.LargeBinary))
    rows = sa.select(items.c.key, items.c.content).order_by(items.c.key).limit(_BATCH)
    put = items.update().where(items.c.key == sa.bindparam("of"))
    last = -1
    while batch := connection.execute(rows.where(items.c.key > last)).all():
        values = [{"of": key, "content": made(bytes(content))} for key, content in batch]
        connection.execute(put.values(content=sa.bindparam("content")), values)
        last = batch[-1].key
