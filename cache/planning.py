"""Planning: from a request and the cubes that were opened for it to a :class:`Plan`.

Chosen here are the CRS, the order of the cubes, the pairs that pass the filters, and the size of
the tiles, so that all that is held at a time is within the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from firnline.cache.lattice import Placement, cube_grid, place, target_grid
from firnline.cache.memory import shares
from firnline.cache.plan import CHUNK_SIDE, SPEEDS, Plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube
from firnline.cache.stitch import PairTable, merge_pairs
from firnline.cache.turned_pairs import turn_pairs
from firnline.cache.vectors import jacobian
from firnline.crs import parse_crs, transformer
from firnline.errors import NoCoverageError, SourceCorruptError, TooLargeError
from firnline.pairs import enough

Raw = np.ndarray[Any, np.dtype[Any]]

_TILES = ((80, 100), (40, 100), (40, 60), (40, 40), (20, 40), (20, 20))


def choose_crs(request: Request, cubes: Sequence[CubeItem]) -> str:
    """The CRS asked for, or that whose cubes cover most of the area.

    Where two cover the same (to 0.1 %): that in which the area was given, then that whose cubes
    have more image pairs.
    """
    if request.out_crs is not None:
        return request.out_crs
    systems = sorted({cube.crs for cube in cubes})

    def rank(code: str) -> tuple[float, bool, int, str]:
        area = request.area_in(parse_crs(code))
        mine = [cube for cube in cubes if cube.crs == code]
        covered = sum(area.intersection(cube.area).area for cube in mine) / area.area
        pairs = sum(cube.pairs for cube in mine)
        return -round(covered, 3), code != request.crs, -pairs, code

    return min(systems, key=rank)


def by_coverage(request: Request, crs: str, cubes: Sequence[CubeItem]) -> list[CubeItem]:
    """Cubes in order of precedence: those in `crs`, and of them those that cover more, first."""

    def rank(cube: CubeItem) -> tuple[bool, float, str]:
        area = request.area_in(parse_crs(cube.crs))
        return cube.crs != crs, -area.intersection(cube.area).area / area.area, cube.id

    return sorted(cubes, key=rank)


def make_plan(
    request: Request,
    crs: str,
    cubes: Sequence[OpenCube],
    *,
    memory_limit: int,
    max_bytes: int,
) -> Plan:
    """Plan a materialisation from cubes in order of precedence, those in the target's CRS first.

    Raises
    ------
    NoCoverageError
        No pixel of the cubes lies in the area, or no image pair passes the filters.
    SourceMissingError
        A cube lacks a variable asked for.
    SourceCorruptError
        A cube's axes run the other way, or its variables are of other types than another's.
    TooLargeError
        The result would be larger than `max_bytes`.
    """
    for cube in cubes:
        for variable in request.variables:
            _check_alike(cube, cubes[0], variable)
    grids = [cube_grid(cube) for cube in cubes]
    geobox = target_grid(request, crs, grids)
    tables = [_table(request, cube) for cube in cubes]
    pixel_bytes = sum(cubes[0].layout.variable(v).dtype.itemsize for v in request.variables)
    # before anything of the area's size is allocated: a cube's pairs are as many layers
    own = [t for t, grid in zip(tables, grids, strict=True) if grid.crs == crs]
    _check_size(
        max((int(table.wanted.sum()) for table in own), default=1)
        * math.prod(geobox.shape) * pixel_bytes,
        max_bytes,
    )  # fmt: skip
    geobox, placed, owner = place(geobox, grids)
    used = []
    for n, placement in placed.items():
        cube, table = cubes[n], tables[n]
        if placement.resampled:
            if not set(SPEEDS).isdisjoint(request.variables):
                _check_components(cube)
            cube = _turned(cube, placement, geobox)
            table = replace(table, per_pair=cube.per_pair, missing=_missing(cube))
        used.append((cube, table))
    layers = merge_pairs([table for _, table in used])
    if not len(layers):
        raise NoCoverageError(
            f"none of the {layers.read:,} image pairs of this area passes the filters "
            "(datetime, satellites, dt_days, max_error, min_valid)"
        )
    placements = tuple(placed.values())
    plan = Plan(
        request=request,
        crs=crs,
        geobox=geobox,
        cubes=tuple(cube for cube, _ in used),
        placements=placements,
        source_cube=owner,
        layers=layers,
        tile_shape=(CHUNK_SIDE, CHUNK_SIDE),
    )
    _check_size(plan.output_bytes, max_bytes)
    return replace(plan, tile_shape=_tile_shape(plan, memory_limit))


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(
            f"the result would take {size / 1e9:.1f} GB; this installation accepts "
            f"{limit / 1e9:.1f} GB (FIRNLINE_MAX_JOB_BYTES): ask for a smaller area, a shorter "
            "period or fewer variables"
        )


def _turned(cube: OpenCube, place: Placement, geobox: GeoBox) -> OpenCube:
    """A cube whose errors are along the target's axes: as they are in the middle of its pixels."""
    source, target = parse_crs(cube.crs), parse_crs(str(geobox.crs))
    row, column = ((side.start + side.stop) / 2 for side in (place.rows, place.columns))
    x = geobox.affine.c + column * geobox.affine.a
    y = geobox.affine.f + row * geobox.affine.e
    return turn_pairs(cube, jacobian(source, target, *transformer(target, source).transform(x, y)))


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


