"""The database: connections, transactions, and items in and out.

SQLite has no spatial types that can be relied on, so each connection gets the functions of
:mod:`firnline.functions`, and an R*Tree keeps the boxes; PostgreSQL uses PostGIS. Statements
are written once (``firnline.api.query``) for both.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from firnline import functions
from firnline.contents import pack
from firnline.errors import DatabaseError, InputError
from firnline.tables import (
    LIVING,
    collections,
    cubes,
    harvests,
    items,
    items_rtree,
    jobs,
    subsets,
    to_microseconds,
    tree_time,
)

_BATCH = 500
_BUSY_SECONDS = 30  # for which SQLite's writers wait for each other
_MIGRATION_LOCK = 0x6669726E  # any number that nothing else in the database locks
_migrating = threading.Lock()  # alembic keeps its context in globals
_OF_STATEMENTS = (DataError, IntegrityError, NotSupportedError, ProgrammingError)


@dataclass(frozen=True)
class ItemRow:
    """One row of ``items``.

    ``footprint`` is in lon/lat, split at the antimeridian; ``content`` is the item's JSON without
    links; ``digest`` identifies the content; ``properties`` is what
    :func:`firnline.properties.searchable` makes of its properties.
    """

    collection: str
    id: str
    start: datetime
    end: datetime
    footprint: BaseGeometry
    content: bytes
    digest: str
    source: str
    properties: bytes


def connect(url: str) -> Engine:
    """Open the database at an SQLAlchemy URL; the schema is not touched.

    Raises
    ------
    InputError
        The URL is not an SQLite or PostgreSQL one, or its driver is not installed.
    DatabaseError
        The folder of an SQLite database can't be made.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number is a ValueError
        raise InputError(
            "FIRNLINE_DATABASE_URL is not a database URL; "
            "accepted: sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        try:
            engine = create_engine(parsed, pool_pre_ping=True, pool_size=10)
        except (NoSuchModuleError, ModuleNotFoundError):
            raise InputError("PostgreSQL needs psycopg: pip install 'firnline[postgres]'") from None
        event.listen(engine, "before_cursor_execute", _answer_in_binary)
        return engine
    if backend != "sqlite":
        raise InputError(f"{backend} is not supported; accepted: sqlite, postgresql")
    if parsed.database and parsed.database != ":memory:":
        try:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"{error.filename} can't be made: {error.strerror}") from None
    try:
        engine = create_engine(parsed)
    except NoSuchModuleError:
        raise InputError(
            f"{parsed.drivername} is not supported; accepted: sqlite, postgresql"
        ) from None
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _answer_in_binary(
    _connection: Connection, cursor: Any, _sql: str, _values: Any, context: Any, _many: bool
) -> None:
    # Bytes come as they are: as text, which is twice as long, 100 items cost a millisecond more.
    # SQLAlchemy's own questions, of its inspector, are not made for it.
    if context and context.execution_options.get("firnline_reads"):
        cursor.format = 1  # psycopg.pq.Format.BINARY


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    # The driver's own transaction control starts a transaction too late (only before a write),
    # so that two statements of one read can see different states: firnline begins them itself.
    dbapi_connection.isolation_level = None
    functions.register(dbapi_connection)
    dbapi_connection.execute("PRAGMA page_size=16384")  # of a new file: upserts in 3/4 of the time
    _write_ahead(dbapi_connection)
    for pragma in (
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_SECONDS * 1000}",
        "mmap_size=2147418112",  # pages are read where they are, not copied
        "cache_size=-65536",  # KiB: its 2 MB would be written and read again in large harvests
    ):
        dbapi_connection.execute(f"PRAGMA {pragma}")


