"""/queryables and /sortables: what filters and orders can name, as JSON Schemas made of the data.

Queryables are those of OGC API - Features, Part 3 (7, "Queryables") and of STAC API - Filter;
sortables those of Part 5 and of STAC API - Sort. An item without a property that is named is as
one in which it is null, so that any name may be given: ``additionalProperties`` is true. Where a
collection is too large to be read whole (:mod:`firnline.api.summaries`), ``firnline:sampled``
says how many items were read, and their values are ``examples``, not bounds or an ``enum``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends
from sqlalchemy import Engine
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.collections import ids_of
from firnline.api.links import SCHEMA, Base, JSONBytes
from firnline.api.parameters import CollectionParameters
from firnline.api.summaries import TEXTS, Summaries, Summariser, Summary, Values
from firnline.database import reading
from firnline.settings import Settings

DRAFT = "https://json-schema.org/draft/2019-09/schema"
"""Of the two that Part 3 takes (/req/queryables/get-queryables-response) the one that STAC's own
validator takes too."""

Schema = dict[str, Any]
_INSTANT = {"type": "string", "format": "date-time"}
_ALWAYS: dict[str, Schema] = {
    "id": {"title": "Item id", "type": "string", "x-ogc-role": "id"},
    "collection": {"title": "Collection id", "type": "string"},
    "geometry": {
        "title": "Footprint",
        "format": "geometry-any",
        "$ref": "https://geojson.org/schema/Geometry.json",
        "x-ogc-role": "primary-geometry",
    },
    "datetime": {"title": "Time, of an interval its end", **_INSTANT},
    "start_datetime": {"title": "Start", **_INSTANT, "x-ogc-role": "primary-interval-start"},
    "end_datetime": {"title": "End", **_INSTANT, "x-ogc-role": "primary-interval-end"},
}
_TITLES = {
    "proj:code": "Coordinate reference system",
    "proj:shape": "Rows and columns",
    "proj:transform": "Affine transform of the grid",
    "proj:bbox": "Bounding box in the CRS",
    "gsd": "Ground sample distance",
    "rgi": "Region of the Randolph Glacier Inventory",
    "temporal_coverage_type": "Annual or static",
    "itslive:region": "Region",
    "itslive:rgi_code": "Number of the region in the Randolph Glacier Inventory",
    "itslive:granule_count": "Image pairs",
    "itslive:roi_percent_coverage": "Part of the tile that is of interest",
    "itslive:temporal_extent": "Whether start and end are the cube's or nominal",
    "itslive:satellites": "Satellites",
    "itslive:sensors": "Sensors",
    "itslive:etag": "ETag of the cube when it was read",
    "firnline:pairs_read": "Image pairs read",
    "firnline:pairs_kept": "Image pairs kept",
    "firnline:pairs_merged": "Image pairs merged",
    "firnline:periods": "Periods of the composites",
    "firnline:stale": "Whether a source has changed since",
}
_UNITS = {"gsd": "m", "itslive:roi_percent_coverage": "%"}  # UCUM
_MOST_EXAMPLES = 10


def create_router(engine: Engine, settings: Settings, summariser: Summariser) -> APIRouter:
    """The routes of the queryables and the sortables."""
    router = APIRouter(tags=["Queryables and sortables"])

    def reply(
        request: Request, what: str, schemas: Callable[[Summaries], dict[str, Schema]]
    ) -> Response:
        """The schema of all items, or of those of the collection in the path."""
        id = request.path_params.get("collection_id")
        parameters.check_query(request, APIRequest if id is None else CollectionParameters)
        base = Base.of(request, settings.public_url)
        with reading(engine) as connection:
            ids = ids_of(connection, id)
        summaries = summariser.of(ids)
        properties = schemas(summaries)
        properties["collection"] = properties["collection"] | {"enum": ids}
        document = {
            "$schema": DRAFT,
            "$id": f"{base.url if id is None else base.collection(id)}/{what}",
            "type": "object",
            "title": f"{what.capitalize()} of {'all collections' if id is None else id}",
            "description": _description(summaries),
            "properties": properties,
            "additionalProperties": True,
        }
        if not summaries.whole:
            document["firnline:sampled"] = summaries.items
        return JSONBytes(orjson.dumps(document), media_type=SCHEMA)

    answers: dict[str, Any] = {
        "response_class": Response,
        "responses": {200: {"description": "JSON Schema", "content": {SCHEMA: {}}}},
    }

    @router.get("/queryables", summary="Queryables of all items", **answers)
    def queryables(request: Request) -> Response:
        """What a `filter` can name, as JSON Schema: types, values and bounds, from the items."""
        return reply(request, "queryables", queryable)

    @router.get(
        "/collections/{collection_id}/queryables", summary="Queryables of a collection", **answers
    )
    def collection_queryables(
        request: Request, path: Annotated[CollectionParameters, Depends(CollectionParameters)]
    ) -> Response:
        """What a `filter` of the collection's items can name, as JSON Schema."""
        return reply(request, "queryables", queryable)

    @router.get("/sortables", summary="Sortables of all items", **answers)
    def sortables(request: Request) -> Response:
        """What `sortby` can name, as JSON Schema."""
        return reply(request, "sortables", sortable)

    @router.get(
        "/collections/{collection_id}/sortables", summary="Sortables of a collection", **answers
    )
    def collection_sortables(
        request: Request, path: Annotated[CollectionParameters, Depends(CollectionParameters)]
    ) -> Response:
        """What `sortby` of the collection's items can name, as JSON Schema."""
        return reply(request, "sortables", sortable)

    return router


