"""The parameters of a search: as HTTP brings them, and their normal form.

What a caller wrote is checked here, once, and every refusal names the parameter and says what it
takes. Behind this door there are only :class:`firnline.api.query.Search` objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attr
import orjson
from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request

from firnline.api import area, query
from firnline.api.instants import parse_datetime
from firnline.api.query import Search
from firnline.errors import BBoxError, GeometryError, InputError, TooLargeError

_LONGEST_LIST = 10_000

_BBOX = Query(
    description="Only items that intersect this box: west,south,east,north in degrees, or with "
    "heights west,south,lowest,east,north,highest. West > east crosses the antimeridian.",
    examples=["-50,69,-49,70"],
)
_DATETIME = Query(
    description="Only items whose time overlaps this RFC 3339 instant or interval, open on one "
    "side with '..'.",
    examples=["2018-01-01T00:00:00Z/.."],
)
_LIMIT = Query(
    ge=1, description=f"Items in a page; at most {query.MAX_LIMIT:,}, more is taken for that."
)
_TOKEN = Query(description="Taken from a `next` link.")
_COLLECTIONS = Query(description="Only items of these collections, comma-separated.")
_IDS = Query(description="Only items with these ids, comma-separated.")
_INTERSECTS = Query(
    description="Only items that intersect this GeoJSON geometry; not together with bbox."
)


@attr.s
class SearchParameters(APIRequest):
    """Query of GET /search (STAC API - Item Search)."""

    collections: Annotated[str | None, _COLLECTIONS] = attr.ib(default=None)
    ids: Annotated[str | None, _IDS] = attr.ib(default=None)
    bbox: Annotated[str | None, _BBOX] = attr.ib(default=None)
    intersects: Annotated[str | None, _INTERSECTS] = attr.ib(default=None)
    datetime: Annotated[str | None, _DATETIME] = attr.ib(default=None)
    limit: Annotated[int, _LIMIT] = attr.ib(default=query.DEFAULT_LIMIT)
    token: Annotated[str | None, _TOKEN] = attr.ib(default=None)


@attr.s
class ItemsParameters(APIRequest):
    """Path and query of GET /collections/{collection_id}/items (OGC API - Features, 7.15).

    Those of a search are taken as well: pystac-client sends `collections` here too.
    """

    collection_id: Annotated[str, Path(description="Collection id")] = attr.ib()
    collections: Annotated[str | None, _COLLECTIONS] = attr.ib(default=None)
    ids: Annotated[str | None, _IDS] = attr.ib(default=None)
    bbox: Annotated[str | None, _BBOX] = attr.ib(default=None)
    intersects: Annotated[str | None, _INTERSECTS] = attr.ib(default=None)
    datetime: Annotated[str | None, _DATETIME] = attr.ib(default=None)
    limit: Annotated[int, _LIMIT] = attr.ib(default=query.DEFAULT_LIMIT)
    token: Annotated[str | None, _TOKEN] = attr.ib(default=None)


class SearchBody(BaseModel):
    """Body of POST /search (STAC API - Item Search).

    A member that this server does not know is refused: a filter left out unsaid would answer
    another question than the one asked.
    """

    model_config = ConfigDict(extra="forbid")

    collections: list[str] | None = Field(None, max_length=_LONGEST_LIST)
    ids: list[str] | None = Field(None, max_length=_LONGEST_LIST)
    bbox: list[float] | None = Field(None, description=_BBOX.description)
    intersects: dict[str, Any] | None = Field(None, description=_INTERSECTS.description)
    datetime: str | None = Field(None, description=_DATETIME.description)
    limit: int | None = Field(query.DEFAULT_LIMIT, ge=1, description=_LIMIT.description)
    token: str | None = Field(None, description=_TOKEN.description)


def normalised(
    collections: Sequence[str] | None,
    ids: Sequence[str] | None,
    bbox: Sequence[float] | None,
    intersects: Mapping[str, Any] | None,
    datetime: str | None,
    limit: int,
) -> Search:
    """The normal form of a search. An empty list restricts nothing, as an absent one."""
    if bbox is not None and intersects is not None:
        raise InputError("bbox and intersects can't be given together")
    where = None
    if bbox is not None:
        where = area.from_bbox(bbox)
    elif intersects is not None:
        where = area.from_geojson(intersects)
    start, end = (None, None) if datetime is None else parse_datetime(datetime)
    return Search(
        collections=_texts("collections", collections),
        ids=_texts("ids", ids),
        area=where,
        start=start,
        end=end,
        limit=min(limit, query.MAX_LIMIT),  # OGC API - Features, /req/core/limit-response: no error
    )


def _texts(name: str, values: Sequence[str] | None) -> tuple[str, ...]:
    if values is None:
        return ()
    if len(values) > _LONGEST_LIST:
        raise TooLargeError(f"{name} takes {_LONGEST_LIST:,} values at most")
    if any("\0" in value or not _is_unicode(value) for value in values):
        raise InputError(f"{name}: an id is Unicode text without NUL")
    return tuple(dict.fromkeys(values))


def _is_unicode(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON can spell and no database stores."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stored_text(id: str) -> str:
    """An id from a path, as PostgreSQL takes it: it has no NUL, so nothing stored has one."""
    return id.replace("\0", "\ufffd")


def words(text: str | None) -> list[str] | None:
    """The values of a comma-separated parameter."""
    return [word.strip() for word in text.split(",")] if text else None


def numbers(text: str | None) -> list[float] | None:
    """The numbers of a ``bbox``."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise BBoxError(
            f"bbox {text[:80]!r} is not understood; accepted: west,south,east,north in degrees"
        ) from None


def geojson(text: str | None) -> Mapping[str, Any] | None:
    """The object of an ``intersects``."""
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise GeometryError("intersects is not JSON; accepted: a GeoJSON geometry") from None
    if not isinstance(value, dict):
        raise GeometryError("intersects takes a GeoJSON geometry object")
    return value


def check_query(request: Request, parameters: type[APIRequest]) -> None:
    """Refuse parameters that are not known, or given twice.

    OGC API - Features, /req/core/query-param-unknown: a misspelt filter is an error, not a
    search without it.
    """
    known = {field.name for field in attr.fields(parameters)} - set(request.path_params)
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise InputError(
                f"{name[:80]!r} is not a parameter; accepted: {', '.join(sorted(known))}"
            )
        if name in seen:
            raise InputError(f"{name} is given twice; accepted: one value, comma-separated")
        seen.add(name)