def _write_ahead(dbapi_connection: sqlite3.Connection) -> None:
    # Of those that switch a new file at once, SQLite refuses all but one without asking the
    # time-out, lest they wait for each other. Where the switch is made already, nothing is locked.
    until = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            dbapi_connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer in WAL mode fails at once if another wrote in between, whatever
    # the time-out: a transaction that will write takes the lock at its start.
    writes = connection.get_execution_options().get("firnline_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A consistent view of the database; what can't be read raises :class:`DatabaseError`."""
    with _translated(), engine.connect() as connection:
        yield connection.execution_options(firnline_reads=True)


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """As :func:`reading`, and no statement sees more than the first one did, on PostgreSQL too."""
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with reading(engine) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes: all of it is kept, or nothing."""
    with _translated(), engine.execution_options(firnline_writes=True).begin() as connection:
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if "no such table" in str(error.orig) or "UndefinedTable" in type(error.orig).__name__:
            raise DatabaseError("the database has no schema yet: run `firnline migrate`") from error
        if isinstance(error, _OF_STATEMENTS):
            raise  # a bug of ours or a row that exists, not an outage
        reason = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
        raise DatabaseError(f"the database did not answer: {reason}") from error
    except PoolTimeout as error:
        raise DatabaseError("the database did not answer: no connection became free") from error


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision (alembic); does nothing when it is there.

    Threads and processes that start together do it one after the other.
    """
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "firnline:migrations")
    config.set_main_option("path_separator", "os")
    with _migrating, writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            # of several that start at once one migrates, the others wait and find it done;
            # on SQLite the transaction's own lock does the same
            connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def put_collections(connection: Connection, contents: Iterable[tuple[str, bytes]]) -> None:
    """Insert or replace collections, given as (id, JSON without links)."""
    rows = [{"id": id, "content": content} for id, content in contents]
    _upsert(connection, collections, rows, ["id"])


def put_items(connection: Connection, rows: Sequence[ItemRow]) -> None:
    """Insert or replace items by (collection, id), with their boxes; retired ones come back.

    Of rows with the same collection and id the last is taken. What is written goes past
    SQLAlchemy's handling of parameters, which took longer than the databases themselves.
    """
    put = _put_sqlite if connection.dialect.name == "sqlite" else _put_postgresql
    now = to_microseconds(datetime.now(UTC))
    for first in range(0, len(rows), _BATCH):
        latest = {(row.collection, row.id): row for row in rows[first : first + _BATCH]}
        batch = list(latest.values())
        footprints = np.array([row.footprint for row in batch], object)
        columns: list[list[Any]] = [
            [row.collection for row in batch],
            [row.id for row in batch],
            [to_microseconds(row.start) for row in batch],
            [to_microseconds(row.end) for row in batch],
            [row.properties.decode() for row in batch],
            [row.digest for row in batch],
            [row.source for row in batch],
            [now] * len(batch),
            shapely.to_wkb(footprints).tolist(),
            [pack(row.content) for row in batch],
        ]
        put(connection, columns, footprints)


_WRITTEN = (
    "start_datetime",
    "end_datetime",
    "properties",
    "digest",
    "source",
    "updated",
    "footprint",
    "content",
)
_REPLACED = (
    "ON CONFLICT (collection, id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _WRITTEN)
    + ", retired = NULL"
)
_INTO = f"INTO items (collection, id, {', '.join(_WRITTEN)}"
_PUT_SQLITE = f"INSERT {_INTO}, key) VALUES ({'?, ' * 10}?) {_REPLACED}"  # noqa: S608
# The whole batch in one statement: a column is an array, sent in binary.
_PUT_POSTGRESQL = (
    f"INSERT {_INTO}) SELECT collection, id, start, until, properties::jsonb, digest, source, "  # noqa: S608
    "updated, ST_GeomFromWKB(footprint, 4326), content FROM unnest(%b::text[], %b::text[], "
    "%b::bigint[], %b::bigint[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::bytea[], "
    "%b::bytea[]) AS incoming (collection, id, start, until, properties, digest, source, updated, "
    f"footprint, content) {_REPLACED}"
)
_PUT_BOXES = "INSERT INTO items_rtree VALUES (?, ?, ?, ?, ?, ?, ?)"


