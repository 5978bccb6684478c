"""Temporal composites of image-pair velocities: both components of one tile. Pure.

An image pair measures the mean velocity between its two dates, so that it tells about a period in
proportion to the part of its span that lies there, and each component the more the smaller its
stated error: ``w = overlap / sigma^2``. Per pixel and period, over the pairs that hold both
components there:

*Rejection.* A pair is an outlier when one of its components lies farther from the median than
3.5 robust standard deviations (1.4826 times the median absolute deviation) *and* farther than 3.5
of its own stated errors. Median and deviation are weighted by the overlaps alone, so that no
single pair decides by claiming to be exact. The second condition keeps good values where the
deviation says little: of three values, or of rounded ones most of which are equal. What was
rejected is counted.

*Value.* ``median``: the weighted median of what is left, the integers of the source taken as
rounded (see ``firnline.cache.weighted``); its *dispersion* is 1.4826 times the weighted median
absolute deviation. ``mean``: ``sum w v / sum w``, and the weighted standard deviation. The speed
comes from vx and vy: the mean of speeds is biased by noise.

*Error.* What the pairs state, what their scatter tells beyond that, and what all of them together
are off: see ``firnline.cache.composite_error``.

ITS_LIVE states one error a pair, of noise that is partly common to neighbouring pixels and to
pairs that share an image; these errors know nothing of that.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firnline.cache.composite_error import (
    Record,
    aside,
    even_weights,
    scatter,
    speed,
    variances,
)
from firnline.cache.periods import Period, overlap
from firnline.cache.weighted import Ordered
from firnline.errors import InputError

__all__ = ["CLIP", "SHORT_DAYS", "Composite", "Estimator", "composite"]

Floats: TypeAlias = NDArray[np.floating[Any]]
Single: TypeAlias = NDArray[np.float32]
Estimator = Literal["median", "mean"]

MISSING = -32767
"""What ITS_LIVE's int16 velocities hold where there is none."""

CLIP = 3.5
"""Robust standard deviations (and own errors) beyond which a value is an outlier."""

SHORT_DAYS = 32.0
"""Pairs up to this long tell how fast the ice is, when long ones are to be left out."""

_SIGMA_PER_MAD = np.float32(1.4826)  # of a normal distribution
_ENOUGH_SHORT = 5
_BLOCK_VALUES = 2**19
_BLOCK_WIDTH = 32  # pixels of int16 in a cache line: blocks are no narrower, if they can
_EPOCH = np.datetime64("1970-01-01", "ns")
_DAY = np.timedelta64(1, "D")
_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True, slots=True)
class Composite:
    """A tile, composited: arrays of the shape (period, y, x), floats NaN without pairs."""

    v: Single
    """Speed in m/year, from vx and vy."""
    vx: Single
    """Component along x of the grid in m/year."""
    vy: Single
    """Component along y of the grid in m/year."""
    v_error: Single
    """Standard error of the speed in m/year."""
    vx_error: Single
    """Standard error of vx in m/year; NaN where one pair is alone and states none."""
    vy_error: Single
    """Standard error of vy in m/year; as that of vx."""
    dispersion: Single
    """Scatter of the pairs about the composite in m/year, both components together (``hypot``);
    NaN with fewer than two pairs."""
    mean_date: Single
    """Weighted mean of the middles of the pairs, in days since 1970; may lie outside the period."""
    first_date: Single
    """Earliest first image of the pairs used, in days since 1970."""
    last_date: Single
    """Latest second image of the pairs used, in days since 1970."""
    count: NDArray[np.uint32]
    """Pairs used."""
    rejected: NDArray[np.uint32]
    """Pairs left out as outliers."""
    too_long: NDArray[np.uint32]
    """Pairs left out because the ice moves farther than `max_displacement` between the images."""


