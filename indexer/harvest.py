"""A harvest: what the sources have now, compared with what the database has, and written.

Everything is read and made before the database is touched, and written in one transaction: a
harvest that fails, or is killed, leaves the catalog as it was. There is one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import orjson
import shapely
from sqlalchemy import Connection, Engine, func, select

from firnline import runs
from firnline.collections import COLLECTIONS, Extent, collection
from firnline.database import ItemRow, put_collections, put_items, reading, retire_items, writing
from firnline.deep import Facts, deepened, stored_facts
from firnline.document import Document, Validators, exist, read_document
from firnline.errors import CatalogError, DatabaseError, FirnlineError, InputError
from firnline.indexer.catalog import Failure, read_catalog
from firnline.indexer.mosaics import Cube, mosaic_records
from firnline.indexer.report import Counts, Report
from firnline.items import CUBES, MOSAICS, CubeRecord, cube_item, encode, item_row, mosaic_item
from firnline.locks import alone
from firnline.runs import Reading
from firnline.settings import Settings
from firnline.tables import LIVING, collections, items
from firnline.version import __version__

LARGEST_LOSS = 0.2
"""Share of its cubes that a catalog may lose from one harvest to the next."""

Progress = Callable[[str, int, int], None]
"""Called with the phase (``read``, ``items``, ``check``, ``mosaics``, ``store``), how many are
done, and of how many."""

_STRIDE = 500  # rows between two reports of progress
_SUMMARISED = ("proj:code", "version", "rgi", "temporal_coverage_type", "itslive:region")


def harvest(
    engine: Engine,
    settings: Settings,
    locations: Sequence[str],
    *,
    mosaics: bool = True,
    deep: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Bring the database to what the catalogs at `locations` say.

    Items of these sources that are no longer there are retired: kept, hidden from every reader,
    and back when their source has them again. A cube that several catalogs have is taken from
    the last of them. Catalogs that have not changed since they were last read, as their server
    says, are not read again, unless `deep` or `force` is set, firnline's version or the year is
    another one, or another harvest has changed the catalog since.

    Parameters
    ----------
    engine
        A migrated database.
    locations
        Paths or URLs of datacube catalogs.
    mosaics
        Also the velocity mosaics under ``settings.mosaic_roots``, of all regions whose cubes
        are known.
    deep
        Look which mosaics exist, and leave out those that don't; a later harvest that is not
        deep goes by what was found. Without any deep harvest, all are taken to exist.
    force
        Read the catalogs even if they have not changed, and accept that one lost more than
        :data:`LARGEST_LOSS` of its cubes.
    dry_run
        Compare, and write nothing.

    Raises
    ------
    InputError
        There are no locations.
    ConflictError
        Another harvest of this database is under way.
    SourceUnreachableError, SourceMissingError, SourceNotAllowedError
        A catalog can't be read, or the existence of a mosaic not be asked; the database is as
        before.
    CatalogError
        A catalog is not one, or has lost more than :data:`LARGEST_LOSS` of its cubes.
    DatabaseError
    """
    if not locations:
        raise InputError("there is no catalog to harvest: give a path or a URL of one")
    sources = tuple(dict.fromkeys(map(str, locations)))
    with nullcontext() if dry_run else alone(engine, "harvest"):
        started = datetime.now(UTC)
        run = _Run(
            engine=engine,
            settings=settings,
            sources=sources,
            started=started,
            mosaics=mosaics,
            deep=deep,
            force=force,
            key=None if dry_run else runs.begin(engine, sources, started),
            progress=progress or (lambda *_: None),
        )
        try:
            return _harvest(run)
        except FirnlineError as error:
            if run.key is not None:
                with suppress(DatabaseError), writing(engine) as connection:
                    runs.finish(connection, run.key, error=str(error))
            raise


