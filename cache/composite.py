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

*Error.* With ``n = (sum w)^2 / sum w^2`` effective pairs, stated errors give the median a variance
(its efficiency against the mean is 2/pi, and 1 for a single pair)::

    stated^2 = (pi/2 - (pi/2 - 1) / n) / n * s0^2,            s0 = sum w / sum(w / sigma)

But the ice itself changes within a period, and stated errors may be too small. The variance tau^2
that they leave unexplained is the excess of the weighted sum of squares over its expectation
(DerSimonian & Laird 1986, doi:10.1016/0197-2456(86)90046-2), from its standard deviation on. A few
pairs tell it badly: it is blended with that of the pixel's other periods (their upper third, at
the weight of three pairs). Such a scatter is not normal; of a season's sine, whose values crowd at
the ends, a median is a poor measure. So in the share of tau^2 in all variance, the error is taken
from the values themselves: from the distances to the quantiles at ``1/2 -+ 1 / (2 sqrt n)``
(Woodruff 1952, doi:10.1080/01621459.1952.10483443), steadied by what a trend's scatter would give.
The mean has ``sum w^2 sigma^2 / (sum w)^2 + tau^2 / n``.

Two things do not become less with more pairs. Pairs that lie to one side of the period, as at the
ends of a record, tell of that side: the slope of their values over their middles (weighted least
squares), times the distance of their mean date from the period's middle. And the median of a skewed
scatter, as of a season that long pairs cut the peaks off, is not its mean: their difference. The
square of either counts as far as it is more than ``2 + 12 / n`` times the variance that chance
alone gives it: ``s^2 / n`` over the variance of the dates, and ``(pi/2 - 1) s^2 / n``, with the
weighted variance s^2 of the values. It is added twice: it is an offset and no noise, and an error
of its very size would hold the truth half of the time.

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

from firnline.cache.periods import Period, overlap
from firnline.cache.weighted import Ordered
from firnline.errors import InputError

__all__ = ["CLIP", "SHORT_DAYS", "Composite", "Estimator", "composite", "speed"]

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
_OTHERS = 3  # pairs: the weight of a pixel's other periods in tau^2
_STEADY = 7  # pairs: the weight of a trend's scatter in the error from quantiles
_CHANCE = 12  # pairs: with fewer, what looks like a slope or a skewed scatter mostly is none
_LEAST_SPREAD = 1.0  # days^2: what float32 makes of pairs of one date
_TREND = 3  # n times the variance of the median of n values of a uniform distribution of variance 1
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
                _Component(values, short, share[pairs], sigma[pairs], stated)
                for values, (sigma, stated) in zip((x, y), sigmas, strict=True)
            ]
            found = _reduce(components, short, start[pairs], end[pairs], period, method, clip)
            found["too_long"] = _count(there) - _count(short)
            for name, pixels in found.items():
                part = (counts[name] if name in counts else floats[name])[p, rows, columns]
                part[...] = pixels.reshape(part.shape)
    return _finished(floats, counts, method)


def _reduce(
    components: list[_Component],
    there: NDArray[np.bool_],
    start: Floats,
    end: Floats,
    period: Period,
    method: Estimator,
    clip: float | None,
) -> dict[str, Any]:
    """What the pairs of a period make of some pixels: fields and terms by name, (pixel,) each."""
    use = there.copy()
    if clip is not None:
        for component in components:
            component.reject(use, clip)
    middles = (start + end) / 2
    about = middles.mean()  # float32 is fine enough for the days from there
    centre = float((period.mid - _EPOCH) / _DAY - about)
    found: dict[str, Any] = {
        "count": _count(use),
        "rejected": _count(there) - _count(use),
        "first_date": -_latest(use, -start),
        "last_date": _latest(use, end),
    }
    for name, component in zip(("vx", "vy"), components, strict=True):
        estimate = component.estimate(use, (middles - about).astype(np.float32), centre, method)
        found |= {f"{name}_{term}": pixels for term, pixels in estimate.items()}
    found["mean_date"] = about + (found.pop("vx_date") + found.pop("vy_date")).astype("f8") / 2
    return found


