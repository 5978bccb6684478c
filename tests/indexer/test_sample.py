from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import sqrt, tanh
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from numcodecs import Blosc
from obstore.store import HTTPStore
from pyproj import CRS, Transformer
from rio_cogeo import cog_validate
from zarr.storage import ObjectStore

from firnline.errors import InputError
from firnline.indexer.flow import FlowField, year_fraction
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import CubeRecord, Mirror, write_mirror, write_scale_cubes
from firnline.indexer.sample_cube import grid_velocity
from firnline.indexer.sample_mosaics import ANNUAL, STATIC, UNSEEN, mosaic_path
from firnline.items import grid_of_tile

MISSING = -32767


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    root = tmp_path_factory.mktemp("bucket")
    with MirrorServer(root) as server:
        yield server, write_mirror(root, server.url)


@pytest.fixture(scope="module")
def mirror(served: tuple[MirrorServer, Mirror]) -> Mirror:
    return served[1]


@pytest.fixture(scope="module")
def raw(mirror: Mirror) -> dict[str, xr.Dataset]:
    """All cubes as they are stored, but that chunks which do not exist are missing, not 0."""
    out = {}
    for cube in mirror.cubes:
        ds = xr.open_zarr(
            mirror.root / cube.path, consolidated=True, decode_cf=False, chunks=None
        ).load()
        for i, j in cube.absent:
            for name in ("v", "vx", "vy", "v_error"):
                ds[name].values[:, i * 10 : i * 10 + 10, j * 10 : j * 10 + 10] = MISSING
        out[cube.name] = ds
    return out


def quarter(mirror: Mirror, which: str) -> CubeRecord:
    return mirror.cubes[("nw", "ne", "sw", "se", "utm").index(which)]