def composite(
    vx: NDArray[np.int16],
    vy: NDArray[np.int16],
    vx_error: Floats,
    vy_error: Floats,
    date1: NDArray[np.datetime64],
    date2: NDArray[np.datetime64],
    periods: tuple[Period, ...],
    *,
    method: Estimator = "median",
    max_displacement: float | None = None,
    missing: int = MISSING,
    clip: float | None = CLIP,
) -> Composite:
    """Composite the velocities of one tile; the module's docstring has the formulas.

    Parameters
    ----------
    vx, vy : ndarray of int16, shape (pair, y, x)
        Components in m/year, pairs in any order. A pair takes part where it has both.
    vx_error, vy_error : ndarray, shape (pair,)
        Standard error of each pair in m/year. One that is not a positive number is replaced by
        the median of those that are; when none is, all pairs are given the same weight, and the
        composite's error comes from their scatter alone.
    date1, date2 : ndarray of datetime64, shape (pair,)
        Dates of the two images, in either order. A pair with a missing date takes no part.
    periods : tuple of Period
        In any order; a pair takes part in those that it overlaps.
    method : {"median", "mean"}
        What the value is.
    max_displacement : float, optional
        Leave out, pixel by pixel, the pairs between whose images the ice moves farther than this,
        in metres: long pairs average a season away, and lose ice that moves fast. How fast it is
        is the median velocity of the pixel's pairs of up to 32 days (of all, where fewer than
        five are that short).
    missing : int
        The value that means there is none.
    clip : float or None
        Limit of the outlier rejection; None rejects nothing.

    Returns
    -------
    Composite

    Raises
    ------
    InputError
        When shapes do not fit, or values are not int16.

    Notes
    -----
    Beyond input and output it takes about 30 bytes for each of 2**19 values at a time, or for
    each pair of 16 pixels if that is more. Time goes with the number of (pair, period) overlaps.
    """
    _check(vx, vy, vx_error, vy_error, date1, date2)
    first, last = (each(date1, date2).astype("M8[ns]") for each in (np.minimum, np.maximum))
    start, end = ((date - _EPOCH) / _DAY for date in (first, last))
    limit = None
    if max_displacement is not None:
        limit = _longest(vx, vy, end - start, max_displacement, missing)
    sigmas = [_usable(vx_error), _usable(vy_error)]
    evens = [even_weights(sigma) for sigma, _ in sigmas]
    records = [Record(vx.shape[1:]) for _ in "xy"]
    shape = (len(periods), *vx.shape[1:])
    floats: defaultdict[str, Single] = defaultdict(lambda: np.full(shape, np.nan, np.float32))
    counts = {name: np.zeros(shape, np.uint32) for name in ("count", "rejected", "too_long")}
    for p, period in enumerate(periods):
        share = overlap((period,), first, last)[0]
        some = np.flatnonzero(share > 0)
        for rows, columns in _blocks(vx.shape[1:], some.size):
            x, y = vx[:, rows, columns][some], vy[:, rows, columns][some]
            # scenes have edges: many pairs have nothing in so small an area
            kept = (x != missing).any(axis=(1, 2))
            pairs = some[kept]
            if not pairs.size:
                continue
            x, y = (np.ascontiguousarray(c[kept].reshape(pairs.size, -1).T) for c in (x, y))
            there = (x != missing) & (y != missing)
            short = there
            if limit is not None:
                short = there & ((end - start)[pairs] <= limit[rows, columns].reshape(-1, 1))
            components = [
                _Component(values, short, share[pairs], sigma[pairs], even[pairs], stated)
                for values, (sigma, stated), even in zip((x, y), sigmas, evens, strict=True)
            ]
            found, sums = _reduce(components, short, start[pairs], end[pairs], period, method, clip)
            for record, of_pairs in zip(records, sums, strict=True):
                record.add((rows, columns), of_pairs)
            found["too_long"] = _count(there) - _count(short)
            for name, pixels in found.items():
                part = (counts[name] if name in counts else floats[name])[p, rows, columns]
                part[...] = pixels.reshape(part.shape)
    return _finished(floats, counts, records, method)


def _reduce(
    components: list[_Component],
    there: NDArray[np.bool_],
    start: Floats,
    end: Floats,
    period: Period,
    method: Estimator,
    clip: float | None,
) -> tuple[dict[str, Any], list[dict[str, Floats]]]:
    """What the pairs of a period make of some pixels: fields and terms by name, (pixel,) each.

    And, of either component, the sums for its record.
    """
    use = there.copy()
    if clip is not None:
        for component in components:
            component.reject(use, clip)
    middles = (start + end) / 2
    about = float((period.mid - _EPOCH) / _DAY)  # float32 is fine enough for the days from there
    dates = (middles - about).astype(np.float32)
    found: dict[str, Any] = {
        "count": _count(use),
        "rejected": _count(there) - _count(use),
        "first_date": -_latest(use, -start),
        "last_date": _latest(use, end),
    }
    records = []
    for name, component in zip(("vx", "vy"), components, strict=True):
        estimate, sums = component.estimate(use, dates, method)
        found |= {f"{name}_{term}": pixels for term, pixels in estimate.items()}
        sums["t"] = sums["t"] + about
        records.append(sums)
    found["mean_date"] = about - (found["vx_off"] + found["vy_off"]).astype("f8") / 2
    return found, records


