"""The parameters of a search: as HTTP brings them, and their normal form.

What a caller wrote is checked here, once, and every refusal names the parameter and says what it
takes. A GET is read into the body that a POST would have had; behind this door there are only
:class:`firnline.api.searches.Search` objects.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import attr
import orjson
from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request

from firnline.api import area, filter, searches
from firnline.api.fields import Fields
from firnline.api.filter_nodes import Node
from firnline.api.instants import parse_datetime
from firnline.api.searches import MAX_LIMIT, Search, SortKey
from firnline.crs import crs_code, parse_crs, parse_crs_uri
from firnline.errors import BBoxError, CRSError, GeometryError, InputError, TooLargeError
from firnline.properties import is_name

_LONGEST_LIST = 10_000
_MOST_KEYS = 8
_UNSORTED = ("assets", "bbox", "geometry", "links", "properties", "stac_extensions")
"""Members of items that have no order (Sort extension: id, collection and properties have)."""
COLLECTIONS_LIMIT = 100
"""Collections in a page."""
_CRS84 = "http://www.opengis.net/def/crs/OGC/1.3/CRS84"

_BBOX = Query(
    description="Only items that intersect this box: west,south,east,north in degrees, or with "
    "heights west,south,lowest,east,north,highest; items are at height 0. West > east crosses the "
    "antimeridian.",
    examples=["-50,69,-49,70"],
)
_BBOX_CRS = Query(
    alias="bbox-crs",
    description="CRS of bbox, as EPSG:3413 or its OGC URI; x is first. By default longitude, "
    "latitude.",
    examples=["EPSG:3413"],
)
_DATETIME = Query(
    description="Only items whose time overlaps this RFC 3339 instant or interval, open on one "
    "side with '..'.",
    examples=["2018-01-01T00:00:00Z/.."],
)
_LIMIT = Query(ge=1, description=f"Items in a page; at most {MAX_LIMIT:,}, more is taken for that.")
_TOKEN = Query(description="Taken from a `next` link.")
_COLLECTIONS = Query(description="Only items of these collections, comma-separated.")
_IDS = Query(description="Only items with these ids, comma-separated.")
_INTERSECTS = Query(
    description="Only items that intersect this GeoJSON geometry; not together with bbox."
)
_CRS = Query(
    description="CRS of the area of interest, bbox or intersects, as EPSG:3413, EPSG:3031 or "
    "EPSG:32622. Items are answered in longitude, latitude whatever it is.",
    examples=["EPSG:3413"],
)
_SORTBY = Query(
    description="Order: names of properties, comma-separated, each with + or - before it. Items "
    "without a property come last. By default the newest first.",
    examples=["-datetime", "+properties.itslive:granule_count"],
)
_FIELDS = Query(
    description="Members that items are answered with, comma-separated, - before those without.",
    examples=["id,properties.datetime,-assets"],
)
_QUERY = Query(
    description="Comparisons of properties (Query extension); filter can say more.",
    examples=['{"itslive:granule_count":{"gte":1000}}'],
)
_FILTER = Query(
    description="Only items that meet this CQL2 expression; see /queryables.",
    examples=['"proj:code" = \'EPSG:3413\' AND "itslive:granule_count" > 1000'],
)
_FILTER_LANG = Query(alias="filter-lang", description="What filter is written in.")
_FILTER_CRS = Query(alias="filter-crs", description=f"CRS of filter's geometries: {_CRS84}.")
_Q = Query(
    description="Only items with one of these terms in id, title or description: words or "
    "phrases, comma-separated; a phrase that has a comma stands in double quotes.",
    examples=["greenland,jakobshavn"],
)
_COLLECTION_BBOX = Query(
    description="Only collections whose extent intersects this box: west,south,east,north in "
    "degrees. West > east crosses the antimeridian.",
    examples=["-50,69,-49,70"],
)
_COLLECTION_DATETIME = Query(
    description="Only collections whose extent overlaps this RFC 3339 instant or interval, open "
    "on one side with '..'.",
    examples=["2018-01-01T00:00:00Z/.."],
)
_COLLECTION_Q = Query(
    description="Only collections with one of these terms in id, title, description or keywords: "
    "words or phrases, comma-separated; a phrase that has a comma stands in double quotes.",
    examples=["mosaic,time series"],
)
_COLLECTION_LIMIT = Query(
    ge=1,
    description=f"Collections in a page; at most {MAX_LIMIT:,}, more is taken for that.",
)
_SEARCH: dict[str, Any] = {
    "collections": ["itslive-cubes"],
    "bbox": [-50, 69, -49, 70],
    "datetime": "2018-01-01T00:00:00Z/..",
    "limit": 10,
}
_HYPHENATED = {"bbox_crs": "bbox-crs", "filter_lang": "filter-lang", "filter_crs": "filter-crs"}
_Lang = Literal["cql2-text", "cql2-json"]


@attr.resolve_types  # here, for subclasses in other modules, where the names mean nothing
@attr.s
class MatchParameters(APIRequest):
    """The part of a search's query that tells which items match."""

    collections: Annotated[str | None, _COLLECTIONS] = attr.ib(default=None)
    ids: Annotated[str | None, _IDS] = attr.ib(default=None)
    bbox: Annotated[str | None, _BBOX] = attr.ib(default=None)
    bbox_crs: Annotated[str | None, _BBOX_CRS] = attr.ib(default=None)
    intersects: Annotated[str | None, _INTERSECTS] = attr.ib(default=None)
    crs: Annotated[str | None, _CRS] = attr.ib(default=None)
    datetime: Annotated[str | None, _DATETIME] = attr.ib(default=None)
    query: Annotated[str | None, _QUERY] = attr.ib(default=None)
    filter: Annotated[str | None, _FILTER] = attr.ib(default=None)
    filter_lang: Annotated[_Lang, _FILTER_LANG] = attr.ib(default="cql2-text")
    filter_crs: Annotated[str | None, _FILTER_CRS] = attr.ib(default=None)
    q: Annotated[str | None, _Q] = attr.ib(default=None)


