"""All of one database into another, SQLite or PostgreSQL, either way, and the proof of it.

The copy goes over ``firnline.tables.metadata``, so that a table or a column that is added there is
carried along. It is read from one snapshot, and is one transaction of the target: whatever ends
it, the target is empty or has everything. Rows are streamed: memory does not grow with a table.

What was written is then read back, and compared with what was sent: for each table the number of
rows and a digest. The digest of a row is BLAKE2b over its values; that of a table is the sum of
its rows' modulo 2**128, which does not depend on their order (MSet-Add-Hash of D. Clarke et al.,
"Incremental multiset hash functions and their application to memory integrity checking", 2003):
databases sort texts each in its own way.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import shapely
from sqlalchemy import Connection, Engine, Table, func, insert, inspect, select, text
from sqlalchemy.exc import DataError, IntegrityError

from firnline.database import index_boxes, migrate, reading, snapshot, writing
from firnline.errors import ConflictError, DatabaseError, InputError
from firnline.locks import alone
from firnline.tables import Footprint, metadata, to_microseconds

_BATCH_BYTES = 1 << 23
_BATCH_ROWS = 1_000

Progress = Callable[[str, int, int], None]
"""Called with what is done (``items``, ``check items``), how many rows are, and of how many."""


@dataclass(frozen=True)
class Sum:
    """What identifies the content of a table, whatever the order of its rows."""

    rows: int
    digest: str
    """Hexadecimal, 128 bits."""


@dataclass(frozen=True)
class Moved:
    """What became of a table."""

    table: str
    sent: Sum
    arrived: Sum
    """Read back from the target."""

    @property
    def same(self) -> bool:
        """Whether all of it arrived as it was."""
        return self.sent == self.arrived


def transfer(source: Engine, target: Engine, progress: Progress | None = None) -> list[Moved]:
    """Copy everything from one database to another one, which is empty.

    No harvest may be under way. Jobs and searches may go on in the source; what they write after
    the copy has begun stays there.

    Parameters
    ----------
    source
        A migrated database; it is only read.
    target
        Is migrated first.

    Returns
    -------
    list of Moved
        For each table; if one is not :attr:`Moved.same`, nothing was kept in the target.

    Raises
    ------
    InputError
        The target is the source, or in memory.
    ConflictError
        The target holds rows, or tables of something else; or a harvest is under way.
    DatabaseError
        One of the two can't be reached, or the target can't hold a value; it is left empty.
    """
    if target.url == source.url:
        raise InputError("the database to move to is the one in use")
    if target.dialect.name == "sqlite" and target.url.database in (None, "", ":memory:"):
        raise InputError("a database in memory would be gone at once: give sqlite:///PATH")
    with reading(target) as connection:
        _refuse_other_tables(connection)
        _refuse_rows(connection)
    migrate(target)
    moved: list[Moved] = []
    try:
        with (
            alone(source, "harvest"),
            alone(target, "harvest"),
            snapshot(source) as theirs,
            writing(target) as ours,
        ):
            _lock(ours)
            _refuse_rows(ours)
            sent = [_copy(theirs, ours, table, progress) for table in metadata.sorted_tables]
            _complete(ours)
            for table, was in zip(metadata.sorted_tables, sent, strict=True):
                moved.append(Moved(table.name, was, _sum(ours, table, was.rows, progress)))
            if not all(each.same for each in moved):
                raise _DifferentError
    except _DifferentError:  # its way out of the transaction, which takes everything back
        return moved
    return moved


class _DifferentError(Exception):
    """What arrived is not what was sent."""


def _refuse_other_tables(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    taken = sorted(there & set(metadata.tables))
    if taken and "alembic_version" not in there:
        raise ConflictError(
            f"the database to move to has tables of something else: {', '.join(taken)}; "
            "give an empty one"
        )


def _refuse_rows(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    counts = {
        table.name: connection.scalar(select(func.count()).select_from(table)) or 0
        for table in metadata.sorted_tables
        if table.name in there
    }
    held = ", ".join(f"{name} ({count:,})" for name, count in counts.items() if count)
    if held:
        raise ConflictError(
            f"the database to move to is in use: it holds {held}; give an empty one"
        )


def _lock(connection: Connection) -> None:
    """Keep other writers out, who may have waited for the schema; on SQLite they are already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"LOCK TABLE {_names(connection)} IN SHARE ROW EXCLUSIVE MODE"))


