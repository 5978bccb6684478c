"""What a request makes of velocity mosaics: which of them, on which grid, of which years.

Annual mosaics for yearly periods, the static one (a climatology) for one period over everything.
Regions in one CRS lie on one lattice and are stitched there; their headers are read for the plan,
their pixels by ``firnline.cache.mosaic_store``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Engine

from firnline.cache.cog_reader import RemoteCog
from firnline.cache.counts import Counts
from firnline.cache.periods import Period
from firnline.cache.request import Request
from firnline.cache.sources import find_items
from firnline.cache.target import OnGrid
from firnline.crs import parse_crs
from firnline.errors import (
    NoCoverageError,
    SourceCorruptError,
    SourceMissingError,
    TooLargeError,
)
from firnline.footprint import footprint
from firnline.items import MOSAICS
from firnline.settings import Settings
from firnline.variables import ANNUAL_VARIABLES

Raw = np.ndarray[Any, np.dtype[Any]]

_LATTICE_TOLERANCE = 1e-3  # pixels
_ATTRIBUTION = "Data: NASA MEaSUREs ITS_LIVE, CC-BY-4.0"


@dataclass(frozen=True, eq=False)
class MosaicItem:
    """A mosaic as the catalog has it."""

    id: str
    region: str
    version: tuple[int, ...]
    crs: str
    start: datetime
    end: datetime
    """Last second."""
    hrefs: Mapping[str, str]
    """URL of the COG of each variable."""
    spacing: float | None
    """Side of a pixel in metres, where the catalog knows it."""
    share: float
    """How much of the area asked for its outline covers, from 0 to 1."""

    @property
    def period(self) -> Period:
        """The time that it stands for."""
        end = self.end + timedelta(seconds=1)
        start, end = (t.replace(tzinfo=None) for t in (self.start, end))
        return Period(np.datetime64(start, "ns"), np.datetime64(end, "ns"))


@dataclass(frozen=True)
class PlacedMosaic:
    """A mosaic in the target: its first pixel (row, column), and the window that they share."""

    item: MosaicItem
    row: int
    column: int
    rows: slice
    columns: slice
    shape: tuple[int, int]
    """The whole mosaic's, and its transform."""
    transform: Affine


