"""The cubes that cover an area: found in the catalog, opened, their image pairs read.

Only metadata and 1-D arrays are read here; the velocity chunks are ``firnline.cache.fetch``'s.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import shapely
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Boolean, Connection, Engine, func, literal, select

from firnline.arrays import basenames, instants, read_array
from firnline.cache.columns import Columns
from firnline.cache.request import Request, moved
from firnline.chunks import ChunkReader, Keeper
from firnline.crs import parse_crs
from firnline.cube import Array, Cube, parse_cube, read_cube
from firnline.database import is_empty, reading
from firnline.errors import (
    EmptyCatalogError,
    NoCoverageError,
    SourceCorruptError,
    SourceMissingError,
)
from firnline.footprint import TOLERANCE, footprint
from firnline.pairs import PairFilter, read_pairs
from firnline.source import Source
from firnline.tables import LIVING, Footprint, items
from firnline.tables import cubes as cubes_table

Raw = np.ndarray[Any, np.dtype[Any]]

_LEAST = 1.0  # m2: what sides that touch share by rounding
_DAYS = "days since 1970-01-01"
# Without these a pair has no place in time, or no identity: their absence is damage, not 'no data'.
_NEEDED = ("granule_url", "acquisition_date_img1", "acquisition_date_img2")


@dataclass(frozen=True)
class CubeItem:
    """A cube as the catalog has it; ``area`` is its outline in its own CRS."""

    id: str
    href: str
    crs: str
    area: BaseGeometry
    pairs: int
    spacing: float | None = None  # metres, where the catalog knows it


@dataclass(frozen=True)
class OpenCube:
    """A cube whose coordinates and image pairs have been read.

    ``x`` and ``y`` are pixel centres in metres, ``mid_date`` is ``datetime64[us] (pair,)``,
    ``granule`` the basename (bytes) of each pair's granule, its identity, and
    ``per_pair`` the other 1-D variables as stored, dates in days; they may be on their way.
    """

    id: str
    crs: str
    source: Source
    layout: Cube
    x: Raw
    y: Raw
    mid_date: Raw
    granule: Raw
    per_pair: Mapping[str, Raw]
    read_at: datetime | None = None
    """When the catalog's index read it; None: read for this plan."""
    named: bool = False
    """Whether its granules are those of the index of pairs, and need not be read."""

    @property
    def pairs(self) -> int:
        """Number of image pairs."""
        return len(self.mid_date)


def find_cubes(engine: Engine, request: Request, window: str | None = None) -> list[CubeItem]:
    """The cubes of the catalog whose own outline shares some of the area asked for.

    Parameters
    ----------
    window
        A CRS: then the cubes that a store in it needs: those in that CRS which share some of the
        area's bounding window there, which is what is stored, and may be more; and those of
        others that share some of what is left of it.

    Raises
    ------
    NoCoverageError
    """
    if window is None:
        return _sharing(engine, request, request.area, request.crs)
    whole = box(*request.area_in(parse_crs(window)).bounds)
    found = _sharing(engine, request, whole, window)
    own = [cube for cube in found if cube.crs == window]
    left = shapely.difference(whole, shapely.union_all([cube.area for cube in own]))
    others = [cube for cube in found if cube.crs != window]
    if left.area < _LEAST or not others:
        return own or others
    return own + [cube for cube in others if _shared(left, window, cube) > _LEAST]


def _sharing(engine: Engine, request: Request, area: BaseGeometry, crs: str) -> list[CubeItem]:
    """The cubes whose own outline shares some of an area."""
    system = parse_crs(crs)
    # footprints are true to their tolerance; the cube's own CRS decides
    wide = area.buffer(2 * TOLERANCE) if system.is_projected else area
    found = find_items(engine, request.collection, footprint(wide, system))
    chosen = [cube for cube in map(_cube_item, found) if _shared(area, crs, cube)]
    if not chosen and is_empty(engine):
        raise EmptyCatalogError("the catalog holds no cube yet: it has not been harvested")
    if not chosen:
        raise NoCoverageError(
            "no cube of the catalog covers this area; "
            "search the collection itslive-cubes for what there is"
        )
    return chosen


def _shared(area: BaseGeometry, crs: str, cube: CubeItem) -> float:
    """What an area and a cube share, in square metres of the cube's CRS."""
    return float(moved(area, parse_crs(crs), parse_crs(cube.crs)).intersection(cube.area).area)


def find_items(engine: Engine, collection: str, area: BaseGeometry) -> list[dict[str, Any]]:
    """The items of a collection whose footprint meets an area in lon/lat, by their id."""
    near = func.ST_Intersects(
        items.c.footprint, literal(shapely.to_wkb(area), Footprint()), type_=Boolean()
    )
    with reading(engine) as connection:
        contents = connection.scalars(
            select(items.c.content)
            .where(items.c.collection == collection, LIVING, near)
            .order_by(items.c.id)
        ).all()
    return [json.loads(content) for content in contents]


