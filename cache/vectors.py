"""Velocities, their errors and strain rates from one grid to another, turned into its axes. Pure.

Components along the axes of one CRS are not those along another's: between UTM zone 22 and
EPSG:3413 the axes differ by 5.87 degrees at 49 W, 69.2 N. With ``J = d(X, Y) / d(x, y)``, target
coordinates by source ones:

- velocity ``v' = J v``. ITS_LIVE's are in metres *of the grid* per year, true ones times the map's
  scale factor; J takes the source's factor out and puts the target's in, so that the result is
  what the target's own cubes hold, and gradients taken on the target's grid need no correction
  (see `firnline.cache.strain.SCALE_CONVENTION`).
- covariance of the velocity ``C' = J C J^T``.
- strain rates ``e' = R e R^T``, R the rotation of J: a rate per year has no scale of the map in it.

All of it holds for conformal projections, as those of ITS_LIVE are, and to first order otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS

from firnline.crs import transformer
from firnline.errors import InputError

Raw = np.ndarray[Any, np.dtype[Any]]
Floats = NDArray[np.floating[Any]]

# Layers are taken so many that the temporaries of one go stay in a core's cache.
_PIXELS_AT_A_TIME = 2**16


def jacobian(source: CRS, target: CRS, x: ArrayLike, y: ArrayLike) -> Floats:
    """Derivatives of the target's coordinates by the source's, over 50 m to either side.

    Parameters
    ----------
    source, target : pyproj.CRS
        Projected, in metres.
    x, y : array_like
        Points in the source's coordinates.

    Returns
    -------
    ndarray, shape (2, 2, ...)
        ``[[dX/dx, dX/dy], [dY/dx, dY/dy]]``; not finite outside the domain of a CRS.
    """
    half = 50.0
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    move = transformer(source, target).transform
    with np.errstate(invalid="ignore"):
        along_x = np.subtract(move(x + half, y), move(x - half, y))
        along_y = np.subtract(move(x, y + half), move(x, y - half))
    return np.stack([along_x, along_y], axis=1) / (2 * half)


def rotation(jacobian: Floats) -> Floats:
    """Angle by which a Jacobian turns vectors, anticlockwise in radians: ``(2, 2, ...) -> (...)``.

    That of the rotation in its polar decomposition; from true north it is the target's meridian
    convergence less the source's.
    """
    (a, b), (c, d) = jacobian
    return np.asarray(np.arctan2(c - b, a + d))


def rotate_errors(
    jacobian: Floats, vx_error: ArrayLike, vy_error: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Standard errors of turned components, and their covariance: ``J C J^T``.

    Parameters
    ----------
    jacobian : ndarray, shape (2, 2, ...)
    vx_error, vy_error : array_like
        Standard errors of independent components, broadcast against what follows in `jacobian`.

    Returns
    -------
    vx_error, vy_error, covariance : ndarray
        The turned components covary, unless the errors were equal.
    """
    (a, b), (c, d) = jacobian
    var_x, var_y = np.square(vx_error), np.square(vy_error)
    return (
        np.sqrt(a * a * var_x + b * b * var_y),
        np.sqrt(c * c * var_x + d * d * var_y),
        np.asarray(a * c * var_x + b * d * var_y),
    )


def rotate_tensor(
    angle: ArrayLike, exx: Floats, eyy: Floats, exy: Floats
) -> tuple[Floats, Floats, Floats]:
    """Strain rates ``R e R^T`` in axes in which vectors are turned by an angle (radians)."""
    cos2, sin2 = np.cos(np.multiply(2, angle)), np.sin(np.multiply(2, angle))
    mean, half = (exx + eyy) / 2, (exx - eyy) / 2
    turned = half * cos2 - exy * sin2
    return mean + turned, mean - turned, half * sin2 + exy * cos2


