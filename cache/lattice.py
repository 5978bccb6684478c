"""Which cube has which pixel of a store: cubes on its lattice first, then those resampled. Pure.

Cubes of one CRS lie on one lattice, and their values are moved as they are. A cube of another CRS,
or one that lies a part of a pixel beside, is on a lattice of its own, and is resampled. A pixel
belongs to one lattice: the store's where a cube on it covers the pixel, else that of the first
cube in order of precedence that does. Of several cubes on that lattice, each pair is taken from
the first that has a value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from firnline.cache.request import Request
from firnline.cache.sources import OpenCube
from firnline.crs import parse_crs, transformer
from firnline.errors import NoCoverageError, SourceCorruptError
from firnline.items import LATTICE_EDGE

Raw = np.ndarray[Any, np.dtype[Any]]

_TOLERANCE = 1e-3  # pixels
_ROWS_AT_A_TIME = 2**20  # pixels taken through PROJ at once


@dataclass(frozen=True)
class Placement:
    """Where a cube lies in the target; half-open ranges."""

    grid: GeoBox
    """The cube's own."""
    lattice: int
    """Number of its lattice; 0 is the target's."""
    corner: tuple[int, int]
    """Its first pixel's row and column in the target; of no meaning on another lattice."""
    rows: slice
    columns: slice
    """The window of the target that it has pixels in."""

    @property
    def resampled(self) -> bool:
        """Whether its values can't be moved as they are."""
        return self.lattice != 0

    def moved(self, row: int, column: int) -> Placement:
        """The same where the target begins at another pixel."""
        return replace(
            self,
            corner=(self.corner[0] - row, self.corner[1] - column),
            rows=slice(self.rows.start - row, self.rows.stop - row),
            columns=slice(self.columns.start - column, self.columns.stop - column),
        )


def cube_grid(cube: OpenCube) -> GeoBox:
    """The grid of a cube.

    Raises
    ------
    SourceCorruptError
        x does not ascend, or y does not descend.
    """
    step_x, step_y = (float(axis[1] - axis[0]) for axis in (cube.x, cube.y))
    if step_x <= 0 or step_y >= 0:
        raise SourceCorruptError(
            f"{cube.source.url}: x must ascend and y descend, the steps are {step_x}, {step_y}"
        )
    affine = Affine(
        step_x, 0, float(cube.x[0]) - step_x / 2, 0, step_y, float(cube.y[0]) - step_y / 2
    )
    return GeoBox((len(cube.y), len(cube.x)), affine, cube.crs)


def target_grid(request: Request, crs: str, grids: Sequence[GeoBox]) -> GeoBox:
    """The window of a lattice that covers the area, as far as there are cubes.

    The lattice is that of the first cube in this CRS; where there is none, ITS_LIVE's, in pixels
    of the first cube's size.

    Raises
    ------
    NoCoverageError
    """
    own = [grid for grid in grids if grid.crs == crs]
    if own:
        a, _, c, _, e, f = own[0].affine[:6]
    else:
        a, e = grids[0].affine.a, grids[0].affine.e
        c, f = -LATTICE_EDGE, LATTICE_EDGE
    system = parse_crs(crs)

    def pixels(bounds: Sequence[float], tolerance: float = 1e-6) -> tuple[slice, slice]:
        """Rows and columns that bounds touch; touching their edge alone is not enough."""
        west, south, east, north = bounds
        return tuple(
            slice(math.floor(first + tolerance), math.ceil(last - tolerance))
            for first, last in (
                ((north - f) / e, (south - f) / e),
                ((west - c) / a, (east - c) / a),
            )
        )  # type: ignore[return-value]

    reached = []
    for grid in grids:
        bounds = grid.boundingbox.bbox
        if grid.crs != crs:
            to = transformer(parse_crs(str(grid.crs)), system)
            bounds = to.transform_bounds(*bounds, densify_pts=101)
        if np.isfinite(bounds).all():
            reached.append(pixels(bounds, _TOLERANCE))
    sides = []
    for axis, asked in enumerate(pixels(request.area_in(system).bounds)):
        ranges = [window[axis] for window in reached]
        whole = slice(
            min((r.start for r in ranges), default=0), max((r.stop for r in ranges), default=0)
        )
        side = overlap(asked, whole)
        if side is None:
            raise _nothing()
        sides.append(side)
    return cut(GeoBox((1, 1), Affine(a, 0, c, 0, e, f), crs), *sides)


