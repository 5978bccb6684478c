"""Logarithmic rates against stakes that an independent solver moves, one after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firnline.cache.strain import strain_rates

integrate = pytest.importorskip("scipy.integrate")
interpolate = pytest.importorskip("scipy.interpolate")

Floats = NDArray[np.floating[Any]]


def solved(vx: Floats, vy: Floats, d: float, r: int, i: int, j: int) -> dict[str, float]:
    """Alley and others' rates of one pixel, north up, stakes moved to 1e-10 of a pixel."""
    window = (slice(i - r, i + r + 1), slice(j - r, j + r + 1))
    speed = math.hypot(vx[window].mean(), vy[window].mean())
    time = 0.1 * r * d / max(speed, 0.01)
    axes = (np.arange(vx.shape[0]), np.arange(vx.shape[1]))
    fields = [interpolate.RegularGridInterpolator(axes, v, bounds_error=True) for v in (vx, vy)]

    def velocity(_: float, at: Floats) -> list[float]:
        u, v = (float(field(at)[0]) for field in fields)
        return [-v / d, u / d]  # rows, columns a year

    ends = {}
    for name, row, column in (("c", 0, 0), ("n", -r, 0), ("e", 0, r), ("s", r, 0), ("w", 0, -r)):
        path = integrate.solve_ivp(
            velocity, (0, time), [i + row, j + column], rtol=1e-10, atol=1e-11, max_step=time / 20
        )
        ends[name] = np.array([path.y[1, -1], -path.y[0, -1]])  # x, y in pixels

    def rate(pairs: tuple[str, str], length: float) -> float:
        logs = [math.log(np.hypot(*(ends[p[0]] - ends[p[1]])) / length) for p in pairs]
        return sum(logs) / 2 / time

    a, c = rate(("cn", "cs"), r), rate(("cw", "ce"), r)
    b, d_ = rate(("wn", "se"), r * math.sqrt(2)), rate(("ne", "ws"), r * math.sqrt(2))
    we, sn = ends["e"] - ends["w"], ends["n"] - ends["s"]
    return {
        "exx": (b + d_ - a) / 4 + 0.75 * c,
        "eyy": 0.75 * a + (b + d_ - c) / 4,
        "exy": (b - d_) / 2,
        "vorticity": (math.atan2(we[1], we[0]) - math.atan2(sn[0], sn[1])) / time,
    }


def stream(seed: int, rough: float) -> tuple[Floats, Floats]:
    """An ice stream of 120 m pixels with margins, turning, and roughness in m/year."""
    y, x = np.mgrid[0:60, 0:60] * 120.0
    rng = np.random.default_rng(seed)
    speed = 100 + 1500 / (1 + ((y - 3600) / 700) ** 4)
    noise = rough * rng.standard_normal((2, 60, 60))
    return speed * np.cos(x / 5000) + noise[0], speed * np.sin(x / 5000) + noise[1]


@pytest.mark.parametrize(("radius", "rough"), [(1, 0.0), (1, 20.0), (3, 20.0), (6, 5.0), (14, 5.0)])
def test_equals_stakes_that_a_solver_moves(radius: int, rough: float) -> None:
    """Within a pixel by series, and beyond (radius 14, and at margins) by steps."""
    vx, vy = stream(radius, rough)
    got = strain_rates(vx, vy, dx=120, dy=-120, radius=radius, method="logarithmic")
    rng = np.random.default_rng(1)
    edge = 3 * radius // 2 + 2
    off = []
    for i, j in rng.integers(edge, 60 - edge, (12, 2)):
        want = solved(vx, vy, 120, radius, i, j)
        if np.isnan(got["exx"][i, j]):  # a stake went further than the half length
            continue
        size = max(abs(value) for value in want.values())
        off += [abs(got[name][i, j] - value) / size for name, value in want.items()]
    assert len(off) > 36
    assert np.median(off) < 1e-4
    # some stakes turn and enter another cell than the one they set out for
    assert max(off) < 5e-3


def test_south_up_and_west_up_grids_say_the_same() -> None:
    vx, vy = stream(3, 10.0)
    north = strain_rates(vx, vy, dx=120, dy=-120, radius=2, method="logarithmic")
    south = strain_rates(vx[::-1], vy[::-1], dx=120, dy=120, radius=2, method="logarithmic")
    west = strain_rates(vx[:, ::-1], vy[:, ::-1], dx=-120, dy=-120, radius=2, method="logarithmic")
    assert np.isfinite(north["exx"]).mean() > 0.7
    for name in ("exx", "eyy", "exy", "vorticity", "shear"):
        np.testing.assert_allclose(south[name][::-1], north[name], atol=1e-12, err_msg=name)
        np.testing.assert_allclose(west[name][:, ::-1], north[name], atol=1e-12, err_msg=name)


def test_no_result_where_a_stake_misses_something_or_leaves() -> None:
    vx, vy = np.full((21, 21), 100.0), np.full((21, 21), -40.0)
    vx[10, 10] = np.nan
    got = strain_rates(vx, vy, dx=120, dy=-120, radius=4, method="logarithmic")["exx"]
    missing = np.isnan(got)
    # the centre, the four stakes' centres, and those whose stakes pass: to the east and south
    for row, column in ((10, 10), (6, 10), (14, 10), (10, 6), (10, 14), (9, 10), (10, 9), (9, 9)):
        assert missing[row, column]
    assert not missing[11, 11]
    np.testing.assert_array_equal(got[~missing], 0)
    # a still centre amid fast ice: its mean gives no time that is short enough for its stakes
    x, y = np.meshgrid(np.arange(-10, 11) * 120.0, np.arange(10, -11, -1) * 120.0)
    got = strain_rates(0.1 * x, -0.1 * y, dx=120, dy=-120, radius=4, method="logarithmic")["exx"]
    assert np.isnan(got[10, 10])


def test_ice_that_stands_still_does_not_strain() -> None:
    still = np.zeros((15, 15))
    got = strain_rates(still, still, dx=120, dy=-120, radius=2, method="logarithmic")
    inner = (slice(3, -3), slice(3, -3))
    for name in ("exx", "eyy", "exy", "e1", "effective", "vorticity"):
        np.testing.assert_array_equal(got[name][inner], 0)
