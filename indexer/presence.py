"""Which files there are: those of the mosaics and the composites, asked for once and remembered.

Names of mosaics follow from a template, and those of composites stand in the catalog: neither says
that the file exists. A file that was found is believed for some weeks, since its name carries
region, year and version and is not taken back; one that was missing is asked for each time.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import Engine

from firnline.database import reading, writing
from firnline.document import look_up
from firnline.errors import FirnlineError, SourceUnreachableError
from firnline.indexer.catalog import Failure
from firnline.indexer.cog import read_grid
from firnline.items import FILE, MOSAICS
from firnline.settings import Settings
from firnline.source import Source
from firnline.source_files import Grid, SourceFile, known_files, put_files

CYCLE = 30
"""Days within which a file that was found is asked for again."""
VELOCITIES = ("cog_v", "cog_vx", "cog_vy")
"""Assets of which a mosaic has one at least; the first one that it has tells its grid."""

_METADATA = (".zmetadata", "zarr.json")  # one of them is there where a Zarr store is
_OUTAGE = 8
"""Files in a row without an answer after which it's their host that is down."""
_BATCH = 500  # answers that are written at a time

Item = dict[str, Any]
Known = Mapping[str, SourceFile]
Progress = Callable[[str, int, int], None]
Answer = TypeVar("Answer")


