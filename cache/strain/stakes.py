"""Logarithmic strain rates: five stakes that move with the ice (Alley et al. 2018).

A centre C and four stakes N, E, S, W, ``radius`` pixels away along the axes, drift through the
velocity field, taken as bilinear between pixels, for ``T = 0.1 radius dx / |v|``, |v| being that of
the mean velocity of the window. Each of the eight lines between them gives ``ln(l / l0) / T``; of
the means of parallel ones, a (along y), b (at +45 degrees), c (along x) and d (at -45 degrees),
``exx = (b + d - a) / 4 + 3 c / 4``, ``eyy = 3 a / 4 + (b + d - c) / 4`` and ``exy = (b - d) / 2``.
The vorticity, which the lengths don't have, is the sum of the rates at which W-E and S-N turn.

Stakes mostly stay within a pixel of where they start, in one cell of the bilinear field: there
their path is a Taylor series in time, whose coefficients are made once for each pixel and not for
each stake (`_series`). The few that go further are followed in steps (`_follow`).

doi:10.1017/jog.2018.23. Their code moves stakes by Euler steps of 0.05 pixels with the velocity
of the step before; here the path is exact but for the order of the series, which is why rates
differ by up to a few per cent where the velocity changes much over the window.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firnline.cache.strain.gradients import Gradient
from firnline.cache.strain.windows import Floats, Square

Doubles = NDArray[np.float64]

_SHARE = 0.1  # of the half length, that the stakes should move
_LEAST_SPEED = 0.01  # m/year: slower windows are measured over the time of this one
_LAST_TERM = 1e-4  # of the half length: the last term of a series that is good enough
_TOGETHER = 2048  # centres whose stakes stay in a core's cache
_STEP = 1.0  # pixels, of a stake that goes through more than one cell

# Of the stakes, in half lengths: centre, north, east, south, west.
_EAST = (0, 0, 1, 0, -1)
_NORTH = (0, 1, 0, -1, 0)
# Parallel lines between two stakes each: along y, at +45, along x, at -45 degrees.
_LINES = (((0, 1), (3, 0)), ((4, 1), (3, 2)), ((4, 0), (0, 2)), ((1, 2), (4, 3)))


def follow_stakes(
    u: Floats, v: Floats, radius: int, steps: tuple[float, float], *, strict: bool
) -> Gradient:
    """Logarithmic strain rates and vorticity of a block, as a gradient.

    Parameters
    ----------
    u, v : ndarray, shape (y + 4 radius, x + 4 radius)
        Velocity in m/year; a pixel is missing where either is not finite.
    radius : int
        Half length in pixels.
    steps : tuple of float
        Signed step of x with the column and of y with the row, in metres; equal but for the sign.
    strict : bool
        Whether the mean velocity needs all pixels of its window. What the stakes pass must always
        be there.

    Returns
    -------
    Gradient
        (y, x), made in float64 and of the type of u; NaN where a stake meets a missing pixel or
        goes further than `radius`.
    """
    r = radius
    missing = 0 * np.add(u, v, dtype=np.float64)  # in one is missing in both
    columns, rows = (u + missing) / steps[0], (v + missing) / steps[1]  # per year
    time = _duration(columns, rows, r, abs(steps[0]), strict)
    shape = time.shape
    towards = (int(math.copysign(1, steps[0])), int(math.copysign(1, steps[1])))

    inner = (slice(r - 1, columns.shape[0] - r + 1), slice(r - 1, columns.shape[1] - r + 1))
    series = _series(columns[inner], rows[inner])
    speed, highest = (
        np.maximum(np.abs(across), np.abs(down))
        for across, down in zip(series[0][::3], series[1][::3], strict=True)
    )
    moved = np.empty((2, 5, *shape))
    furthest, last = np.zeros(shape), np.zeros(shape)
    for path, east, north in zip(moved.swapaxes(0, 1), _EAST, _NORTH, strict=True):
        down, right = r + r * north * towards[1], r + r * east * towards[0]
        at = (slice(down, down + shape[0]), slice(right, right + shape[1]))
        for way, (first, second, third, fourth) in zip(path, series, strict=True):
            np.multiply(fourth[at], time, out=way)
            for coefficient in (third, second, first):
                way += coefficient[at]
                way *= time
        np.maximum(furthest, speed[at], out=furthest)
        np.maximum(last, highest[at], out=last)
    furthest *= time
    square = time * time
    last *= square * square / (_LAST_TERM * r)
    # what is missing is not followed either
    far = ((furthest > 1) | (last > 1)) & np.isfinite(last)
    if far.any():
        # as many steps as would each be as good as a series
        number = np.maximum(furthest[far] / _STEP, last[far] ** 0.25)
        moved[:, :, far] = _follow(columns, rows, time[far], number, np.nonzero(far), r, towards)
    moved[0] *= towards[0]
    moved[1] *= towards[1]
    return _rates(moved, time, r, u.dtype)


def _duration(columns: Doubles, rows: Doubles, r: int, spacing: float, strict: bool) -> Doubles:
    """Years that the stakes move: a tenth of the half length at the window's mean velocity."""
    window = Square(r)
    near = (slice(r, columns.shape[0] - r), slice(r, columns.shape[1] - r))
    across, down = columns[near], rows[near]
    there = np.isfinite(across)
    count: Floats | int = window.count
    if not (strict or there.all()):
        across, down = np.where(there, across, 0), np.where(there, down, 0)
        count = window.total(there.astype(np.float64))
    total_across, total_down = window.total(across), window.total(down)
    speed = np.sqrt(total_across * total_across + total_down * total_down) / count
    return _SHARE * r / np.maximum(speed, _LEAST_SPEED / spacing)


