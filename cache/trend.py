"""The linear trend of a speed in each pixel. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firnline.errors import InputError

__all__ = ["FEWEST", "Trend", "linear_trend"]

Floats = NDArray[np.floating[Any]]

FEWEST = 3
"""Years that a trend takes: two always lie on a line, which says nothing of its error."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through each pixel's years: arrays of the shape (y, x), NaN with fewer than three."""

    slope: NDArray[np.float32]
    """Change a year, in the unit of the values."""
    error: NDArray[np.float32]
    """Standard error of the slope."""
    count: NDArray[np.uint32]
    """Years that took part."""


def linear_trend(values: Floats, errors: Floats, years: ArrayLike, *, rounding: float) -> Trend:
    """Fit a line to each pixel by least squares, weighted by 1 / error^2.

    Parameters
    ----------
    values, errors : ndarray, shape (time, y, x)
        With their standard errors, in one unit; a year takes part where both are finite and the
        error is not negative.
    years : array_like, shape (time,)
        Decimal year that each stands for.
    rounding : float
        Unit to which the errors were rounded: its variance, ``rounding^2 / 12``, is added to
        theirs, so that an error that was rounded to 0 does not take all the weight.

    Returns
    -------
    Trend

    Raises
    ------
    InputError
        When shapes do not fit.

    Notes
    -----
    With ``w = 1 / sigma^2`` and the weighted mean year T, ``slope = sum w (t - T) v / S``,
    ``S = sum w (t - T)^2``, and ``error = S^-1/2`` (Bevington & Robinson 2003, chapter 6). Where
    the values scatter more about the line than their errors say, the error is larger by the Birge
    ratio, ``sqrt(chi^2 / (n - 2))`` (Birge 1932, doi:10.1103/PhysRev.40.207); where they scatter
    less, it is left as it is. Errors common to all years cancel in a slope, those that neighbouring
    years share, of image pairs that reach over the turn of the year, do not.
    """
    t = np.asarray(years, np.float64)
    if values.ndim != 3 or values.shape != errors.shape or t.shape != values.shape[:1]:
        raise InputError(
            f"values {values.shape}, errors {errors.shape}, years {t.shape}: accepted are "
            "(time, y, x) twice and (time,)"
        )
    there = np.isfinite(values) & (errors >= 0) & np.isfinite(errors)
    count = np.count_nonzero(there, axis=0)
    v = np.where(there, values, 0).astype(np.float64)
    variances = np.where(there, errors, np.inf).astype(np.float64) ** 2 + rounding**2 / 12
    w = 1 / variances
    t = t[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = w.sum(axis=0)
        off = t - (w * t).sum(axis=0) / total
        about = v - (w * v).sum(axis=0) / total
        spread = (w * off**2).sum(axis=0)
        slope = (w * off * about).sum(axis=0) / spread
        chi2 = (w * (about - slope * off) ** 2).sum(axis=0)
        error = np.sqrt(np.maximum(1, chi2 / (count - 2)) / spread)
    enough = count >= FEWEST
    return Trend(
        np.where(enough, slope, np.nan).astype(np.float32),
        np.where(enough, error, np.nan).astype(np.float32),
        count.astype(np.uint32),
    )