def _cube_item(content: Mapping[str, Any]) -> CubeItem:
    properties = content["properties"]
    return CubeItem(
        id=content["id"],
        href=content["assets"]["zarr"]["href"],
        crs=properties["proj:code"],
        area=box(*properties["proj:bbox"]),
        pairs=properties.get("itslive:granule_count") or 0,
        spacing=properties.get("proj:transform", [None])[0],
    )


def indexed_cubes(
    engine: Engine, chosen: Sequence[CubeItem], allowed: Sequence[str], where: PairFilter
) -> list[OpenCube] | None:
    """The cubes from the index of pairs, without the network; None unless all of them are in it.

    Enough to plan with, not to materialise: of the pairs outside of `where` there is only the
    number, and of the others only what a request's filters look at, but for the pairs' errors.
    """
    with reading(engine) as connection:
        rows = {
            row.id: row
            for row in connection.execute(
                select(cubes_table).where(cubes_table.c.id.in_([cube.id for cube in chosen]))
            )
        }
        if any(cube.id not in rows or rows[cube.id].url != cube.href for cube in chosen):
            return None
        return [
            _indexed_cube(
                connection, cube, rows[cube.id], Source(cube.href, allowed=allowed), where
            )
            for cube in chosen
        ]


def _indexed_cube(
    connection: Connection, item: CubeItem, row: Any, source: Source, where: PairFilter
) -> OpenCube:
    layout = parse_cube(row.url, zlib.decompress(row.layout), row.etag)
    properties = json.loads(row.facts)["properties"]
    step_x, _, left, _, step_y, top = properties["proj:transform"]
    height, width = properties["proj:shape"]
    blocks = [block.pairs for block in read_pairs(connection, row.id, where)]
    at = np.concatenate([np.empty(0, "i4"), *(pairs.position for pairs in blocks)])

    def column(name: str, blank: Raw) -> Raw:
        parts = [getattr(pairs, name) for pairs in blocks]
        values = np.full(layout.pairs, blank, np.result_type(blank, *parts))
        if parts:
            values[at] = np.concatenate(parts)
        return values

    per_pair = {"date_dt": column("dt_days", np.array(np.nan, "f4"))}
    for image in ("1", "2"):
        names = column(f"satellite_{image}", np.array("", "U1"))
        per_pair[f"mission_img{image}"] = names.astype("U1")
        per_pair[f"satellite_img{image}"] = np.array([name[1:] for name in names.tolist()], "U")
    if "roi_valid_percentage" in layout.arrays:
        per_pair["roi_valid_percentage"] = column("valid", np.array(np.nan, "f4"))
    return OpenCube(
        id=row.id,
        crs=item.crs,
        source=source,
        layout=layout,
        x=left + step_x * (np.arange(width) + 0.5),
        y=top + step_y * (np.arange(height) + 0.5),
        mid_date=column("mid_date", np.array("NaT", "M8[us]")),
        granule=column("granule", np.array(b"", "S1")),
        per_pair=per_pair,
        read_at=row.read_at,
        named=True,
    )


def columns_read(
    layout: Cube, request: Request | None = None, *, only_plan: bool = False
) -> list[str]:
    """Coordinates and 1-D variables of a cube that are read for a request; None: all of them.

    All are for a store that keeps them. Else those that tell pairs apart, filter and composite
    them; where it's only planned, without the last.
    """
    whole = {"x", "y", layout.time}
    columns = [
        n for n, array in layout.arrays.items() if n in whole or array.dims == (layout.time,)
    ]
    if request is None or (request.pairs and not only_plan):
        return columns
    used = {*whole, "granule_url"}
    if not only_plan:
        used |= {*_NEEDED, "vx_error", "vy_error"}
    used |= _looked_at(request)
    return [name for name in columns if name in used]


def _looked_at(request: Request | None) -> set[str]:
    """The variables that a request's filters look at, beside the time."""
    if request is None:
        return set()
    names = set()
    if request.dt_days is not None:
        names.add("date_dt")
    if request.satellites:
        names |= {f"{part}_img{n}" for part in ("mission", "satellite") for n in "12"}
    if request.max_error is not None:
        names |= {"vx_error", "vy_error"}
    if request.min_valid is not None:
        names.add("roi_valid_percentage")
    return names