def _check_components(cube: OpenCube) -> None:
    """Vectors are turned as both components come: they have to come alike."""
    vx, vy = (cube.layout.variable(name) for name in ("vx", "vy"))
    _check_alike(cube, cube, "vx")
    if (vx.dtype, vx.missing, vx.dims, vx.chunks) != (vy.dtype, vy.missing, vy.dims, vy.chunks):
        raise SourceCorruptError(f"{cube.source.url}: vx and vy are not of one type and one layout")


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
    if request.max_error is not None:
        for error in ("vx_error", "vy_error"):
            wanted &= _known(cube, error) <= request.max_error
    if request.min_valid is not None:
        wanted &= enough(_known(cube, "roi_valid_percentage"), request.min_valid)
    return PairTable(cube.mid_date, cube.granule, cube.per_pair, _missing(cube), wanted)


def _missing(cube: OpenCube) -> dict[str, Any]:
    return {name: cube.layout.arrays[name].missing for name in cube.per_pair}


def _column(cube: OpenCube, name: str) -> Raw:
    if name not in cube.per_pair:
        cube.layout.variable(name)
    return cube.per_pair[name]


def _known(cube: OpenCube, name: str) -> Raw:
    """A column, with NaN for missing: that is neither small nor large enough."""
    values = _column(cube, name)
    return np.where(values == cube.layout.arrays[name].missing, np.float32("nan"), values)


def _tile_shape(plan: Plan, memory_limit: int) -> tuple[int, int]:
    """The largest tile whose buffer of one variable is within its share of the memory.

    It lives beside the chunks in flight, those kept for later tiles, the shard being encoded, and
    what is held of a cube while it is resampled.
    """
    share = shares(memory_limit)
    itemsize = max(2, *(plan.array(name).dtype.itemsize for name in plan.request.variables))
    best = next(
        (
            tile
            for tile in _TILES
            if len(plan.layers) * math.prod(tile) * itemsize <= share.buffer
            and _held(plan, tile) <= share.held
        ),
        _TILES[-1],
    )
    high, wide = (
        min(side, math.ceil(size / CHUNK_SIDE) * CHUNK_SIDE)
        for side, size in zip(best, plan.shape[1:], strict=True)
    )
    return high, wide


def _held(plan: Plan, tile: tuple[int, int]) -> int:
    """Bytes at most that are held of a cube while a tile of this shape is resampled from it.

    Both components of a time chunk over the tile's window in the cube, and of all wanted pairs
    over the tile, in int16.
    """
    held = [0]
    for n, lies in enumerate(plan.placements):
        if not lies.resampled:
            continue
        size = plan.cubes[n].layout.variable(plan.request.variables[0]).chunks[0]
        pairs = plan.layers.of_pair[n] >= 0
        at_once = max(
            int(pairs[first : first + size].sum()) for first in range(0, len(pairs), size)
        )
        held.append(
            4 * at_once * _window(plan, lies, tile) + 4 * int(pairs.sum()) * math.prod(tile)
        )
    return max(held)


def _window(plan: Plan, place: Placement, tile: tuple[int, int]) -> int:
    """Pixels of a cube in the box around a tile in the middle of its window, and a margin."""
    target, source = parse_crs(plan.crs), parse_crs(str(place.grid.crs))
    row, column = ((side.start + side.stop) / 2 for side in (place.rows, place.columns))
    a, _, c, _, e, f = plan.geobox.affine[:6]
    slopes = np.abs(jacobian(target, source, c + a * column, f + e * row))
    (xx, xy), (yx, yy) = slopes.tolist()
    high, wide = tile[0] * abs(e), tile[1] * abs(a)
    columns = int((xx * wide + xy * high) / abs(place.grid.affine.a)) + 5
    rows = int((yx * wide + yy * high) / abs(place.grid.affine.e)) + 5
    return rows * columns