def is_due(file: SourceFile | None, now: datetime) -> bool:
    """Whether to ask for a file: every time, unless it was found.

    Then on one day in :data:`CYCLE`, or on the first chance after it. Each file has a day of its
    own, so that after a first look at all of them every day has its share.
    """
    if file is None or not file.found:
        return True
    shift = zlib.crc32(file.url.encode()) % CYCLE
    before, today = ((at.toordinal() + shift) // CYCLE for at in (file.asked, now))
    return today > before


def present(item: Item, known: Known) -> Item | None:
    """The item with what is known of its files.

    Assets that are missing are left out, and a mosaic that has none of :data:`VELOCITIES`
    altogether (None); the others tell size and ETag, where they were asked for, and a mosaic its
    grid. Files that no one has asked for are believed to be there.
    """
    assets: dict[str, dict[str, Any]] = {}
    for key, asset in item["assets"].items():
        file = known.get(asset["href"])
        if file is None:
            assets[key] = asset
        elif file.found:
            more = {"file:size": file.size, "itslive:etag": file.etag}
            assets[key] = asset | {name: value for name, value in more.items() if value is not None}
    item = {**item, "assets": assets}
    if any("file:size" in asset for asset in assets.values()):
        item["stac_extensions"] = [*item["stac_extensions"], FILE]
    if item["collection"] != MOSAICS:
        return item
    telling = _telling(item)
    if telling is None:
        return None
    file = known.get(assets[telling]["href"])
    if file is not None and file.grid is not None:
        item["properties"] = item["properties"] | {
            "proj:shape": list(file.grid.shape),
            "proj:transform": list(file.grid.transform),
            "proj:bbox": file.grid.bbox,
        }
    return item


@dataclass(frozen=True)
class Target:
    """A file to ask for."""

    url: str
    label: str
    """What it is of, for people."""
    source: str
    """The catalog or root that tells of it."""
    zarr: bool = False
    """Whether it is a Zarr store: then it's there if its consolidated metadata is."""

    @property
    def names(self) -> tuple[str, ...]:
        """URLs of which one has to be there."""
        return tuple(f"{self.url}/{name}" for name in _METADATA) if self.zarr else (self.url,)

    def failure(self, error: FirnlineError) -> Failure:
        """The reason why nothing new is known of it."""
        return Failure(None, self.label, str(error), source=self.source)


def asset_target(item: Item, key: str, source: str) -> Target:
    """The file of an asset."""
    return Target(item["assets"][key]["href"], f"{item['id']} {key}", source)


class Files:
    """What is known of the files, and ways to learn more.

    What is learnt is written as it comes, so that a run that was interrupted goes on.

    Parameters
    ----------
    keep
        False to write nothing.

    Attributes
    ----------
    known : dict
        By URL.
    failures : list
        Files that did not answer, or are not what they should be; what was known of them holds.
    asked : int
        How many files were asked for.
    """

    def __init__(
        self, engine: Engine, settings: Settings, *, keep: bool, progress: Progress
    ) -> None:
        self._engine, self._settings = engine, settings
        self._keep, self._progress = keep, progress
        with reading(engine) as connection:
            self.known = known_files(connection)
        self.failures: list[Failure] = []
        self.asked = 0

    def is_missing(self, url: str) -> bool:
        """Whether its server said that there is no such file."""
        file = self.known.get(url)
        return file is not None and not file.found

    def ask(
        self, targets: Iterable[Target], now: datetime, *, phase: str, everything: bool = False
    ) -> None:
        """Ask for those files that are due, or for everything.

        Raises
        ------
        SourceUnreachableError
            Their host is down.
        """
        # both versions of a mosaic have the same browse image
        once = {target.url: target for target in targets}
        due = [
            target for url, target in once.items() if everything or is_due(self.known.get(url), now)
        ]
        self.asked += len(due)
        self._note(self._answers(due, now, phase))

    def read_grids(self, mosaics: Iterable[tuple[Item, str]]) -> None:
        """Read the header of one COG of each mosaic (with its source) whose grid is not known."""
        targets: dict[str, tuple[Target, str]] = {}
        for item, source in mosaics:
            there = present(item, self.known)
            telling = None if there is None else _telling(there)
            if telling is None:
                continue
            target = asset_target(item, telling, source)
            file = self.known.get(target.url)
            if file is not None and file.grid is None:
                targets[target.url] = target, item["properties"]["proj:code"]
        self._note(self._grids(list(targets.values())))

    def _note(self, learnt: Generator[SourceFile]) -> None:
        batch: list[SourceFile] = []
        with closing(learnt):
            for file in learnt:
                self.known[file.url] = file
                batch.append(file)
                if len(batch) == _BATCH:
                    self._write(batch)
                    batch = []
        self._write(batch)

    def _write(self, batch: list[SourceFile]) -> None:
        if self._keep and batch:
            with writing(self._engine) as connection:
                put_files(connection, batch)

    def _answers(self, due: Sequence[Target], now: datetime, phase: str) -> Generator[SourceFile]:
        answers = look_up(
            [target.names for target in due],
            allowed=self._settings.allowed_sources,
            concurrency=self._settings.concurrency,
        )
        for target, answer in self._answered(due, answers, phase):
            if isinstance(answer, FirnlineError):
                self.failures.append(target.failure(answer))
            elif answer is None:
                yield SourceFile(target.url, False, now)
            else:
                # what tells of a Zarr store is one of its files, whose size is not the store's
                size = None if target.zarr else answer.size
                seen = SourceFile(target.url, True, now, answer.etag, size)
                before = self.known.get(target.url)
                if before is not None and answer.etag is not None and answer.etag == before.etag:
                    seen = replace(seen, grid=before.grid)
                yield seen

    def _grids(self, targets: Sequence[tuple[Target, str]]) -> Generator[SourceFile]:
        # one store for a folder: it keeps its connections
        opened = cache(lambda folder: Source(folder, allowed=self._settings.allowed_sources))

        def read(target: tuple[Target, str]) -> Grid | FirnlineError:
            folder, _, name = target[0].url.rpartition("/")
            try:
                return read_grid(opened(folder), name, target[1])
            except FirnlineError as error:
                return error

        def grids() -> Generator[Grid | FirnlineError]:
            with ThreadPoolExecutor(self._settings.concurrency) as executor:
                try:
                    yield from executor.map(read, targets)
                finally:
                    executor.shutdown(cancel_futures=True)

        files = [target for target, _ in targets]
        for target, grid in self._answered(files, grids(), "grids"):
            if isinstance(grid, Grid):
                yield replace(self.known[target.url], grid=grid)
            else:
                self.failures.append(target.failure(grid))

    def _answered(
        self, targets: Sequence[Target], answers: Generator[Answer], phase: str
    ) -> Iterator[tuple[Target, Answer]]:
        """Each target with its answer, until so many in a row are none."""
        unreached = 0
        with closing(answers):  # at once: who answers may be about to ask for thousands more
            for done, (target, answer) in enumerate(zip(targets, answers, strict=True)):
                self._progress(phase, done, len(targets))
                unreached = unreached + 1 if isinstance(answer, SourceUnreachableError) else 0
                if unreached == _OUTAGE:
                    raise SourceUnreachableError(
                        f"{unreached} files in a row gave no answer, the last one: {answer}"
                    )
                yield target, answer
        if targets:
            self._progress(phase, len(targets), len(targets))


def _telling(item: Item) -> str | None:
    """The asset that tells a mosaic's grid."""
    return next((key for key in VELOCITIES if key in item["assets"]), None)
