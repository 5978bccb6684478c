"""Strain rates of Datasets: what the edge reads, checks, keeps and says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.typing import NDArray

from firnline.cache.strain import (
    ERROR_FIELDS,
    FIELDS,
    METHODS,
    STRESS_FIELDS,
    FlowLaw,
    Gaps,
    Method,
    strain_rates,
)
from firnline.cache.strain.dataset import strain_dataset
from firnline.errors import CRSError, InputError

Floats = NDArray[np.floating[Any]]
RATES = [name for name in FIELDS if name not in ERROR_FIELDS]


def linear(exx: float, eyy: float, exy: float) -> tuple[Floats, Floats]:
    """Velocity of a uniform strain rate on a north-up grid of 120 m, plus a mean flow."""
    x, y = np.meshgrid((np.arange(17) - 8) * 120.0, (7 - np.arange(15)) * 120.0)
    return 300 + exx * x + exy * y, -200 + exy * x + eyy * y


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
    assert got.attrs["window_radius_pixels"] == 2
    assert got.attrs["half_length_asked_m"] == 250
    assert got.attrs["half_length_m"] == 240
    assert "grid metres" in got.attrs["scale_convention"]
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
    raw = np.tile(np.round(0.05 * 120 * np.arange(17)).astype(np.int16), (15, 1))
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


@pytest.mark.parametrize("chunks", [{}, {"y": 4, "x": 5}, {"time": 1, "y": 7}])
def test_a_lazy_dataset_gives_what_the_loaded_one_gives(chunks: dict[str, int]) -> None:
    ds = dataset((3, 15, 17))
    noise = np.random.default_rng(5).standard_normal((2, 3, 15, 17)).astype(np.float32)
    for n, name in enumerate(("vx", "vy")):
        ds[name] = ds[name] + 9 * noise[n]
        ds[f"{name}_error"] = (("time", "y", "x"), np.full((3, 15, 17), 5, np.float32))
    ds = ds.rio.write_crs(3413, grid_mapping_name="mapping")
    xr.testing.assert_identical(strain_dataset(ds.chunk(chunks)), strain_dataset(ds))


def test_the_accessor_and_the_function_are_one() -> None:
    import firnline
    import firnline.accessor

    ds = dataset()
    want = firnline.strain(ds, 360, method="nominal", fields=["e1"])
    xr.testing.assert_identical(ds.firnline.strain(360, method="nominal", fields=["e1"]), want)
    at = {"x": 4e5 + 960, "y": -2e6 - 840}
    layers = ds.expand_dims(time=np.array(["2019-07-02"], "M8[ns]"))
    pd.testing.assert_frame_equal(layers.firnline.series(**at), firnline.series(layers, **at))
    lines, found = firnline.flowlines(ds, **at), ds.firnline.flowlines(**at)
    assert found.geometry.iloc[0].equals(lines.geometry.iloc[0])


def test_all_missing_is_all_missing() -> None:
    ds = dataset()
    for name in ("vx", "vy"):
        ds[name] = ds[name] * np.nan
    ds["vx_error"] = ds["vy_error"] = ds["vx"]
    got = strain_dataset(ds.rio.write_crs(3413, grid_mapping_name="mapping"))
    assert set(ERROR_FIELDS) < set(got.data_vars)
    for name in FIELDS:
        assert np.isnan(got[name].values).all(), name


def test_errors_that_are_missing() -> None:
    """Without both errors there are no fields of them, and who asks for one is told so."""
    ds = dataset()
    ds["vx_error"] = 3.0
    assert not set(ERROR_FIELDS) & set(strain_dataset(ds).data_vars)
    with pytest.raises(InputError, match="e1_error"):
        strain_dataset(ds, fields=["e1_error"])
    # one that is not known leaves the rates as they are, and has no errors about it
    known = np.full((15, 17), 3.0)
    known[2, 2] = np.nan
    ds["vx_error"] = ds["vy_error"] = (("y", "x"), known)
    got = strain_dataset(ds, length_scale=120)
    near = np.zeros((15, 17), bool)
    near[1:4, [1, 3]] = True  # a slope along x gives no weight to the column of its centre
    without = strain_dataset(ds.drop_vars(["vx_error", "vy_error"]), length_scale=120)
    np.testing.assert_array_equal(got["exx"], without["exx"])
    nowhere = near | np.isnan(without["exx"].values)
    np.testing.assert_array_equal(np.isnan(got["exx_error"].values), nowhere)


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
    elif how == "integers":
        ds["vx"] = ds["vx"].round().astype(np.int16)
    elif how == "text":
        ds["vx"] = ds["vx"].astype(str)
    elif how == "errors":
        ds["vx_error"] = ds["vy_error"] = ("y", np.ones(15))
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
        ("integers", InputError, "int16 without _FillValue"),
        ("text", InputError, "accepted are real numbers"),
        ("errors", InputError, "accepted is a number, time"),
        ("short", InputError, "under one pixel"),
        ("long", InputError, "longer than the grid"),
    ],
)
def test_bad_datasets(how: str, error: type[Exception], match: str) -> None:
    ds, length = _bad(dataset(), how)
    with pytest.raises(error, match=match) as caught:
        strain_dataset(ds, length)
    assert "\n" not in str(caught.value)


# --- methods, gaps, thickness, stress


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("gaps", ["fit", "strict"])
def test_dataset_passes_on_method_and_gaps(method: Method, gaps: Gaps) -> None:
    ds = dataset()
    ds["vx"][4, 5] = np.nan
    got = strain_dataset(ds, 250, method=method, gaps=gaps)
    want = strain_rates(
        ds["vx"].values, ds["vy"].values, dx=120, dy=-120, radius=2, method=method, gaps=gaps
    )
    for name in RATES:
        np.testing.assert_array_equal(got[name], want[name])
    assert got.attrs["method"] == METHODS[method]
    assert got.attrs["gaps"] == gaps


def test_dataset_on_the_length_scale_of_the_ice() -> None:
    ds = dataset()
    thickness = xr.full_like(ds["vx"], 120.0)
    thickness[:, 8:] = 250.0
    thickness[0] = np.nan
    got = strain_dataset(ds, 1, thickness=thickness)
    values = got["half_length"].values
    assert got["half_length"].attrs["units"] == "m"
    assert np.isnan(values[0]).all()
    np.testing.assert_array_equal(values[1:, :8], 120)
    np.testing.assert_array_equal(values[1:, 8:], 240)
    assert np.isnan(got["exx"].values[0]).all()
    assert got["exx"].values[7, 8] == pytest.approx(0.02, abs=1e-6)
    assert got.attrs["half_length_asked_ice_thicknesses"] == 1
    assert "half_length_m" not in got.attrs
    same = strain_dataset(ds, 1, thickness=thickness.values)
    xr.testing.assert_identical(got, same)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.isel(x=slice(0, 5)), "not on the grid"),
        (lambda t: t.assign_coords(x=t.x + 60), "not on the grid"),
        (lambda t: t.expand_dims(time=2), "not on the grid"),
        (lambda t: t.values[:, 1:], "not on the grid"),
        (lambda t: t * np.nan, "nowhere above 0"),
        (lambda t: t * 100, "longer than the grid"),
    ],
)
def test_thickness_that_does_not_fit(change: Any, match: str) -> None:
    ds = dataset()
    with pytest.raises(InputError, match=match):
        strain_dataset(ds, 1, thickness=change(xr.full_like(ds["vx"], 200.0)))


def test_dataset_with_a_flow_law_has_stresses() -> None:
    law = FlowLaw.at(258.15)
    got = strain_dataset(dataset(), flow_law=law)
    assert list(got.data_vars) == [*RATES, *STRESS_FIELDS]
    for name in STRESS_FIELDS:
        assert got[name].attrs["units"] == "kPa"
    want = law.von_mises(got["effective"].values)
    np.testing.assert_allclose(got["von_mises"], want, rtol=1e-6)
    want = law.von_mises_tensile(got["e1"].values, got["e2"].values)
    np.testing.assert_allclose(got["von_mises_tensile"], want, rtol=1e-6)
    assert got.attrs["flow_law_rate_factor"] == law.rate_factor
    xr.testing.assert_identical(strain_dataset(dataset(), flow_law=258.15), got)
    assert "flow_law_exponent" not in strain_dataset(dataset()).attrs
