"""Vectors between CRSs against points that move, GDAL, PROJ's own factors and matrices."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Proj, Transformer

from firnline.cache.strain import strain_rates
from firnline.cache.vectors import (
    Resampling,
    jacobian,
    plan_resampling,
    rotate_errors,
    rotate_tensor,
    rotation,
)
from firnline.errors import InputError

Floats = NDArray[np.floating[Any]]
UTM, POLAR = "EPSG:32622", "EPSG:3413"
LON, LAT = -49.0, 69.2
METHODS: tuple[Literal["nearest", "bilinear"], ...] = ("nearest", "bilinear")


def grid(crs: str, size: int, *, step: float = 120.0, lon: float = LON, lat: float = LAT) -> GeoBox:
    """A grid on multiples of its step about a place."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    left, top = round(x / step) * step - size // 2 * step, round(y / step) * step + size // 2 * step
    return GeoBox((size, size), Affine(step, 0, left, 0, -step, top), crs)


def centres(box: GeoBox) -> tuple[Floats, Floats]:
    x = box.affine.c + box.affine.a * (np.arange(box.shape.x) + 0.5)
    y = box.affine.f + box.affine.e * (np.arange(box.shape.y) + 0.5)
    return tuple(np.meshgrid(x, y))  # type: ignore[return-value]


def flow(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """A linear field, which bilinear interpolation meets exactly: m/year, of some exx, eyy, exy."""
    x, y = x - x.mean(), y - y.mean()
    return 900 + 0.02 * x - 0.004 * y, -400 + 0.012 * x - 0.01 * y


def bare(crs: str | None) -> GeoBox:
    return GeoBox((3, 3), Affine.scale(1), crs)


def within(plan: Resampling, values: Floats) -> Floats:
    return values[plan.window]


# --- rotation


@pytest.mark.parametrize(("target", "degrees"), [(POLAR, -5.870), ("EPSG:32623", -5.610)])
def test_axes_of_utm_22_turn(target: str, degrees: float) -> None:
    x, y = Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform(LON, LAT)
    turned = rotation(jacobian(CRS(UTM), CRS(target), x, y))
    assert math.degrees(turned) == pytest.approx(degrees, abs=5e-4)
    plan = plan_resampling(grid(UTM, 41), grid(target, 21))
    assert math.degrees(plan.angle[10, 10]) == pytest.approx(degrees, abs=5e-3)


@pytest.mark.parametrize(
    ("source", "target", "lon", "lat"),
    [
        (UTM, POLAR, -49, 69.2), (POLAR, UTM, -53, 72), ("EPSG:32607", POLAR, -140.5, 60.2),
        ("EPSG:3031", "EPSG:32718", -74, -66), ("EPSG:32759", "EPSG:3031", 170, -70.5),
    ],
)  # fmt: skip
def test_jacobian_is_projs_convergence_and_scale(
    source: str, target: str, lon: float, lat: float
) -> None:
    x, y = Transformer.from_crs("EPSG:4326", source, always_xy=True).transform(lon, lat)
    got = jacobian(CRS(source), CRS(target), x, y)
    one, two = (Proj(CRS(crs)).get_factors(lon, lat) for crs in (source, target))
    turn = math.radians(two.meridian_convergence - one.meridian_convergence)
    off = (float(rotation(got)) - turn + math.pi) % (2 * math.pi) - math.pi
    assert abs(off) < 1e-7
    scale = math.sqrt(abs(np.linalg.det(got)))
    assert scale == pytest.approx(two.meridional_scale / one.meridional_scale, rel=1e-7)


def test_the_grids_jacobian_is_that_at_its_pixels() -> None:
    source, target = grid(UTM, 61), grid(POLAR, 31)
    plan = plan_resampling(source, target)
    x, y = Transformer.from_crs(POLAR, UTM, always_xy=True).transform(*centres(target))
    np.testing.assert_allclose(plan.jacobian, jacobian(CRS(UTM), CRS(POLAR), x, y), atol=1e-9)


@given(
    angle=st.floats(-4, 4), e=st.tuples(*[st.floats(-1, 1)] * 3), sigma=st.tuples(
        *[st.floats(0, 100)] * 2
    ),
)  # fmt: skip
def test_tensor_and_covariance_turn_as_matrices(
    angle: float, e: tuple[float, float, float], sigma: tuple[float, float]
) -> None:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    want = turn @ np.array([[e[0], e[2]], [e[2], e[1]]]) @ turn.T
    got = rotate_tensor(angle, *(np.array(part) for part in e))
    np.testing.assert_allclose(got, [want[0, 0], want[1, 1], want[0, 1]], atol=1e-12)
    back = rotate_tensor(-angle, *got)
    np.testing.assert_allclose(back, e, atol=1e-12)
    stretched = 1.04 * turn
    want = stretched @ np.diag(np.square(sigma)) @ stretched.T
    x, y, covariance = rotate_errors(stretched, *sigma)
    np.testing.assert_allclose([x**2, y**2, covariance], want[[0, 1, 0], [0, 1, 1]], atol=1e-9)


# --- resampling


@pytest.mark.parametrize(("source", "target"), [(UTM, POLAR), (POLAR, UTM)])
def test_equals_points_that_move(source: str, target: str) -> None:
    """A point and where it is a hundredth of a year later, both taken through PROJ."""
    here, there = grid(source, 121), grid(target, 61)
    plan = plan_resampling(here, there)
    vx, vy = flow(*centres(here))
    got = plan.vectors(within(plan, vx), within(plan, vy))
    to_source = Transformer.from_crs(target, source, always_xy=True).transform
    to_target = Transformer.from_crs(source, target, always_xy=True).transform
    x, y = to_source(*centres(there))
    x0, y0 = (c.mean() for c in centres(here))
    u, v = 900 + 0.02 * (x - x0) - 0.004 * (y - y0), -400 + 0.012 * (x - x0) - 0.01 * (y - y0)
    step = 0.01
    ends = [to_target(x + s * u * step, y + s * v * step) for s in (1, -1)]
    want = [(one - other) / (2 * step) for one, other in zip(*ends, strict=True)]
    for mine, moved in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, moved, rtol=0, atol=2e-6)


