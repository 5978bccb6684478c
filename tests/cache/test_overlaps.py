"""Cubes that lie over each other, of both generations, against value-by-value numpy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from pyproj import Transformer
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect, get_item, migrate, reading
from firnline.indexer.flow import FlowField
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import Mirror, write_tiles
from firnline.indexer.sample_cube import SATURATED
from firnline.settings import Settings

X, Y = -170_000.0, -2_280_000.0
AOI = (X - 3_000.0, Y - 2_000.0, X + 3_500.0, Y + 1_500.0)
VARIABLES = ("interp_mask", "v", "v_error", "vx", "vy")
MISSING = {"interp_mask": 0}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    """Three cubes of EPSG:3413 over each other, and one of UTM beyond; half are in shards."""
    root = tmp_path_factory.mktemp("bucket")
    x, y = Transformer.from_crs(3413, 32622, always_xy=True).transform(X + 2_000, Y)
    tiles = [
        (3413, (X - 4_000.0, Y - 3_000.0, X + 1_000.0, Y + 3_000.0)),
        (3413, (X - 1_500.0, Y - 2_500.0, X + 2_000.0, Y + 2_500.0)),
        (3413, (X - 500.0, Y - 500.0, X + 600.0, Y + 700.0)),
        (32622, (x - 2_500.0, y - 2_500.0, x + 2_500.0, y + 2_500.0)),
    ]
    with MirrorServer(root) as server:
        yield (
            server,
            write_tiles(root, server.url, tiles, flow=FlowField(origin=(X, Y)), sharded=(1, 3)),
        )


@pytest.fixture
def settings(bucket: tuple[MirrorServer, Mirror], tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, allowed_sources=(f"{bucket[0].url}/",), _env_file=None)  # type: ignore[call-arg]


@pytest.fixture
def engine(bucket: tuple[MirrorServer, Mirror], settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [bucket[1].catalog_url], mosaics=False)
    bucket[0].clear()
    yield engine
    engine.dispose()


def run(engine: Engine, settings: Settings, **more: Any) -> tuple[xr.Dataset, dict[str, Any]]:
    """The pairs as stored, and the provenance."""
    inputs = {
        "bbox": AOI, "crs": "EPSG:3413", "out_crs": "EPSG:3413", "variables": VARIABLES,
        "composite": None, "strain": False, **more,
    }  # fmt: skip
    job = jobs.submit(engine, Request.parse(inputs, settings))
    job = worker.finish(engine, settings, job)
    assert (job.status, job.message) == ("successful", "done")
    assert job.subset is not None
    with reading(engine) as connection:
        assert get_item(connection, "subsets", job.subset) is not None
    folder = subset_place(engine, settings, job.subset)
    provenance = json.loads((folder / "provenance.json").read_text())
    return xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False).load(), provenance


WITHIN = {
    # the first cube covers all of it, the second less: as in the whole area
    "same order": (X - 1_900.0, Y - 1_000.0, X + 500.0, Y + 500.0),
    # the second covers all of it, the first less
    "other order": (X - 1_000.0, Y - 1_000.0, X + 1_500.0, Y + 500.0),
}


@pytest.mark.parametrize("which", WITHIN)
@pytest.mark.parametrize("more", [{}, {"datetime": "2017-03-01/2018-06-30"}])
def test_a_part_of_a_subset_is_answered_from_it_where_that_is_the_same(
    bucket: tuple[MirrorServer, Mirror],
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    which: str,
    more: dict[str, Any],
) -> None:
    run(engine, settings)
    bucket[0].clear()
    got, provenance = run(engine, settings, bbox=WITHIN[which], **more)
    assert (provenance["read_from"] is not None) == (which == "same order")
    assert bool(bucket[0].requests) == (which == "other order")
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    other = connect(elsewhere.database)
    migrate(other)
    harvest(other, elsewhere, [bucket[1].catalog_url], mosaics=False)
    expected, from_scratch = run(other, elsewhere, bbox=WITHIN[which], **more)
    other.dispose()
    assert from_scratch["values"]["conflicting"] > 0, "cubes that say different things overlap"
    xr.testing.assert_identical(got, expected)


def passes(group: Any, n: int, filters: dict[str, float]) -> bool:
    """Whether a cube's own numbers for a pair are within the filters."""
    errors = [float(group[name][n]) for name in ("vx_error", "vy_error")]
    valid = float(group["roi_valid_percentage"][n])
    small = all(error != -32767 and error <= filters.get("max_error", 1e9) for error in errors)
    return small and round(valid, 2) >= filters.get("min_valid", 0)


