"""Flowlines of Datasets: seeds, layers, lengths and GeoJSON."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import rioxarray  # noqa: F401  registers the accessor
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer

from firnline.cache.flowlines import flowlines, to_geojson
from firnline.errors import CRSError, InputError, TooLargeError
from firnline.indexer.flow import FlowField

X = -6_000 + 120.0 * np.arange(101)
Y = -2_274_000 - 120.0 * np.arange(101)


def flow(years: int = 1, **field: Any) -> tuple[FlowField, xr.Dataset]:
    """The sample's outlet glacier, each year twice as fast as that before."""
    ice = FlowField(origin=(0.0, -2_280_000.0), **field)
    vx, vy = ice.velocity(*np.meshgrid(X, Y))
    factor = 2.0 ** np.arange(years)[:, None, None]
    ds = xr.Dataset(
        {"vx": (("time", "y", "x"), factor * vx), "vy": (("time", "y", "x"), factor * vy)},
        coords={
            "time": np.array([f"{2018 + n}-07-02" for n in range(years)], "M8[ns]"),
            "y": Y,
            "x": X,
        },
    )
    return ice, ds.rio.write_crs(3413)


def test_the_axis_of_the_trunk_is_a_flowline_with_a_known_time() -> None:
    """On it n = 0, so that the ice moves along s alone, at background + trunk A(s) G(0)."""
    ice, ds = flow()
    (line,) = flowlines(ds, x=0.0, y=-2_280_000.0).itertuples()
    x, y = np.asarray(line.geometry.coords).T
    turn = np.radians(ice.azimuth)
    s = np.cos(turn) * x + np.sin(turn) * (y + 2_280_000.0)
    n = np.cos(turn) * (y + 2_280_000.0) - np.sin(turn) * x
    assert np.abs(n).max() < 1  # bilinear between pixels, the field is not linear
    dense = np.linspace(s[0], s[-1], 20_001)
    top = np.tanh(ice.half_width / ice.margin)
    speed = ice.background + ice.trunk * 0.5 * (1 + np.tanh(dense / ice.run)) * top
    assert line.travel_time == pytest.approx(np.trapezoid(1 / speed, dense), rel=1e-4)
    assert line.length == pytest.approx(s[-1] - s[0], rel=1e-6)
    assert line.seed_distance == pytest.approx(-s[0], rel=1e-6)
    assert (line.upstream_end, line.downstream_end) == ("edge", "edge")
    assert len(line.distance) == len(line.time) == len(line.geometry.coords)
    assert line.distance[0] == line.time[0] == 0


def test_ice_converges_into_the_trunk() -> None:
    ice, ds = flow()
    box = (-4_000.0, -2_284_000.0, 4_000.0, -2_276_000.0)
    lines = flowlines(ds, area=box, crs="EPSG:3413", spacing=2000, direction="downstream")
    assert lines.crs.to_epsg() == 3413
    assert len(lines) == 25  # at multiples of 2 km, those on the outline among them
    ends = np.array([line.coords[-1] for line in lines.geometry])
    turn = np.radians(ice.azimuth)
    across = np.cos(turn) * (ends[:, 1] + 2_280_000) - np.sin(turn) * ends[:, 0]
    begins = np.array([line.coords[0] for line in lines.geometry])
    across_first = np.cos(turn) * (begins[:, 1] + 2_280_000) - np.sin(turn) * begins[:, 0]
    assert (np.abs(across) <= np.abs(across_first) + 1).all()
    assert (lines["seed_distance"] == 0).all()


def test_layers_are_chosen_by_time() -> None:
    _, ds = flow(years=3)
    where = {"x": 0.0, "y": -2_280_000.0}
    times = [flowlines(ds, **where, time=t).travel_time[0] for t in ("2018-01-01", "2020")]
    assert times[0] == pytest.approx(4 * times[1], rel=1e-9)
    with pytest.raises(InputError, match="3 layers"):
        flowlines(ds, **where)
    with pytest.raises(InputError, match="accepted is a date"):
        flowlines(ds, **where, time="yesterday")
    plain = ds.isel(time=2, drop=True).transpose("x", "y")
    assert flowlines(plain, **where).travel_time[0] == times[1]


