"""A harvest: what the sources have now, compared with what the database has, and written.

Everything is read and made before the database is touched, and written in one transaction: a
harvest that fails, or is killed, leaves the catalog as it was.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson
import shapely
from sqlalchemy import Connection, Engine, insert, select

from firnline.collections import COLLECTIONS, Extent, collection
from firnline.database import ItemRow, delete_items, put_collections, put_items, reading, writing
from firnline.deep import Facts, deepened, stored_facts
from firnline.errors import CatalogError, DatabaseError, FirnlineError, InputError
from firnline.indexer.catalog import Failure, read_catalog
from firnline.indexer.mosaics import Cube, mosaic_records
from firnline.items import CUBES, MOSAICS, CubeRecord, cube_item, encode, item_row, mosaic_item
from firnline.settings import Settings
from firnline.source import read_document
from firnline.tables import collections, harvests, items

LARGEST_LOSS = 0.2
"""Share of its cubes that a catalog may lose from one harvest to the next."""

Progress = Callable[[str, int, int], None]
"""Called with the phase (``read``, ``items``, ``mosaics``, ``store``), how many are done, and of
how many."""

_STRIDE = 500  # rows between two reports of progress
_SUMMARISED = ("proj:code", "version", "rgi", "temporal_coverage_type", "itslive:region")


@dataclass(frozen=True)
class Counts:
    """What became of the items of a collection."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    retired: int = 0


@dataclass(frozen=True)
class Report:
    """What a harvest did, or in a dry run would do."""

    sources: tuple[str, ...]
    started: datetime
    finished: datetime
    dry_run: bool
    counts: Mapping[str, Counts]
    """By collection."""
    failures: tuple[Failure, ...]
    """Features and regions that gave no item, each with its reason."""
    missing: int
    """Mosaics that were looked for and don't exist."""
    repeated: int
    """Cubes that a later catalog of the same harvest has too, and that were taken from there."""

    @property
    def failed(self) -> int:
        """Number of features that could not be made items though they should be."""
        return sum(not failure.skipped for failure in self.failures)

    @property
    def skipped(self) -> int:
        """Number of features and regions that are not there, by what the source says."""
        return sum(failure.skipped for failure in self.failures)

    @property
    def total(self) -> Counts:
        """The sum over the collections."""
        rows = [asdict(counts) for counts in self.counts.values()]
        return Counts(**{name: sum(row[name] for row in rows) for name in asdict(Counts())})

    @property
    def added(self) -> int:
        """Items that were not there before, of all collections."""
        return self.total.added

    @property
    def changed(self) -> int:
        """Items whose content changed, of all collections."""
        return self.total.changed

    def lines(self, *, failures: int = 20) -> list[str]:
        """The report for people; of the failures the first so many, each with its reason."""
        lines = [
            f"{name}: {counts.added} added, {counts.changed} changed, "
            f"{counts.unchanged} unchanged, {counts.retired} retired"
            for name, counts in self.counts.items()
        ]
        if self.total == Counts(unchanged=self.total.unchanged):
            lines.append("nothing changed")
        if self.repeated:
            lines.append(
                f"{self.repeated} cubes are in several catalogs: the last one's were taken"
            )
        if self.missing:
            lines.append(f"{self.missing} mosaics don't exist and were left out")
        lines.append(f"{self.failed} failed, {self.skipped} skipped")
        for failure in self.failures[:failures]:
            place = "" if failure.index is None else f"feature {failure.index} "
            lines.append(f"  {place}{failure.id or 'without a name'}: {failure.reason}")
        if len(self.failures) > failures:
            lines.append(f"  and {len(self.failures) - failures} more (--json lists all)")
        if self.dry_run:
            lines.append("dry run: nothing was written")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "sources": list(self.sources),
            "started": self.started.isoformat(),
            "finished": self.finished.isoformat(),
            "seconds": round((self.finished - self.started).total_seconds(), 3),
            "dry_run": self.dry_run,
            **asdict(self.total),
            "failed": self.failed,
            "skipped": self.skipped,
            "missing": self.missing,
            "repeated": self.repeated,
            "collections": {name: asdict(counts) for name, counts in self.counts.items()},
            "failures": [asdict(failure) for failure in self.failures],
        }

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict())


