"""Items of anyone's into the catalog, from a file.

All of a file is read and checked before the database is touched, and what was made is kept in a
temporary file meanwhile. It is then written in one transaction: like a harvest, an import is alone,
and all or nothing.
"""

from __future__ import annotations

import gzip
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, select

from firnline import runs
from firnline.collections import COLLECTIONS, collection
from firnline.database import ItemRow, put_collections, put_items, snapshot, writing
from firnline.errors import DatabaseError, FirnlineError, InputError, SourceMissingError
from firnline.indexer.catalog import Failure
from firnline.indexer.changes import STRIDE, Progress, counted, put_extent
from firnline.indexer.foreign import UnusableError, foreign_collection, foreign_row
from firnline.indexer.item_files import Items, open_items
from firnline.indexer.report import Counts, total
from firnline.items import CUBES, MOSAICS, SUBSETS, encode
from firnline.locks import alone
from firnline.tables import collections, items, subsets
from firnline.version import __version__


@dataclass(frozen=True)
class Imported:
    """What became of the items of a file."""

    file: str
    place: str
    """What a failure's index counts, from 1: ``line`` or ``row``."""
    started: datetime
    finished: datetime
    counts: Mapping[str, Counts]
    """By collection."""
    failures: tuple[Failure, ...]
    """What gave no item, each with its reason."""
    written: int = 0

    @property
    def total(self) -> Counts:
        """The sum over the collections."""
        return total(self.counts)

    def lines(self, *, failures: int = 20) -> list[str]:
        """The report for people; of the failures the first so many, each with its reason."""
        lines = [
            f"{name}: {counts.added} added, {counts.changed} changed, {counts.unchanged} unchanged"
            + (f", {counts.revived} revived" if counts.revived else "")
            for name, counts in self.counts.items()
        ]
        lines.append(f"{len(self.failures)} failed" if self.failures or lines else "nothing there")
        for failure in self.failures[:failures]:
            place = "" if failure.index is None else f"{self.place} {failure.index} "
            lines.append(f"  {place}{failure.id or 'without an id'}: {failure.reason}")
        if len(self.failures) > failures:
            lines.append(f"  and {len(self.failures) - failures} more (--json lists all)")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return self._told() | {
            "failures": [
                {self.place: failure.index, "id": failure.id, "reason": failure.reason}
                for failure in self.failures
            ]
        }

    def to_log(self) -> str:
        """The same as one JSON document that the run log takes, as of a harvest."""
        failures = [asdict(failure) for failure in self.failures]
        return json.dumps(self._told() | {"failures": failures})

    def _told(self) -> dict[str, Any]:
        return {
            "sources": [_source(Path(self.file))],
            "file": self.file,
            "firnline": __version__,
            "started": self.started.isoformat(),
            "finished": self.finished.isoformat(),
            "seconds": round((self.finished - self.started).total_seconds(), 3),
            "deep": False,
            "not_modified_since": None,
            **asdict(self.total),
            "failed": len(self.failures),
            "written": self.written,
            "collections": {name: asdict(counts) for name, counts in self.counts.items()},
        }


def import_catalog(
    engine: Engine,
    path: Path,
    *,
    collection_files: Sequence[Path] = (),
    public_url: str = "",
    progress: Progress | None = None,
) -> Imported:
    """Put the items of a file into the catalog, beside those that are there.

    An item that is there already is replaced if it is another one, and left alone if it is the
    same, whatever it was harvested from: then later harvests treat it as they did. What an import
    brought, no harvest retires.

    Parameters
    ----------
    engine
        A migrated database.
    path
        stac-geoparquet or NDJSON, by its ending.
    collection_files
        STAC collections as JSON, which replace those that are there. Items of a collection that
        neither these, nor the file itself, nor the catalog has, fail.
    public_url
        The address of this service, as for :func:`firnline.indexer.exports.export_catalog`.

    Raises
    ------
    InputError
        An ending that says nothing; a collection file that is none.
    ConflictError
        A harvest or another import is under way.
    SourceMissingError, SourceCorruptError
        A file is not there, or as a whole not what it should be; nothing was written.
    DatabaseError
    """
    found = open_items(path)
    given = dict(_read_collection(file, public_url) for file in collection_files)
    with alone(engine, "harvest"):
        started = datetime.now(UTC)
        run = runs.begin(engine, (_source(path),), started)
        work = _Import(
            engine, path, found, given, public_url, started, progress or (lambda *_: None)
        )
        try:
            return work.run(run)
        except FirnlineError as error:
            with suppress(DatabaseError), writing(engine) as connection:
                runs.finish(connection, run, error=str(error))
            raise


def _source(path: Path) -> str:
    """What `items.source` has for items of a file; no harvest has such a source."""
    return f"import:{path.name}"


def _read_collection(path: Path, public_url: str) -> tuple[str, bytes]:
    try:
        return foreign_collection(orjson.loads(path.read_bytes()), public_url=public_url)
    except OSError as error:
        raise SourceMissingError(f"--collection {path}: {error.strerror}") from None
    except (orjson.JSONDecodeError, UnusableError) as error:
        raise InputError(f"--collection {path} is not a STAC collection: {error}") from None


