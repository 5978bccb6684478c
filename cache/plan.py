"""The plan: which chunks of which cubes make which tiles of one store. Pure.

From a request and the cubes that were opened for it come the target grid (the lattice that the
cubes share), the layers in time, and tiles that are multiples of the store's chunks. A tile names
exactly the source chunks that it needs: none without a wanted image pair, none outside the area.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from firnline.cache.memory import shares
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube
from firnline.cache.stitch import Layers, PairTable, merge_pairs
from firnline.crs import parse_crs
from firnline.cube import Array
from firnline.errors import NoCoverageError, SourceCorruptError, TooLargeError

Raw = np.ndarray[Any, np.dtype[Any]]

# Layout of the store, measured in docs/decisions/0005-store-layout.md.
CHUNK_TIME, SHARD_TIME, CHUNK_SIDE = 256, 2048, 20
_TILES = ((80, 100), (40, 100), (40, 60), (40, 40), (20, 40), (20, 20))
_LATTICE_TOLERANCE = 1e-3  # pixels


@dataclass(frozen=True)
class Tile:
    """A part of the target that is fetched, stitched and written at one go; half-open ranges."""

    index: int
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Chunk:
    """One source chunk of one variable, and where it meets a tile: (in the tile, in the chunk)."""

    cube: int
    key: str
    index: tuple[int, int, int]
    rows: tuple[slice, slice]
    columns: tuple[slice, slice]


@dataclass(frozen=True)
class Placement:
    """Where a cube lies in the target: its first pixel (row, column), and the window they share."""

    row: int
    column: int
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Plan:
    """All that is known before the first velocity chunk is fetched.

    ``source_cube`` is ``int16 (y, x)``, the position in ``cubes`` of the cube a pixel comes from,
    -1 where there is none. ``tile_shape`` is in pixels (y, x).
    """

    request: Request
    crs: str
    geobox: GeoBox
    cubes: tuple[OpenCube, ...]
    placements: tuple[Placement, ...]
    source_cube: Raw
    layers: Layers
    tile_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(mid_date, y, x) of the store."""
        return (len(self.layers), *self.geobox.shape)

    @cached_property
    def x(self) -> Raw:
        """Pixel centres in metres, ascending."""
        return self.geobox.affine.c + self.geobox.affine.a * (np.arange(self.shape[2]) + 0.5)

    @cached_property
    def y(self) -> Raw:
        """Pixel centres in metres, descending."""
        return self.geobox.affine.f + self.geobox.affine.e * (np.arange(self.shape[1]) + 0.5)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """In row-major order."""
        (_, height, width), (high, wide) = self.shape, self.tile_shape
        corners = [(r, c) for r in range(0, height, high) for c in range(0, width, wide)]
        return tuple(
            Tile(n, slice(r, min(r + high, height)), slice(c, min(c + wide, width)))
            for n, (r, c) in enumerate(corners)
        )

    def array(self, variable: str) -> Array:
        """The variable as the first cube has it: type, missing value, attributes."""
        return self.cubes[0].layout.variable(variable)

    def chunks(self, tile: Tile, variable: str) -> Iterator[Chunk]:
        """The source chunks that hold something of a tile, cube after cube."""
        for n, (cube, place) in enumerate(zip(self.cubes, self.placements, strict=True)):
            rows = _overlap(tile.rows, place.rows)
            columns = _overlap(tile.columns, place.columns)
            if rows is None or columns is None:
                continue
            array = cube.layout.variable(variable)
            for t in self._wanted_times(n, array.chunks[0]):
                for i, row in _meetings(rows, tile.rows.start, place.row, array.chunks[1]):
                    for j, column in _meetings(
                        columns, tile.columns.start, place.column, array.chunks[2]
                    ):
                        index = (t, i, j)
                        yield Chunk(n, array.key(index), index, row, column)

    def _wanted_times(self, cube: int, size: int) -> list[int]:
        """Chunks along time, of `size`, that hold a wanted pair."""
        if (cube, size) not in self._times:
            pairs = np.flatnonzero(self.layers.of_pair[cube] >= 0)
            self._times[cube, size] = [int(t) for t in np.unique(pairs // size)]
        return self._times[cube, size]

    @cached_property
    def _times(self) -> dict[tuple[int, int], list[int]]:
        return {}

    def moves(self, cube: int, time: int, size: int) -> tuple[Raw, Raw]:
        """Wanted pairs of a time chunk of `size`, and their layers, in the order of the pairs."""
        key = cube, time, size
        if key not in self._moves:
            layers = self.layers.of_pair[cube][time * size : (time + 1) * size]
            pairs = np.flatnonzero(layers >= 0)
            self._moves[key] = pairs, layers[pairs].astype(np.intp)
        return self._moves[key]

    @cached_property
    def _moves(self) -> dict[tuple[int, int, int], tuple[Raw, Raw]]:
        return {}

    @cached_property
    def uses(self) -> Mapping[tuple[int, str], int]:
        """How many tiles need each source chunk, by (cube, key)."""
        return self.uses_of(self.tiles)

    def uses_of(self, tiles: Iterable[Tile]) -> dict[tuple[int, str], int]:
        """How many of some tiles need each source chunk, by (cube, key)."""
        counted: dict[tuple[int, str], int] = {}
        for tile in tiles:
            for variable in self.request.variables:
                for chunk in self.chunks(tile, variable):
                    name = (chunk.cube, chunk.key)
                    counted[name] = counted.get(name, 0) + 1
        return counted

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a tile written under another plan would not fit this one."""
        parts = [
            self.request.key,
            self.crs,
            list(self.geobox.affine)[:6],
            self.shape,
            self.tile_shape,
            [[cube.id, cube.source.url, cube.layout.etag] for cube in self.cubes],
            hashlib.sha256(self.layers.granule.tobytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def attribution(self) -> str:
        """Whose data this is; synthetic cubes say so in their attributes."""
        for cube in self.cubes:
            if "SYNTHETIC" in str(cube.layout.attributes.get("title", "")):
                return "SYNTHETIC sample data, not a measurement"
        return "Data: NASA MEaSUREs ITS_LIVE, CC-BY-4.0"

    @property
    def output_bytes(self) -> int:
        """Size of the pairs' variables, uncompressed."""
        pixels = math.prod(self.shape)
        return sum(pixels * self.array(v).dtype.itemsize for v in self.request.variables)

    def summary(self) -> dict[str, Any]:
        """What the materialisation would take: for people and for ``--dry-run``."""
        indexed = [cube.read_at for cube in self.cubes if cube.read_at is not None]
        decoded = sum(
            math.prod(array.chunks) * array.dtype.itemsize
            for cube, key in self.uses
            for array in [self.cubes[cube].layout.variable(key.split("/", 1)[0])]
        )
        return {
            "crs": self.crs,
            "shape": dict(zip(("mid_date", "y", "x"), self.shape, strict=True)),
            "bounds": list(self.geobox.boundingbox.bbox),
            "cubes": [cube.id for cube in self.cubes],
            "pairs": {
                "read": self.layers.read,
                "kept": self.layers.kept,
                "merged": self.layers.merged,
            },
            "variables": list(self.request.variables),
            "tiles": len(self.tiles),
            "source_chunks": len(self.uses),
            "source_bytes_decoded": decoded,
            "output_bytes_uncompressed": self.output_bytes,
            **({"index_of": min(indexed).isoformat()} if indexed else {}),
        }


def choose_crs(request: Request, cubes: Sequence[CubeItem]) -> str:
    """The CRS asked for, or that whose cubes cover most of the area.

    Where two cover the same (to 0.1 %): that in which the area was given, then that whose cubes
    have more image pairs.

    Raises
    ------
    NoCoverageError
        There is no cube in the CRS asked for.
    """
    systems = sorted({cube.crs for cube in cubes})
    if request.out_crs is not None:
        if request.out_crs not in systems:
            raise NoCoverageError(
                f"no cube in {request.out_crs} covers this area; there are: {', '.join(systems)}"
            )
        return request.out_crs

    def rank(code: str) -> tuple[float, bool, int, str]:
        area = request.area_in(parse_crs(code))
        mine = [cube for cube in cubes if cube.crs == code]
        covered = sum(area.intersection(cube.area).area for cube in mine) / area.area
        pairs = sum(cube.pairs for cube in mine)
        return -round(covered, 3), code != request.crs, -pairs, code

    return min(systems, key=rank)


def by_coverage(request: Request, cubes: Sequence[CubeItem]) -> list[CubeItem]:
    """Cubes ordered by how much of the area they cover, most first: the order of precedence."""
    return sorted(
        cubes,
        key=lambda cube: (
            -request.area_in(parse_crs(cube.crs)).intersection(cube.area).area,
            cube.id,
        ),
    )


def make_plan(
    request: Request,
    crs: str,
    cubes: Sequence[OpenCube],
    *,
    memory_limit: int,
    max_bytes: int,
) -> Plan:
    """Plan a materialisation from cubes of one CRS, in order of precedence.

    Raises
    ------
    NoCoverageError
        No pixel of the cubes lies in the area, or no image pair passes the filters.
    SourceMissingError
        A cube lacks a variable asked for.
    SourceCorruptError
        The cubes do not share a lattice.
    TooLargeError
        The result would be larger than `max_bytes`.
    """
    geobox, corners = _grid(request, crs, cubes)
    height, width = geobox.shape
    owner = np.full((height, width), -1, np.int16)
    placements = []
    for n, (cube, (row, column)) in enumerate(zip(cubes, corners, strict=True)):
        for variable in request.variables:
            _check_alike(cube, cubes[0], variable)
        rows = _overlap(slice(0, height), slice(row, row + len(cube.y)))
        columns = _overlap(slice(0, width), slice(column, column + len(cube.x)))
        if rows is None or columns is None:
            rows = columns = slice(0, 0)
        window = owner[rows, columns]
        if (window >= 0).any():
            raise SourceCorruptError(
                f"{cube.id} and {cubes[window.max()].id} overlap; cubes of one CRS abut: harvest "
                "one generation of them"
            )
        window[...] = n
        placements.append(Placement(row, column, rows, columns))
    layers = merge_pairs([_table(request, cube) for cube in cubes])
    if not len(layers):
        raise NoCoverageError(
            f"none of the {layers.read:,} image pairs of this area passes the filters "
            "(datetime, satellites, dt_days)"
        )
    plan = Plan(
        request=request,
        crs=crs,
        geobox=geobox,
        cubes=tuple(cubes),
        placements=tuple(placements),
        source_cube=owner,
        layers=layers,
        tile_shape=_tile_shape(len(layers), (height, width), memory_limit),
    )
    if plan.output_bytes > max_bytes:
        raise TooLargeError(
            f"the result would take {plan.output_bytes / 1e9:.1f} GB; this installation accepts "
            f"{max_bytes / 1e9:.1f} GB (FIRNLINE_MAX_JOB_BYTES): ask for a smaller area, a shorter "
            "period or fewer variables"
        )
    return plan


def _grid(
    request: Request, crs: str, cubes: Sequence[OpenCube]
) -> tuple[GeoBox, list[tuple[int, int]]]:
    """The window of the cubes' lattice that covers the area, and each cube's first pixel in it."""
    first = cubes[0]
    step_x, step_y = (float(axis[1] - axis[0]) for axis in (first.x, first.y))
    if step_x <= 0 or step_y >= 0:
        raise SourceCorruptError(
            f"{first.source.url}: x must ascend and y descend, the steps are {step_x}, {step_y}"
        )
    left, top = first.x[0] - step_x / 2, first.y[0] - step_y / 2
    corners = []
    for cube in cubes:
        row, column = (cube.y[0] - first.y[0]) / step_y, (cube.x[0] - first.x[0]) / step_x
        off = max(
            abs(row - round(row)),
            abs(column - round(column)),
            abs((cube.x[1] - cube.x[0]) / step_x - 1),
            abs((cube.y[1] - cube.y[0]) / step_y - 1),
        )
        if off > _LATTICE_TOLERANCE:
            raise SourceCorruptError(f"{cube.source.url} does not lie on the grid of {first.id}")
        corners.append((round(row), round(column)))
    west, south, east, north = request.area_in(parse_crs(crs)).bounds
    rows = _overlap(
        _pixels((north - top) / step_y, (south - top) / step_y),
        slice(
            min(row for row, _ in corners),
            max(row + len(c.y) for (row, _), c in zip(corners, cubes, strict=True)),
        ),
    )
    columns = _overlap(
        _pixels((west - left) / step_x, (east - left) / step_x),
        slice(
            min(column for _, column in corners),
            max(column + len(c.x) for (_, column), c in zip(corners, cubes, strict=True)),
        ),
    )
    if rows is None or columns is None:
        raise NoCoverageError("no pixel of the cubes lies in this area")
    affine = Affine(step_x, 0, left + columns.start * step_x, 0, step_y, top + rows.start * step_y)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    moved = [(row - rows.start, column - columns.start) for row, column in corners]
    return GeoBox(shape, affine, crs), moved


def _check_alike(cube: OpenCube, first: OpenCube, variable: str) -> None:
    """Values are moved as they are: a variable must be of one type in all cubes."""
    kinds = [
        (array.dtype, array.dims[1:], array.missing)
        for array in (cube.layout.variable(variable), first.layout.variable(variable))
    ]
    if kinds[0] != kinds[1]:
        raise SourceCorruptError(
            f"{cube.source.url}: {variable} is {kinds[0][0]} with {kinds[0][2]} for missing; "
            f"in {first.id} it is {kinds[1][0]} with {kinds[1][2]}"
        )
    array = cube.layout.variable(variable)
    if len(array.dims) != 3:
        raise SourceCorruptError(f"{cube.source.url}: {variable} is not on (time, y, x)")
    if not array.dtype.isnative:
        raise SourceCorruptError(
            f"{cube.source.url}: {variable} is {array.dtype}, of the other end"
        )


def _pixels(first: float, last: float) -> slice:
    """The pixels that an interval touches; touching their edge alone is not enough."""
    tolerance = 1e-6
    return slice(math.floor(first + tolerance), math.ceil(last - tolerance))


def _overlap(one: slice, other: slice) -> slice | None:
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return slice(start, stop) if start < stop else None


def _meetings(
    window: slice, tile_start: int, origin: int, size: int
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Chunks along one axis that meet a window: index, (slice in the tile, slice in the chunk)."""
    for index in range((window.start - origin) // size, (window.stop - 1 - origin) // size + 1):
        chunk_start = origin + index * size
        meeting = _overlap(window, slice(chunk_start, chunk_start + size))
        if meeting is not None:
            yield (
                index,
                (
                    slice(meeting.start - tile_start, meeting.stop - tile_start),
                    slice(meeting.start - chunk_start, meeting.stop - chunk_start),
                ),
            )


def _table(request: Request, cube: OpenCube) -> PairTable:
    """The cube's pairs, with those that pass the request's filters marked as wanted."""
    wanted = ~np.isnat(cube.mid_date)
    start, end = request.interval
    if start is not None:
        wanted &= cube.mid_date >= np.datetime64(start.replace(tzinfo=None), "us")
    if end is not None:
        wanted &= cube.mid_date <= np.datetime64(end.replace(tzinfo=None), "us")
    if request.dt_days is not None:
        least, most = request.dt_days
        date_dt = _column(cube, "date_dt")
        wanted &= (date_dt >= least) & (date_dt <= most)
    if request.satellites:
        for image in ("img1", "img2"):
            mission = _column(cube, f"mission_{image}")
            name = np.char.add(mission.astype("U"), _column(cube, f"satellite_{image}").astype("U"))
            fits = [np.char.startswith(name, satellite) for satellite in request.satellites]
            wanted &= np.logical_or.reduce(fits)
    missing = {name: cube.layout.arrays[name].missing for name in cube.per_pair}
    return PairTable(cube.mid_date, cube.granule, cube.per_pair, missing, wanted)


def _column(cube: OpenCube, name: str) -> Raw:
    if name not in cube.per_pair:
        cube.layout.variable(name)
    return cube.per_pair[name]


def _tile_shape(layers: int, shape: tuple[int, int], memory_limit: int) -> tuple[int, int]:
    """The largest tile whose buffer of one int16 variable is within its share of the memory."""
    share = shares(memory_limit).buffer
    best = next((t for t in _TILES if layers * t[0] * t[1] * 2 <= share), _TILES[-1])
    high, wide = (
        min(side, math.ceil(size / CHUNK_SIDE) * CHUNK_SIDE)
        for side, size in zip(best, shape, strict=True)
    )
    return high, wide
