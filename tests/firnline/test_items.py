from __future__ import annotations

import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import shapely
from shapely.geometry import box

from firnline import items
from firnline.collections import COLLECTIONS, Extent, collection
from firnline.footprint import footprint
from firnline.items import CubeRecord, MosaicRecord


def load_schemas() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "firnline_test_schemas", Path(__file__).parents[1] / "schemas.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def schemas() -> Any:
    module = load_schemas()
    if not (module.SCHEMAS / "index.json").exists():
        pytest.skip(f"{module.SCHEMAS} is not here")
    return module.StacSchemas()


NAME = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
KEY = f"datacubes/v2/N60W030/{NAME}.zarr"


def cube(url: str = f"https://its-live-data.s3.amazonaws.com/{KEY}", **more: Any) -> CubeRecord:
    tile = box(400_000, -2_300_000, 500_000, -2_200_000)
    return CubeRecord(NAME, url, 3413, tile, footprint(tile, "EPSG:3413"), **more)


def mosaic(**more: Any) -> MosaicRecord:
    values: dict[str, Any] = {
        "region": 5,
        "version": "2.1",
        "year": 2018,
        "last_year": 2024,
        "root": "https://its-live-data.s3.amazonaws.com/velocity_mosaic",
        "crs": "EPSG:3413",
        "footprint": box(-50, 60, -40, 70),
    }
    return MosaicRecord(**values | more)


class TestCube:
    def test_identity_and_time(self) -> None:
        item = items.cube_item(cube(), last_year=2025)
        assert (item["collection"], item["id"]) == ("itslive-cubes", NAME)
        assert "links" not in item
        properties = item["properties"]
        assert properties["datetime"] is None
        assert properties["start_datetime"] == "1982-01-01T00:00:00Z"
        assert properties["end_datetime"] == "2025-12-31T23:59:59Z"
        assert properties["itslive:temporal_extent"] == "nominal"
        assert properties["version"] == "2"

    def test_asset(self) -> None:
        asset = items.cube_item(cube(), last_year=2025)["assets"]["zarr"]
        assert asset["type"] == "application/vnd+zarr"
        assert asset["roles"] == ["data"]
        assert asset["alternate"] == {"s3": {"href": f"s3://its-live-data/{KEY}"}}
        assert asset["xarray:open_kwargs"] == {"engine": "zarr", "chunks": {}, "consolidated": True}

    def test_a_mirror_has_no_s3_alternate(self) -> None:
        item = items.cube_item(cube(f"http://127.0.0.1:9000/{KEY}"), last_year=2025)
        assert item["assets"]["zarr"]["href"].startswith("http://127.0.0.1:9000/")
        assert "alternate" not in item["assets"]["zarr"]
        assert items.ALTERNATE not in item["stac_extensions"]

    def test_grid(self) -> None:
        properties = items.cube_item(cube(), last_year=2025)["properties"]
        # edges by hand: ceil(400000/120)*120 - 7.5 and floor(-2200000/120)*120 + 7.5
        assert properties["proj:transform"] == [120, 0, 400_072.5, 0, -120, -2_200_072.5]
        assert properties["proj:shape"] == [833, 833]
        assert properties["proj:bbox"] == [400_072.5, -2_300_032.5, 500_032.5, -2_200_072.5]

    def test_missing_values_are_left_out(self) -> None:
        properties = items.cube_item(cube(), last_year=2025)["properties"]
        assert not [key for key in properties if key.startswith("itslive:granule")]
        full = cube(rgi=5, region="Greenland Periphery", granule_count=0, roi_percent_coverage=0.0)
        properties = items.cube_item(full, last_year=2025)["properties"]
        assert properties["itslive:granule_count"] == 0
        assert properties["itslive:roi_percent_coverage"] == 0.0
        assert properties["itslive:rgi_code"] == 5

    def test_a_name_that_tells_nothing(self) -> None:
        tile = box(0, 0, 61_440, 61_440)
        record = CubeRecord("x", "s3://elsewhere/x.zarr", 3413, tile, footprint(tile, "EPSG:3413"))
        properties = items.cube_item(record, last_year=2025)["properties"]
        assert "proj:shape" not in properties
        assert properties["proj:bbox"] == [0, 0, 61_440, 61_440]


class TestGrid:
    def test_a_real_cube(self) -> None:
        """EPSG32645_G0120_X750000_Y3350000: x from 700132.5 to 799972.5, 833 pixels each way."""
        shape, transform = items.grid_of_tile((700_000, 3_300_000, 800_000, 3_400_000))
        assert shape == [833, 833]
        assert transform[2] + 60 == 700_132.5
        assert transform[2] + 120 * shape[1] - 60 == 799_972.5
        assert transform[5] - 60 == 3_399_907.5

    def test_cubes_abut_on_one_lattice(self) -> None:
        sizes = set()
        for column in range(-5, 5):
            left, right = column * 100_000, (column + 1) * 100_000
            shape, transform = items.grid_of_tile((left, left, right, right))
            following, after = items.grid_of_tile((right, right, right + 1e5, right + 1e5))
            assert transform[2] + 120 * shape[1] == after[2]
            assert after[5] - 120 * following[0] == transform[5]
            assert ((transform[2] + 60) % 120, (transform[5] - 60) % 120) == (52.5, 67.5)
            sizes |= {*shape}
        assert sizes == {833, 834}