def test_strain_is_that_of_the_turned_tensor() -> None:
    """Of the resampled velocity, and resampled from the source's: map scale leaves 1e-5 a year."""
    here, there = grid(UTM, 141), grid(POLAR, 81)
    plan = plan_resampling(here, there)
    vx, vy = flow(*centres(here))
    on_source = strain_rates(vx, vy, dx=120, dy=-120, radius=2)
    on_target = strain_rates(
        *plan.vectors(within(plan, vx), within(plan, vy)), dx=120, dy=-120, radius=2
    )
    names = ("exx", "eyy", "exy")
    turned = plan.tensor(*(within(plan, on_source[name]) for name in names))
    inner = (slice(2, -2), slice(2, -2))
    for name, values in zip(names, turned, strict=True):
        np.testing.assert_allclose(on_target[name][inner], values[inner], atol=2e-5)
    # which is little of what the turn does
    assert abs(on_target["exx"][inner].mean() - 0.02) > 4e-4
    assert abs(on_target["exy"][inner].mean() - 0.004) > 2e-3


@pytest.mark.parametrize(("method", "tolerance"), [("bilinear", 1e-5), ("nearest", 6.0)])
def test_a_round_trip_returns(method: Any, tolerance: float) -> None:
    """Of a linear field: nearest moves a value by up to 85 m, twice, times up to 0.02 per year."""
    here, there = grid(UTM, 61), grid(POLAR, 141)
    out, back = plan_resampling(here, there, method), plan_resampling(there, here, method)
    velocity = flow(*centres(here))
    returned = back.vectors(
        *(a[back.window] for a in out.vectors(*(within(out, a) for a in velocity)))
    )
    inner = (slice(2, -2), slice(2, -2))
    for mine, before in zip(returned, velocity, strict=True):
        np.testing.assert_allclose(mine[inner], before[inner], rtol=0, atol=tolerance)
    shape = [s.stop - s.start for s in out.window]
    integers = [np.rint(within(out, a)).astype(np.int16) for a in velocity]
    assert integers[0].shape == tuple(shape)
    moved = out.vectors(*integers, missing=-32767)
    returned = back.vectors(*(a[back.window] for a in moved), missing=-32767)
    for mine, before in zip(returned, velocity, strict=True):
        assert mine.dtype == np.int16
        np.testing.assert_allclose(mine[inner], before[inner], rtol=0, atol=tolerance + 2.5)


