"""Mosaics to subsets: the sample over HTTP against its formula, and hand-made ones from disk."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import rioxarray  # noqa: F401  registers the accessor
import xarray as xr
from affine import Affine
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import box
from sqlalchemy import Engine
from starlette.testclient import TestClient

import firnline
from firnline.api.app import create_app
from firnline.cache import jobs, worker
from firnline.cache.cog_reader import RemoteCog
from firnline.cache.materialise import plan_request
from firnline.cache.opening import ask, subset_place
from firnline.cache.refresh import refresh
from firnline.cache.request import Request
from firnline.cache.strain import strain_rates
from firnline.cli import main
from firnline.database import (
    connect,
    get_item,
    migrate,
    put_collections,
    put_items,
    reading,
    writing,
)
from firnline.errors import (
    InputError,
    NoCoverageError,
    SourceMissingError,
    SourceUnreachableError,
    TooLargeError,
)
from firnline.footprint import footprint
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.sample import write_mirror
from firnline.items import MosaicRecord, item_row, mosaic_item, mosaic_url
from firnline.settings import Settings

_spec = importlib.util.spec_from_file_location("schemas", Path(__file__).parents[1] / "schemas.py")
assert _spec is not None
assert _spec.loader is not None
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)

SHARED = Path(os.environ.get("FIRNLINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
MOSAICS: dict[str, Any] = {"collection": "velocity-mosaics", "crs": "EPSG:3413"}


def run(engine: Engine, settings: Settings, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    request = Request.parse({**MOSAICS, **inputs}, settings)
    job = worker.finish(engine, settings, ask(engine, settings, request))
    assert job.subset is not None, job.message
    with reading(engine) as connection:
        content = get_item(connection, "subsets", job.subset)
    assert content is not None
    return subset_place(engine, settings, job.subset), json.loads(content)


# --- the sample, over HTTP


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Any, Path]]:
    """The sample's mosaics, and a database that harvested them."""
    folder = tmp_path_factory.mktemp("mosaics")
    with MirrorServer(folder / "mirror") as server:
        made = write_mirror(folder / "mirror", server.url, pairs=16, cubes=("nw", "se"))
        settings = Settings(
            data_dir=folder,
            allowed_sources=(f"{server.url}/",),
            mosaic_roots=(made.mosaic_root,),
            _env_file=None,
        )
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [made.catalog_url])
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()
        yield server, made, folder / "firnline.db"


@pytest.fixture
def here(mirror: tuple[MirrorServer, Any, Path], tmp_path: Path) -> Iterator[Any]:
    """Engine, settings and the mirror's server and content."""
    server, made, catalog = mirror
    server.faults = None
    server.clear()
    (tmp_path / "firnline.db").write_bytes(catalog.read_bytes())
    settings = Settings(
        data_dir=tmp_path,
        allowed_sources=(f"{server.url}/",),
        mosaic_roots=(made.mosaic_root,),
        _env_file=None,
    )
    engine = connect(settings.database)
    yield engine, settings, server, made
    engine.dispose()


# the corner without data, and part of what is south-east of it
AOI = (-180_500.0, -2_275_000.0, -174_000.0, -2_269_000.0)


