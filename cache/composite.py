"""Temporal composites of image-pair velocities: one component of one tile at a time.

An image pair measures the mean velocity between its two dates, so that it tells about a period in
proportion to the part of its span that lies there (:func:`overlap`). For each pixel and period::

    value      = sum w v / sum w,                      w = overlap / sigma^2
    error      = sqrt(sum w^2 sigma^2) / sum w         (pairs independent of each other)
    dispersion = sqrt(sum w (v - value)^2 / sum w)     (scatter: noise and true change together)

over the pairs that overlap the period, hold a value there and are not outliers. One round of
rejection: a value is an outlier when it lies farther from the pixel's median of the period than
3.5 robust standard deviations (1.4826 MAD) *and* farther than 3.5 of its own stated errors. The
second condition keeps good values where the MAD says little: of three values, or of rounded
integers of which most are equal. The median is taken per period and not over all time, so that a
surge is not its own outlier. What was rejected is counted.

ITS_LIVE states one error a pair, of noise that is partly common to neighbouring pixels and to
pairs that share an image; the formal error knows nothing of that.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firnline.errors import InputError

__all__ = ["Composite", "Period", "composite", "overlap", "periods", "speed"]

Floats: TypeAlias = NDArray[np.floating[Any]]

MISSING = -32767
"""What ITS_LIVE's int16 velocities hold where there is none."""

CLIP = 3.5
"""Robust standard deviations (and own errors) beyond which a value is an outlier."""

_MAD_TO_SIGMA = 1.4826  # of a normal distribution
# int16, float32 and mask temporaries of one chunk of pixels: about 16 bytes a value, 16 MB
_CHUNK_VALUES = 2**20

_SPEC = re.compile(r"P(?:(?P<years>\d{1,4})Y)?(?:(?P<months>\d{1,5})M)?")


@dataclass(frozen=True, slots=True)
class Period:
    """A span of time, ``start <= t < end``."""

    start: np.datetime64
    """First instant, ``datetime64[ns]``."""
    end: np.datetime64
    """First instant after it."""

    @property
    def mid(self) -> np.datetime64:
        """The instant in the middle: the time coordinate of a composite."""
        middle: np.datetime64 = self.start + (self.end - self.start) // 2
        return middle


def periods(spec: str, start: np.datetime64, end: np.datetime64) -> tuple[Period, ...]:
    """Cut ``start <= t < end`` into periods of the calendar.

    Parameters
    ----------
    spec : str
        An ISO 8601 duration of whole years and months (``P1Y``, ``P1M``, ``P3M``, ``P2Y``), or
        ``all`` for one period from start to end. Periods are aligned to the calendar: counted in
        months from the year 0, so that ``P3M`` begins in January, April, July and October, and
        ``P5Y`` in years divisible by five.
    start, end : numpy.datetime64
        What is to be covered; ``end`` is exclusive.

    Returns
    -------
    tuple of Period
        In order and without gaps; the first and last are whole periods of the calendar and may
        reach beyond start and end.

    Raises
    ------
    InputError
        For another spec, a duration of nothing, or an end that is not after the start.
    """
    start, end = start.astype("datetime64[ns]"), end.astype("datetime64[ns]")
    if np.isnat(start) or np.isnat(end) or end <= start:
        raise InputError(f"composite from {start} to {end}: accepted is an end after the start")
    if spec == "all":
        return (Period(start, end),)
    found = _SPEC.fullmatch(spec)
    length = int(found["years"] or 0) * 12 + int(found["months"] or 0) if found else 0
    if length == 0:
        raise InputError(
            f"composite period {spec!r}: accepted is an ISO 8601 duration of years and months "
            "such as P1Y, P3M or P1M, or all"
        )
    # datetime64[M] counts from 1970
    first = (_month(start) + 1970 * 12) // length * length - 1970 * 12
    last = _month(end - np.timedelta64(1, "ns"))
    edges = [_instant(month) for month in range(first, last + length + 1, length)]
    return tuple(Period(a, b) for a, b in itertools.pairwise(edges))


def _month(instant: np.datetime64) -> int:
    return int(instant.astype("datetime64[M]").astype(np.int64))


def _instant(month: int) -> np.datetime64:
    instant: np.datetime64 = np.datetime64(month, "M").astype("datetime64[ns]")
    return instant


