"""Items of anyone's: what is taken, what is made of it, and why something is not."""

from __future__ import annotations

import copy
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from shapely import LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry import mapping, shape

from firnline.api import area
from firnline.footprint import footprint
from firnline.indexer.foreign import UnusableError, foreign_collection, foreign_row
from firnline.indexer.geoparquet import Survey
from firnline.items import digest

DATA = Path(__file__).parents[3] / "shared" / "data"


def item(**members: Any) -> dict[str, Any]:
    made = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": "a",
        "collection": "c",
        "geometry": mapping(box(10, 40, 20, 50)),
        "bbox": [10.0, 40.0, 20.0, 50.0],
        "properties": {"datetime": "2020-01-01T00:00:00Z"},
        "assets": {"data": {"href": "https://x.example/a.tif"}},
        "links": [],
    }
    plain: dict[str, Any] = json.loads(json.dumps({**made, **members}))
    return plain


def content(given: dict[str, Any], **more: Any) -> Any:
    return orjson.loads(foreign_row(given, "s", **more).content)


# --- what is taken ----------------------------------------------------------------------------


def test_a_valid_item_is_taken_as_it_is() -> None:
    given = item(
        links=[{"rel": "license", "href": "https://x.example/l", "title": "L"}], foo=[1, None]
    )
    row = foreign_row(copy.deepcopy(given), "import:x.ndjson")
    assert orjson.loads(row.content) == given
    assert row.digest == digest(row.content)
    assert (row.collection, row.id, row.source) == ("c", "a", "import:x.ndjson")
    assert row.start == row.end == datetime(2020, 1, 1, tzinfo=UTC)
    assert row.footprint.equals(box(10, 40, 20, 50))


def test_the_same_item_is_the_same_bytes() -> None:
    one = item(
        bbox=[10, 40, 20, 50],
        geometry={
            "type": "Polygon",
            "coordinates": [[[10, 40], [20, 40], [20, 50], [10, 50], [10, 40]]],
        },
        properties={"b": 1, "datetime": "2020-01-01T00:00:00.000000+00:00"},
        links=[{"href": "https://x.example", "title": "t", "rel": "via"}],
    )
    other = item(
        geometry=mapping(Polygon([(10, 40), (20, 40), (20, 50), (10, 50)])),
        properties={"datetime": "2020-01-01T05:45:00+05:45", "b": 1},
        links=[
            {"rel": "self", "href": "https://y.example/items/a"},
            {"rel": "via", "href": "https://x.example", "title": "t"},
        ],
    )
    other = dict(reversed(other.items()))
    assert foreign_row(one, "s").content == foreign_row(other, "s").content


@pytest.mark.parametrize(
    ("properties", "start", "end"),
    [
        ({"datetime": "2020-01-01T00:00:00Z"}, "2020-01-01", "2020-01-01"),
        ({"datetime": None, "start_datetime": "2019-01-01T00:00:00Z",
          "end_datetime": "2021-01-01T00:00:00Z"}, "2019-01-01", "2021-01-01"),
        ({"datetime": "2020-06-01T00:00:00Z", "start_datetime": "2019-01-01T00:00:00+00:00",
          "end_datetime": "2021-01-01T01:00:00+01:00"}, "2019-01-01", "2021-01-01"),
    ],
)  # fmt: skip
def test_times(properties: dict[str, Any], start: str, end: str) -> None:
    row = foreign_row(item(properties=properties), "s")
    assert (row.start, row.end) == tuple(
        datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (start, end)
    )
    assert all(
        value is None or value.endswith("Z")
        for value in orjson.loads(row.content)["properties"].values()
    )


def test_links_that_are_made_at_reply_are_left_out() -> None:
    made = ["self", "root", "parent", "collection"]
    kept = ["derived_from", "license", "via", "canonical"]
    links = [{"rel": rel, "href": f"https://x.example/{rel}"} for rel in (*made, *kept)]
    assert [link["rel"] for link in content(item(links=links))["links"]] == kept
    assert "links" not in content(item(links=links[:4]))


def test_relative_addresses_become_absolute() -> None:
    given = item(
        assets={
            "a": {"href": "./v/a.tif"},
            "b": {"href": "../b.tif"},
            "c": {"href": "s3://k/c.tif"},
        },
        links=[
            {"rel": "self", "href": "https://x.example/s/items/a.json"},
            {"rel": "via", "href": "via.html"},
        ],
    )
    made = content(given)
    assert {key: asset["href"] for key, asset in made["assets"].items()} == {
        "a": "https://x.example/s/items/v/a.tif",
        "b": "https://x.example/s/b.tif",
        "c": "s3://k/c.tif",
    }
    assert made["links"] == [{"rel": "via", "href": "https://x.example/s/items/via.html"}]
    del given["links"][0]
    assert content(given)["assets"]["a"]["href"] == "./v/a.tif"


