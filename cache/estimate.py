"""What a materialisation would take, from the catalog alone: for people who are about to ask.

Cheaper and coarser than a plan: the image pairs are counted by month, not looked up by granule, so
one that lies in several cubes counts in each.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Engine

from firnline.cache.plan import choose_crs
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, find_cubes
from firnline.crs import parse_crs
from firnline.database import reading
from firnline.pairs import PairFilter, indexed, read_pairs

_BYTES = 2  # of a value: velocities and their errors are int16
_SPACING = 120.0  # metres, of nearly all cubes, where the catalog does not know


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
        }


def estimate(engine: Engine, request: Request) -> Estimate:
    """Count what a request would read; reads the database, not the sources.

    Raises
    ------
    NoCoverageError
        No cube covers the area.
    """
    crs = choose_crs(request, find_cubes(engine, request))
    chosen = find_cubes(engine, request, window=crs)
    ids = [cube.id for cube in chosen]
    start, end = request.interval
    every = PairFilter(None, None, request.satellites, request.dt_days)
    period = PairFilter(start, end)
    months: Counter[str] = Counter()
    wanted = 0
    with reading(engine) as connection:
        known = indexed(connection, ids)
        for id in known:
            for block in read_pairs(connection, id, every, granules=False):
                month, count = np.unique(block.pairs.mid_date.astype("M8[M]"), return_counts=True)
                months.update(dict(zip(month.astype(str).tolist(), count.tolist(), strict=True)))
                wanted += int(period.mask(block.pairs).sum())
    left, bottom, right, top = request.area_in(parse_crs(crs)).bounds
    spacing = max((cube.spacing or _SPACING for cube in chosen), default=_SPACING)
    return Estimate(
        crs=crs,
        shape=(math.ceil((top - bottom) / spacing), math.ceil((right - left) / spacing)),
        cubes=chosen,
        unread=[id for id in ids if id not in known],
        pairs=wanted,
        months=dict(sorted(months.items())),
        variables=len(request.variables) if request.pairs else 0,
    )
