"""stac-geoparquet: exact for our own items, and the same for those who read it otherwise."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import geopandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rustac
import shapely
import stac_geoparquet.arrow
from pyproj import CRS
from pystac.validation import JsonSchemaSTACValidator, validate_dict
from shapely.geometry import box, mapping, shape

from firnline.collections import COLLECTIONS, collection
from firnline.deep import with_facts
from firnline.errors import SourceCorruptError
from firnline.footprint import bbox, footprint
from firnline.indexer.geoparquet import Survey, write_items
from firnline.indexer.geoparquet_reader import ItemFile
from firnline.items import CubeRecord, MosaicRecord, cube_item, encode, mosaic_item

Item = dict[str, Any]
MOSAICS = "https://its-live-data.s3.amazonaws.com/velocity_mosaic"


def cube(epsg: int, x: int, y: int, **more: Any) -> Item:
    tile = box(x - 50_000, y - 50_000, x + 50_000, y + 50_000)
    name = f"ITS_LIVE_vel_EPSG{epsg}_G0120_X{x}_Y{y}"
    url = f"https://its-live-data.s3.amazonaws.com/datacubes/v2/N60W040/{name}.zarr"
    record = CubeRecord(name, url, epsg, tile, footprint(tile, f"EPSG:{epsg}"), **more)
    return cube_item(record, last_year=2026)


def deep(item: Item) -> Item:
    """With what a deep read finds: numbers, instants to the microsecond, links of its own."""
    facts: Any = {
        "properties": {
            "start_datetime": "1987-05-06T07:08:09.000001Z",
            "end_datetime": "2025-01-01T00:00:00Z",
            "itslive:temporal_extent": "actual",
            "itslive:dt_histogram": [0, 12, 3],
            "itslive:satellites": {"L8": 2, "S2": 13},
            "itslive:dt_median": 16.5,
            "updated": "2025-06-20T00:14:51Z",
        },
        "time": {"mid_date": {"type": "temporal", "extent": ["1987-05-06T07:08:09Z", None]}},
        "space": {"x": {"type": "spatial", "axis": "x", "extent": [1.5, 3.0]}},
        "zarr_format": 2,
    }
    return with_facts(item, facts)


def mosaic(region: int, crs: str, year: int | None) -> Item:
    outline = shapely.MultiPolygon([box(60, 30, 80, 40), box(90, 30, 100, 35)])
    record = MosaicRecord(region, "2.1", year, 2024, MOSAICS, crs, outline)
    return mosaic_item(record)


def subset(id: str, strain: Any, nodata: Any) -> Item:
    """As materialisations make them, in what is awkward: null, empty, of several types."""
    outline = footprint(box(-174_200, -2_284_200, -165_800, -2_275_800), "EPSG:3413")
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": id,
        "collection": "subsets",
        "geometry": mapping(outline),
        "bbox": bbox(outline),
        "properties": {
            "datetime": None,
            "start_datetime": "2018-01-04T00:00:00Z",
            "end_datetime": "2020-12-14T12:34:56.789000Z",
            "created": "2026-11-23T08:28:46.144384Z",
            "firnline:request": {
                "bbox": [-174200.0, -2284200.0, -165800.0, -2275800.0],
                "dt_days": None,
                "geometry": None,
                "satellites": [],
                "strain": strain,
            },
            "firnline:pairs_read": 960,
            "firnline:stale": False,
            "proj:transform": [120.0, 0.0, -174247.5, 0.0, -120.0, -2275792.5],
        },
        "assets": {
            "zarr": {
                "href": "firnline:/files/a/b/pairs.zarr",
                "xarray:open_kwargs": {"chunks": {}},
            },
            "cog_v": {
                "href": "firnline:/files/a/b/v.tif",
                "bands": [{"name": "v", "nodata": nodata}],
            },
        },
        "links": [
            {
                "rel": "derived_from",
                "type": "application/geo+json",
                "href": "firnline:/collections/x",
            }
        ],
    }


def foreign(name: str, /, **properties: Any) -> Item:
    outline = shapely.from_wkt("POLYGON Z ((10 40 1, 20 40 2, 20 50 3, 10 40 1))")
    projected = shapely.from_wkt("POLYGON ((4e5 5e6, 5e5 5e6, 5e5 6e6, 4e5 5e6))")
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel",
        "geometry": mapping(outline),
        "bbox": [10.0, 40.0, 1.0, 20.0, 50.0, 3.0],
        "properties": {
            "datetime": "2020-02-29T23:59:59.500000Z",
            "proj:geometry": mapping(projected),
            "eo:cloud_cover": None,
            **properties,
        },
        "assets": {"B04": {"href": "s3://b/a.tif", "proj:geometry": mapping(projected)}},
    }


ITEMS = [
    cube(3413, 450_000, -2_250_000, rgi=5, region="Greenland Periphery", granule_count=77_932),
    cube(3031, 50_000, -1_950_000),  # touches the antimeridian's other side
    cube(3031, -50_000, 1_250_000, roi_percent_coverage=0.00014),
    cube(3031, 0, -2_050_000),  # across the antimeridian
    cube(3031, 0, 0),  # around the pole
    deep(cube(32718, 650_000, 10_050_000)),
    mosaic(5, "EPSG:3413", 2018),
    mosaic(14, "ESRI:102027", None),
    subset("subset-1", {"length_scale": 500.0, "method": "plane"}, "nan"),
    subset("subset-2", False, "nan"),
    foreign("a", created="2021-01-01T00:00:00Z", count=3),
    foreign("b", title="é", count=4),
]


def wire(item: Item) -> bytes:
    """The item's bytes as stored, but for the order within a link."""
    plain = json.loads(json.dumps(item))  # tuples of a geometry become lists
    plain["links"] = [dict(sorted(link.items())) for link in plain.get("links", [])]
    return encode(plain)