def test_our_own_addresses_are_stored_as_such() -> None:
    given = item(
        assets={
            "a": {"href": "https://ice.example/s/files/x/v.tif"},
            "b": {"href": "https://ice.example/"},
        },
        links=[{"rel": "derived_from", "href": "https://ice.example/s/collections/c/items/b"}],
    )
    made = content(given, public_url="https://ice.example/s")
    assert made["assets"]["a"]["href"] == "firnline:/files/x/v.tif"
    assert made["assets"]["b"]["href"] == "https://ice.example/"
    assert made["links"][0]["href"] == "firnline:/collections/c/items/b"
    assert content(given)["assets"]["a"]["href"] == "https://ice.example/s/files/x/v.tif"


# --- what is not ------------------------------------------------------------------------------


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in item().items() if key != name}


def cube(properties: dict[str, Any], **members: Any) -> dict[str, Any]:
    return item(
        collection="itslive-cubes",
        properties={"datetime": "2020-01-01T00:00:00Z", **properties},
        **{"assets": {"zarr": {"href": "x"}}, **members},
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (5, "it is no object, not a STAC Item"),
        ({"type": "FeatureCollection", "features": []}, "it is a FeatureCollection"),
        ({}, "Field required"),
        (item(type="Collection"), "type: "),
        (without("id"), "id: "),
        (item(id=""), "id: "),
        (item(id="a\n"), "no id, or one that can't be printed"),
        (item(id="a\0"), "no id, or one that can't be printed"),
        (item(id=5), "id: "),
        (without("collection"), "it has no collection"),
        (item(collection=None), "it has no collection"),
        (without("assets"), "assets: "),
        (item(assets={"a": {"title": "no address"}}), "assets.a.href: "),
        (without("links"), "links: "),
        (item(links=[{"rel": "via"}]), "links"),
        (without("properties"), "properties: "),
        (without("bbox"), "bbox is required"),
        (item(bbox=[1.0, 2.0]), "bbox"),
        (item(stac_version="one"), "stac_version: "),
        (item(properties={}), "datetime"),
        (item(properties={"datetime": None}), "datetime"),
        (item(properties={"datetime": None, "start_datetime": "2020-01-01T00:00:00Z"}), "datetime"),
        (item(properties={"datetime": "yesterday"}), "properties.datetime: "),
        (item(properties={"datetime": "2020-01-01T00:00:00"}), "properties.datetime: "),
        (item(properties={"datetime": "0001-01-01T00:00:00+01:00"}), "out of range"),
        (item(properties={"datetime": None, "start_datetime": "2021-01-01T00:00:00Z",
                          "end_datetime": "2020-01-01T00:00:00Z"}), "ends before it starts"),
        (item(geometry=None), "it has no geometry"),
        (without("geometry"), "geometry"),
        (item(geometry={"type": "Polygon", "coordinates": []}), "geometry is empty"),
        (item(geometry={"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}), "geometry"),
        (item(geometry={"type": "Pentagon", "coordinates": []}), "geometry: "),
        (item(geometry=mapping(box(400_000, 5_000_000, 500_000, 6_000_000))), "not in degrees"),
        (item(geometry=mapping(box(0, 89, 1, 91))), "not in degrees"),
        (cube({}), "a cube needs proj:code"),
        (cube({"proj:code": "ESRI:102027"}, assets={}), "a cube needs an asset `zarr`"),
        (cube({"proj:code": "WGS84"}), "a cube needs proj:code, as EPSG:3413"),
        (cube({"proj:code": "EPSG:3413"}), "a cube needs proj:bbox"),
        (cube({"proj:code": "EPSG:3413", "proj:bbox": [1, 2, 3]}), "a cube needs proj:bbox"),
        (cube({"proj:code": "EPSG:3413", "proj:bbox": [1, 2, 3, 4], "proj:transform": []}),
         "proj:transform of numbers"),
    ],
)  # fmt: skip
def test_reasons(given: Any, reason: str) -> None:
    with pytest.raises(UnusableError) as caught:
        foreign_row(given, "s")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)  # as orjson reads them
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "2020-01-01T00:00:00Z", "9999-12-31T23:59:59-10:00", "Point", "self"])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
PATHS = [
    ("type",), ("stac_version",), ("stac_extensions",), ("id",), ("collection",), ("geometry",),
    ("geometry", "type"), ("geometry", "coordinates"), ("geometry", "coordinates", 0),
    ("geometry", "coordinates", 0, 1), ("geometry", "coordinates", 0, 1, 0), ("bbox",), ("bbox", 2),
    ("properties",), ("properties", "datetime"), ("properties", "start_datetime"),
    ("properties", "created"), ("properties", "bands"), ("properties", "proj:geometry"),
    ("assets",), ("assets", "data"), ("assets", "data", "href"), ("assets", "data", "bands"),
    ("links",), ("links", 0), ("links", 0, "href"), ("links", 0, "rel"), ("links", 0, "title"),
]  # fmt: skip


