"""A tile: fetched, stitched, written by whole shards, composited. The unit of work of a job.

Done in the job's own process, all tiles by one pipeline that fetches ahead; or each by itself, by
any :class:`concurrent.futures.Executor`, on this machine or on another that sees the same folders.
A tile may be done twice, by two at the same time as well: it writes the same bytes to the same
place. Who does one records nothing; that it's finished is what the job's worker notes.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firnline.cache import store
from firnline.cache.chunk_cache import chunk_cache
from firnline.cache.composite_store import composite_tile, keep_tile, planned_periods
from firnline.cache.fetch import Fetcher
from firnline.cache.memory import give_back, shares, use_one_heap
from firnline.cache.plan import Plan, Tile

Raw = np.ndarray[Any, np.dtype[Any]]


class TileWriter:
    """Takes the stitched variables of tiles one after the other, and writes what is made of them.

    Parameters
    ----------
    plan
        What is made.
    work
        The subset's folder.
    processors
        Where chunks are encoded and composites made.
    """

    def __init__(self, plan: Plan, work: Path, processors: Executor) -> None:
        self._plan, self._work, self._processors = plan, work, processors
        self._spans = planned_periods(plan)
        self._vx: Raw | None = None

    def write(self, tile: Tile, variable: str, values: Raw) -> bool:
        """Write a variable ``(layer, y, x)``; whether it was the tile's last."""
        if self._plan.request.pairs:
            store.write(
                self._work / store.PAIRS, self._plan, variable, tile, values, self._processors
            )
        if self._spans and variable == "vx":
            self._vx = values.copy()  # the buffer is the next variable's
        if self._vx is not None and variable == "vy":
            found = composite_tile(self._plan, self._vx, values, self._spans, self._processors)
            keep_tile(self._work, tile, found)
            self._vx = None
        give_back()
        return variable == self._plan.request.variables[-1]


@dataclass(frozen=True)
class TileTask:
    """One tile of a job: small, and all that is needed where it is done.

    ``plan`` is the file of :func:`put_plan`, ``work`` the subset's folder; ``memory_limit`` is that
    of the process which does it, ``chunks`` and ``chunk_quota`` its chunk cache.
    """

    plan: Path
    work: Path
    tile: int
    concurrency: int
    memory_limit: int
    chunks: Path
    chunk_quota: int


def do_tile(task: TileTask) -> dict[str, int]:
    """Fetch, stitch, write and composite one tile.

    Returns
    -------
    dict
        What was counted: see :class:`firnline.cache.fetch.Counts`.

    Raises
    ------
    SourceError
    """
    use_one_heap()
    plan = _plan(task.plan)
    tile = plan.tiles[task.tile]
    fetcher = Fetcher(
        plan,
        [tile],
        concurrency=task.concurrency,
        memory=shares(task.memory_limit),
        keeper=chunk_cache(task.chunks, task.chunk_quota),
    )
    with fetcher:
        writer = TileWriter(plan, task.work, fetcher.processors)
        for each, variable, values in fetcher.tiles(in_order(plan, [tile])):
            writer.write(each, variable, values)
    return fetcher.counts.as_dict()


def in_order(plan: Plan, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, str]]:
    """The variables of tiles in the order in which they are made."""
    return ((tile, variable) for tile in tiles for variable in plan.request.variables)


def put_plan(attempt: Path, plan: Plan) -> Path:
    """Put a plan where those who do its tiles find it: in the folder of an attempt."""
    file = attempt / f"plan-{plan.fingerprint[:16]}.pickle"
    file.write_bytes(pickle.dumps(plan))
    return file


@functools.lru_cache(maxsize=1)
def _plan(file: Path) -> Plan:
    plan: Plan = pickle.loads(file.read_bytes())  # the job's own worker wrote it
    return plan
