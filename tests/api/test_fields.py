from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.api.fields import Fields
from firnline.errors import InputError
from tests.api.conftest import CUBES, Client, box, make_item, put

ITEM: dict[str, Any] = {
    "type": "Feature",
    "stac_version": "1.1.0",
    "id": "x",
    "collection": CUBES,
    "geometry": {"type": "Point", "coordinates": [0, 0]},
    "properties": {"datetime": None, "a": 1, "nest": {"b": 2, "c": 3}},
    "assets": {"zarr": {"href": "h", "roles": ["data"]}, "cog": {"href": "g"}},
    "links": [],
}
WHO = {"type": "Feature", "stac_version": "1.1.0", "id": "x", "collection": CUBES}


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        (["properties.a"], [], {**WHO, "properties": {"a": 1}}),
        (["a"], [], {**WHO, "properties": {"a": 1}}),  # the prefix may be left out
        (["properties"], ["properties.nest"], {**WHO, "properties": {"datetime": None, "a": 1}}),
        (["properties.nest.b"], ["properties"], {**WHO, "properties": {"nest": {"b": 2}}}),
        (["assets.zarr.href"], [], {**WHO, "assets": {"zarr": {"href": "h"}}}),
        ([], ["assets", "links", "geometry"], {**WHO, "properties": ITEM["properties"]}),
        (
            [],
            ["properties", "assets.zarr", "links", "geometry", "type", "stac_version", "id"],
            {"collection": CUBES, "assets": {"cog": {"href": "g"}}},
        ),
        (["nothing"], [], WHO),
        (["a"], ["a"], {**WHO, "properties": {"a": 1}}),  # include is preferred
    ],
)
def test_what_is_left(include: list[str], exclude: list[str], left: dict[str, Any]) -> None:
    before = repr(ITEM)
    assert Fields.of(include, exclude).of_item(ITEM) == left
    assert repr(ITEM) == before


def test_none_at_all_is_a_minimal_valid_item() -> None:
    left = Fields.of([], []).of_item(ITEM)
    assert left == {**ITEM, "properties": {"datetime": None}}


def test_an_empty_include_beside_exclude_means_the_default_members(
    client: Client, engine: Engine
) -> None:
    put(engine, [make_item("x", box(0, 0, 1, 1), properties={"a": 1})])

    def left(**fields: Any) -> dict[str, Any]:
        [item] = client.post("/search", {"fields": fields})["features"]
        return dict(item)

    assert "geometry" not in left(exclude=["geometry"])
    assert left(exclude=["geometry"])["properties"]["a"] == 1
    for include in ([], None):
        item = left(exclude=["geometry"], include=include)
        assert item.keys() == {*WHO, "bbox", "properties", "assets", "links"}
        assert item["properties"].keys() == {"datetime", "start_datetime", "end_datetime"}
        assert "properties" not in left(exclude=["properties"], include=include)
    problem = client.problem("POST", "/search", 400, json={"fields": None})
    assert "fields" in problem["detail"]


@pytest.mark.parametrize("name", ["", ".", "properties.", ".a"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="fields"):
        Fields.of([name], [])


def test_over_http(client: Client, engine: Engine) -> None:
    put(engine, [make_item("x", box(0, 0, 1, 1))])
    [item] = client.get("/search", fields="id,links,properties.start_datetime")["features"]
    assert item.keys() == {*WHO, "links", "properties"}
    assert item["properties"] == {"start_datetime": "2018-01-01T00:00:00Z"}
    assert {link["rel"] for link in item["links"]} >= {"self", "parent", "collection", "root"}
    [item] = client.get(f"/collections/{CUBES}/items", fields="-links,-geometry")["features"]
    assert "links" not in item
    assert "geometry" not in item
    assert item["assets"] == {}
    body = {"fields": {"include": ["bbox"], "exclude": None}}
    [item] = client.post("/search", body)["features"]
    assert item == {**WHO, "bbox": [0, 0, 1, 1]}
    answer = client.http.get("/search", params={"fields": "id"})
    assert answer.headers["content-type"] == "application/geo+json"
