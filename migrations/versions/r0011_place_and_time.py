"""PostgreSQL's index of places has the times too.

Revision ID: 0011
"""

from alembic import op
from sqlalchemy.exc import DBAPIError

from firnline.errors import DatabaseError

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_NAME = "ix_items_footprint"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    try:
        op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    except DBAPIError as error:
        raise DatabaseError(
            "the extension btree_gist can't be made here: let who may run CREATE EXTENSION "
            f"btree_gist in this database, and migrate again ({str(error.orig).splitlines()[0]})"
        ) from error
    _index("footprint", "start_datetime", "end_datetime")


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        _index("footprint")  # the extension stays: others may use it


def _index(*columns: str) -> None:
    op.drop_index(_NAME, "items")
    op.create_index(_NAME, "items", columns, postgresql_using="gist")