def _copy(source: Connection, target: Connection, table: Table, progress: Progress | None) -> Sum:
    total = source.scalar(select(func.count()).select_from(table)) or 0
    names = [column.name for column in table.columns]
    counted = _Counted(table, table.name, total, progress)
    for rows in _batches(source, table):
        counted.add(rows)
        try:
            target.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
        except (DataError, IntegrityError) as error:
            reason = str(error.orig).strip().splitlines()[0]
            raise DatabaseError(
                f"a row of {table.name} can't be kept in the other database: {reason}"
            ) from error
    return counted.sum


def _sum(connection: Connection, table: Table, total: int, progress: Progress | None) -> Sum:
    counted = _Counted(table, f"check {table.name}", total, progress)
    for rows in _batches(connection, table):
        counted.add(rows)
    return counted.sum


def _batches(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    """The rows, as many at a time as are of some megabytes by the largest one so far."""
    # A buffer of SQLAlchemy's own would hold a thousand rows, whatever their size.
    options = {"stream_results": True, "max_row_buffer": 1}
    chosen = select(table).order_by(*table.primary_key.columns)
    with connection.execute(chosen, execution_options=options) as result:
        count, largest = 1, 1
        while rows := result.fetchmany(count):
            yield rows
            largest = max(largest, *map(_size, rows))
            count = max(1, min(2 * count, _BATCH_BYTES // largest, _BATCH_ROWS))


def _size(row: Sequence[Any]) -> int:
    return sum(len(value) if isinstance(value, bytes | str) else 8 for value in row)


class _Counted:
    """The sum of the rows that go by."""

    def __init__(self, table: Table, phase: str, total: int, progress: Progress | None) -> None:
        self._footprints = [
            place
            for place, column in enumerate(table.columns)
            if isinstance(column.type, Footprint)
        ]
        self._phase, self._total, self._progress = phase, total, progress
        self._rows = self._digests = 0
        self._show()

    @property
    def sum(self) -> Sum:
        return Sum(self._rows, f"{self._digests % 2**128:032x}")

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            digest = hashlib.blake2b(digest_size=16)
            for place, value in enumerate(row):
                plain = _plain(value) if place in self._footprints else value
                kind, data = _encoded(plain)
                digest.update(b"%b%d:" % (kind, len(data)))
                digest.update(data)
            self._digests += int.from_bytes(digest.digest())
        self._rows += len(rows)
        self._show()

    def _show(self) -> None:
        if self._progress is not None:
            self._progress(self._phase, self._rows, self._total)


def _plain(wkb: bytes | None) -> bytes | None:
    """WKB as it is spelt here: little-endian, of ISO's types, without an SRID."""
    if wkb is None:
        return None
    return bytes(shapely.to_wkb(shapely.from_wkb(wkb), byte_order=1, flavor="iso"))


def _encoded(value: object) -> tuple[bytes, bytes]:
    """The kind of a value, and bytes that no other value of its kind has."""
    match value:
        case None:
            return b"n", b""
        case bool():
            return b"b", b"%d" % value
        case int():
            return b"i", b"%d" % value
        case float():
            return b"f", struct.pack(">d", value)
        case str():
            return b"s", value.encode()
        case bytes():
            return b"r", value
        case datetime():
            return b"t", b"%d" % to_microseconds(value)
        case dict() | list():
            return b"j", json.dumps(_numbered(value), sort_keys=True).encode()
    raise TypeError(f"a column holds {type(value).__name__}, which has no encoding here")


def _numbered(value: Any) -> Any:
    """JSON whose numbers are spelt in one way: PostgreSQL's jsonb makes 1e22 an integer."""
    if isinstance(value, dict):
        return {name: _numbered(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_numbered(member) for member in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _complete(connection: Connection) -> None:
    """What rows alone don't bring: the R*Tree, or counters that go on after the highest key."""
    if connection.dialect.name == "sqlite":
        index_boxes(connection)
        return
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            highest = connection.scalar(select(func.max(column)))
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(select(func.setval(sequence, highest or 1, highest is not None)))
    # Searches are planned by what it finds; by itself it would come some minutes later.
    connection.execute(text(f"ANALYZE {_names(connection)}"))


def _names(connection: Connection) -> str:
    return ", ".join(map(connection.dialect.identifier_preparer.quote, metadata.tables))