@dataclass(frozen=True)
class Resampling:
    """How the pixels of a target grid are made of those of a source; see :func:`plan_resampling`.

    A target pixel has a value where the source pixel that its centre lies in has one: each place
    is in one pixel of one source, so that neighbouring sources leave no seam. Bilinear weights
    leave out those of the four nearest pixels that are missing. A vector is missing where either
    component is.

    The methods take ``(..., y, x)`` of the source's `window` and give ``(..., y, x)`` of the
    target, in the type that they were given: integers are rounded, with `missing` for no data;
    in floats NaN stands for it.
    """

    window: tuple[slice, slice]
    """Rows and columns of the source that are needed; empty where the grids don't meet."""
    inside: NDArray[np.bool_]
    """``(y, x)``: whether a target pixel's centre lies in the source."""
    corners: tuple[tuple[NDArray[np.intp], Floats], ...]
    """Index into the window, flat, and weight, each ``(y x)``: the pixel it lies in comes first."""
    jacobian: Floats
    """``(2, 2, y, x)``, source to target; not finite outside the domain of a CRS."""

    @cached_property
    def angle(self) -> Floats:
        """Angle by which vectors turn, anticlockwise in radians, ``(y, x)``."""
        return rotation(self.jacobian)

    def scalars(self, values: Raw, missing: float = np.nan) -> Raw:
        """Resample what has no direction.

        Raises
        ------
        InputError
            Another shape than the window's, or integers without `missing`.
        """
        return self._resampled((values,), missing)[0]

    def vectors(self, vx: Raw, vy: Raw, missing: float = np.nan) -> tuple[Raw, Raw]:
        """Resample velocity and turn it into the target's axes, in its metres per year.

        Raises
        ------
        InputError
            Another shape than the window's, or integers without `missing`.
        """
        vx, vy = self._resampled((vx, vy), missing, turn=True)
        return vx, vy

    def errors(self, vx_error: Raw, vy_error: Raw, missing: float = np.nan) -> tuple[Raw, Raw, Raw]:
        """Resample standard errors pixel by pixel, and turn them; with the covariance.

        Errors are resampled as values are: what averaging takes off the noise is not counted.

        Raises
        ------
        InputError
            Another shape than the window's, or integers (a covariance is none).
        """
        sigmas = self._resampled((vx_error, vy_error), missing)
        if sigmas[0].dtype.kind != "f":
            raise InputError(f"errors of type {sigmas[0].dtype}: accepted are floats")
        return rotate_errors(self.jacobian.astype(sigmas[0].dtype), *sigmas)

    def tensor(self, exx: Floats, eyy: Floats, exy: Floats) -> tuple[Floats, Floats, Floats]:
        """Resample strain rates, in floats, and turn them.

        Raises
        ------
        InputError
            Another shape than the window's.
        """
        parts = self._resampled((exx, eyy, exy), np.nan)
        return rotate_tensor(self.angle.astype(parts[0].dtype), *parts)

    def _resampled(
        self, parts: Sequence[Raw], missing: float, *, turn: bool = False
    ) -> tuple[Raw, ...]:
        dtype, layers = self._check(parts, missing)
        missing = np.nan if dtype.kind == "f" else missing
        shape = (*layers, *self.inside.shape)
        flat = [part.reshape(math.prod(layers), -1 if part.size else 0) for part in parts]
        out = [np.full((len(flat[0]), self.inside.size), missing, dtype) for _ in parts]
        precise = np.float64 if dtype.itemsize > 4 or dtype in (np.int32, np.uint32) else np.float32
        matrix = self.jacobian.reshape(2, 2, -1).astype(precise)
        weights = [weight.astype(precise) for _, weight in self.corners]
        for at in self._filled(flat, missing):
            values, there = self._taken([part[at] for part in flat], weights, missing)
            if turn:
                x, y = values
                values = [row[0] * x + row[1] * y for row in matrix]
            gone = ~there
            for to, value in zip(out, values, strict=True):
                if dtype.kind != value.dtype.kind:
                    np.copyto(value, 0, where=gone)  # NaN has no integer
                    value = _rounded(value, dtype, missing)
                np.copyto(value, missing, where=gone, casting="unsafe")
                to[at] = value
        return tuple(a.reshape(shape) for a in out)

    def _check(self, parts: Sequence[Raw], missing: float) -> tuple[np.dtype[Any], tuple[int, ...]]:
        """Type and leading dimensions of arrays that must agree in both."""
        needed = tuple(s.stop - s.start for s in self.window)
        shapes, dtypes = {part.shape for part in parts}, {part.dtype for part in parts}
        if len(shapes) > 1 or len(dtypes) > 1 or parts[0].shape[-2:] != needed:
            raise InputError(
                f"arrays of {', '.join(f'{part.dtype} {part.shape}' for part in parts)}: accepted "
                f"are arrays of one type and of one shape that ends in the window's, {needed}"
            )
        dtype = parts[0].dtype
        if dtype.kind not in "iuf":
            raise InputError(f"values of type {dtype}: accepted are real numbers")
        if dtype.kind in "iu" and not np.iinfo(dtype).min <= missing <= np.iinfo(dtype).max:
            raise InputError(f"{missing} for missing values of {dtype}: say which, as -32767")
        return dtype, parts[0].shape[:-2]

    def _filled(self, flat: Sequence[Raw], missing: float) -> Iterator[NDArray[np.intp]]:
        """Some layers at a time, of those that hold anything: most of a cube's do not."""
        if not self.inside.any():
            return
        step = max(1, _PIXELS_AT_A_TIME // max(1, self.inside.size))
        for first in range(0, len(flat[0]), step):
            layers = np.flatnonzero(_there(flat[0][first : first + step], missing).any(axis=1))
            if layers.size:
                yield layers + first

    def _taken(
        self, parts: Sequence[Raw], weights: Sequence[Raw], missing: float
    ) -> tuple[list[Raw], NDArray[np.bool_]]:
        """Values (layer, pixel) of the target, untouched if from one corner, and where they are."""
        inside = self.inside.ravel()
        if len(self.corners) == 1:
            values = [np.take(part, self.corners[0][0], axis=1) for part in parts]
            there = np.logical_and.reduce([inside & _there(value, missing) for value in values])
            return values, there
        sums: list[Raw] = []
        total: Raw | None = None
        for (index, _), weight in zip(self.corners, weights, strict=True):
            values = [np.take(part, index, axis=1) for part in parts]
            valid = np.logical_and.reduce([_there(value, missing) for value in values])
            share = valid * weight
            for value in values:
                if value.dtype.kind == "f":  # NaN times 0 is NaN
                    np.copyto(value, 0, where=~valid)
            if total is None:
                there, total = valid & inside, share
                sums = [share * value for value in values]
                continue
            total += share
            for sum_, value in zip(sums, values, strict=True):
                sum_ += share * value
        with np.errstate(invalid="ignore", divide="ignore"):
            for sum_ in sums:
                sum_ /= total
        return sums, there


def _there(values: Raw, missing: float) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values) if values.dtype.kind == "f" else values != missing)