def zarray(mirror: Mirror, cube: CubeRecord, name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((mirror.root / cube.path / name / ".zarray").read_text())
    return document


# The flow


def test_velocity_at_the_middle_by_hand() -> None:
    flow = FlowField(origin=(0.0, 0.0), azimuth=0.0)
    u = 120.0 + 6000.0 * 0.5 * tanh(3000.0 / 1800.0)
    assert [float(c) for c in flow.velocity(0.0, 0.0)] == pytest.approx([u, 0.0])
    exx, eyy, exy = flow.strain(0.0, 0.0)
    assert float(exx) == pytest.approx(6000.0 * tanh(3000.0 / 1800.0) / (2 * 9000.0))
    assert float(eyy) == pytest.approx(-300.0 / 6000.0)
    assert float(exy) == pytest.approx(0.0, abs=1e-15)
    # Turned by a right angle, x becomes y.
    turned = FlowField(origin=(0.0, 0.0), azimuth=90.0)
    assert [float(c) for c in turned.velocity(0.0, 0.0)] == pytest.approx([0.0, u], abs=1e-9)
    assert float(turned.strain(0.0, 0.0)[1]) == pytest.approx(float(exx))


def test_strain_equals_finite_differences() -> None:
    flow = FlowField()
    x, y = np.meshgrid(np.linspace(-182e3, -158e3, 61), np.linspace(-2292e3, -2268e3, 61))

    def slope(axis: int, component: int, h: float = 8.0) -> np.ndarray[Any, Any]:
        dx, dy = (h, 0.0) if axis == 0 else (0.0, h)
        at = [flow.velocity(x + k * dx, y + k * dy)[component] for k in (-2, -1, 1, 2)]
        result: np.ndarray[Any, Any] = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
        return result

    expected = slope(0, 0), slope(1, 1), 0.5 * (slope(1, 0) + slope(0, 1))
    for exact, difference in zip(flow.strain(x, y), expected, strict=True):
        np.testing.assert_allclose(exact, difference, rtol=1e-6, atol=1e-9)
        assert np.abs(exact).max() > 0.1


def test_it_looks_like_an_outlet_glacier() -> None:
    flow = FlowField()
    x, y = np.meshgrid(np.linspace(-180e3, -160e3, 81), np.linspace(-2290e3, -2270e3, 81))
    speed = np.hypot(*flow.velocity(x, y))
    assert 3000 < speed.max() < 8000
    assert speed.min() < 250
    exx, eyy, exy = flow.strain(x, y)
    assert np.sqrt(exx**2 + eyy**2 + exx * eyy + exy**2).max() > 0.5


def test_time() -> None:
    flow = FlowField()
    assert float(year_fraction(np.datetime64("1970-01-01"))) == 1970.0
    steady = np.array(flow.velocity(-165e3, -2281e3))
    middle = np.array(flow.velocity(-165e3, -2281e3, 2020.5))
    np.testing.assert_allclose(middle, steady * (1 + flow.trend * 1.5), rtol=1e-12)
    quarters = [float(flow.factor(2018 + k / 1000)) for k in range(1000)]
    assert np.mean(quarters) == pytest.approx(float(flow.factor(2018.5)), abs=1e-4)
    assert max(quarters) - min(quarters) == pytest.approx(2 * flow.season, rel=0.3)


# The cubes' form


def test_opens_over_http_by_consolidated_metadata(served: tuple[MirrorServer, Mirror]) -> None:
    server, mirror = served
    server.clear()
    cube = mirror.cubes[0]
    assert mirror.url(cube).startswith("http://127.0.0.1:")
    store = HTTPStore.from_url(mirror.url(cube), client_options={"allow_http": True})
    ds = xr.open_zarr(ObjectStore(store, read_only=True), consolidated=True, chunks=None)
    assert ds.vx.dims == ("mid_date", "y", "x")
    assert ds.vx.shape == cube.shape
    assert ds.mid_date.dtype == np.dtype("datetime64[ns]")
    assert np.isnan(ds.vx[:, :10, :10].values).any()
    paths = [r.path.split(".zarr/")[1] for r in server.requests]
    # One document for all metadata, and of the 3-D arrays only the chunk that was read.
    assert paths.count(".zmetadata") == 1
    assert not [p for p in paths if p.endswith("/.zarray")]
    assert [p for p in paths if p.count(".") == 2] == ["vx/0.0.0"]


def test_three_dimensional_arrays_are_stored_as_the_real_ones(mirror: Mirror) -> None:
    codec = Blosc(cname="zlib", clevel=2, shuffle=1).get_config()
    types = {"interp_mask": "|u1", "chip_size_height": "<u2", "chip_size_width": "<u2"}
    for cube in mirror.cubes:
        consolidated = json.loads((mirror.root / cube.path / ".zmetadata").read_text())["metadata"]
        for name in ("v", "vx", "vy", "v_error", "va", "vr", "M11", "M12", *types):
            meta = zarray(mirror, cube, name)
            assert meta == consolidated[f"{name}/.zarray"]
            assert meta["zarr_format"] == 2
            assert meta["dtype"] == types.get(name, "<i2")
            assert meta["fill_value"] is None
            assert meta["shape"] == list(cube.shape)
            assert meta["chunks"] == [240, 10, 10]
            assert meta["compressor"] == codec
            attrs = consolidated[f"{name}/.zattrs"]
            assert attrs["_ARRAY_DIMENSIONS"] == ["mid_date", "y", "x"]
            assert attrs["missing_value"] == (0 if name in types else MISSING)
            assert "_FillValue" not in attrs
            assert attrs["grid_mapping"] == "mapping"


def test_scalars_are_stored_as_the_real_ones(mirror: Mirror) -> None:
    cube = mirror.cubes[0]
    expected: dict[str, tuple[str, Any]] = {
        "mid_date": ("<f8", "NaN"),
        "date_center": ("<f8", "NaN"),
        "acquisition_date_img1": ("<f8", "NaN"),
        "acquisition_date_img2": ("<f8", "NaN"),
        "date_dt": ("<f4", "NaN"),
        "roi_valid_percentage": ("<f4", "NaN"),
        "stable_shift_flag": ("|u1", None),
        "stable_count_slow": ("<u2", None),
        "stable_count_stationary": ("<u2", None),
        "M11_dr_to_vr_factor": ("<f4", 0.0),
        "M12_dr_to_vr_factor": ("<f4", 0.0),
        "mission_img1": ("<U1", None),
        "mission_img2": ("<U1", None),
        "satellite_img1": ("<U2", None),
        "satellite_img2": ("<U2", None),
        "sensor_img1": ("<U3", None),
        "sensor_img2": ("<U3", None),
        "autoRIFT_software_version": ("<U5", None),
        "granule_url": ("<U1024", None),
    }
    for component in ("vx", "vy", "va", "vr"):
        for kind in ("error", "error_modeled", "error_slow", "error_stationary"):
            expected[f"{component}_{kind}"] = ("<f4", -32767.0)
        for kind in ("stable_shift", "stable_shift_slow", "stable_shift_stationary"):
            expected[f"{component}_{kind}"] = ("<f4", -32767.0)
    for name, (dtype, fill) in expected.items():
        meta = zarray(mirror, cube, name)
        assert (meta["dtype"], meta["fill_value"]) == (dtype, fill), name
        assert (meta["shape"], meta["chunks"]) == ([240], [240]), name
    group = zarr.open_group(mirror.root / cube.path, mode="r", zarr_format=2)
    one = {name for name, array in group.arrays() if array.shape == (240,)}
    assert one == set(expected)


def test_masks_and_mapping(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    for cube in mirror.cubes:
        ds = raw[cube.name]
        for name in ("landice", "floatingice"):
            meta = zarray(mirror, cube, name)
            assert (meta["dtype"], meta["fill_value"]) == ("|u1", None)
            assert meta["chunks"] == list(cube.shape[1:])
            assert ds[name].attrs["missing_value"] == 255
            assert (ds[name] == 255).any()
            assert ds[name].dims == ("y", "x")
        mapping = ds.mapping.attrs
        assert mapping["spatial_epsg"] == cube.epsg
        assert CRS.from_wkt(mapping["crs_wkt"]) == CRS.from_epsg(cube.epsg)
        assert CRS.from_cf({k: v for k, v in mapping.items() if "wkt" not in k}) is not None
        left, dx, _, top, _, dy = (float(n) for n in mapping["GeoTransform"].split())
        assert (dx, dy) == (120.0, -120.0)
        assert (left, top) == (ds.x.values[0] - 60, ds.y.values[0] + 60)


def test_lattice_and_abutment(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    for cube in mirror.cubes:
        x, y = raw[cube.name].x.values, raw[cube.name].y.values
        assert set(x % 120) == {52.5}
        assert set(y % 120) == {67.5}
        assert set(np.diff(x)) == {120.0}
        assert set(np.diff(y)) == {-120.0}
        left, bottom, right, top = cube.bounds
        # the producers' rule, from which the catalog's items take their grid
        shape, transform = grid_of_tile(cube.bounds)
        assert shape == [len(y), len(x)]
        assert (transform[2], transform[5]) == (x[0] - 60, y[0] + 60)
        assert all(edge % 10_000 == 0 for edge in cube.bounds)
        number = re.search(r"EPSG(\d+)_G0120_X(-?\d+)_Y(-?\d+)$", cube.name)
        assert number is not None
        centre = ((left + right) / 2, (bottom + top) / 2)
        assert [int(n) for n in number.groups()] == [cube.epsg, *centre]
        assert cube.path == f"datacubes/v2/N60W040/{cube.name}.zarr"
    nw, ne, sw = (raw[quarter(mirror, k).name] for k in ("nw", "ne", "sw"))
    assert ne.x.values[0] - nw.x.values[-1] == 120.0
    assert nw.y.values[-1] - sw.y.values[0] == 120.0
    np.testing.assert_array_equal(nw.x, sw.x)
    # The widths differ and are no multiples of a chunk: the cubes' chunks are out of phase.
    assert {nw.sizes["x"], ne.sizes["x"]} == {83, 84}


def test_the_other_crs_overlaps(mirror: Mirror) -> None:
    utm = quarter(mirror, "utm")
    assert utm.epsg == 32622
    corner = Transformer.from_crs(3413, 32622, always_xy=True).transform(-170_000, -2_280_000)
    assert utm.bounds[0] <= corner[0] < utm.bounds[2]
    assert utm.bounds[1] <= corner[1] < utm.bounds[3]
    assert not mirror.shared.intersection(utm.granules)


def test_some_chunks_do_not_exist(mirror: Mirror) -> None:
    cube = quarter(mirror, "se")
    assert cube.absent == ((2, 3), (2, 4))
    rows, cols = (-(-n // 10) for n in cube.shape[1:])
    every = {f"0.{i}.{j}" for i in range(rows) for j in range(cols)}
    for name in ("vx", "v_error", "interp_mask", "chip_size_width", "M11"):
        there = {p.name for p in (mirror.root / cube.path / name).iterdir() if p.name[0] != "."}
        assert there == every - {"0.2.3", "0.2.4"}
    # The trap: fill_value is null, so libraries read 0 where nothing is.
    array = zarr.open_array(mirror.root / cube.path / "vx", mode="r", zarr_format=2)
    assert np.all(np.asarray(array[:, 20:30, 30:50]) == 0)


# The pairs


def test_times_are_unsorted_and_not_unique(raw: dict[str, xr.Dataset]) -> None:
    for ds in raw.values():
        days = ds.mid_date.values
        assert ds.mid_date.attrs["units"] == "days since 1970-01-01"
        assert not np.all(np.diff(days) > 0)
        _, first, count = np.unique(days, return_index=True, return_counts=True)
        assert (count > 1).sum() >= 3
        assert len(set(ds.granule_url.values.tolist())) == len(days)
        again = days[first[count > 1][0]] == days
        assert len(set(ds.granule_url.values[again].tolist())) == again.sum() > 1


def test_mid_date_is_the_midpoint_with_the_date_of_image_1(raw: dict[str, xr.Dataset]) -> None:
    for ds in raw.values():
        first, second = (
            np.rint(ds[f"acquisition_date_img{k}"].values * 86_400).astype(int) for k in (1, 2)
        )
        micro = np.rint(ds.mid_date.values * 86_400e6).astype(np.int64)
        # At 17,500 days a float64 resolves 0.3 microseconds.
        label = micro - (first + second) // 2 * 1_000_000
        day = first.astype("datetime64[s]").astype("datetime64[D]").astype(str)
        expected = [int(d.replace("-", "")[2:]) for d in day]
        assert np.abs(label - expected).max() <= 1
        dt = (second - first) / 86_400
        np.testing.assert_allclose(ds.date_dt, dt, rtol=1e-6)
        assert dt.min() > 5.9
        assert dt.max() < 400.1
        assert min(day) >= "2017-01-01"
        assert second.astype("datetime64[s]").max() <= np.datetime64("2021-01-01")


def test_granule_names_look_real(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    scene = {
        "landsatOLI": r"LC08_L1TP_\d{6}_\d{8}_\d{8}_02_T1",
        "sentinel2": r"S2[AB]_MSIL1C_\d{8}T\d{6}_N0207_R\d{3}_T22W[A-V]{2}_\d{8}T\d{6}",
        "sentinel1": r"S1[AB]_IW_SLC__1SDH_\d{8}T\d{6}_\d{8}T\d{6}_\d{6}_[0-9A-F]{6}_[0-9A-F]{4}",
    }
    found = set()
    for cube in mirror.cubes:
        ds = raw[cube.name]
        for url, who, granule in zip(
            ds.granule_url.values, ds.satellite_img1.values, cube.granules, strict=True
        ):
            head = f"{mirror.base_url}/velocity_image_pair/"
            assert url.startswith(head)
            kind, version, folder, name = url.removeprefix(head).split("/")
            assert (version, folder, name) == ("v02", "N60W040", granule)
            assert re.fullmatch(rf"{scene[kind]}_X_{scene[kind]}_G0120V02_P\d{{3}}\.nc", name), name
            assert who == {"LC08": "8", "S2A_": "2A", "S1A_": "1A"}[name[:4]]
            found.add(kind)
    assert found == set(scene)


def test_neighbours_share_pairs(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    def common(a: str, b: str) -> set[str]:
        return set(quarter(mirror, a).granules) & set(quarter(mirror, b).granules)

    assert len(common("nw", "ne")) == len(common("sw", "se")) == 120
    assert len(common("nw", "sw")) == len(common("ne", "sw")) == 90
    assert mirror.shared == common("nw", "ne") | common("sw", "se")
    west, east = quarter(mirror, "nw"), quarter(mirror, "ne")
    names = sorted(common("nw", "ne"))
    one, two = ([c.granules.index(n) for n in names] for c in (west, east))
    assert one != two
    assert np.argsort(one).tolist() != np.argsort(two).tolist()
    a, b = raw[west.name].isel(mid_date=one), raw[east.name].isel(mid_date=two)
    for name in a.variables:
        if a[name].dims == ("mid_date",) and name != "roi_valid_percentage":
            np.testing.assert_array_equal(a[name], b[name], err_msg=str(name))
    assert (a.roi_valid_percentage != b.roi_valid_percentage).any()
    # Equal instants of different granules on either side of an edge: not the same pair.
    other = set(west.granules) - set(names)
    instants = {
        c.name: {
            d: g
            for d, g in zip(raw[c.name].mid_date.values.tolist(), c.granules, strict=True)
            if g not in names
        }
        for c in (west, east)
    }
    meet = instants[west.name].keys() & instants[east.name].keys()
    assert meet
    assert all(instants[west.name][d] in other for d in meet)
    assert all(instants[west.name][d] != instants[east.name][d] for d in meet)


# The cubes' values


def test_missing(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    for cube in mirror.cubes:
        ds = raw[cube.name]
        gone = ds.vx.values == MISSING
        assert 0.6 < gone.mean() < 0.8
        for name in ("v", "vy", "v_error"):
            np.testing.assert_array_equal(ds[name].values == MISSING, gone)
        np.testing.assert_array_equal(ds.chip_size_width.values == 0, gone)
        np.testing.assert_array_equal(ds.chip_size_height, ds.chip_size_width)
        assert set(np.unique(ds.interp_mask)) == {0, 1}
        assert not (ds.interp_mask.values[gone]).any()
        # Gaps hang together: a neighbour shares the fate far more often than by chance (0.58).
        assert (gone[:, :, 1:] == gone[:, :, :-1]).mean() > 0.9
        if not cube.absent:
            share = 100 * (~gone).mean(axis=(1, 2))
            np.testing.assert_allclose(ds.roi_valid_percentage, share, rtol=1e-5)


def test_gaps_go_on_across_an_edge(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    west, east = quarter(mirror, "nw"), quarter(mirror, "ne")
    names = sorted(set(west.granules) & set(east.granules))
    a = raw[west.name].vx.values[[west.granules.index(n) for n in names]][:, :, -1] == MISSING
    b = raw[east.name].vx.values[[east.granules.index(n) for n in names]][:, :, 0] == MISSING
    assert (a == b).mean() > 0.85


def analytic(
    mirror: Mirror, cube: CubeRecord, ds: xr.Dataset
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    x, y = np.meshgrid(ds.x.values, ds.y.values)
    year = 1970 + ds.mid_date.values / 365.25
    if cube.epsg == 3413:
        return mirror.flow.velocity(x, y, year[:, None, None])
    vx, vy = grid_velocity(mirror.flow, cube.epsg, x, y)
    factor = mirror.flow.factor(year)[:, None, None]
    return factor * vx, factor * vy


def test_values_are_the_field_within_the_reported_noise(
    mirror: Mirror, raw: dict[str, xr.Dataset]
) -> None:
    for cube in mirror.cubes:
        ds = raw[cube.name]
        good = (ds.vx.values != MISSING) & (ds.v.values != 32767)
        for name, truth in zip(("vx", "vy"), analytic(mirror, cube, ds), strict=True):
            error = ds[f"{name}_error"].values[:, None, None]
            # Rounding to whole metres a year adds a variance of 1/12.
            score = ((ds[name].values - truth) / np.sqrt(error**2 + 1 / 12))[good]
            assert abs(score.mean()) < 4 / sqrt(score.size)
            assert score.std() == pytest.approx(1.0, abs=0.01)
        spread = np.hypot(
            ds.vx.values * ds.vx_error.values[:, None, None],
            ds.vy.values * ds.vy_error.values[:, None, None],
        ) / np.maximum(np.hypot(ds.vx.values, ds.vy.values), 1)
        np.testing.assert_allclose(ds.v_error.values[good], np.maximum(spread, 1)[good], atol=0.51)


def test_without_noise_the_values_are_the_rounded_field(tmp_path: Path) -> None:
    mirror = write_mirror(
        tmp_path, "http://x", pairs=16, noise=0.0, missing=0.0, cubes=("ne",), mosaics=False
    )
    (cube,) = mirror.cubes
    ds = xr.open_zarr(tmp_path / cube.path, decode_cf=False, chunks=None)
    good = ds.v.values != 32767
    assert not (ds.vx.values == MISSING).any()
    for name, truth in zip(("vx", "vy"), analytic(mirror, cube, ds), strict=True):
        assert np.abs(ds[name].values - truth)[good].max() < 0.501


def test_speed_saturates(raw: dict[str, xr.Dataset]) -> None:
    for ds in raw.values():
        full = ds.v.values == 32767
        assert full.sum() == 5
        assert set(ds.vx.values[full]) == {-28445}
        assert set(ds.vy.values[full]) == {-19862}
        rest = (ds.vx.values != MISSING) & ~full
        speed = np.rint(np.hypot(ds.vx.values[rest].astype(float), ds.vy.values[rest]))
        assert np.abs(ds.v.values[rest] - speed).max() <= 1


def test_vectors_turn_between_crs() -> None:
    # facts: UTM 22 to EPSG:3413 turns by -5.870 degrees at 49 W 69.2 N; this is the way back.
    place = Transformer.from_crs(4326, 3413, always_xy=True).transform(-49.0, 69.2)
    there = Transformer.from_crs(4326, 32622, always_xy=True).transform(-49.0, 69.2)
    flow = FlowField(origin=place)
    u, v = (float(c) for c in flow.velocity(*place))
    p, q = (float(c) for c in grid_velocity(flow, 32622, *there))
    turn = np.degrees(np.arctan2(q, p) - np.arctan2(v, u))
    assert (turn + 180) % 360 - 180 == pytest.approx(5.870, abs=2e-3)
    # Scale at this place: 0.99968 in UTM (1.2 degrees off its meridian), 1.0037 in EPSG:3413.
    assert np.hypot(p, q) / np.hypot(u, v) == pytest.approx(0.9997 / 1.0037, abs=2e-3)


# The catalog, the mosaics, the whole


def test_catalog(mirror: Mirror) -> None:
    catalog = json.loads(mirror.catalog.read_text())
    assert mirror.catalog == mirror.root / "datacubes/catalog_v02.json"
    assert catalog["type"] == "FeatureCollection"
    assert catalog["synthetic"] is True
    assert "SYNTHETIC" in catalog["description"]
    made = [f for f in catalog["features"] if f["properties"]["datacube_exist"]]
    unmade = [f for f in catalog["features"] if not f["properties"]["datacube_exist"]]
    assert len(made) == 5
    assert len(unmade) == 1
    names = [
        "fill-opacity", "fill", "roi_percent_coverage", "geometry_epsg", "datacube_exist",
        "zarr_url", "epsg", "granule_count", "FULL_NAME", "RGI_CODE", "composite_zarr_url",
    ]  # fmt: skip
    for feature, cube in zip(made, mirror.cubes, strict=True):
        properties = feature["properties"]
        assert list(properties) == names
        assert properties["zarr_url"] == mirror.url(cube)
        assert properties["epsg"] == cube.epsg
        assert 0 < properties["granule_count"] < cube.pairs
        ring = np.array(properties["geometry_epsg"]["coordinates"][0])
        assert (*ring.min(axis=0), *ring.max(axis=0)) == cube.bounds
        shown = np.array(feature["geometry"]["coordinates"][0])
        assert shown.shape == (5, 2)
        back = Transformer.from_crs(4326, cube.epsg, always_xy=True).transform(*shown.T)
        np.testing.assert_allclose(np.stack(back, axis=1), ring, atol=0.1)
    assert max(f["properties"]["roi_percent_coverage"] for f in made) > 100
    gone = unmade[0]["properties"]["zarr_url"].removeprefix(mirror.base_url)
    assert not (mirror.root / gone[1:]).exists()


def test_mosaics_are_cogs_of_the_field(mirror: Mirror, raw: dict[str, xr.Dataset]) -> None:
    x = np.concatenate([raw[quarter(mirror, k).name].x.values for k in ("nw", "ne")])
    y = np.concatenate([raw[quarter(mirror, k).name].y.values for k in ("nw", "sw")])
    grid = np.meshgrid(x, y)
    types = {"count": ("uint32", 0), "landice": ("uint8", 0), "floatingice": ("uint8", 0)}
    types["outlier_percent"] = ("uint8", 255)
    assert mirror.region == "RGI05A"
    assert mirror.years == (2018, 2019, 2020)
    files = set()
    for version in ("v2", "v2.1"):
        for year in (None, *mirror.years):
            vx, vy = mirror.flow.velocity(*grid, None if year is None else year + 0.5)
            truth = {"vx": vx, "vy": vy, "v": np.hypot(vx, vy)}
            if year is None:
                truth |= {f"d{k}_dt": 0.02 * truth[k] for k in tuple(truth)}
            for name in STATIC if year is None else ANNUAL:
                path = mirror.root / mosaic_path(version, year, name)
                files.add(path)
                valid, errors, warnings = cog_validate(path)
                assert (valid, errors, warnings) == (True, [], [])
                with rasterio.open(path) as source:
                    dtype, nodata = types.get(
                        name,
                        ("float32", -32767) if name in truth else ("uint16", 32767),
                    )
                    assert (source.dtypes[0], source.nodata) == (dtype, nodata), name
                    assert source.crs.to_epsg() == 3413
                    assert source.block_shapes == [(512, 512)]
                    assert source.shape == grid[0].shape
                    assert tuple(source.transform)[:6] == (120, 0, x[0] - 60, 0, -120, y[0] + 60)
                    assert "SYNTHETIC" in source.tags()["TIFFTAG_IMAGEDESCRIPTION"]
                    data = source.read(1)
                gone = np.zeros(data.shape, bool)
                gone[:UNSEEN, :UNSEEN] = True
                np.testing.assert_array_equal(data == nodata, gone)
                if name in truth:
                    np.testing.assert_array_equal(data[~gone], truth[name].astype("f4")[~gone])
    assert files == set((mirror.root / "velocity_mosaic").rglob("*.tif"))
    assert (
        mirror.root / "velocity_mosaic/v2.1/annual/cog"
        "/ITS_LIVE_velocity_120m_RGI05A_2018_V02.1_vx_error.tif"
    ) in files
    assert (
        mirror.root / "velocity_mosaic/v2/static/cog"
        "/ITS_LIVE_velocity_120m_RGI05A_0000_v02_dvx_dt.tif"
    ) in files


def test_everything_says_that_it_is_synthetic(raw: dict[str, xr.Dataset]) -> None:
    for ds in raw.values():
        for name in ("title", "summary", "comment", "institution"):
            assert "SYNTHETIC" in ds.attrs[name]
        for name in ("date_created", "date_updated", "projection", "proj_polygon", "geo_polygon"):
            assert name in ds.attrs
        assert ds.attrs["date_updated"] == "20-Jun-2025 00:14:51"


def test_size(mirror: Mirror) -> None:
    on_disk = sum(p.stat().st_blocks * 512 for p in mirror.root.rglob("*"))
    assert on_disk < 60e6


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_seed_fixes_every_byte(tmp_path: Path) -> None:
    one, two, other = (
        write_mirror(tmp_path / name, "http://x", pairs=16, seed=seed)
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    )
    assert contents(one.root) == contents(two.root)
    assert one.cubes == two.cubes
    assert one.cubes[0].granules != other.cubes[0].granules
    # Writing over an older sample leaves nothing of it.
    write_mirror(other.root, "http://x", pairs=16, seed=3)
    assert contents(one.root) == contents(other.root)


@pytest.mark.parametrize(
    "arguments", [{"pairs": 15}, {"missing": 1.0}, {"noise": -1.0}, {"cubes": ("nw", "up")}]
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write_mirror(tmp_path / "m", "http://x", **arguments)
    assert not (tmp_path / "m").exists()


# At scale


def test_scale_cubes(tmp_path: Path) -> None:
    mirror = write_scale_cubes(tmp_path, "http://x", pairs=300, window=(24, 31))
    west, east = mirror.cubes
    assert (west.shape, east.shape) == ((300, 833, 834), (300, 833, 833))
    assert west.bounds[2] == east.bounds[0]
    assert len(set(west.granules) & set(east.granules)) == len(mirror.shared) == 150
    assert mirror.years == ()
    left, bottom, right, top = mirror.aoi
    assert (right - left, top - bottom) == (31 * 120, 24 * 120)
    widths, gone = [], []
    for cube in mirror.cubes:
        ds = xr.open_zarr(tmp_path / cube.path, decode_cf=False, chunks=None)
        assert set(ds.data_vars) >= {"vx", "vy", "v_error", "vx_error", "granule_url", "landice"}
        assert "v" not in ds
        rows = np.flatnonzero((ds.y.values > bottom) & (ds.y.values < top))
        cols = np.flatnonzero((ds.x.values > left) & (ds.x.values < right))
        assert len(rows) == 24
        widths.append(len(cols))
        wanted = {f"0.{i // 10}.{j // 10}" for i in rows for j in cols}
        for name in ("vx", "vy", "v_error"):
            files = {p.name for p in (tmp_path / cube.path / name).iterdir()}
            assert files - {".zarray", ".zattrs"} == wanted
        part = ds.isel(y=rows, x=cols)
        gone.append((part.vx.values == MISSING).mean())
        good = part.vx.values != MISSING
        good &= part.vx.values != -28445
        truth = analytic(mirror, cube, part)[0]
        score = ((part.vx.values - truth) / part.vx_error.values[:, None, None])[good]
        assert abs(score.mean()) < 0.05
    assert sum(widths) == 31
    assert min(widths) > 10
    assert np.mean(gone) == pytest.approx(0.66, abs=0.06)


def test_long_cubes_have_more_than_one_time_chunk(tmp_path: Path) -> None:
    mirror = write_scale_cubes(tmp_path, "http://x", pairs=20_050, window=(2, 4), variables=("vx",))
    cube = mirror.cubes[0]
    meta = zarray(mirror, cube, "vx")
    assert meta["chunks"] == [20_000, 10, 10]
    assert zarray(mirror, cube, "granule_url")["chunks"] == [20_050]
    times = {p.name.split(".")[0] for p in (tmp_path / cube.path / "vx").glob("[0-9]*")}
    assert times == {"0", "1"}


def test_scale_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_scale_cubes(tmp_path, "http://x", window=(0, 10))
    with pytest.raises(InputError):
        write_scale_cubes(tmp_path, "http://x", variables=("speed",))