def place(geobox: GeoBox, grids: Sequence[GeoBox]) -> tuple[GeoBox, dict[int, Placement], Raw]:
    """Give each pixel of a target to a cube.

    Parameters
    ----------
    geobox
        The target.
    grids
        Of the cubes, in order of precedence.

    Returns
    -------
    geobox
        The target less what is empty along its sides.
    placements
        By place in `grids`, those of the target's lattice first; without cubes that can't have a
        value in the target.
    owner
        ``int16 (y, x)``: place in `placements` of the first cube that has the pixel, -1 for none.

    Raises
    ------
    NoCoverageError
    """
    shape = geobox.shape.yx
    owner, lattice = np.full(shape, -1, np.int16), np.full(shape, -1, np.int8)
    whole = slice(0, shape[0]), slice(0, shape[1])
    placed: dict[int, Placement] = {}
    beside = []
    for n, grid in enumerate(grids):
        corner = _corner(grid, geobox)
        if corner is None:
            beside.append(n)
            continue
        rows, columns = (
            overlap(side, slice(first, first + size))
            for side, first, size in zip(whole, corner, grid.shape.yx, strict=True)
        )
        if rows is None or columns is None:
            continue
        window = owner[rows, columns]
        window[window < 0] = len(placed)
        lattice[rows, columns] = 0
        placed[n] = Placement(grid, 0, corner, rows, columns)
    lattices: list[GeoBox] = [geobox]
    for n in beside:
        number = next(
            (k for k, one in enumerate(lattices) if _corner(grids[n], one) is not None),
            len(lattices),
        )
        if number == len(lattices):
            lattices.append(grids[n])
        mine = covered(geobox, grids[n], (lattice < 0) | (lattice == number))
        if not mine.any():
            continue
        rows, columns = bounds_of(mine)
        owner[mine & (owner < 0)] = len(placed)
        lattice[mine] = number
        placed[n] = Placement(grids[n], number, (0, 0), rows, columns)
    if not placed:
        raise _nothing()
    rows, columns = bounds_of(owner >= 0)
    if (rows, columns) != whole:
        placed = {n: one.moved(rows.start, columns.start) for n, one in placed.items()}
        owner = owner[rows, columns].copy()
        geobox = cut(geobox, rows, columns)
    return geobox, placed, owner


def covered(geobox: GeoBox, grid: GeoBox, where: Raw) -> Raw:
    """Which pixels of a target have their centre in a grid, of those `where`: ``bool (y, x)``."""
    found = np.zeros(where.shape, bool)
    to = transformer(parse_crs(str(geobox.crs)), parse_crs(str(grid.crs)))
    a, _, c, _, e, f = geobox.affine[:6]
    inverse = ~grid.affine
    step = max(1, _ROWS_AT_A_TIME // where.shape[1])
    for first in range(0, where.shape[0], step):
        rows, columns = np.nonzero(where[first : first + step])
        x, y = to.transform(c + a * (columns + 0.5), f + e * (rows + first + 0.5))
        with np.errstate(invalid="ignore"):
            column, row = inverse.a * x + inverse.c, inverse.e * y + inverse.f
            inside = (row >= 0) & (row < grid.shape.y) & (column >= 0) & (column < grid.shape.x)
        found[rows[inside] + first, columns[inside]] = True
    return found


def cut(geobox: GeoBox, rows: slice, columns: slice) -> GeoBox:
    """A window of a grid (`geobox[...]` of odc-geo 0.5 warns with affine 3)."""
    a, _, c, _, e, f = geobox.affine[:6]
    affine = Affine(a, 0, c + columns.start * a, 0, e, f + rows.start * e)
    return GeoBox((rows.stop - rows.start, columns.stop - columns.start), affine, geobox.crs)


def overlap(one: slice, other: slice) -> slice | None:
    """What two half-open ranges share; None for nothing."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return slice(start, stop) if start < stop else None


def bounds_of(mask: Raw) -> tuple[slice, slice]:
    """Rows and columns of the smallest window that holds all of a mask's pixels; it has some."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _corner(grid: GeoBox, of: GeoBox) -> tuple[int, int] | None:
    """Row and column of a grid's first pixel in another's; None if it's on another lattice."""
    if grid.crs != of.crs:
        return None
    row = (grid.affine.f - of.affine.f) / of.affine.e
    column = (grid.affine.c - of.affine.c) / of.affine.a
    off = max(
        abs(row - round(row)),
        abs(column - round(column)),
        abs(grid.affine.a / of.affine.a - 1),
        abs(grid.affine.e / of.affine.e - 1),
    )
    return None if off > _TOLERANCE else (round(row), round(column))


def _nothing() -> NoCoverageError:
    return NoCoverageError("no pixel of the cubes lies in this area")
