"""Alembic's entry: runs revisions on the connection that ``firnline.database.migrate`` opened."""

from alembic import context

from firnline.tables import PROPERTY_INDEXES, metadata


def _is_ours(name: str | None, type_: str, parents: object) -> bool:
    """Leave SQLite's R*Tree (and its shadow tables) and PostGIS's own table to themselves."""
    return not (
        type_ == "table" and name and (name.startswith("items_rtree") or name == "spatial_ref_sys")
    )


def _is_here(thing: object, name: str | None, type_: str, reflected: bool, other: object) -> bool:
    """Leave out the spatial index where the R*Tree stands for it, and those of expressions.

    The database tells an expression in words of its own, which alembic takes for another one.
    """
    if type_ == "index" and name in PROPERTY_INDEXES:
        return False
    on_sqlite = context.config.attributes["connection"].dialect.name == "sqlite"
    return not (on_sqlite and type_ == "index" and name == "ix_items_footprint")


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    include_name=_is_ours,
    include_object=_is_here,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
