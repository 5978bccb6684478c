from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline.errors import CatalogError
from firnline.footprint import footprint
from firnline.indexer.catalog import read_catalog
from firnline.items import CubeRecord

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))

NAME = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
URL = f"http://its-live-data.s3.amazonaws.com/datacubes/v2/N60W030/{NAME}.zarr"
RING = [[4e5, -2.3e6], [5e5, -2.3e6], [5e5, -2.2e6], [4e5, -2.2e6], [4e5, -2.3e6]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}
BOUNDS = (4e5, -2.3e6, 5e5, -2.2e6)


def feature(**properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": None}


def good(**changes: Any) -> dict[str, Any]:
    return feature(**{"zarr_url": URL, "epsg": 3413, "geometry_epsg": POLYGON} | changes)


def catalog(*features: Any) -> bytes:
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def one(*features: Any) -> CubeRecord:
    (record,), failures = read_catalog(catalog(*features))
    assert not failures
    return record


@pytest.mark.parametrize(
    ("name", "features", "with_region"),
    [
        ("catalog_v02_2024.json", 3086, 3086),
        ("catalog_v02_truncated_keys.geojson", 3008, 2980),
        ("catalog_v02_older.json", 2471, 803),
    ],
)
def test_real_catalogs_are_read_whole(name: str, features: int, with_region: int) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    records, failures = read_catalog(path.read_bytes())
    assert (len(records), failures) == (features, [])
    assert len({record.id for record in records}) == features
    assert sum(record.region is not None for record in records) == with_region
    assert all(record.url.startswith("https://") for record in records)
    assert all(record.roi_percent_coverage is not None for record in records)
    document = json.loads(path.read_bytes())["features"]
    for record, source in zip(
        sorted(records, key=lambda r: r.id),
        sorted(document, key=lambda f: f["properties"]["zarr_url"].rsplit("/", 1)[1]),
        strict=True,
    ):
        assert source["properties"]["zarr_url"].endswith(f"/{record.id}.zarr")
        assert f"EPSG{record.epsg}_" in record.id


def test_reading_is_fast() -> None:
    path = DATA / "catalog_v02_2024.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    data = path.read_bytes()
    read_catalog(data)
    start = time.process_time()
    read_catalog(data)
    assert time.process_time() - start < 4  # measured: 0.5 s


class TestShapes:
    def test_newest(self) -> None:
        record = one(
            good(
                granule_count=77_932,
                composite_zarr_url=URL.replace("datacubes", "composites/annual"),
                region_name="Greenland Periphery",
                region_id="RGI05A",
                roi_percent_coverage=100.24,
                datacube_exist=1,
            )
        )
        assert record.id == NAME
        assert record.url == URL.replace("http:", "https:")
        assert record.tile.bounds == BOUNDS
        assert (record.rgi, record.region) == (5, "Greenland Periphery")
        assert (record.granule_count, record.roi_percent_coverage) == (77_932, 100.24)
        assert record.composite_url is not None
        assert record.composite_url.startswith("https://")

    def test_no_composite_is_none(self) -> None:
        assert one(good(composite_zarr_url="")).composite_url is None

    def test_2024(self) -> None:
        record = one(good(FULL_NAME="Alaska", RGI_CODE=1))
        assert (record.rgi, record.region, record.granule_count) == (1, "Alaska", None)

    def test_older(self) -> None:
        record = one(
            feature(zarr_url=URL, data_epsg="EPSG:3413", geometry_epsg=POLYGON, region="GRE")
        )
        assert (record.epsg, record.rgi) == (3413, 5)

    @pytest.mark.parametrize(
        "geometry",
        [
            POLYGON,
            json.dumps(POLYGON),
            str(POLYGON),
            {"type": "MultiPolygon", "coordinates": [[RING]]},
        ],
        ids=["dict", "json", "python", "multi"],
    )
    def test_truncated_keys(self, geometry: Any) -> None:
        record = one(
            feature(
                zarr_url=URL,
                data_epsg="EPSG:3413",
                geometry_e=geometry,
                roi_percen=1.5,
                datacube_e=1,
                FULL_NAME=None,
                RGI_CODE=None,
                WGMS_CODE=None,
            )
        )
        assert record.tile.bounds == BOUNDS
        assert record.roi_percent_coverage == 1.5
        assert (record.rgi, record.region) == (None, None)

    def test_stripped(self) -> None:
        assert one(feature(geometry_epsg=POLYGON, zarr_url=URL, epsg=3413)).epsg == 3413

    def test_place_from_the_file_name(self) -> None:
        record = one(feature(zarr_url=URL))
        assert record.tile.bounds == BOUNDS
        assert record.epsg == 3413

    def test_loopback_is_left_alone(self) -> None:
        url = URL.replace("its-live-data.s3.amazonaws.com", "127.0.0.1:1234")
        assert one(good(zarr_url=url)).url == url

    def test_byte_order_mark_and_nan(self) -> None:
        data = catalog(good(roi_percent_coverage=float("nan")))
        assert b"NaN" in data
        (record,), failures = read_catalog(b"\xef\xbb\xbf" + data)
        assert record.roi_percent_coverage is None
        assert not failures


def moved(dx: float) -> list[list[float]]:
    return [[x + dx, y] for x, y in RING]


class TestWhereTheTileComesFrom:
    """``geometry_epsg``, then ``proj_polygon``, then the file name; each off by another amount."""

    def test_in_that_order(self) -> None:
        polygons = {
            "geometry_epsg": {"type": "Polygon", "coordinates": [moved(1_000)]},
            "proj_polygon": {"type": "Polygon", "coordinates": [moved(2_000)]},
        }
        seen = []
        for left_out in ((), ("geometry_epsg",), ("geometry_epsg", "proj_polygon")):
            told = {name: polygon for name, polygon in polygons.items() if name not in left_out}
            record = one(feature(zarr_url=URL, **told))
            seen.append((record.tile_from, record.tile.bounds[0] - BOUNDS[0]))
            assert record.footprint.equals(footprint(record.tile, "EPSG:3413"))
        assert seen == [("geometry_epsg", 1_000), ("proj_polygon", 2_000), ("file name", 0)]

    @pytest.mark.parametrize(
        "value",
        [
            moved(2_000),
            str(moved(2_000)),
            str([tuple(point) for point in moved(2_000)]),
            json.dumps({"type": "Polygon", "coordinates": [moved(2_000)]}),
        ],
        ids=["ring", "text", "tuples", "geojson"],
    )
    @pytest.mark.parametrize("name", ["proj_polygon", "proj_polyg"])
    @pytest.mark.parametrize("empty", [None, ""])
    def test_spellings_of_proj_polygon(self, name: str, value: Any, empty: Any) -> None:
        record = one(feature(zarr_url=URL, geometry_epsg=empty, **{name: value}))
        assert record.tile_from == "proj_polygon"
        assert record.tile.bounds == (402_000, -2.3e6, 502_000, -2.2e6)

    def test_a_name_that_tells_no_place(self) -> None:
        record = one(feature(zarr_url="https://h/a.zarr", epsg=3413, proj_polygon=RING))
        assert record.tile.bounds == BOUNDS

    @pytest.mark.parametrize("bad", ["geometry_epsg", "proj_polygon"])
    def test_damage_is_told_and_not_passed_over(self, bad: str) -> None:
        """The next best would hide that something is wrong."""
        broken = {"geometry_epsg": None, "proj_polygon": RING} | {bad: [[0, 0], [1, 1]]}
        _, (failure,) = read_catalog(catalog(feature(zarr_url=URL, **broken)))
        assert failure.reason == f"its {bad} is not one valid Polygon"

    @pytest.mark.parametrize("told", ["geometry_epsg", "proj_polygon"])
    def test_a_name_that_places_it_elsewhere(self, told: str) -> None:
        polygon = {"type": "Polygon", "coordinates": [moved(1e6)]}
        _, (failure,) = read_catalog(catalog(feature(zarr_url=URL, **{told: polygon})))
        assert f"outside its {told}" in failure.reason


class TestFailures:
    @pytest.mark.parametrize(
        ("broken", "reason"),
        [
            (None, "not a GeoJSON Feature"),
            (7, "not a GeoJSON Feature"),
            ({"type": "Feature", "properties": None}, "no properties"),
            (good(zarr_url=None), "no zarr_url"),
            (good(zarr_url=""), "no zarr_url"),
            (good(zarr_url=17), "not an https"),
            (good(zarr_url="ftp://host/a.zarr"), "not an https"),
            (good(zarr_url="http://user:secret@host/a.zarr"), "not an https"),
            (good(zarr_url="https://[host/a.zarr"), "not an https"),
            (good(zarr_url="https://host/" + "a" * 10_000_000), "not an https"),
            (good(zarr_url="https://host/%2e%2e"), "does not end in the name"),
            (good(epsg=3031), "its epsg is 3031, its file name says 3413"),
            (good(epsg="polar"), "is no code"),
            (good(epsg=3413.5), "is no code"),
            (good(epsg=True), "is no code"),
            (good(zarr_url="https://host/a.zarr", epsg=None), "no EPSG code"),
            (good(zarr_url="https://host/a.zarr", epsg=1), "not known to PROJ"),
            (good(zarr_url="https://host/a.zarr", epsg=-5), "not known to PROJ"),
            (good(zarr_url="https://host/a.zarr", epsg=4326), "not a projected CRS"),
            (good(zarr_url="https://host/a.zarr", geometry_epsg=None), "neither geometry_epsg"),
            (good(geometry_epsg={"type": "Point", "coordinates": [0, 0]}), "not one valid"),
            (good(geometry_epsg={"type": "Polygon", "coordinates": [RING[:2]]}), "not one valid"),
            (good(geometry_epsg="{"), "not one valid"),
            (good(geometry_epsg=[[]]), "not one valid"),
            (good(proj_polygon="x" * 10_000_000, geometry_epsg=None), "not one valid"),
            (
                good(
                    geometry_epsg={"type": "Polygon", "coordinates": [[[1e9, y] for _, y in RING]]}
                ),
                "out of range",
            ),
            (
                good(
                    geometry_epsg={
                        "type": "Polygon",
                        "coordinates": [[[x + 1e6, y] for x, y in RING]],
                    }
                ),
                "file name places it",
            ),
        ],
    )
    def test_is_told_and_the_rest_is_read(self, broken: Any, reason: str) -> None:
        other = good(zarr_url=URL.replace("X450000", "X550000"), geometry_epsg=None)
        records, (failure,) = read_catalog(catalog(other, broken, good()))
        assert [record.id for record in records] == [NAME.replace("X450000", "X550000"), NAME]
        assert failure.index == 1
        assert reason in failure.reason
        assert len(failure.reason) < 200
        assert len(failure.id or "") < 300
        assert not failure.skipped

    def test_no_place_on_the_globe(self) -> None:
        """UTM's formulas go on where they mean nothing; others of the same CRS are kept."""
        far = [[1.2e7, 1.9e7], [1.3e7, 1.9e7], [1.3e7, 2e7], [1.2e7, 2e7], [1.2e7, 1.9e7]]
        near = [[5e5, 4e6], [6e5, 4e6], [6e5, 4.1e6], [5e5, 4.1e6], [5e5, 4e6]]
        records, (failure,) = read_catalog(
            catalog(
                *(
                    feature(
                        zarr_url=f"https://host/{name}.zarr",
                        epsg=32718,
                        geometry_epsg={"type": "Polygon", "coordinates": [ring]},
                    )
                    for name, ring in (("far", far), ("near", near))
                )
            )
        )
        assert [record.id for record in records] == ["near"]
        assert (failure.id, failure.index) == ("far", 0)
        assert "not where EPSG:32718 is used" in failure.reason

    def test_a_cube_that_does_not_exist_is_skipped(self) -> None:
        for key in ("datacube_exist", "datacube_e"):
            records, (failure,) = read_catalog(catalog(good(**{key: 0})))
            assert not records
            assert failure.skipped
            assert failure.id == NAME

    def test_duplicates(self) -> None:
        records, (failure,) = read_catalog(catalog(good(RGI_CODE=1), good(RGI_CODE=2)))
        assert [record.rgi for record in records] == [1]
        assert failure.index == 1
        assert failure.reason == "the same cube as feature 0"


class TestUnreadable:
    @pytest.mark.parametrize(
        ("data", "reason"),
        [
            (b"", "empty"),
            (b" \n", "empty"),
            (b"<html><body>Service Unavailable</body></html>", "HTML"),
            (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", "HTML or XML"),
            (catalog(good())[:-30], "cut short"),
            (b"\x1f\x8b\x08\x00\x00", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (b"\xff\xfe", "not JSON"),
            (b"[]", "not a GeoJSON FeatureCollection"),
            (b"null", "not a GeoJSON FeatureCollection"),
            (b'{"type": "Feature"}', "not a GeoJSON FeatureCollection"),
            (b'{"type": "FeatureCollection"}', "without features"),
            (b'{"type": "FeatureCollection", "features": {}}', "without features"),
            (b'{"type": "FeatureCollection", "features": []}', "without features"),
        ],
    )
    def test_one_clear_line(self, data: bytes, reason: str) -> None:
        with pytest.raises(CatalogError, match=reason) as raised:
            read_catalog(data)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [URL, "EPSG:3413", 3413, 3031, "Polygon", RING, POLYGON, json.dumps(POLYGON)]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "coordinates", "a"]), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("zarr_url", "epsg", "data_epsg", "geometry_epsg", "geometry_e", "datacube_exist"),
        *(
            "proj_polygon",
            "roi_percen",
            "granule_count",
            "FULL_NAME",
            "region",
            "RGI_CODE",
            "region_id",
        ),
        "composite_zarr_url",
    ]
)
FEATURES = st.builds(
    lambda base, changes: feature(**base | changes),
    st.sampled_from([{}, good()["properties"]]),
    st.dictionaries(KEYS, JSON, max_size=4),
)


@settings(max_examples=400)
@given(st.lists(FEATURES | JSON, min_size=1, max_size=4))
def test_every_feature_is_accounted_for(features: list[Any]) -> None:
    records, failures = read_catalog(catalog(*features))
    assert len(records) + len(failures) == len(features)
    for record in records:
        assert record.footprint.is_valid
    assert all(failure.reason for failure in failures)


@settings(max_examples=200)
@given(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=200))
def test_anything_else_is_a_catalog_error(data: bytes) -> None:
    with pytest.raises(CatalogError):
        read_catalog(data)


@settings(max_examples=400)
@given(
    at=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=12)
    | st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"9" * 5000, b"1e999", b"-0", b"\\ud800"]),
    cut=st.booleans(),
)
def test_damaged_bytes(at: float, put: bytes, cut: bool) -> None:
    """Truncated, overwritten, nested without end: a catalog with its failures, or one error."""
    raw = catalog(good(), good())
    place = int(at * len(raw))
    damaged = raw[:place] + put + (b"" if cut else raw[place + len(put) :])
    tracemalloc.start()
    try:
        records, failures = read_catalog(damaged)
        assert len(records) + len(failures) <= 2
        assert all(record.footprint.is_valid for record in records)
    except CatalogError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 16 << 20