def overlap(
    periods: tuple[Period, ...], date1: NDArray[np.datetime64], date2: NDArray[np.datetime64]
) -> NDArray[np.float32]:
    """Fraction of each pair's span that lies in each period.

    Parameters
    ----------
    periods : tuple of Period
        Of any length and order.
    date1, date2 : ndarray of datetime64, shape (pair,)
        The dates of the two images, in either order. Where they are the same instant it lies
        wholly in one period; a pair with a missing date (NaT) lies in none.

    Returns
    -------
    ndarray of float32, shape (period, pair)
        Between 0 and 1; where the periods cover the pair its fractions add up to 1.

    Raises
    ------
    InputError
        When the dates are not two vectors of one length.
    """
    one, two = np.asarray(date1), np.asarray(date2)
    if one.ndim != 1 or one.shape != two.shape:
        raise InputError(f"dates {one.shape} and {two.shape}: accepted are two of one length")
    one, two = one.astype("datetime64[ns]"), two.astype("datetime64[ns]")
    known = ~(np.isnat(one) | np.isnat(two))
    low = np.minimum(one, two).astype(np.int64)
    high = np.maximum(one, two).astype(np.int64)
    span = np.maximum(high - low, 1)
    # an instant becomes the nanosecond that it begins: half-open periods then need no special case
    high = low + span
    out = np.zeros((len(periods), one.size), np.float32)
    for row, period in zip(out, periods, strict=True):
        start, end = period.start.astype(np.int64), period.end.astype(np.int64)
        inside = np.minimum(high, end) - np.maximum(low, start)
        np.divide(np.maximum(inside, 0), span, out=row, where=known, casting="same_kind")
    return out


@dataclass(frozen=True, slots=True)
class Composite:
    """One component of a tile, composited: every array has the shape (period, y, x)."""

    value: NDArray[np.float32]
    """Weighted mean in the unit of the input, m/year; NaN without pairs."""
    error: NDArray[np.float32]
    """Formal standard error of ``value``; NaN without pairs, or when no pair states an error."""
    dispersion: NDArray[np.float32]
    """Weighted standard deviation of the pairs about ``value``; NaN with fewer than two."""
    count: NDArray[np.uint32]
    """Pairs used."""
    rejected: NDArray[np.uint32]
    """Pairs left out as outliers."""