def _finished(
    floats: Mapping[str, Single], counts: Mapping[str, NDArray[np.uint32]], method: Estimator
) -> Composite:
    """Speed and errors, which need all periods of a pixel."""
    terms = ("n", "stated", "own", "extra", "near", "aside")
    vx, vy = floats["vx_value"], floats["vy_value"]
    x, y = (
        _variances(method, *(floats[f"{name}_{term}"] for term in terms)) for name in ("vx", "vy")
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
        stated: bool,
    ) -> None:
        self._ordered, self._there = Ordered(values, there), there
        self._share, self._sigma, self._stated = share, sigma, stated

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
        self, use: NDArray[np.bool_], dates: Floats, centre: float, method: Estimator
    ) -> dict[str, Floats]:
        """Value, dispersion, mean date and the terms of the error, ``(pixel,)`` each.

        The terms: ``n``, effective pairs; ``stated``, variance of the value by stated errors;
        ``own``, the variance of one pair by them; ``extra``, that which they don't explain, NaN
        for a single pair; ``near``, variance of the median by the values around it; ``aside``,
        twice the square of what all pairs together are off. `dates` are the middles of the pairs,
        `centre` is that of the period, in days.
        """
        ordered, count = self._ordered, _count(use)
        w = self._share / self._sigma**2
        weights = ordered.weigh(use, w / w.max())  # any factor goes: float32 holds their squares
        sigma = ordered.of(self._sigma)
        total, squares = ordered.total, _sum(weights, weights)
        middle = ordered.quantile(0.5)
        off = ordered.values - middle[:, None]
        first, second = _sum(weights, off), _sum(weights, off, off)
        with np.errstate(divide="ignore", invalid="ignore"):
            n = total**2 / squares
            about_mean = np.maximum(second - first**2 / total, 0)
            own = noise = allowed = np.zeros_like(n)
            if self._stated:
                own = (total / _sum(weights, ordered.of(1 / self._sigma))) ** 2
                noise = _sum(weights, weights, sigma, sigma) / total
                allowed = (_sum(weights, sigma, sigma) - noise) * (1 + np.sqrt(2 / (count - 1)))
            extra = np.maximum(about_mean - allowed, 0) / (total - squares / total)
            days = ordered.of(dates)
            date, skew, scatter = _sum(weights, days) / total, first / total, about_mean / total
            spread = _sum(weights, days, days) / total - date**2
            slope = (_sum(weights, days, off) / total - date * skew) / spread
            chance = (2 + _CHANCE / n) * scatter / n
            aside = np.maximum(slope**2 - chance / spread, 0) * (centre - date) ** 2
            out: dict[str, Floats] = {"date": date, "n": n, "own": own, "extra": extra}
            aside = np.where(spread > _LEAST_SPREAD, aside, 0)
            if method == "median":
                aside += np.maximum(skew**2 - (np.pi / 2 - 1) * chance, 0)
            out["aside"] = 2 * aside
            if method == "mean":
                out["value"] = middle + first / total
                out["dispersion"] = np.sqrt(about_mean / total)
                out["stated"] = noise / total
                out["near"] = np.zeros_like(n)
            else:
                out["value"] = middle
                out["dispersion"] = _SIGMA_PER_MAD * ordered.deviation(middle)
                out["stated"] = (np.pi / 2 - (np.pi / 2 - 1) / n) / n * own
                step = 0.5 / np.sqrt(n)
                below, above = ordered.quantile(0.5 - step), ordered.quantile(0.5 + step)
                out["near"] = ((above - middle) ** 2 + (middle - below) ** 2) / 2
        for name in ("extra", "dispersion"):
            out[name] = np.where(count > 1, out[name], np.nan)
        return {name: np.where(count > 0, values, np.nan) for name, values in out.items()}


def _variances(
    method: Estimator,
    n: Floats,
    stated: Floats,
    own: Floats,
    extra: Floats,
    near: Floats,
    aside: Floats,
) -> Floats:
    """Variance of the value by stated errors and by what they leave unexplained.

    From the terms of :meth:`_Component.estimate`, all (period, y, x); the result has one more
    dimension of two in front. Their sum is the square of the standard error.
    """
    known = np.count_nonzero(np.isfinite(extra), axis=0, keepdims=True)
    rank = np.maximum(np.rint(0.7 * (known - 1)).astype(np.intp), 0)
    ranked = np.take_along_axis(np.sort(extra, axis=0), rank, axis=0)  # NaN last
    others = np.where(known > 0, ranked, np.float32(0))
    tau2 = (n * np.where(np.isnan(extra), others, extra) + _OTHERS * others) / (n + _OTHERS)
    # a variance known from few values: the error's distribution is Student's
    wide = tau2 * (1 + 3 / (n + 3)) / n
    parts = [stated, wide + aside]
    if method == "median":
        near = (n * near + _STEADY * (stated + _TREND * wide)) / (n + _STEADY)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = tau2 / (own + tau2)
        parts = [(1 - share) * stated, share * near + aside]
    variances = np.stack(parts).astype(np.float32)
    variances[:, variances.sum(axis=0) == 0] = np.nan  # nothing is stated, or to be seen
    return variances


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


def speed(
    vx: Floats, vy: Floats, x_variances: Floats, y_variances: Floats
) -> tuple[Floats, Floats]:
    """Speed and its error from the components; the mean of speeds is biased by noise.

    Parameters
    ----------
    vx, vy : ndarray
        Components in m/year.
    x_variances, y_variances : ndarray
        Their variances, with one more dimension of two in front: by stated errors, which are
        independent of each other, and beyond these. The latter is taken for a change of speed:
        ice speeds up or slows down along its way, so that both components change together.

    Returns
    -------
    v, v_error : ndarray
        With the direction ``(c, s) = (vx, vy) / v``: ``sqrt(vx^2 + vy^2)`` and
        ``sqrt(c^2 x0 + s^2 y0 + (|c| sqrt(x1) + |s| sqrt(y1))^2)`` in m/year, NaN where a
        component is. Without motion the error is the root mean square of that over all
        directions of a vector whose components are independent.
    """
    v = np.hypot(vx, vy)
    with np.errstate(divide="ignore", invalid="ignore"):
        c, s = np.abs(vx) / v, np.abs(vy) / v
    c, s = (np.where(v == 0, np.float32(np.sqrt(0.5)), part) for part in (c, s))
    noise = c**2 * x_variances[0] + s**2 * y_variances[0]
    change = (c * np.sqrt(x_variances[1]) + s * np.sqrt(y_variances[1])) ** 2
    return v, np.sqrt(noise + change).astype(v.dtype)