def brute_force(mirror: Mirror, got: xr.Dataset, filters: dict[str, float]) -> dict[str, Any]:
    """What the cubes on the grid say, one after the other: those that cover more of it first."""
    left, bottom, right, top = AOI
    cubes = [cube for cube in mirror.cubes if cube.epsg == 3413]

    def covered(cube: Any) -> float:
        west, south, east, north = cube.bounds
        return -(min(east, right) - max(west, left)) * (min(north, top) - max(south, bottom))

    layers: dict[str, dict[str, Any]] = {}
    conflicts = 0
    x, y = got.x.values, got.y.values
    for cube in sorted(cubes, key=covered):
        group: Any = zarr.open_group(mirror.root / cube.path, mode="r")
        if cube.version == "2":
            micro = np.rint(group["mid_date"][:] * 86_400e6).astype("i8").astype("M8[us]")
        else:
            micro = (group["time"][:] // 1000).astype("M8[us]")
        gx, gy = group["x"][:], group["y"][:]
        in_x, in_y = np.isin(gx, x), np.isin(gy, y)
        at = np.ix_(np.searchsorted(-y, -gy[in_y]), np.searchsorted(x, gx[in_x]))
        for n, granule in enumerate(cube.granules):
            if not passes(group, n, filters):
                continue
            blank = {v: np.full((len(y), len(x)), MISSING.get(v, -32767)) for v in VARIABLES}
            layer = layers.setdefault(granule, {"mid_date": micro[n], **blank})
            for name in VARIABLES:
                value = group[name][n][np.ix_(in_y, in_x)].astype(int)
                old, gone = layer[name][at], MISSING.get(name, -32767)
                conflicts += int(((old != gone) & (value != gone) & (old != value)).sum())
                layer[name][at] = np.where(old == gone, value, old)
    return {"layers": layers, "conflicts": conflicts}


@pytest.mark.parametrize(
    ("memory_limit", "format", "filters"),
    [
        (1, "v3", {}),
        (2_000_000_000, "v3", {}),
        (2_000_000_000, "v2", {}),
        (2_000_000_000, "v3", {"max_error": 20.0, "min_valid": 25.0}),
    ],
)
def test_each_value_is_the_first_that_a_cube_has(
    bucket: tuple[MirrorServer, Mirror],
    engine: Engine,
    settings: Settings,
    memory_limit: int,
    format: str,
    filters: dict[str, float],
) -> None:
    settings = settings.model_copy(update={"memory_limit": memory_limit})
    got, provenance = run(engine, settings, format=format, **filters)
    want = brute_force(bucket[1], got, filters)
    own = got.source_cube.values <= 2
    assert 0 < (~own).sum() < own.sum()
    names = [str(name) for name in got.granule.values]
    assert set(want["layers"]) <= set(names)
    for name in VARIABLES:
        values = got[name].values
        for n, granule in enumerate(names):
            layer = want["layers"].get(granule)
            if layer is None:  # of UTM: nothing where there are cubes on the grid
                assert (values[n][own] == MISSING.get(name, -32767)).all()
            else:
                np.testing.assert_array_equal(values[n][own], layer[name][own], err_msg=name)
    assert provenance["values"]["conflicting"] == want["conflicts"] > (100 if filters else 1000)
    utm = bucket[1].cubes[-1]
    group: Any = zarr.open_group(bucket[1].root / utm.path, mode="r")
    kept = [granule for n, granule in enumerate(utm.granules) if passes(group, n, filters)]
    assert set(names) == {*want["layers"], *kept}
    assert (len(kept) < len(utm.granules)) == bool(filters)
    mine = [names.index(granule) for granule in kept]
    assert (got.vx.values[mine][:, ~own] != -32767).mean() > 0.2


def test_time_is_sorted_and_equal_dates_stay_apart(
    bucket: tuple[MirrorServer, Mirror], engine: Engine, settings: Settings
) -> None:
    got, provenance = run(engine, settings, variables=["vx"])
    dates = got.mid_date.values
    assert (np.diff(dates) >= np.timedelta64(0)).all()
    assert len(np.unique(dates)) < len(dates) == len(np.unique(got.granule))
    granules = [granule for cube in bucket[1].cubes for granule in cube.granules]
    assert set(got.granule.values.tolist()) == set(granules)
    assert provenance["pairs"] == {
        "read": len(granules), "kept": len(granules), "merged": len(granules) - len(set(granules)),
    }  # fmt: skip
    dated: dict[str, Any] = {}
    for cube in bucket[1].cubes:
        group: Any = zarr.open_group(bucket[1].root / cube.path, mode="r")
        if cube.version == "2":
            micro = np.rint(group["mid_date"][:] * 86_400e6).astype("i8").astype("M8[us]")
        else:
            micro = (group["time"][:] // 1000).astype("M8[us]")
        dated |= dict(zip(cube.granules, micro, strict=True))
    expected = [dated[str(granule)] for granule in got.granule.values]
    np.testing.assert_array_equal(dates.astype("M8[us]"), np.array(expected))


@pytest.mark.parametrize("variables", [["v"], ["v", "vx", "vy"]])
@pytest.mark.parametrize("out_crs", ["EPSG:3413", "EPSG:32623"])
def test_saturated_speeds_are_recomputed_when_asked(
    bucket: tuple[MirrorServer, Mirror],
    engine: Engine,
    settings: Settings,
    variables: list[str],
    out_crs: str,
) -> None:
    """On the grid from the source's components; in another CRS all are, in its metres."""
    bounds = bucket[1].cubes[0].bounds
    more = {"bbox": bounds, "variables": variables, "out_crs": out_crs}
    plain, _ = run(engine, settings, **more)
    got, provenance = run(engine, settings, **more, recompute_speed=True)
    assert (plain.v.dtype, got.v.dtype) == (np.dtype("i2"), np.dtype("i4"))
    full = plain.v.values == 32767
    assert full.sum() >= 1
    np.testing.assert_array_equal(got.v.values[~full], plain.v.values[~full])
    speed = np.hypot(*SATURATED)
    off = 1.0 if out_crs == "EPSG:3413" else 0.1 * speed
    np.testing.assert_allclose(got.v.values[full], speed, rtol=0, atol=off)
    assert got.v.values[full].min() > 32767
    decoded = xr.where(got.v == got.v.attrs["_FillValue"], np.nan, got.v)
    np.testing.assert_array_equal(np.isnan(decoded), plain.v == -32767)
    if out_crs == "EPSG:3413":
        assert provenance["values"]["speeds_recomputed"] == full.sum()
    elif "vx" in variables:
        # two roundings of a component apart at most
        speed = np.hypot(got.vx.values.astype(float), got.vy.values)
        assert np.abs(got.v.values - speed)[full].max() <= 1.5
