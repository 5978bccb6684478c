"""What the API says of itself: conformance classes as others spell them, and OpenAPI 3.0."""

from __future__ import annotations

from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV30SpecValidator
from pystac_client import Client as StacClient
from pystac_client.conformance import ConformanceClasses
from stac_fastapi.extensions.aggregation import AggregationConformanceClasses
from stac_fastapi.extensions.collection_search import CollectionSearchConformanceClasses
from stac_fastapi.extensions.fields.fields import FieldsConformanceClasses
from stac_fastapi.extensions.filter.filter import FilterConformanceClasses
from stac_fastapi.extensions.free_text.free_text import FreeTextConformanceClasses
from stac_fastapi.extensions.query.query import QueryConformanceClasses
from stac_fastapi.extensions.sort.sort import SortConformanceClasses
from stac_fastapi.types.conformance import BASE_CONFORMANCE_CLASSES

from firnline.api import filter, processes
from firnline.api.openapi import downgraded
from tests.api.conftest import Client

SPELT = [
    *BASE_CONFORMANCE_CLASSES,
    *AggregationConformanceClasses,
    *CollectionSearchConformanceClasses,
    FieldsConformanceClasses.SEARCH,
    FieldsConformanceClasses.ITEMS,
    QueryConformanceClasses.SEARCH,
    QueryConformanceClasses.ITEMS,
    FilterConformanceClasses.FILTER,
    FilterConformanceClasses.ITEMS,
    FreeTextConformanceClasses.SEARCH,
    FreeTextConformanceClasses.ITEMS,
    FreeTextConformanceClasses.COLLECTIONS,
    SortConformanceClasses.ITEM_SEARCH_SORT,
    SortConformanceClasses.ITEM_SEARCH_SORTABLES,
    SortConformanceClasses.FEATURES_SORT,
    SortConformanceClasses.FEATURES_SORTABLES,
]


def test_classes_are_spelt_as_others_spell_them(client: Client) -> None:
    classes = client.get("/conformance")["conformsTo"]
    assert {str(each.value) for each in SPELT} <= set(classes)
    assert {*filter.CONFORMANCE, *processes.CONFORMANCE} <= set(classes)
    assert len(classes) == len(set(classes))
    for other in ("transaction", "children", "ogcapi-features-2", "advanced-free"):
        assert not any(other in each for each in classes)


def test_as_pystac_client_recognises_them(served: str) -> None:
    stac = StacClient.open(served)
    unknown = [each.name for each in ConformanceClasses if not stac.conforms_to(each)]
    assert unknown == ["CONTEXT", "TRANSACTION"]


def test_the_description_is_openapi_3_0(client: Client) -> None:
    description = client.get("/api")
    assert description["openapi"] == "3.0.3"
    OpenAPIV30SpecValidator(description).validate()
    paths = description["paths"]
    for path in ("", "/collections/{collection_id}"):
        for what in ("queryables", "sortables"):
            (media_type,) = paths[f"{path}/{what}"]["get"]["responses"]["200"]["content"]
            assert media_type == "application/schema+json"
        assert paths[f"{path}/aggregate"].keys() == {"get", "post"}
        assert paths[f"{path}/aggregations"].keys() == {"get"}
    asked = {each["name"]: each for each in paths["/aggregate"]["get"]["parameters"]}
    assert asked["aggregations"]["required"] is True
    assert asked["datetime_frequency_interval"]["schema"]["enum"] == ["day", "month", "year"]
    assert asked.keys() >= {"bbox", "bbox-crs", "datetime", "filter", "filter-lang", "q"}
    assert not asked.keys() & {"limit", "token", "sortby", "fields"}
    asked = {each["name"]: each for each in paths["/collections"]["get"]["parameters"]}
    assert asked.keys() == {"bbox", "bbox-crs", "datetime", "q", "limit", "token"}


def described(schema: dict[str, Any]) -> dict[str, Any]:
    return {"openapi": "3.1.0", "components": {"schemas": {"Thing": schema}}}


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        (
            {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}], "title": "T"},
            {"type": "string", "maxLength": 3, "nullable": True, "title": "T"},
        ),
        (
            {"anyOf": [{"$ref": "#/x"}, {"type": "null"}]},
            {"allOf": [{"$ref": "#/x"}], "nullable": True},
        ),
        (
            {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]},
            {"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
        ),
        (
            {"anyOf": [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}]},
            {"enum": ["a", "b", None], "type": "string", "nullable": True},
        ),
        ({"type": "null"}, {"nullable": True, "enum": [None]}),
        ({"const": "Feature", "type": "string"}, {"enum": ["Feature"], "type": "string"}),
        ({"type": "number", "exclusiveMinimum": 0}, {"type": "number", "minimum": 0,
                                                     "exclusiveMinimum": True}),
        (
            {"type": "array", "prefixItems": [{"const": 1}, {}], "maxItems": 2},
            {"type": "array", "items": {"anyOf": [{"enum": [1]}, {}]}, "maxItems": 2},
        ),
        ({"type": "array"}, {"type": "array", "items": {}}),
        ({"type": "string", "examples": ["a", "b"]}, {"type": "string", "example": "a"}),
        (
            {"type": "object", "properties": {"const": {"const": 1}, "examples": {}},
             "additionalProperties": False},
            {"type": "object", "properties": {"const": {"enum": [1]}, "examples": {}},
             "additionalProperties": False},
        ),
    ],
)  # fmt: skip
def test_schemas_of_the_older_dialect(newer: dict[str, Any], older: dict[str, Any]) -> None:
    assert downgraded(described(newer)) == described(older) | {"openapi": "3.0.3"}