def test_years_strain_and_trend_are_those_of_the_formula(here: Any) -> None:
    engine, settings, _, made = here
    folder, item = run(engine, settings, bbox=AOI, strain={"length_scale": 250})
    got = xr.open_zarr(folder / "composite.zarr").load()
    x, y = np.meshgrid(got.x, got.y)
    assert got.rio.crs.to_epsg() == 3413
    # the window of the mosaic's lattice that covers the area, as far as there is a mosaic
    assert got.x[0] - 60 >= -180_000 - 120
    assert got.x[-1] - 60 < AOI[2] <= got.x[-1] + 60
    assert got.y[-1] - 60 <= AOI[1] < got.y[-1] + 60
    seen = np.isfinite(got.vx.values)
    assert 0 < (~seen[0]).sum() <= 36
    np.testing.assert_array_equal(got["count"].values, np.where(seen, 40, 0))
    for n, year in enumerate((2018, 2019, 2020)):
        assert got.time_bounds.values[n].astype("M8[Y]").astype(int).tolist() == [
            year - 1970, year - 1969,
        ]  # fmt: skip
        vx, vy = made.flow.velocity(x, y, year + 0.5)
        for name, expected in (("vx", vx), ("vy", vy), ("v", np.hypot(vx, vy))):
            np.testing.assert_allclose(
                got[name].values[n][seen[n]], expected[seen[n]], rtol=1e-6, atol=1e-4
            )
            assert (got[f"{name}_error"].values[n][seen[n]] == 6).all()
            np.testing.assert_array_equal(np.isnan(got[name].values[n]), ~seen[n])

    trend = xr.open_zarr(folder / "trend.zarr").load()
    steady = np.hypot(*made.flow.velocity(x, y))
    np.testing.assert_allclose(
        trend.dv_dt.values[0][seen[0]], (made.flow.trend * steady)[seen[0]], rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(
        trend.dv_dt_error.values[0][seen[0]], np.sqrt((36 + 1 / 12) / 2), rtol=1e-3
    )
    np.testing.assert_array_equal(trend.years.values[0], np.where(seen[0], 3, 0))

    strain = xr.open_zarr(folder / "strain.zarr").load()
    again = strain_rates(
        got.vx.values[1], got.vy.values[1], dx=120, dy=-120, radius=2,
        vx_error=got.vx_error.values[1], vy_error=got.vy_error.values[1],
    )  # fmt: skip
    for name, values in again.items():
        np.testing.assert_array_equal(strain[name].values[1], values)
    exact = made.flow.strain(x, y)[0] * made.flow.factor(2019.5)
    # beyond the windows of what is missing; 1 % of what there is
    assert np.abs(strain.exx.values[1] - exact)[9:-3, 9:-3].max() < 0.01 * exact.max()

    properties = item["properties"]
    assert properties["firnline:periods"] == ["2018", "2019", "2020"]
    assert properties["start_datetime"] == "2018-01-01T00:00:00.000000Z"
    assert [link["href"].rsplit("/", 1)[1] for link in item["links"]] == [
        f"RGI05A_ANNUAL_{year}" for year in (2018, 2019, 2020)
    ]
    assert {"composite", "strain", "trend", "cog_v", "cog_dv_dt", "cog_e1", "thumbnail"} <= set(
        item["assets"]
    )
    assert "zarr" not in item["assets"]
    assert "SYNTHETIC" in properties["description"]
    for key, asset in item["assets"].items():
        if key.startswith("cog_"):
            path = folder / asset["href"].rsplit("/", 1)[1]
            assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
            assert len(asset["bands"]) == (1 if "dt" in key else 3)
    (band,) = item["assets"]["cog_dv_dt"]["bands"]
    assert band["statistics"]["mean"] == pytest.approx(float(np.nanmean(trend.dv_dt)), 1e-5)
    sources = json.loads((folder / "provenance.json").read_text())["sources"]
    assert len(sources) == 21
    assert all(source["etag"] for source in sources)


@pytest.mark.skipif(not schemas.SCHEMAS.is_dir(), reason="the STAC schemas are not here")
@pytest.mark.parametrize("composite", ["P1Y", "all"])
def test_items_are_valid_stac(here: Any, composite: str) -> None:
    engine, settings, _, made = here
    _, item = run(engine, settings, bbox=made.aoi, composite=composite, strain=False)
    item["links"].append({"rel": "collection", "href": "http://x/collections/subsets"})
    assert schemas.StacSchemas().problems(item) == []


def test_static_mosaic(here: Any) -> None:
    engine, settings, _, made = here
    folder, item = run(engine, settings, bbox=AOI, composite="all", strain=False)
    got = xr.open_zarr(folder / "composite.zarr").load()
    x, y = np.meshgrid(got.x, got.y)
    seen = np.isfinite(got.vx.values[0])
    np.testing.assert_allclose(
        got.v.values[0][seen], np.hypot(*made.flow.velocity(x, y))[seen], rtol=1e-6
    )
    assert (got["count"].values[0][seen] == 400).all()
    assert "trend" not in item["assets"]
    assert item["properties"]["firnline:periods"] == ["2014-01-01/2025-01-01"]
    with pytest.raises(
        NoCoverageError, match="2014-01-01 to 2024-12-31, and datetime has to cover"
    ):
        run(engine, settings, bbox=AOI, composite="all", datetime="2018-01-01/2020-12-31")


def test_years_by_their_middle_and_two_have_no_trend(here: Any) -> None:
    engine, settings, _, _ = here
    _, item = run(engine, settings, bbox=AOI, datetime="2019-01-01/2020-08-01", strain=False)
    assert item["properties"]["firnline:periods"] == ["2019", "2020"]
    assert "trend" not in item["assets"]
    assert not any("dt" in key for key in item["assets"])
    with pytest.raises(NoCoverageError, match="the middle of a year counts"):
        run(engine, settings, bbox=AOI, datetime="2031-01-01/..")


def test_only_the_window_is_read_and_tiles_are_kept(here: Any) -> None:
    engine, settings, server, made = here
    run(engine, settings, bbox=made.aoi, strain=False)
    asked = [r for r in server.requests if r.path.endswith(".tif")]
    assert asked
    assert all("V02.1" in r.path for r in asked)  # the newest version alone
    server.clear()
    run(engine, settings, bbox=made.aoi, strain={"length_scale": 1000})
    again = [r for r in server.requests if r.path.endswith(".tif")]
    assert len(again) <= len(asked)
    # what the catalog has of later years does not exist here, and is not asked for twice
    dry = plan_request(
        engine, settings, Request.parse({**MOSAICS, "bbox": made.aoi}, settings), only_plan=True
    ).summary()
    assert dry["mosaics"] == [f"RGI05A_ANNUAL_{year}" for year in (2018, 2019, 2020)]
    assert "RGI05A_ANNUAL_2024" in dry["absent"]
    assert dry["shape"]["time"] == 3
    assert dry["output_bytes_uncompressed"] == 28 * 3 * dry["shape"]["y"] * dry["shape"]["x"]


def test_open_in_python(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings, _, made = here
    ds = firnline.open(settings=settings, bbox=made.aoi, strain=False, **MOSAICS)
    assert dict(ds.sizes) | {"time": 3} == dict(ds.sizes)
    trend = firnline.open(
        settings=settings, dataset="trend", bbox=made.aoi, strain=False, **MOSAICS
    )
    assert float(trend.dv_dt.mean()) > 0


def test_an_outage_is_no_empty_result(here: Any) -> None:
    engine, settings, server, made = here
    server.faults = Faults(Fault("status", status=403), match="*_2019_*_vy.tif")
    job = jobs.submit(engine, Request.parse({**MOSAICS, "bbox": made.aoi}, settings))
    done = worker.finish(engine, settings, job)
    assert done.status == "failed"
    assert "403" in done.message


def test_through_the_shell_and_the_process(
    here: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same request by both doors is the same subset."""
    engine, settings, server, made = here
    monkeypatch.chdir(settings.data_dir)
    monkeypatch.setenv("FIRNLINE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("FIRNLINE_ALLOWED_SOURCES", f"{server.url}/")
    monkeypatch.setattr("firnline.logs.configure", lambda settings: None)

    def shell(*arguments: object) -> Any:
        words = ["materialise", "--collection", "velocity-mosaics", "--crs", "EPSG:3413", "--bbox"]
        monkeypatch.setattr(sys, "argv", ["firnline", *words, *map(str, [*made.aoi, *arguments])])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    dry = shell("--no-strain", "--dry-run", "--json")
    assert dry["files"] == 21
    done = shell("--no-strain", "--json")
    assert done["status"] == "successful"
    with TestClient(create_app(settings, engine), base_url="http://127.0.0.1") as client:
        inputs = {**MOSAICS, "bbox": list(made.aoi), "strain": False}
        asked = {"json": {"inputs": inputs}, "headers": {"Prefer": "respond-async"}}
        reply = client.post("/processes/materialise/execution", **asked)
        assert reply.status_code == 201
        assert reply.json()["status"] == "successful"  # from the cache
        item = client.get(f"/jobs/{reply.json()['jobID']}/results").json()["item"]["value"]
        assert item["id"] == done["item"]
        series = client.get(
            f"/collections/subsets/items/{item['id']}/series",
            params={"x": -170_000, "y": -2_280_000, "dataset": "trend", "f": "json"},
        )
        assert series.status_code == 200, series.text
        speed = np.hypot(*made.flow.velocity(-170_060, -2_280_060))
        (row,) = series.json()["series"]
        assert row["dv_dt"] == pytest.approx(made.flow.trend * speed, rel=0.05)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        ({"composite": "P1M"}, "accepted are P1Y, the annual mosaics, and all"),
        ({"composite": None, "strain": False}, "accepted are P1Y"),
        ({"satellites": ["L8"]}, "satellites is for image pairs"),
        ({"dt_days": [0, 60]}, "dt_days is for image pairs"),
        ({"max_displacement": 500}, "max_displacement is for image pairs"),
        ({"composite_method": "mean"}, "composite_method is for image pairs"),
    ],
)
def test_inputs_of_image_pairs_are_refused(inputs: dict[str, Any], match: str) -> None:
    settings = Settings(_env_file=None)
    with pytest.raises(InputError, match=match):
        Request.parse({**MOSAICS, "bbox": AOI, **inputs}, settings)


def test_one_key_whatever_is_said_of_pairs() -> None:
    settings = Settings(_env_file=None)
    keys = {
        Request.parse({**MOSAICS, "bbox": AOI, **inputs}, settings).key
        for inputs in ({}, {"pairs": True}, {"variables": ["vx", "vy"]}, {"satellites": []})
    }
    assert len(keys) == 1
    request = Request.parse({**MOSAICS, "bbox": AOI}, settings)
    assert Request.parse(request.to_inputs(), settings) == request
    cubes = Request.parse({"crs": "EPSG:3413", "bbox": AOI}, settings)
    assert cubes.key not in keys


# --- mosaics made by hand, on disk


class Shelf:
    """A folder of mosaics of chosen content, and a catalog of them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "velocity_mosaic"
        self.root.mkdir()
        self.settings = Settings(
            data_dir=folder / "data",
            allowed_sources=(f"file://{folder}/",),
            _env_file=None,
        )
        (folder / "data").mkdir()
        self.engine = connect(self.settings.database)
        migrate(self.engine)
        with writing(self.engine) as connection:
            put_collections(connection, [("velocity-mosaics", b"{}"), ("subsets", b"{}")])

    def put(
        self,
        region: int,
        crs: str,
        year: int | None,
        corner: tuple[float, float],
        version: str = "2.1",
        *,
        write: bool = True,
        **fields: Any,
    ) -> MosaicRecord:
        """Add a mosaic, `fields` (y, x) on 120 m from its north-west corner; what is None is not
        written."""
        shape = next(np.shape(f) for f in fields.values() if f is not None)
        left, top = corner
        outline = footprint(box(left, top - 120 * shape[0], left + 120 * shape[1], top), crs)
        record = MosaicRecord(region, version, year, 2024, f"file://{self.root}", crs, outline)
        defaults = {"v_error": 5, "vx_error": 4, "vy_error": 3, "count": 9}
        for name, values in ({n: np.full(shape, v) for n, v in defaults.items()} | fields).items():
            if values is None or not write:
                continue
            kind, nodata = (
                ("uint32", 0) if name == "count"
                else ("uint16", 32767) if "error" in name
                else ("float32", -32767)
            )  # fmt: skip
            path = Path(mosaic_url(record, name).removeprefix("file://"))
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                path, "w", driver="COG", height=shape[0], width=shape[1], count=1, dtype=kind,
                crs=crs, transform=Affine(120, 0, left, 0, -120, top), nodata=nodata,
                compress="deflate", predictor="yes", sparse_ok=True,
            ) as target:  # fmt: skip
                filled = np.where(np.isnan(values), nodata, values)
                target.write(filled.astype(kind), 1)
        with writing(self.engine) as connection:
            put_items(connection, [item_row(mosaic_item(record), outline, source="test")])
        return record

    def materialise(self, bbox: Any, crs: str, **inputs: Any) -> tuple[Any, dict[str, Any]]:
        """The composite, and the item."""
        folder, item = run(
            self.engine, self.settings, bbox=bbox, **{"crs": crs, "strain": False, **inputs}
        )
        return xr.open_zarr(folder / "composite.zarr").load(), item


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    yield made
    made.engine.dispose()


def flat(value: float, shape: tuple[int, int] = (20, 30)) -> Any:
    return np.full(shape, float(value))


def test_regions_are_stitched_and_the_one_that_covers_more_comes_first(shelf: Shelf) -> None:
    """Region 4 lies 10 columns to the west of 5 and overlaps it: 5 covers more of the area."""
    hole = flat(3)
    hole[5, 2] = np.nan  # here 4 has data
    shelf.put(5, "EPSG:3413", 2018, (-180_000, -2_270_000), vx=hole, vy=flat(4), v=flat(5))
    shelf.put(
        4, "EPSG:3413", 2018, (-181_200, -2_270_000), vx=flat(6), vy=flat(8), v=flat(10),
        v_error=flat(50),
    )  # fmt: skip
    shelf.put(4, "EPSG:3413", 2019, (-181_200, -2_270_000), vx=flat(1), vy=flat(0), v=flat(1))
    got, item = shelf.materialise((-180_600, -2_272_400, -176_400, -2_270_000), "EPSG:3413")
    assert got.v.shape == (2, 20, 35)
    assert got.x.values[0] == -180_540
    expected = np.where(np.arange(35) < 5, 10.0, 5.0) * np.ones((20, 1))
    expected[5, 7] = 10
    np.testing.assert_array_equal(got.v.values[0], expected)
    # all fields of a pixel are of one mosaic
    np.testing.assert_array_equal(got.vx.values[0], np.where(expected == 10, 6, 3))
    np.testing.assert_array_equal(got.v_error.values[0], np.where(expected == 10, 50, 5))
    # in 2019 there is but one
    np.testing.assert_array_equal(np.isfinite(got.v.values[1]), np.arange(35) < 25 + 0 * expected)
    assert {link["href"].rsplit("/", 1)[1] for link in item["links"]} == {
        "RGI04A_ANNUAL_2018", "RGI04A_ANNUAL_2019", "RGI05A_ANNUAL_2018",
    }  # fmt: skip


def test_a_crs_that_is_no_epsg_code(shelf: Shelf) -> None:
    """High Mountain Asia, ESRI:102027: asked for in degrees, and the grid says what it is."""
    for year in (2018, 2019, 2020):
        shelf.put(
            14, "ESRI:102027", year, (-1_900_000, 2_300_000),
            vx=flat(10 + year - 2018), vy=flat(0), v=flat(10 + year - 2018),
        )  # fmt: skip
    # nothing of another CRS, or that covers less, gets in its way
    shelf.put(12, "EPSG:32638", 2018, (300_000, 4_800_000), vx=flat(1), vy=flat(1), v=flat(1))
    folder, item = run(
        shelf.engine, shelf.settings, crs="ESRI:102027", strain={"length_scale": 240},
        bbox=(-1_899_500, 2_298_000, -1_897_000, 2_299_900),
    )  # fmt: skip
    got = xr.open_zarr(folder / "trend.zarr").load()
    np.testing.assert_allclose(got.dv_dt.values, 1, rtol=1e-6)
    assert pyproj.CRS.from_wkt(got.rio.crs.to_wkt()).to_authority() == ("ESRI", "102027")
    assert item["properties"]["proj:code"] == "ESRI:102027"
    assert "Lambert" in item["properties"]["proj:wkt2"]
    with rasterio.open(folder / "v.tif") as cog:
        assert cog.crs == rasterio.crs.CRS.from_user_input("ESRI:102027")
    strain = xr.open_zarr(folder / "strain.zarr").load()
    assert np.isfinite(strain.e1.values).mean() > 0.9
    np.testing.assert_allclose(np.nan_to_num(strain.e1.values), 0, atol=1e-9)


def test_antarctica_over_the_antimeridian(shelf: Shelf) -> None:
    shelf.put(19, "EPSG:3031", 2018, (-1_200, -1_300_000), vx=flat(7), vy=flat(24), v=flat(25))
    lonlat = shelf.materialise((179.97, -78.07, -179.97, -78.06), "OGC:CRS84")[0]
    assert np.isfinite(lonlat.v.values).any()
    assert (lonlat.v.values[np.isfinite(lonlat.v.values)] == 25).all()
    assert float(lonlat.x.min()) < 0 < float(lonlat.x.max())


def test_the_newest_version_of_a_region_and_no_other(shelf: Shelf) -> None:
    place = ("EPSG:32718", 2018, (600_000, 4_500_000))
    shelf.put(17, *place, "2", vx=flat(3), vy=flat(4), v=flat(5))
    bbox = (600_100, 4_498_000, 602_000, 4_499_000)
    got, item = shelf.materialise(bbox, "EPSG:32718")
    assert (got.v.values == 5).all()
    assert item["links"][0]["href"].endswith("RGI17A_ANNUAL_2018_V02")
    shelf.put(17, *place, "2.1", vx=flat(6), vy=flat(8), v=flat(10))
    got, item = shelf.materialise(bbox, "EPSG:32718", strain={"length_scale": 200})
    assert (got.v.values == 10).all()


def test_what_a_mosaic_lacks(shelf: Shelf) -> None:
    """No v: it is that of the components. No errors, no count: none. One component: no pixel."""
    vx = flat(3)
    vx[0, 0] = np.nan
    corner = (600_000, 4_500_000)
    shelf.put(
        17, "EPSG:32718", 2018, corner, vx=vx, vy=flat(4), v=None,
        v_error=None, vx_error=None, vy_error=None, count=None,
    )  # fmt: skip
    shelf.put(17, "EPSG:32718", 2019, corner, vx=flat(3), vy=flat(4), v=flat(5), write=False)
    got, item = shelf.materialise((600_000, 4_497_600, 603_600, 4_500_000), "EPSG:32718")
    assert item["properties"]["firnline:periods"] == ["2018"]
    seen = np.ones((1, 20, 30), bool)
    seen[0, 0, 0] = False
    np.testing.assert_array_equal(np.isfinite(got.v.values), seen)
    np.testing.assert_array_equal(got.v.values[seen], 5)
    np.testing.assert_array_equal(np.isfinite(got.vy.values), seen)
    assert np.isnan(got.v_error.values).all()
    assert (got["count"].values == 0).all()


def test_a_real_mosaic(shelf: Shelf) -> None:
    """ITS_LIVE's Alaska, gaps and all: what goes in comes out, and its strain is the kernel's."""
    layers = {}
    for name in ("vx", "vy"):
        path = SHARED / f"mosaic_crop_ala_{name}.tif"
        if not path.exists():
            pytest.skip("shared data not here")
        with rasterio.open(path) as source:
            layers[name] = source.read(1, masked=True).astype(float).filled(np.nan)
            bounds, corner = source.bounds, (source.transform.c, source.transform.f)
            assert source.transform.a == 120
    shelf.put(1, "EPSG:3413", 2018, corner, **layers, v=np.hypot(*layers.values()))
    folder, _ = run(shelf.engine, shelf.settings, bbox=tuple(bounds), strain={"length_scale": 240})
    got = xr.open_zarr(folder / "composite.zarr").load()
    seen = np.isfinite(layers["vx"]) & np.isfinite(layers["vy"])
    assert 0.1 < seen.mean() < 1
    for name, values in layers.items():
        expected = np.where(seen, values, np.nan).astype("f4")
        np.testing.assert_array_equal(got[name].values[0], expected)
    rates = xr.open_zarr(folder / "strain.zarr").load()
    vx, vy = (np.where(seen, v, np.nan).astype("f4") for v in layers.values())
    want = strain_rates(vx, vy, dx=120, dy=-120, radius=2)
    np.testing.assert_allclose(rates.e1.values[0], want["e1"], atol=1e-6)


def test_a_subset_is_made_anew_when_a_mosaic_is_another_one(shelf: Shelf) -> None:
    place = (17, "EPSG:32718", 2018, (600_000, 4_500_000))
    shelf.put(*place, vx=flat(3), vy=flat(4), v=flat(5))
    bbox = (600_000, 4_497_600, 603_600, 4_500_000)
    got, item = shelf.materialise(bbox, "EPSG:32718")
    assert refresh(shelf.engine, shelf.settings, item["id"]) is None
    shelf.put(*place, vx=flat(6), vy=flat(8), v=flat(10))
    job = refresh(shelf.engine, shelf.settings, item["id"])
    assert job is not None
    assert worker.finish(shelf.engine, shelf.settings, job).status == "successful"
    got, _ = shelf.materialise(bbox, "EPSG:32718")
    assert (got.v.values == 10).all()


def test_blocks_make_the_whole(shelf: Shelf) -> None:
    """More than one chunk of the store and more than one tile of the file, tiles without data."""
    y, x = np.mgrid[0:700, 0:900]
    vx, vy = (x + 0.5).astype(float), (y + 0.25).astype(float)
    vx[:530, :520] = np.nan  # a tile of the file is empty
    shelf.put(17, "EPSG:32718", 2018, (500_000, 4_500_000), vx=vx, vy=vy, v=np.hypot(vx, vy))
    bbox = (500_000 + 120 * 7, 4_500_000 - 120 * 690, 500_000 + 120 * 880, 4_500_000 - 120 * 3)
    got, _ = shelf.materialise(bbox, "EPSG:32718")
    np.testing.assert_array_equal(got.vx.values[0], vx[3:690, 7:880].astype("f4"))
    np.testing.assert_array_equal(
        got.vy.values[0], np.where(np.isnan(vx), np.nan, vy)[3:690, 7:880].astype("f4")
    )


KILLED = """
import os, signal, sys
from firnline.cache import store, worker
from firnline.database import connect
from firnline.settings import Settings

settings = Settings(data_dir=sys.argv[1], allowed_sources=(sys.argv[2],), _env_file=None)
fields, write = 0, store.write_field

def until(path, name, values, block):
    global fields
    fields += 1
    if fields > int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, name, values, block)

store.write_field = until
worker.run_next(connect(settings.database), settings, "killed")
"""


def three_years(shelf: Shelf, faster: int = 0) -> tuple[float, ...]:
    """Mosaics whose window takes six blocks; the window."""
    y, x = np.mgrid[0:400, 0:600]
    for year in (2018, 2019, 2020):
        vx, vy = x + 10.0 * (year - 2018) + faster, y * 1.0
        shelf.put(17, "EPSG:32718", year, (500_000, 4_500_000), vx=vx, vy=vy, v=np.hypot(vx, vy))
    return (500_000, 4_500_000 - 120 * 400, 500_000 + 120 * 600, 4_500_000)


def killed_after(shelf: Shelf, fields: int, bbox: tuple[float, ...]) -> jobs.Job:
    """The job of a worker process that was killed when it had written so many fields."""
    inputs = {**MOSAICS, "bbox": bbox, "crs": "EPSG:32718", "strain": False}
    job = jobs.submit(shelf.engine, Request.parse(inputs, shelf.settings))
    root = shelf.settings.allowed_sources[0]
    words = [sys.executable, "-c", KILLED, str(shelf.settings.data_dir), root, str(fields)]
    ended = subprocess.run(words, capture_output=True, timeout=240, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    job = jobs.get(shelf.engine, job.id)
    assert job.status == "running"
    jobs.beat(shelf.engine, job, -1.0)  # its lease is over
    return job


def stores(shelf: Shelf, job: jobs.Job) -> dict[str, xr.Dataset]:
    assert job.subset is not None, job.message
    folder = subset_place(shelf.engine, shelf.settings, job.subset)
    return {name: xr.open_zarr(folder / f"{name}.zarr").load() for name in ("composite", "trend")}


# of ten fields a block: in the first, in the middle of another, in the last
@pytest.mark.parametrize("fields", [4, 27, 55])
def test_a_killed_job_goes_on_at_its_first_unfinished_block(
    shelf: Shelf, fields: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bbox = three_years(shelf)
    job = killed_after(shelf, fields, bbox)
    assert sorted(jobs.finished_tiles(shelf.engine, job)) == list(range(fields // 10))
    windows = []
    read = RemoteCog.read
    monkeypatch.setattr(RemoteCog, "read", lambda cog, *w: (windows.append(w), read(cog, *w))[1])
    ended = worker.finish(shelf.engine, shelf.settings, job)
    assert (ended.status, ended.attempt) == ("successful", 2)
    # of three years seven files each
    assert len(windows) == 21 * (6 - fields // 10)
    got = stores(shelf, ended)
    y, x = np.mgrid[0:400, 0:600]
    for n in range(3):
        np.testing.assert_array_equal(got["composite"].vx.values[n], x + 10 * n)
        np.testing.assert_array_equal(got["composite"].vy.values[n], y)
        assert (got["composite"]["count"].values[n] == 9).all()
    assert (got["trend"].years.values == 3).all()
    assert ended.subset is not None
    folder = subset_place(shelf.engine, shelf.settings, ended.subset)
    told = json.loads((folder / "provenance.json").read_text())
    assert len({source["href"] for source in told["sources"]}) == 21
    assert list((shelf.settings.cache_dir / "work").iterdir()) == []


def test_blocks_of_what_a_mosaic_was_are_not_kept(shelf: Shelf) -> None:
    bbox = three_years(shelf)
    job = killed_after(shelf, 27, bbox)
    three_years(shelf, faster=500)
    ended = worker.finish(shelf.engine, shelf.settings, job)
    assert ended.status == "successful", ended.message
    _, x = np.mgrid[0:400, 0:600]
    np.testing.assert_array_equal(stores(shelf, ended)["composite"].vx.values[0], x + 500)


def test_refusals(shelf: Shelf) -> None:
    bbox = (600_100, 4_498_000, 602_000, 4_499_000)
    with pytest.raises(NoCoverageError, match="no annual mosaic of the catalog covers"):
        shelf.materialise(bbox, "EPSG:32718")
    record = shelf.put(
        17, "EPSG:32718", 2018, (600_000, 4_500_000), vx=flat(3), vy=flat(4), write=False
    )
    with pytest.raises(NoCoverageError, match="no static mosaic"):
        shelf.materialise(bbox, "EPSG:32718", composite="all")
    with pytest.raises(NoCoverageError, match="no mosaic in EPSG:3413 covers"):
        shelf.materialise(bbox, "EPSG:32718", out_crs="EPSG:3413")
    with pytest.raises(InputError, match="under one pixel"):
        shelf.materialise(bbox, "EPSG:32718", strain={"length_scale": 60})
    request = Request.parse({**MOSAICS, "bbox": bbox, "crs": "EPSG:32718"}, shelf.settings)
    with pytest.raises(SourceMissingError, match="none of the 1 mosaics of this area exists"):
        plan_request(shelf.engine, shelf.settings, request)
    shelf.put(17, "EPSG:32718", 2018, (600_000, 4_500_000), vx=flat(3), vy=flat(4))
    small = shelf.settings.model_copy(update={"max_job_bytes": 100})
    with pytest.raises(TooLargeError, match="FIRNLINE_MAX_JOB_BYTES"):
        plan_request(shelf.engine, small, request)
    elsewhere = shelf.settings.model_copy(update={"allowed_sources": ("https://example.org/",)})
    with pytest.raises(InputError, match="ALLOWED_SOURCES"):
        plan_request(shelf.engine, elsewhere, request)
    assert record.region == 17


@pytest.mark.parametrize("how", ["no TIFF", "another CRS", "another lattice", "cut short"])
def test_damaged_mosaics(shelf: Shelf, how: str) -> None:
    corner = (600_000, 4_500_000)
    big = np.random.default_rng(0).normal(500, 100, (400, 400))
    record = shelf.put(17, "EPSG:32718", 2018, corner, vx=big, vy=big, v=big)
    path = Path(mosaic_url(record, "vx").removeprefix("file://"))
    bbox, match = (600_100, 4_460_000, 640_000, 4_499_000), ""
    if how == "no TIFF":
        path.write_bytes(b"<html>not here</html>" * 9000)
        match = "can't be decoded"
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:70_000])
        match = "shorter than its index says|can't be decoded"
    elif how == "another CRS":
        with rasterio.open(path) as source:
            profile, values = source.profile, source.read()
        with rasterio.open(path, "w", **(profile | {"crs": "EPSG:32719"})) as target:
            target.write(values)
        match = "is in EPSG:32719, not in EPSG:32718"
    else:
        shelf.put(17, "EPSG:32718", 2019, (600_060, 4_500_000), vx=big, vy=big, v=big)
        match = "does not lie on the grid of"
    request = Request.parse(
        {**MOSAICS, "bbox": bbox, "crs": "EPSG:32718", "strain": False}, shelf.settings
    )
    job = worker.finish(shelf.engine, shelf.settings, jobs.submit(shelf.engine, request))
    assert job.status == "failed"
    assert re.search(match, job.message), job.message


def test_a_source_that_is_away_says_so(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put(17, "EPSG:32718", 2018, (600_000, 4_500_000), vx=flat(3), vy=flat(4))

    def away(*_: Any) -> None:
        raise SourceUnreachableError("no answer")

    monkeypatch.setattr("firnline.source._Files.get", away)
    request = Request.parse(
        {**MOSAICS, "bbox": (600_100, 4_498_000, 602_000, 4_499_000), "crs": "EPSG:32718"},
        shelf.settings,
    )
    with pytest.raises(SourceUnreachableError, match="no answer"):
        plan_request(shelf.engine, shelf.settings, request)