class Opening:
    """A cube that is being read: its metadata has come, its arrays are under way.

    Parameters
    ----------
    item, source
        The cube.
    executor
        Where its requests are done.
    keeper
        Where chunks are kept.
    request, only_plan
        What of it is read, see :func:`columns_read`.
    known
        The cube as the index of pairs has it, all pairs of it: where that is of its present
        version, their granules are not read again, the largest of its arrays.

    Raises
    ------
    SourceMissingError
        There is no cube at its address.
    SourceUnreachableError, SourceCorruptError
    """

    def __init__(
        self,
        item: CubeItem,
        source: Source,
        executor: Executor,
        keeper: Keeper | None = None,
        *,
        request: Request | None = None,
        only_plan: bool = False,
        known: OpenCube | None = None,
    ) -> None:
        self._item, self._source = item, source
        self._layout = read_cube(source)
        self._reader = ChunkReader(source, version=self._layout.etag, keeper=keeper)
        names = columns_read(self._layout, request, only_plan=only_plan)
        self._granule = None
        if known is not None and self._layout.etag and known.layout.etag == self._layout.etag:
            self._granule = known.granule
            names = [name for name in names if name != "granule_url"]
        self._names = self._first = names
        if request is not None and request.pairs:
            used = {*self._coordinates, "granule_url", *_looked_at(request)}
            self._first = [name for name in names if name in used]
        self._rest = [name for name in names if name not in self._first]
        self._reads: dict[str, Callable[[], Raw]] = {}
        self._executor = executor
        self._begin(self._first)

    @property
    def _coordinates(self) -> tuple[str, str, str]:
        return "x", "y", self._layout.time

    def result(self) -> OpenCube:
        """The cube with its coordinates and image pairs; to be asked for once.

        What is only there to be kept in a store is not asked for before :meth:`go_on`: whoever
        looks at it waits for it, and gets what is raised.

        Raises
        ------
        SourceChangedError
            Its metadata and its arrays are of two states of it.
        SourceMissingError
            It has no granules, by which pairs are told apart.
        SourceUnreachableError, SourceCorruptError
        """
        read = {name: self._read(name) for name in self._first}
        if self._reader.uncertain:
            self._reader.confirm()
        granule = read.pop("granule_url", self._granule)
        if granule is None:
            raise SourceMissingError(
                f"{self._source.url} has no granule_url, by which pairs are told apart"
            )
        return self._cube(read, granule)

    def go_on(self) -> None:
        """Ask for the rest, now that others don't have to wait for what comes first."""
        self._begin(self._rest)

    def _begin(self, names: Iterable[str]) -> None:
        for name in names:
            self._reads[name] = read_array(
                self._reader,
                self._layout.arrays[name],
                self._executor,
                basenames if name == "granule_url" else None,
                needed=name in (*self._coordinates, *_NEEDED),
            )

    def _read(self, name: str) -> Raw:
        try:
            values = self._reads[name]()
        except SourceCorruptError:
            self._reader.confirm()  # it isn't damage where it is another cube by now
            raise
        del self._reads[name]  # and its parts are let go
        return values

    def _later(self, name: str) -> Raw:
        values = self._read(name)
        if not self._reads:
            self._reader.confirm()  # what came since the first arrays is of one state with them
        return _in_days(self._layout.arrays[name], values)

    def _cube(self, read: dict[str, Raw], granule: Raw) -> OpenCube:
        url, layout = self._source.url, self._layout
        for name in ("x", "y"):
            if len(read[name]) < 2 or not np.ptp(np.diff(read[name])) < 1e-3:
                raise SourceCorruptError(f"{url}: {name} is not an evenly spaced axis")
        mapping = layout.arrays.get("mapping")
        stated = None if mapping is None else mapping.attributes.get("spatial_epsg")
        if isinstance(stated, int) and f"EPSG:{stated}" != self._item.crs:
            raise SourceCorruptError(
                f"{url} is in EPSG:{stated}; the catalog has it in {self._item.crs}: "
                "harvest it anew"
            )
        x, y, time = (read.pop(name) for name in self._coordinates)
        columns: Mapping[str, Raw]
        columns = {name: _in_days(layout.arrays[name], values) for name, values in read.items()}
        if self._rest:
            here = columns
            columns = Columns(
                {
                    name: partial(here.__getitem__ if name in here else self._later, name)
                    for name in self._names
                    if name in here or name in self._rest
                }
            )
        return OpenCube(
            id=self._item.id,
            crs=self._item.crs,
            source=self._source,
            layout=layout_in_days(layout, columns),
            x=x,
            y=y,
            mid_date=instants(time, layout.arrays[layout.time]),
            granule=granule,
            per_pair=columns,
            named=self._granule is not None,
        )


def _in_days(array: Array, values: Raw) -> Raw:
    """Dates of the pairs as days since 1970, which cubes of version 2 have.

    Cubes of both generations make one store, and its dates have one unit.
    """
    if not _is_other_date(array):
        return values
    microseconds = instants(values, array).astype("i8")
    days = microseconds / 86_400_000_000
    days[microseconds == np.iinfo("i8").min] = np.nan
    return days


def layout_in_days(layout: Cube, names: Iterable[str]) -> Cube:
    """The layout of a cube with those of the named dates in days that are not."""
    arrays = dict(layout.arrays)
    for name in names:
        array = arrays[name]
        if not _is_other_date(array):
            continue
        attributes = {k: v for k, v in array.attributes.items() if k in ("description", "calendar")}
        arrays[name] = replace(
            array,
            dtype=np.dtype(np.float64),
            fill_value="NaN",
            attributes={**attributes, "units": _DAYS},
        )
    return replace(layout, arrays=arrays)


def _is_other_date(array: Array) -> bool:
    units = str(array.attributes.get("units", ""))
    return array.dtype.kind == "M" or (" since " in units and units != _DAYS)