@dataclass(frozen=True)
class _Run:
    """One harvest: what it was asked for."""

    engine: Engine
    settings: Settings
    sources: tuple[str, ...]
    started: datetime
    mosaics: bool
    deep: bool
    force: bool
    key: int | None
    """Of its row in the run log; None in a dry run."""
    progress: Progress

    @property
    def dry(self) -> bool:
        return self.key is None

    @property
    def basis(self) -> dict[str, Any]:
        """All but the catalogs that decides what comes of them; see ``Report.basis``."""
        return {
            "firnline": __version__,
            "year": self.started.year,  # nominal time ends with it
            "mosaics": list(self.settings.mosaic_roots) if self.mosaics else None,
        }

    def report(self, **more: Any) -> Report:
        """A report; without more, one of nothing done."""
        values: dict[str, Any] = {"counts": {}, "failures": (), "missing": 0, "repeated": 0}
        return Report(
            **values
            | {
                "sources": self.sources,
                "started": self.started,
                "finished": datetime.now(UTC),
                "dry_run": self.dry,
                "deep": self.deep,
                "basis": self.basis,
            }
            | more
        )


@dataclass(frozen=True)
class _Stored:
    digest: str
    source: str
    retired: bool


def _harvest(run: _Run) -> Report:
    last = None
    if not (run.deep or run.force):
        last = runs.last_reading(run.engine, run.sources, run.basis)
    documents = _read(run, {} if last is None else last.validators)
    if documents is None:
        assert last is not None
        return _unmodified(run, last)
    found: dict[str, tuple[str, CubeRecord]] = {}
    failures: list[Failure] = []
    read = 0
    for source, document in documents.items():
        records, unusable = _records(source, document.data)
        found |= {record.id: (source, record) for record in records}
        failures += [replace(failure, source=source) for failure in unusable]
        read += len(records)

    with reading(run.engine) as connection:
        facts = stored_facts(connection)
    cube_rows = _cube_rows(found.values(), run.started.year, facts)
    rows = {CUBES: list(_counted(cube_rows, len(found), "items", run.progress))}
    owners: dict[str, Sequence[str]] = {CUBES: run.sources}
    missing = 0
    if run.mosaics:
        cubes = [Cube(record.rgi, record.footprint) for _, record in found.values()]
        cubes += _other_cubes(run, found)
        roots = run.settings.mosaic_roots
        made, without, missing = mosaic_records(roots, cubes, exists=_exists(run))
        failures += without
        mosaic_rows = (item_row(mosaic_item(m), m.footprint, m.root) for m in made)
        # Of two roots that have the same mosaic, the later one is taken, as with cubes.
        counted = _counted(mosaic_rows, len(made), "mosaics", run.progress)
        rows[MOSAICS] = list({row.id: row for row in counted}.values())
        owners[MOSAICS] = roots

    report = run.report(
        failures=tuple(failures),
        missing=missing,
        repeated=read - len(found),
        validators={source: document.validators for source, document in documents.items()},
    )
    with reading(run.engine) if run.dry else writing(run.engine) as connection:
        changes = [
            _compare(_stored(connection, name), name, rows[name], owners[name]) for name in rows
        ]
        if not run.force:
            _refuse_losses(changes[0], run.sources)
        report = replace(
            report,
            counts={change.collection: change.counts for change in changes},
            written=sum(len(change.put) + len(change.retired) for change in changes),
        )
        if run.key is not None:
            _write(connection, changes, run.progress)
            report = replace(report, finished=datetime.now(UTC))
            runs.finish(connection, run.key, report=report.to_json())
    return replace(report, finished=datetime.now(UTC))


def _read(run: _Run, known: Mapping[str, Validators]) -> dict[str, Document] | None:
    """The catalogs by source, or None if not one has changed since `known`."""
    documents: dict[str, Document] = {}
    allowed = run.settings.allowed_sources
    for number, source in enumerate(run.sources):
        run.progress("read", number, len(run.sources))
        document = read_document(source, allowed=allowed, known=known.get(source))
        if document is not None:
            documents[source] = document
    if known and not documents:
        run.progress("read", len(run.sources), len(run.sources))
        return None
    for source in run.sources:
        # Of several catalogs one has changed: which cube is whose takes all of them.
        document = documents.get(source) or read_document(source, allowed=allowed)
        assert document is not None
        documents[source] = document
    run.progress("read", len(run.sources), len(run.sources))
    return {source: documents[source] for source in run.sources}


