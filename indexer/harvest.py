"""A harvest: what the sources have now, compared with what the database has, and written.

Everything is read and made before the database is touched, and written in one transaction: a
harvest that fails, or is killed, leaves the catalog as it was. There is one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, func, select

from firnline import runs
from firnline.allowed import check_allowed
from firnline.database import reading, writing
from firnline.document import Document, Validators, read_document
from firnline.errors import CatalogError, DatabaseError, FirnlineError, InputError
from firnline.indexer.catalog import Failure, read_catalog
from firnline.indexer.changes import compare, counted, refuse_losses, stored_rows, write
from firnline.indexer.presence import Files
from firnline.indexer.report import Counts, Report
from firnline.indexer.rows import Mosaic, composites, cube_rows, mosaic_candidates
from firnline.items import CUBES, MOSAICS, CubeRecord
from firnline.locks import alone
from firnline.runs import Reading
from firnline.settings import Settings
from firnline.tables import LIVING, items
from firnline.version import __version__

Progress = Callable[[str, int, int], None]
"""Called with the phase, how many are done, and of how many. Phases: ``read``, ``items``,
``mosaics``, ``store``; in a deep harvest also ``composites``, ``check``, ``grids``."""


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
        Look which files of the mosaics, and which composites of the cubes, exist, and leave out
        those that don't; a later harvest that is not deep goes by what was found. Files that no
        one has looked for are taken to exist.
    force
        Read the catalogs even if they have not changed, accept that one lost more than
        :data:`firnline.indexer.changes.LARGEST_LOSS` of its cubes, and look for every file.
    dry_run
        Compare, and write nothing.

    Raises
    ------
    InputError
        There are no locations.
    ConflictError
        Another harvest of this database is under way.
    SourceUnreachableError, SourceMissingError, SourceNotAllowedError
        A catalog can't be read, or the mosaics' host is down; the catalog is as before.
    CatalogError
        A catalog is not one, or has lost more than ``LARGEST_LOSS`` of its cubes.
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
                "run": self.key,
                "deep": self.deep,
                "basis": self.basis,
            }
            | more
        )


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

    files = Files(run.engine, run.settings, keep=not run.dry, progress=run.progress)
    if run.deep:
        files.ask(composites(found), run.started, phase="composites", everything=run.force)
    made = cube_rows(run.engine, found, files.known, last_year=run.started.year)
    rows = {CUBES: list(counted(made, len(found), "items", run.progress))}
    owners: dict[str, Sequence[str]] = {CUBES: run.sources}
    candidates: list[Mosaic] = []
    if run.mosaics:
        owners[MOSAICS] = roots = run.settings.mosaic_roots
        candidates, without = mosaic_candidates(run.engine, roots, run.sources, found, rows[CUBES])
        failures += without
        if run.deep:
            _look(run, candidates, files)
        there = (row for each in candidates if (row := each.row(files.known)) is not None)
        # Of two roots that have the same mosaic, the later one is taken, as with cubes.
        shown = counted(there, len(candidates), "mosaics", run.progress)
        rows[MOSAICS] = list({row.id: row for row in shown}.values())

    urls = {file.url for mosaic in candidates for file in mosaic.files()}
    urls |= {file.url for file in composites(found)}
    report = run.report(
        failures=(*failures, *files.failures),
        asked=files.asked,
        missing=sum(map(files.is_missing, urls)),
        repeated=read - len(found),
        validators={source: document.validators for source, document in documents.items()},
    )
    with reading(run.engine) if run.dry else writing(run.engine) as connection:
        changes = [
            compare(stored_rows(connection, name), name, rows[name], owners[name]) for name in rows
        ]
        if not run.force:
            refuse_losses(changes[0], run.sources)
        report = replace(
            report,
            counts={change.collection: change.counts for change in changes},
            written=sum(len(change.put) + len(change.retired) for change in changes),
        )
        if run.key is not None:
            write(connection, changes, run.progress)
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


def _look(run: _Run, mosaics: Sequence[Mosaic], files: Files) -> None:
    """Learn which files of the mosaics there are, and what grids they have."""
    for root in run.settings.mosaic_roots:
        check_allowed(root, run.settings.allowed_sources)
    targets = (file for mosaic in mosaics for file in mosaic.files())
    files.ask(targets, run.started, phase="check", everything=run.force)
    files.read_grids((mosaic.item, mosaic.root) for mosaic in mosaics)


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
