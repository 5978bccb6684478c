"""/aggregations and /aggregate: what matches a search, counted (STAC API - Aggregation 0.3).

What can be asked for follows from the properties that the items have; see
:mod:`firnline.api.aggregations`, and docs/decisions/0022-aggregations.md.
"""

from __future__ import annotations

from typing import Annotated, Any

import attr
import orjson
from fastapi import APIRouter, Depends, Path, Query
from pydantic import Field
from sqlalchemy import Engine
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.aggregations import MAX_PRECISION, PRECISION, answers, available
from firnline.api.buckets import Interval
from firnline.api.collections import check_known, ids_of
from firnline.api.links import JSON, Base, JSONBytes, Link
from firnline.api.parameters import CollectionParameters, MatchBody, MatchParameters
from firnline.api.summaries import Summaries, Summariser
from firnline.database import reading
from firnline.errors import InputError
from firnline.settings import Settings

_AGGREGATIONS = Query(
    min_length=1,
    description="What to count, comma-separated; /aggregations lists what there is.",
    examples=["total_count,datetime_frequency"],
)
_INTERVAL = Query(
    description="Of datetime_frequency; by default the shortest that makes 120 buckets at most."
)
_PRECISION = Query(
    ge=1,
    le=MAX_PRECISION,
    description="Letters of the geohashes of centroid_geohash_grid_frequency.",
)


@attr.s
class AggregateParameters(MatchParameters):
    """Query of GET /aggregate."""

    aggregations: Annotated[str, _AGGREGATIONS] = attr.ib(kw_only=True)
    datetime_frequency_interval: Annotated[Interval | None, _INTERVAL] = attr.ib(default=None)
    centroid_geohash_grid_frequency_precision: Annotated[int, _PRECISION] = attr.ib(
        default=PRECISION
    )


@attr.s
class CollectionAggregateParameters(AggregateParameters):
    """Path and query of GET /collections/{collection_id}/aggregate."""

    collection_id: Annotated[str, Path(description="Collection id")] = attr.ib(kw_only=True)


class AggregateBody(MatchBody):
    """Body of POST /aggregate."""

    aggregations: list[str] = Field(
        min_length=1,
        description=_AGGREGATIONS.description,
        examples=[["total_count", "datetime_frequency"]],
    )
    datetime_frequency_interval: Interval | None = Field(None, description=_INTERVAL.description)
    centroid_geohash_grid_frequency_precision: int = Field(
        PRECISION,
        ge=1,
        le=MAX_PRECISION,
        description=_PRECISION.description,
    )


def create_router(engine: Engine, settings: Settings, summariser: Summariser) -> APIRouter:
    """The routes of the aggregations."""
    router = APIRouter(tags=["Aggregation"])

    def summaries_of(id: str | None) -> Summaries:
        with reading(engine) as connection:
            ids = ids_of(connection, id)
        return summariser.of(ids)  # which takes a connection itself, if it has to read

    def reply(request: Request, what: str, each: list[dict[str, Any]]) -> Response:
        id = request.path_params.get("collection_id")
        base = Base.of(request, settings.public_url)
        above = base.url if id is None else base.collection(id)
        links: list[Link] = [base.link("root")]
        if request.method == "GET":
            query = f"?{request.url.query}" if request.url.query else ""
            links.append({"rel": "self", "type": JSON, "href": f"{above}/{what}{query}"})
        if id is not None:
            links.append({"rel": "collection", "type": JSON, "href": above})
        document = {"type": "AggregationCollection", "aggregations": each, "links": links}
        return JSONBytes(orjson.dumps(document))

    def listed(request: Request) -> Response:
        id = request.path_params.get("collection_id")
        parameters.check_query(request, APIRequest if id is None else CollectionParameters)
        each = [
            {"name": one.name, "data_type": one.data_type, "description": one.description}
            for one in available(summaries_of(id)).values()
        ]
        return reply(request, "aggregations", each)

    def counted(request: Request, asked: AggregateBody) -> Response:
        id = request.path_params.get("collection_id")
        if id is not None:
            if asked.collections and id not in asked.collections:
                raise InputError(f"collections: these are the items of {id[:100]!r} only")
            asked.collections = [id]
        search = parameters.matching(asked)
        if id is None:
            with reading(engine) as connection:
                check_known(connection, search.collections)
        there = available(
            summaries_of(id),
            search,
            asked.datetime_frequency_interval,
            asked.centroid_geohash_grid_frequency_precision,
        )
        unknown = next((name for name in asked.aggregations if name not in there), None)
        if unknown is not None:
            raise InputError(
                f"aggregations: {unknown[:80]!r} is not known; accepted: {', '.join(sorted(there))}"
            )
        chosen = [there[name] for name in dict.fromkeys(asked.aggregations)]
        with reading(engine) as connection:
            return reply(request, "aggregate", answers(connection, search, chosen))

    documented: dict[str, Any] = {
        "response_class": Response,
        "responses": {200: {"description": "AggregationCollection", "content": {JSON: {}}}},
    }

    @router.get("/aggregations", summary="Aggregations of all items", **documented)
    def all_aggregations(request: Request) -> Response:
        """What `/aggregate` can count."""
        return listed(request)

    @router.get(
        "/collections/{collection_id}/aggregations",
        summary="Aggregations of a collection",
        **documented,
    )
    def collection_aggregations(
        request: Request, path: Annotated[CollectionParameters, Depends(CollectionParameters)]
    ) -> Response:
        """What `aggregate` of the collection can count."""
        return listed(request)

    @router.get("/aggregate", summary="Count items", **documented)
    def get_aggregate(
        request: Request, asked: Annotated[AggregateParameters, Depends(AggregateParameters)]
    ) -> Response:
        """The items that match a search, counted."""
        parameters.check_query(request, AggregateParameters)
        return counted(request, parameters.as_body(attr.asdict(asked), AggregateBody))

    @router.post("/aggregate", summary="Count items", **documented)
    def post_aggregate(request: Request, asked: AggregateBody) -> Response:
        """The items that match a search, counted."""
        parameters.check_query(request, APIRequest)
        return counted(request, asked)

    @router.get(
        "/collections/{collection_id}/aggregate",
        summary="Count items of a collection",
        **documented,
    )
    def get_collection_aggregate(
        request: Request,
        asked: Annotated[CollectionAggregateParameters, Depends(CollectionAggregateParameters)],
    ) -> Response:
        """The items of a collection that match a search, counted."""
        parameters.check_query(request, CollectionAggregateParameters)
        return counted(request, parameters.as_body(attr.asdict(asked), AggregateBody))

    @router.post(
        "/collections/{collection_id}/aggregate",
        summary="Count items of a collection",
        **documented,
    )
    def post_collection_aggregate(
        request: Request,
        path: Annotated[CollectionParameters, Depends(CollectionParameters)],
        asked: AggregateBody,
    ) -> Response:
        """The items of a collection that match a search, counted."""
        parameters.check_query(request, APIRequest)
        return counted(request, asked)

    return router
