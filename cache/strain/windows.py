"""Windows over a grid: sums over the pixels that a gradient is made of.

All sums are over blocks that carry ``radius`` pixels more on each side than the result has, so
``(y + 2 radius, x + 2 radius) -> (y, x)``, with x and y counted in pixels from each centre. They
are made of shifted slices and not of running sums or Fourier transforms: a missing value reaches
its windows and nothing else, and no sum depends on values far away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.floating[Any]]


class Window(Protocol):
    """Which pixels around a centre take part, by the sums over them."""

    @property
    def radius(self) -> int:
        """Pixels on each side of the centre."""

    @property
    def count(self) -> int:
        """Number of pixels."""

    @property
    def spread(self) -> float:
        """Sum of x^2, which is that of y^2, over all pixels."""

    def total(self, a: Floats) -> Floats:
        """Sum of a."""

    def ramps(self, a: Floats) -> tuple[Floats, Floats]:
        """Sums of x a and y a: differences first, which float32 takes without loss."""

    def seconds(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of x^2 a, x y a and y^2 a."""

    def firsts(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of a, x a and y a, in less time than one by one."""

    def moments(self, a: Floats) -> tuple[Floats, ...]:
        """Sums of a, x a, y a, x^2 a, x y a and y^2 a, in less time than one by one."""


@dataclass(frozen=True)
class Square:
    """All pixels of ``(2 radius + 1)^2``; sums are separable."""

    radius: int

    @property
    def count(self) -> int:
        """Number of pixels."""
        return (2 * self.radius + 1) ** 2

    @property
    def spread(self) -> float:
        """Sum of x^2 over all pixels."""
        return self.count * self.radius * (self.radius + 1) / 3

    def total(self, a: Floats) -> Floats:
        """Sum of a."""
        return self._box(self._box(a, 1), 0)

    def ramps(self, a: Floats) -> tuple[Floats, Floats]:
        """Sums of x a and y a."""
        return self._box(self._ramp(a, 1), 0), self._box(self._ramp(a, 0), 1)

    def seconds(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of x^2 a, x y a and y^2 a."""
        return (
            self._box(self._square(a, 1), 0),
            self._ramp(self._ramp(a, 1), 0),
            self._square(self._box(a, 1), 0),
        )

    def firsts(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of a, x a and y a."""
        one = self._box(a, 1)
        return self._box(one, 0), self._box(self._ramp(a, 1), 0), self._ramp(one, 0)

    def moments(self, a: Floats) -> tuple[Floats, ...]:
        """Sums of a, x a, y a, x^2 a, x y a and y^2 a."""
        one, x, xx = self._box(a, 1), self._ramp(a, 1), self._square(a, 1)
        return (
            self._box(one, 0),
            self._box(x, 0),
            self._ramp(one, 0),
            self._box(xx, 0),
            self._ramp(x, 0),
            self._square(one, 0),
        )

    def _box(self, a: Floats, axis: int) -> Floats:
        total = self._part(a, 0, axis) + self._part(a, 1, axis)
        for k in range(2, 2 * self.radius + 1):
            total += self._part(a, k, axis)
        return total

    def _ramp(self, a: Floats, axis: int) -> Floats:
        r = self.radius
        total = self._part(a, r + 1, axis) - self._part(a, r - 1, axis)
        term = np.empty_like(total)
        for j in range(2, r + 1):
            np.subtract(self._part(a, r + j, axis), self._part(a, r - j, axis), out=term)
            term *= j
            total += term
        return total

    def _square(self, a: Floats, axis: int) -> Floats:
        r = self.radius
        total = self._part(a, r + 1, axis) + self._part(a, r - 1, axis)
        for j in range(2, r + 1):
            total += j**2 * (self._part(a, r + j, axis) + self._part(a, r - j, axis))
        return total

    def _part(self, a: Floats, start: int, axis: int) -> Floats:
        stop = start + a.shape[axis] - 2 * self.radius
        return a[start:stop] if axis == 0 else a[:, start:stop]


@dataclass(frozen=True)
class Star:
    """The centre and four stakes ``radius`` away along x and y: a diamond (Nye 1959)."""

    radius: int

    @property
    def count(self) -> int:
        """Number of pixels."""
        return 5

    @property
    def spread(self) -> float:
        """Sum of x^2 over all pixels."""
        return 2.0 * self.radius**2

    def total(self, a: Floats) -> Floats:
        """Sum of a."""
        below, above, left, right = self._stakes(a)
        r = self.radius
        return a[r : a.shape[0] - r, r : a.shape[1] - r] + below + above + left + right

    def ramps(self, a: Floats) -> tuple[Floats, Floats]:
        """Sums of x a and y a."""
        below, above, left, right = self._stakes(a)
        return (right - left) * self.radius, (below - above) * self.radius

    def seconds(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of x^2 a, x y a and y^2 a."""
        below, above, left, right = self._stakes(a)
        square = self.radius**2
        xx = (left + right) * square
        return xx, np.zeros_like(xx), (above + below) * square

    def firsts(self, a: Floats) -> tuple[Floats, Floats, Floats]:
        """Sums of a, x a and y a."""
        return (self.total(a), *self.ramps(a))

    def moments(self, a: Floats) -> tuple[Floats, ...]:
        """Sums of a, x a, y a, x^2 a, x y a and y^2 a."""
        return (*self.firsts(a), *self.seconds(a))

    def _stakes(self, a: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """In the row below (the higher one), the row above, the columns left and right."""
        r = self.radius
        rows, columns = slice(r, a.shape[0] - r), slice(r, a.shape[1] - r)
        return (
            a[2 * r :, columns],
            a[: a.shape[0] - 2 * r, columns],
            a[rows, : a.shape[1] - 2 * r],
            a[rows, 2 * r :],
        )