def harvest(
    engine: Engine,
    settings: Settings,
    locations: Sequence[str],
    *,
    mosaics: bool = True,
    dry_run: bool = False,
    exists: Callable[[list[str]], list[bool]] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Bring the database to what the catalogs at `locations` say.

    Items of these sources that are no longer there are removed. A cube that several catalogs
    have is taken from the last of them.

    Parameters
    ----------
    engine
        A migrated database.
    locations
        Paths or URLs of datacube catalogs.
    mosaics
        Also the velocity mosaics under ``settings.mosaic_roots``, of all regions whose cubes
        are known.
    dry_run
        Compare, and write nothing.
    exists
        See :func:`firnline.indexer.mosaics.mosaic_records`.

    Raises
    ------
    InputError
        There are no locations.
    SourceUnreachableError, SourceMissingError, SourceNotAllowedError
        A catalog can't be read; the database is as before.
    CatalogError
        A catalog is not one, or has lost more than :data:`LARGEST_LOSS` of its cubes.
    DatabaseError
    """
    if not locations:
        raise InputError("there is no catalog to harvest: give a path or a URL of one")
    run = _Run(engine, tuple(dict.fromkeys(map(str, locations))), datetime.now(UTC), dry_run)
    try:
        return _harvest(run, settings, mosaics, exists, progress or (lambda *_: None))
    except FirnlineError as error:
        if not dry_run:
            with contextlib.suppress(DatabaseError), writing(engine) as connection:
                _log(connection, run, error=str(error))
        raise


@dataclass(frozen=True)
class _Run:
    engine: Engine
    sources: tuple[str, ...]
    started: datetime
    dry_run: bool


@dataclass(frozen=True)
class _Stored:
    digest: str
    source: str


def _harvest(
    run: _Run,
    settings: Settings,
    mosaics: bool,
    exists: Callable[[list[str]], list[bool]] | None,
    progress: Progress,
) -> Report:
    found: dict[str, tuple[str, CubeRecord]] = {}
    failures: list[Failure] = []
    read = 0
    for number, source in enumerate(run.sources):
        progress("read", number, len(run.sources))
        records, unusable = _read(source, settings.allowed_sources)
        found |= {record.id: (source, record) for record in records}
        failures += [replace(failure, source=source) for failure in unusable]
        read += len(records)
    progress("read", len(run.sources), len(run.sources))

    with reading(run.engine) as connection:
        facts = stored_facts(connection)
    cube_rows = _cube_rows(found.values(), run.started.year, facts)
    rows = {CUBES: list(_counted(cube_rows, len(found), "items", progress))}
    owners: dict[str, Sequence[str]] = {CUBES: run.sources}
    missing = 0
    if mosaics:
        cubes = [Cube(record.rgi, record.footprint) for _, record in found.values()]
        cubes += _other_cubes(run, found)
        made, without, missing = mosaic_records(settings.mosaic_roots, cubes, exists=exists)
        failures += without
        mosaic_rows = (item_row(mosaic_item(m), m.footprint, m.root) for m in made)
        # Of two roots that have the same mosaic, the later one is taken, as with cubes.
        latest = {row.id: row for row in _counted(mosaic_rows, len(made), "mosaics", progress)}
        rows[MOSAICS] = list(latest.values())
        owners[MOSAICS] = settings.mosaic_roots

    report = Report(
        sources=run.sources,
        started=run.started,
        finished=run.started,
        dry_run=run.dry_run,
        counts={},
        failures=tuple(failures),
        missing=missing,
        repeated=read - len(found),
    )
    with reading(run.engine) if run.dry_run else writing(run.engine) as connection:
        changes = [
            _compare(_stored(connection, name), name, rows[name], owners[name]) for name in rows
        ]
        _refuse_losses(changes[0], run.sources)
        report = replace(
            report,
            counts={change.collection: change.counts for change in changes},
            finished=datetime.now(UTC),
        )
        if not run.dry_run:
            _write(connection, changes, progress)
            report = replace(report, finished=datetime.now(UTC))
            _log(connection, run, report=report.to_json())
    return report


def _read(source: str, allowed: Sequence[str]) -> tuple[list[CubeRecord], list[Failure]]:
    data = read_document(source, allowed=allowed)
    try:
        return read_catalog(data)
    except CatalogError as error:
        raise CatalogError(f"{source}: {error}") from None


def _cube_rows(
    found: Iterable[tuple[str, CubeRecord]],
    last_year: int,
    facts: Mapping[str, tuple[str, Facts]],
) -> Iterator[ItemRow]:
    for source, record in found:
        item = deepened(cube_item(record, last_year=last_year), facts)
        yield item_row(item, record.footprint, source)


def _counted(
    rows: Iterable[ItemRow], total: int, phase: str, progress: Progress
) -> Iterator[ItemRow]:
    for done, row in enumerate(rows):
        if done % _STRIDE == 0:
            progress(phase, done, total)
        yield row
    progress(phase, total, total)


def _other_cubes(run: _Run, found: Mapping[str, Any]) -> list[Cube]:
    """Cubes of other sources: a mosaic's outline must not depend on which catalog came last."""
    chosen = select(items.c.id, items.c.content, items.c.footprint).where(
        items.c.collection == CUBES, items.c.source.not_in(run.sources)
    )
    with reading(run.engine) as connection:
        stored = connection.execute(chosen).all()
    return [
        Cube(
            orjson.loads(content)["properties"].get("itslive:rgi_code"), shapely.from_wkb(footprint)
        )
        for id, content, footprint in stored
        if id not in found
    ]


@dataclass(frozen=True)
class _Change:
    """What to write of one collection."""

    collection: str
    put: list[ItemRow]
    retired: list[str]
    counts: Counts
    losses: Mapping[str, tuple[int, int]]
    """By source: how many of its items are gone, of how many."""


def _stored(connection: Connection, name: str) -> dict[str, _Stored]:
    chosen = select(items.c.id, items.c.digest, items.c.source).where(items.c.collection == name)
    return {id: _Stored(digest, source) for id, digest, source in connection.execute(chosen)}


def _compare(
    stored: Mapping[str, _Stored], name: str, rows: list[ItemRow], owners: Sequence[str]
) -> _Change:
    put = []
    added = changed = 0
    for row in rows:
        before = stored.get(row.id)
        if before is None:
            added += 1
        elif before.digest != row.digest:
            changed += 1
        elif before.source == row.source:
            continue
        put.append(row)
    now = {row.id for row in rows}
    retired = [id for id, before in stored.items() if before.source in owners and id not in now]
    return _Change(
        collection=name,
        put=put,
        retired=retired,
        counts=Counts(added, changed, len(rows) - added - changed, len(retired)),
        losses={
            owner: (
                sum(stored[id].source == owner for id in retired),
                sum(before.source == owner for before in stored.values()),
            )
            for owner in owners
        },
    )


def _refuse_losses(change: _Change, sources: Sequence[str]) -> None:
    for source in sources:
        lost, before = change.losses[source]
        if lost > LARGEST_LOSS * before:
            raise CatalogError(
                f"{source}: the catalog lost {lost} of its {before} cubes, more than "
                f"{LARGEST_LOSS:.0%}; refused, since it looks like a damaged one"
            )


def _write(connection: Connection, changes: Sequence[_Change], progress: Progress) -> None:
    known = set(connection.scalars(select(collections.c.id)))
    # Items refer to their collection, so it comes first; its extent follows from the items.
    put_collections(
        connection, [(id, encode(collection(id))) for id in COLLECTIONS if id not in known]
    )
    total = sum(len(change.put) for change in changes)
    done = 0
    for change in changes:
        for first in range(0, len(change.put), _STRIDE):
            progress("store", done, total)
            batch = change.put[first : first + _STRIDE]
            put_items(connection, batch)
            done += len(batch)
        delete_items(connection, change.collection, change.retired)
        put_extent(connection, change.collection)
    progress("store", total, total)


def put_extent(connection: Connection, name: str) -> None:
    """Bring a collection's extent and summaries to what its items are."""
    put_collections(connection, [(name, encode(collection(name, _extent(connection, name))))])


def _extent(connection: Connection, name: str) -> Extent | None:
    chosen = select(
        items.c.footprint, items.c.content, items.c.start_datetime, items.c.end_datetime
    ).where(items.c.collection == name)
    rows = connection.execute(chosen).all()
    if not rows:
        return None
    west, south, east, north = shapely.total_bounds(shapely.from_wkb([row[0] for row in rows]))
    properties = [orjson.loads(row[1])["properties"] for row in rows]
    return Extent(
        bbox=(float(west), float(south), float(east), float(north)),
        start=min(row[2] for row in rows),
        end=max(row[3] for row in rows),
        summaries={
            key: sorted({values[key] for values in properties if values.get(key) is not None})
            for key in _SUMMARISED
        },
    )


def _log(
    connection: Connection, run: _Run, *, report: str | None = None, error: str | None = None
) -> None:
    connection.execute(
        insert(harvests).values(
            source=" ".join(run.sources),
            started=run.started,
            finished=datetime.now(UTC),
            report=report,
            error=error,
        )
    )
