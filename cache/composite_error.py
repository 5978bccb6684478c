"""How far a composite may be off: of the pairs of a pixel's period, and of its other periods. Pure.

*What pairs state.* With ``n = (sum w)^2 / sum w^2`` effective pairs (Kish 1965, Survey Sampling,
chapter 11.7) the mean has the variance ``sum w^2 sigma^2 / (sum w)^2``, the median (efficiency 2/pi
against the mean, and 1 for a single pair)::

    stated = (pi/2 - (pi/2 - 1) / n) / n * s0^2,            s0 = sum w / sum(w / sigma)

*What they don't state.* The ice itself changes within a period, and stated errors may be too small.
The variance tau^2 of one pair that they leave unexplained is the excess of a weighted sum of
squares over its expectation, by the method of moments with weights of one's choice (DerSimonian &
Kacker 2007, doi:10.1016/j.cct.2006.04.004). The choice is ``a = overlap / (sigma^2 + c)``: by the
composite's own weights, a long pair would hide what all the others tell. A few pairs of a period
say little, so that two more sources join: the pixel's other periods, and the line that is fitted
to all of its pairs, which is told by as few as two or three. The estimate is the mean of the
period's own and of the upper third of all of these, each counting by its degrees of freedom. A
variance known from few of them makes the error's distribution Student's (1908,
doi:10.1093/biomet/6.1.1), and of few values of a trend or of a season's sine, which crowd at their
ends, less than 68 % lie within one standard deviation: the variance is larger for both.

The mean then has ``tau^2 / n`` more. For the median, ``tau^2 c / (n + c - 1)``: c is 1 over
``4 f^2``, f the density of a sine's values at their median (Cramer 1946, chapter 28.5). Where there
are many pairs, the values themselves tell it better, by their distances to the quantiles at ``1/2
-+ 1 / (2 sqrt n)`` (Woodruff 1952, doi:10.1080/01621459.1952.10483443): the two are blended, and
take the place of stated errors in the share of tau^2 in all variance.

*What does not become less with more pairs.* Pairs that lie to one side of the period, as at the
ends of a record, tell of that side: the slope of their values over their middles, times the
distance of their mean date from the period's middle. And the median of a skewed scatter, as of a
season that long pairs cut the peaks off, is not its mean: their difference. The square of either
counts as far as it is more than ``2 + 12 / n`` times the variance that chance alone gives it, and
twice: it is an offset and no noise, and an error of its very size would hold the truth half of the
time. The slope of all periods counts as well, as far as it is more than its own variance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Record", "aside", "even_weights", "scatter", "speed", "variances"]

Floats: TypeAlias = NDArray[np.floating[Any]]

_LEVEL = 0.25  # of the median variance: what keeps good pairs from hiding the others
_OTHERS = 3  # pairs: the weight of all else of the pixel in tau^2, and the most that its line has
_UPPER = 0.7
_STEADY = 7  # pairs: the weight of tau^2 beside the quantiles
_CHANCE = 12  # pairs: with fewer, what looks like a slope or a skewed scatter mostly is none
_STUDENT = 1.5
_CROWDED = 0.4  # 68 % of a trend's values lie within sqrt(1.39) standard deviations
_SINE = np.pi**2 / 2  # n times the variance of the median of n values of a sine of variance 1
_LEAST_SPREAD = 1.0  # days^2: what float32 makes of pairs of one date
_LEAST_FREEDOM = 0.01  # degrees of freedom
_LINE = 2.3  # pairs, for a line through them


def even_weights(sigma: Floats) -> Floats:
    """The weights that tell tau^2, but for the overlap: less uneven than 1/sigma^2; ``(pair,)``."""
    level = _LEVEL * np.median(sigma) ** 2 if sigma.size else 1.0
    return (level / (sigma**2 + level)).astype(np.float32)


def scatter(sums: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """The variance of one pair that the stated ones leave unexplained, by the pairs of a period.

    Parameters
    ----------
    sums : mapping of str to ndarray
        Of the weights a: ``weight``, ``squares`` of them, ``noise`` (sum of a sigma^2),
        ``noise_squares`` (of a^2 sigma^2) and ``yy``, the sum of squares about the mean.

    Returns
    -------
    tau2, freedom : ndarray
        And its degrees of freedom, effective pairs less one.
    """
    weight, squares = sums["weight"], sums["squares"]
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = weight**2 / squares - 1
        expected = sums["noise"] - sums["noise_squares"] / weight
        tau2 = _excess(sums["yy"], expected, freedom) / (weight - squares / weight)
    told = freedom > _LEAST_FREEDOM
    return np.where(told, tau2, 0), np.where(told, freedom, 0)


class Record:
    """All pairs of each pixel, whatever their period: the line through them, and their scatter.

    Parameters
    ----------
    shape : tuple of int
        ``(y, x)``.

    Notes
    -----
    Sums of squares are kept about the means, and those of periods joined as by Chan, Golub &
    LeVeque (1983, doi:10.1080/00031305.1983.10483115).
    """

    _NAMES = ("weight", "whole", "noise", "t", "y", "tt", "ty", "yy", "periods")

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sums = {name: np.zeros(shape) for name in self._NAMES}

    def add(self, part: tuple[slice, slice], sums: Mapping[str, Floats]) -> None:
        """Join the pairs of a period to those of some pixels.

        Parameters
        ----------
        part : tuple of slice
            Rows and columns of the pixels.
        sums : mapping of str to ndarray, (pixel,)
            Of the weights a: ``weight``, ``noise``, means ``t`` and ``y`` of dates and values,
            sums of products about them ``tt``, ``ty``, ``yy``, and ``whole``, the sum of a times
            what it would be if all of the pair lay in the period: a pair that is shared by
            periods is one pair.
        """
        mine = {name: sums_[part] for name, sums_ in self._sums.items()}
        new = {name: values.reshape(mine["t"].shape) for name, values in sums.items()}
        some = new["weight"] > 0
        weight = mine["weight"] + new["weight"]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = new["weight"] / weight
        both = mine["weight"] * share
        t, y = (new[name] - mine[name] for name in ("t", "y"))
        change = {"tt": both * t * t, "ty": both * t * y, "yy": both * y * y}
        for name in ("weight", "whole", "noise", "tt", "ty", "yy"):
            np.add(mine[name], new[name] + change.get(name, 0), out=mine[name], where=some)
        for name, off in (("t", t), ("y", y)):
            np.add(mine[name], share * off, out=mine[name], where=some)
        mine["periods"] += some

    def line(self) -> tuple[Floats, Floats, Floats]:
        """Unexplained variance of one pair about the line, its freedom, and the slope's square.

        With too few pairs for a line, the variance is about their mean. All of it is 0 for a
        single period, which has told the same already.
        """
        weight, whole, noise, _, _, tt, ty, yy, periods = self._sums.values()
        with np.errstate(divide="ignore", invalid="ignore"):
            spread, n = tt / weight, weight**2 / whole
            slope = np.where(spread > _LEAST_SPREAD, ty / tt, 0)
            lined = n > _LINE
            freedom = np.where(lined, n - 2, np.minimum(n - 1, 1))
            square = (yy - np.where(lined, slope * ty, 0)) / weight
            part = np.where(lined, 1 - 2 / n, 1 - 1 / n)
            level = noise / weight
            tau2 = _excess(square / part, level, freedom)
            steep = slope**2 - (tau2 + level) / spread / periods
        told = (periods > 1) & (freedom > _LEAST_FREEDOM)
        steep = np.where(told & (spread > _LEAST_SPREAD), np.maximum(steep, 0), 0)
        return np.where(told, tau2, 0), np.where(told, freedom, 0), steep


def aside(
    n: Floats, variance: Floats, spread: Floats, slope: Floats, off: Floats, skew: Floats | None
) -> Floats:
    """Twice the square of what all pairs of a period together are off.

    Parameters
    ----------
    n, variance, spread : ndarray
        Effective pairs, and the weighted variances of their values and of their dates.
    slope, off : ndarray
        Of values over dates, and days from the pairs' mean date to the period's middle.
    skew : ndarray or None
        Mean less median, where the latter is the value.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = (2 + _CHANCE / n) * variance / n
        one_sided = np.maximum(slope**2 - chance / spread, 0) * off**2
        found: Floats = np.where(spread > _LEAST_SPREAD, one_sided, 0)
        if skew is not None:
            found = found + np.maximum(skew**2 - (np.pi / 2 - 1) * chance, 0)
    return 2 * found


