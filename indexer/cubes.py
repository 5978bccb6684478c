"""The deep read: what each cube of the catalog says of itself, into its item and the pairs' index.

One request tells whether a cube is as it was; else its metadata and a dozen 1-D arrays are read.
Each cube is written in a transaction of its own as soon as it is read: a run that is killed loses
the cubes under way, and the next one goes on with those that are missing or have changed.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import shapely.geometry
from sqlalchemy import Connection, Engine, select

from firnline import runs
from firnline.arrays import basenames, instants, read_array
from firnline.chunks import ChunkReader
from firnline.cube import Cube, parse_cube, read_metadata
from firnline.database import put_cube, put_items, reading, writing
from firnline.deep import VERSION, Facts, cube_facts, with_facts
from firnline.errors import (
    DatabaseError,
    FirnlineError,
    SourceCorruptError,
    SourceMissingError,
    SourceUnreachableError,
)
from firnline.indexer.catalog import Failure
from firnline.indexer.changes import put_extent
from firnline.items import CUBES, item_row
from firnline.locks import alone
from firnline.pairs import PairColumns, encode_blocks, put_blocks
from firnline.settings import Settings
from firnline.source import Source
from firnline.tables import LIVING, cubes, items

Raw = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[str, int, int], None]
"""Called with the phase (``deep``), how many cubes are done, and of how many."""

_AT_ONCE = 4
"""Most cubes that are read side by side, sharing the requests."""
_MEMORY = 400_000_000
"""Bytes that a cube of 80,000 pairs takes while the URLs of its granules are decoded."""
_OUTAGE = 8
"""Cubes in a row that could not be reached after which it's their host that is down."""


@dataclass(frozen=True)
class DeepReport:
    """What a deep read did."""

    started: datetime
    finished: datetime
    read: int
    """Cubes that were new or had changed, and were read."""
    unchanged: int
    """Cubes whose metadata still has the ETag of the last time."""
    pairs: int
    """Image pairs of the cubes that were read."""
    failures: tuple[Failure, ...]
    """Cubes that could not be read, each with its reason; their items are as before."""

    @property
    def failed(self) -> int:
        """Number of cubes that could not be read."""
        return len(self.failures)

    def lines(self, *, failures: int = 20) -> list[str]:
        """The report for people; of the failures the first so many."""
        lines = [
            f"deep read: {self.read} cubes read ({self.pairs:,} image pairs), "
            f"{self.unchanged} unchanged, {self.failed} failed"
        ]
        lines += [f"  {failure.id}: {failure.reason}" for failure in self.failures[:failures]]
        if self.failed > failures:
            lines.append(f"  and {self.failed - failures} more (--json lists all)")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "started": self.started.isoformat(),
            "finished": self.finished.isoformat(),
            "seconds": round((self.finished - self.started).total_seconds(), 3),
            "read": self.read,
            "unchanged": self.unchanged,
            "pairs": self.pairs,
            "failed": self.failed,
            "failures": [asdict(failure) for failure in self.failures],
        }

    def to_json(self) -> str:
        """The report as one JSON document."""
        return json.dumps(self.to_dict())


@dataclass(frozen=True)
class _Task:
    """A cube of the catalog; `etag` is that of the last deep read, if it is still of use."""

    id: str
    url: str
    epsg: int
    etag: str | None


@dataclass(frozen=True)
class _Found:
    """What was read of a cube, ready to be written."""

    cube: Cube
    facts: Facts
    pairs: int
    blocks: list[dict[str, Any]]
    layout: bytes


