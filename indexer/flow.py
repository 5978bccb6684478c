"""An outlet glacier in closed form: the velocities of the sample and their exact strain rates.

The sample's answers must be known beforehand, so its ice moves by a formula. In a frame that
is turned to the trunk (``s`` down-glacier, ``n`` to its left)::

    u(s, n) = background + trunk * A(s) * G(n)          along the trunk
    w(n)    = -inflow * (n / reach) * exp(-(n / reach)^2)  toward the trunk

with ``A(s) = (1 + tanh(s / run)) / 2``, the acceleration toward the front, and
``G(n) = (tanh((n + h) / m) - tanh((n - h) / m)) / 2``, a plug of half width ``h`` between shear
margins of width ``m``. Time multiplies the whole field by ``1 + trend (t - t0) + season
sin(2 pi t)``: at mid-year the season is zero, so the mean of a calendar year is the field at its
middle.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DAYS_PER_YEAR = 365.25


def year_fraction(date: npt.ArrayLike) -> Array:
    """Turn dates into the decimal years that :class:`FlowField` takes.

    Parameters
    ----------
    date : array_like of datetime64
        Any resolution.

    Returns
    -------
    ndarray of float64
        ``1970 + days / 365.25``.
    """
    stamp = np.asarray(date, "datetime64[us]") - np.datetime64("1970-01-01", "us")
    return np.asarray(1970.0 + stamp / np.timedelta64(1, "D") / DAYS_PER_YEAR, np.float64)


@dataclass(frozen=True)
class FlowField:
    """A converging trunk with shear margins, in the metres of one grid CRS (EPSG:3413).

    Lengths in metres, speeds in metres per year. ``exx``, ``eyy``, ``exy`` are the tensor strain
    rates in 1/year (exy is half of the engineering shear).
    """

    origin: tuple[float, float] = (-170_000.0, -2_280_000.0)
    """x, y of the middle of the trunk."""
    azimuth: float = 133.0
    """Direction of flow, in degrees from +x toward +y (Jakobshavn runs so in EPSG:3413)."""
    background: float = 120.0
    """Speed far from the trunk."""
    trunk: float = 6_000.0
    """Speed that the trunk gains from its head to its front."""
    run: float = 9_000.0
    """Length over which it accelerates."""
    half_width: float = 3_000.0
    """Half width of the plug between the middles of the margins."""
    margin: float = 1_800.0
    """Width of a shear margin."""
    inflow: float = 300.0
    """Scale of the speed at which ice joins from the sides."""
    reach: float = 6_000.0
    """Distance from the axis at which the inflow fades."""
    trend: float = 0.02
    """Relative change a year."""
    season: float = 0.03
    """Relative amplitude of the seasonal term."""
    reference_year: float = 2019.0
    """Decimal year at which the trend is zero."""

    def factor(self, year: npt.ArrayLike) -> Array:
        """What multiplies the steady field at a decimal year."""
        t = np.asarray(year, np.float64)
        return np.asarray(
            1.0
            + self.trend * (t - self.reference_year)
            + self.season * np.sin(2.0 * np.pi * (t - np.floor(t)))
        )

    def velocity(
        self, x: npt.ArrayLike, y: npt.ArrayLike, year_fraction: npt.ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Velocity along the axes of the grid.

        Parameters
        ----------
        x, y : array_like
            Grid coordinates in metres; they broadcast.
        year_fraction : array_like, optional
            Decimal year (see :func:`year_fraction`), broadcast against x and y; None is the
            steady field.

        Returns
        -------
        vx, vy : ndarray of float64
            Metres of the grid a year.
        """
        s, n = self._frame(x, y)
        u = self.background + self.trunk * self._along(s) * self._across(n)
        w = -self.inflow * (n / self.reach) * np.exp(-((n / self.reach) ** 2))
        if year_fraction is not None:
            k = self.factor(year_fraction)
            u, w = k * u, k * w
        c, d = self._turn
        return c * u - d * w, d * u + c * w

    def strain(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """Exact strain rates of the steady field.

        Parameters
        ----------
        x, y : array_like
            Grid coordinates in metres; they broadcast.

        Returns
        -------
        exx, eyy, exy : ndarray of float64
            Tensor components along the axes of the grid, in 1/year.
        """
        s, n = self._frame(x, y)
        ratio = (n / self.reach) ** 2
        ess = self.trunk * self._across(n) / (2.0 * self.run * np.cosh(s / self.run) ** 2)
        enn = -self.inflow / self.reach * (1.0 - 2.0 * ratio) * np.exp(-ratio)
        left, right = (n + self.half_width) / self.margin, (n - self.half_width) / self.margin
        slope = (np.cosh(left) ** -2.0 - np.cosh(right) ** -2.0) / (2.0 * self.margin)
        esn = 0.5 * self.trunk * self._along(s) * slope
        c, d = self._turn
        return (
            c * c * ess - 2.0 * c * d * esn + d * d * enn,
            d * d * ess + 2.0 * c * d * esn + c * c * enn,
            c * d * (ess - enn) + (c * c - d * d) * esn,
        )

    @property
    def _turn(self) -> tuple[float, float]:
        return cos(radians(self.azimuth)), sin(radians(self.azimuth))

    def _frame(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Array, Array]:
        c, d = self._turn
        dx = np.asarray(x, np.float64) - self.origin[0]
        dy = np.asarray(y, np.float64) - self.origin[1]
        return c * dx + d * dy, c * dy - d * dx

    def _along(self, s: Array) -> Array:
        return np.asarray(0.5 * (1.0 + np.tanh(s / self.run)))

    def _across(self, n: Array) -> Array:
        left, right = (n + self.half_width) / self.margin, (n - self.half_width) / self.margin
        return np.asarray(0.5 * (np.tanh(left) - np.tanh(right)))
