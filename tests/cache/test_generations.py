"""Cubes of both generations, v2 and v2.2, in one catalog and in one store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.materialise import plan_request
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect, get_item, migrate, reading
from firnline.errors import NoCoverageError
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.sample import Mirror, write_mirror
from firnline.pairs import read_pairs
from firnline.settings import Settings

VARIABLES = ("interp_mask", "v", "v_error", "vx", "vy")
MISSING = {"interp_mask": 0}
PERIOD = ("2018-01-01", "2019-12-31")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    root = tmp_path_factory.mktemp("bucket")
    with MirrorServer(root) as server:
        yield (
            server,
            write_mirror(root, server.url, pairs=60, mosaics=False, generation_22=True),
        )


@pytest.fixture
def settings(bucket: tuple[MirrorServer, Mirror], tmp_path: Path) -> Settings:
    server, _ = bucket
    server.faults = None
    return Settings(data_dir=tmp_path, allowed_sources=(f"{server.url}/",), _env_file=None)  # type: ignore[call-arg]


@pytest.fixture
def engine(bucket: tuple[MirrorServer, Mirror], settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [bucket[1].catalog_url], mosaics=False)
    bucket[0].clear()
    yield engine
    engine.dispose()


def across(mirror: Mirror) -> tuple[float, float, float, float]:
    """An area over the corner where the cubes ``ne``, ``se`` and that of v2.2 meet."""
    left, bottom, _, top = mirror.cubes[-1].bounds
    middle = (bottom + top) / 2
    return left - 2_500, middle - 2_900, left + 4_700, middle + 3_100


def run(engine: Engine, settings: Settings, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    assert (job.status, job.message) == ("successful", "done")
    assert job.subset is not None
    with reading(engine) as connection:
        content = get_item(connection, "subsets", job.subset)
    assert content is not None
    return subset_place(engine, settings, job.subset), json.loads(content)


def brute_force(mirror: Mirror, aoi: tuple[float, ...]) -> dict[str, Any]:
    """The answer by zarr-python and numpy: every layer of every cube, one after the other."""
    cubes = [c for c in mirror.cubes if c.epsg == 3413]
    groups: list[Any] = [zarr.open_group(mirror.root / c.path, mode="r") for c in cubes]
    axes = []
    for axis, low, high in (("x", aoi[0], aoi[2]), ("y", aoi[1], aoi[3])):
        values = np.unique(np.concatenate([g[axis][:] for g in groups]))
        axes.append(values[(values > low - 60) & (values < high + 60)])
    x, y = axes[0], axes[1][::-1]
    layers: dict[str, dict[str, Any]] = {}
    for cube, group in zip(cubes, groups, strict=True):
        if cube.version == "2.2":
            micro = (group["time"][:] // 1000).astype("M8[us]")
            side = 8
        else:
            micro = np.rint(group["mid_date"][:] * 86_400e6).astype("i8").astype("M8[us]")
            side = 10
        start, end = (np.datetime64(day) for day in PERIOD)
        gx, gy = group["x"][:], group["y"][:]
        in_x, in_y = np.isin(gx, x), np.isin(gy, y)
        if not (in_x.any() and in_y.any()):
            continue
        place = np.ix_(np.searchsorted(-y, -gy[in_y]), np.searchsorted(x, gx[in_x]))
        values = {name: group[name][:] for name in VARIABLES}
        for name in VARIABLES:
            for i, j in cube.absent:  # absent is missing, whatever the fill value says
                window = values[name][:, i * side : (i + 1) * side, j * side : (j + 1) * side]
                window[...] = MISSING.get(name, -32767)
        for n in np.flatnonzero((micro >= start) & (micro < end + 1)):
            blank = {
                name: np.full((len(y), len(x)), MISSING.get(name, -32767), values[name].dtype)
                for name in VARIABLES
            }
            layer = layers.setdefault(cube.granules[n], {"mid_date": micro[n], **blank})
            for name in VARIABLES:
                layer[name][place] = values[name][n][np.ix_(in_y, in_x)]
    order = sorted(layers, key=lambda granule: (layers[granule]["mid_date"], granule))
    return {
        "granule": order, "x": x, "y": y,
        "mid_date": np.array([layers[g]["mid_date"] for g in order]),
        **{name: np.stack([layers[g][name] for g in order]) for name in VARIABLES},
    }  # fmt: skip


def inputs(mirror: Mirror, **more: Any) -> dict[str, Any]:
    return {
        "bbox": across(mirror), "crs": "EPSG:3413", "datetime": "/".join(PERIOD),
        "variables": VARIABLES, "composite": None, "strain": False, **more,
    }  # fmt: skip


@pytest.mark.parametrize("memory_limit", [1, 2_000_000_000])
def test_both_generations_in_one_store_equal_brute_force_bit_for_bit(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings, memory_limit: int
) -> None:
    _, mirror = bucket
    settings = settings.model_copy(update={"memory_limit": memory_limit})
    folder, item = run(engine, settings, **inputs(mirror))
    expected = brute_force(mirror, across(mirror))
    got = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False)
    assert [str(name) for name in got.granule.values] == expected["granule"]
    np.testing.assert_array_equal(got.mid_date.values.astype("M8[us]"), expected["mid_date"])
    np.testing.assert_array_equal(got.x, expected["x"])
    np.testing.assert_array_equal(got.y, expected["y"])
    for name in VARIABLES:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert item["properties"]["firnline:pairs_merged"] > 0
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {s["id"] for s in provenance["sources"]} == {
        cube.name for cube in (mirror.cubes[1], mirror.cubes[3], mirror.cubes[5])
    }


def test_per_pair_dates_have_one_unit(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    """They are days in one generation and nanoseconds in the other."""
    _, mirror = bucket
    folder, _ = run(engine, settings, **inputs(mirror, variables=["vx"]))
    got = xr.open_zarr(folder / "pairs.zarr", decode_cf=False).load()
    expected: dict[str, float] = {}
    for cube in (mirror.cubes[1], mirror.cubes[3], mirror.cubes[5]):
        group: Any = zarr.open_group(mirror.root / cube.path, mode="r")
        days = group["acquisition_date_img1"][:]
        if cube.version == "2.2":
            days = days / 86_400e9
        expected |= dict(zip(cube.granules, days.tolist(), strict=True))
    assert got.acquisition_date_img1.attrs["units"] == "days since 1970-01-01"
    np.testing.assert_allclose(
        got.acquisition_date_img1,
        [expected[str(name)] for name in got.granule.values],
        rtol=0,
        atol=1e-9,
    )


def test_the_composite_is_made_of_both(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    _, mirror = bucket
    folder, _ = run(
        engine, settings, **inputs(mirror, variables=["vx", "vy"], composite="all", strain=False)
    )
    made = xr.open_zarr(folder / "composite.zarr").isel(time=0).load()
    border = mirror.cubes[-1].bounds[0]
    x, y = np.meshgrid(made.x, made.y)
    factor = mirror.flow.factor(np.linspace(2018, 2020, 200)).mean()
    vx, vy = (component * factor for component in mirror.flow.velocity(x, y))
    off = np.abs(made.vx.values - vx) / np.hypot(vx, vy)
    for side in (x < border, x > border):
        assert np.isfinite(off[side]).mean() > 0.5
        assert np.nanmedian(off[side]) < 0.05


def test_chunks_in_shards_are_fetched_once_and_counted(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    server, mirror = bucket
    left, _, _, top = mirror.cubes[-1].bounds
    # rows 40 to 47 and columns 0 to 15, and a little less: chunks (5, 0) and (5, 1), one shard
    aoi = (left + 200, top - 48 * 120 + 100, left + 16 * 120 - 100, top - 40 * 120 - 100)
    folder, _ = run(engine, settings, **inputs(mirror, bbox=aoi, variables=["vx"]))
    asked = [r for r in server.requests if "/vx/" in r.path]
    path = f"/{mirror.cubes[-1].path}/vx/c/0/1/0"
    assert [(r.path, r.status) for r in asked] == [(path, 206)] * 2  # index, and both chunks
    fetched = json.loads((folder / "provenance.json").read_text())["fetched"]
    assert fetched["requests"] == 3  # at last, whether the cube is still the same
    size = (mirror.root / path[1:]).stat().st_size
    assert 0 < fetched["bytes"] < size


def test_transfers_that_break_are_made_again(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    server, mirror = bucket
    # lz4 has no checksum of its own: a wrong byte in what it packed would not be seen
    server.faults = Faults(Fault("short"), rate=0.7, match="*/vx/*", times=2)
    folder, _ = run(engine, settings, **inputs(mirror, variables=["vx"]))
    server.faults = None
    got = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False)
    np.testing.assert_array_equal(got.vx, brute_force(mirror, across(mirror))["vx"])


def test_the_item_before_and_after_a_deep_read(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    server, mirror = bucket
    cube = mirror.cubes[-1]
    assert cube.path == f"timeseries/v2.2/{cube.name}.zarr"

    def item() -> dict[str, Any]:
        with reading(engine) as connection:
            content = get_item(connection, "itslive-cubes", cube.name)
        assert content is not None
        return dict(json.loads(content))

    quick = item()
    assert quick["properties"]["version"] == "2.2"
    assert quick["properties"]["proj:shape"] == [96, 96]
    assert set(quick["properties"]["cube:dimensions"]) == {"time", "y", "x"}
    report = deepen(engine, settings)
    assert (report.read, report.failures) == (6, ())
    deep = item()
    properties = deep["properties"]
    assert properties["version"] == "2.2"
    assert properties["itslive:granule_count"] == 60
    for key in ("proj:shape", "proj:transform", "proj:bbox", "proj:code"):
        assert properties[key] == quick["properties"][key]
    assert set(properties["cube:dimensions"]) == {"time", "y", "x"}
    vx = properties["cube:variables"]["vx"]
    assert (vx["dimensions"], vx["chunks"], vx["shards"]) == (
        ["time", "y", "x"], [60, 8, 8], [60, 32, 32],
    )  # fmt: skip
    assert (vx["data_type"], properties["cube:variables"]["granule_url"]["data_type"]) == (
        "int16", "other",
    )  # fmt: skip
    group: Any = zarr.open_group(mirror.root / cube.path, mode="r")
    first = (group["time"][:].min() // 1000).astype("M8[us]").item().replace(tzinfo=UTC)
    assert datetime.fromisoformat(properties["start_datetime"]) == first
    with reading(engine) as connection:
        (block,) = read_pairs(connection, cube.name)
    assert block.pairs.granule is not None
    assert [name.decode() for name in block.pairs.granule.tolist()] == [
        cube.granules[n] for n in block.pairs.position
    ]
    # told to xarray as it is, it opens
    asset = deep["assets"]["zarr"]
    assert asset["xarray:open_kwargs"] == quick["assets"]["zarr"]["xarray:open_kwargs"]
    kwargs = asset["xarray:open_kwargs"] | {"chunks": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = xr.open_dataset(mirror.root / cube.path, **kwargs)
    assert ds.vx.dims == ("time", "y", "x")
    assert ds.time.dtype == np.dtype("M8[ns]")
    # and a second time it is one question
    server.clear()
    assert deepen(engine, settings).unchanged == 6
    assert {r.status for r in server.requests} == {304}
    assert len(server.requests) == 6
    report = harvest(engine, settings, [mirror.catalog_url], mosaics=False)
    assert report.counts["itslive-cubes"].unchanged == 6


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"variables": ["vx"], "datetime": "2018-03-01/2018-06-30"},
        {"satellites": ["S2"]},
        {"satellites": ["L8", "S1A"], "dt_days": [6, 64]},
        {"min_valid": 30},
    ],
)
def test_a_plan_from_the_index_is_that_from_the_cubes(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings, more: dict[str, Any]
) -> None:
    server, mirror = bucket
    asked = Request.parse(inputs(mirror, **more), settings)
    before = plan_request(engine, settings, asked, only_plan=True)  # nothing is indexed yet
    assert server.requests
    deepen(engine, settings)
    server.clear()
    plan = plan_request(engine, settings, asked, only_plan=True)
    assert server.requests == []
    summary = plan.summary()
    assert summary.pop("index_of").startswith("20")
    # one that is to be carried out reads the cubes
    assert plan_request(engine, settings, asked).summary() == summary
    assert server.requests
    # but not their granules, which the index has
    told = before.summary()
    assert told["requests_expected"] - summary.pop("requests_expected") == len(plan.cubes)
    assert told["bytes_expected"] > summary.pop("bytes_expected") > 0
    assert {name: told[name] for name in summary} == summary
    assert not any("/granule_url/" in request.path for request in server.requests)
    assert plan.uses == before.uses
    assert plan.layers.granule.tolist() == before.layers.granule.tolist()
    np.testing.assert_array_equal(plan.layers.mid_date, before.layers.mid_date)
    np.testing.assert_array_equal(plan.source_cube, before.source_cube)


def test_errors_are_not_in_the_index(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    """A dry run that asks for them reads the cubes, rather than counting pairs that won't come."""
    server, mirror = bucket
    deepen(engine, settings)
    server.clear()
    asked = Request.parse(inputs(mirror, max_error=15), settings)
    plan = plan_request(engine, settings, asked, only_plan=True)
    assert server.requests
    assert 0 < plan.summary()["pairs"]["kept"] < 180
    assert plan.summary() == plan_request(engine, settings, asked).summary()


def test_a_plan_from_the_index_without_a_wanted_pair(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    asked = Request.parse(inputs(bucket[1], datetime="1990-01-01/1990-12-31"), settings)
    deepen(engine, settings)
    with pytest.raises(NoCoverageError, match="none of the 180 image pairs"):
        plan_request(engine, settings, asked, only_plan=True)
