"""Weighted medians and deviations of many rows of rounded values at a time. Pure.

Each value of a row is a whole number that stands for everything that is rounded to it: its weight
is spread evenly over ``[value - 1/2, value + 1/2]``. The weight below a number then grows
continuously, and its inverse is the weighted quantile: of values spread wider than the rounding it
is the usual one to within 1/2, and of values that are equal but for the rounding it tells the
fraction, where the usual one is a whole number. (Without weights this is the median of grouped
data, ``statistics.median_grouped``.) Where a range of numbers qualifies, it is the middle of it,
as for the median of two values.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ordered"]

Floats: TypeAlias = NDArray[np.floating[Any]]
Columns: TypeAlias = NDArray[np.intp]

_TIE = np.float32(1e-6)  # of the whole weight: sums of float32 that are equal but for rounding


class Ordered:
    """The values of each row in ascending order, with weights that can be changed.

    Parameters
    ----------
    values : ndarray of int16, shape (row, n)
    there : ndarray of bool, shape (row, n)
        Which of them take part.

    Notes
    -----
    Value and position go into one integer, which is sorted without an index: numpy sorts those
    with vector instructions, several times as fast as ``argsort``. What comes after needs one
    running sum a weighting; the rest is bisection, in all rows at a time.
    """

    def __init__(self, values: NDArray[np.int16], there: NDArray[np.bool_]) -> None:
        rows, n = values.shape
        bits, kind = (16, np.int32) if n < 2**16 - 1 else (32, np.int64)
        key: NDArray[Any] = values.astype(kind)
        key <<= bits
        key |= np.arange(n, dtype=kind)
        np.copyto(key, np.iinfo(kind).max, where=~there)
        key.sort(axis=1)
        key = key[:, : max(1, int(np.count_nonzero(there, axis=1).max(initial=0)))]
        self.values: Floats = (key >> bits).astype(np.float32)
        """As ordered, ``(row, ordered)``; anything where the weight is 0."""
        self.origin: Columns = np.minimum(key & ((1 << bits) - 1), n).astype(np.intp)
        """Column that each comes from, ``(row, ordered)``; n, for none, where a row is shorter."""
        self._rows = np.arange(rows)[:, None]
        self._sums: Floats = np.zeros_like(self.values)

    def weigh(self, use: NDArray[np.bool_], weights: Floats) -> Floats:
        """Weigh the values that are in use, bool ``(row, n)``, by weights ``(n,)``.

        Returns
        -------
        ndarray of float32, shape (row, ordered)
            The weights in the order of the values; 0 for what is not in use.
        """
        rows, n = use.shape
        each = np.zeros((rows, n + 1), np.float32)
        np.multiply(use, weights, out=each[:, :n])
        ordered: Floats = each.ravel().take(self.origin + self._rows * (n + 1))
        self._sums = np.cumsum(ordered, axis=1)
        return ordered

    def of(self, each: Floats) -> Floats:
        """What belongs to each value out of ``(n,)``, in their order, ``(row, ordered)``."""
        ordered: Floats = np.append(each, np.float32(0)).take(self.origin)
        return ordered

    @property
    def total(self) -> Floats:
        """Sum of the weights, ``(row,)``."""
        return np.asarray(self._sums[:, -1])

    def quantile(self, p: Floats | float) -> Floats:
        """The number below which lies the part `p` (``(row,)``, or one for all) of the weight."""
        sums, total = self._sums, self.total
        tie = _TIE * total
        target = np.maximum(np.float32(p), 2 * _TIE) * total
        value = _at(self.values, _first(sums, target - tie))
        first, behind = _first(self.values, value), _first(self.values, value, beyond=True)
        below, until = _before(sums, first), _before(sums, behind)
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.clip((target - below) / (until - below), 0, 1)
        found: Floats = value - np.float32(0.5) + part
        between = (np.abs(until - target) <= tie) & (until + tie < total)
        if between.any():  # nothing lies from here to the next value
            after = _at(self.values, _first(sums, until + tie, beyond=True))
            found = np.where(between, (value + after) / 2, found)
        return found

    def deviation(self, centre: Floats) -> Floats:
        """The least distance from a number in each row within which half of the weight lies.

        The rounding of the values is left aside. In their order, what lies within a distance of
        the centre stands together: bisection finds the last value on the left from which, and as
        far on the other side, at least half of the weight stands. The answer is its distance, or
        that of a value on the right that is nearer.
        """
        values, sums = self.values, self._sums
        enough = (np.float32(0.5) - _TIE) * self.total
        low, high = np.zeros(len(values), np.intp), _first(values, centre)
        while (low < high).any():
            middle = (low + high) // 2
            reach = _first(values, 2 * centre - _at(values, middle), beyond=True)
            good = _before(sums, reach) - _before(sums, middle) >= enough
            low, high = (
                np.where(good & (low < high), middle + 1, low),
                np.where(good | (low >= high), high, middle),
            )
        left = np.where(low > 0, centre - _at(values, np.maximum(low - 1, 0)), np.inf)
        last = _first(sums, enough + _before(sums, low))
        right = np.where(last < values.shape[1], _at(values, last) - centre, np.inf)
        return np.minimum(left, right).astype(np.float32)


def _at(table: Floats, column: Columns) -> Floats:
    """One element of each row; the last for a column beyond it."""
    rows, width = table.shape
    found: Floats = table.ravel().take(np.arange(rows) * width + np.minimum(column, width - 1))
    return found


def _before(sums: Floats, column: Columns) -> Floats:
    """Weight in the columns before one."""
    return np.where(column > 0, _at(sums, np.maximum(column, 1) - 1), np.float32(0))


def _first(table: Floats, target: Floats, *, beyond: bool = False) -> Columns:
    """In each ascending row the first column that reaches the target, or is beyond it."""
    rows, width = table.shape
    less = np.less_equal if beyond else np.less
    flat = table.ravel()
    start = np.arange(rows) * width
    at, left = start.copy(), width
    while left > 1:
        half = left // 2
        at += half * less(flat.take(at + (half - 1)), target)
        left -= half
    at += less(flat.take(at), target)
    column: Columns = at - start
    return column