def deepen(
    engine: Engine,
    settings: Settings,
    progress: Progress | None = None,
    *,
    run: int | None = None,
) -> DeepReport:
    """Read every cube of the catalog that is new or has changed, and update its item.

    Parameters
    ----------
    run
        The harvest (``Report.run``) in whose row of the run log to tell what came of it.

    Raises
    ------
    ConflictError
        Another deep read of this database is under way.
    SourceUnreachableError
        The cubes' host does not answer. What was read before is kept.
    DatabaseError
    """
    started = datetime.now(UTC)
    begun = {"started": started.isoformat()}

    def note(**outcome: Any) -> None:
        if run is not None:
            runs.note_deep_read(engine, run, begun | outcome)

    try:
        with alone(engine, "deep-read"):
            note(status="unfinished")
            report = _deepen(engine, settings, started, progress or (lambda *_: None))
            note(status="successful", **report.to_dict())
            return report
    except FirnlineError as error:
        with suppress(DatabaseError):
            note(status="failed", error=str(error))
        raise


def _deepen(
    engine: Engine, settings: Settings, started: datetime, progress: Progress
) -> DeepReport:
    tasks = _tasks(engine)
    read = unchanged = pairs = 0
    failures: list[Failure] = []
    unreached = 0  # in a row
    progress("deep", 0, len(tasks))
    for done, (task, answer) in enumerate(_answers(tasks, settings)):
        if isinstance(answer, FirnlineError):
            failures.append(Failure(None, task.id, str(answer), source=task.url))
            unreached = unreached + 1 if isinstance(answer, SourceUnreachableError) else 0
            if unreached == min(_OUTAGE, len(tasks)):
                raise SourceUnreachableError(
                    f"{unreached} cubes in a row could not be reached, the last one: {answer}; "
                    f"{read} were read before"
                ) from answer
        elif answer is None:
            unchanged += 1
            unreached = 0
        else:
            with writing(engine) as connection:
                _write(connection, task, answer)
            read += 1
            pairs += answer.pairs
            unreached = 0
        progress("deep", done + 1, len(tasks))
    if read:
        with writing(engine) as connection:
            put_extent(connection, CUBES)
    return DeepReport(started, datetime.now(UTC), read, unchanged, pairs, tuple(failures))


def _tasks(engine: Engine) -> list[_Task]:
    chosen = (
        select(items.c.id, items.c.content, cubes.c.url, cubes.c.etag, cubes.c.version)
        .join_from(items, cubes, items.c.id == cubes.c.id, isouter=True)
        .where(items.c.collection == CUBES, LIVING)
        .order_by(items.c.id)
    )
    with reading(engine) as connection:
        rows = connection.execute(chosen).all()
    tasks = []
    for id, content, url, etag, version in rows:
        item = orjson.loads(content)
        properties = item["properties"]
        href = item["assets"]["zarr"]["href"]
        epsg = int(properties["proj:code"].rpartition(":")[2])
        # a harvest that ran beside the last deep read may have put its own item over the deep one
        still = (url, version, etag) == (href, VERSION, properties.get("itslive:etag"))
        tasks.append(_Task(id, href, epsg, etag if still else None))
    return tasks


