"""The whole walk on the sample, against plain numpy and against the analytic field."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  registers the accessor
import xarray as xr
import zarr
from shapely.geometry import Point, box
from sqlalchemy import Engine

from firnline.cache import drawing, jobs, worker
from firnline.cache.apart import apart
from firnline.cache.opening import open_subset, subset_place
from firnline.cache.request import Request
from firnline.database import connect, get_item, reading
from firnline.indexer.mirror import Fault, Faults
from firnline.settings import Settings
from firnline.tables import counters

VARIABLES = ("v", "v_error", "vx", "vy")


def run(engine: Engine, settings: Settings, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    """Materialise; the folder of the subset and its stored item."""
    job = jobs.submit(engine, Request.parse(inputs, settings))
    done = worker.finish(engine, settings, job)
    assert (done.status, done.message) == ("successful", "done")
    assert done.subset is not None
    with reading(engine) as connection:
        content = get_item(connection, "subsets", done.subset)
    assert content is not None
    return subset_place(engine, settings, done.subset), json.loads(content)


def brute_force(
    sample: Any,
    aoi: tuple[float, ...],
    start: str,
    end: str,
    names: tuple[str, ...] = VARIABLES,
    missing: int = -32767,
) -> dict[str, Any]:
    """The answer by plain numpy from the files: every layer of every cube, one after the other."""
    left, bottom, right, top = aoi
    cubes = [c for c in sample.mirror.cubes if c.epsg == 3413]
    groups = [zarr.open_group(sample.mirror.root / c.path, mode="r") for c in cubes]
    # pixels whose area meets the AOI's: centres less than half a pixel outside
    axes = {}
    for axis, low, high in (("x", left, right), ("y", bottom, top)):
        values = np.unique(np.concatenate([np.asarray(g[axis][:]) for g in groups]))
        axes[axis] = values[(values > low - 60) & (values < high + 60)]
    x, y = axes["x"], axes["y"][::-1]
    layers: dict[str, dict[str, Any]] = {}
    for cube, group in zip(cubes, groups, strict=True):
        gx, gy = np.asarray(group["x"][:]), np.asarray(group["y"][:])
        # days as float64 carry noise below the microsecond, which is what they mean
        micro = np.rint(np.asarray(group["mid_date"][:]) * 86_400e6).astype("i8").astype("M8[us]")
        wanted = (micro >= np.datetime64(start)) & (micro < np.datetime64(end) + 1)
        in_x, in_y = np.isin(gx, x), np.isin(gy, y)
        if not (in_x.any() and in_y.any()):
            continue
        to_x, to_y = np.searchsorted(x, gx[in_x]), np.searchsorted(-y, -gy[in_y])
        values = {}
        for name in names:
            values[name] = np.asarray(group[name][:])
            for row, column in cube.absent:  # absent on disk is missing, not 0
                values[name][:, row * 10 : row * 10 + 10, column * 10 : column * 10 + 10] = missing
        for n in np.flatnonzero(wanted):
            granule = cube.granules[n]
            layer = layers.setdefault(
                granule,
                {"mid_date": micro[n]}
                | {name: np.full((len(y), len(x)), missing, "i2") for name in names},
            )
            for name in names:
                layer[name][np.ix_(to_y, to_x)] = values[name][n][np.ix_(in_y, in_x)]
    order = sorted(layers, key=lambda g: (layers[g]["mid_date"], g))
    return {
        "granule": order,
        "x": x,
        "y": y,
        "mid_date": np.array([layers[g]["mid_date"] for g in order]),
        **{name: np.stack([layers[g][name] for g in order]) for name in names},
    }


@pytest.mark.parametrize("format", ["v3", "v2"])
def test_pairs_equal_brute_force_bit_for_bit(
    sample: Any, engine: Engine, settings: Settings, format: str
) -> None:
    aoi = sample.mirror.aoi
    folder, item = run(
        engine, settings, bbox=aoi, crs="EPSG:3413", datetime="2018-01-01/2019-06-30",
        variables=VARIABLES, composite=None, strain=False, format=format,
    )  # fmt: skip
    expected = brute_force(sample, aoi, "2018-01-01", "2019-06-30")
    got = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False)
    assert [str(name) for name in got.granule.values] == expected["granule"]
    np.testing.assert_array_equal(got.mid_date.values.astype("M8[us]"), expected["mid_date"])
    np.testing.assert_array_equal(got.x, expected["x"])
    np.testing.assert_array_equal(got.y, expected["y"])
    for name in VARIABLES:
        assert got[name].dtype == np.int16
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    decoded = xr.open_zarr(folder / "pairs.zarr")
    np.testing.assert_array_equal(np.isnan(decoded.vx), expected["vx"] == -32767)
    assert decoded.rio.crs.to_epsg() == 3413
    # the sample shares pairs between neighbours: without merging there would be more layers
    properties = item["properties"]
    assert properties["firnline:pairs_kept"] - properties["firnline:pairs_merged"] == len(
        got.mid_date
    )
    assert properties["firnline:pairs_merged"] > 0
    assert zarr.open_group(folder / "pairs.zarr", mode="r").metadata.zarr_format == int(format[1])


def test_where_memory_is_short_every_file_is_the_same(
    sample: Any,
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Maps and picture by another process, the plan without its cubes' pairs."""
    made_apart = []

    def noted(function: Any, *args: Any) -> Any:
        made_apart.append(function)
        return apart(function, *args)

    monkeypatch.setattr(drawing, "apart", noted)
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "strain": {"length_scale": 480}}
    short = settings.model_copy(update={"memory_limit": 300 * 10**6})
    folder, _ = run(engine, short, **inputs)
    assert made_apart == [drawing.drawn]
    ample = sample.settings(tmp_path / "ample")
    other = connect(ample.database)
    expected, _ = run(other, ample, **inputs)
    other.dispose()
    assert len(made_apart) == 1
    files = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.*")
         if path.is_file() and path.name != "provenance.json"}
        for root in (folder, expected)
    ]  # fmt: skip
    assert {"v.tif", "e1.tif", "speed.qml", "thumbnail.png"} <= files[0].keys()
    assert files[0] == files[1]