def composite(
    values: NDArray[np.int16],
    sigma: Floats,
    weights: Floats,
    *,
    missing: int = MISSING,
    clip: float | None = CLIP,
) -> Composite:
    """Composite one component of one tile; the module's docstring has the formulas.

    Parameters
    ----------
    values : ndarray of int16, shape (pair, y, x)
        One velocity component in m/year, pairs in any order.
    sigma : ndarray, shape (pair,)
        Standard error of each pair in m/year. One that is not a positive number is replaced by
        the median of those that are; when none is, all pairs are given the same weight and the
        error comes out as NaN.
    weights : ndarray, shape (period, pair)
        The overlaps from :func:`overlap`, times a weight of the caller's if wanted; the division
        by sigma squared is done here. A pair takes part in a period where its weight is positive.
    missing : int
        The value of ``values`` that means there is none.
    clip : float or None
        Limit of the outlier rejection; None rejects nothing.

    Returns
    -------
    Composite
        float32 fields and uint32 counts.

    Raises
    ------
    InputError
        When shapes do not fit, or values are not int16.

    Notes
    -----
    Sums are taken about the median in float32, so that they lose nothing to a large mean. Beyond
    input and output it takes about 16 bytes for each of 2**20 values at a time, or for each pair
    of 16 pixels if that is more. Time goes with the number of (pair, period) overlaps.
    """
    values, sigma, weights = np.asarray(values), np.asarray(sigma), np.asarray(weights)
    if values.ndim != 3 or values.dtype != np.int16:
        raise InputError(f"values {values.dtype} {values.shape}: accepted is int16 on (pair, y, x)")
    if sigma.shape != values.shape[:1] or weights.shape[1:] != sigma.shape or weights.ndim != 2:
        raise InputError(
            f"sigma {sigma.shape} and weights {weights.shape} do not fit values {values.shape}: "
            "accepted are (pair,) and (period, pair)"
        )
    sigma, stated = _usable(sigma)
    shape = (len(weights), *values.shape[1:])
    result = Composite(
        value=np.full(shape, np.nan, np.float32),
        error=np.full(shape, np.nan, np.float32),
        dispersion=np.full(shape, np.nan, np.float32),
        count=np.zeros(shape, np.uint32),
        rejected=np.zeros(shape, np.uint32),
    )
    ny, nx = shape[1:]
    for p, row in enumerate(weights):
        pairs = np.flatnonzero(row > 0)
        if not pairs.size:
            continue
        table = _table(row[pairs].astype(np.float64), sigma[pairs])
        reach = clip * sigma[pairs].astype(np.float32) if clip is not None and stated else None
        # rows and columns, and not a flat index: the input may be a view into a larger array
        size = max(16, _CHUNK_VALUES // pairs.size)
        width = min(size, max(nx, 1))
        height = max(1, size // width)
        for y, x in itertools.product(range(0, ny, height), range(0, nx, width)):
            area = (slice(y, y + height), slice(x, x + width))
            block = values[:, *area][pairs]
            pixels = np.ascontiguousarray(block.reshape(pairs.size, -1).T)
            part = _reduce(pixels, table, reach, missing, clip)
            for field, got in zip(
                (result.value, result.error, result.dispersion, result.count, result.rejected),
                part,
                strict=True,
            ):
                field[p][area] = got.reshape(block.shape[1:])
    if not stated:
        result.error.fill(np.nan)
    return result


def _usable(sigma: Floats) -> tuple[NDArray[np.float64], bool]:
    """Errors with the unusable ones replaced, and whether any was usable."""
    sigma = sigma.astype(np.float64)
    good = np.isfinite(sigma) & (sigma > 0)
    if not good.any():
        return np.ones(sigma.shape), False
    return np.where(good, sigma, np.median(sigma[good])), True


def _table(overlaps: NDArray[np.float64], sigma: NDArray[np.float64]) -> NDArray[np.float32]:
    """w, w^2 sigma^2 and 1 for each pair: what the mask is multiplied with. Shape (pair, 3).

    The scale of w cancels in everything but the error, where the root of the second column is
    divided by the first: any common factor goes. Scaled to 1, float32 holds both.
    """
    w = overlaps / sigma**2
    w /= w.max()
    return np.stack([w, (w * sigma) ** 2, np.ones_like(w)], axis=1).astype(np.float32)


def _reduce(
    block: NDArray[np.int16],
    table: NDArray[np.float32],
    reach: NDArray[np.float32] | None,
    missing: int,
    clip: float | None,
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Value, error, dispersion, count and rejected of some pixels: block is (pixel, pair)."""
    there = block != missing
    n = np.count_nonzero(there, axis=1)
    median, mad = _median_and_mad(block, there, n)
    delta = block - median[:, None]
    use = there
    if clip is not None:
        size = np.abs(delta)
        near = size <= (np.float32(clip * _MAD_TO_SIGMA) * mad)[:, None]
        if reach is not None:
            near |= size <= reach
        use = there & near
        del size, near
    mask = use.astype(np.float32)
    w, noise, count = (mask @ table).T
    # the products with the weights are all that is left of the pairs: two matrix products
    delta *= mask
    first = delta @ table[:, 0]
    delta *= delta
    second = delta @ table[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = first / w
        error = np.sqrt(noise) / w
        dispersion = np.sqrt(np.maximum(second / w - mean * mean, 0))
    dispersion[count < 2] = np.nan
    return median + mean, error, dispersion, count, n - count


def _median_and_mad(
    block: NDArray[np.int16], there: NDArray[np.bool_], n: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median and median absolute deviation along the last axis; 0 where there is nothing.

    The sort is numpy's radix sort, as fast on any processor. The deviations need no second one:
    in sorted order the h values nearest to the median are neighbours, so that the h-th smallest
    deviation is found by bisection for where they begin.
    """
    # the largest int16 sorts behind all (a value equal to it does no harm among its equals)
    ordered = np.where(there, block, np.int16(32767))
    ordered.sort(axis=1, kind="stable")
    rows = np.arange(len(block))

    def at(k: NDArray[np.intp]) -> NDArray[np.float32]:
        kth: NDArray[np.float32] = ordered[rows, np.clip(k, 0, np.maximum(n - 1, 0))].astype("f4")
        return kth

    median = 0.5 * (at((n - 1) // 2) + at(n // 2))

    def nearest(h: NDArray[np.intp]) -> NDArray[np.float32]:
        """Give the h-th smallest deviation (h from 1)."""
        low, high = np.zeros_like(n), np.maximum(n - h, 0)
        while (low < high).any():
            mid = (low + high) // 2
            # moving the run of h values to the right loses ordered[mid], gains ordered[mid + h]
            right = median - at(mid) > at(mid + h) - median
            low = np.where(right & (low < high), mid + 1, low)
            high = np.where(~right & (low < high), mid, high)
        farther: NDArray[np.float32] = np.maximum(median - at(low), at(low + h - 1) - median)
        return farther

    mad = 0.5 * (nearest((n + 1) // 2) + nearest(n // 2 + 1))
    median[n == 0] = 0
    mad[n == 0] = 0
    return median, mad


def speed(vx: Floats, vy: Floats, vx_error: Floats, vy_error: Floats) -> tuple[Floats, Floats]:
    """Speed and its error from the components; the mean of speeds is biased by noise.

    Parameters
    ----------
    vx, vy, vx_error, vy_error : ndarray
        Components and their standard errors, independent of each other, in m/year.

    Returns
    -------
    v, v_error : ndarray
        ``sqrt(vx^2 + vy^2)`` and ``sqrt(vx^2 sx^2 + vy^2 sy^2) / v`` in m/year, NaN where a
        component is. Without motion, where that has no value, the error is
        ``sqrt((sx^2 + sy^2) / 2)``: its root mean square over all directions.
    """
    v = np.hypot(vx, vy)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.hypot(vx * vx_error, vy * vy_error) / v
    still = np.hypot(vx_error, vy_error) * np.sqrt(0.5)
    return v, np.where(v == 0, still, error).astype(v.dtype)
