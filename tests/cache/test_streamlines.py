"""Streamlines of fields whose streamlines are known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyproj
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache.grid import Grid, interpolate
from firnline.cache.streamlines import Streamline, streamlines
from firnline.errors import InputError

Floats = NDArray[np.floating]

GRID = Grid(
    np.arange(-4950, 5000, 100.0), np.arange(3950, -4000, -100.0), pyproj.CRS.from_epsg(3413)
)
X, Y = np.meshgrid(GRID.x, GRID.y)


def follow(vx: Any, vy: Any, x: float, y: float, **how: Any) -> Streamline:
    how = {"step": 50.0, "max_length": 1e5, **how}
    one = np.ones(X.shape)
    (line,) = streamlines(vx * one, vy * one, GRID, np.array([x]), np.array([y]), **how)
    assert line is not None
    return line


# --- interpolation


@given(
    a=st.floats(-5, 5), b=st.floats(-5, 5), c=st.floats(-900, 900),
    row=st.floats(0, 79), column=st.floats(0, 99), flip=st.booleans(),
)  # fmt: skip
def test_bilinear_is_exact_on_linear_fields(
    a: float, b: float, c: float, row: float, column: float, flip: bool
) -> None:
    grid = Grid(GRID.x, GRID.y[::-1], GRID.crs) if flip else GRID
    x, y = np.meshgrid(grid.x, grid.y)
    px = grid.x[0] + column * (grid.x[1] - grid.x[0])
    py = grid.y[0] + row * (grid.y[1] - grid.y[0])
    at = grid.locate(np.array([px]), np.array([py]))
    got = interpolate(a * x + b * y + c, *at)
    assert got[0] == pytest.approx(a * px + b * py + c, abs=1e-7)


def test_bilinear_beside_a_gap() -> None:
    field = np.array([[0.0, 10.0, 20.0], [40.0, 50.0, np.nan]])
    rows, columns = np.array([0.5, 0, 0.5, 0.9, 1, -0.1]), np.array([0.5, 2, 1, 1.1, 1, 0])
    # halfway between two good pixels the gap beside them has no part
    np.testing.assert_allclose(interpolate(field, rows, columns), [25, 20, 30, np.nan, 50, np.nan])


def test_one_row_of_pixels() -> None:
    field = np.array([[1.0, 2.0, 4.0]])
    np.testing.assert_allclose(interpolate(field, np.zeros(3), np.array([0, 0.5, 2])), [1, 1.5, 4])


# --- streamlines


@given(speed=st.floats(1, 9000), angle=st.floats(0, 2 * math.pi), step=st.floats(10, 400))
@settings(max_examples=50)
def test_uniform_flow_is_a_straight_line_in_its_time(
    speed: float, angle: float, step: float
) -> None:
    vx, vy = speed * math.cos(angle), speed * math.sin(angle)
    line = follow(vx, vy, 300.0, -200.0, step=step, max_length=2000.0)
    along = (line.x - 300) * math.cos(angle) + (line.y + 200) * math.sin(angle)
    across = (line.y + 200) * math.cos(angle) - (line.x - 300) * math.sin(angle)
    np.testing.assert_allclose(across, 0, atol=1e-6)
    np.testing.assert_allclose(along, line.distance - 2000, atol=1e-6)
    assert line.distance[-1] == pytest.approx(4000)
    np.testing.assert_allclose(line.time, line.distance / speed, rtol=1e-9)
    assert (line.x[line.seed], line.y[line.seed]) == (300, -200)
    assert line.ends == ("length", "length")
    assert np.diff(line.distance).max() <= step * (1 + 1e-9)


@pytest.mark.parametrize("turn", [1, -1])
def test_rotation_gives_circles_that_close(turn: int) -> None:
    rate = 0.3 * turn  # radians a year
    around = 2 * math.pi * 3000
    line = follow(-rate * Y, rate * X, 3000, 0, max_length=around, direction="downstream")
    np.testing.assert_allclose(np.hypot(line.x, line.y), 3000, atol=1e-4)
    assert (line.x[-1], line.y[-1]) == pytest.approx((3000, 0), abs=1e-4)
    assert line.time[-1] == pytest.approx(2 * math.pi / 0.3, rel=1e-8)
    quarter = int(np.argmin(np.abs(line.distance - around / 4)))
    assert math.copysign(1, line.y[quarter]) == turn
    assert line.seed == 0
    back = follow(-rate * Y, rate * X, 3000, 0, max_length=around, direction="upstream")
    assert math.copysign(1, back.y[len(back.y) // 4]) == turn
    assert back.seed == len(back.x) - 1


def test_the_error_falls_with_the_fourth_power_of_the_step() -> None:
    off = []
    for step in (800.0, 400.0, 200.0, 100.0):
        line = follow(
            -Y, X, 2000, 0, step=step, max_length=2 * math.pi * 2000, direction="downstream"
        )
        off.append(abs(line.time[-1] - 2 * math.pi))
    for wide, close in itertools.pairwise(off):
        assert 14 < wide / close < 24


def test_travel_time_in_extending_flow() -> None:
    """u = u0 + e x: t = ln(u(x1) / u(x0)) / e, at any step to the fourth order."""
    rate, speed = 0.02, 300.0
    line = follow(speed + rate * X, 0.0, -4000, 50, max_length=7000, direction="downstream")
    want = np.log((speed + rate * line.x) / (speed + rate * line.x[0])) / rate
    np.testing.assert_allclose(line.time, want, rtol=1e-7, atol=1e-9)


def test_hyperbolas_of_pure_strain() -> None:
    """(u, v) = e (x, -y): the product xy stays."""
    line = follow(0.1 * X, -0.1 * Y, 1000, 1000, step=25.0)
    np.testing.assert_allclose(line.x * line.y, 1e6, rtol=1e-5)
    assert line.ends == ("edge", "edge")
    np.testing.assert_allclose(line.time[-1], math.log(line.x[-1] / line.x[0]) / 0.1, rtol=1e-7)


def test_lines_end_at_edges_gaps_and_slow_ice() -> None:
    east = follow(500.0, 0.0, 0, 0)
    # within a sixteenth of a step of the outer centres
    assert GRID.x[-1] - 50 / 16 <= east.x[-1] <= GRID.x[-1]
    assert GRID.x[0] <= east.x[0] <= GRID.x[0] + 50 / 16
    assert east.ends == ("edge", "edge")
    gap = np.where(X > 2000, np.nan, 500.0)  # the last good centre is at 1950
    stopped = follow(gap, 0.0, 0, 0)
    assert 1950 - 50 / 16 <= stopped.x[-1] <= 1950
    assert stopped.ends == ("edge", "no data")
    slowing = follow(500.0 - 0.1 * X, 0.0, 0, 0, min_speed=300.0)
    assert 2000 - 50 / 16 - 1e-6 <= slowing.x[-1] <= 2000
    assert slowing.ends == ("edge", "slow")
    assert slowing.time[-1] == pytest.approx(
        10 * math.log((500 - 0.1 * slowing.x[0]) / (500 - 0.1 * slowing.x[-1])), rel=1e-6
    )


def test_many_seeds_are_those_one_by_one_and_some_are_nowhere() -> None:
    rng = np.random.default_rng(5)
    vx = 200 + 100 * np.sin(X / 3000) * np.cos(Y / 2000)
    vy = 150 * np.cos(X / 2500)
    vx[30:40, 20:40] = np.nan
    x, y = rng.uniform(-5500, 5500, 40), rng.uniform(-4500, 4500, 40)
    how: dict[str, Any] = {"step": 60.0, "max_length": 3000.0}
    together = streamlines(vx, vy, GRID, x, y, **how)
    known = ~np.isnan(interpolate(vx, *GRID.locate(x, y)))
    assert 0 < known.sum() < 40
    for n, line in enumerate(together):
        assert (line is not None) == known[n]
        (alone,) = streamlines(vx, vy, GRID, x[n : n + 1], y[n : n + 1], **how)
        if line is None:
            assert alone is None
            continue
        assert alone is not None
        np.testing.assert_array_equal(line.x, alone.x)
        np.testing.assert_array_equal(line.time, alone.time)
        assert line.ends == alone.ends
        assert (line.x[line.seed], line.y[line.seed]) == (x[n], y[n])
        assert (np.diff(line.time) > 0).all()
        np.testing.assert_allclose(
            np.hypot(np.diff(line.x), np.diff(line.y)), np.diff(line.distance), rtol=1e-3
        )


def test_no_seeds_no_lines() -> None:
    none = np.empty(0)
    assert streamlines(X, Y, GRID, none, none, step=1.0, max_length=1.0) == []


@pytest.mark.parametrize(
    "bad", [{"step": 0.0}, {"step": math.nan}, {"max_length": -1.0}, {"max_length": math.inf}]
)
def test_bad_lengths(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="accepted is a positive number"):
        follow(1.0, 0.0, 0, 0, **bad)
