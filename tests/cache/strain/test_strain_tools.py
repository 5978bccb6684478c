"""Parity with glacier-strain-tools (MIT) on real velocities, and where and why it differs.

- Logarithmic rates: it moves stakes by Euler steps of 0.05 pixels, each with the velocity of the
  step before. Stakes moved in that way, here in the test, give its numbers; exact paths differ by
  what such steps leave out.
- Nominal rates: it takes differences between neighbours, on no length scale; between arrays it
  forgets that y falls with the row, and so turns the sign of eyy.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from firnline.cache.strain import FlowLaw, strain_rates

strain_tools = pytest.importorskip("strain_tools")

Floats = NDArray[np.floating[Any]]
SHARED = Path(os.environ.get("FIRNLINE_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture(scope="module", params=["store_2018_200m", "mosaic_crop_ala"])
def velocity(request: pytest.FixtureRequest) -> tuple[Floats, Floats, float]:
    """vx, vy and the pixel in metres, north up, of about 150 x 150 pixels with gaps."""
    layers = []
    for component in ("vx", "vy"):
        path = SHARED / f"{request.param}_{component}.tif"
        if not path.exists():
            pytest.skip("shared data not here")
        with pytest.importorskip("rasterio").open(path) as src:
            layer = src.read(1, masked=True).astype(float).filled(np.nan)
            spacing = src.transform.a
        layers.append(layer[100:250, 60:230])
    return layers[0], layers[1], spacing


def as_they_do(vx: Floats, vy: Floats, d: float, r: int) -> list[Floats]:
    """exx, eyy and exy of all pixels by their steps: with the velocity of the step before, and half
    as long, with the velocity of now, where those two differ by a thousandth of a coordinate."""
    rows, columns = np.meshgrid(*(np.arange(2 * r, n - 2 * r) for n in vx.shape), indexing="ij")
    there = np.isfinite(vx)
    sums = [np.zeros(rows.shape) for _ in range(3)]
    for a, b in itertools.product(range(-r, r + 1), repeat=2):  # the order matters to the last bit
        for total, values in zip(sums, (vx, vy, there.astype(float)), strict=True):
            total += np.where(there, values, 0)[rows + a, columns + b]
    speed = np.sqrt((sums[0] / sums[2]) ** 2 + (sums[1] / sums[2]) ** 2)
    time, full = 0.1 * r * d / speed, d / speed * 0.05
    i = np.stack([rows + k * r for k in (0, -1, 0, 1, 0)]).astype(float)
    j = np.stack([columns + k * r for k in (0, 0, 1, 0, -1)]).astype(float)
    u, v = vx[i.astype(int), j.astype(int)], vy[i.astype(int), j.astype(int)]
    elapsed, step = 0 * time, full
    while (going := elapsed < time).any():
        p, q = (
            np.nan_to_num(np.floor(at)).clip(0, n - 2)
            for at, n in zip((i, j), vx.shape, strict=True)
        )
        a, b, f, g = p.astype(int), q.astype(int), i - p, j - q
        now_u, now_v = (
            (1 - f) * ((1 - g) * w[a, b] + g * w[a, b + 1])
            + f * ((1 - g) * w[a + 1, b] + g * w[a + 1, b + 1])
            for w in (vx, vy)
        )
        new_i, new_j = i - v * step / d, j + u * step / d
        near_i, near_j = i - now_v * step / d, j + now_u * step / d
        bad = np.abs((near_i - new_i) / (near_i - rows + 2 * r)) >= 1e-3
        bad |= np.abs((near_j - new_j) / (near_j - columns + 2 * r)) >= 1e-3
        good = going & ~bad.any(axis=0)
        i, j, u, v = np.where(good, new_i, i), np.where(good, new_j, j), now_u, now_v
        elapsed, step = np.where(good, elapsed + step, elapsed), np.where(good, full, step / 2)
        elapsed[np.isnan(i + j).any(axis=0)] = np.nan

    def twice(one: tuple[int, int], other: tuple[int, int], length: float) -> Floats:
        product = np.hypot(i[one[0]] - i[one[1]], j[one[0]] - j[one[1]])
        product = product * np.hypot(i[other[0]] - i[other[1]], j[other[0]] - j[other[1]])
        return np.asarray(np.log(product / length**2) / 2 / elapsed)

    a, c = twice((0, 1), (0, 3), r), twice((0, 4), (0, 2), r)
    b, e = twice((1, 4), (2, 3), np.sqrt(2) * r), twice((1, 2), (3, 4), np.sqrt(2) * r)
    return [0.25 * (b + e - a) + 0.75 * c, 0.75 * a + 0.25 * (b + e - c), (b - e) / 2]


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_logarithmic_rates(velocity: tuple[Floats, Floats, float], radius: int) -> None:
    vx, vy, d = velocity
    theirs = strain_tools.strain.logarithmic(vx, vy, d, radius * d)
    ours = strain_rates(vx, vy, dx=d, dy=-d, radius=radius, method="logarithmic")
    with np.errstate(all="ignore"):
        again = as_they_do(vx, vy, d, radius)
    margin = (slice(2 * radius, -2 * radius),) * 2
    for name, their, same in zip(("exx", "eyy", "exy"), theirs, again, strict=True):
        mine, their = ours[name][margin], their[margin]
        both = np.isfinite(mine) & np.isfinite(their)
        # they need the same pixels, but for stakes that stop half way at a missing one
        assert (np.isfinite(mine) ^ np.isfinite(their)).mean() < 0.04
        size = np.sqrt(np.mean(their[both] ** 2))
        assert np.median(np.abs(mine - their)[both]) < 0.01 * size
        assert np.corrcoef(mine[both], their[both])[0, 1] > 0.9995
        # the rest is their steps
        assert (np.abs(same - their)[both] < 1e-9).mean() > 0.97


def test_nominal_rates_are_theirs_over_two_pixels(
    velocity: tuple[Floats, Floats, float],
) -> None:
    vx, vy, d = velocity
    ours = strain_rates(vx, vy, dx=d, dy=-d, radius=1, method="nominal", gaps="strict")
    exx, eyy, _ = strain_tools.strain.nominal(vx, vy, d)
    inner = np.isfinite(ours["exx"][1:-1, 1:-1])
    assert inner.mean() > 0.4
    between_x, between_y = (exx[:, 1:] + exx[:, :-1]) / 2, (eyy[1:] + eyy[:-1]) / 2
    np.testing.assert_allclose(
        between_x[1:-1][inner], ours["exx"][1:-1, 1:-1][inner], rtol=0, atol=1e-12
    )
    # the other way round, because y falls with the row
    np.testing.assert_allclose(
        between_y[:, 1:-1][inner], -ours["eyy"][1:-1, 1:-1][inner], rtol=0, atol=1e-12
    )
    # with coordinates it knows better
    y, x = -d * np.arange(vx.shape[0]), d * np.arange(vx.shape[1])
    arrays = [xr.DataArray(v, coords={"y": y, "x": x}, dims=("y", "x")) for v in (vx, vy)]
    theirs = strain_tools.strain.nominal(*arrays, d).reindex(y=y, x=x)
    eyy = theirs.e_yy.values
    np.testing.assert_allclose(
        ((eyy[2:] + eyy[1:-1]) / 2)[:, 1:-1][inner],
        ours["eyy"][1:-1, 1:-1][inner],
        rtol=0,
        atol=1e-12,
    )


def test_what_is_derived_from_the_tensor(velocity: tuple[Floats, Floats, float]) -> None:
    vx, vy, d = velocity
    ours = strain_rates(vx, vy, dx=d, dy=-d, radius=2, flow_law=FlowLaw.at(260))
    tensor = ours["exx"], ours["eyy"], ours["exy"]
    e1, e2 = strain_tools.strain.principal(*tensor, method="analytic", vectors=False)
    angle = np.arctan2(vy, vx)
    theirs = {
        "e1": e1,
        "e2": e2,
        "effective": strain_tools.strain.effective(*tensor),
        "longitudinal": strain_tools.strain.longitudinal(*tensor, angle),
        "transverse": strain_tools.strain.transverse(*tensor, angle),
        "shear": strain_tools.strain.shear(*tensor, angle),
    }
    for name, their in theirs.items():
        np.testing.assert_allclose(ours[name], their, rtol=0, atol=1e-13, err_msg=name)
    # von Mises is sqrt(3) times the effective deviatoric stress, which is what the flow law gives
    effective = ours["effective"]
    stress = strain_tools.stress.deviatoric(effective, effective, 260.0, unit_time="a")
    np.testing.assert_allclose(
        ours["von_mises"], np.sqrt(3) * stress / 1e3, rtol=3e-4  # their year has 365 days
    )  # fmt: skip