def _series(columns: Doubles, rows: Doubles) -> tuple[tuple[Doubles, ...], tuple[Doubles, ...]]:
    """Taylor coefficients of the path of a stake that starts at a pixel, to the fourth order.

    In the cell that it moves into, with p columns and q rows moved, the velocity is
    ``f + f_p p + f_q q + f_pq p q`` for either component f. With ``p = sum p_k t^k`` that gives
    ``(k + 1) p_k+1 = f_p p_k + f_q q_k + f_pq sum_i p_i q_k-i``.

    Parameters
    ----------
    columns, rows : ndarray, shape (y + 2, x + 2)
        Velocity in pixels per year.

    Returns
    -------
    columns, rows : tuple of four ndarray, shape (y, x)
        What time, its square, cube and fourth power are multiplied with, in pixels.
    """
    height, width = columns.shape[0] - 2, columns.shape[1] - 2

    def shifted(a: Doubles, row: int, column: int) -> Doubles:
        return a[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    p1, q1 = shifted(columns, 0, 0), shifted(rows, 0, 0)
    right, down = p1 >= 0, q1 >= 0
    side_p, side_q = np.where(right, 1.0, -1.0), np.where(down, 1.0, -1.0)
    slopes = []
    for a, here in ((columns, p1), (rows, q1)):
        beside = np.where(right, shifted(a, 0, 1), shifted(a, 0, -1))
        below = np.where(down, shifted(a, 1, 0), shifted(a, -1, 0))
        corner = np.where(
            down,
            np.where(right, shifted(a, 1, 1), shifted(a, 1, -1)),
            np.where(right, shifted(a, -1, 1), shifted(a, -1, -1)),
        )
        corner -= beside
        corner -= below
        corner += here
        corner *= side_p * side_q
        slopes.append(((beside - here) * side_p, (below - here) * side_q, corner))
    p2, q2 = ((f_p * p1 + f_q * q1) / 2 for f_p, f_q, _ in slopes)
    cross = p1 * q1
    p3, q3 = ((f_p * p2 + f_q * q2 + f_pq * cross) / 3 for f_p, f_q, f_pq in slopes)
    cross = p1 * q2 + p2 * q1
    p4, q4 = ((f_p * p3 + f_q * q3 + f_pq * cross) / 4 for f_p, f_q, f_pq in slopes)
    return (p1, p2, p3, p4), (q1, q2, q3, q4)


def _follow(
    columns: Doubles,
    rows: Doubles,
    time: Doubles,
    number: Doubles,
    centres: tuple[NDArray[np.intp], ...],
    r: int,
    towards: tuple[int, int],
) -> Doubles:
    """Follow the stakes of some centres by Runge and Kutta's fourth order.

    Parameters
    ----------
    columns, rows : ndarray, shape (y + 4 r, x + 4 r)
        Velocity in pixels per year.
    time, number : ndarray, shape (n,)
        Years, and how many steps they need at least.
    centres : tuple of ndarray, shape (n,)
        Row and column of each centre in the block without its rim.

    Returns
    -------
    ndarray, shape (2, 5, n)
        Columns and rows moved; NaN for all stakes of a centre where one goes too far.
    """
    velocity = columns + 1j * rows  # one number for both, so that each is fetched once
    # of each cell, by its corner: the velocity there, its slopes along columns and rows, and both
    beside, below = np.diff(velocity, axis=1, append=0), np.diff(velocity, axis=0, append=0)
    cells = [a.ravel() for a in (velocity, beside, below, np.diff(beside, axis=0, append=0))]
    # more steps than a stake needs that goes as far as it may, so that it would get lost
    number = np.where(number > 4 * r + 8, np.nan, np.ceil(number))
    moved = np.empty((5, time.size), np.complex128)
    for first in range(0, time.size, _TOGETHER):
        part = slice(first, first + _TOGETHER)
        start = np.stack(
            [
                centres[1][part] + 2 * r + r * towards[0] * east
                + 1j * (centres[0][part] + 2 * r + r * towards[1] * north)
                for east, north in zip(_EAST, _NORTH, strict=True)
            ]
        )  # fmt: skip
        moved[:, part] = _steps(cells, velocity.shape, start, time[part], number[part], r)
    return np.stack([moved.real, moved.imag])


def _steps(
    cells: list[NDArray[np.complex128]],
    shape: tuple[int, ...],
    start: NDArray[np.complex128],
    time: Doubles,
    number: Doubles,
    r: int,
) -> NDArray[np.complex128]:
    """How far some stakes, (5, n), have moved; NaN for all of a centre where one is lost."""
    height, width = shape

    def at(place: NDArray[np.complex128]) -> NDArray[np.complex128]:
        # what is missing or out of bounds is fetched from somewhere, and stays missing or gets lost
        column = np.floor(np.fmin(np.fmax(place.real, 0), width - 2))
        row = np.floor(np.fmin(np.fmax(place.imag, 0), height - 2))
        p, q = place.real - column, place.imag - row
        corner = (row * width + column).astype(np.intp)
        here, beside, below, both = (cell.take(corner) for cell in cells)
        both *= p
        both += below
        both *= q
        beside *= p
        both += beside
        both += here
        return both

    place = np.where(np.isnan(number), np.nan, start)
    step = time / number
    active = np.flatnonzero(number > 0)
    taken = 0
    while active.size:
        z, h = place[:, active], step[active]
        k1 = at(z)
        k2 = at(z + 0.5 * h * k1)
        k3 = at(z + 0.5 * h * k2)
        k4 = at(z + h * k3)
        k2 += k3
        k2 *= 2
        k2 += k1
        k2 += k4
        k2 *= h / 6
        z += k2
        off = z - start[:, active]
        lost = (np.abs(off.real) > r) | (np.abs(off.imag) > r)
        z[:, lost.any(axis=0)] = np.nan
        place[:, active] = z
        taken += 1
        active = active[(number[active] > taken) & np.isfinite(z[0])]
    place -= start
    return place


def _rates(moved: Doubles, time: Doubles, r: int, dtype: np.dtype[np.floating[Any]]) -> Gradient:
    """Strain rates from where the stakes are after `time`, in pixels towards east and north."""
    east, north = moved

    def stretched(line: tuple[int, int]) -> Doubles:
        """Square of l / l0."""
        from_, to = line
        across = r * (_EAST[to] - _EAST[from_]) + east[to] - east[from_]
        along = r * (_NORTH[to] - _NORTH[from_]) + north[to] - north[from_]
        square = r**2 * ((_EAST[to] - _EAST[from_]) ** 2 + (_NORTH[to] - _NORTH[from_]) ** 2)
        return np.asarray((across * across + along * along) / square)

    # a fourth: of the logarithm of squares, and of two lines
    a, b, c, d = (np.log(stretched(one) * stretched(other)) / (4 * time) for one, other in _LINES)
    exx = (b + d - a) / 4 + 0.75 * c
    eyy = 0.75 * a + (b + d - c) / 4
    exy = (b - d) / 2 + 0 * east[0]  # the only rate that does not see the centre
    # the sum of the angles that W-E and S-N have turned, as that of the product of (x, y) and
    # (y, -x) as complex numbers
    we_x, we_y = 2 * r + east[2] - east[4], north[2] - north[4]
    sn_x, sn_y = east[1] - east[3], 2 * r + north[1] - north[3]
    turned = np.arctan2(we_y * sn_y - we_x * sn_x, we_x * sn_y + we_y * sn_x)
    half_spin = turned / (2 * time)
    slopes = (exx, exy - half_spin, exy + half_spin, eyy)
    ux, uy, vx, vy = (slope.astype(dtype, copy=False) for slope in slopes)
    return Gradient(ux, uy, vx, vy)
