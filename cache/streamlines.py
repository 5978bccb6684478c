"""Streamlines of a velocity field on a grid. Pure.

A streamline is followed by arc length, ``d(x, y)/ds = v/|v|``, so that a step is so many metres
wherever the ice is fast or slow; the time that the ice takes is the integral of ``ds/|v|`` along
it. Both by the classical Runge-Kutta method of fourth order (for the time it is Simpson's rule),
the velocity between the pixels' centres by bilinear interpolation.

The field is steady: a streamline of it is the way of a parcel of ice only while the flow does not
change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firnline.cache.grid import Grid, interpolate
from firnline.errors import InputError

Floats = NDArray[np.floating[Any]]
Direction = Literal["both", "downstream", "upstream"]
End = Literal["edge", "no data", "slow", "length"]

_SHORTEST = 16  # parts of a step, in which the end of the field is approached
_NOTHING = 1e-9  # of a step: what rounding leaves of a length


@dataclass(frozen=True)
class Streamline:
    """One streamline, its vertices from upstream to downstream, all ``(vertex,)``."""

    x: Floats
    y: Floats
    """In metres of the grid."""
    distance: Floats
    """Metres of the grid along the line from its upstream end."""
    time: Floats
    """Years that the ice takes from there."""
    seed: int
    """Vertex at which it was begun."""
    ends: tuple[End, End]
    """Why it ends upstream and downstream: at the edge of the grid, where there is no data, where
    the ice is slower than asked for, or as long as asked for."""


def streamlines(
    vx: Floats,
    vy: Floats,
    grid: Grid,
    x: Floats,
    y: Floats,
    *,
    step: float,
    max_length: float,
    direction: Direction = "both",
    min_speed: float = 0.0,
) -> list[Streamline | None]:
    """Follow the streamlines through some points.

    Parameters
    ----------
    vx, vy : ndarray, shape (y, x)
        Components along the axes of the grid in m/year, NaN where there is none.
    grid : Grid
    x, y : ndarray, shape (point,)
        The seeds, in metres of the grid.
    step : float
        Between two vertices, in metres. The last ones at an edge of the field are closer.
    max_length : float
        How far to go in each direction, in metres.
    direction : {"both", "downstream", "upstream"}
    min_speed : float
        Where to stop, in m/year; ice at rest has no direction.

    Returns
    -------
    list of Streamline or None
        One for each seed; None where there is no velocity at it.

    Raises
    ------
    InputError
        A length that is not positive, or not finite.
    """
    for name, length in (("step", step), ("max_length", max_length)):
        if not 0 < length < np.inf:
            raise InputError(f"{name} {length:g} m: accepted is a positive number")
    flow = _Flow(np.stack([vx, vy]).astype(np.float64), grid, min_speed)
    seeds = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)])
    ways = {
        sign: _follow(flow, seeds, sign, step, max_length)
        for sign, name in ((-1, "upstream"), (1, "downstream"))
        if direction in ("both", name)
    }
    still = np.isnan(flow.at(seeds)[1])
    nowhere: _Way = (np.empty((4, 0)), "length")
    lines: list[Streamline | None] = []
    for n, seed in enumerate(seeds.T):
        if still[n]:
            lines.append(None)
            continue
        (up, head), (down, tail) = (ways[sign][n] if sign in ways else nowhere for sign in (-1, 1))
        behind = up[:, ::-1] * np.array([[1], [1], [-1], [-1]])
        px, py, distance, time = np.hstack([behind, np.array([[*seed, 0, 0]]).T, down])
        line = Streamline(px, py, distance - distance[0], time - time[0], up.shape[1], (head, tail))
        lines.append(line)
    return lines


_Way: TypeAlias = tuple[Floats, End]
"""Vertices behind a seed, ``(4, vertex)``: x, y, distance and time from it; and why they end."""


@dataclass(frozen=True)
class _Flow:
    field: Floats
    grid: Grid
    min_speed: float

    def at(self, place: Floats) -> tuple[Floats, Floats]:
        """Direction ``(2, point)`` and speed ``(point,)``; NaN where there is none."""
        velocity = interpolate(self.field, *self.grid.locate(*place))
        speed = np.hypot(*velocity)
        speed = np.where(speed > self.min_speed, speed, np.nan)
        return velocity / speed, speed

    def end(self, place: Floats) -> list[End]:
        """What there is at some places where no line goes on."""
        row, column = self.grid.locate(*place)
        ny, nx = self.field.shape[1:]
        outside = (row < 0) | (row > ny - 1) | (column < 0) | (column > nx - 1)
        empty = np.isnan(interpolate(self.field, row, column)).any(axis=0)
        kinds: tuple[End, ...] = ("edge", "no data", "slow")
        return [kinds[kind] for kind in np.select([outside, empty], [0, 1], 2)]


def _follow(flow: _Flow, seeds: Floats, sign: int, step: float, max_length: float) -> list[_Way]:
    """Go all the ways at a time, as each step is a few operations on arrays."""
    state = np.vstack([seeds, np.zeros_like(seeds)])  # x, y, distance, time
    steps = np.full(seeds.shape[1], float(step))
    active = np.arange(seeds.shape[1])
    seen: list[tuple[NDArray[np.intp], Floats]] = []
    while active.size:
        here = state[:, active]
        h = np.minimum(steps[active], max_length - here[2])
        slope, change = np.zeros_like(here[:2]), np.zeros_like(here)
        for reach, weight in ((0.0, 1 / 6), (0.5, 1 / 3), (0.5, 1 / 3), (1.0, 1 / 6)):
            slope, speed = flow.at(here[:2] + reach * h * slope)
            slope *= sign
            change += weight * h * np.vstack([slope, np.ones_like(h), 1 / speed])
        good = ~np.isnan(flow.at(here[:2] + change[:2])[1]) & ~np.isnan(change[3])
        state[:, active[good]] += change[:, good]
        seen.append((active[good], state[:, active[good]]))
        # a step that leaves the field is tried again with half of it
        steps[active[~good]] /= 2
        left = max_length - state[2, active]
        active = active[(steps[active] >= step / _SHORTEST) & (left > _NOTHING * step)]
    ahead = sign * np.nan_to_num(flow.at(state[:2])[0]) * step / _SHORTEST
    ends = flow.end(state[:2] + ahead)
    which = np.concatenate([index for index, _ in seen] or [active])
    vertices = np.concatenate([part for _, part in seen] or [state[:, active]], axis=1)
    order = np.argsort(which, kind="stable")
    cuts = np.cumsum(np.bincount(which, minlength=seeds.shape[1]))
    parts = np.split(vertices[:, order], cuts, axis=1)[:-1]
    return [
        (part, "length" if max_length - state[2, n] <= _NOTHING * step else ends[n])
        for n, part in enumerate(parts)
    ]
