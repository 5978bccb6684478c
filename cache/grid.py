"""A Dataset's grid: where points lie in it, and what fields are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyproj
from numpy.typing import ArrayLike, NDArray

from firnline.cache.strain.grid import grid_mapping
from firnline.crs import LONLAT, parse_crs, transformer
from firnline.errors import CRSError, InputError

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.floating[Any]]
Method = Literal["nearest", "bilinear"]

_SLACK = 1e-4  # pixels that a place may be off by what reprojecting leaves
_BLOCK = 20  # pixels a side: a chunk of the stores


@dataclass(frozen=True)
class Grid:
    """Pixel centres and CRS of a Dataset.

    ``x`` and ``y`` are in metres, each evenly spaced, in either direction.
    """

    x: Floats
    y: Floats
    crs: pyproj.CRS

    @classmethod
    def of(cls, ds: xr.Dataset) -> Grid:
        """The grid of a Dataset with 1-D coordinates x and y and a CF grid mapping.

        Raises
        ------
        CRSError
            There is no CRS, or it is not projected: one is never guessed.
        InputError
            No coordinates x and y, or not evenly spaced.
        """
        axes = {}
        for name in ("x", "y"):
            if name not in ds.coords or ds[name].dims != (name,):
                raise InputError(f"no 1-D coordinate {name}: accepted are x and y in metres")
            values = np.asarray(ds[name].values, np.float64)
            steps = np.diff(values)
            # float32 coordinates of polar grids are rounded to a quarter of a metre
            if values.size > 1 and not (np.abs(steps / steps.mean() - 1) < 5e-3).all():
                raise InputError(f"unequal spacing along {name}: accepted is a regular grid")
            axes[name] = values
        return cls(axes["x"], axes["y"], grid_mapping(ds)[1])

    @property
    def spacing(self) -> float:
        """Side of a pixel in metres, the smaller one."""
        return min(
            abs(float(axis[-1] - axis[0])) / (axis.size - 1) if axis.size > 1 else np.inf
            for axis in (self.x, self.y)
        )

    def project(self, x: ArrayLike, y: ArrayLike, crs: pyproj.CRS) -> tuple[Floats, Floats]:
        """Points of another CRS (x, y order: lon, lat) in this one.

        Raises
        ------
        CRSError
            A point is outside of the domain of a CRS.
        """
        moved = transformer(crs, self.crs).transform(np.asarray(x), np.asarray(y))
        px, py = (np.atleast_1d(np.asarray(part, np.float64)) for part in moved)
        if not (np.isfinite(px).all() and np.isfinite(py).all()):
            raise CRSError(f"a point can't be expressed in {self.crs.name}")
        return px, py

    def points(
        self,
        *,
        lon: ArrayLike | None = None,
        lat: ArrayLike | None = None,
        x: ArrayLike | None = None,
        y: ArrayLike | None = None,
        crs: str | None = None,
    ) -> tuple[Floats, Floats]:
        """Points given in degrees, or by x and y in `crs` (by default in this one), in this one.

        Raises
        ------
        InputError
            Neither, both, or not as many of one coordinate as of the other.
        CRSError
            As :meth:`project`.
        """
        if lon is not None and lat is not None and x is None and y is None and crs is None:
            pair, given = (lon, lat), LONLAT
        elif x is not None and y is not None and lon is None and lat is None:
            pair, given = (x, y), self.crs if crs is None else parse_crs(crs)
        else:
            raise InputError("points are given by lon and lat, or by x and y (and their crs)")
        first, second = (np.atleast_1d(np.asarray(part, np.float64)) for part in pair)
        if first.shape != second.shape or first.ndim != 1:
            raise InputError(f"{first.size} and {second.size} coordinates: accepted are pairs")
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise InputError("a point's coordinates are not finite")
        if given.is_geographic and ((np.abs(first) > 360).any() or (np.abs(second) > 90).any()):
            raise InputError("a point is not in degrees of longitude and latitude")
        return (first, second) if given == self.crs else self.project(first, second, given)

    def lonlat(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """Longitude and latitude of points of this grid, in degrees."""
        lon, lat = transformer(self.crs, LONLAT).transform(x, y)
        return np.asarray(lon), np.asarray(lat)

    def locate(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """Row and column of points, whole at the pixels' centres; outside, beyond the ends."""
        out = []
        for values, axis in ((y, self.y), (x, self.x)):
            step = (axis[-1] - axis[0]) / (axis.size - 1) if axis.size > 1 else np.inf
            out.append((np.asarray(values, np.float64) - axis[0]) / step)
        return out[0], out[1]

    def inside(self, row: Floats, column: Floats) -> NDArray[np.bool_]:
        """Whether places are on a pixel."""
        found: NDArray[np.bool_] = (row >= -0.5) & (row < self.y.size - 0.5)
        found &= (column >= -0.5) & (column < self.x.size - 0.5)
        return found