@attr.s
class SearchParameters(MatchParameters):
    """Query of GET /search (STAC API - Item Search and its extensions)."""

    limit: Annotated[int, _LIMIT] = attr.ib(default=searches.DEFAULT_LIMIT)
    sortby: Annotated[str | None, _SORTBY] = attr.ib(default=None)
    fields: Annotated[str | None, _FIELDS] = attr.ib(default=None)
    token: Annotated[str | None, _TOKEN] = attr.ib(default=None)


@attr.s
class CollectionsParameters(APIRequest):
    """Query of GET /collections (STAC API - Collection Search)."""

    bbox: Annotated[str | None, _COLLECTION_BBOX] = attr.ib(default=None)
    bbox_crs: Annotated[str | None, _BBOX_CRS] = attr.ib(default=None)
    datetime: Annotated[str | None, _COLLECTION_DATETIME] = attr.ib(default=None)
    q: Annotated[str | None, _COLLECTION_Q] = attr.ib(default=None)
    limit: Annotated[int, _COLLECTION_LIMIT] = attr.ib(default=COLLECTIONS_LIMIT)
    token: Annotated[str | None, _TOKEN] = attr.ib(default=None)


@attr.s
class CollectionParameters(APIRequest):
    """Path of what a collection has of its own."""

    collection_id: Annotated[str, Path(description="Collection id")] = attr.ib()


@attr.s
class ItemsParameters(SearchParameters):
    """Path and query of GET /collections/{collection_id}/items (OGC API - Features, 7.15).

    Those of a search are taken as well: pystac-client sends `collections` here too.
    """

    collection_id: Annotated[str, Path(description="Collection id")] = attr.ib(kw_only=True)


class SortField(BaseModel):
    """A sort key (STAC API - Sort extension)."""

    model_config = ConfigDict(extra="forbid")

    field: str
    direction: Literal["asc", "desc"] = "asc"


class FieldNames(BaseModel):
    """Members of items that are wanted or not (STAC API - Fields extension)."""

    model_config = ConfigDict(extra="forbid")

    include: list[str] | None = None
    exclude: list[str] | None = None


def _listed(value: object) -> object:
    """One text is a list as in the query of a GET; stac-api-validator sends such bodies."""
    return words(value) if isinstance(value, str) else value


_Texts = Annotated[
    list[str], Field(max_length=_LONGEST_LIST), BeforeValidator(_listed, list[str] | str)
]


