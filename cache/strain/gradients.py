"""Velocity gradients of a block by least squares over a window: plane fit and nominal rates.

The plane through a full window has the slopes ``sum(x u) / sum(x^2)`` and ``sum(y u) / sum(y^2)``.
Over a square that is the plane fit; over the star of four stakes and their centre it is the
nominal strain rate of Nye (1959): his four directions a (along y), c (along x), b and d (at 45
degrees), combined as ``exx = (b + d - a) / 4 + 3 c / 4`` and so on (Alley et al. 2018), reduce to
the centred differences of the stakes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firnline.cache.strain.windows import Floats, Window

Mask = NDArray[np.bool_]

_STRIP = 512  # columns in which windows with gaps are looked for, so that few of them cost little


class Gradient(NamedTuple):
    """Slopes of the velocity per year, each (y, x), NaN where there is none."""

    ux: Floats
    uy: Floats
    vx: Floats
    vy: Floats
    covariances: tuple[Floats, ...] = ()
    """Per year^2: of ux with ux, ux with uy, uy with uy, and of vx and vy in the same way."""


def fit_gradient(
    u: Floats,
    v: Floats,
    window: Window,
    steps: tuple[float, float],
    variances: tuple[Floats, ...],
    *,
    fill: bool,
) -> Gradient:
    """Slopes of u and v, with their covariances.

    Parameters
    ----------
    u, v : ndarray, shape (y + 2 radius, x + 2 radius)
        Velocity in m/year; a pixel is missing where either is not finite.
    window : Window
        What takes part around each pixel.
    steps : tuple of float
        Signed step of x with the column and of y with the row, in metres.
    variances : tuple of ndarray
        Variances of u and v, of the same shape or 0-d, NaN where unknown; or none.
    fill : bool
        Whether windows with missing pixels are fitted to the others, provided that the centre is
        one of them, they are at least half of the window and not on one line. Else there is no
        result.
    """
    centre = trimmed(window.radius)
    slopes = (*_slopes(u, window, steps), *_slopes(v, window, steps))
    covariances = [_covariance(noise, window, steps, slopes[0].shape) for noise in variances]
    gradient = Gradient(*slopes, tuple(term for three in covariances for term in three))
    # a sum is finite where all its terms are; that of all is quick to make
    if math.isfinite(u.sum() + v.sum()):
        return gradient
    # every pixel of the window but the centre has weight in a slope
    whole = u[centre] + v[centre]
    for slope in slopes:
        whole += slope
    todo = ~np.isfinite(whole)
    if not todo.any():
        return gradient
    results = (*slopes, *gradient.covariances)
    for result in results:
        np.copyto(result, np.nan, where=todo)
    if fill:
        todo &= np.isfinite(u[centre])
        todo &= np.isfinite(v[centre])
        for area in rectangles(todo):
            rows, columns = (slice(s.start, s.stop + 2 * window.radius) for s in area)
            near = [a if a.ndim == 0 else a[rows, columns] for a in (u, v, *variances)]
            _fit(near[0], near[1], near[2:], window, steps, todo[area], [r[area] for r in results])
    return gradient


def trimmed(rim: int) -> tuple[slice, slice]:
    """All of a block but its rim."""
    inner = slice(rim, -rim or None)
    return inner, inner


def rectangles(mask: Mask) -> list[tuple[slice, slice]]:
    """Rectangles that hold all of `mask`, and not much else where it is a rim or a few holes."""
    areas = []
    for left in range(0, mask.shape[1], _STRIP):
        part = mask[:, left : left + _STRIP]
        if part.any():
            row, column = (np.flatnonzero(part.any(axis=axis)).tolist() for axis in (1, 0))
            areas.append(
                (slice(row[0], row[-1] + 1), slice(left + column[0], left + column[-1] + 1))
            )
    return areas


def _slopes(a: Floats, window: Window, steps: tuple[float, float]) -> tuple[Floats, Floats]:
    along_x, along_y = window.ramps(a)
    along_x *= 1 / (steps[0] * window.spread)
    along_y *= 1 / (steps[1] * window.spread)
    return along_x, along_y


def _covariance(
    variance: Floats, window: Window, steps: tuple[float, float], shape: tuple[int, ...]
) -> tuple[Floats, Floats, Floats]:
    """Covariance of the two slopes of full windows."""
    x, y = (1 / (step * window.spread) for step in steps)
    if variance.ndim == 0:
        flat = np.full(shape, variance * window.spread)
        return flat * x**2, flat * 0, flat * y**2
    xx, xy, yy = window.seconds(variance)
    xx *= x**2
    xy *= x * y
    yy *= y**2
    # the mixed sum sees neither the centre's row nor its column
    np.copyto(xy, np.nan, where=np.isnan(xx + yy))
    return xx, xy, yy


def _fit(
    u: Floats,
    v: Floats,
    variances: list[Floats],
    window: Window,
    steps: tuple[float, float],
    todo: Mask,
    results: list[Floats],
) -> None:
    """Fit planes to what is there, in float64, and write slopes and covariances where `todo`.

    Everything is computed for all of the block: with gaps here and there most windows have some,
    and to pick them out would take longer. With ``A = n sum x^2 - (sum x)^2``, B and C likewise of
    x y and y^2, and ``D = A C - B^2``, the slopes of a are ``(C g - B h) / D`` and
    ``(A h - B g) / D``, ``g = n sum x a - sum x sum a``, h likewise of y.
    """
    there = np.isfinite(u) & np.isfinite(v)
    # whole numbers, which float32 holds exactly up to there
    exact = np.float32 if window.count * window.spread < 2**24 else np.float64
    n, x, y, xx, xy, yy = window.moments(there.astype(exact))
    a, b, c = n * xx - x * x, n * xy - x * y, n * yy - y * y
    determinant = a.astype(np.float64) * c - b.astype(np.float64) * b
    at = todo & (2 * n >= window.count) & (determinant > 0.5)
    if not at.any():
        return
    # the inverse of the normal matrix without its column of ones, over n; from there on nothing
    # cancels, and the precision of the result will do
    kind = results[0].dtype
    share = (1 / determinant).astype(kind)
    inverse_xx, inverse_yy = c * share, a * share
    inverse_xy = b * -share
    fitted: list[Floats] = []
    for values in (u, v):
        one, of_x, of_y = window.firsts(np.where(there, values, 0).astype(np.float64))
        g, h = (n * of_x - x * one).astype(kind), (n * of_y - y * one).astype(kind)
        fitted += [inverse_xx * g + inverse_xy * h, inverse_xy * g + inverse_yy * h]
    for variance in variances:
        slopes = (n * inverse_xx, n * inverse_xy), (n * inverse_xy, n * inverse_yy)
        if variance.ndim == 0:
            fitted += [variance * term for term in (slopes[0][0], slopes[0][1], slopes[1][1])]
            continue
        # a slope is a sum of the values times weights p x + q y + s
        weights = [(p, q, -(p * x + q * y) / n) for p, q in slopes]
        sums = window.moments(np.where(there, variance, 0))
        for one_, other in ((0, 0), (0, 1), (1, 1)):
            fitted.append(_product(weights[one_], weights[other], sums))
    over_x, over_y = (1 / step for step in steps)
    scales = [over_x, over_y] * 2 + [over_x**2, over_x * over_y, over_y**2] * len(variances)
    for result, found, scale in zip(results, fitted, scales, strict=True):
        found *= scale
        np.copyto(result, found, where=at, casting="same_kind")


def _product(f: tuple[Floats, ...], g: tuple[Floats, ...], sums: tuple[Floats, ...]) -> Floats:
    """Sum of (p x + q y + s) (p' x + q' y + s') times what the sums are of."""
    one, x, y, xx, xy, yy = sums
    total: Floats = f[0] * g[0] * xx + f[1] * g[1] * yy + f[2] * g[2] * one
    total += (f[0] * g[1] + f[1] * g[0]) * xy
    total += (f[0] * g[2] + f[2] * g[0]) * x
    total += (f[1] * g[2] + f[2] * g[1]) * y
    return total
