"""Periods of the calendar, and how much of an image pair's time lies in each. Pure.

What may be asked for, and how it is aligned:

====================  ======================================================================
``P1Y``, ``P2Y``, …   years; several are counted from the year 0: ``P5Y`` begins in 2015, 2020
``P1M``, ``P3M``, …   months, counted from January of the year 0: ``P3M`` begins in January,
                      April, July and October; ``P1Y6M`` is ``P18M``
``P1W``, ``P2W``, …   weeks from Monday to Sunday (ISO 8601), counted from that of 1 January 1970
``P16D``, ``P8D``, …  days, up to 366, counted from 1 January of each year; the last of a year ends
                      with it, as in the 8- and 16-day composites of MODIS
``season``            December to February, March to May, June to August, September to November
``all``               one period for everything
====================  ======================================================================

``year`` and ``month`` are ``P1Y`` and ``P1M``.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firnline.errors import InputError

__all__ = ["Period", "as_arrays", "canonical", "overlap", "period_label", "periods"]

_SPEC = re.compile(
    r"P(?=\d)(?:(?:(?P<years>\d{1,4})Y)?(?:(?P<months>\d{1,5})M)?"
    r"|(?P<weeks>\d{1,5})W|(?P<days>\d{1,3})D)"
)
_WORDS = {"year": "P1Y", "month": "P1M"}
_SEASONS = ("MAM", "JJA", "SON", "DJF")  # from March on
_LONGEST_DAYS = 366
_MONDAY = np.datetime64("1969-12-29", "D")


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


def canonical(spec: str) -> str:
    """One spelling for each way to cut time: ``P12M`` and ``year`` are ``P1Y``.

    Raises
    ------
    InputError
        The spec is none of those of this module's table.
    """
    if spec in ("all", "season"):
        return spec
    found = _SPEC.fullmatch(_WORDS.get(spec, spec))
    length = {name: int(n) for name, n in found.groupdict().items() if n} if found else {}
    months = 12 * length.get("years", 0) + length.get("months", 0)
    if months:
        return f"P{months}M" if months % 12 else f"P{months // 12}Y"
    if length.get("weeks"):
        return f"P{length['weeks']}W"
    if 0 < length.get("days", 0) <= _LONGEST_DAYS:
        return f"P{length['days']}D"
    raise InputError(
        f"composite period {spec[:40]!r}: accepted are year, month, season, all, or an ISO 8601 "
        f"duration of years and months, of weeks, or of up to {_LONGEST_DAYS} days, such as P1Y, "
        "P3M, P1W or P16D"
    )


def periods(spec: str, start: np.datetime64, end: np.datetime64) -> tuple[Period, ...]:
    """Cut ``start <= t < end`` into periods of the calendar.

    Parameters
    ----------
    spec : str
        One of those of this module's table.
    start, end : numpy.datetime64
        What is to be covered; ``end`` is exclusive.

    Returns
    -------
    tuple of Period
        In order and without gaps; the first and last are whole periods of the calendar and may
        reach beyond start and end, which ``all`` does not.

    Raises
    ------
    InputError
        For another spec, or an end that is not after the start.
    """
    spec = canonical(spec)
    start, end = start.astype("M8[ns]"), end.astype("M8[ns]")
    if np.isnat(start) or np.isnat(end) or end <= start:
        raise InputError(f"composite from {start} to {end}: accepted is an end after the start")
    if spec == "all":
        return (Period(start, end),)
    edges = _edges(spec, start, end - np.timedelta64(1, "ns"))
    return tuple(Period(a, b) for a, b in itertools.pairwise(edges))


def _edges(spec: str, first: np.datetime64, last: np.datetime64) -> NDArray[np.datetime64]:
    """The beginnings of the periods from that of `first` to the one behind that of `last`."""
    if spec == "season" or spec[-1] in "YM":
        length, offset = (3, 2) if spec == "season" else (_count(spec), 0)
        # datetime64[M] counts from 1970
        low, high = (
            (int(t.astype("M8[M]").astype("i8")) + 1970 * 12 - offset) // length
            for t in (first, last)
        )
        months = np.arange(low, high + 2) * length + offset - 1970 * 12
        return months.astype("M8[M]").astype("M8[ns]")
    if spec[-1] == "W":
        days = 7 * _count(spec)
        low, high = (int((t.astype("M8[D]") - _MONDAY).astype("i8")) // days for t in (first, last))
        return (_MONDAY + np.arange(low, high + 2) * days).astype("M8[ns]")
    years = np.arange(first.astype("M8[Y]"), last.astype("M8[Y]") + 2).astype("M8[D]")
    length = _count(spec)
    parts = [np.arange(a, b, length) for a, b in itertools.pairwise(years)]
    edges = np.concatenate([*parts, years[-1:]]).astype("M8[ns]")
    low = int(np.searchsorted(edges, first, side="right")) - 1
    high = int(np.searchsorted(edges, last, side="right"))
    return edges[low : high + 1]


def _count(spec: str) -> int:
    """Months of a canonical spec of months or years, weeks of one of weeks, days of one of days."""
    return int(spec[1:-1]) * (12 if spec[-1] == "Y" else 1)


def as_arrays(periods: tuple[Period, ...]) -> dict[str, NDArray[np.datetime64]]:
    """``start``, ``end`` and ``mid`` of some periods, ``(period,)`` each."""
    return {
        name: np.array([getattr(period, name) for period in periods], "M8[ns]")
        for name in ("start", "end", "mid")
    }


def period_label(period: Period, spec: str) -> str:
    """Name of a period, as short as it can be.

    ``2019``, ``2019-03``, ``2019-W05``, ``2019-03-01``, ``2019-DJF`` (which begins in December
    2018), or its start and its end, which is exclusive.
    """
    start = str(period.start)
    if spec == "P1Y":
        return start[:4]
    if spec == "P1M":
        return start[:7]
    if spec == "P1D":
        return start[:10]
    if spec == "P1W":
        year, week, _ = period.start.astype("M8[D]").item().isocalendar()
        return f"{year}-W{week:02d}"
    if spec == "season":
        return f"{str(period.end)[:4]}-{_SEASONS[int(start[5:7]) // 3 - 1]}"
    return f"{start[:10]}/{str(period.end)[:10]}"


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
