"""Strain rates against analytic fields, a pixel-by-pixel least squares, and real velocities."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache.strain import ERROR_FIELDS, FIELDS, radius_for, strain_rates
from firnline.cache.strain_dataset import strain_dataset
from firnline.errors import CRSError, InputError

Floats = NDArray[np.floating[Any]]
SHARED = Path(os.environ.get("FIRNLINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
RATES = [name for name in FIELDS if name not in ERROR_FIELDS]
INVARIANTS = ("e1", "e2", "effective", "divergence", "vorticity", "longitudinal", "transverse")


def grid(
    ny: int = 15, nx: int = 17, d: float = 120.0, *, north_up: bool = True
) -> tuple[Floats, Floats]:
    """Coordinates in metres about the middle of the grid, (y, x)."""
    x = (np.arange(nx) - nx // 2) * d
    y = (np.arange(ny) - ny // 2) * (-d if north_up else d)
    gx, gy = np.meshgrid(x, y)
    return gx, gy


def linear(
    exx: float, eyy: float, exy: float, spin: float = 0.0, *, north_up: bool = True
) -> tuple[Floats, Floats]:
    """Velocity of a uniform strain rate and a spin, plus a mean flow."""
    x, y = grid(north_up=north_up)
    return 300 + exx * x + (exy - spin) * y, -200 + (exy + spin) * x + eyy * y


def brute(
    vx: Floats, vy: Floats, dx: float, dy: float, r: int, sx: Floats, sy: Floats
) -> dict[str, Floats]:
    """The same by np.linalg.lstsq at every pixel, errors from the pseudo-inverse."""
    out = {name: np.full(vx.shape, np.nan) for name in FIELDS}
    ny, nx = vx.shape
    ok = np.isfinite(vx) & np.isfinite(vy)
    for i, j in np.ndindex(ny, nx):
        cells = [
            (a, b)
            for a in range(max(0, i - r), min(ny, i + r + 1))
            for b in range(max(0, j - r), min(nx, j + r + 1))
            if ok[a, b]
        ]
        if not ok[i, j] or 2 * len(cells) < (2 * r + 1) ** 2:
            continue
        at = tuple(np.array(cells).T)
        design = np.stack([np.ones(len(cells)), (at[1] - j) * dx, (at[0] - i) * dy], axis=1)
        _, ux, uy = np.linalg.lstsq(design, vx[at])[0]
        _, wx, wy = np.linalg.lstsq(design, vy[at])[0]
        inverse = np.linalg.pinv(design)
        cu, cv = (inverse @ np.diag(s[at] ** 2) @ inverse.T for s in (sx, sy))
        tensor = np.array([[ux, (uy + wx) / 2], [(uy + wx) / 2, wy]])
        (e2, e1), vectors = np.linalg.eigh(tensor)
        n = vectors[:, 1]
        flow = np.array([vx[i, j], vy[i, j]]) / np.hypot(vx[i, j], vy[i, j])
        across = np.array([-flow[1], flow[0]])
        values = {
            "exx": ux,
            "eyy": wy,
            "exy": tensor[0, 1],
            "e1": e1,
            "e2": e2,
            "theta": math.atan(n[1] / n[0]),
            "effective": math.sqrt((e1**2 + e2**2 + (e1 + e2) ** 2) / 2),
            "longitudinal": flow @ tensor @ flow,
            "transverse": across @ tensor @ across,
            "shear": across @ tensor @ flow,
            "divergence": ux + wy,
            "vorticity": wx - uy,
            "exx_error": math.sqrt(cu[1, 1]),
            "eyy_error": math.sqrt(cv[2, 2]),
            "exy_error": math.sqrt(cu[2, 2] + cv[1, 1]) / 2,
        }
        for name, m in (("e1", n), ("e2", vectors[:, 0])):
            # d e / d(ux, uy) and d e / d(wx, wy) of a simple eigenvalue
            gu, gv = m[0] * m, m[1] * m
            values[f"{name}_error"] = math.sqrt(gu @ cu[1:, 1:] @ gu + gv @ cv[1:, 1:] @ gv)
        for name, value in values.items():
            out[name][i, j] = value
    return out


def assert_same(got: dict[str, Floats], want: dict[str, Floats], atol: float = 1e-9) -> None:
    for name, field in got.items():
        difference = field - want[name]
        if name == "theta":  # an axis: the same again after half a turn
            difference = (difference + np.pi / 2) % np.pi - np.pi / 2
            np.testing.assert_array_equal(np.isnan(field), np.isnan(want[name]))
            assert np.nanmax(np.abs(difference)) < 1e-6
        else:
            np.testing.assert_allclose(field, want[name], rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("north_up", [True, False])
@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize(
    ("tensor", "principal"),
    [
        ((0.02, -0.01, 0.0), (0.02, -0.01, math.sqrt(3e-4))),
        ((0.03, -0.03, 0.0), (0.03, -0.03, 0.03)),
        ((0.0, 0.0, 0.02), (0.02, -0.02, 0.02)),  # with the spin below: du/dy = 0.04
        ((0.01, 0.01, 0.0), (0.01, 0.01, 0.01 * math.sqrt(3))),
        (
            (0.02, -0.007, 0.009),
            (
                0.0065 + math.hypot(0.0135, 0.009),
                0.0065 - math.hypot(0.0135, 0.009),
                math.sqrt(4e-4 + 4.9e-5 - 1.4e-4 + 8.1e-5),
            ),
        ),
    ],
)
def test_known_answers(
    tensor: tuple[float, float, float],
    principal: tuple[float, float, float],
    radius: int,
    north_up: bool,
) -> None:
    exx, eyy, exy = tensor
    spin = -0.02
    vx, vy = linear(*tensor, spin, north_up=north_up)
    got = strain_rates(vx, vy, dx=120, dy=-120 if north_up else 120, radius=radius)
    want = {
        "exx": exx,
        "eyy": eyy,
        "exy": exy,
        "e1": principal[0],
        "e2": principal[1],
        "effective": principal[2],
        "divergence": exx + eyy,
        "vorticity": 2 * spin,
    }
    fitted = np.isfinite(got["exx"])
    # the grid's edges are fitted too, its corners (under half a window) are not
    assert fitted[radius:-radius].all()
    assert not fitted[0, 0]
    for name, value in want.items():
        np.testing.assert_allclose(got[name][fitted], value, rtol=0, atol=1e-9, err_msg=name)
    c, s = vx / np.hypot(vx, vy), vy / np.hypot(vx, vy)
    for name, flow in {
        "longitudinal": exx * c**2 + 2 * exy * c * s + eyy * s**2,
        "transverse": exx * s**2 - 2 * exy * c * s + eyy * c**2,
        "shear": (eyy - exx) * c * s + exy * (c**2 - s**2),
    }.items():
        np.testing.assert_allclose(got[name][fitted], flow[fitted], rtol=0, atol=1e-9)
    if principal[0] - principal[1] > 1e-6:
        theta = 0.5 * math.atan2(2 * exy, exx - eyy)
        np.testing.assert_allclose(got["theta"][fitted], theta, rtol=0, atol=1e-8)


def test_published_figures() -> None:
    vx, vy = linear(0.02, -0.007, 0.009)
    got = strain_rates(vx, vy, dx=120, dy=-120, radius=2)
    for name, value in (("e1", 0.022725), ("e2", -0.009725), ("effective", 0.01975)):
        assert got[name][7, 7] == pytest.approx(value, abs=3e-6)


def test_rigid_rotation_has_no_strain() -> None:
    x, y = grid()
    got = strain_rates(-0.05 * y, 0.05 * x, dx=120, dy=-120, radius=2)
    inner = (slice(2, -2), slice(2, -2))
    for name in RATES:
        if name not in ("theta", "vorticity", "longitudinal", "transverse", "shear"):
            np.testing.assert_allclose(got[name][inner], 0, rtol=0, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(got["vorticity"][inner], 0.1, rtol=0, atol=1e-12)
    # the middle does not move: it has no direction of flow
    assert np.isnan(got["longitudinal"][7, 8])
    assert np.isfinite(got["longitudinal"][7, 9])


def test_gaussian_vortex_within_truncation() -> None:
    d, scale, w0 = 20.0, 2000.0, 0.1
    x, y = grid(201, 201, d)
    g = w0 * np.exp(-(x**2 + y**2) / (2 * scale**2))
    got = strain_rates(-y * g, x * g, dx=d, dy=-d, radius=1)
    inner = (slice(1, -1), slice(1, -1))
    exx, exy = g * x * y / scale**2, 0.5 * g * (y**2 - x**2) / scale**2
    for name, want in {
        "exx": exx,
        "eyy": -exx,
        "exy": exy,
        "divergence": 0 * g,
        "e1": np.hypot(exx, exy),
        "vorticity": g * (2 - (x**2 + y**2) / scale**2),
    }.items():
        # the first neglected term is about (d / scale)^2 of the rate
        np.testing.assert_allclose(got[name][inner], want[inner], rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(("radius", "gain"), [(1, 0.976), (2, 0.922), (4, 0.747)])
def test_gain_of_a_2_km_wave(radius: int, gain: float) -> None:
    x, _ = grid(21, 201)
    k = 2 * np.pi / 2000
    got = strain_rates(100 * np.sin(k * x), 0 * x + 1, dx=120, dy=-120, radius=radius)
    assert got["exx"][10, 100] / (100 * k) == pytest.approx(gain, abs=6e-4)


@pytest.mark.parametrize("north_up", [True, False])
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("gaps", [0.0, 0.15, 0.45])
def test_equals_least_squares_at_every_pixel(radius: int, gaps: float, north_up: bool) -> None:
    rng = np.random.default_rng(radius * 100 + int(100 * gaps))
    shape = (14, 19)
    vx, vy = 900 + 30 * rng.standard_normal(shape), -400 + 30 * rng.standard_normal(shape)
    vx[rng.random(shape) < gaps / 2] = np.nan
    vy[rng.random(shape) < gaps / 2] = np.inf  # missing in one component only
    sx, sy = rng.uniform(1, 9, shape), rng.uniform(1, 9, shape)
    dx, dy = 120.0, -150.0 if north_up else 150.0
    got = strain_rates(vx, vy, dx=dx, dy=dy, radius=radius, vx_error=sx, vy_error=sy)
    vy[np.isinf(vy)] = np.nan
    assert list(got) == list(FIELDS)
    assert np.isfinite(got["exx"]).sum() > 40
    assert_same(got, brute(vx, vy, dx, dy, radius, sx, sy))


def test_blocks_join_without_a_seam() -> None:
    """Taller than a block of rows: the answer of the middle equals that of the middle alone."""
    rng = np.random.default_rng(5)
    vx, vy = rng.standard_normal((2, 150, 30)) * 100
    vx[60:70, 10:12] = np.nan
    whole = strain_rates(vx, vy, dx=100, dy=-100, radius=3, vx_error=2.0, vy_error=1.0)
    part = strain_rates(vx[50:90], vy[50:90], dx=100, dy=-100, radius=3, vx_error=2.0, vy_error=1.0)
    for name in FIELDS:
        np.testing.assert_allclose(whole[name][53:87], part[name][3:-3], rtol=1e-12, atol=1e-15)


def test_float32_stays_float32_and_close() -> None:
    rng = np.random.default_rng(6)
    vx, vy = 9000 + 50 * rng.standard_normal((2, 40, 40))
    vx[5, 5] = np.nan
    vx32, vy32 = vx.astype(np.float32), vy.astype(np.float32)
    single = strain_rates(vx32, vy32, dx=120, dy=-120, radius=2)
    double = strain_rates(vx32.astype(float), vy32.astype(float), dx=120, dy=-120, radius=2)
    for name in RATES:
        assert single[name].dtype == np.float32
        if name != "theta":
            np.testing.assert_allclose(single[name], double[name], rtol=0, atol=3e-7, err_msg=name)


@given(
    radius=st.integers(1, 3),
    holes=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 15)), max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_missing_pixels_stay_within_their_windows(
    radius: int, holes: list[tuple[int, int]], seed: int
) -> None:
    vx, vy = np.random.default_rng(seed).standard_normal((2, 18, 16)) * 100 + 500
    before = strain_rates(vx, vy, dx=120, dy=-120, radius=radius)
    near = np.zeros(vx.shape, bool)
    for i, j in holes:
        vx[i, j] = np.nan
        near[max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1] = True
    after = strain_rates(vx, vy, dx=120, dy=-120, radius=radius)
    for name in RATES:
        np.testing.assert_array_equal(after[name][~near], before[name][~near])
        assert np.isnan(after[name][np.isnan(vx)]).all()


def test_half_a_window_is_never_degenerate() -> None:
    """Every 3 x 3 window with its centre and at least 5 pixels has a plane (docstring's claim)."""
    cells = np.array(list(itertools.product(range(3), repeat=2)))
    for mask in itertools.product([False, True], repeat=9):
        there = np.array(mask)
        if not there[4] or there.sum() < 5:
            continue
        vx = np.full((3, 3), np.nan)
        vx[tuple(cells[there].T)] = (cells[there] @ [2.0, 3.0]) + 1
        got = strain_rates(vx, np.ones((3, 3)), dx=1, dy=1, radius=1)
        assert got["exx"][1, 1] == pytest.approx(3, abs=1e-9)
        assert got["exy"][1, 1] == pytest.approx(1, abs=1e-9)


@given(
    angle=st.floats(-math.pi, math.pi),
    tensor=st.tuples(*[st.floats(-0.05, 0.05)] * 4),
    radius=st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_invariants_do_not_turn_with_the_frame(
    angle: float, tensor: tuple[float, float, float, float], radius: int
) -> None:
    exx, eyy, exy, spin = tensor
    gradient = np.array([[exx, exy - spin], [exy + spin, eyy]])
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    x, y = grid(9, 9)
    mean = np.array([300.0, -200.0])
    fields = []
    for g, m in ((gradient, mean), (turn @ gradient @ turn.T, turn @ mean)):
        vx = m[0] + g[0, 0] * x + g[0, 1] * y
        vy = m[1] + g[1, 0] * x + g[1, 1] * y
        fields.append(strain_rates(vx, vy, dx=120, dy=-120, radius=radius))
    for name in (*INVARIANTS, "shear"):
        assert fields[1][name][4, 4] == pytest.approx(fields[0][name][4, 4], abs=1e-9), name
    if fields[0]["e1"][4, 4] - fields[0]["e2"][4, 4] > 1e-4:
        turned = fields[1]["theta"][4, 4] - fields[0]["theta"][4, 4] - angle
        assert abs((turned + np.pi / 2) % np.pi - np.pi / 2) < 1e-6


@given(
    motion=st.tuples(st.floats(-2e3, 2e3), st.floats(-2e3, 2e3), st.floats(-0.2, 0.2)),
    gaps=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_rigid_motion_changes_no_strain(motion: tuple[float, float, float], gaps: bool) -> None:
    x, y = grid()
    vx, vy = np.random.default_rng(1).standard_normal((2, *x.shape)) * 20
    if gaps:
        vx[3:5, 4:7] = np.nan
    one = strain_rates(vx, vy, dx=120, dy=-120, radius=2)
    two = strain_rates(
        vx + motion[0] - motion[2] * y,
        vy + motion[1] + motion[2] * x,
        dx=120,
        dy=-120,
        radius=2,
    )
    for name in ("exx", "eyy", "exy", "e1", "e2", "effective", "divergence"):
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(two["vorticity"], one["vorticity"] + 2 * motion[2], atol=1e-10)


# --- errors


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_error_formula(radius: int) -> None:
    vx, vy = linear(0.02, -0.01, 0.005)
    su, sv, dx, w = 4.0, 6.0, 120.0, 2 * radius + 1
    got = strain_rates(vx, vy, dx=dx, dy=-dx, radius=radius, vx_error=su, vy_error=sv)
    one = math.sqrt(3) / (dx * w * math.sqrt(radius * (radius + 1)))
    sxx, syy, sxy = su * one, sv * one, 0.5 * one * math.hypot(su, sv)
    t = 0.5 * math.atan2(0.01, 0.03)
    c, s = math.cos(t), math.sin(t)
    for name, value in {
        "exx_error": sxx,
        "eyy_error": syy,
        "exy_error": sxy,
        "e1_error": math.sqrt(c**4 * sxx**2 + s**4 * syy**2 + math.sin(2 * t) ** 2 * sxy**2),
        "e2_error": math.sqrt(s**4 * sxx**2 + c**4 * syy**2 + math.sin(2 * t) ** 2 * sxy**2),
    }.items():
        assert got[name][7, 8] == pytest.approx(value, rel=1e-9), name


def test_errors_agree_with_monte_carlo_with_gaps() -> None:
    rng = np.random.default_rng(11)
    vx, vy = linear(0.03, -0.02, 0.012)
    vx[6:9, 9] = np.nan
    vx[4, 3:6] = np.nan
    su, sv = rng.uniform(2, 6, vx.shape), rng.uniform(2, 6, vx.shape)
    stated = strain_rates(vx, vy, dx=120, dy=-120, radius=2, vx_error=su, vy_error=sv)
    runs = [
        strain_rates(
            vx + su * rng.standard_normal(vx.shape),
            vy + sv * rng.standard_normal(vx.shape),
            dx=120,
            dy=-120,
            radius=2,
        )
        for _ in range(1500)
    ]
    fitted = np.isfinite(stated["exx"])
    for name in ("exx", "eyy", "exy", "e1", "e2"):
        spread = np.std([run[name][fitted] for run in runs], axis=0)
        # 1500 runs know a standard deviation to 1.8 %; 5 of those bound the worst of 250 pixels
        np.testing.assert_allclose(spread, stated[f"{name}_error"][fitted], rtol=0.1, err_msg=name)


def test_noise_bias_of_e1_and_effective() -> None:
    """Zero strain with 0.005 per year of noise in each component: facts of shared/strain."""
    d, sigma = 120.0, 0.005
    per_metre = sigma * d * 3 * math.sqrt(2) / math.sqrt(3)  # so that exx has that error, r = 1
    vx, vy = np.random.default_rng(2).standard_normal((2, 400, 400)) * per_metre
    got = strain_rates(vx, vy, dx=d, dy=-d, radius=1, vx_error=per_metre, vy_error=per_metre)
    assert got["exx_error"][5, 5] == pytest.approx(sigma)
    # e1 is Rayleigh distributed with sigma / sqrt(2)
    assert np.nanmean(got["e1"]) == pytest.approx(sigma * math.sqrt(math.pi) / 2, rel=0.02)
    assert np.nanmean(got["e1"]) == pytest.approx(0.0044, abs=1e-4)
    assert np.nanmean(got["effective"]) == pytest.approx(0.0072, abs=1e-4)


def test_unusable_errors_cost_the_errors_only() -> None:
    vx, vy = linear(0.02, -0.01, 0.0)
    sx = np.full(vx.shape, 3.0)
    sx[7, 8] = np.nan
    sx[2, 2] = -1
    got = strain_rates(vx, vy, dx=120, dy=-120, radius=1, vx_error=sx, vy_error=2.0)
    assert np.isfinite(got["exx"][6:9, 7:10]).all()
    for name in ("exx_error", "exy_error", "e1_error", "e2_error"):
        assert np.isnan(got[name][6, 7]), name
        assert np.isnan(got[name][1, 1]), name
        assert np.isfinite(got[name][10, 10]), name
    assert np.isfinite(got["eyy_error"][6, 7])


# --- arguments


def test_radius_for() -> None:
    assert radius_for(500, 120) == (4, 480)
    assert radius_for(500, -120) == (4, 480)
    assert radius_for(120, 120.00000001)[0] == 1
    assert radius_for(540, 120) == (5, 600)
    for length in (119.0, 0.0, -500.0, math.nan, math.inf):
        with pytest.raises(InputError, match="accepted is 120 m"):
            radius_for(length, 120)
    with pytest.raises(InputError, match="spacing"):
        radius_for(500, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vx": np.ones(5)}, "shape"),
        ({"vx": np.ones((5, 6))}, "shape"),
        ({"vx": np.ones((5, 5), complex)}, "type"),
        ({"dx": 0.0}, "dx"),
        ({"dy": math.nan}, "dy"),
        ({"radius": 0}, "radius"),
        ({"radius": 1.5}, "radius"),
        ({"vx_error": 1.0}, "both"),
        ({"vx_error": 1.0, "vy_error": np.ones(5)}, "vy_error"),
        ({"fields": ["e3"]}, "e3"),
        ({"fields": ["e1_error"]}, "without"),
    ],
)
def test_bad_arguments(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {
        "vx": np.ones((5, 5)),
        "vy": np.ones((5, 5)),
        "dx": 1.0,
        "dy": -1.0,
        "radius": 1,
    }
    with pytest.raises(InputError, match=match):
        strain_rates(**{**arguments, **change})


def test_chosen_fields_only() -> None:
    vx, vy = linear(0.02, -0.01, 0.003)
    whole = strain_rates(vx, vy, dx=120, dy=-120, radius=1, vx_error=1.0, vy_error=1.0)
    for name in FIELDS:
        one = strain_rates(
            vx, vy, dx=120, dy=-120, radius=1, vx_error=1.0, vy_error=1.0, fields=[name]
        )
        assert list(one) == [name]
        np.testing.assert_array_equal(one[name], whole[name])


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (1, 9), (2, 2)])
def test_tiny_grids_have_no_answer(shape: tuple[int, int]) -> None:
    got = strain_rates(np.ones(shape), np.ones(shape), dx=1, dy=1, radius=1)
    assert got["exx"].shape == shape
    assert np.isnan(got["exx"]).all()


def test_all_missing_and_integers() -> None:
    nothing = np.full((9, 9), np.nan, np.float32)
    assert np.isnan(strain_rates(nothing, nothing, dx=1, dy=1, radius=1)["e1"]).all()
    ramp: Any = np.tile(np.arange(9, dtype=np.int16), (9, 1))
    got = strain_rates(ramp, 0 * ramp + 1, dx=1, dy=1, radius=1)
    assert got["exx"].dtype == np.float64
    assert got["exx"][4, 4] == 1


# --- datasets


def dataset(shape: tuple[int, ...] = (15, 17)) -> xr.Dataset:
    vx, vy = linear(0.02, -0.01, 0.003)
    dims = ("time", "y", "x")[-len(shape) :]
    ds = xr.Dataset(
        {
            "vx": (dims, np.broadcast_to(vx, shape).astype(np.float32), {"units": "meter/year"}),
            "vy": (dims, np.broadcast_to(vy, shape).astype(np.float32), {"units": "meter/year"}),
        },
        coords={"y": -2e6 - 120.0 * np.arange(15), "x": 4e5 + 120.0 * np.arange(17)},
    )
    done: xr.Dataset = ds.rio.write_crs(3413, grid_mapping_name="mapping")
    return done


@pytest.fixture(autouse=True, scope="module")
def _rio() -> None:
    pytest.importorskip("rioxarray")


def test_dataset_of_one_layer() -> None:
    got = strain_dataset(dataset(), length_scale=250)
    assert list(got.data_vars) == RATES
    assert got["exx"].dims == ("y", "x")
    assert got["exx"].dtype == np.float32
    assert got["exx"].attrs["units"] == "year-1"
    assert got["theta"].attrs["units"] == "radian"
    assert got["exx"].attrs["grid_mapping"] == "mapping"
    assert got["mapping"].attrs["crs_wkt"]
    assert got.rio.crs.to_epsg() == 3413
    assert got.attrs["strain_radius"] == 2
    assert got.attrs["strain_half_length_asked"] == 250
    assert got.attrs["strain_half_length"] == 240
    assert "grid metres" in got.attrs["strain_scale_convention"]
    assert got["exx"].values[7, 8] == pytest.approx(0.02, abs=1e-6)
    assert got["eyy"].values[7, 8] == pytest.approx(-0.01, abs=1e-6)


def test_dataset_of_layers_with_errors_any_order_of_dims() -> None:
    ds = dataset((3, 15, 17)).assign_coords(time=[1, 2, 3])
    ds["vx_error"] = ("time", np.array([1.0, 2.0, 4.0]))
    ds["vy_error"] = ("time", np.array([1.0, 2.0, 4.0]))
    got = strain_dataset(ds.transpose("x", "time", "y"), length_scale=120, fields=["exx_error"])
    assert got["exx_error"].dims == ("time", "y", "x")
    np.testing.assert_array_equal(got["time"], [1, 2, 3])
    want = np.array([1, 2, 4]) * math.sqrt(3) / (120 * 3 * math.sqrt(2))
    np.testing.assert_allclose(got["exx_error"].values[:, 7, 8], want, rtol=1e-6)
    ds["vx_error"] = (("time", "y", "x"), np.full((3, 15, 17), 2.0))
    got = strain_dataset(ds, length_scale=120, fields=["exx_error"])
    np.testing.assert_allclose(got["exx_error"].values[:, 7, 8], want[1], rtol=1e-6)


def test_dataset_south_up_gives_the_same_place_the_same_answer() -> None:
    ds = dataset()
    ds["vx"] += 5 * np.random.default_rng(3).standard_normal((15, 17)).astype(np.float32)
    north, south = strain_dataset(ds), strain_dataset(ds.isel(y=slice(None, None, -1)))
    for name in RATES:
        np.testing.assert_allclose(south[name].sel(y=ds.y), north[name], atol=1e-6, err_msg=name)


def test_dataset_of_undecoded_integers() -> None:
    x, _ = grid()
    raw = np.round(0.05 * x).astype(np.int16)
    raw[7, 8] = -32767
    ds = dataset()
    for name in ("vx", "vy"):
        ds[name] = (("y", "x"), raw, {"_FillValue": np.int16(-32767)})
    got = strain_dataset(ds, length_scale=120)
    assert np.isnan(got["exx"].values[7, 8])
    assert got["exx"].values[7, 9] == pytest.approx(0.05, abs=1e-6)
    del ds["vx"].attrs["_FillValue"]
    with pytest.raises(InputError, match="_FillValue"):
        strain_dataset(ds)


def test_dataset_reads_the_crs_of_a_cube_as_it_is() -> None:
    """ITS_LIVE's cubes: a ``mapping`` variable among the data, named by no attribute here."""
    ds = dataset().drop_vars("mapping")
    ds["mapping"] = xr.DataArray(b"")
    ds["mapping"].attrs = {"spatial_epsg": 3413, "grid_mapping_name": "polar_stereographic"}
    for name in ("vx", "vy"):
        ds[name].attrs.pop("grid_mapping", None)
        ds[name].encoding.pop("grid_mapping", None)
    got = strain_dataset(ds)
    assert got["e1"].attrs["grid_mapping"] == "mapping"
    assert got["mapping"].attrs["spatial_epsg"] == 3413


def _bad(ds: xr.Dataset, how: str) -> tuple[xr.Dataset, float]:
    length = 500.0
    if how == "no vy":
        ds = ds.drop_vars("vy")
    elif how == "no CRS":
        ds = ds.drop_vars("mapping")
    elif how == "empty mapping":
        ds["mapping"].attrs = {}
    elif how == "geographic":
        ds = ds.rio.write_crs(4326, grid_mapping_name="mapping")
    elif how == "feet":
        ds = ds.rio.write_crs(2225, grid_mapping_name="mapping")
    elif how == "unequal":
        x = ds.x.values.copy()
        x[4:] += 60
        ds = ds.assign_coords(x=x)
    elif how == "oblong":
        ds = ds.assign_coords(y=ds.y.values[0] - 240.0 * np.arange(15))
    elif how == "no x":
        ds = ds.drop_vars("x")
    elif how == "dims":
        ds = ds.expand_dims(a=1, b=1)
    elif how == "days":
        ds["vx"].attrs["units"] = "m/day"
    elif how == "short":
        length = 119.0
    elif how == "long":
        length = 1000.0
    return ds, length


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("no vy", InputError, "no variable vy"),
        ("no CRS", CRSError, "no CRS"),
        ("empty mapping", CRSError, "not a readable CRS"),
        ("geographic", CRSError, "not a projected CRS"),
        ("feet", CRSError, "not in metres"),
        ("unequal", InputError, "unequal spacing along x"),
        ("oblong", InputError, "unequal spacing, 120 m in x and 240 m in y"),
        ("no x", InputError, "coordinate x"),
        ("dims", InputError, "accepted is"),
        ("days", InputError, "per year"),
        ("short", InputError, "under one pixel"),
        ("long", InputError, "longer than the grid"),
    ],
)
def test_bad_datasets(how: str, error: type[Exception], match: str) -> None:
    ds, length = _bad(dataset(), how)
    with pytest.raises(error, match=match) as caught:
        strain_dataset(ds, length)
    assert "\n" not in str(caught.value)