def write(path: Path, items: list[Item], collections: dict[str, Any] | None = None) -> Survey:
    items = [{"links": [], **json.loads(json.dumps(item))} for item in items]
    survey = Survey()
    for item in items:
        survey.add(item)
    write_items(path, survey.columns(collections or {}), iter(items))
    return survey


def read(path: Path) -> list[Item]:
    items = list(ItemFile(path).items())
    assert all(isinstance(item, dict) for item in items), items
    return items  # type: ignore[return-value]


@pytest.fixture(scope="module")
def schemas() -> Any:
    path = Path(__file__).parents[1] / "schemas.py"
    spec = importlib.util.spec_from_file_location("firnline_test_schemas", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (module.SCHEMAS / "index.json").exists():
        pytest.skip(f"{module.SCHEMAS} is not here")
    return module.StacSchemas()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("parquet") / "items.parquet"
    write(path, ITEMS, {id: {"links": [], **collection(id)} for id in COLLECTIONS})
    return path


# --- there and back -----------------------------------------------------------------------------


def test_every_byte_comes_back(file: Path) -> None:
    for there, back in zip(ITEMS, read(file), strict=True):
        assert wire(back) == wire(there)


@pytest.mark.parametrize("name", ["itslive-cubes", "velocity-mosaics", "subsets", "sentinel"])
def test_every_byte_of_a_collection_by_itself(tmp_path: Path, name: str) -> None:
    items = [item for item in ITEMS if item["collection"] == name]
    assert len(items) > 1
    survey = write(tmp_path / "items.parquet", items)
    assert survey.counts == {name: len(items)}
    assert survey.left_out == {}
    assert list(map(wire, read(tmp_path / "items.parquet"))) == list(map(wire, items))


def test_collections_come_along(file: Path) -> None:
    assert {each["id"]: encode(each) for each in ItemFile(file).collections} == {
        id: encode(collection(id)) for id in COLLECTIONS
    }


def test_more_than_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firnline.indexer.geoparquet._ROWS", 50)
    monkeypatch.setattr("firnline.indexer.geoparquet._BATCH", 10)
    items = [{**ITEMS[n % 8], "id": f"{n:05d}"} for n in range(123)]
    write(tmp_path / "a.parquet", items)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(n).num_rows for n in range(3)] == [50, 50, 23]
    assert list(map(wire, read(tmp_path / "a.parquet"))) == list(map(wire, items))


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [])
    assert read(tmp_path / "a.parquet") == []
    assert len(geopandas.read_parquet(tmp_path / "a.parquet")) == 0


def test_what_the_specification_excludes_is_counted(tmp_path: Path) -> None:
    items = [
        {**foreign("a", **{"id": "mine", "bbox": [1]}), "foo": 1},
        foreign("b", **{"id": "other"}),
        foreign("c", **{"proj:geometry": "nowhere"}),
    ]
    survey = write(tmp_path / "a.parquet", items)
    assert survey.left_out == {
        "properties.id": 2, "properties.bbox": 1, "foo": 1, "proj:geometry": 1
    }  # fmt: skip
    back = read(tmp_path / "a.parquet")
    assert [item["id"] for item in back] == ["a", "b", "c"]
    assert "foo" not in back[0]
    assert wire(back[1]) == wire(foreign("b"))


def test_instants_that_are_none_stay_text(tmp_path: Path) -> None:
    items = [foreign("a", updated="yesterday"), foreign("b", updated="2020-01-01T00:00:00Z")]
    write(tmp_path / "a.parquet", items)
    assert list(map(wire, read(tmp_path / "a.parquet"))) == list(map(wire, items))


# --- what others see ------------------------------------------------------------------------------