def _finished(
    floats: Mapping[str, Single],
    counts: Mapping[str, NDArray[np.uint32]],
    records: list[Record],
    method: Estimator,
) -> Composite:
    """Speed and errors, which need all periods of a pixel."""
    terms = ("n", "stated", "own", "tau2", "freedom", "near", "aside", "off")
    vx, vy = floats["vx_value"], floats["vy_value"]
    x, y = (
        variances(method, {term: floats[f"{name}_{term}"] for term in terms}, record)
        for name, record in zip(("vx", "vy"), records, strict=True)
    )
    v, v_error = speed(vx, vy, x, y)
    return Composite(
        v=v,
        vx=vx,
        vy=vy,
        v_error=v_error,
        vx_error=np.sqrt(x.sum(axis=0)),
        vy_error=np.sqrt(y.sum(axis=0)),
        dispersion=np.hypot(floats["vx_dispersion"], floats["vy_dispersion"]),
        mean_date=floats["mean_date"],
        first_date=floats["first_date"],
        last_date=floats["last_date"],
        count=counts["count"],
        rejected=counts["rejected"],
        too_long=counts["too_long"],
    )


class _Component:
    """One component of the pairs of a period in some pixels: arrays are (pixel, pair)."""

    def __init__(
        self,
        values: NDArray[np.int16],
        there: NDArray[np.bool_],
        share: Floats,
        sigma: Floats,
        even: Floats,
        stated: bool,
    ) -> None:
        self._ordered, self._there = Ordered(values, there), there
        self._share, self._sigma, self._even, self._stated = share, sigma, even, stated

    def reject(self, use: NDArray[np.bool_], clip: float) -> None:
        """Put the outliers out of use, in place."""
        ordered = self._ordered
        weights = ordered.weigh(self._there, self._share)
        median = ordered.quantile(0.5)
        limit = (_SIGMA_PER_MAD * ordered.deviation(median))[:, None] ** 2
        if self._stated:
            variance = ordered.of(self._sigma**2)
            with np.errstate(invalid="ignore"):
                # that of the median: two pairs must not find the better of them an outlier
                about = np.float32(np.pi / 2) * _sum(weights, weights, variance) / ordered.total**2
            limit = np.maximum(limit, variance + about[:, None])
        off = ordered.values - median[:, None]
        off *= off
        pixel, nth = np.nonzero((off > np.float32(clip**2) * limit) & (weights > 0))
        use[pixel, ordered.origin[pixel, nth]] = False

    def estimate(
        self, use: NDArray[np.bool_], dates: Floats, method: Estimator
    ) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Value, dispersion and the terms of the error; what the record needs; (pixel,) each.

        The terms are those of :func:`variances`. `dates` are the middles of the pairs, in days
        from that of the period.
        """
        ordered, count = self._ordered, _count(use)
        w = self._share / self._sigma**2
        weights = ordered.weigh(use, w / w.max())  # any factor goes: float32 holds their squares
        total, squares = ordered.total, _sum(weights, weights)
        middle = ordered.quantile(0.5)
        off, days = ordered.values - middle[:, None], ordered.of(dates)
        first, second = _sum(weights, off), _sum(weights, off, off)
        with np.errstate(divide="ignore", invalid="ignore"):
            n, skew, date = total**2 / squares, first / total, _sum(weights, days) / total
            variance = np.maximum(second / total - skew**2, 0)
            own: Floats = np.zeros_like(n)
            noise = own
            if self._stated:
                sigma = ordered.of(self._sigma)
                own = (total / _sum(weights, ordered.of(1 / self._sigma))) ** 2
                noise = _sum(weights, weights, sigma, sigma) / total
            spread = _sum(weights, days, days) / total - date**2
            slope = (_sum(weights, days, off) / total - date * skew) / spread
            out: dict[str, Floats] = {"n": n, "own": own, "off": -date}
            of_median = skew if method == "median" else None
            out["aside"] = aside(n, variance, spread, slope, -date, of_median)
            if method == "mean":
                out["value"] = middle + skew
                out["dispersion"] = np.sqrt(variance)
                out["stated"] = noise / total
                out["near"] = np.zeros_like(n)
            else:
                out["value"] = middle
                out["dispersion"] = _SIGMA_PER_MAD * ordered.deviation(middle)
                out["stated"] = (np.pi / 2 - (np.pi / 2 - 1) / n) / n * own
                step = 0.5 / np.sqrt(n)
                below, above = ordered.quantile(0.5 - step), ordered.quantile(0.5 + step)
                out["near"] = ((above - middle) ** 2 + (middle - below) ** 2) / 2
        sums = self._sums(weights > 0, off, days)
        out["tau2"], out["freedom"] = scatter(sums)
        sums["y"] = sums["y"] + middle
        out["dispersion"] = np.where(count > 1, out["dispersion"], np.nan)
        return {name: np.where(count > 0, values, np.nan) for name, values in out.items()}, sums

    def _sums(self, use: NDArray[np.bool_], off: Floats, days: Floats) -> dict[str, Floats]:
        """What the scatter is told by, of weights that are less uneven: see `composite_error`."""
        ordered = self._ordered
        weights = np.where(use, ordered.of(self._share * self._even), 0)
        total = weights.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            t, y = _sum(weights, days) / total, _sum(weights, off) / total
        days, off = days - t[:, None], off - y[:, None]
        variance = ordered.of(self._sigma**2 if self._stated else np.zeros_like(self._sigma))
        return {
            "weight": total,
            "squares": _sum(weights, weights),
            "whole": _sum(weights, ordered.of(self._even)),
            "noise": _sum(weights, variance),
            "noise_squares": _sum(weights, weights, variance),
            "t": t,
            "y": y,
            "tt": _sum(weights, days, days),
            "ty": _sum(weights, days, off),
            "yy": _sum(weights, off, off),
        }


def _longest(
    vx: NDArray[np.int16], vy: NDArray[np.int16], days: Floats, displacement: float, missing: int
) -> Floats:
    """The days in which the ice of each pixel moves so far, (y, x)."""
    longest = np.empty(vx.shape[1:])
    for rows, columns in _blocks(vx.shape[1:], days.size):
        x, y = (
            np.ascontiguousarray(c[:, rows, columns].reshape(days.size, -1).T) for c in (vx, vy)
        )
        there = (x != missing) & (y != missing)
        short = there & (days <= SHORT_DAYS)
        few = _count(short) < _ENOUGH_SHORT
        short[few] = there[few]
        medians = []
        for values in (x, y):
            ordered = Ordered(values, short)
            ordered.weigh(short, np.ones(days.size, np.float32))
            medians.append(ordered.quantile(0.5))
        with np.errstate(divide="ignore"):
            found = displacement / np.hypot(*medians) * _DAYS_PER_YEAR
        part = longest[rows, columns]
        part[...] = found.reshape(part.shape)
    return longest


def _sum(*factors: Floats) -> Floats:
    """Sum of products along the rows; not by BLAS, whose threads get into each other's way."""
    indices = ",".join(["ij"] * len(factors))
    return np.asarray(np.einsum(f"{indices}->i", *factors))