class MatchBody(BaseModel):
    """The part of a search's body that tells which items match.

    A member that this server does not know is refused: a filter left out unsaid would answer
    another question than the one asked.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    collections: _Texts | None = Field(None, description=_COLLECTIONS.description)
    ids: _Texts | None = Field(None, description=_IDS.description)
    bbox: list[float] | None = Field(None, description=_BBOX.description)
    bbox_crs: str | None = Field(None, alias="bbox-crs", description=_BBOX_CRS.description)
    intersects: dict[str, Any] | None = Field(None, description=_INTERSECTS.description)
    crs: str | None = Field(None, description=_CRS.description)
    datetime: str | None = Field(None, description=_DATETIME.description)
    query: dict[str, Any] | None = Field(None, description=_QUERY.description)
    filter: dict[str, Any] | str | bool | None = Field(None, description=_FILTER.description)
    filter_lang: _Lang = Field(
        "cql2-json", alias="filter-lang", description=_FILTER_LANG.description
    )
    filter_crs: str | None = Field(None, alias="filter-crs", description=_FILTER_CRS.description)
    q: list[str] | str | None = Field(None, description=_Q.description)


class SearchBody(MatchBody):
    """Body of POST /search (STAC API - Item Search and its extensions)."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SEARCH]})

    limit: int | None = Field(searches.DEFAULT_LIMIT, ge=1, description=_LIMIT.description)
    sortby: list[SortField] | None = Field(None, description=_SORTBY.description)
    fields: FieldNames = Field(default_factory=FieldNames, description=_FIELDS.description)
    token: str | None = Field(None, description=_TOKEN.description)


Body = TypeVar("Body", bound=MatchBody)


def as_body(given: Mapping[str, Any], body: type[Body]) -> Body:
    """The body that means the same as the query of a GET."""
    read = {
        "collections": words,
        "ids": words,
        "bbox": numbers,
        # an offset's plus that was not encoded in the URL; RFC 3339 has no space there
        "datetime": lambda text: text.replace(" ", "+"),
        "intersects": lambda text: _json_object("intersects", text, GeometryError),
        "query": lambda text: _json_object("query", text, InputError),
        "sortby": _sort_fields,
        "fields": _field_names,
        "q": terms,
        "aggregations": words,
    }
    values = {
        name: read[name](value) if name in read else value
        for name, value in given.items()
        if name in body.model_fields and value is not None
    }
    return body.model_validate(values)


def normalised(asked: SearchBody) -> Search:
    """The normal form of a search."""
    limit = searches.DEFAULT_LIMIT if asked.limit is None else asked.limit
    return replace(
        matching(asked),
        order=_order(asked.sortby or []),
        limit=min(
            limit, searches.MAX_LIMIT
        ),  # OGC API - Features, /req/core/limit-response: no error
    )


def matching(asked: MatchBody) -> Search:
    """Which items match, in normal form. An empty list restricts nothing, as an absent one."""
    start, end = (None, None) if asked.datetime is None else parse_datetime(asked.datetime)
    return Search(
        collections=_texts("collections", asked.collections),
        ids=_texts("ids", asked.ids),
        area=_area(asked),
        start=start,
        end=end,
        filter=_filter(asked),
        words=_texts("q", None if asked.q is None else terms(asked.q)),
    )


def fields(asked: SearchBody) -> Fields | None:
    """The members that items are answered with; None for all."""
    if "fields" not in asked.model_fields_set:
        return None
    include, exclude = asked.fields.include or (), asked.fields.exclude or ()
    # An empty include beside exclude means the default members, no include all members (Fields
    # extension, "Include/Exclude Semantics").
    return Fields.of(include, exclude, default="include" in asked.fields.model_fields_set)


def _area(asked: MatchBody) -> area.Area | None:
    if asked.bbox is not None and asked.intersects is not None:
        raise InputError("bbox and intersects can't be given together")
    if asked.bbox_crs is not None and asked.crs is not None:
        raise InputError("bbox-crs and crs can't be given together")
    crs = _crs("crs", asked.crs) or _crs("bbox-crs", asked.bbox_crs)
    if asked.bbox is not None:
        return area.from_bbox(asked.bbox) if crs is None else area.from_bounds(asked.bbox, crs)
    if asked.intersects is not None:
        return area.from_geojson(asked.intersects, crs)
    return None