@dataclass(frozen=True)
class MosaicPlan(OnGrid):
    """All that is known before the first pixel is read."""

    request: Request
    crs: str
    geobox: GeoBox
    years: tuple[tuple[Period, tuple[PlacedMosaic, ...]], ...]
    """Each period with its mosaics, in order of precedence."""
    absent: tuple[str, ...]
    """Mosaics that the catalog has and the source does not."""
    attribution: str
    """Whose data this is."""

    @property
    def periods(self) -> tuple[Period, ...]:
        """In order of time."""
        return tuple(period for period, _ in self.years)

    @property
    def items(self) -> tuple[MosaicItem, ...]:
        """The mosaics, period after period."""
        return tuple(placed.item for _, mosaics in self.years for placed in mosaics)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(time, y, x) of the store."""
        return (len(self.years), *self.geobox.shape)

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever what was written under another plan would not fit this one."""
        parts = [
            self.request.key, self.crs, list(self.geobox.affine)[:6], self.shape,
            [dict(item.hrefs) for item in self.items],
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def output_bytes(self) -> int:
        """Size of the fields, uncompressed."""
        return 4 * len(ANNUAL_VARIABLES) * math.prod(self.shape)

    def summary(self) -> dict[str, Any]:
        """What the materialisation would take: for people and for ``--dry-run``."""
        return {
            "crs": self.crs,
            "shape": dict(zip(("time", "y", "x"), self.shape, strict=True)),
            "bounds": list(self.geobox.boundingbox.bbox),
            "mosaics": [item.id for item in self.items],
            "absent": list(self.absent),
            "files": sum(len(item.hrefs) for item in self.items),
            "variables": list(ANNUAL_VARIABLES),
            "output_bytes_uncompressed": self.output_bytes,
        }


def find_mosaics(engine: Engine, request: Request) -> list[MosaicItem]:
    """The mosaics that answer a request, most of the area first, then by time.

    Of each region those of its newest version, in the CRS that covers most of the area, or in the
    one asked for.

    Raises
    ------
    NoCoverageError
    """
    asked = footprint(request.area, parse_crs(request.crs))
    static = request.composite == "all"
    found = [
        item
        for content in find_items(engine, MOSAICS, asked)
        if (content["properties"].get("temporal_coverage_type") == "static") == static
        and (item := _mosaic_item(content, asked)) is not None
    ]
    if not found:
        raise NoCoverageError(
            f"no {'static' if static else 'annual'} mosaic of the catalog covers this area; search "
            "the collection velocity-mosaics for what there is"
        )
    found = _in_one_crs(request, found)
    newest = {region: max(item.version for item in found if item.region == region)
              for region in {item.region for item in found}}  # fmt: skip
    found = [item for item in found if item.version == newest[item.region]]
    chosen = [item for item in found if _wanted(request, item.period)]
    if not chosen:
        first, last = min(item.start for item in found), max(item.end for item in found)
        rule = "datetime has to cover that whole" if static else "the middle of a year counts"
        raise NoCoverageError(
            f"no {'static' if static else 'annual'} mosaic of this area is of the period asked: "
            f"there is {first:%Y-%m-%d} to {last:%Y-%m-%d}, and {rule}"
        )
    return sorted(chosen, key=lambda item: (-item.share, item.region, item.start))


def _mosaic_item(content: Mapping[str, Any], asked: BaseGeometry) -> MosaicItem | None:
    """None where it can't be used, for it lacks a component."""
    properties, assets = content["properties"], content["assets"]
    hrefs = {
        name: assets[f"cog_{name}"]["href"] for name in ANNUAL_VARIABLES if f"cog_{name}" in assets
    }
    if not {"vx", "vy"} <= set(hrefs):
        return None
    start, end = (
        datetime.fromisoformat(properties[f"{which}_datetime"]) for which in ("start", "end")
    )
    return MosaicItem(
        id=content["id"],
        region=properties["rgi"],
        version=tuple(int(part) for part in str(properties.get("version", "0")).split(".")),
        crs=properties["proj:code"],
        start=start,
        end=end,
        hrefs=hrefs,
        spacing=properties.get("gsd"),
        share=asked.intersection(shape(content["geometry"])).area / asked.area,
    )


def _in_one_crs(request: Request, items: Sequence[MosaicItem]) -> list[MosaicItem]:
    systems = sorted({item.crs for item in items})
    if request.out_crs is not None and request.out_crs not in systems:
        raise NoCoverageError(
            f"no mosaic in {request.out_crs} covers this area; there are: {', '.join(systems)}"
        )

    def rank(code: str) -> tuple[float, bool, str]:
        share = {item.region: item.share for item in items if item.crs == code}
        return -round(sum(share.values()), 3), code != request.crs, code

    crs = request.out_crs or min(systems, key=rank)
    return [item for item in items if item.crs == crs]


def _wanted(request: Request, period: Period) -> bool:
    """By the middle of a year; what the static mosaic stands for can't be cut."""
    whole = period.start, period.end - np.timedelta64(1, "s")
    first, last = whole if request.composite == "all" else (period.mid, period.mid)
    start, end = (
        None if t is None else np.datetime64(t.replace(tzinfo=None), "ns") for t in request.interval
    )
    return bool((start is None or start <= first) and (end is None or last <= end))


def plan_mosaics(engine: Engine, settings: Settings, request: Request) -> MosaicPlan:
    """Plan a request: reads the headers of the mosaics' vx, no velocity.

    Raises
    ------
    NoCoverageError, TooLargeError
    SourceMissingError
        None of the mosaics that the catalog has is there.
    SourceError
    """
    items = find_mosaics(engine, request)
    with ThreadPoolExecutor(settings.concurrency, thread_name_prefix="open") as pool:
        cogs = dict(zip(items, pool.map(lambda item: _open(item, settings), items), strict=True))
    there = {item: cog for item, cog in cogs.items() if cog is not None}
    if not there:
        raise SourceMissingError(
            f"none of the {len(items)} mosaics of this area exists at its source, as {items[0].id}"
        )
    crs = items[0].crs
    geobox, places = _target(request, crs, there)
    by_period: dict[Period, list[PlacedMosaic]] = {}
    for place in places:
        by_period.setdefault(place.item.period, []).append(place)
    synthetic = any("SYNTHETIC" in str(cog.tags) for cog in there.values())
    plan = MosaicPlan(
        request=request,
        crs=crs,
        geobox=geobox,
        years=tuple(
            (period, tuple(by_period[period]))
            for period in sorted(by_period, key=lambda period: period.start)
        ),
        absent=tuple(item.id for item in items if item not in there),
        attribution="SYNTHETIC sample data, not a measurement" if synthetic else _ATTRIBUTION,
    )
    if plan.output_bytes > settings.max_job_bytes:
        raise TooLargeError(
            f"the result would take {plan.output_bytes / 1e9:.1f} GB; this installation accepts "
            f"{settings.max_job_bytes / 1e9:.1f} GB (FIRNLINE_MAX_JOB_BYTES): ask for a smaller "
            "area or fewer years"
        )
    return plan


def open_cog(
    item: MosaicItem, variable: str, settings: Settings, counts: Counts, **more: Any
) -> RemoteCog:
    """Open a variable of a mosaic; raises as :class:`firnline.cache.cog_reader.RemoteCog`."""
    return RemoteCog(
        item.hrefs[variable],
        item.crs,
        counts,
        allowed=settings.allowed_sources,
        signed=settings.signed_sources,
        **more,
    )


def _open(item: MosaicItem, settings: Settings) -> RemoteCog | None:
    # mosaics follow from their naming scheme until a deep harvest looks which of them exist
    try:
        return open_cog(item, "vx", settings, Counts())
    except SourceMissingError:
        return None


def _target(
    request: Request, crs: str, cogs: Mapping[MosaicItem, RemoteCog]
) -> tuple[GeoBox, list[PlacedMosaic]]:
    """The window of the mosaics' lattice that covers the area, and their places in it."""
    first = next(iter(cogs.values()))
    step_x, step_y, left, top = (getattr(first.transform, name) for name in "aecf")
    corners = {}
    for item, cog in cogs.items():
        a = cog.transform
        row, column = (a.f - top) / step_y, (a.c - left) / step_x
        off = max(
            abs(row - round(row)), abs(column - round(column)),
            abs(a.a / step_x - 1), abs(a.e / step_y - 1),
        )  # fmt: skip
        if off > _LATTICE_TOLERANCE:
            raise SourceCorruptError(f"{cog.url} does not lie on the grid of {first.url}")
        corners[item] = round(row), round(column)
    west, south, east, north = request.area_in(parse_crs(crs)).bounds
    rows = _meeting(
        _touched((north - top) / step_y, (south - top) / step_y),
        _hull((row, cogs[item].shape[0]) for item, (row, _) in corners.items()),
    )
    columns = _meeting(
        _touched((west - left) / step_x, (east - left) / step_x),
        _hull((column, cogs[item].shape[1]) for item, (_, column) in corners.items()),
    )
    affine = Affine(step_x, 0, left + columns.start * step_x, 0, step_y, top + rows.start * step_y)
    target = slice(0, _size(rows)), slice(0, _size(columns))
    places = []
    for item, (row, column) in corners.items():
        row, column = row - rows.start, column - columns.start
        high, wide = cogs[item].shape
        window = (
            _meeting(target[0], slice(row, row + high)),
            _meeting(target[1], slice(column, column + wide)),
        )
        if all(map(_size, window)):
            grid = cogs[item].shape, cogs[item].transform
            places.append(PlacedMosaic(item, row, column, *window, *grid))
    if not places:
        raise NoCoverageError("no pixel of the mosaics lies in this area")
    return GeoBox((_size(rows), _size(columns)), affine, crs), places


def _touched(first: float, last: float) -> slice:
    """The pixels that an interval touches; touching their edge alone is not enough."""
    return slice(math.floor(first + 1e-6), math.ceil(last - 1e-6))


def _hull(spans: Iterable[tuple[int, int]]) -> slice:
    known = list(spans)
    return slice(min(first for first, _ in known), max(first + size for first, size in known))


def _meeting(one: slice, other: slice) -> slice:
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))


def _size(span: slice) -> int:
    size: int = span.stop - span.start
    return size
