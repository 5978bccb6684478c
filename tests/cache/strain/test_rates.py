"""Strain rates against analytic fields, a pixel-by-pixel least squares, and Monte Carlo."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache.strain import (
    ERROR_FIELDS,
    FIELDS,
    METHODS,
    STRESS_FIELDS,
    FlowLaw,
    Method,
    radius_grid,
    strain_rates,
)
from firnline.errors import InputError

Floats = NDArray[np.floating[Any]]
# plane and nominal are exact for a uniform strain rate; logarithmic means another thing by it
WITHIN: dict[Method, float] = {"plane": 1e-9, "nominal": 1e-9, "logarithmic": 2e-4}
every_method = pytest.mark.parametrize("method", METHODS)
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
    vx: Floats,
    vy: Floats,
    dx: float,
    dy: float,
    r: int,
    sx: Floats,
    sy: Floats,
    method: Method = "plane",
    gaps: str = "fit",
) -> dict[str, Floats]:
    """The same by np.linalg.lstsq at every pixel, errors from the pseudo-inverse."""
    steps = range(-r, r + 1)
    window = list(itertools.product(steps, steps))
    if method == "nominal":
        window = [(0, 0), (r, 0), (-r, 0), (0, r), (0, -r)]
    out = {name: np.full(vx.shape, np.nan) for name in FIELDS}
    ny, nx = vx.shape
    ok = np.isfinite(vx) & np.isfinite(vy)
    for i, j in np.ndindex(ny, nx):
        cells = [
            (i + a, j + b)
            for a, b in window
            if 0 <= i + a < ny and 0 <= j + b < nx and ok[i + a, j + b]
        ]
        least = len(window) if gaps == "strict" else len(window) / 2
        if not ok[i, j] or len(cells) < least:
            continue
        at = tuple(np.array(cells).T)
        design = np.stack([np.ones(len(cells)), (at[1] - j) * dx, (at[0] - i) * dy], axis=1)
        if np.linalg.matrix_rank(design) < 3:
            continue
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
            assert (np.abs(difference[np.isfinite(difference)]) < 1e-6).all()
        else:
            np.testing.assert_allclose(field, want[name], rtol=0, atol=atol, err_msg=name)


@every_method
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
    method: Method,
) -> None:
    exx, eyy, exy = tensor
    spin = -0.02
    vx, vy = linear(*tensor, spin, north_up=north_up)
    dy, within = -120 if north_up else 120, WITHIN[method]
    got = strain_rates(vx, vy, dx=120, dy=dy, radius=radius, method=method)
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
    if method == "logarithmic":  # needs all stakes, and a pixel more where they go
        assert fitted[radius + 1 : -radius - 1, radius + 1 : -radius - 1].all()
        assert not fitted[: radius - 1].any()
    else:  # the grid's edges are fitted too; of the corners, three stakes are enough
        assert fitted[radius:-radius].all()
        assert fitted[0, 0] == (method == "nominal")
    for name, value in want.items():
        np.testing.assert_allclose(got[name][fitted], value, rtol=0, atol=within, err_msg=name)
    c, s = vx / np.hypot(vx, vy), vy / np.hypot(vx, vy)
    for name, flow in {
        "longitudinal": exx * c**2 + 2 * exy * c * s + eyy * s**2,
        "transverse": exx * s**2 - 2 * exy * c * s + eyy * c**2,
        "shear": (eyy - exx) * c * s + exy * (c**2 - s**2),
    }.items():
        np.testing.assert_allclose(got[name][fitted], flow[fitted], rtol=0, atol=within)
    if principal[0] - principal[1] > 1e-6:
        theta = 0.5 * math.atan2(2 * exy, exx - eyy)
        off = (got["theta"][fitted] - theta + np.pi / 2) % np.pi - np.pi / 2
        # of an angle: the rate's over the diameter of Mohr's circle
        assert np.abs(off).max() < 20 * within / (principal[0] - principal[1])


@every_method
def test_published_figures(method: Method) -> None:
    vx, vy = linear(0.02, -0.007, 0.009)
    got = strain_rates(vx, vy, dx=120, dy=-120, radius=2, method=method)
    for name, value in (("e1", 0.022725), ("e2", -0.009725), ("effective", 0.01975)):
        assert got[name][7, 7] == pytest.approx(value, abs=3e-6 + 100 * WITHIN[method] / 200)


@every_method
@pytest.mark.parametrize("north_up", [True, False])
def test_rigid_motion_has_no_strain(method: Method, north_up: bool) -> None:
    x, y = grid(north_up=north_up)
    got = strain_rates(
        250 - 0.05 * y, 0.05 * x, dx=120, dy=-120 if north_up else 120, radius=2, method=method
    )
    inner = (slice(3, -3), slice(3, -3))
    within = 1e-12 if method != "logarithmic" else 1e-8  # the order of the stakes' path
    for name in RATES:
        if name not in ("theta", "vorticity"):
            np.testing.assert_allclose(got[name][inner], 0, rtol=0, atol=within, err_msg=name)
    np.testing.assert_allclose(got["vorticity"][inner], 0.1, rtol=0, atol=within)


def test_what_does_not_move_has_no_direction_of_flow() -> None:
    x, y = grid()
    got = strain_rates(-0.05 * y, 0.05 * x, dx=120, dy=-120, radius=2)
    assert np.isnan(got["longitudinal"][7, 8])
    assert np.isfinite(got["longitudinal"][7, 9])
    assert abs(got["effective"][7, 8]) < 1e-12


@every_method
@pytest.mark.parametrize("centre", [(0.0, 0.0), (1500.0, 700.0), (-400.0, 2600.0)])
def test_gaussian_vortex(method: Method, centre: tuple[float, float]) -> None:
    d, scale, w0 = 0.05, 2000.0, 0.1  # so fine that what a window averages is below 1e-9
    x, y = grid(21, 21, d)
    x, y = x + centre[0], y + centre[1]
    g = w0 * np.exp(-(x**2 + y**2) / (2 * scale**2))
    got = strain_rates(-y * g, x * g, dx=d, dy=-d, radius=2, method=method)
    inner = (slice(3, -3), slice(3, -3))
    exx, exy = g * x * y / scale**2, 0.5 * g * (y**2 - x**2) / scale**2
    for name, want in {
        "exx": exx,
        "eyy": -exx,
        "exy": exy,
        "divergence": 0 * g,
        "e1": np.hypot(exx, exy),
        "vorticity": g * (2 - (x**2 + y**2) / scale**2),
    }.items():
        done = np.isfinite(got[name][inner])  # stakes that circle the eye have no mean to go with
        assert done.all() or (method == "logarithmic" and centre == (0, 0) and done.mean() > 0.5)
        np.testing.assert_allclose(
            got[name][inner][done], want[inner][done], rtol=0, atol=WITHIN[method], err_msg=name
        )


@pytest.mark.parametrize(("radius", "gain"), [(1, 0.976), (2, 0.922), (4, 0.747)])
def test_gain_of_a_2_km_wave(radius: int, gain: float) -> None:
    x, _ = grid(21, 201)
    k = 2 * np.pi / 2000
    got = strain_rates(100 * np.sin(k * x), 0 * x + 1, dx=120, dy=-120, radius=radius)
    assert got["exx"][10, 100] / (100 * k) == pytest.approx(gain, abs=6e-4)


@pytest.mark.parametrize("method", ["plane", "nominal"])
@pytest.mark.parametrize("gaps", ["fit", "strict"])
@pytest.mark.parametrize("north_up", [True, False])
@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("missing", [0.0, 0.15, 0.45])
def test_equals_least_squares_at_every_pixel(
    radius: int, missing: float, north_up: bool, gaps: Any, method: Method
) -> None:
    rng = np.random.default_rng(radius * 100 + int(100 * missing))
    shape = (14, 19)
    vx, vy = 900 + 30 * rng.standard_normal(shape), -400 + 30 * rng.standard_normal(shape)
    vx[rng.random(shape) < missing / 2] = np.nan
    vy[rng.random(shape) < missing / 2] = np.inf  # missing in one component only
    sx, sy = rng.uniform(1, 9, shape), rng.uniform(1, 9, shape)
    dx, dy = 120.0, -150.0 if north_up else 150.0
    got = strain_rates(
        vx, vy, dx=dx, dy=dy, radius=radius, method=method, gaps=gaps, vx_error=sx, vy_error=sy
    )
    vy[np.isinf(vy)] = np.nan
    assert list(got) == list(FIELDS)
    if gaps == "fit":
        assert np.isfinite(got["exx"]).sum() > 40
    want = brute(vx, vy, dx, dy, radius, sx, sy, method, gaps)
    assert_same(got, want)


@every_method
def test_strict_is_fit_where_nothing_is_missing_and_nothing_elsewhere(method: Method) -> None:
    vx, vy = 500 + 20 * np.random.default_rng(3).standard_normal((2, 30, 30))
    vx[12, 17] = np.nan
    fit, strict = (
        strain_rates(vx, vy, dx=120, dy=-120, radius=2, method=method, gaps=gaps)
        for gaps in ("fit", "strict")
    )
    done = np.isfinite(strict["exx"])
    for name in RATES:
        np.testing.assert_array_equal(strict[name][done], fit[name][done])
        assert np.isnan(strict[name][~done]).all()
    near = np.zeros(vx.shape, bool)  # what reads the missing pixel: all of its window, or stakes
    near[10:15, 15:20] = True
    if method == "nominal":
        near[10:15, 15:20] = False
        near[(12, 10, 14, 12, 12), (17, 17, 17, 15, 19)] = True
    assert not done[near].any()
    edge = 3 if method == "logarithmic" else 2
    away = np.ones(vx.shape, bool)
    away[8:17, 13:22] = False
    assert done[edge:-edge, edge:-edge][away[edge:-edge, edge:-edge]].all()
    assert not done[:2].any()


@every_method
def test_a_radius_for_each_pixel_is_that_radius_there(method: Method) -> None:
    rng = np.random.default_rng(8)
    vx, vy = 900 + 20 * rng.standard_normal((2, 70, 40))
    vx[rng.random(vx.shape) < 0.03] = np.nan
    thickness = np.fromfunction(lambda i, j: 3 * i + 2 * j, vx.shape)
    thickness[30:33] = np.nan
    radius = radius_grid(1.5, thickness, 100)
    assert set(np.unique(radius)) == {0, 1, 2, 3, 4}
    arguments: dict[str, Any] = {"method": method, "vx_error": 3.0, "vy_error": 2.0}
    got = strain_rates(vx, vy, dx=100, dy=-100, radius=radius, **arguments)
    for r in (1, 2, 3, 4):
        one = strain_rates(vx, vy, dx=100, dy=-100, radius=r, **arguments)
        for name in FIELDS:
            np.testing.assert_array_equal(got[name][radius == r], one[name][radius == r])
    assert np.isnan(got["exx"][radius == 0]).all()
    assert np.isfinite(got["exx"]).mean() > 0.4


@every_method
def test_a_window_beyond_the_grid_has_no_result_and_takes_no_memory(method: Method) -> None:
    vx, vy = linear(0.02, -0.01, 0.003)
    for radius in (10**9, np.full(vx.shape, 10**9)):
        got = strain_rates(vx, vy, dx=120, dy=-120, radius=radius, method=method)
        assert np.isnan(got["exx"]).all()


@every_method
def test_blocks_join_without_a_seam(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """In small blocks, by any number of threads: the same as in one."""
    rng = np.random.default_rng(5)
    vx, vy = 200 + rng.standard_normal((2, 90, 70)) * 20
    vx[60:70, 10:12] = np.nan
    arguments: dict[str, Any] = {
        "dx": 100, "dy": -100, "radius": 3, "method": method, "vx_error": 2.0, "vy_error": vx / 50,
    }  # fmt: skip
    monkeypatch.setattr("firnline.cache.strain.rates._BLOCK_ROWS", 1000)
    whole = strain_rates(vx, vy, **arguments)
    monkeypatch.setattr("firnline.cache.strain.rates._BLOCK_ROWS", 7)
    monkeypatch.setattr("firnline.cache.strain.rates._BLOCK_COLUMNS", 13)
    monkeypatch.setattr("firnline.cache.strain.rates._NARROW_COLUMNS", 13)
    for workers in (1, 5):
        parts = strain_rates(vx, vy, **arguments, workers=workers)
        for name in FIELDS:
            np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12, atol=1e-12)
    assert np.isfinite(whole["e1_error"]).mean() > 0.7


@every_method
def test_float32_stays_float32_and_close(method: Method) -> None:
    rng = np.random.default_rng(6)
    vx, vy = 9000 + 50 * rng.standard_normal((2, 40, 40))
    vx[5, 5] = np.nan
    vx32, vy32 = vx.astype(np.float32), vy.astype(np.float32)
    single, double = (
        strain_rates(u, v, dx=120, dy=-120, radius=2, method=method)
        for u, v in ((vx32, vy32), (vx32.astype(float), vy32.astype(float)))
    )
    for name in RATES:
        assert single[name].dtype == np.float32
        if name != "theta":
            np.testing.assert_allclose(single[name], double[name], rtol=0, atol=3e-7, err_msg=name)


@every_method
@given(
    radius=st.integers(1, 3),
    holes=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 15)), max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_missing_pixels_stay_within_their_windows(
    method: Method, radius: int, holes: list[tuple[int, int]], seed: int
) -> None:
    vx, vy = np.random.default_rng(seed).standard_normal((2, 18, 16)) * 100 + 500
    before = strain_rates(vx, vy, dx=120, dy=-120, radius=radius, method=method)
    near = np.zeros(vx.shape, bool)
    far = 2 * radius if method == "logarithmic" else radius
    for i, j in holes:
        vx[i, j] = np.nan
        near[max(0, i - far) : i + far + 1, max(0, j - far) : j + far + 1] = True
    after = strain_rates(vx, vy, dx=120, dy=-120, radius=radius, method=method)
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


@every_method
@given(
    angle=st.floats(-math.pi, math.pi),
    tensor=st.tuples(*[st.floats(-0.05, 0.05)] * 4),
    radius=st.integers(1, 3),
)
@settings(max_examples=30)
def test_invariants_do_not_turn_with_the_frame(
    method: Method, angle: float, tensor: tuple[float, float, float, float], radius: int
) -> None:
    exx, eyy, exy, spin = tensor
    gradient = np.array([[exx, exy - spin], [exy + spin, eyy]])
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    x, y = grid(11, 11)
    mean = np.array([900.0, -600.0])
    fields = []
    for g, m in ((gradient, mean), (turn @ gradient @ turn.T, turn @ mean)):
        vx = m[0] + g[0, 0] * x + g[0, 1] * y
        vy = m[1] + g[1, 0] * x + g[1, 1] * y
        fields.append(strain_rates(vx, vy, dx=120, dy=-120, radius=radius, method=method))
    one, two = ({name: field[5, 5] for name, field in all_.items()} for all_ in fields)
    # bounds of what a logarithmic rate differs from the uniform one: T |gradient|^2
    within = 1e-9 if method != "logarithmic" else 0.04 * (gradient**2).sum() + 1e-9
    for name in (*INVARIANTS, "shear"):
        assert two[name] == pytest.approx(one[name], abs=within), name
    if method != "logarithmic" and one["e1"] - one["e2"] > 1e-4:
        turned = two["theta"] - one["theta"] - angle
        assert abs((turned + np.pi / 2) % np.pi - np.pi / 2) < 1e-6


@pytest.mark.parametrize("method", ["plane", "nominal"])
@given(
    motion=st.tuples(st.floats(-2e3, 2e3), st.floats(-2e3, 2e3), st.floats(-0.2, 0.2)),
    gaps=st.booleans(),
)
@settings(max_examples=25)
def test_rigid_motion_changes_no_strain(
    method: Method, motion: tuple[float, float, float], gaps: bool
) -> None:
    x, y = grid()
    vx, vy = np.random.default_rng(1).standard_normal((2, *x.shape)) * 20
    if gaps:
        vx[3:5, 4:7] = np.nan
    one = strain_rates(vx, vy, dx=120, dy=-120, radius=2, method=method)
    two = strain_rates(
        vx + motion[0] - motion[2] * y,
        vy + motion[1] + motion[2] * x,
        dx=120,
        dy=-120,
        radius=2,
        method=method,
    )
    for name in ("exx", "eyy", "exy", "e1", "e2", "effective", "divergence"):
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=1e-10, err_msg=name)
    np.testing.assert_allclose(two["vorticity"], one["vorticity"] + 2 * motion[2], atol=1e-10)


@given(
    motion=st.tuples(st.floats(400, 2e3), st.floats(-2e3, 2e3), st.floats(-0.02, 0.02)),
    tensor=st.tuples(*[st.floats(-0.02, 0.02)] * 3),
)
@settings(max_examples=25)
def test_rigid_motion_changes_no_logarithmic_strain_beyond_its_own_meaning(
    motion: tuple[float, float, float], tensor: tuple[float, float, float]
) -> None:
    """Stakes that strain as they turn and drift: within the 2e-4 that it is of the uniform rate."""
    exx, eyy, exy = tensor
    x, y = grid()
    vx, vy = exx * x + exy * y + motion[0], exy * x + eyy * y + motion[1]
    turned = (vx - motion[2] * y, vy + motion[2] * x)
    one, two = (
        strain_rates(u, v, dx=120, dy=-120, radius=2, method="logarithmic")
        for u, v in ((vx, vy), turned)
    )
    for name in ("exx", "eyy", "exy", "e1", "e2", "effective", "divergence"):
        assert two[name][7, 8] == pytest.approx(one[name][7, 8], abs=2e-4), name


# --- errors


@every_method
@pytest.mark.parametrize("radius", [1, 2, 4])
def test_error_formula(radius: int, method: Method) -> None:
    vx, vy = linear(0.02, -0.01, 0.005)
    su, sv, dx, w = 4.0, 6.0, 120.0, 2 * radius + 1
    got = strain_rates(
        vx, vy, dx=dx, dy=-dx, radius=radius, vx_error=su, vy_error=sv, method=method
    )
    one = 1 / (dx * radius * math.sqrt(2))
    if method == "plane":
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
        # the errors of logarithmic principal rates are of the direction that those have
        within = 1e-3 if method == "logarithmic" and name[:2] in ("e1", "e2") else 1e-9
        assert got[name][7, 8] == pytest.approx(value, rel=within), name


def test_errors_in_the_form_of_poinar_and_andrews() -> None:
    """sqrt(su^2 + sv^2) / (2 L) is the error of the nominal shear times sqrt(2)."""
    vx, vy = linear(0.02, -0.01, 0.005)
    got = strain_rates(
        vx, vy, dx=125, dy=-125, radius=4, method="nominal", vx_error=41.76, vy_error=77.82
    )
    assert got["exy_error"][7, 8] * math.sqrt(2) == pytest.approx(0.0883168, abs=1e-7)


def test_errors_of_logarithmic_rates_are_a_little_too_large() -> None:
    rng = np.random.default_rng(12)
    vx, vy = linear(0.02, -0.01, 0.005)
    arguments: dict[str, Any] = {"dx": 120, "dy": -120, "radius": 2, "method": "logarithmic"}
    stated = strain_rates(vx, vy, vx_error=3.0, vy_error=3.0, **arguments)
    runs = [
        strain_rates(*(v + 3 * rng.standard_normal(v.shape) for v in (vx, vy)), **arguments)
        for _ in range(400)
    ]
    for name in ("exx", "eyy", "exy"):
        spread = np.nanmean(np.std([run[name][4:-4, 4:-4] for run in runs], axis=0))
        assert 0.8 < spread / stated[f"{name}_error"][7, 8] < 1.0, name


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
        ({"radius": True}, "radius"),
        ({"radius": np.full((5, 5), -1)}, "radius"),
        ({"radius": np.ones((5, 4), int)}, "radius"),
        ({"method": "guess"}, "plane, nominal, logarithmic"),
        ({"gaps": "ignore"}, "fit, strict"),
        ({"method": "logarithmic", "dx": 2.0}, "square"),
        ({"fields": ["von_mises"]}, "flow law"),
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


@every_method
def test_chosen_fields_only(method: Method) -> None:
    vx, vy = linear(0.02, -0.01, 0.003)
    arguments: dict[str, Any] = {
        "dx": 120, "dy": -120, "radius": 1, "vx_error": 1.0, "vy_error": 1.0, "method": method,
        "flow_law": FlowLaw.at(263),
    }  # fmt: skip
    whole = strain_rates(vx, vy, **arguments)
    assert list(whole) == [*FIELDS, *STRESS_FIELDS]
    for name in whole:
        one = strain_rates(vx, vy, **arguments, fields=[name])
        assert list(one) == [name]
        np.testing.assert_array_equal(one[name], whole[name])


@every_method
@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (1, 9), (1, 1)])
def test_tiny_grids_have_no_answer(shape: tuple[int, int], method: Method) -> None:
    got = strain_rates(np.ones(shape), np.ones(shape), dx=1, dy=1, radius=1, method=method)
    assert got["exx"].shape == shape
    assert np.isnan(got["exx"]).all()


def test_all_missing_and_integers() -> None:
    nothing = np.full((9, 9), np.nan, np.float32)
    assert np.isnan(strain_rates(nothing, nothing, dx=1, dy=1, radius=1)["e1"]).all()
    ramp = np.tile(np.arange(9, dtype=np.int16), (9, 1))
    got = strain_rates(ramp, 0 * ramp + 1, dx=1, dy=1, radius=1)
    assert got["exx"].dtype == np.float64
    assert got["exx"][4, 4] == 1
