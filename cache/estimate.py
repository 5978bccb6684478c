"""What a materialisation would take, from the catalog alone: for people who are about to ask.

Cheaper and coarser than a plan: the image pairs are counted by month, not looked up by granule, so
one that lies in several cubes counts in each.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, select

from firnline.cache.planning import choose_crs
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, find_cubes
from firnline.crs import parse_crs
from firnline.cube import parse_cube
from firnline.database import reading
from firnline.errors import InputError
from firnline.items import MOSAICS
from firnline.pairs import PairFilter, read_pairs
from firnline.tables import counters
from firnline.tables import cubes as cubes_table

_BYTES = 2  # of a value: velocities and their errors are int16
_SPACING = 120.0  # metres, of nearly all cubes, where the catalog does not know
_EDGE = 1e-6  # pixels: to touch a pixel's edge is not to need it
# Of a job with all products, and of a source chunk at 30 ms of latency (benchmarks/materialise.py)
_SECONDS, _SECONDS_A_CHUNK = 3.0, 0.01


@dataclass(frozen=True)
class Estimate:
    """What there is for a request."""

    crs: str
    shape: tuple[int, int]
    """(y, x) of the result, in pixels."""
    cubes: list[CubeItem]
    unread: list[str]
    """Ids of the cubes whose image pairs are not in the index: they are not counted."""
    pairs: int
    """That the request wants, over the cubes."""
    months: dict[str, int] = field(default_factory=dict)
    """The same by month of the mid-date (``2018-01``), whatever the request's period."""
    variables: int = 3
    chunks: int = 0
    """Of the sources, that hold a wanted pair within the area."""
    source_bytes: int = 0
    """Size of these, decoded."""
    seconds: float = _SECONDS
    """That a job of as many chunks takes, by the jobs that were done here."""

    @property
    def bytes(self) -> int:
        """At most: uncompressed, no pair in two cubes."""
        return math.prod(self.shape) * self.pairs * self.variables * _BYTES

    def summary(self) -> dict[str, Any]:
        """As a JSON-ready document."""
        return {
            "crs": self.crs,
            "shape": {"y": self.shape[0], "x": self.shape[1]},
            "cubes": [cube.id for cube in self.cubes],
            "unread": self.unread,
            "pairs": self.pairs,
            "months": self.months,
            "bytes": self.bytes,
            "chunks": self.chunks,
            "source_bytes": self.source_bytes,
            "seconds": round(self.seconds, 1),
        }


def estimate(engine: Engine, request: Request) -> Estimate:
    """Count what a request would read; reads the database, not the sources.

    Pairs that are left out for their errors (`max_error`), which the index does not have, count.

    Raises
    ------
    NoCoverageError
        No cube covers the area.
    InputError
        It is of mosaics, which have no image pairs.
    """
    if request.collection == MOSAICS:
        raise InputError(
            f"an estimate counts image pairs, of which {MOSAICS} has none; "
            "`firnline materialise --dry-run` reads the mosaics' own headers"
        )
    crs = choose_crs(request, find_cubes(engine, request))
    chosen = find_cubes(engine, request, window=crs)
    start, end = request.interval
    every = PairFilter(None, None, request.satellites, request.dt_days, request.min_valid)
    period = PairFilter(start, end)
    months: Counter[str] = Counter()
    wanted = chunks = source_bytes = 0
    with reading(engine) as connection:
        query = select(cubes_table).where(cubes_table.c.id.in_([cube.id for cube in chosen]))
        known = {row.id: row for row in connection.execute(query)}
        for cube in chosen:
            if cube.id not in known:
                continue
            positions = []
            for block in read_pairs(connection, cube.id, every, granules=False):
                month, count = np.unique(block.pairs.mid_date.astype("M8[M]"), return_counts=True)
                months.update(dict(zip(month.astype(str).tolist(), count.tolist(), strict=True)))
                positions.append(block.pairs.position[period.mask(block.pairs)])
            at = np.concatenate([np.empty(0, "i4"), *positions])
            wanted += len(at)
            for number, size in _chunks(request, cube, known[cube.id], at):
                chunks += number
                source_bytes += number * size
        seconds = _SECONDS + chunks * _seconds_a_chunk(connection)
    left, bottom, right, top = request.area_in(parse_crs(crs)).bounds
    spacing = max((cube.spacing or _SPACING for cube in chosen), default=_SPACING)
    return Estimate(
        crs=crs,
        shape=(math.ceil((top - bottom) / spacing), math.ceil((right - left) / spacing)),
        cubes=chosen,
        unread=[cube.id for cube in chosen if cube.id not in known],
        pairs=wanted,
        months=dict(sorted(months.items())),
        variables=len(request.variables) if request.pairs else 0,
        chunks=chunks,
        source_bytes=source_bytes,
        seconds=seconds,
    )


def _chunks(
    request: Request, cube: CubeItem, row: Any, positions: Any
) -> Iterator[tuple[int, int]]:
    """Of each variable how many chunks have one of these pairs (their places) in the area.

    Beside it the size of one, decoded.
    """
    layout = parse_cube(row.url, zlib.decompress(row.layout), row.etag)
    properties = json.loads(row.facts)["properties"]
    step_x, _, left, _, step_y, top = properties["proj:transform"]
    west, south, east, north = request.area_in(parse_crs(cube.crs)).bounds
    sides = (((north - top) / step_y, (south - top) / step_y),
             ((west - left) / step_x, (east - left) / step_x))  # fmt: skip
    for name in request.variables:
        array = layout.variable(name)
        count = len(np.unique(positions // array.chunks[0]))
        for (first, last), size, length in zip(
            sides, array.chunks[1:], properties["proj:shape"], strict=True
        ):
            start = max(0, math.floor(first + _EDGE))
            stop = min(length, math.ceil(last - _EDGE))
            count *= max(0, -(-stop // size) - start // size) if start < stop else 0
        yield count, math.prod(array.chunks) * array.dtype.itemsize


def _seconds_a_chunk(connection: Connection) -> float:
    """By the jobs that were done here at one go (firnline.cache.jobs counts them)."""
    names = ("timed_jobs", "timed_chunks", "timed_milliseconds")
    chosen = select(counters.c.name, counters.c.value).where(counters.c.name.in_(names))
    done: dict[str, int] = {row.name: row.value for row in connection.execute(chosen)}
    if not done.get("timed_chunks"):
        return _SECONDS_A_CHUNK
    spent = done["timed_milliseconds"] / 1000 - _SECONDS * done["timed_jobs"]
    return max(spent / done["timed_chunks"], _SECONDS_A_CHUNK / 10)