def test_per_pair_variables_follow_their_granule(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", composite=None, strain=False
    )
    got = xr.open_zarr(folder / "pairs.zarr", decode_cf=False).load()
    expected: dict[str, tuple[float, str, float]] = {}
    for cube in sample.mirror.cubes:
        if cube.epsg == 3413:
            group = zarr.open_group(sample.mirror.root / cube.path, mode="r")
            columns = [
                np.asarray(group[name][:]) for name in ("vx_error", "satellite_img1", "date_dt")
            ]
            for granule, *values in zip(cube.granules, *columns, strict=True):
                expected[granule] = tuple(v.item() for v in values)
    rows = zip(
        got.granule.values, got.vx_error.values, got.satellite_img1.values, got.date_dt.values,
        strict=True,
    )  # fmt: skip
    for granule, *values in rows:
        assert (float(values[0]), str(values[1]), float(values[2])) == expected[str(granule)]


@pytest.mark.parametrize("format", ["v3", "v2"])
def test_interp_mask_keeps_its_zeros(
    sample: Any, engine: Engine, settings: Settings, format: str
) -> None:
    """0 means measured, though the source declares it missing: decoding must not hide it."""
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", variables=["interp_mask"],
        composite=None, strain=False, format=format,
    )  # fmt: skip
    decoded = xr.open_zarr(folder / "pairs.zarr").interp_mask
    assert decoded.dtype == np.uint8
    names = ("interp_mask",)
    expected = brute_force(sample, sample.mirror.aoi, "2016-01-01", "2022-01-01", names, missing=0)
    np.testing.assert_array_equal(decoded, expected["interp_mask"])
    assert set(np.unique(decoded)) == {0, 1}