def test_columns_and_metadata(file: Path) -> None:
    schema = pq.read_schema(file)
    for name in ("datetime", "start_datetime", "end_datetime", "created", "updated"):
        assert schema.field(name).type == pa.timestamp("us", tz="UTC")
    assert schema.field("geometry").type == schema.field("proj:geometry").type == pa.binary()
    assert {"type", "properties"}.isdisjoint(schema.names)
    assert {"id", "stac_extensions", "links", "assets", "collection"} <= set(schema.names)
    told = json.loads(schema.metadata[b"stac-geoparquet"])
    assert told["version"] == "1.1.0"
    assert {id: each["id"] for id, each in told["collections"].items()} == {
        id: id for id in COLLECTIONS
    }
    geo = json.loads(schema.metadata[b"geo"])
    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    outline = geo["columns"]["geometry"]
    assert CRS.from_user_input(outline["crs"]) == CRS.from_user_input("OGC:CRS84")
    assert outline["geometry_types"] == ["MultiPolygon", "Polygon", "Polygon Z"]
    assert outline["encoding"] == "WKB"
    assert geo["columns"]["proj:geometry"]["crs"] is None
    west, south, east, north = outline["bbox"]
    for item in ITEMS:
        bounds = shape(item["geometry"]).bounds
        assert west <= bounds[0] <= bounds[2] <= east
        assert south <= bounds[1] <= bounds[3] <= north
    # readers prune row groups by these
    assert outline["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    assert set(outline["covering"]["bbox"]) == {child.name for child in schema.field("bbox").type}


def test_geopandas(file: Path) -> None:
    frame = geopandas.read_parquet(file)
    assert frame.crs == CRS.from_user_input("OGC:CRS84")
    assert list(frame["id"]) == [item["id"] for item in ITEMS]
    for outline, item in zip(frame.geometry, ITEMS, strict=True):
        assert outline.equals_exact(shape(item["geometry"]), 0)
    assert frame["end_datetime"][8] == datetime(2020, 12, 14, 12, 34, 56, 789000, UTC)
    assert frame["proj:code"][0] == "EPSG:3413"
    assert frame["assets"][0]["zarr"]["href"] == ITEMS[0]["assets"]["zarr"]["href"]
    near = geopandas.read_parquet(file, bbox=(60, 30, 61, 31))
    assert set(near["collection"]) == {"velocity-mosaics"}


def comparable(item: Any) -> Any:
    """An item but for what other readers can't tell, or write in another way.

    To them a missing member is null, or the other way round; a number that is none may be null;
    what is of several types is JSON text; an instant has more digits; rustac reads no heights.
    """

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            made = {name: bare(member) for name, member in value.items()}
            if made.get("nodata") == "nan":
                del made["nodata"]
            return {name: member for name, member in made.items() if member is not None}
        if isinstance(value, list):
            return [bare(member) for member in value]
        return None if value != value else value

    made: Any = bare(json.loads(json.dumps(item)))
    properties = made["properties"]
    if isinstance(properties.get("firnline:request", {}).get("strain"), str):
        request = properties["firnline:request"]
        request["strain"] = json.loads(request["strain"])
    for name in ("datetime", "start_datetime", "end_datetime", "created", "updated"):
        if name in properties:
            properties[name] = datetime.fromisoformat(properties[name])
    outline = shapely.normalize(shapely.force_2d(shape(made["geometry"])))
    if outline.geom_type == "Polygon":  # among MultiPolygons rustac makes it one of them
        outline = shapely.MultiPolygon([outline])
    made["geometry"] = outline.wkt
    made["bbox"] = [value for value in made["bbox"] if value is not None]
    return {"type": "Feature", "stac_extensions": [], "links": [], **made}


GROUPS = [
    [item for item in ITEMS if item["collection"] != "sentinel"],
    [item for item in ITEMS if item["collection"] == "sentinel"],
]


@pytest.mark.parametrize("items", GROUPS, ids=["ours", "sentinel"])
def test_the_library_stac_geoparquet_reads_it(tmp_path: Path, items: list[Item]) -> None:
    write(tmp_path / "a.parquet", items)
    back = stac_geoparquet.arrow.stac_table_to_items(pq.read_table(tmp_path / "a.parquet"))
    for there, item in zip(items, back, strict=True):
        assert comparable(item) == comparable(there), there["id"]


@pytest.mark.parametrize("items", GROUPS, ids=["ours", "sentinel"])
def test_rustac_reads_it(tmp_path: Path, items: list[Item]) -> None:
    async def read_it() -> Any:
        return await rustac.read(str(tmp_path / "a.parquet"))

    write(tmp_path / "a.parquet", items)
    for there, item in zip(items, asyncio.run(read_it())["features"], strict=True):
        assert comparable(item) == comparable(there), there["id"]


def test_pystac_finds_it_valid(file: Path, schemas: Any) -> None:
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update(schemas.contents)
    for item in read(file):
        if item["collection"] != "sentinel":
            item["links"].append({"rel": "collection", "href": "./collection.json"})
            assert validate_dict(item, validator=validator)


# --- what others write ----------------------------------------------------------------------------


def test_a_file_of_the_library_stac_geoparquet(tmp_path: Path) -> None:
    items = [{"links": [], **item} for item in GROUPS[1]]
    stac_geoparquet.arrow.parse_stac_items_to_parquet(
        items, output_path=tmp_path / "a.parquet", schema="FullFile"
    )
    for there, item in zip(items, read(tmp_path / "a.parquet"), strict=True):
        assert comparable(item) == comparable(there)
        assert item["properties"]["datetime"] == "2020-02-29T23:59:59.500000Z"


def test_a_file_of_rustac(tmp_path: Path) -> None:
    items = [{"links": [], **item} for item in ITEMS[6:8]]

    async def write_it() -> None:
        await rustac.write(str(tmp_path / "a.parquet"), items)

    asyncio.run(write_it())
    for there, item in zip(items, read(tmp_path / "a.parquet"), strict=True):
        assert comparable(item) == comparable(there)


def rewritten(path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    write(path, ITEMS[:2])
    pq.write_table(change(pq.read_table(path)), path)
    return path


def with_metadata(**more: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        known = {name: json.loads(value) for name, value in table.schema.metadata.items()}
        known |= {name.replace("_", "-").encode(): value for name, value in more.items()}
        return table.replace_schema_metadata(
            {name: json.dumps(value) for name, value in known.items() if value is not None}
        )

    return change


def test_a_file_that_lost_our_notes(tmp_path: Path) -> None:
    """As after a tool that copies only the metadata it knows: the values are the same."""
    path = rewritten(tmp_path / "a.parquet", with_metadata(firnline=None))
    for there, item in zip(ITEMS, read(path), strict=False):
        assert comparable(item) == comparable(there)


def test_the_collection_of_the_metadata(tmp_path: Path) -> None:
    """Version 1.0.0 has one, and its items need not name it."""
    one = {"version": "1.0.0", "collection": {"id": "one", "type": "Collection"}}
    drop = with_metadata(stac_geoparquet=one)
    path = rewritten(tmp_path / "a.parquet", lambda table: drop(table).drop_columns("collection"))
    assert {item["collection"] for item in read(path)} == {"one"}
    assert ItemFile(path).collections == [one["collection"]]


def test_instants_of_nanoseconds_and_nested_json(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index("start_datetime")
        fine = table["start_datetime"].cast(pa.timestamp("ns", "UTC"))
        table = table.set_column(place, "start_datetime", fine)
        assets = pa.array([json.dumps({"a": {"href": "x"}})] * len(table))
        return table.set_column(table.schema.get_field_index("assets"), "assets", assets)

    back = read(rewritten(tmp_path / "a.parquet", change))
    assert [item["properties"]["start_datetime"] for item in back] == ["1982-01-01T00:00:00Z"] * 2
    assert back[0]["assets"] == {"a": {"href": "x"}}


def test_a_row_that_can_t_be_read_leaves_the_others(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        outlines = table["geometry"].to_pylist()
        damaged = pa.array([outlines[0][:20], outlines[1]])
        return table.set_column(table.schema.get_field_index("geometry"), "geometry", damaged)

    first, second = ItemFile(rewritten(tmp_path / "a.parquet", change)).items()
    assert isinstance(first, str)
    assert first.startswith("it can't be read: ")
    assert wire(second) == wire(ITEMS[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.drop_columns("geometry"), "has no column geometry"),
        (lambda table: table.append_column("took", pa.array([5, 6], pa.duration("s"))),
         "took is of type duration"),
        (with_metadata(firnline={"notes": {"json": 5}}), "`firnline` is damaged"),
        (with_metadata(geo={"columns": {"geometry": {"crs": CRS("EPSG:3413").to_json_dict()}}}),
         "NSIDC Sea Ice Polar Stereographic North; STAC has longitude and latitude"),
        (with_metadata(geo={"columns": {"geometry": {"crs": {"type": "nonsense"}}}}), "no CRS"),
    ],
)  # fmt: skip
def test_files_that_are_not_stac(tmp_path: Path, change: Any, says: str) -> None:
    path = rewritten(tmp_path / "a.parquet", change)
    with pytest.raises(SourceCorruptError, match=says):
        list(ItemFile(path).items())


@pytest.mark.parametrize("content", [b"", b"PAR1", b'{"type": "Feature"}'])
def test_files_that_are_not_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(SourceCorruptError, match="can't be read as Parquet"):
        ItemFile(path)


def test_a_file_cut_short(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceCorruptError):
        list(ItemFile(path).items())