@dataclass
class _Import:
    """An import under way."""

    engine: Engine
    path: Path
    found: Items
    given: Mapping[str, bytes]
    public_url: str
    started: datetime
    progress: Progress
    brought: dict[str, bytes] = field(default_factory=dict)
    """Collections of the file itself."""
    failures: list[Failure] = field(default_factory=list)

    def run(self, run: int) -> Imported:
        with snapshot(self.engine) as connection:
            stored = set(connection.scalars(select(collections.c.id)))
        self._take_collections()
        known = stored | self.given.keys() | self.brought.keys() | set(COLLECTIONS)
        with tempfile.TemporaryFile() as file:
            with gzip.open(file, "wb", compresslevel=1) as spool:  # a tenth: items are alike
                count = self._spool(spool, known)
            file.seek(0)
            with gzip.open(file) as spool, writing(self.engine) as connection:
                self._put_collections(connection)
                counts, written = self._store(connection, spool, count)
                for name in (CUBES, MOSAICS):
                    replaced = name in self.given or (name in self.brought and name not in stored)
                    if written[name] and not replaced:
                        put_extent(connection, name)
                report = Imported(
                    file=str(self.path),
                    place=self.found.place,
                    started=self.started,
                    finished=datetime.now(UTC),
                    counts=counts,
                    failures=tuple(self.failures),
                    written=written.total(),
                )
                runs.finish(connection, run, report=report.to_log())
        return report

    def _take_collections(self) -> None:
        for document in self.found.collections:
            try:
                id, content = foreign_collection(document, public_url=self.public_url)
            except UnusableError as error:
                name = document.get("id") if isinstance(document, dict) else None
                self.failures.append(Failure(None, _label(name), f"as a collection, {error}"))
            else:
                self.brought[id] = content

    def _spool(self, spool: gzip.GzipFile, known: set[str]) -> int:
        """The rows of all items that can be taken, into a file; their number."""
        seen: dict[tuple[str, str], int] = {}
        for number, item in counted(self.found.each(), self.found.count, "read", self.progress):
            if isinstance(item, str):
                self.failures.append(Failure(number, None, item))
                continue
            try:
                row = foreign_row(item, _source(self.path), public_url=self.public_url)
                if row.collection not in known:
                    raise UnusableError(
                        f"there is no collection {row.collection!r}: give it with --collection"
                    )
                first = seen.setdefault((row.collection, row.id), number)
                if first != number:
                    raise UnusableError(f"the same item as in {self.found.place} {first}")
            except UnusableError as error:
                self.failures.append(Failure(number, _label(item.get("id")), str(error)))
                continue
            pickle.dump((number, row), spool)
        return len(seen)

    def _put_collections(self, connection: Connection) -> None:
        stored = set(connection.scalars(select(collections.c.id)))
        templates = {id: encode(collection(id)) for id in COLLECTIONS}
        absent = {
            id: content for id, content in {**templates, **self.brought}.items() if id not in stored
        }
        put_collections(connection, {**absent, **self.given}.items())

    def _store(
        self, connection: Connection, spool: gzip.GzipFile, count: int
    ) -> tuple[dict[str, Counts], Counter[str]]:
        """Write the rows that are new or others; what became of all, and how many were written."""
        became: dict[str, Counter[str]] = {}
        written: Counter[str] = Counter()
        spooled = (pickle.load(spool) for _ in range(count))
        rows: Iterator[tuple[int, ItemRow]] = counted(spooled, count, "store", self.progress)
        own = set(connection.scalars(select(subsets.c.id)))
        while batch := list(islice(rows, STRIDE)):
            put = []
            compared = _compared(connection, [row for _, row in batch])
            for (number, row), what in zip(batch, compared, strict=True):
                if what == "changed" and row.collection == SUBSETS and row.id in own:
                    reason = "this installation has materialised it itself, with other files"
                    self.failures.append(Failure(number, row.id, reason))
                    continue
                became.setdefault(row.collection, Counter())[what] += 1
                if what != "unchanged":
                    written[row.collection] += 1
                    put.append(row)
            put_items(connection, put)
        return {name: Counts(**counter) for name, counter in sorted(became.items())}, written


def _label(id: Any) -> str | None:
    """What to call an item that failed."""
    if id is None:
        return None
    return id[:80] if isinstance(id, str) and id.isprintable() else repr(id)[:80]


def _compared(connection: Connection, rows: Sequence[ItemRow]) -> Iterator[str]:
    """For each row what becomes of it: added, changed, unchanged, revived."""
    stored: dict[tuple[str, str], Any] = {}
    for name in {row.collection for row in rows}:
        chosen = select(items.c.id, items.c.digest, items.c.retired, items.c.content).where(
            items.c.collection == name,
            items.c.id.in_([row.id for row in rows if row.collection == name]),
        )
        stored |= {(name, found.id): found for found in connection.execute(chosen)}
    for row in rows:
        before = stored.get((row.collection, row.id))
        if before is None:
            yield "added"
        elif before.retired is not None:
            yield "revived"
        elif before.digest == row.digest or _alike(before.content, row.content):
            yield "unchanged"
        else:
            yield "changed"


def _alike(one: bytes, other: bytes) -> bool:
    """Whether two items differ only as Parquet can't tell: 1 and 1.0, null and missing."""
    return bool(_without_null(orjson.loads(one)) == _without_null(orjson.loads(other)))


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    return [_without_null(v) for v in value] if isinstance(value, list) else value
