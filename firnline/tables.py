"""The database schema: one for SQLite and for PostgreSQL with PostGIS.

Migrations (``firnline.migrations``) own the schema in force; these tables are what the code
compiles its statements from. Instants are stored as whole microseconds since 1970 (exact, and
the same on both databases); footprints as PostGIS geometry or, on SQLite, as WKB beside an
R*Tree of their boxes (:data:`items_rtree`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, UserDefinedType

from firnline.contents import pack, unpack
from firnline.properties import INDEXED_NUMBERS, INDEXED_WORDS, Number, Word

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_microseconds(instant: datetime) -> int:
    """Microseconds since 1970-01-01T00:00Z of an aware datetime; exact."""
    if instant.tzinfo is None:
        raise ValueError("an instant needs a time zone")
    return (instant - _EPOCH) // _MICROSECOND


class Instant(TypeDecorator[datetime]):
    """An aware datetime, stored as microseconds since 1970 in a BIGINT."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To microseconds."""
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        """From microseconds."""
        return None if value is None else _EPOCH + value * _MICROSECOND


class Content(TypeDecorator[bytes]):
    """The JSON of an item, compressed in the database (:mod:`firnline.contents`)."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Compress."""
        return None if value is None else pack(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """Decompress."""
        return None if value is None else unpack(value)


class FromWKB(FunctionElement[bytes]):
    """Makes a geometry of a bound WKB, where the database has such a type."""

    inherit_cache = True


class ToWKB(FunctionElement[bytes]):
    """Makes WKB of a stored geometry."""

    inherit_cache = True
    type = LargeBinary()


class Footprint(UserDefinedType[bytes]):
    """A lon/lat geometry, WKB on the Python side.

    ``geometry(Geometry, 4326)`` on PostgreSQL and ``BLOB`` on SQLite, where ``ST_Intersects`` is
    a function that ``firnline.database`` registers on each connection.
    """

    cache_ok = True

    def get_col_spec(self, **kw: Any) -> str:
        """PostGIS column type; SQLite's is compiled below."""
        return "geometry(Geometry, 4326)"

    def bind_expression(self, bindvalue: Any) -> ColumnElement[Any]:
        """Wrap a bound WKB for the database."""
        return cast("ColumnElement[Any]", FromWKB(bindvalue))

    def column_expression(self, column: Any) -> ColumnElement[Any]:
        """Unwrap a selected footprint to WKB."""
        return cast("ColumnElement[Any]", ToWKB(column))


@compiles(Footprint, "sqlite")
def _blob(type_: Footprint, compiler: Any, **kw: Any) -> str:
    return "BLOB"


@compiles(FromWKB, "sqlite")
@compiles(ToWKB, "sqlite")
def _as_it_is(element: FunctionElement[bytes], compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(FromWKB, "postgresql")
def _from_wkb(element: FromWKB, compiler: Any, **kw: Any) -> str:
    return f"ST_GeomFromWKB({compiler.process(element.clauses, **kw)}, 4326)"


@compiles(ToWKB, "postgresql")
def _to_wkb(element: ToWKB, compiler: Any, **kw: Any) -> str:
    return f"ST_AsBinary({compiler.process(element.clauses, **kw)})"


Key = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER is SQLite's rowid

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

collections = Table(
    "collections",
    metadata,
    Column("id", Text, primary_key=True),
    Column("content", LargeBinary, nullable=False),  # JSON, without links
)

# SQLite reads a row from its front: what conditions and orders look at comes before the large.
items = Table(
    "items",
    metadata,
    Column("key", Key, primary_key=True),
    Column("collection", Text, ForeignKey("collections.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("start_datetime", Instant, nullable=False),
    Column("end_datetime", Instant, nullable=False),
    Column("retired", Instant),  # since when its source no longer has it; null: it's there
    Column("properties", JSON().with_variant(JSONB, "postgresql"), nullable=False),  # searchable()
    Column("digest", Text, nullable=False),  # of `content`: what a harvest compares
    Column("source", Text, nullable=False),  # the catalog or mosaic root it was harvested from
    Column("updated", Instant, nullable=False),
    Column("footprint", Footprint, nullable=False),
    Column("content", Content, nullable=False),  # the item's JSON, ready to send, no links
    UniqueConstraint("collection", "id"),
    Index("ix_items_source", "source"),
    # By place and time (btree_gist): else PostgreSQL goes through the index of the ends as well,
    # most of it where the time is long ago.
    Index(
        "ix_items_footprint",
        "footprint",
        "start_datetime",
        "end_datetime",
        postgresql_using="gist",
    ).ddl_if(dialect="postgresql"),
)
# Behind what they look up, the indexes have the order of a page, and the rest of what a count asks.
_ORDER = (items.c.end_datetime.desc(), items.c.collection, items.c.id)
_COUNTED = (items.c.start_datetime, items.c.retired)
Index("ix_items_newest", *_ORDER, *_COUNTED)
Index("ix_items_collection", items.c.collection, _ORDER[0], items.c.id, *_COUNTED)


_INDEXED = [
    *((name, Word(items.c.properties, name)) for name in INDEXED_WORDS),
    *((name, Number(items.c.properties, name)) for name in INDEXED_NUMBERS),
]
# Each has the other properties too: who asks for two reads no row that has but one of them.
PROPERTY_INDEXES = frozenset(
    Index(
        "ix_items_" + name.removeprefix("itslive:").replace(":", "_"),
        value,
        *_ORDER,
        *_COUNTED,
        *(other for _, other in _INDEXED if other is not value),
    ).name
    for name, value in _INDEXED
)
"""Names of the indexes over properties, as ``ix_items_proj_code``."""

LIVING = items.c.retired.is_(None)
"""The condition that every reader of `items` sets: what its source lost is kept, and hidden."""

# On SQLite only, made by the migrations: the boxes of an item's footprint, with time as the third
# dimension, in years of 365.25 days since 2000. R*Tree keeps 32-bit floats (rounded outwards, so
# that it never misses) and groups boxes by the length of their sides: beside sides in days those in
# degrees would count for nothing, and a search by place would go through much of the tree. `id` is
# 2 x the item's key, and one more for the second box of an item that crosses the antimeridian.
# Retired items have no boxes.
items_rtree = Table(
    "items_rtree",
    MetaData(),
    Column("id", Integer, primary_key=True),
    *(Column(name, Float) for name in ("west", "east", "south", "north", "start", "end")),
)

_YEAR = 365.25 * 86_400_000_000  # microseconds
_YEAR_2000 = 946_684_800_000_000  # microseconds since 1970


def tree_time(microseconds: int) -> float:
    """Years since 2000 of an instant, given in microseconds since 1970: what the R*Tree keeps."""
    return (microseconds - _YEAR_2000) / _YEAR


# What a deep read found in a cube itself, by the id of its item. No foreign key: it outlives an
# item that a catalog loses for a while.
cubes = Table(
    "cubes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),  # where it was read; another place is another cube
    Column("etag", Text),  # of the consolidated metadata
    Column("version", Integer, nullable=False),  # firnline.deep.VERSION of who read it
    Column("facts", LargeBinary, nullable=False),  # JSON of firnline.deep.Facts
    Column("pairs", Integer, nullable=False),  # image pairs in the table below
    Column("read_at", Instant, nullable=False),
    Column("layout", LargeBinary, nullable=False),  # its consolidated metadata, compressed
)

# The image pairs of the cubes, in blocks of columns: see firnline.pairs. The large columns come
# last, since SQLite reads a row from its front.
cube_pairs = Table(
    "cube_pairs",
    metadata,
    Column("cube", Text, ForeignKey("cubes.id", ondelete="CASCADE"), primary_key=True),
    Column("block", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("first", Instant, nullable=False),  # mid-dates
    Column("last", Instant, nullable=False),
    Column("least_dt", Float, nullable=False),  # days; of the pairs that have one
    Column("most_dt", Float, nullable=False),
    Column("satellites", Text, nullable=False),  # JSON: what the codes stand for
    Column("mid_date", LargeBinary, nullable=False),
    Column("code", LargeBinary, nullable=False),
    Column("dt", LargeBinary, nullable=False),
    Column("position", LargeBinary, nullable=False),
    Column("valid", LargeBinary, nullable=False),
    Column("granule", LargeBinary, nullable=False),
)

# What is known of single files of the sources: see firnline.source_files.
source_files = Table(
    "source_files",
    metadata,
    Column("url", Text, primary_key=True),
    Column("found", Boolean, nullable=False),
    Column("etag", Text),
    Column("size", BigInteger),  # bytes
    Column("asked", Instant, nullable=False),
    Column("grid", Text),  # JSON of a Grid: that of this ETag
)

harvests = Table(
    "harvests",
    metadata,
    Column("id", Key, primary_key=True),
    Column("source", Text, nullable=False),
    Column("started", Instant, nullable=False),
    Column("finished", Instant),
    Column("report", Text),  # JSON of indexer.harvest.Report
    Column("error", Text),
)

subsets = Table(
    "subsets",
    metadata,
    Column("id", Text, primary_key=True),  # also the item's id in the collection `subsets`
    Column("request_key", Text, nullable=False, unique=True),
    Column("request", Text, nullable=False),  # canonical JSON
    Column("generation", Text, nullable=False),  # the folder that readers are sent to
    Column("sources", Text, nullable=False),  # JSON: [{id, href, etag}]
    Column("size", BigInteger, nullable=False),  # bytes on disk
    Column("stale", Boolean, nullable=False, default=False),
    Column("created", Instant, nullable=False),
    Column("last_used", Instant, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default=false()),  # never evicted
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request_key", Text, nullable=False),
    Column("request", Text, nullable=False),
    Column("status", Text, nullable=False),  # OGC API - Processes: accepted, running, ...
    Column("message", Text, nullable=False, default=""),
    Column("progress", Integer, nullable=False, default=0),
    Column("attempt", Integer, nullable=False, default=0),
    Column("owner", Text),
    Column("lease_expires", Instant),
    Column("created", Instant, nullable=False),
    Column("started", Instant),
    Column("finished", Instant),
    Column("updated", Instant, nullable=False),
    Column("subset", Text),
    Column("api_key", Text),  # id of the key that asked for it; null: no key was needed
    Column("priority", Integer, nullable=False, server_default="0"),
    Column("not_before", Instant),  # it failed in passing and waits for its next try
    # At most one living job for a request: whoever asks second gets the first one's job.
    Index(
        "uq_jobs_living",
        "request_key",
        unique=True,
        sqlite_where=text("status IN ('accepted', 'running')"),
        postgresql_where=text("status IN ('accepted', 'running')"),
    ),
    Index("ix_jobs_queue", "status", "priority", "created"),
)

job_tiles = Table(
    "job_tiles",
    metadata,
    Column("job", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("tile", Integer, primary_key=True),
    Column("manifest", Text, nullable=False),  # JSON: what the finished tile counted and wrote
)

# Who may do what over HTTP: see firnline.keys.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the secret
    Column("scopes", Text, nullable=False),  # words
    Column("most_jobs", Integer),  # that may live at a time; null: any number
    Column("created", Instant, nullable=False),
    Column("expires", Instant),
    Column("revoked", Instant),
)

# What all workers ever did, by name: bytes fetched, tiles, ...
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