def interpolate(field: Floats, row: Floats, column: Floats) -> Floats:
    """Bilinear interpolation of a field between its pixels' centres.

    Parameters
    ----------
    field : ndarray, shape (..., y, x)
        Missing values are NaN.
    row, column : ndarray, shape (point,)
        As of :meth:`Grid.locate`.

    Returns
    -------
    ndarray of float64, shape (..., point)
        NaN beyond the outer centres, and where a pixel that has a part in it is missing. Exact
        for fields that are linear in x and y.
    """
    ny, nx = field.shape[-2:]
    known = ~np.isnan(row + column)
    places = []
    for place, last in ((row, ny - 1), (column, nx - 1)):
        known &= (place >= -_SLACK) & (place <= last + _SLACK)
        places.append(np.clip(np.where(known, place, 0), 0, last))
    row, column = places
    r0 = np.minimum(row.astype(np.intp), max(ny - 2, 0))
    c0 = np.minimum(column.astype(np.intp), max(nx - 2, 0))
    found = np.zeros((*field.shape[:-2], row.size))
    for dr, of_row in ((0, 1 - (row - r0)), (1, row - r0)):
        for dc, of_column in ((0, 1 - (column - c0)), (1, column - c0)):
            weight = of_row * of_column
            value = field[..., np.minimum(r0 + dr, ny - 1), np.minimum(c0 + dc, nx - 1)]
            # a missing neighbour spoils only that which it has a part in
            found += np.where(weight > 0, value * weight, 0)
    return np.where(known, found, np.nan)


def sample(array: xr.DataArray, row: Floats, column: Floats, method: Method) -> Floats:
    """The values ``(..., y, x)`` of an array at some places, block by block of its grid.

    Parameters
    ----------
    array : xarray.DataArray
        Dimensions y and x last; a lazy one is read only where the places are.
    row, column : ndarray, shape (point,)
        On pixels of the grid.
    method : {"nearest", "bilinear"}
        The pixel's own value, or between the pixels' centres.

    Returns
    -------
    ndarray, shape (..., point)
        Of the array's type for ``nearest``, float64 for ``bilinear``.
    """
    ny, nx = array.shape[-2:]
    if method == "nearest":
        row, column = (np.floor(place + 0.5) for place in (row, column))
    first = [
        np.clip(np.floor(place), 0, n - 1).astype(int) for place, n in ((row, ny), (column, nx))
    ]
    kind = array.dtype if method == "nearest" else np.float64
    found = np.empty((*array.shape[:-2], row.size), kind)
    blocks = np.stack(first) // _BLOCK
    for block in np.unique(blocks, axis=1).T:
        here = (blocks == block[:, None]).all(axis=0)
        r, c = (slice(int(f[here].min()), int(f[here].max()) + 2) for f in first)
        part = np.asarray(array[..., r, c].values)
        at = row[here] - r.start, column[here] - c.start
        if method == "nearest":
            found[..., here] = part[..., at[0].astype(int), at[1].astype(int)]
        else:
            found[..., here] = interpolate(part, *at)
    return found