@settings(max_examples=200, derandomize=True)
@given(st.sampled_from(PATHS), json_values)
def test_anything_is_taken_or_has_a_reason(path: tuple[Any, ...], value: Any) -> None:
    given = item(links=[{"rel": "self", "href": "https://x.example/a.json"}])
    place: Any = given
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    try:
        row = foreign_row(given, "s", public_url="https://x.example")
    except UnusableError:  # and no other
        return
    made = orjson.loads(row.content)
    assert row.start <= row.end
    assert row.footprint.is_valid
    west, south, east, north = row.footprint.bounds
    assert -180 <= west <= east <= 180
    assert -90 <= south <= north <= 90
    # what was taken once is taken as it is
    again = foreign_row({"links": [], **made}, "s")
    assert again.content == row.content
    survey = Survey()
    survey.add({"links": [], **made})
    columns = survey.columns({})
    assert columns.batch([{"links": [], **made}]).num_rows == 1


def test_a_collection() -> None:
    given = {
        "type": "Collection", "id": "c", "stac_version": "1.1.0", "description": "d",
        "license": "MIT", "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]},
                                     "temporal": {"interval": [["2020-01-01T00:00:00Z", None]]}},
        "links": [{"rel": "root", "href": "./catalog.json"},
                  {"rel": "cite-as", "href": "https://doi.org/1"}],
    }  # fmt: skip
    id, stored = foreign_collection(given)
    links = [{"rel": "cite-as", "href": "https://doi.org/1"}]
    assert (id, orjson.loads(stored)) == ("c", {**given, "links": links})
    for bad in ({**given, "extent": {}}, {**given, "type": "Catalog"}, item(), 5):
        with pytest.raises(UnusableError):
            foreign_collection(bad)


# --- places -----------------------------------------------------------------------------------


def placed(geometry: Any, **members: Any) -> tuple[Any, Any, list[float]]:
    row = foreign_row(item(geometry=geometry, **members), "s")
    made = orjson.loads(row.content)
    return row.footprint, shape(made["geometry"]), made["bbox"]


SPLIT = MultiPolygon([box(170, -10, 180, 10), box(-180, -10, -170, 10)])
HOLED = MultiPolygon(
    [
        box(170, -10, 180, 10) - box(178, -1, 180, 1),
        box(-180, -10, -170, 10) - box(-180, -1, -178, 1),
    ]
)
CROSSING = {
    "counter-clockwise": [(170, -10), (-170, -10), (-170, 10), (170, 10), (170, -10)],
    "clockwise": [(170, 10), (-170, 10), (-170, -10), (170, -10), (170, 10)],
    "beyond 180": [(170, -10), (190, -10), (190, 10), (170, 10), (170, -10)],
    "beyond -180": [(-190, -10), (-170, -10), (-170, 10), (-190, 10), (-190, -10)],
}


@pytest.mark.parametrize("ring", CROSSING.values(), ids=CROSSING)
def test_what_crosses_the_antimeridian_is_cut(ring: list[tuple[float, float]]) -> None:
    # a rectangle that is drawn as one across the antimeridian is told by its box, or its winding
    outline, shown, box = placed(mapping(Polygon(ring)), bbox=[170, -10, -170, 10])
    assert outline.equals(SPLIT)
    assert shown.equals(SPLIT)
    assert box == [170.0, -10.0, -170.0, 10.0]


def test_a_hole_across_the_antimeridian() -> None:
    hole = [(178, -1), (178, 1), (-178, 1), (-178, -1), (178, -1)]
    outline, shown, _ = placed(
        mapping(Polygon(CROSSING["counter-clockwise"], [hole])), bbox=[170, -10, -170, 10]
    )
    assert outline.equals(HOLED)
    assert shown.equals(HOLED)


WHOLE = {
    "cut already": SPLIT,
    "with a hole cut already": HOLED,
    "touching": box(170, 0, 180, 10),
    "a wide box": box(-170, -10, 170, 10),
    "the world": box(-180, -90, 180, 90),
    "the south": Polygon([(-180, -60), (-180, -90), (180, -90), (180, -60)]),
    "around the pole, as RFC 7946 has it": footprint(box(-1e5, -1e5, 1e5, 1e5), "EPSG:3031"),
    "a tile across": footprint(box(-5e4, -21e5, 5e4, -20e5), "EPSG:3031"),
    "a point": Point(180, 5),
    "a line": LineString([(0, 0), (170, 5)]),
    "points": shapely.MultiPoint([(0, 0), (-180, 5)]),
    "several": shapely.GeometryCollection([Point(1, 2), box(0, 0, 1, 1)]),
}