def test_composites_and_strain_agree_with_the_analytic_field(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", composite="all",
        strain={"length_scale": 480},
    )  # fmt: skip
    composite = xr.open_zarr(folder / "composite.zarr").isel(time=0).load()
    strain = xr.open_zarr(folder / "strain.zarr").isel(time=0).load()
    x, y = np.meshgrid(composite.x, composite.y)
    # all pairs weighted alike in time: the mean of the field over the years of the sample
    when = np.linspace(2017, 2021, 400)
    factor = sample.mirror.flow.factor(when).mean()
    vx, vy = (component * factor for component in sample.mirror.flow.velocity(x, y))
    for name, truth in (("vx", vx), ("vy", vy)):
        off = (composite[name].values - truth) / np.hypot(vx, vy)
        assert np.nanmedian(np.abs(off)) < 0.03, name  # the pairs' dates are a random sample
    exx, eyy, exy = (field * factor for field in sample.mirror.flow.strain(x, y))
    scale = np.abs(np.stack([exx, eyy, exy])).max()
    for name, truth in (("exx", exx), ("eyy", eyy), ("exy", exy)):
        # a window of 1 km flattens the field's own curvature; noise adds its stated error
        off = np.abs(strain[name].values - truth)
        assert np.nanmedian(off) < 0.06 * scale, name
    assert strain.attrs["window_radius_pixels"] == 4
    assert strain.attrs["half_length_m"] == 480.0
    assert strain.exx.attrs["units"] == "year-1"
    np.testing.assert_allclose(composite.v, np.hypot(composite.vx, composite.vy), rtol=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"composite": "season", "composite_method": "mean", "max_displacement": 300},
        {"composite": "all", "format": "v2"},
    ],
)
def test_composite_is_that_of_the_whole_pairs_array(
    sample: Any,
    engine: Engine,
    settings: Settings,
    inputs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tile by tile, and stored block by block, or all at once is the same."""
    from firnline.cache.composite import composite
    from firnline.cache.periods import period_label, periods

    monkeypatch.setattr("firnline.cache.store.MAP_SIDE", 32)
    monkeypatch.setattr("firnline.cache.store.MAP_TIMES", 3)
    small = settings.model_copy(update={"memory_limit": 1})  # forces the smallest tiles
    folder, item = run(
        engine, small, bbox=sample.mirror.aoi, crs="EPSG:3413", strain=False, **inputs
    )
    pairs = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False).load()
    if "format" not in inputs:
        assert pairs.vx.encoding["shards"][1:] == (20, 20)
    raw = xr.open_zarr(folder / "pairs.zarr").load()
    dates = [raw[f"acquisition_date_img{n}"].values for n in (1, 2)]
    spec = inputs.get("composite", "P1Y")
    ends = (dates[0].min(), dates[1].max()) if spec == "all" else raw.mid_date.values[[0, -1]]
    spans = periods(spec, ends[0], ends[1] + np.timedelta64(1, "us"))
    whole = composite(
        pairs.vx.values, pairs.vy.values, pairs.vx_error.values, pairs.vy_error.values, *dates,
        spans, method=inputs.get("composite_method", "median"),
        max_displacement=inputs.get("max_displacement"),
    )  # fmt: skip
    got = xr.open_zarr(folder / "composite.zarr", decode_cf=False).load()
    for name in (f.name for f in fields(whole)):
        np.testing.assert_allclose(got[name], getattr(whole, name), rtol=2e-4, err_msg=name)
    assert item["properties"]["firnline:periods"] == [period_label(s, spec) for s in spans]
    bounds = xr.open_zarr(folder / "composite.zarr").time_bounds.values.astype("M8[s]")
    assert (bounds[1:, 0] == bounds[:-1, 1]).all()
    about = item["assets"]["composite"]["firnline:composite"]
    assert about == {
        "period": spec,
        "method": inputs.get("composite_method", "median"),
        "max_displacement": inputs.get("max_displacement"),
        "values_used": int(whole.count.sum()),
        "values_rejected": int(whole.rejected.sum()),
        "values_too_long": int(whole.too_long.sum()),
    }
    assert about["values_used"] > about["values_rejected"] > 0  # the sample has blunders
    assert (about["values_too_long"] > 0) == ("max_displacement" in inputs)


def test_errors_of_composites_are_calibrated(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """Against the mean of the field over each year, which its season and trend go around."""
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", pairs=False, strain=False
    )
    got = xr.open_zarr(folder / "composite.zarr").load()
    x, y = np.meshgrid(got.x, got.y)
    steady = sample.mirror.flow.velocity(x, y)
    # the middle of each year, where trend and season are those of its mean
    factor = sample.mirror.flow.factor(got.time.dt.year.values + 0.5)[:, None, None]
    truth = {"vx": factor * steady[0], "vy": factor * steady[1], "v": factor * np.hypot(*steady)}
    for name, values in truth.items():
        off = np.abs(got[name].values - values) / got[f"{name}_error"].values
        off = off[got["count"].values > 0]
        assert 0.60 <= np.mean(off <= 1) <= 0.76, name
        assert np.mean(off <= 2) >= 0.90, name


def test_dates_of_composites_are_dates(sample: Any, engine: Engine, settings: Settings) -> None:
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", composite="P6M", strain=False
    )
    got = xr.open_zarr(folder / "composite.zarr").load()
    pairs = xr.open_zarr(folder / "pairs.zarr").load()
    there = (got["count"] > 0).values
    for name in ("first_date", "mean_date", "last_date"):
        assert got[name].dtype.kind == "M"
        np.testing.assert_array_equal(~np.isnat(got[name].values), there)
    first, mean, last = (got[f"{n}_date"].values[there] for n in ("first", "mean", "last"))
    assert (first < mean).all()
    assert (mean < last).all()
    close = np.timedelta64(3, "m")  # what float32 days tell apart
    assert first.min() - pairs.acquisition_date_img1.values.min() < close
    assert pairs.acquisition_date_img2.values.max() - last.max() < close


def test_too_many_periods_are_refused(sample: Any, engine: Engine, settings: Settings) -> None:
    from firnline.cache.materialise import plan_request
    from firnline.errors import TooLargeError

    small = settings.model_copy(update={"max_job_bytes": 40_000_000})
    asked = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "strain": False}
    for spec in ("P1M", "all"):
        plan_request(engine, small, Request.parse({**asked, "composite": spec}, small))
    with pytest.raises(TooLargeError, match=r"1,\d\d\d periods, P1D each.*FIRNLINE_MAX_JOB_BYTES"):
        plan_request(engine, small, Request.parse({**asked, "composite": "P1D"}, small))


def test_each_chunk_is_fetched_once_and_no_other(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    left, bottom, *_ = sample.mirror.aoi
    run(
        engine, settings.model_copy(update={"memory_limit": 40_000_000}),
        bbox=[left, bottom, left + 2500, bottom + 2500], crs="EPSG:3413", variables=["vx"],
        composite=None, strain=False,
    )  # fmt: skip
    asked = [r.path for r in sample.server.requests if "/vx/" in r.path]
    assert len(asked) == len(set(asked))
    cubes = [c for c in sample.mirror.cubes if c.epsg == 3413]
    cube = next(c for c in cubes if box(*c.bounds).contains(Point(left, bottom)))
    group = zarr.open_group(sample.mirror.root / cube.path, mode="r")
    columns = np.flatnonzero(np.abs(np.asarray(group["x"][:]) - left - 1250) < 1250 + 60)
    rows = np.flatnonzero(np.abs(np.asarray(group["y"][:]) - bottom - 1250) < 1250 + 60)
    expected = {
        f"/{cube.path}/vx/0.{i}.{j}"
        for i in np.unique(rows // 10)
        for j in np.unique(columns // 10)
    }
    assert set(asked) == expected


def test_the_same_request_again_is_answered_from_the_store(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "composite": None, "strain": False}
    _, first = run(engine, settings, **inputs)
    sample.server.clear()
    job = jobs.submit(engine, Request.parse(inputs, settings))
    assert (job.status, job.subset) == ("successful", first["id"])
    assert sample.server.requests == []


def test_files_are_what_the_item_and_the_provenance_say(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    import hashlib

    folder, item = run(engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413")
    for asset in item["assets"].values():
        path = folder.parent.parent / asset["href"].removeprefix("firnline:/files/")
        assert path.exists()
        if path.is_file():
            assert path.stat().st_size == asset["file:size"]
    provenance = json.loads((folder / "provenance.json").read_text())
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert on_disk == set(provenance["files"]) | {"provenance.json"}
    for name, about in provenance["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == about["sha256"]
    assert {s["id"] for s in provenance["sources"]} == {
        c.name for c in sample.mirror.cubes if c.epsg == 3413
    }
    holed = next(c for c in sample.mirror.cubes if c.absent)
    right = sample.mirror.aoi[2]
    inside = [column for _, column in holed.absent if holed.bounds[0] + column * 1200 < right]
    assert provenance["fetched"]["chunks_absent"] == 3 * len(inside) > 0
    links = [link["href"].rsplit("/", 1)[-1] for link in item["links"]]
    assert sorted(links) == sorted(s["id"] for s in provenance["sources"])
    with rasterio.open(folder / "v.tif") as cog:
        composite = xr.open_zarr(folder / "composite.zarr")
        np.testing.assert_array_equal(cog.read(), composite.v.values)
        assert cog.crs.to_epsg() == 3413
        assert cog.descriptions == tuple(f"v {p}" for p in item["properties"]["firnline:periods"])
        assert list(cog.transform)[:6] == item["properties"]["proj:transform"]


@pytest.mark.parametrize("memory_limit", [1, 2_000_000_000])
def test_without_pairs_the_composite_is_the_same(
    sample: Any, engine: Engine, settings: Settings, memory_limit: int
) -> None:
    settings = settings.model_copy(update={"memory_limit": memory_limit})
    area = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413"}
    with_pairs, _ = run(engine, settings, **area)
    without, item = run(engine, settings, **area, pairs=False)
    assert "zarr" not in item["assets"]
    assert not (without / "pairs.zarr").exists()
    xr.testing.assert_equal(
        xr.open_zarr(with_pairs / "composite.zarr").load(),
        xr.open_zarr(without / "composite.zarr").load(),
    )


def test_filters_keep_what_they_say(sample: Any, engine: Engine, settings: Settings) -> None:
    area = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "composite": None, "strain": False}
    everything, _ = run(engine, settings, **area)
    whole = xr.open_zarr(everything / "pairs.zarr").load()
    some, item = run(engine, settings, **area, dt_days=[10, 60], satellites=["L8"])
    part = xr.open_zarr(some / "pairs.zarr").load()
    days = (
        whole.date_dt.values.astype("m8[D]").astype(float)
        if whole.date_dt.dtype.kind == "m"
        else (whole.date_dt.values)
    )
    landsat = (whole.mission_img1 == "L").values & (whole.satellite_img1 == "8").values
    landsat &= (whole.mission_img2 == "L").values & (whole.satellite_img2 == "8").values
    expected = landsat & (days >= 10) & (days <= 60)
    assert 0 < expected.sum() < len(expected)
    assert part.granule.values.tolist() == whole.granule.values[expected].tolist()
    assert item["properties"]["firnline:pairs_read"] == 240


def test_transfers_that_break_are_made_again(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """Some chunks come cut short, some corrupted, some not at the first time: same result."""
    area = {
        "bbox": sample.mirror.aoi, "crs": "EPSG:3413", "variables": ["vx"],
        "composite": None, "strain": False,
    }  # fmt: skip
    undisturbed, _ = run(engine, settings, **area)
    faults = [
        Faults(Fault("status", status=503), rate=0.3, match="*/vx/*", times=1, seed=1),
        Faults(Fault("cut"), rate=0.3, match="*/vx/*", times=1, seed=2),
        Faults(Fault("corrupt"), rate=0.3, match="*/vx/*", times=1, seed=3),
    ]
    sample.server.faults = lambda *request: next(
        (fault for plan in faults if (fault := plan(*request)) is not None), None
    )
    other = sample.settings(settings.data_dir / "other")
    from firnline.database import connect

    disturbed, _ = run(connect(other.database), other, **area)
    sample.server.faults = None
    one, two = (
        xr.open_zarr(p / "pairs.zarr", mask_and_scale=False) for p in (undisturbed, disturbed)
    )
    np.testing.assert_array_equal(one.vx, two.vx)


def test_an_outage_fails_the_job_and_publishes_nothing(
    sample: Any, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.web._RETRIES", 1)
    sample.server.faults = Faults(Fault("status", status=500), match="*/vx/*")
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "variables": ["vx"],
              "composite": None, "strain": False}  # fmt: skip
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    sample.server.faults = None
    assert job.status == "failed"
    assert "/vx/" in job.message
    assert "500" in job.message
    assert job.subset is None
    assert [p for p in settings.cache_dir.rglob("*") if p.is_file()] == []
    with reading(engine) as connection:
        assert get_item(connection, "subsets", Request.parse(inputs, settings).subset_id) is None


def test_open_gives_a_dataset(sample: Any, settings: Settings) -> None:
    import firnline

    aoi = sample.mirror.aoi
    ds = firnline.open(
        bbox=list(aoi), crs="EPSG:3413", datetime="2018-01-01/2018-12-31", settings=settings
    )
    expected = brute_force(sample, aoi, "2018-01-01", "2018-12-31")
    np.testing.assert_array_equal(ds.vx.fillna(-32767), expected["vx"])
    rates = open_subset(
        bbox=list(aoi), crs="EPSG:3413", datetime="2018-01-01/2018-12-31", settings=settings,
        dataset="strain",
    )  # fmt: skip
    composite = open_subset(
        bbox=list(aoi), crs="EPSG:3413", datetime="2018-01-01/2018-12-31", settings=settings,
        dataset="composite",
    )  # fmt: skip
    again = firnline.strain(composite, length_scale=500)
    np.testing.assert_allclose(again.exx, rates.exx, atol=1e-7)


def test_periods_without_data_and_tiny_areas(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """Chunks that hold nothing but the fill value are written too; a pixel is an area."""
    small = settings.model_copy(update={"memory_limit": 1})
    left, bottom, right, top = sample.mirror.aoi
    for bbox in (
        [left, bottom, right, top],
        [left, bottom, left + 600, bottom + 600],
        [left + 130, bottom + 130, left + 140, bottom + 140],
        [left, bottom + 130, right, bottom + 140],
    ):
        folder, item = run(engine, small, bbox=bbox, crs="EPSG:3413", composite="P1M")
        composite = xr.open_zarr(folder / "composite.zarr").load()
        assert not composite["too_long"].any(), "a field of nothing but zeros"
        np.testing.assert_array_equal(composite["count"] == 0, np.isnan(composite.v))
        shape = tuple(item["properties"]["proj:shape"])
        assert composite.v.shape[1:] == shape
        assert ("thumbnail" in item["assets"]) == (min(shape) > 1)
        expected = brute_force(sample, tuple(bbox), "2016-01-01", "2022-01-01")
        pairs = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False)
        np.testing.assert_array_equal(pairs.vx, expected["vx"])


@pytest.mark.parametrize("format", ["v3", "v2"])
def test_per_pair_values_are_missing_where_the_source_says_so(
    sample: Any, engine: Engine, settings: Settings, format: str
) -> None:
    """Every 1-D number, decoded by xarray, against the source decoded by xarray."""
    folder, _ = run(
        engine, settings, bbox=sample.mirror.aoi, crs="EPSG:3413", composite=None, strain=False,
        format=format,
    )  # fmt: skip
    got = xr.open_zarr(folder / "pairs.zarr").load()
    position = {str(name): n for n, name in enumerate(got.granule.values)}
    first: dict[str, str] = {}
    for cube in (c for c in sample.mirror.cubes if c.epsg == 3413):
        source = xr.open_zarr(sample.mirror.root / cube.path).load()
        for name in source.data_vars:
            if source[name].dims != ("mid_date",) or source[name].dtype.kind not in "fiu":
                continue
            if name == "roi_valid_percentage":  # that of each cube's own part of the scene
                continue
            mine = [position[granule] for granule in cube.granules]
            np.testing.assert_array_equal(
                got[name].values[mine], source[name].values, err_msg=str(name)
            )
            first.setdefault(str(name), cube.name)
    assert len(first) > 20
    assert np.isnan(got.va_error).any()


def test_the_whole_window_of_a_polygon_is_filled(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """What is stored is the polygon's bounding window, so cubes in its corners count as well."""
    left, bottom, _, top = sample.mirror.aoi
    triangle = {
        "type": "Polygon",
        "coordinates": [[[left, bottom], [left + 3000, bottom], [left, top], [left, bottom]]],
    }
    options = {"crs": "EPSG:3413", "composite": None, "strain": False, "variables": ["vx"]}
    polygon, _ = run(engine, settings, geometry=triangle, **options)
    window, _ = run(engine, settings, bbox=[left, bottom, left + 3000, top], **options)
    one, two = (
        xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False) for folder in (polygon, window)
    )
    np.testing.assert_array_equal(one.vx, two.vx)
    assert (one.source_cube >= 0).all()