def _rounded(values: Floats, dtype: np.dtype[Any], missing: float) -> Raw:
    """To integers, saturated; never to the value that stands for a missing one."""
    info = np.iinfo(dtype)
    rounded = np.clip(np.rint(values, out=values), info.min, info.max).astype(dtype)
    rounded[rounded == missing] = missing + 1 if missing <= 0 else missing - 1
    return rounded


def plan_resampling(
    source: GeoBox,
    target: GeoBox,
    method: Literal["nearest", "bilinear"] = "bilinear",
    *,
    where: NDArray[np.bool_] | None = None,
) -> Resampling:
    """Find out once how the pixels of one grid are made of another's, for any number of layers.

    Parameters
    ----------
    source, target : odc.geo.geobox.GeoBox
        Grids on projected CRSs in metres.
    method : {"nearest", "bilinear"}
        Nearest keeps every measured value and moves it by up to half a pixel; bilinear places it
        right and smooths.
    where
        ``(y, x)``: only these pixels of the target are wanted; default: all.

    Returns
    -------
    Resampling

    Raises
    ------
    InputError
        Another method, or a grid without a CRS or on a geographic one.
    """
    if method not in ("nearest", "bilinear"):
        raise InputError(f"method {method!r}: accepted are nearest, bilinear")
    source_crs, target_crs = _projected(source), _projected(target)
    ny, nx = target.shape
    # pixel centres and one more on each side, for differences
    columns, rows = np.meshgrid(np.arange(-1, nx + 1) + 0.5, np.arange(-1, ny + 1) + 0.5)
    x, y = transformer(target_crs, source_crs).transform(*_moved(target.affine, columns, rows))
    with np.errstate(invalid="ignore"):
        by_column, by_row = (
            np.stack([a[1:-1, 2:] - a[1:-1, :-2] for a in (x, y)]) / 2,
            np.stack([a[2:, 1:-1] - a[:-2, 1:-1] for a in (x, y)]) / 2,
        )
        inner = (slice(1, -1), slice(1, -1))
        column, row = _moved(~source.affine, x[inner], y[inner])
    to_source = np.stack([by_column, by_row], axis=1)  # by target pixels: (x or y, column or row)
    to_target = np.array(target.affine[:6]).reshape(2, 3)[:, :2]
    (a, b), (c, d) = to_source
    inverse = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    size = source.shape
    inside = (column >= 0) & (column < size.x) & (row >= 0) & (row < size.y)
    if where is not None:
        inside &= where
    window, corners = _corners(column, row, inside, (size.y, size.x), method)
    return Resampling(window, inside, corners, np.einsum("ij,jkyx->ikyx", to_target, inverse))


