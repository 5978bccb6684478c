"""Queryables and sortables: JSON Schemas that the items themselves conform to."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pystac_client import Client as StacClient
from sqlalchemy import Engine

from firnline.api import summaries
from firnline.api.queryables import DRAFT, queryable, sortable
from firnline.api.summaries import FEW, Summaries, Summariser, Values
from firnline.database import retire_items, writing
from firnline.properties import searchable
from tests.api.conftest import CUBES, Client, box, make_item, put

VALIDATOR = jsonschema.Draft201909Validator
ALWAYS = ["id", "collection", "geometry", "datetime", "start_datetime", "end_datetime"]


def schema_of(properties: dict[str, Any]) -> Any:
    document = {"$schema": DRAFT, "type": "object", "properties": properties}
    VALIDATOR.check_schema(document)
    return VALIDATOR(document)


def items_with(
    engine: Engine, each: list[dict[str, Any]], collection: str = CUBES
) -> list[dict[str, Any]]:
    rows = []
    for n, own in enumerate(each):
        times = {
            "start_datetime": "2018-01-01T00:00:00Z",
            "end_datetime": "2019-01-01T00:00:00Z",
            "datetime": None,
        }
        rows.append(
            make_item(f"{collection}-{n}", box(n, 0, n + 1, 1), collection=collection,
                      properties={**times, **own})
        )  # fmt: skip
    put(engine, rows)
    return [orjson.loads(row.properties) for row in rows]


CUBE_ITEMS = [
    {
        "title": f"Cube {n}",
        "itslive:region": ("Alaska", "Himalaya")[n % 2],
        "itslive:granule_count": 1000 * n,
        "itslive:roi_percent_coverage": 12.5 * n,
        "itslive:satellites": ["4", "5"] if n % 2 else ["5", "8"],
        "itslive:etag": f'"{n}"',
        "updated": f"2024-01-0{n + 1}T00:00:00+01:00",
        "proj:bbox": [0.0, 1.0, 2.0, 3.5],
        "firnline:request": {"bbox": [0, 0, 1, 1]},
    }
    for n in range(6)
]


@pytest.fixture
def catalog(engine: Engine) -> None:
    items_with(engine, CUBE_ITEMS)
    items_with(engine, [{"firnline:stale": n > 1, "gsd": 120} for n in range(4)], "subsets")
    items_with(engine, [{"itslive:granule_count": -5, "secret": "x"}], "velocity-mosaics")
    with writing(engine) as connection:
        retire_items(connection, "velocity-mosaics", ["velocity-mosaics-0"])


def document(client: Client, path: str) -> dict[str, Any]:
    answer = client.http.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/schema+json"
    schema = answer.json()
    VALIDATOR.check_schema(schema)
    assert schema["$schema"] == DRAFT
    assert schema["$id"] == f"http://testserver{path}"
    assert schema["type"] == "object"
    assert schema["additionalProperties"] is True
    assert schema["title"]
    return dict(schema)


@pytest.mark.usefixtures("catalog")
def test_queryables_of_a_collection(client: Client) -> None:
    schema = document(client, f"/collections/{CUBES}/queryables")
    properties = schema["properties"]
    assert list(properties) == [
        *ALWAYS,
        "firnline:request",
        "itslive:etag",
        "itslive:granule_count",
        "itslive:region",
        "itslive:roi_percent_coverage",
        "itslive:satellites",
        "proj:bbox",
        "title",
        "updated",
    ]
    assert properties["collection"]["enum"] == [CUBES]
    assert properties["geometry"]["format"] == "geometry-any"
    assert "type" not in properties["geometry"]  # OGC API - Features, Part 3, 7.2
    assert properties["datetime"]["format"] == "date-time"
    assert properties["updated"] == {
        "title": "Updated", "type": "string", "format": "date-time",
    }  # fmt: skip
    assert properties["itslive:region"] == {
        "title": "Region", "type": "string", "enum": ["Alaska", "Himalaya"],
    }  # fmt: skip
    assert properties["itslive:granule_count"] == {
        "title": "Image pairs", "type": "integer", "minimum": 0, "maximum": 5000,
    }  # fmt: skip
    assert properties["itslive:roi_percent_coverage"] == {
        "title": "Part of the tile that is of interest", "type": "number",
        "minimum": 0, "maximum": 62.5, "x-ogc-unit": "%", "x-ogc-unitLang": "UCUM",
    }  # fmt: skip
    assert properties["itslive:satellites"] == {
        "title": "Satellites",
        "type": "array",
        "items": {"type": "string", "enum": ["4", "5", "8"]},
    }
    assert properties["proj:bbox"] == {
        "title": "Bounding box in the CRS", "type": "array", "items": {"type": "number"},
    }  # fmt: skip
    # Of these each item has its own: no enum that would be another list of the items.
    for name in ("title", "itslive:etag"):
        assert properties[name].keys() == {"title", "type"}
    assert "firnline:sampled" not in schema
    assert "all 6 items" in schema["description"]


@pytest.mark.usefixtures("catalog")
def test_queryables_of_all_are_those_of_each(client: Client) -> None:
    properties = document(client, "/queryables")["properties"]
    assert properties["collection"]["enum"] == [CUBES, "subsets", "velocity-mosaics"]
    cubes = document(client, f"/collections/{CUBES}/queryables")["properties"]
    subsets = document(client, "/collections/subsets/queryables")["properties"]
    assert subsets["firnline:stale"]["enum"] == [False, True]
    assert subsets["gsd"] == {
        "title": "Ground sample distance", "type": "integer", "minimum": 120, "maximum": 120,
        "enum": [120], "x-ogc-unit": "m", "x-ogc-unitLang": "UCUM",
    }  # fmt: skip
    own = {name: schema for name, schema in (cubes | subsets).items() if name != "collection"}
    assert own.items() <= properties.items()
    assert properties.keys() == own.keys() | {"collection"}  # and nothing of what is retired
    mosaics = document(client, "/collections/velocity-mosaics/queryables")["properties"]
    assert list(mosaics) == ALWAYS


@pytest.mark.usefixtures("catalog")
def test_sortables_have_an_order(client: Client) -> None:
    """Text and numbers: what `sortby` really sorts by, without truth and lists."""
    cubes = document(client, f"/collections/{CUBES}/sortables")
    assert list(cubes["properties"]) == [
        *(name for name in ALWAYS if name != "geometry"),
        "itslive:etag",
        "itslive:granule_count",
        "itslive:region",
        "itslive:roi_percent_coverage",
        "title",
        "updated",
    ]
    everything = document(client, "/sortables")["properties"]
    assert everything.keys() == cubes["properties"].keys() | {"gsd"}
    for name in everything:
        ordered = client.get("/search", sortby=f"-{name},id", limit=100)
        assert len(ordered["features"]) == 10


@pytest.mark.usefixtures("catalog")
def test_links(client: Client, served: str) -> None:
    for path in ("/", f"/collections/{CUBES}"):
        links = {link["rel"]: link for link in client.get(path)["links"]}
        for what in ("queryables", "sortables"):
            link = links[f"http://www.opengis.net/def/rel/ogc/1.0/{what}"]
            assert link["href"] == f"http://testserver{path.rstrip('/')}/{what}"
            assert link["type"] == "application/schema+json"
    stac = StacClient.open(served)
    assert stac.get_queryables()["properties"].keys() >= {"itslive:region", "gsd"}
    merged = stac.get_merged_queryables([CUBES, "subsets"])
    assert merged["additionalProperties"] is True
    assert merged["properties"]["itslive:region"]["enum"] == ["Alaska", "Himalaya"]


def test_bad_requests(client: Client) -> None:
    for what in ("queryables", "sortables"):
        assert "nowhere" in client.problem("GET", f"/collections/nowhere/{what}", 404)["detail"]
        for path in (f"/{what}", f"/collections/{CUBES}/{what}"):
            problem = client.problem("GET", path, 400, params={"f": "html"})
            assert "'f' is not a parameter" in problem["detail"]


def test_a_large_collection_is_sampled_and_says_so(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "WHOLE", 20)
    monkeypatch.setattr(summaries, "SPREAD", 40)
    items_with(engine, [{"itslive:region": "Alaska", "gsd": n} for n in range(100)])
    items_with(engine, [{"itslive:region": "Andes"} for _ in range(20)], "subsets")
    schema = document(client, f"/collections/{CUBES}/queryables")
    assert 21 < schema["firnline:sampled"] <= 61
    region, gsd = (schema["properties"][name] for name in ("itslive:region", "gsd"))
    assert region == {"title": "Region", "type": "string", "examples": ["Alaska"]}
    assert gsd.keys() & {"minimum", "maximum", "enum"} == set()
    assert "firnline:sampled" in document(client, "/queryables")
    small = document(client, "/collections/subsets/queryables")
    assert "firnline:sampled" not in small
    assert small["properties"]["itslive:region"]["enum"] == ["Andes"]


def test_read_again_after_a_minute(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(summaries.time, "monotonic", lambda: now)
    summariser = Summariser(engine)
    assert summariser.of([CUBES]).items == 0
    items_with(engine, [{"gsd": 1}])
    now += 59
    assert summariser.of([CUBES]).items == 0
    now += 1
    assert summariser.of([CUBES]).items == 1
    assert summariser.of([CUBES, "subsets"]).items == 1


scalars = st.one_of(
    st.booleans(),
    st.integers(-5, 5),
    st.floats(-5, 5),
    st.sampled_from(["a", "b", "ü", "2018-01-01T00:00:00Z", "2018-01-01T01:00:00+01:00"]),
)
properties_of_items = st.lists(
    st.dictionaries(
        st.sampled_from(["a", "b:c", "d e", "title"]),
        st.one_of(scalars, st.lists(scalars, max_size=3), st.just({})),
    ),
    max_size=8,
)


@given(properties_of_items, properties_of_items)
def test_all_items_conform_to_what_is_said_of_them(
    ones: list[dict[str, Any]], others: list[dict[str, Any]]
) -> None:
    """Whatever types a property mixes; and what is said of two together is said of their union."""
    one, other = (
        [
            orjson.loads(searchable(each)) | {k: {} for k, v in each.items() if v == {}}
            for each in items
        ]
        for items in (ones, others)
    )
    together = Summaries.of(one) | Summaries.of(other)
    assert together == Summaries.of([*one, *other])
    schema = schema_of(queryable(together))
    for item in (*one, *other):
        schema.validate(item)
    names = {name for item in (*one, *other) for name in item}
    assert queryable(together).keys() == {*ALWAYS, *names}
    assert sortable(together).keys() == {*ALWAYS, *names} - {"geometry"} - {
        name
        for name in names
        if not any(
            isinstance(item.get(name), (int, float, str)) and not isinstance(item[name], bool)
            for item in (*one, *other)
        )
    }


def test_many_values_are_not_told_one_by_one() -> None:
    few, many = Values.of([*range(FEW)] * 2), Values.of([*range(FEW + 1)] * 2)
    assert few.few == list(range(FEW))
    assert many.few is None
    assert (many | few).few is None
    assert (few | Values.of([-1])).few is None
    assert (many.least, many.most) == (0, FEW)
    assert Values.of([True, 1, 1.0, "1", False]).few == [1, False, True, "1"]