@pytest.mark.parametrize("geometry", WHOLE.values(), ids=WHOLE)
def test_what_is_right_already_is_kept(geometry: Any) -> None:
    given = json.loads(json.dumps(mapping(geometry)))
    made = content(item(geometry=given, bbox=[1, 2, 3, 4]))
    assert json.dumps(made["geometry"], sort_keys=True) == json.dumps(given, sort_keys=True)
    assert made["bbox"] == [1.0, 2.0, 3.0, 4.0]
    assert foreign_row(item(geometry=given), "s").footprint.equals(geometry)


def test_lines_and_points_beyond() -> None:
    outline, shown, _ = placed(mapping(LineString([(170, 0), (-170, 10)])))
    parts = shapely.MultiLineString([[(170, 0), (180, 5)], [(-180, 5), (-170, 10)]])
    assert shapely.normalize(shapely.MultiLineString(list(outline.geoms))).equals_exact(
        shapely.normalize(parts), 1e-9
    )
    assert shown.equals(outline)
    outline, _, found = placed(mapping(Point(190, 5)))
    assert outline.equals(Point(-170, 5))
    assert found == [-170.0, 5.0, -170.0, 5.0]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("lat", "pole"), [(-75, -90), (80, 90)])
def test_a_ring_around_a_pole_holds_the_pole(lat: float, pole: float, reverse: bool) -> None:
    ring = [(0, lat), (90, lat), (180, lat), (-90, lat), (0, lat)]
    outline, _, _ = placed(mapping(Polygon(ring[::-1] if reverse else ring)))
    assert outline.is_valid
    assert outline.bounds == (-180, min(lat, pole), 180, max(lat, pole))
    assert outline.area == pytest.approx(360 * abs(pole - lat))


def test_heights_are_shown_and_not_searched() -> None:
    solid = shapely.from_wkt("POLYGON Z ((10 40 1, 20 40 2, 20 50 3, 10 40 1))")
    outline, shown, found = placed(mapping(solid), bbox=[10, 40, 1, 20, 50, 3])
    assert not outline.has_z
    assert shown.equals_exact(solid, 0)
    assert shown.has_z
    assert found == [10.0, 40.0, 1.0, 20.0, 50.0, 3.0]


def test_an_outline_that_crosses_itself_can_be_searched() -> None:
    bow = Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    outline, shown, _ = placed(mapping(bow))
    assert outline.is_valid
    assert outline.area == 50
    assert shown.equals_exact(bow, 0)


@settings(max_examples=150, derandomize=True)
@given(
    st.floats(-180, 180), st.floats(-80, 80),
    st.lists(st.tuples(st.floats(0, 2 * math.pi), st.floats(0.5, 9)), min_size=3, max_size=8),
    st.booleans(),
)  # fmt: skip
def test_as_a_search_reads_it(
    lon: float, lat: float, spokes: list[tuple[float, float]], clockwise: bool
) -> None:
    """A star around any place: cut as ``intersects`` cuts it, by other code."""
    ring = [
        (lon + reach * math.cos(angle), lat + reach * math.sin(angle))
        for angle, reach in sorted(spokes)
    ]
    whole = Polygon(ring)
    assume(whole.is_valid and whole.area > 0.1)
    wrapped = [((x + 180) % 360 - 180, y) for x, y in [*ring, ring[0]]]
    outline, _, _ = placed(mapping(Polygon(wrapped[::-1] if clockwise else wrapped)))
    expected = area.from_geojson({"type": "Polygon", "coordinates": [[list(at) for at in wrapped]]})
    assert outline.is_valid
    assert outline.symmetric_difference(expected.shape).area < 1e-6
    assert outline.area == pytest.approx(whole.area)


# --- real ones --------------------------------------------------------------------------------


def test_its_live_s_own_items() -> None:
    path = DATA / "itslive_mosaic_items.ndjson"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    for line in path.read_bytes().splitlines():
        given = orjson.loads(line)
        row = foreign_row(given, "s")
        made = orjson.loads(row.content)
        assert made["assets"] == given["assets"]
        assert made["geometry"] == given["geometry"]
        assert made["bbox"] == given["bbox"]
        assert "links" not in made
        assert made["properties"] == {
            name: value.replace("+00:00", "Z") if isinstance(value, str) else value
            for name, value in given["properties"].items()
        }
        assert row.footprint.bounds == tuple(given["bbox"])