class TestMosaic:
    def test_ids(self) -> None:
        assert items.mosaic_id(mosaic()) == "RGI05A_ANNUAL_2018"
        assert items.mosaic_id(mosaic(year=None)) == "RGI05A_STATIC"
        assert items.mosaic_id(mosaic(version="2")) == "RGI05A_ANNUAL_2018_V02"

    def test_urls(self) -> None:
        root = "https://its-live-data.s3.amazonaws.com/velocity_mosaic"
        stem = "ITS_LIVE_velocity_120m_RGI05A"
        assert (
            items.mosaic_url(mosaic(), "vx") == f"{root}/v2.1/annual/cog/{stem}_2018_V02.1_vx.tif"
        )
        assert (
            items.mosaic_url(mosaic(version="2", year=None), "vx_amp")
            == f"{root}/v2/static/cog/{stem}_0000_v02_vx_amp.tif"
        )

    def test_bands_and_time(self) -> None:
        item = items.mosaic_item(mosaic(year=None, version="2", last_year=2022))
        assert item["properties"]["start_datetime"] == "2014-01-01T00:00:00Z"
        assert item["properties"]["end_datetime"] == "2022-12-31T23:59:59Z"
        assert item["assets"]["cog_v"]["type"] == items.COG
        bands = {key: asset["bands"] for key, asset in item["assets"].items() if "bands" in asset}
        assert len(bands) == 22
        (v,), (error,), (count,) = bands["cog_v"], bands["cog_v_error"], bands["cog_count"]
        assert v == {"name": "v", "data_type": "float32", "nodata": -32767, "unit": "m/yr"}
        assert (error["data_type"], error["nodata"]) == ("uint16", 32767)
        assert (count["data_type"], count["nodata"]) == ("uint32", 0)

    def test_esri_is_not_called_epsg(self) -> None:
        properties = items.mosaic_item(mosaic(region=14, crs="ESRI:102027"))["properties"]
        assert properties["proj:code"] == "ESRI:102027"
        assert "Asia_North_Lambert" in properties["proj:wkt2"]
        assert properties["proj:projjson"]["type"] == "ProjectedCRS"
        assert "epsg" not in properties

    def test_the_newest_version_can_be_ordered(self) -> None:
        assert items.mosaic_item(mosaic())["properties"]["order:status"] == "orderable"
        older = items.mosaic_item(mosaic(version="2"))
        assert "order:status" not in older["properties"]
        assert items.ORDER not in older["stac_extensions"]

    def test_a_mirror_has_no_s3_alternate(self) -> None:
        item = items.mosaic_item(mosaic(root="http://127.0.0.1:9000/velocity_mosaic/"))
        assert not [asset for asset in item["assets"].values() if "alternate" in asset]
        assert "mosaic//" not in item["assets"]["cog_v"]["href"]


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            (
                f"http://its-live-data.s3.amazonaws.com/{KEY}",
                f"https://its-live-data.s3.amazonaws.com/{KEY}",
            ),
            (f"s3://its-live-data/{KEY}", f"https://its-live-data.s3.amazonaws.com/{KEY}"),
            (
                f"http://its-live-data.s3.us-west-2.amazonaws.com/{KEY}",
                f"https://its-live-data.s3.us-west-2.amazonaws.com/{KEY}",
            ),
            (f"http://127.0.0.1:9000/{KEY}", f"http://127.0.0.1:9000/{KEY}"),
            (f"http://its-live-data.example.org/{KEY}", f"http://its-live-data.example.org/{KEY}"),
            ("s3://mirror/a.zarr", "s3://mirror/a.zarr"),
        ],
    )
    def test_to_https(self, url: str, expected: str) -> None:
        assert items.to_https(url) == expected


def test_row_is_stable_and_exact() -> None:
    record = cube()
    item = items.cube_item(record, last_year=2025)
    row = items.item_row(item, record.footprint, "here")
    shuffled = dict(reversed(item.items()))
    assert items.item_row(shuffled, record.footprint, "here") == row
    assert json.loads(row.content) == item
    assert row.start == datetime(1982, 1, 1, tzinfo=UTC)
    assert row.end == datetime(2025, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert shapely.geometry.shape(item["geometry"]).equals(record.footprint)
    assert items.digest(row.content) != items.digest(row.content + b" ")


class TestSchemas:
    def test_cube(self, schemas: Any) -> None:
        assert schemas.problems(items.cube_item(cube(granule_count=1), last_year=2025)) == []

    def test_mosaics(self, schemas: Any) -> None:
        for record in (mosaic(), mosaic(year=None), mosaic(region=14, crs="ESRI:102027")):
            assert schemas.problems(items.mosaic_item(record)) == []

    @pytest.mark.parametrize("name", COLLECTIONS)
    def test_collections(self, schemas: Any, name: str) -> None:
        now = datetime.now(UTC)
        full = Extent((-1, -2, 3, 4), now, now, {"proj:code": ["EPSG:3413"], "rgi": []})
        for extent in (None, full):
            content = collection(name, extent)
            assert schemas.problems(content) == []
            assert content["license"] == "CC-BY-4.0"
            assert "rgi" not in content["summaries"]

    def test_the_validator_sees_errors(self, schemas: Any) -> None:
        item = items.cube_item(cube(), last_year=2025)
        item["properties"]["proj:shape"] = ["a"]
        assert schemas.problems(item)