def _put_postgresql(
    connection: Connection, columns: Sequence[Sequence[Any]], _footprints: Any
) -> None:
    connection.exec_driver_sql(_PUT_POSTGRESQL, tuple(columns))


def _put_sqlite(connection: Connection, columns: Sequence[Sequence[Any]], footprints: Any) -> None:
    ids = list(zip(columns[0], columns[1], strict=True))
    known = _boxed(connection, ids)
    # This transaction is the only one that writes: keys can be given out beforehand, and boxes
    # be made without asking for them.
    free = (connection.scalar(select(func.max(items.c.key))) or 0) + 1
    keys = [known[id][0] if id in known else free + n for n, id in enumerate(ids)]
    places = zip(columns[2], columns[3], columns[8], strict=True)
    moved = [
        n
        for n, (id, place) in enumerate(zip(ids, places, strict=True))
        if id not in known or known[id][1:] != place
    ]
    connection.exec_driver_sql(_PUT_SQLITE, list(zip(*columns, keys, strict=True)))
    if not moved:
        return
    replaced = [keys[n] for n in moved if ids[n] in known]
    if replaced:
        _delete_boxes(connection, replaced)
    starts, ends = ([column[n] for n in moved] for column in columns[2:4])
    _put_boxes(connection, [keys[n] for n in moved], starts, ends, footprints[moved])


_BOXED = (
    "SELECT id, key, CASE WHEN retired IS NULL THEN start_datetime END, end_datetime, footprint "
    "FROM items WHERE collection = ? AND id IN (SELECT value FROM json_each(?))"
)


def _boxed(
    connection: Connection, ids: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[Any, ...]]:
    """Of those items that there are: key, start and end (microseconds), footprint (WKB).

    What is retired has no box, and so no start here. By collection, so that the index serves.
    """
    known: dict[tuple[str, str], tuple[Any, ...]] = {}
    for collection in {collection for collection, _ in ids}:
        asked = json.dumps([id for other, id in ids if other == collection])
        for id, *place in connection.exec_driver_sql(_BOXED, (collection, asked)):
            known[collection, id] = tuple(place)
    return known


def _put_boxes(
    connection: Connection,
    keys: Sequence[int],
    starts: Sequence[int],
    ends: Sequence[int],
    footprints: Any,
) -> None:
    """Boxes of items that have none, from their keys, times (microseconds) and outlines."""
    boxes = []
    bounds = shapely.bounds(footprints).tolist()
    for key, start, end, box, footprint in zip(keys, starts, ends, bounds, footprints, strict=True):
        years = tree_time(start), tree_time(end)
        whole = box[0] > -180 or box[2] < 180
        for n, (west, south, east, north) in enumerate([box] if whole else item_boxes(footprint)):
            boxes.append((2 * key + n, west, east, south, north, *years))
    connection.exec_driver_sql(_PUT_BOXES, boxes)


def index_boxes(connection: Connection) -> None:
    """Make the R*Tree from the items, where they came in by another way than :func:`put_items`."""
    chosen = select(items.c.key, items.c.start_datetime, items.c.end_datetime, items.c.footprint)
    rows = connection.execute(chosen.where(LIVING), execution_options={"yield_per": _BATCH})
    for batch in rows.partitions():
        keys, starts, ends, footprints = zip(*batch, strict=True)
        first, last = ([to_microseconds(at) for at in column] for column in (starts, ends))
        _put_boxes(connection, keys, first, last, shapely.from_wkb(footprints))


def delete_items(connection: Connection, collection: str, ids: Sequence[str]) -> None:
    """Remove items and their boxes; ids that don't exist are passed over."""
    for first in range(0, len(ids), _BATCH):
        batch = ids[first : first + _BATCH]
        chosen = (items.c.collection == collection) & items.c.id.in_(batch)
        if connection.dialect.name == "sqlite":
            keys = connection.scalars(select(items.c.key).where(chosen)).all()
            _delete_boxes(connection, keys)
        connection.execute(items.delete().where(chosen))