@given(turn=st.floats(0, 360), seed=st.integers(0, 99))
@settings(max_examples=15)
def test_the_same_ice_on_a_grid_upside_down(turn: float, seed: int) -> None:
    _, ds = flow(azimuth=turn)
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-5000, 5000, 3), -2_280_000 + rng.uniform(-5000, 5000, 3)
    one, other = flowlines(ds, x=x, y=y), flowlines(ds.isel(y=slice(None, None, -1)), x=x, y=y)
    assert shapely.equals_exact(one.geometry.values, other.geometry.values, 1e-6).all()
    np.testing.assert_allclose(one["travel_time"], other["travel_time"], rtol=1e-9)


def test_seeds_without_velocity_have_no_line() -> None:
    _, ds = flow()
    ds["vx"][:, :, :50] = np.nan
    lines = flowlines(ds, x=[-3000.0, 3000.0], y=[-2_280_000.0, -2_280_000.0])
    assert lines["seed"].tolist() == [1]
    nothing = flowlines(ds, x=-3000.0, y=-2_280_000.0)
    assert len(nothing) == 0
    assert to_geojson(nothing)["features"] == []


def test_geojson_is_in_degrees_with_a_number_a_position() -> None:
    _, ds = flow()
    lines = flowlines(ds, x=[0.0, 1000.0], y=[-2_280_000.0, -2_279_000.0])
    document = to_geojson(lines)
    assert document["type"] == "FeatureCollection"
    assert "crs" not in document
    to_degrees = Transformer.from_crs(3413, 4326, always_xy=True)
    for feature, line in zip(document["features"], lines.itertuples(), strict=True):
        lonlat = np.array(feature["geometry"]["coordinates"])
        want = to_degrees.transform(*np.asarray(line.geometry.coords).T)
        np.testing.assert_allclose(lonlat.T, want, atol=1e-9)
        properties = feature["properties"]
        assert len(properties["distance"]) == len(properties["time"]) == len(lonlat)
        assert properties["length"] == pytest.approx(properties["distance"][-1])
    assert document["units"]["time"] == "year"


def test_an_area_in_degrees() -> None:
    _, ds = flow()
    west, south = Transformer.from_crs(3413, 4326, always_xy=True).transform(-2000, -2_282_000)
    lines = flowlines(ds, area=(west, south, west + 0.05, south + 0.02), spacing=500)
    seeds = [line.coords[0] for line in lines.geometry]
    assert len(seeds) > 4
    polygon = shapely.box(west, south, west + 0.05, south + 0.02)
    same = flowlines(ds, area=polygon, spacing=500, crs="EPSG:4326")
    assert shapely.equals_exact(lines.geometry.values, same.geometry.values).all()
    back = Transformer.from_crs(3413, 4326, always_xy=True)
    for line in lines.itertuples():
        at = line.distance.index(line.seed_distance)
        lon, lat = back.transform(*line.geometry.coords[at])
        assert west - 1e-6 <= lon <= west + 0.05 + 1e-6
        assert south - 1e-6 <= lat <= south + 0.02 + 1e-6


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({}, InputError, "by lon and lat, or by x and y"),
        ({"area": (0, 0, 1, 1), "x": 0.0, "y": 0.0}, InputError, "either"),
        ({"area": (-150.0, 10.0, -149.0, 11.0)}, InputError, "no seed"),
        (
            {"area": (-6e3, -2.286e6, 6e3, -2.274e6), "crs": "EPSG:3413", "spacing": 10},
            TooLargeError,
            "too many",
        ),
        ({"x": 0.0, "y": -2.28e6, "step": -1.0}, InputError, "positive"),
        (
            {"area": (-6e3, -2.286e6, 6e3, -2.274e6), "crs": "EPSG:3413", "spacing": -5},
            InputError,
            "positive",
        ),
    ],
)
def test_refusals(asked: dict[str, Any], error: type[Exception], says: str) -> None:
    _, ds = flow()
    with pytest.raises(error, match=says):
        flowlines(ds, **asked)


def test_other_datasets_are_refused() -> None:
    _, ds = flow()
    with pytest.raises(InputError, match="no variable vy"):
        flowlines(ds.drop_vars("vy"), x=0.0, y=0.0)
    with pytest.raises(CRSError, match="no CRS"):
        flowlines(ds.drop_vars("spatial_ref"), x=0.0, y=0.0)
    uneven = ds.assign_coords(x=X**3)
    with pytest.raises(InputError, match="unequal spacing along x"):
        flowlines(uneven, x=0.0, y=0.0)