def _answers(
    tasks: Sequence[_Task], settings: Settings
) -> Iterator[tuple[_Task, _Found | FirnlineError | None]]:
    """What came of each cube, in order; a few are under way ahead of the one that is given."""
    waiting: deque[tuple[_Task, Future[_Found | FirnlineError | None]]] = deque()
    requests = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="request")
    at_once = max(1, min(_AT_ONCE, settings.memory_limit // _MEMORY))
    readers = ThreadPoolExecutor(at_once, thread_name_prefix="deep")
    try:
        for task in tasks:
            waiting.append((task, readers.submit(_read, task, settings, requests)))
            if len(waiting) > at_once:
                ready, answer = waiting.popleft()
                yield ready, answer.result()
        while waiting:
            ready, answer = waiting.popleft()
            yield ready, answer.result()
    finally:
        for pool in (readers, requests):
            pool.shutdown(wait=True, cancel_futures=True)


def _read(task: _Task, settings: Settings, requests: Executor) -> _Found | FirnlineError | None:
    """Read one cube; None where it has not changed; an error of its own where it can't be read."""
    try:
        source = Source(task.url, allowed=settings.allowed_sources, signed=settings.signed_sources)
        metadata = read_metadata(source, task.etag)
        if metadata is None:
            return None
        cube = parse_cube(task.url, bytes(metadata.data), metadata.etag)
        reader = ChunkReader(source, version=metadata.etag)
        x, y, pairs, sensors = _columns(reader, cube, requests)
        facts = cube_facts(cube, x, y, pairs, sensors)
        if facts["epsg"] not in (None, task.epsg):
            raise SourceCorruptError(
                f"{task.url} is in EPSG:{facts['epsg']}; its catalog says EPSG:{task.epsg}"
            )
        return _Found(
            cube=cube,
            facts=facts,
            pairs=len(pairs),
            blocks=encode_blocks(pairs),
            layout=zlib.compress(bytes(metadata.data), 6),
        )
    except FirnlineError as error:
        return error


def _columns(
    reader: ChunkReader, cube: Cube, requests: Executor
) -> tuple[Raw, Raw, PairColumns, tuple[str, ...]]:
    """x, y, the image pairs, and the names of the sensors."""
    names = ["x", "y", cube.time, "date_dt", "granule_url"]
    names += [f"{what}_{image}" for what in ("mission", "satellite") for image in ("img1", "img2")]
    optional = ["roi_valid_percentage", "sensor_img1", "sensor_img2"]
    lacking = [name for name in names if name not in cube.arrays]
    if lacking:
        raise SourceMissingError(f"{cube.url} has no {', '.join(lacking)}")
    reads = {
        name: read_array(
            reader,
            cube.arrays[name],
            requests,
            basenames if name == "granule_url" else None,
            needed=name in ("x", "y", cube.time, "granule_url"),
        )
        for name in [*names, *(name for name in optional if name in cube.arrays)]
    }
    try:
        read = {name: result() for name, result in reads.items()}
    except (ValueError, TypeError) as error:
        raise SourceCorruptError(f"{cube.url}: {error}") from error
    if reader.uncertain:
        reader.confirm()
    satellites = [
        np.char.add(read[f"mission_{image}"].astype("U"), read[f"satellite_{image}"].astype("U"))
        for image in ("img1", "img2")
    ]
    count = cube.pairs
    unknown = np.full(count, np.nan, "f4")
    sensors = {str(s) for name in optional[1:] if name in read for s in np.unique(read[name])}
    pairs = PairColumns(
        position=np.arange(count, dtype="i4"),
        mid_date=instants(read[cube.time], cube.arrays[cube.time]),
        dt_days=_masked(read["date_dt"], cube, "date_dt"),
        satellite_1=satellites[0],
        satellite_2=satellites[1],
        valid=_masked(read["roi_valid_percentage"], cube, "roi_valid_percentage")
        if "roi_valid_percentage" in read
        else unknown,
        granule=read["granule_url"],
    )
    return read["x"], read["y"], pairs, tuple(sorted(sensors - {""}))


def _masked(values: Raw, cube: Cube, name: str) -> Raw:
    """float32, with NaN for missing."""
    missing = cube.arrays[name].missing
    return np.where(values == missing, np.float32("nan"), values.astype("f4"))


def _write(connection: Connection, task: _Task, found: _Found) -> None:
    put_cube(
        connection,
        id=task.id,
        url=task.url,
        etag=found.cube.etag,
        version=VERSION,
        facts=orjson.dumps(found.facts),
        pairs=found.pairs,
        layout=found.layout,
    )
    put_blocks(connection, task.id, found.blocks)
    chosen = select(items.c.content, items.c.source).where(
        items.c.collection == CUBES, items.c.id == task.id
    )
    row = connection.execute(chosen).one_or_none()
    if row is None:  # a harvest has removed it meanwhile
        return
    item = with_facts(orjson.loads(row.content), found.facts)
    put_items(connection, [item_row(item, shapely.geometry.shape(item["geometry"]), row.source)])