def test_chunks_on_the_edge_of_tiles_are_fetched_once(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    small = settings.model_copy(update={"memory_limit": 10_000_000})
    folder, _ = run(
        engine, small, bbox=sample.mirror.aoi, crs="EPSG:3413", variables=["vx"],
        composite=None, strain=False,
    )  # fmt: skip
    high, wide = xr.open_zarr(folder / "pairs.zarr").vx.encoding["shards"][1:]
    assert (high, wide) != (80, 80), "several tiles"
    asked = [r.path for r in sample.server.requests if "/vx/" in r.path]
    assert len(asked) == len(set(asked))
    fetched = json.loads((folder / "provenance.json").read_text())["fetched"]
    confirmed = [r for r in sample.server.requests if r.status == 304]
    assert len(confirmed) >= 4 + 4, "each cube is the same with its last columns, and at the end"
    assert fetched["requests"] == len(asked) + len(confirmed) - 4


def test_what_a_source_must_have_is_not_taken_for_no_data(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    area = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "composite": None, "strain": False}
    settings = settings.model_copy(update={"chunk_cache_quota": 0})
    for name in ("mid_date", "granule_url", "x"):
        fault = Fault("status", status=404)
        sample.server.faults = Faults(fault, match=f"*EPSG3413*/{name}/*")
        job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(area, settings)))
        sample.server.faults = None
        assert job.status == "failed"
        assert f"has metadata, but no {name}/0" in job.message


