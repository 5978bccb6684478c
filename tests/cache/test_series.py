"""Series at points and along lines, against the arrays that they were taken from."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rioxarray  # noqa: F401  registers the accessor
import xarray as xr
from pyproj import Transformer
from shapely.geometry import LineString

from firnline.cache.flowlines import flowlines
from firnline.cache.series import encode, series
from firnline.errors import CRSError, InputError

GAP = -32767
NY, NX, LAYERS = 45, 50, 6
X = -100_000 + 120.0 * np.arange(NX)
Y = -2_000_000 - 120.0 * np.arange(NY)
DT = np.array([16.0, 32.5, 8.0, 400.0, 6.0, 12.0], np.float32)
MID = np.datetime64("2019-01-01", "ns") + (np.array([40, 20.25, 60, 10, 30, 50]) * 86_400e9).astype(
    "m8[ns]"
)


def pairs() -> xr.Dataset:
    """Image pairs that are not sorted, as in a cube, decoded as xarray does it."""
    rng = np.random.default_rng(0)
    raw = {name: rng.integers(-3000, 3000, (LAYERS, NY, NX)).astype("f4") for name in ("vx", "vy")}
    for values in raw.values():
        values[2, 10:20, 10:20] = np.nan
    ds = xr.Dataset(
        {
            **{name: (("mid_date", "y", "x"), values) for name, values in raw.items()},
            "v": (("mid_date", "y", "x"), np.full((LAYERS, NY, NX), 32767, "f4")),
            "vx_error": ("mid_date", np.arange(LAYERS, dtype="f4") + 1.1),
            "vy_error": ("mid_date", np.arange(LAYERS, dtype="f4") + 2.2),
            "date_dt": ("mid_date", DT),
            "mission_img1": ("mid_date", list("LLSSSS")),
            "satellite_img1": ("mid_date", ["8", "9", "2A", "2B", "1A", "1A"]),
            "mission_img2": ("mid_date", list("LLSSSS")),
            "satellite_img2": ("mid_date", ["8", "8", "2B", "2B", "1A", "1A"]),
            "granule": ("mid_date", [f"pair_{n}.nc" for n in range(LAYERS)]),
        },
        coords={"mid_date": MID, "y": Y, "x": X},
    )
    for name in ("vx", "vy", "v", "vx_error", "vy_error"):
        ds[name].attrs["units"] = "meter/year"
    return ds.rio.write_crs(3413)


def test_a_point_of_image_pairs() -> None:
    ds = pairs()
    frame = series(ds, x=X[7] + 50, y=Y[3] - 55)
    assert frame["mid_date"].is_monotonic_increasing
    order = np.argsort(MID)
    for name in ("vx", "vy"):
        np.testing.assert_array_equal(frame[name], ds[name].values[order, 3, 7])
    np.testing.assert_allclose(frame["v"], np.hypot(frame.vx, frame.vy), rtol=1e-6)
    assert frame["v"].max() < 5000, "saturated speeds are not taken over"
    half = pd.to_timedelta(DT[order] / 2, unit="D")
    for name, want in (("start", frame["mid_date"] - half), ("end", frame["mid_date"] + half)):
        assert abs(frame[name] - want).max() < pd.Timedelta("1s")
    np.testing.assert_array_equal(frame["dt_days"], DT[order])
    np.testing.assert_allclose(frame["vx_error"], order + 1.1, rtol=1e-6)
    assert frame["granule"].tolist() == [f"pair_{n}.nc" for n in order]
    assert frame["satellite_1"].tolist() == [
        ["L8", "L9", "S2A", "S2B", "S1A", "S1A"][n] for n in order
    ]
    assert frame["satellite_2"].tolist()[1] == "L8"
    assert frame.attrs["units"]["vx_error"] == "meter/year"


def test_degrees_and_another_crs_are_the_same_place() -> None:
    ds = pairs()
    want = series(ds, x=X[30] + 20, y=Y[40])
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(X[30] + 20, Y[40])
    ux, uy = Transformer.from_crs(3413, 32622, always_xy=True).transform(X[30] + 20, Y[40])
    for got in (series(ds, lon=lon, lat=lat), series(ds, x=ux, y=uy, crs="EPSG:32622")):
        pd.testing.assert_frame_equal(got, want, check_exact=False, atol=1e-3)
    assert want["lon"][0] == pytest.approx(lon, abs=1e-7)
    assert want["lat"][0] == pytest.approx(lat, abs=1e-7)


@pytest.mark.parametrize("lazy", [False, True])
def test_many_points_over_many_blocks(lazy: bool) -> None:
    ds = pairs().chunk({"mid_date": 4, "y": 20, "x": 20}) if lazy else pairs()
    rng = np.random.default_rng(1)
    rows, columns = rng.integers(0, NY, 60), rng.integers(0, NX, 60)
    frame = series(ds, x=X[columns], y=Y[rows], variables=["vy"])
    values = ds["vy"].values[:, rows, columns]
    assert len(frame) == np.isfinite(values).sum() < values.size, "missing values have no row"
    for point in range(60):
        mine = frame[frame["point"] == point].sort_values("mid_date")["vy"]
        there = values[np.argsort(MID), point]
        np.testing.assert_array_equal(mine, there[np.isfinite(there)])
    assert "vx" not in frame
    assert "v" not in frame


def test_bilinear_is_exact_where_the_field_is_linear() -> None:
    ds = pairs().isel(mid_date=[0])
    x, y = np.meshgrid(X, Y)
    ds["vx"][0] = 0.01 * x + 0.02 * y
    px, py = X[19] + np.array([10.0, 60, 119]), Y[19] - np.array([10.0, 60, 119])
    frame = series(ds, x=px, y=py, variables=["vx"], method="bilinear")
    np.testing.assert_allclose(frame["vx"], 0.01 * px + 0.02 * py, atol=2e-3)  # float32 fields
    nearest = series(ds, x=px, y=py, variables=["vx"])
    assert nearest["vx"].tolist() == [
        ds.vx.values[0, r, c] for r, c in ((19, 19), (20, 20), (20, 20))
    ]


def composite() -> xr.Dataset:
    """Two years of uniform flow to the east, the second at twice the speed."""
    shape = (2, NY, NX)
    speed = np.broadcast_to(np.array([300.0, 600.0])[:, None, None], shape).astype("f4")
    start = np.array(["2019-01-01", "2020-01-01"], "M8[ns]")
    end = np.array(["2020-01-01", "2021-01-01"], "M8[ns]")
    ds = xr.Dataset(
        {
            "vx": (("time", "y", "x"), speed),
            "vy": (("time", "y", "x"), speed * 0),
            "count": (("time", "y", "x"), np.arange(2 * NY * NX).reshape(shape)),
            "first_date": (("time", "y", "x"), np.broadcast_to(start[:, None, None], shape)),
        },
        coords={
            "time": ("time", start + (end - start) // 2, {"bounds": "time_bounds"}),
            "time_bounds": (("time", "bounds"), np.stack([start, end], axis=1)),
            "y": Y,
            "x": X,
        },
    )
    return ds.rio.write_crs(3413)


def test_a_composite_has_its_periods_as_spans() -> None:
    frame = series(composite(), x=X[5], y=Y[5], method="bilinear")
    assert frame["start"].tolist() == [pd.Timestamp("2019-01-01"), pd.Timestamp("2020-01-01")]
    assert frame["end"].tolist() == [pd.Timestamp("2020-01-01"), pd.Timestamp("2021-01-01")]
    assert frame["v"].tolist() == [300, 600]
    # nothing lies between two counts or two dates
    assert frame["count"].tolist() == [5 * NX + 5, (NY + 5) * NX + 5]
    assert frame["first_date"].tolist() == frame["start"].tolist()


def test_one_map_has_no_times() -> None:
    frame = series(composite().isel(time=1, drop=True)[["vx", "vy"]], x=X[:2], y=Y[:2])
    assert frame["v"].tolist() == [600, 600]
    assert "mid_date" not in frame


def test_along_a_flowline() -> None:
    ds = composite()
    lines = flowlines(ds, x=[X[10], X[20]], y=[Y[10], Y[30]], time="2020-06")
    frame = series(ds, along=lines, spacing=500.0)
    whole = X[-1] - X[0]
    for line, group in frame[frame["start"] == "2019-01-01"].groupby("line"):
        distance = group["distance"].to_numpy()
        assert distance[0] == 0
        assert distance[-1] == pytest.approx(whole, abs=2 * 60 / 16)
        np.testing.assert_allclose(np.diff(distance)[:-1], 500)
        np.testing.assert_allclose(group["x"], distance + lines.geometry[line].coords[0][0])
        np.testing.assert_allclose(group["y"], [Y[10], Y[30]][line])
    assert set(frame["v"].round(3)) == {300, 600}
    single = series(ds, along=LineString([(X[3], Y[4]), (X[3] + 1000, Y[4])]))
    assert single["distance"].max() == 1000
    assert "line" not in single
    turned = series(ds, along=lines.to_crs(32622), spacing=500.0)
    np.testing.assert_allclose(turned["y"], frame["y"], atol=0.5)


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({}, InputError, "by lon and lat, or by x and y"),
        ({"lon": -49.0}, InputError, "by lon and lat, or by x and y"),
        ({"lon": -49.0, "lat": 69.0, "x": 0.0, "y": 0.0}, InputError, "by lon and lat"),
        ({"x": [1.0, 2.0], "y": [1.0]}, InputError, "pairs"),
        ({"x": np.nan, "y": 0.0}, InputError, "not finite"),
        ({"lon": -100_000.0, "lat": -2e6}, InputError, "not in degrees"),
        ({"x": X[0] - 61, "y": Y[0]}, InputError, "outside of the grid: x from -100000"),
        ({"x": 0.0, "y": 0.0, "crs": "EPSG:99999"}, CRSError, "EPSG:99999"),
        ({"x": X[0], "y": Y[0], "variables": ["vz"]}, InputError, "accepted are vx, vy, v"),
        ({"along": LineString(), "spacing": 100}, InputError, "LineStrings"),
        ({"along": LineString([(X[0], Y[0]), (X[1], Y[1])]), "spacing": 0}, InputError, "positive"),
        ({"along": LineString([(0, 0), (1, 1)]), "x": 0.0, "y": 0.0}, InputError, "either"),
    ],
)  # fmt: skip
def test_refusals(asked: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        series(pairs(), **asked)


def test_a_crs_is_never_guessed() -> None:
    with pytest.raises(CRSError, match=r"no CRS.*write_crs"):
        series(pairs().drop_vars("spatial_ref"), x=X[0], y=Y[0])
    with pytest.raises(CRSError, match="not a projected CRS"):
        series(pairs().rio.write_crs(4326), x=X[0], y=Y[0])


def test_files_hold_the_table() -> None:
    frame = series(pairs(), x=X[[7, 15]], y=Y[[3, 15]])
    parquet = pd.read_parquet(io.BytesIO(encode(frame, "parquet")))
    assert str(parquet["start"].dtype) == "datetime64[us, UTC]"
    assert parquet["granule"].tolist() == frame["granule"].tolist()
    np.testing.assert_array_equal(parquet["vx"], frame["vx"])
    csv = pd.read_csv(io.BytesIO(encode(frame, "csv")), parse_dates=["mid_date", "start", "end"])
    assert csv.columns.tolist() == frame.columns.tolist()
    np.testing.assert_allclose(csv["vx_error"], frame["vx_error"], rtol=1e-6)
    assert b",1.1," in encode(frame, "csv"), "float32 is not written as if it were float64"
    off = csv["end"].dt.tz_localize(None) - frame["end"]
    assert abs(off).max() <= pd.Timedelta("1ms")
    rows = json.loads(encode(frame, "json"))
    assert len(rows) == len(frame) == 11
    assert rows[0]["mid_date"] == "2019-01-11T00:00:00.000Z"
    assert rows[0]["granule"] == "pair_3.nc"
    frame.loc[0, "mid_date"] = pd.NaT
    frame.loc[0, "vx_error"] = np.nan
    first = json.loads(encode(frame, "json"))[0]
    assert (first["mid_date"], first["vx_error"]) == (None, None)
    with pytest.raises(InputError, match="csv, json, parquet"):
        encode(frame, "xlsx")  # type: ignore[arg-type]