def _projected(grid: GeoBox) -> CRS:
    if grid.crs is None or not grid.crs.projected:
        raise InputError(f"grid on {grid.crs}: accepted are grids on projected CRSs")
    crs: CRS = grid.crs.proj
    return crs


def _moved(affine: Affine, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Take arrays through a transform, which affine 2 does by ``*`` and affine 3 by ``@``."""
    a, b, c, d, e, f = affine[:6]
    return a * x + b * y + c, d * x + e * y + f


def _corners(
    column: Floats,
    row: Floats,
    inside: NDArray[np.bool_],
    size: tuple[int, int],
    method: str,
) -> tuple[tuple[slice, slice], tuple[tuple[NDArray[np.intp], Floats], ...]]:
    """The window of the source that is needed, and index into it and weight of each corner."""
    places = []
    for position, length in ((row, size[0]), (column, size[1])):
        at = np.where(inside, position, 0.5).ravel()
        own = np.floor(at).astype(np.intp)
        off = at - own - 0.5
        beside = own + np.where(off < 0, -1, 1)
        weight = np.where((beside >= 0) & (beside < length), np.abs(off), 0)
        beside = np.clip(beside, 0, length - 1)
        places.append(((own, 1 - weight), (beside, weight)))
    chosen = [(r, c) for r in places[0] for c in places[1]] if method == "bilinear" else [
        ((places[0][0][0], np.ones(inside.size)), (places[1][0][0], np.ones(inside.size)))
    ]  # fmt: skip
    used = inside.ravel()
    if not used.any():
        return (slice(0, 0), slice(0, 0)), ()
    rows, columns = (
        np.concatenate([corner[axis][0][used] for corner in chosen]) for axis in (0, 1)
    )
    window = (
        slice(int(rows.min()), int(rows.max()) + 1),
        slice(int(columns.min()), int(columns.max()) + 1),
    )
    width = window[1].stop - window[1].start
    corners = []
    for (own_row, row_weight), (own_column, column_weight) in chosen:
        index = (own_row - window[0].start) * width + own_column - window[1].start
        corners.append((np.where(used, index, 0), row_weight * column_weight))
    return window, tuple(corners)