def test_a_subset_whose_files_are_gone_is_made_again(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    import shutil

    from firnline.cache.opening import ask

    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "composite": None, "strain": False}
    folder, item = run(engine, settings, **inputs)
    shutil.rmtree(folder)
    request = Request.parse(inputs, settings)
    job = ask(engine, settings, request)
    assert job.status == "accepted"
    done = worker.finish(engine, settings, job)
    assert (done.status, done.subset) == ("successful", item["id"])
    assert (subset_place(engine, settings, item["id"]) / "pairs.zarr").is_dir()


def test_progress_tells_what_is_left(sample: Any, engine: Engine, settings: Settings) -> None:
    """Bytes beside tiles: about those that then came. What was done is timed for estimates."""
    tiled = settings.model_copy(update={"memory_limit": 1, "concurrency": 1})
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "composite": None, "strain": False}
    told: list[tuple[int, str]] = []
    job = jobs.submit(engine, Request.parse(inputs, settings))
    job = worker.finish(engine, tiled, job, shown=lambda *state: told.append(state))
    assert job.status == "successful"
    with reading(engine) as connection:
        done = {row.name: row.value for row in connection.execute(counters.select())}
    form = re.compile(r"(\d+) of (\d+) tiles, about ([\d,.]+) MB left to download")
    found = [match for _, text in told if (match := form.fullmatch(text))]
    assert len(found) > 10
    left = [float(match[3].replace(",", "")) * 1e6 for match in found]
    assert done["bytes"] / 2 < left[0] < 2 * done["bytes"]  # nearly all of it
    third = len(left) // 3
    assert sum(left[-third:]) < sum(left[third:-third]) < sum(left[:third])
    assert left[-1] < done["bytes"] / 4
    last = next(text for progress, text in told if progress == 90)
    assert last == f"{found[0][2]} of {found[0][2]} tiles"  # none left, none told
    assert (done["timed_jobs"], done["timed_chunks"]) == (1, done["chunks"])
    assert job.started is not None
    assert job.finished is not None
    taken = (job.finished - job.started).total_seconds() * 1000
    assert done["timed_milliseconds"] == pytest.approx(taken, abs=200)