def retire_items(connection: Connection, collection: str, ids: Sequence[str]) -> None:
    """Hide items that their source no longer has; :func:`put_items` brings them back."""
    now = datetime.now(UTC)
    for first in range(0, len(ids), _BATCH):
        batch = ids[first : first + _BATCH]
        chosen = (items.c.collection == collection) & items.c.id.in_(batch) & LIVING
        if connection.dialect.name == "sqlite":
            keys = connection.scalars(select(items.c.key).where(chosen)).all()
            _delete_boxes(connection, keys)
        connection.execute(items.update().where(chosen).values(retired=now))


def get_item(connection: Connection, collection: str, id: str) -> bytes | None:
    """The stored JSON of one item, or None."""
    chosen = (items.c.collection == collection) & (items.c.id == id) & LIVING
    return connection.scalar(select(items.c.content).where(chosen))


def _upsert(connection: Connection, table: Any, rows: list[dict[str, Any]], key: list[str]) -> None:
    if not rows:
        return
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table)
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=replaced), rows)


def _delete_boxes(connection: Connection, keys: Sequence[int]) -> None:
    ids = [id for key in keys for id in (2 * key, 2 * key + 1)]
    connection.execute(items_rtree.delete().where(items_rtree.c.id.in_(ids)))


def item_boxes(footprint: BaseGeometry) -> list[tuple[float, float, float, float]]:
    """One box (west, south, east, north), or two where a footprint is split at +-180."""
    whole = footprint.bounds
    if whole[0] > -180 or whole[2] < 180 or not hasattr(footprint, "geoms"):
        return [whole]
    sides = [[g for g in footprint.geoms if (g.bounds[2] <= 0) is west] for west in (True, False)]
    if any(g.bounds[0] < 0 < g.bounds[2] for g in sides[1]):  # a part around the pole, or worldwide
        return [whole]
    return [shapely.union_all(side).bounds for side in sides if side]


def put_subset(connection: Connection, **values: Any) -> None:
    """Insert or replace the row of a materialised subset: from then on readers see it."""
    now = datetime.now(UTC)
    row = {"stale": False, "created": now, "last_used": now} | values
    _upsert(connection, subsets, [row], ["id"])


def put_cube(connection: Connection, **values: Any) -> None:
    """Insert or replace what a deep read found in a cube."""
    _upsert(connection, cubes, [{"read_at": datetime.now(UTC)} | values], ["id"])


def is_empty(engine: Engine) -> bool:
    """Whether the catalog has no harvested item yet."""
    with reading(engine) as connection:
        harvested = select(items.c.key).where(items.c.collection != "subsets", LIVING).limit(1)
        return connection.scalar(harvested) is None


def overview(engine: Engine) -> dict[str, Any]:
    """Counts of items a collection (of retired ones, all), of jobs a status; the last harvest."""
    with reading(engine) as connection:
        count = func.count()
        per_collection = (
            select(items.c.collection, count).where(LIVING).group_by(items.c.collection)
        )
        per_status = select(jobs.c.status, count).group_by(jobs.c.status)
        last = connection.execute(
            select(harvests.c.finished, harvests.c.source, harvests.c.error)
            .order_by(harvests.c.id.desc())
            .limit(1)
        ).one_or_none()
        stored = connection.execute(select(count, func.sum(subsets.c.size))).one()
        return {
            "items": {row[0]: row[1] for row in connection.execute(per_collection)},
            "retired": connection.scalar(select(count).select_from(items).where(~LIVING)),
            "jobs": {row[0]: row[1] for row in connection.execute(per_status)},
            "subsets": {"count": stored[0], "bytes": int(stored[1] or 0)},
            "last_harvest": None
            if last is None
            else {"finished": last[0], "source": last[1], "error": last[2]},
        }
