"""An area in which cubes of several CRSs meet, against PROJ, GDAL and the analytic field."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from pyproj import CRS, Transformer
from rasterio.warp import Resampling, reproject
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.materialise import plan_request
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect, get_item, migrate, reading
from firnline.indexer.flow import FlowField, year_fraction
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import Mirror, write_tiles
from firnline.settings import Settings

Raw = np.ndarray[Any, np.dtype[Any]]

POLAR, UTM = 3413, 32622
X, Y = -170_000.0, -2_280_000.0
AOI = (X - 2_500.0, Y - 2_400.0, X + 3_000.0, Y + 2_100.0)
VARIABLES = ("M11", "interp_mask", "v", "v_error", "vx", "vy")
MISSING = -32767


@cache
def to(source: int | str, target: int | str) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def slopes(source: int | str, target: int | str, x: Any, y: Any) -> Raw:
    """d(target) / d(source) by differences of 20 m."""
    move = to(source, target).transform
    by_x = np.subtract(move(x + 10, y), move(x - 10, y)) / 20
    by_y = np.subtract(move(x, y + 10), move(x, y - 10)) / 20
    return np.stack([by_x, by_y], axis=1)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    """A cube of EPSG:3413, and two of UTM that go on from within it to the east."""
    root = tmp_path_factory.mktemp("bucket")
    x, y = to(POLAR, UTM).transform(X + 1_000, Y)
    tiles = [
        (POLAR, (X - 4_000.0, Y - 3_000.0, X, Y + 3_000.0)),
        (UTM, (x - 4_000.0, y - 4_000.0, x, y + 4_000.0)),
        (UTM, (x, y - 4_000.0, x + 4_000.0, y + 4_000.0)),
    ]
    with MirrorServer(root) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("firnline.indexer.sample_cube.TIME_CHUNK", 10)  # three along time
        flow = FlowField(origin=(X, Y))
        yield server, write_tiles(root, server.url, tiles, flow=flow, noise=0.0, missing=0.3)


@pytest.fixture
def settings(bucket: tuple[MirrorServer, Mirror], tmp_path: Path) -> Settings:
    bucket[0].clear()
    return Settings(data_dir=tmp_path, allowed_sources=(f"{bucket[0].url}/",), _env_file=None)  # type: ignore[call-arg]


@pytest.fixture
def engine(bucket: tuple[MirrorServer, Mirror], settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [bucket[1].catalog_url], mosaics=False)
    bucket[0].clear()
    yield engine
    engine.dispose()


def asked(settings: Settings, **more: Any) -> Request:
    inputs = {
        "bbox": AOI, "crs": "EPSG:3413", "out_crs": "EPSG:3413", "variables": VARIABLES,
        "composite": None, "strain": False, **more,
    }  # fmt: skip
    return Request.parse(inputs, settings)


def run(engine: Engine, settings: Settings, **more: Any) -> tuple[Path, dict[str, Any]]:
    job = worker.finish(engine, settings, jobs.submit(engine, asked(settings, **more)))
    assert (job.status, job.message) == ("successful", "done")
    assert job.subset is not None
    with reading(engine) as connection:
        content = get_item(connection, "subsets", job.subset)
    assert content is not None
    return subset_place(engine, settings, job.subset), json.loads(content)


def opened(folder: Path) -> xr.Dataset:
    return xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False).load()


def brute_force(mirror: Mirror, got: xr.Dataset, crs: int) -> dict[str, Raw]:
    """Pixel by pixel: the cube on the grid, else the pixel of another that the centre is in."""
    x, y = np.meshgrid(got.x, got.y)
    place = {str(granule): n for n, granule in enumerate(got.granule.values)}
    blank = {name: 0 if name == "interp_mask" else MISSING for name in VARIABLES}
    out = {name: np.full(got.vx.shape, blank[name], "i4") for name in VARIABLES}
    source = np.full(x.shape, -1)
    cubes = sorted(mirror.cubes, key=lambda cube: cube.epsg != crs)
    for number, cube in enumerate(cubes):
        group: Any = zarr.open_group(mirror.root / cube.path, mode="r")
        gx, gy = group["x"][:], group["y"][:]
        px, py = to(crs, cube.epsg).transform(x, y)
        column, row = (np.floor((px - gx[0]) / 120 + 0.5), np.floor((gy[0] - py) / 120 + 0.5))
        mine = (column >= 0) & (column < len(gx)) & (row >= 0) & (row < len(gy)) & (source < 0)
        at = row[mine].astype(int), column[mine].astype(int)
        source[mine] = number
        layers = [place[granule] for granule in cube.granules]
        values = {name: group[name][:][:, at[0], at[1]].astype("f8") for name in VARIABLES}
        if cube.epsg != crs:
            (a, b), (c, d) = slopes(cube.epsg, crs, px[mine], py[mine])
            vx, vy = values["vx"], values["vy"]
            there = vx != MISSING
            turned = np.rint(a * vx + b * vy), np.rint(c * vx + d * vy)
            values["vx"], values["vy"] = (
                np.where(there, np.clip(part, -32766, 32767), MISSING) for part in turned
            )
            speed = np.minimum(np.rint(np.hypot(values["vx"], values["vy"])), 32767)
            values["v"] = np.where(there, speed, MISSING)
            values["M11"][:] = MISSING
        for name in VARIABLES:
            out[name][np.ix_(layers, np.flatnonzero(mine.ravel()))[0], mine] = values[name]
    return {**out, "source_cube": source}


@pytest.mark.parametrize("memory_limit", [1, 2_000_000_000])
def test_pixels_are_those_of_the_grids_own_cube_else_turned(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings, memory_limit: int
) -> None:
    settings = settings.model_copy(update={"memory_limit": memory_limit})
    folder, _ = run(engine, settings)
    got = opened(folder)
    want = brute_force(bucket[1], got, POLAR)
    np.testing.assert_array_equal(got.source_cube, want["source_cube"])
    assert np.unique(want["source_cube"]).tolist() == [0, 1, 2]
    own = want["source_cube"] == 0
    for name in VARIABLES:
        np.testing.assert_array_equal(got[name].values[:, own], want[name][:, own], err_msg=name)
        mine, there = got[name].values[:, ~own].astype("i4"), want[name][:, ~own]
        np.testing.assert_array_equal(mine == MISSING, there == MISSING, err_msg=name)
        # single precision may round the other way
        assert np.abs(mine - there).max() <= (1 if name in ("v", "vx", "vy") else 0), name
        assert (mine == there).mean() > 0.999, name
    assert (got.vx.values[:, ~own] != MISSING).mean() > 0.2


@pytest.mark.parametrize(("resampling", "within"), [("nearest", 150.0), ("bilinear", 5.0)])
def test_turned_vectors_are_those_of_the_analytic_field(
    bucket: tuple[MirrorServer, Mirror],
    engine: Engine,
    settings: Settings,
    resampling: str,
    within: float,
) -> None:
    """Nearest pixels lie up to 85 m off, over which the field changes by 1.7 m a year a metre."""
    folder, _ = run(engine, settings, resampling=resampling)
    got = opened(folder)
    x, y = np.meshgrid(got.x, got.y)
    flow = bucket[1].flow
    factor = flow.factor(year_fraction(got.mid_date.values.astype("M8[us]")))[:, None, None]
    other = got.source_cube.values > 0
    cube = got.source_cube.rolling(x=5, y=5, center=True)
    one_cube = cube.min() == cube.max()
    for name, truth in zip(("vx", "vy"), flow.velocity(x, y), strict=True):
        there = (got[name] != MISSING) & other
        # at a gap, and at the edge of a cube, bilinear weights are of the neighbours that there are
        inner = there.rolling(x=5, y=5, center=True).min().fillna(0).astype(bool) & one_cube
        off = (got[name].values - factor * truth)[inner if resampling == "bilinear" else there]
        assert off.size > 5_000
        # each cube has one blunder, which has a part in four pixels or so
        off = off[np.argsort(np.abs(off))[:-8]]
        assert np.abs(off).max() < within
        if resampling == "nearest":
            assert abs(np.median(off)) < 3  # off to all sides alike
        else:
            assert np.abs(off).mean() < 0.6  # of which 0.25 are rounding
    if resampling == "bilinear":
        np.testing.assert_array_equal(np.unique(got.interp_mask), [0, 1])


def test_speed_is_what_gdal_warps_times_the_scale(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    folder, _ = run(engine, settings)
    got = opened(folder)
    transform = Affine.from_gdal(*map(float, got.mapping.attrs["GeoTransform"].split()))
    x, y = np.meshgrid(got.x, got.y)
    px, py = to(POLAR, UTM).transform(x, y)
    scale = np.sqrt(np.linalg.det(np.moveaxis(slopes(UTM, POLAR, px, py), (0, 1), (-2, -1))))
    assert np.ptp(scale) < 0.001 < abs(scale.mean() - 1)
    place = {str(granule): n for n, granule in enumerate(got.granule.values)}
    compared = 0
    for number, cube in enumerate(bucket[1].cubes[1:], start=1):
        group: Any = zarr.open_group(bucket[1].root / cube.path, mode="r")
        gx, gy = group["x"][:], group["y"][:]
        vx, vy = (group[name][:].astype("f4") for name in ("vx", "vy"))
        speed = np.where(vx == MISSING, np.nan, np.hypot(vx, vy))
        warped = np.full((len(speed), *x.shape), np.nan, "f4")
        reproject(
            speed, warped, src_transform=Affine(120, 0, gx[0] - 60, 0, -120, gy[0] + 60),
            src_crs=UTM, dst_transform=transform, dst_crs=POLAR, resampling=Resampling.nearest,
            src_nodata=np.nan, dst_nodata=np.nan, tolerance=0,
        )  # fmt: skip
        mine = got.v.values[[place[g] for g in cube.granules]].astype("f4")
        places = np.stack([(px - gx[0]) / 120, (gy[0] - py) / 120])
        clear = (np.abs(places - np.floor(places) - 0.5) > 0.01).all(axis=0)  # of pixels' borders
        here = (got.source_cube.values == number) & clear
        want = (warped * scale)[:, here]
        mine = np.where(mine == MISSING, np.nan, mine)[:, here]
        np.testing.assert_array_equal(np.isnan(mine), np.isnan(want))
        both = ~np.isnan(mine) & ~np.isnan(want) & (want < 32_000)
        assert (np.abs(mine - want)[both] < 1.6).all()
        compared += int(both.sum())
    assert compared > 10_000


def test_just_the_planned_chunks_are_fetched(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    """A chunk is planned if one of its pixels is needed: every pixel is taken through PROJ."""
    server, mirror = bucket
    settings = settings.model_copy(update={"memory_limit": 3_000_000})
    for resampling in ("nearest", "bilinear"):
        more = {"variables": ["v", "v_error"], "resampling": resampling}
        plan = plan_request(engine, settings, asked(settings, **more))
        assert len(plan.tiles) > 1
        server.clear()
        folder, _ = run(engine, settings.model_copy(update={"chunk_cache_quota": 0}), **more)
        paths = [r.path[1:] for r in server.requests if any(f"/{v}/" in r.path for v in VARIABLES)]
        assert len(paths) == len(set(paths)) == plan.summary()["source_chunks"]
        needed = set()
        got = opened(folder)
        x, y = np.meshgrid(got.x, got.y)
        for number, cube in enumerate(mirror.cubes):
            mine = got.source_cube.values == number
            px, py = to(POLAR, cube.epsg).transform(x[mine], y[mine])
            group: Any = zarr.open_group(mirror.root / cube.path, mode="r")
            column, row = ((px - group["x"][0]) / 120, (group["y"][0] - py) / 120)
            reach = (0,) if number == 0 or resampling == "nearest" else (-0.5, 0.5)
            names = ("v", "v_error") if number == 0 else ("vx", "vy", "v_error")
            for up in reach:
                for across in reach:
                    # nearest: the pixel itself; bilinear: the two on either side of a centre
                    i = np.floor(row + 0.5 + up).astype(int)
                    j = np.floor(column + 0.5 + across).astype(int)
                    inside = (i >= 0) & (i < cube.shape[1]) & (j >= 0) & (j < cube.shape[2])
                    for a, b in set(zip(i[inside] // 10, j[inside] // 10, strict=True)):
                        needed |= {
                            f"{cube.path}/{name}/{t}.{a}.{b}" for name in names for t in range(3)
                        }
        # a window is a rectangle around what a tile needs: corners may come too, nothing else
        assert needed <= set(paths)
        assert len(paths) <= 1.5 * len(needed)


def test_what_was_done_is_written_down(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    folder, item = run(engine, settings)
    polar, west, east = (cube.name for cube in bucket[1].cubes)
    got = opened(folder)
    about = got.source_cube.attrs
    assert about["flag_meanings"].split() == [polar, west, east]
    assert about["cube_crs"] == "EPSG:3413 EPSG:32622 EPSG:32622"
    assert list(about["cube_resampled"]) == [0, 1, 1]
    assert "nearest" in got.attrs["comment"]
    assert item["properties"]["firnline:cubes_resampled"] == [west, east]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert [s.get("resampled") for s in provenance["sources"]] == [None, "nearest", "nearest"]
    assert [s["pairs_kept"] for s in provenance["sources"]] == [24, 24, 24]
    assert provenance["pairs"] == {"read": 72, "kept": 72, "merged": 12}
    assert provenance["values"] == {"conflicting": 0, "speeds_recomputed": 0}


def test_errors_of_pairs_are_turned(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    folder, _ = run(engine, settings)
    got = xr.open_zarr(folder / "pairs.zarr").load()
    place = {str(granule): n for n, granule in enumerate(got.granule.values)}
    polar, cube, _ = bucket[1].cubes
    x, y = np.meshgrid(got.x, got.y)
    here = got.source_cube.values == 1
    px, py = to(POLAR, UTM).transform(x[here].mean(), y[here].mean())
    j = slopes(UTM, POLAR, px, py)
    group: Any = zarr.open_group(bucket[1].root / cube.path, mode="r")
    sigma = np.stack([group[f"{name}_error"][:] for name in ("vx", "vy")]).astype("f8")
    shift = np.stack([group[f"{name}_stable_shift_slow"][:] for name in ("vx", "vy")])
    for n, granule in enumerate(cube.granules):
        layer = got.isel(mid_date=place[granule])
        full = j @ np.diag(sigma[:, n] ** 2) @ j.T
        made = layer.vx_error**2, layer.vy_error**2, layer.vx_vy_error_covariance
        np.testing.assert_allclose(
            [float(part) for part in made], [full[0, 0], full[1, 1], full[0, 1]], rtol=2e-3,
            atol=1e-3 * full.max(),
        )  # fmt: skip
        moved = [float(layer[f"{name}_stable_shift_slow"]) for name in ("vx", "vy")]
        np.testing.assert_allclose(moved, j @ shift[:, n], rtol=0, atol=2e-3 * abs(shift).max())
    mine = [place[granule] for granule in polar.granules]
    assert np.isnan(got.vx_vy_error_covariance[mine]).all()
    group = zarr.open_group(bucket[1].root / polar.path, mode="r")
    np.testing.assert_array_equal(got.vx_error[mine], group["vx_error"][:])


def test_the_composite_goes_on_across_the_border(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    more = {"variables": ["vx", "vy"], "composite": "all", "strain": {"length_scale": 360}}
    folder, _ = run(engine, settings, resampling="bilinear", **more)
    made = xr.open_zarr(folder / "composite.zarr").isel(time=0).load()
    strain = xr.open_zarr(folder / "strain.zarr").isel(time=0).load()
    other = opened(folder).source_cube.values > 0
    x, y = np.meshgrid(made.x, made.y)
    vx, vy = bucket[1].flow.velocity(x, y)
    off = np.hypot(made.vx.values - vx, made.vy.values - vy) / np.hypot(vx, vy)
    turn = np.degrees(np.arctan2(made.vy.values, made.vx.values) - np.arctan2(vy, vx))
    for side in (other, ~other):
        assert np.isfinite(off[side]).mean() > 0.95
        assert np.nanmedian(off[side]) < 0.03  # the seasons of the pairs that happen to be there
        assert abs(np.nanmedian(turn[side])) < 0.05  # without turning it would be 5.9
    exx = bucket[1].flow.strain(x, y)[0]
    assert np.nanmedian(np.abs(strain.exx.values - exx)[other]) < 0.05 * np.abs(exx).max()


@pytest.mark.parametrize("crs", ["EPSG:32623", "ESRI:102018"])
def test_any_crs_in_metres_may_be_asked_for(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings, crs: str
) -> None:
    """No cube is in it: others are resampled, to ITS_LIVE's lattice there."""
    more = {"variables": ["v", "vx", "vy"], "composite": "all", "strain": {}}
    folder, item = run(engine, settings, out_crs=crs, **more)
    got = opened(folder)
    assert item["properties"]["proj:code"] == crs
    assert np.unique(np.mod(got.x, 120)).tolist() == [52.5]
    assert np.unique(np.mod(got.y, 120)).tolist() == [67.5]
    system = CRS.from_user_input(item["properties"]["cube:dimensions"]["x"]["reference_system"])
    assert system == CRS.from_user_input(crs)
    resampled = item["properties"]["firnline:cubes_resampled"]
    assert resampled[0] == bucket[1].cubes[1].name  # that which covers most of the area
    assert set(got.source_cube.attrs["cube_resampled"]) == {1}
    assert got.source_cube.attrs["flag_meanings"].split() == resampled
    x, y = np.meshgrid(got.x, got.y)
    px, py = to(crs, POLAR).transform(x, y)
    u, v = bucket[1].flow.velocity(px, py)
    (a, b), (c, d) = slopes(POLAR, crs, px, py)
    factor = bucket[1].flow.factor(year_fraction(got.mid_date.values.astype("M8[us]")))
    factor = factor[:, None, None]
    for name, truth in (("vx", a * u + b * v), ("vy", c * u + d * v)):
        here = (got[name].values != MISSING) & (got.v.values < 20_000)
        assert here.mean() > 0.1
        assert np.abs(got[name].values - factor * truth)[here].max() < 150