def queryable(summaries: Summaries) -> dict[str, Schema]:
    """Schemas of all properties, by name, those that every item has first."""
    schemas = {**_ALWAYS}
    for name, summary in sorted(summaries.properties.items()):
        if name not in _ALWAYS:
            schemas[name] = _titled(name, _either(name, summary, summaries.whole))
    return schemas


def sortable(summaries: Summaries) -> dict[str, Schema]:
    """Schemas of the properties that have an order: text and numbers, no lists."""
    schemas = {name: schema for name, schema in _ALWAYS.items() if name != "geometry"}
    for name, summary in sorted(summaries.properties.items()):
        if name not in _ALWAYS and summary.alone.types - {"boolean"}:
            schemas[name] = _titled(name, _schema(name, summary.alone, summaries.whole))
    return schemas


def _either(name: str, summary: Summary, whole: bool) -> Schema:
    kinds = []
    if summary.alone.count:
        kinds.append(_schema(name, summary.alone, whole))
    if summary.listed:
        kinds.append({"type": "array", "items": _members(name, summary.members, whole)})
    if summary.nested:
        kinds.append({"type": ["array", "object"]})
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _members(name: str, values: Values, whole: bool) -> Schema:
    schema = _schema(name, values, whole)
    if "string" not in values.types:  # a shape, a transform: each member means another thing
        schema = {key: value for key, value in schema.items() if key == "type"}
    return schema


def _schema(name: str, values: Values, whole: bool) -> Schema:
    """Of the values of a property, all of which conform to it if they are the whole."""
    types = sorted(values.types - ({"integer"} if "number" in values.types else set()))
    if not types:
        return {}
    schema: Schema = {"type": types[0] if len(types) == 1 else types}
    if types == ["string"] and values.instants:
        return schema | {"format": "date-time"}
    few = values.few
    if name in TEXTS or few is None or values.count < 2 * len(few):
        few = None
    if not whole:
        return schema if few is None else schema | {"examples": few[:_MOST_EXAMPLES]}
    if values.least <= values.most:
        schema |= {"minimum": values.least, "maximum": values.most}
    return schema if few is None else schema | {"enum": few}


def _titled(name: str, schema: Schema) -> Schema:
    title = _TITLES.get(name)
    if title is None:
        title = name.rpartition(":")[2].replace("_", " ")
        title = title[:1].upper() + title[1:]
    unit = _UNITS.get(name)
    units = {} if unit is None else {"x-ogc-unit": unit, "x-ogc-unitLang": "UCUM"}
    return {"title": title, **schema, **units}


def _description(summaries: Summaries) -> str:
    if summaries.whole:
        return f"Types, values and bounds are those of all {summaries.items:,} items."
    return (
        f"Types and examples are those of {summaries.items:,} items out of more; "
        "others may have properties and values beyond these."
    )