# --- real velocities


@pytest.mark.parametrize(
    ("stem", "spacing"), [("mosaic_crop_ala", 120.0), ("store_2018_200m", 200.0)]
)
def test_real_mosaic_equals_brute_force(stem: str, spacing: float) -> None:
    if not (SHARED / f"{stem}_vx.tif").exists():
        pytest.skip("shared data not here")
    rasterio = pytest.importorskip("rasterio")
    layers = []
    for component in ("vx", "vy"):
        with rasterio.open(SHARED / f"{stem}_{component}.tif") as src:
            layers.append(src.read(1, masked=True).astype(float).filled(np.nan))
    vx, vy = layers
    got = strain_rates(vx, vy, dx=spacing, dy=-spacing, radius=2)
    # a window around missing data and the edge, by least squares pixel by pixel
    missing = np.argwhere(np.isnan(vx))
    i, j = missing[len(missing) // 2] if len(missing) else (30, 30)
    a, b = max(0, int(i) - 20), max(0, int(j) - 20)
    sub = (slice(a, a + 40), slice(b, b + 40))
    ones = np.ones(vx[sub].shape)
    want = brute(vx[sub], vy[sub], spacing, -spacing, 2, ones, ones)
    inner = (slice(2, -2), slice(2, -2))
    for name in RATES:
        mine = got[name][sub][inner]
        if name != "theta":
            np.testing.assert_allclose(mine, want[name][inner], rtol=0, atol=1e-9, err_msg=name)
    # and everywhere against the independent two-point gradient averaged along the other axis
    plain = strain_rates(vx, vy, dx=spacing, dy=-spacing, radius=1)
    gradient = np.gradient(vx, spacing, axis=1)
    mean = (gradient[:-2] + gradient[1:-1] + gradient[2:]) / 3
    both = np.lib.stride_tricks.sliding_window_view(np.isfinite(vx + vy), (3, 3)).all((2, 3))
    np.testing.assert_allclose(
        plain["exx"][1:-1, 1:-1][both], mean[:, 1:-1][both], rtol=0, atol=1e-12
    )
    assert both.mean() > 0.4