@pytest.mark.parametrize("method", METHODS)
def test_scalars_equal_gdals(method: Literal["nearest", "bilinear"]) -> None:
    warp = pytest.importorskip("rasterio.warp")
    here, there = grid(UTM, 91), grid(POLAR, 71)
    values = np.random.default_rng(4).normal(500, 200, here.shape)
    want = np.full(there.shape, np.nan)
    warp.reproject(
        values, want, src_transform=here.affine, dst_transform=there.affine, src_crs=UTM,
        dst_crs=POLAR, src_nodata=np.nan, dst_nodata=np.nan, XSCALE=1, YSCALE=1,
        resampling=warp.Resampling[method],
    )  # fmt: skip
    plan = plan_resampling(here, there, method)
    got = plan.scalars(within(plan, values))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    # GDAL finds places by interpolation, to about a hundredth of a pixel
    if method == "nearest":
        assert (got == want).mean() > 0.995
    else:
        np.testing.assert_allclose(got, want, rtol=0, atol=4)
        assert np.abs(got - want).mean() < 0.5


@lru_cache
def _small(method: Literal["nearest", "bilinear"]) -> tuple[GeoBox, Floats, Floats, Resampling]:
    """A grid, where on it the pixels of another lie, and the plan."""
    here, there = grid(UTM, 15), grid(POLAR, 17)
    x, y = Transformer.from_crs(POLAR, UTM, always_xy=True).transform(*centres(there))
    column, row = (x - here.affine.c) / 120, (here.affine.f - y) / 120
    return here, column, row, plan_resampling(here, there, method)


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1))
@settings(max_examples=20)
def test_data_where_the_pixel_has_some(method: Any, seed: int, share: float) -> None:
    """And each bilinear value lies between those of the four pixels around that are there."""
    here, column, row, plan = _small(method)
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 100, here.shape)
    values[rng.random(here.shape) < share] = np.nan
    got = plan.scalars(within(plan, values))
    for i, j in np.ndindex(column.shape):
        a, b = math.floor(row[i, j]), math.floor(column[i, j])
        on_grid = 0 <= a < 15 and 0 <= b < 15
        if not on_grid or np.isnan(values[a, b]):
            assert np.isnan(got[i, j])
            continue
        c = a + (1 if row[i, j] - a >= 0.5 else -1)
        d = b + (1 if column[i, j] - b >= 0.5 else -1)
        around = [
            values[p, q]
            for p in (a, c)
            for q in (b, d)
            if 0 <= p < 15 and 0 <= q < 15 and np.isfinite(values[p, q])
        ]
        if method == "nearest":
            assert got[i, j] == values[a, b]
        else:
            assert min(around) - 1e-9 <= got[i, j] <= max(around) + 1e-9


