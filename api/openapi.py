"""The OpenAPI description: completed, and in version 3.0.

Version 3.0 is what OGC's `oas30` classes and QGIS ask for.

FastAPI writes 3.1, whose schemas are JSON Schema 2020-12; those of 3.0 are an older dialect: no
type `null` but ``nullable``, one ``example``, no ``const``, no tuples, and exclusive bounds as
booleans beside the bounds.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from firnline.api.links import GEOJSON

VERSION = "3.0.3"
_COUNT = {"type": "integer", "minimum": 0}
PAGE: Mapping[str, Any] = {
    "type": "object",
    "required": ["type", "features", "links", "numberMatched", "numberReturned"],
    "properties": {
        "type": {"type": "string", "enum": ["FeatureCollection"]},
        "features": {
            "type": "array",
            "description": "STAC items, with the members that `fields` asks for.",
            "items": {"type": "object"},
        },
        "links": {"type": "array", "items": {"type": "object", "required": ["rel", "href"]}},
        "numberMatched": _COUNT,
        "firnline:numberMatchedError": {
            **_COUNT,
            "description": "There if numberMatched is an estimate: how far off it may be.",
        },
        "numberReturned": _COUNT,
    },
}
"""JSON Schema of a page of items."""
_NULL = {"type": "null"}


def install(app: FastAPI) -> None:
    """Let the application describe itself so; after all routes are there."""
    described = app.openapi
    app.openapi = functools.cache(  # type: ignore[method-assign]
        lambda: downgraded(completed(described()))
    )


def completed(description: Mapping[str, Any]) -> dict[str, Any]:
    """With what the frameworks don't know: 304 of every GET, and what `fields` does to a page."""
    out = copy.deepcopy(dict(description))
    for path in out["paths"].values():
        for method, operation in path.items():
            responses = operation["responses"]
            if method == "get":
                responses["304"] = {"description": "The client has it (If-None-Match)"}
            page = responses.get("200", {}).get("content", {}).get(GEOJSON, {})
            if page.get("schema", {}).get("$ref", "").endswith("/ItemCollection"):
                page["schema"] = PAGE
    return out


def downgraded(description: Mapping[str, Any]) -> dict[str, Any]:
    """A description in OpenAPI 3.1, as FastAPI and pydantic write it, in 3.0."""
    return {**_described(description), "openapi": VERSION}


def _described(node: Any) -> Any:
    """What holds schemas, as ``schema`` or by name in ``schemas``."""
    if isinstance(node, list):
        return [_described(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    out: dict[str, Any] = {}
    for name, value in node.items():
        if name == "schema":
            if "in" in node and "anyOf" in value:  # a parameter can be left out, but not be null
                value = {**value, "anyOf": [each for each in value["anyOf"] if each != _NULL]}
            out[name] = _schema(value)
        elif name == "schemas":
            out[name] = {key: _schema(each) for key, each in value.items()}
        else:
            out[name] = _described(value)
    return out


def _schema(schema: Any) -> Any:
    if not isinstance(schema, Mapping):  # true or false, of additionalProperties
        return schema
    if schema == _NULL:
        return {"nullable": True, "enum": [None]}
    out: dict[str, Any] = {}
    for name, value in schema.items():
        if name in ("anyOf", "oneOf", "allOf"):
            out |= _combined(name, value)
        elif name == "properties":
            out[name] = {key: _schema(each) for key, each in value.items()}
        elif name in ("items", "not", "additionalProperties"):
            out[name] = _schema(value)
        elif name == "prefixItems":
            out["items"] = {"anyOf": [_schema(each) for each in value]}
        elif name == "const":
            out["enum"] = [value]
        elif name == "examples":
            out["example"] = value[0]
        elif name in ("exclusiveMinimum", "exclusiveMaximum"):
            out |= {name.removeprefix("exclusive").lower(): value, name: True}
        else:
            out[name] = value
    if out.get("type") == "array":  # 3.0 asks for items
        out.setdefault("items", {})
    return out


def _combined(name: str, schemas: list[Any]) -> dict[str, Any]:
    """Alternatives without null, which the schema around them gets as ``nullable``."""
    rest: list[dict[str, Any]] = [_schema(each) for each in schemas if each != _NULL]
    nullable: dict[str, Any] = {"nullable": True} if len(rest) < len(schemas) else {}
    if len(rest) > 1:
        return nullable | {name: rest}
    (only,) = rest
    if "$ref" in only:  # beside which nothing else counts
        return nullable | {"allOf": rest}
    if nullable and "enum" in only:
        only = only | {"enum": [*only["enum"], None]}
    return nullable | only