def _crs(name: str, text: str | None) -> str | None:
    """The code of the CRS in a parameter; None for longitude, latitude.

    OGC URIs of the kind that OGC API - Features, Part 2 asks for are taken besides codes.
    """
    if text is None:
        return None
    try:
        crs = parse_crs_uri(text) if text.startswith("http:") else parse_crs(text)
    except CRSError as error:
        raise CRSError(f"{name}: {error}") from None
    if crs.is_geographic:
        if crs_code(crs) != "OGC:CRS84":
            raise CRSError(
                f"{name} {text[:60]!r} is geographic; accepted: CRS84, or a projected one"
            )
        return None
    return crs_code(crs)


def _filter(asked: MatchBody) -> Node | None:
    if _crs("filter-crs", asked.filter_crs) is not None:
        raise CRSError(f"filter-crs {str(asked.filter_crs)[:80]!r} is not accepted; give {_CRS84}")
    parts: list[Node] = []
    if asked.bbox is not None and not area.is_on_the_ground(asked.bbox):
        parts.append(False)
    if asked.query:
        parts.append(filter.query_to_cql2(asked.query))
    if asked.filter is not None:
        parts.append(filter.parse(asked.filter, asked.filter_lang))
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"op": "and", "args": parts}


def _order(keys: Sequence[SortField]) -> tuple[SortKey, ...]:
    if len(keys) > _MOST_KEYS:
        raise InputError(f"sortby takes {_MOST_KEYS} keys at most")
    order = []
    for key in keys:
        name = key.field.removeprefix("properties.")
        if key.field in _UNSORTED or key.field[:1] in ("+", "-"):
            raise InputError(
                f"sortby: {key.field[:80]!r} can't be sorted by; accepted: id, collection and "
                "properties, each with one + or - before it; see /sortables"
            )
        if not is_name(name) or not _is_unicode(name):
            raise InputError(f"sortby: {name[:80]!r} can't be the name of a property")
        order.append(SortKey(name, key.direction == "desc"))
    return tuple(order) or searches.NEWEST


def _sort_fields(text: str) -> list[dict[str, str]]:
    signs = {"+": "asc", "-": "desc"}
    keys = [key.strip() for key in text.split(",") if key.strip()]
    return [
        {"field": key[1:] if key[0] in signs else key, "direction": signs.get(key[0], "asc")}
        for key in keys
    ]


def _field_names(text: str) -> dict[str, list[str]]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    given = {
        "include": [name.removeprefix("+") for name in names if not name.startswith("-")],
        "exclude": [name[1:] for name in names if name.startswith("-")],
    }
    return {key: each for key, each in given.items() if each}


def _texts(name: str, values: Sequence[str] | None) -> tuple[str, ...]:
    if values is None:
        return ()
    if len(values) > _LONGEST_LIST:
        raise TooLargeError(f"{name} takes {_LONGEST_LIST:,} values at most")
    if any("\0" in value or not _is_unicode(value) for value in values):
        raise InputError(f"{name} takes Unicode text without NUL")
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


def terms(q: str | Sequence[str]) -> list[str]:
    """The terms of a free text (STAC API - Free-Text Search): comma-separated, or a list."""
    if isinstance(q, str):
        try:
            q = next(csv.reader([q], skipinitialspace=True), [])
        except csv.Error as error:
            raise InputError(f"q is not understood: {error}") from None
    return [term.strip() for term in q if term.strip()]


def numbers(text: str) -> list[float]:
    """The numbers of a ``bbox``."""
    try:
        if "_" in text or not text.isascii():  # which Python takes for numbers too
            raise ValueError
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise BBoxError(
            f"bbox {text[:80]!r} is not understood; accepted: west,south,east,north in degrees"
        ) from None


def _json_object(name: str, text: str, error: type[InputError]) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise error(f"{name} is not JSON; accepted: a JSON object") from None
    if not isinstance(value, dict):
        raise error(f"{name} takes a JSON object")
    return value


def check_query(request: Request, parameters: type[APIRequest]) -> None:
    """Refuse parameters that are not known, or given twice.

    OGC API - Features, /req/core/query-param-unknown: a misspelt filter is an error, not a
    search without it.
    """
    names = {field.name for field in attr.fields(parameters)} - set(request.path_params)
    known = {_HYPHENATED.get(name, name) for name in names}
    seen = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise InputError(f"{name[:80]!r} is not a parameter; accepted: {there}")
        if name in seen:
            raise InputError(f"{name} is given twice; accepted: one value, comma-separated")
        seen.add(name)
