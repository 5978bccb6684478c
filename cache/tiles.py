"""A tile: fetched, stitched, written by whole shards, composited. The unit of work of a job.

Done in the job's own process, all tiles by one pipeline that fetches ahead; or each by itself, by
any :class:`concurrent.futures.Executor`, on this machine or on another that sees the same folders.
A tile may be done twice, by two at the same time as well: it writes the same bytes to the same
place. Who does one records nothing; that it's finished is what the job's worker notes.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from firnline.cache import store
from firnline.cache.chunk_cache import chunk_cache
from firnline.cache.chunk_requests import ChunkRequests
from firnline.cache.composite_store import composite_tile, keep_tile, planned_periods
from firnline.cache.fetch import Fetcher
from firnline.cache.memory import give_back, settle, shares
from firnline.cache.places import Place, Stored, writer
from firnline.cache.plan import Plan, Tile
from firnline.errors import StoreError

Raw = np.ndarray[Any, np.dtype[Any]]


class TileWriter:
    """Takes the stitched variables of tiles one after the other, and writes what is made of them.

    Use as a context manager.

    Parameters
    ----------
    plan
        What is made.
    subset, tiles
        Folders of the subset, and of the composites of tiles.
    processors
        Where chunks are encoded and composites made.
    """

    def __init__(self, plan: Plan, subset: Place, tiles: Place, processors: Executor) -> None:
        self._plan, self._tiles, self._processors = plan, tiles, processors
        self._out = writer(subset)
        self._spans = planned_periods(plan)
        self._vx: Raw | None = None

    def __enter__(self) -> TileWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._out.close()

    def write(self, tile: Tile, variable: str, values: Raw) -> dict[str, Stored] | None:
        """Write a variable ``(layer, y, x)``.

        Returns
        -------
        dict or None
            After the tile's last, when all of the tile is in place: the files that were put
            outside of this disk.
        """
        if self._plan.request.pairs:
            store.write(self._out, self._plan, variable, tile, values, self._processors)
        if self._spans and variable == "vx":
            self._vx = values.copy()  # the buffer is the next variable's
        if self._vx is not None and variable == "vy":
            found = composite_tile(self._plan, self._vx, values, self._spans, self._processors)
            keep_tile(self._tiles, tile, found)
            self._vx = None
        last = variable == self._plan.request.variables[-1]
        stored = self._out.settle() if last else None
        give_back()
        return stored


@dataclass(frozen=True)
class TileTask:
    """One tile of a job: small, and all that is needed where it is done.

    ``plan`` is the pickled plan's file, of which ``digest`` is the SHA-256: it may lie where others
    can write. ``subset`` and ``tiles`` are as of :class:`TileWriter`; ``memory_limit`` is that
    of the process which does it, ``chunks`` and ``chunk_quota`` its chunk cache.
    """

    plan: Place
    digest: str
    subset: Place
    tiles: Place
    tile: int
    concurrency: int
    memory_limit: int
    chunks: Path
    chunk_quota: int


def do_tile(task: TileTask) -> tuple[dict[str, int], dict[str, Stored]]:
    """Fetch, stitch, write and composite one tile.

    Returns
    -------
    tuple of dict
        What was counted, see :class:`firnline.cache.fetch.Counts`; and the files as
        :meth:`TileWriter.write` gives them.

    Raises
    ------
    SourceError, StoreError
    """
    settle()
    plan = _plan(task.plan, task.digest)
    tile = plan.tiles[task.tile]
    requests = ChunkRequests(
        plan,
        [tile],
        concurrency=task.concurrency,
        memory=shares(task.memory_limit),
        keeper=chunk_cache(task.chunks, task.chunk_quota),
    )
    fetcher = Fetcher(plan, requests)
    with fetcher, TileWriter(plan, task.subset, task.tiles, fetcher.processors) as out:
        stored: dict[str, Stored] = {}
        for each, variable, values in fetcher.tiles(in_order(plan, [tile])):
            stored = out.write(each, variable, values) or {}
    return fetcher.counts.as_dict(), stored


def in_order(plan: Plan, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, str]]:
    """The variables of tiles in the order in which they are made."""
    return ((tile, variable) for tile in tiles for variable in plan.request.variables)


@functools.lru_cache(maxsize=1)
def _plan(file: Place, digest: str) -> Plan:
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"{file} is not the plan that the job's worker wrote")
    plan: Plan = pickle.loads(data)
    return plan