def _unmodified(run: _Run, last: Reading) -> Report:
    owners = {CUBES: run.sources}
    if run.mosaics:
        owners[MOSAICS] = run.settings.mosaic_roots
    with reading(run.engine) if run.dry else writing(run.engine) as connection:
        counts = {
            name: Counts(
                unchanged=connection.scalar(
                    select(func.count()).where(
                        items.c.collection == name, items.c.source.in_(sources), LIVING
                    )
                )
                or 0
            )
            for name, sources in owners.items()
        }
        report = run.report(counts=counts, not_modified_since=last.read, validators=last.validators)
        if run.key is not None:
            runs.finish(connection, run.key, report=report.to_json())
    return report


def _records(source: str, data: bytes) -> tuple[list[CubeRecord], list[Failure]]:
    try:
        return read_catalog(data)
    except CatalogError as error:
        raise CatalogError(f"{source}: {error}") from None


def _exists(run: _Run) -> Callable[[list[str]], list[bool]] | None:
    """Which mosaics there are: as is looked up now, or was by the last deep harvest."""
    settings = run.settings
    if run.deep:

        def look(urls: list[str]) -> list[bool]:
            run.progress("check", 0, len(urls))
            there = exist(urls, allowed=settings.allowed_sources, concurrency=settings.concurrency)
            run.progress("check", len(urls), len(urls))
            return there

        return look
    if not runs.was_deep(run.engine, settings.mosaic_roots):
        return None
    chosen = select(items.c.content).where(items.c.collection == MOSAICS, LIVING)
    with reading(run.engine) as connection:
        known = {
            orjson.loads(content)["assets"]["cog_v"]["href"]
            for content in connection.scalars(chosen)
        }
    return lambda urls: [url in known for url in urls]


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
        items.c.collection == CUBES, items.c.source.not_in(run.sources), LIVING
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
    chosen = select(items.c.id, items.c.digest, items.c.source, items.c.retired).where(
        items.c.collection == name
    )
    return {
        id: _Stored(digest, source, retired is not None)
        for id, digest, source, retired in connection.execute(chosen)
    }


def _compare(
    stored: Mapping[str, _Stored], name: str, rows: list[ItemRow], owners: Sequence[str]
) -> _Change:
    put = []
    added = changed = revived = 0
    for row in rows:
        before = stored.get(row.id)
        if before is None:
            added += 1
        elif before.retired:
            revived += 1
        elif before.digest != row.digest:
            changed += 1
        elif before.source == row.source:
            continue
        put.append(row)
    now = {row.id for row in rows}
    living = {id: before.source for id, before in stored.items() if not before.retired}
    retired = [id for id, source in living.items() if source in owners and id not in now]
    return _Change(
        collection=name,
        put=put,
        retired=retired,
        counts=Counts(added, changed, len(rows) - added - changed - revived, len(retired), revived),
        losses={
            owner: (
                sum(living[id] == owner for id in retired),
                sum(source == owner for source in living.values()),
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
                f"{LARGEST_LOSS:.0%}; refused, since it looks like a damaged one "
                "(`firnline harvest --force` accepts it)"
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
        retire_items(connection, change.collection, change.retired)
        put_extent(connection, change.collection)
    progress("store", total, total)


def put_extent(connection: Connection, name: str) -> None:
    """Bring a collection's extent and summaries to what its items are."""
    put_collections(connection, [(name, encode(collection(name, _extent(connection, name))))])


def _extent(connection: Connection, name: str) -> Extent | None:
    chosen = select(
        items.c.footprint, items.c.content, items.c.start_datetime, items.c.end_datetime
    ).where(items.c.collection == name, LIVING)
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