def test_neighbours_leave_no_seam_and_no_overlap() -> None:
    whole, target = grid(UTM, 80), grid(POLAR, 40)
    parts = [
        GeoBox((rows, columns), Affine(120, 0, left, 0, -120, top), UTM)
        for top, rows in ((whole.affine.f, 37), (whole.affine.f - 37 * 120, 43))
        for left, columns in ((whole.affine.c, 41), (whole.affine.c + 41 * 120, 39))
    ]
    for method in METHODS:
        inside = np.sum([plan_resampling(part, target, method).inside for part in parts], axis=0)
        np.testing.assert_array_equal(inside, 1)


def test_layers_of_integers() -> None:
    """(mid_date, y, x) as the cubes hold it: rounded values of the floats, empty layers empty."""
    here, there = grid(UTM, 61), grid(POLAR, 31)
    plan = plan_resampling(here, there)
    rng = np.random.default_rng(7)
    vx, vy = rng.integers(-3000, 3000, (2, 40, *within(plan, np.empty(here.shape)).shape))
    gone = rng.random(vx.shape) < 0.3
    gone[5:30:2] = True
    vx[gone], vy[rng.random(vx.shape) < 0.1] = -32767, -32767
    got = plan.vectors(vx.astype(np.int16), vy.astype(np.int16), missing=-32767)
    floats = [np.where(v == -32767, np.nan, v) for v in (vx, vy)]
    want = plan.vectors(*floats)
    assert np.isnan(want[0][5:30:2]).all()
    assert np.isfinite(want[0]).any()
    for mine, exact in zip(got, want, strict=True):
        assert mine.dtype == np.int16
        assert mine.shape == (40, *there.shape)
        np.testing.assert_array_equal(mine == -32767, np.isnan(exact))
        there_ = np.isfinite(exact)
        assert np.abs(mine[there_] - exact[there_]).max() < 0.5 + 1e-3
        single = plan.vectors(*(f.astype(np.float32) for f in floats))
        assert single[0].dtype == np.float32


def test_integers_saturate_and_never_become_missing() -> None:
    box = grid(UTM, 5)
    east = GeoBox(box.shape, box.affine, box.crs)
    target = grid(POLAR, 3)
    plan = plan_resampling(east, target, "nearest")
    shape = within(plan, np.empty(box.shape)).shape
    vx, vy = np.full(shape, -32760, np.int16), np.full(shape, 32767, np.int16)
    got = plan.vectors(vx, vy, missing=-32767)
    turned = np.einsum("ijyx,j->iyx", plan.jacobian, [-32760, 32767])
    np.testing.assert_array_equal(got[0], np.rint(turned[0]))
    assert (turned[1] > 35_000).all()
    np.testing.assert_array_equal(got[1], 32767)
    # -32767 exactly, by a turn to itself
    same = plan_resampling(box, box)
    low = np.full(box.shape, -32768, np.int16)
    np.testing.assert_array_equal(same.scalars(low, missing=-32767), -32768)
    half = np.tile(np.array([0, 1], np.uint8), 8)[:5] + np.zeros((5, 1), np.uint8)
    beside = Affine(120, 0, box.affine.c + 40, 0, -120, box.affine.f)
    moved = plan_resampling(box, GeoBox(box.shape, beside, UTM))
    assert (moved.scalars(half, missing=255) <= 1).all()


def test_classes_keep_their_values() -> None:
    here, there = grid(UTM, 31), grid(POLAR, 15)
    plan = plan_resampling(here, there, "nearest")
    mask = np.random.default_rng(2).choice(np.array([0, 1, 255], np.uint8), here.shape)
    got = plan.scalars(within(plan, mask), missing=255)
    assert got.dtype == np.uint8
    assert set(np.unique(got)) == {0, 1, 255}


def test_the_same_grid_is_left_as_it_is() -> None:
    box = grid("EPSG:3031", 20, lon=0, lat=-90)  # the pole in its middle
    vx, vy = np.random.default_rng(1).normal(0, 500, (2, 20, 20))
    vx[3, 4] = np.nan
    for method in METHODS:
        plan = plan_resampling(box, box, method)
        assert plan.window == (slice(0, 20), slice(0, 20))
        got = plan.vectors(vx, vy)
        np.testing.assert_allclose(got[0], vx, rtol=1e-9)
        np.testing.assert_allclose(got[1][np.isfinite(vx)], vy[np.isfinite(vx)], rtol=1e-9)
        assert np.isnan(got[1][3, 4])