def _latest(use: NDArray[np.bool_], dates: Floats) -> Floats:
    """The latest date in use in each row; NaN without any."""
    order = np.argsort(dates)
    rank = np.empty(order.size, np.uint32)
    rank[order] = np.arange(1, order.size + 1)
    latest: Floats = np.append(np.nan, dates[order])[(use * rank).max(axis=1)]
    return latest


def _count(use: NDArray[np.bool_]) -> NDArray[np.intp]:
    return np.asarray(np.count_nonzero(use, axis=1))


def _usable(sigma: Floats) -> tuple[Floats, bool]:
    """Errors with the unusable ones replaced, and whether any was usable."""
    good = np.isfinite(sigma) & (sigma > 0)
    if not good.any():
        return np.ones(sigma.shape, np.float32), False
    return np.where(good, sigma, np.median(sigma[good])).astype(np.float32), True


def _blocks(shape: tuple[int, ...], pairs: int) -> Iterator[tuple[slice, slice]]:
    """Compact parts of a tile, of so many pixels that the temporaries stay in the cache."""
    ny, nx = shape
    size = max(16, _BLOCK_VALUES // max(pairs, 1))
    height = max(1, min(ny, size // min(nx, _BLOCK_WIDTH)))
    width = max(1, min(nx, size // height))
    for y, x in itertools.product(range(0, ny, height), range(0, nx, width)):
        yield slice(y, y + height), slice(x, x + width)


def _check(vx: Any, vy: Any, vx_error: Any, vy_error: Any, date1: Any, date2: Any) -> None:
    for values in (vx, vy):
        if values.ndim != 3 or values.dtype != np.int16 or values.shape != vx.shape:
            raise InputError(
                f"velocities {values.dtype} {values.shape}: accepted are two of int16 on "
                "(pair, y, x)"
            )
    of_pairs = {"vx_error": vx_error, "vy_error": vy_error, "date1": date1, "date2": date2}
    for name, values in of_pairs.items():
        if values.shape != vx.shape[:1]:
            raise InputError(
                f"{name} {values.shape}: accepted is one for each of {vx.shape[0]} pairs"
            )