def variances(
    method: Literal["median", "mean"],
    terms: Mapping[str, Floats],
    record: Record,
) -> Floats:
    """Variance of the value by stated errors and by what they leave unexplained.

    Parameters
    ----------
    method : {"median", "mean"}
    terms : mapping of str to ndarray, (period, y, x)
        ``n``, effective pairs; ``stated``, variance of the value by stated errors; ``own``, the
        variance of one pair by them; ``tau2`` and ``freedom``, of :func:`scatter`; ``near``,
        variance of the median by the values around it; ``aside``, of :func:`aside`; ``off``, days
        from the pairs' mean date to the period's middle. NaN without pairs.
    record : Record
        Of the same pairs.

    Returns
    -------
    ndarray, shape (2, period, y, x)
        Their sum is the square of the standard error; NaN where nothing is stated or to be seen.
    """
    n, stated, near = (terms[name] for name in ("n", "stated", "near"))
    line, of_line, steep = record.line()
    others, known = _upper(
        np.concatenate([terms["tau2"], line[None]]),
        np.concatenate([terms["freedom"], np.minimum(of_line, _OTHERS)[None]]),
    )
    freedom = terms["freedom"]
    tau2 = (freedom * terms["tau2"] + _OTHERS * others) / (freedom + _OTHERS)
    freedom = freedom + np.minimum(known, _OTHERS)
    one = tau2 * (1 + _STUDENT / (freedom + 1)) * (1 + _CROWDED / n)
    off = terms["aside"] + steep * terms["off"] ** 2
    parts = [stated, one / n + off]
    if method == "median":
        by_values = (n - 1) * (1 + _STUDENT / n) * near
        by_scatter = stated + _SINE / (n + _SINE - 1) * one
        blended = (by_values + _STEADY * by_scatter) / (n - 1 + _STEADY)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = tau2 / (terms["own"] + tau2)
        parts = [(1 - share) * stated, share * blended + off]
    found = np.stack(parts).astype(np.float32)
    found[:, found.sum(axis=0) == 0] = np.nan
    return found


def _excess(square: Floats, expected: Floats, freedom: Floats) -> Floats:
    """What is more than expected, from about a standard deviation of a few values' squares on."""
    allowed = expected * (1 + 2 / (np.maximum(freedom, 0) + 2))
    return np.maximum(square - allowed, 0)


def _upper(variance: Floats, freedom: Floats) -> tuple[Floats, Floats]:
    """The upper third of some variances along the first axis, by their freedom; the sum of that."""
    freedom = np.nan_to_num(freedom)
    order = np.argsort(variance, axis=0)
    total = np.cumsum(np.take_along_axis(freedom, order, axis=0), axis=0)
    at = np.argmax(total >= (_UPPER - 1e-6) * total[-1], axis=0)
    found = np.take_along_axis(variance, np.take_along_axis(order, at[None], axis=0), axis=0)[0]
    return np.where(total[-1] > 0, found, 0), total[-1]


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