def test_errors_are_turned_pixel_by_pixel() -> None:
    here, there = grid(UTM, 41), grid(POLAR, 21)
    plan = plan_resampling(here, there)
    shape = within(plan, np.empty(here.shape)).shape
    sx, sy, covariance = plan.errors(np.full(shape, 3.0), np.full(shape, 8.0))
    want = plan.jacobian[:, :, 10, 10] @ np.diag([9.0, 64.0]) @ plan.jacobian[:, :, 10, 10].T
    assert sx[10, 10] == pytest.approx(math.sqrt(want[0, 0]))
    assert sy[10, 10] == pytest.approx(math.sqrt(want[1, 1]))
    assert covariance[10, 10] == pytest.approx(want[0, 1])


def test_grids_that_do_not_meet() -> None:
    plan = plan_resampling(grid(UTM, 11), grid(POLAR, 12, lon=-40, lat=75))
    assert plan.window == (slice(0, 0), slice(0, 0))
    assert not plan.inside.any()
    got = plan.vectors(*np.zeros((2, 7, 0, 0), np.int16), missing=-32767)
    assert got[0].shape == (7, 12, 12)
    assert (got[0] == -32767).all()
    # nor where the target lies outside the domain of the source's CRS
    far = GeoBox((3, 3), Affine(1e9, 0, -3e9, 0, -1e9, 3e9), POLAR)
    assert not plan_resampling(grid(UTM, 11), far).inside.any()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p, a: p.vectors(a[1:], a[1:]), "of one shape that ends in the window's"),
        (lambda p, a: p.vectors(a, a.astype(np.float32)), "one type"),
        (lambda p, a: p.vectors(a.astype(np.int16), a.astype(np.int16)), "-32767"),
        (lambda p, a: p.scalars(a.astype(np.uint8), missing=-1), "missing"),
        (lambda p, a: p.scalars(a.astype(complex)), "real numbers"),
        (lambda p, a: p.errors(*[a.astype(np.int16)] * 2, missing=0), "floats"),
        (lambda p, a: plan_resampling(grid(UTM, 3), grid(POLAR, 3), "cubic"), "nearest, bilinear"),
        (lambda p, a: plan_resampling(grid(UTM, 3), bare("EPSG:4326")), "projected"),
        (lambda p, a: plan_resampling(bare(None), grid(UTM, 3)), "grid"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Any, match: str) -> None:
    plan = plan_resampling(grid(UTM, 9), grid(POLAR, 3))
    with pytest.raises(InputError, match=match):
        call(plan, within(plan, np.ones((9, 9))))


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_wanted_is_needed(method: Literal["nearest", "bilinear"]) -> None:
    here, there = grid(UTM, 61), grid(POLAR, 31)
    where = np.zeros((31, 31), bool)
    where[4:9, 20:23] = where[6, 25] = True
    whole, part = (plan_resampling(here, there, method, where=w) for w in (None, where))
    np.testing.assert_array_equal(part.inside, whole.inside & where)
    # the box of the wanted pixels, turned by 6 degrees, and what bilinear weights need around it
    assert all(side.stop - side.start <= 11 for side in part.window)
    vx, vy = (np.rint(v).astype("i2") for v in flow(*centres(here)))
    all_of_it = whole.vectors(within(whole, vx), within(whole, vy), -32767)
    some = part.vectors(within(part, vx), within(part, vy), -32767)
    for one, other in zip(some, all_of_it, strict=True):
        np.testing.assert_array_equal(one[where], other[where])
        assert (one[~where] == -32767).all()