def test_where_cubes_of_the_grid_cover_all_no_other_is_read(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    server, mirror = bucket
    bbox = (X - 1_500, Y - 600, X - 300, Y + 600)
    plan = plan_request(engine, settings, asked(settings, bbox=bbox))
    assert plan.summary()["cubes"] == [mirror.cubes[0].name]
    assert "resampled" not in plan.summary()
    assert not [r for r in server.requests if "32622" in r.path]


def test_a_dry_run_from_the_index_names_what_is_resampled(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    from firnline.indexer.cubes import deepen

    request = asked(settings)
    before = plan_request(engine, settings, request).summary()
    assert before["resampled"] == dict.fromkeys(
        (cube.name for cube in bucket[1].cubes[1:]), "EPSG:32622"
    )
    deepen(engine, settings)
    bucket[0].clear()
    summary = plan_request(engine, settings, request, only_plan=True).summary()
    assert bucket[0].requests == []
    del summary["index_of"]
    # the index has the granules
    assert before.pop("requests_expected") - summary.pop("requests_expected") == len(
        bucket[1].cubes
    )
    assert before.pop("bytes_expected") > summary.pop("bytes_expected")
    assert summary == before


@pytest.mark.parametrize("place", ["pole", "antimeridian"])
def test_across_the_pole_and_the_antimeridian(tmp_path: Path, place: str) -> None:
    """The pole is a corner of four cubes; zones 60 and 1 meet where the sign of longitude does."""
    if place == "pole":
        bbox = (-180.0, 89.99, 180.0, 90.0)
        tiles = [
            (POLAR, (west, south, west + 2_400.0, south + 2_400.0))
            for west in (-2_400.0, 0.0)
            for south in (-2_400.0, 0.0)
        ]
        origin = (0.0, 0.0)
        crs = POLAR
    else:
        bbox = (179.97, 71.0, -179.97, 71.02)
        origin = to(4326, POLAR).transform(180, 71.01)
        tiles = []
        for epsg, side in ((32660, -1), (32601, 1)):
            x, y = to(4326, epsg).transform(180, 71.01)
            x, y = round(x / 120) * 120.0, round(y / 120) * 120.0
            tiles.append(
                (epsg, (min(x, x + side * 3_600), y - 2_400, max(x, x + side * 3_600), y + 2_400))
            )
        crs = 32660
    with MirrorServer(tmp_path / "mirror") as server:
        mirror = write_tiles(
            tmp_path / "mirror", server.url, tiles, flow=FlowField(origin=origin), noise=0.0,
            pairs=16,
        )  # fmt: skip
        settings = Settings(  # type: ignore[call-arg]
            data_dir=tmp_path, allowed_sources=(f"{server.url}/",), _env_file=None
        )
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [mirror.catalog_url], mosaics=False)
        folder, item = run(engine, settings, bbox=bbox, crs="OGC:CRS84", out_crs=f"EPSG:{crs}")
        engine.dispose()
    got = opened(folder)
    want = brute_force(mirror, got, crs)
    for name in VARIABLES:
        assert np.abs(got[name].values.astype("i4") - want[name]).max() <= 1, name
    assert (got.vx.values != MISSING).mean() > 0.2
    assert got.vx.shape[1] * 120 < 5_000  # not around the world
    assert got.vx.shape[2] * 120 < 5_000
    used = set(np.unique(got.source_cube)) - {-1}
    assert len(used) == len(tiles)
    west, _, east, north = item["bbox"]
    assert north == pytest.approx(90) if place == "pole" else (west > 179 and east < -179)


def test_angles_are_those_of_the_facts() -> None:
    """Zone 22 to EPSG:3413 turns vectors by -5.870 degrees at 49 W, 69.2 N: the oracle is right."""
    x, y = to(4326, UTM).transform(-49.0, 69.2)
    (a, b), (c, d) = slopes(UTM, POLAR, x, y)
    assert math.degrees(math.atan2(c - b, a + d)) == pytest.approx(-5.870, abs=1e-3)


def test_gdal_reads_where_pixels_come_from(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    folder, _ = run(engine, settings, format="v2", variables=["vx"])
    with rasterio.open(f'ZARR:"{folder / "pairs.zarr"}":/source_cube') as band:
        np.testing.assert_array_equal(band.read(1), opened(folder).source_cube)
