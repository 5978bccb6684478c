"""The STAC client of stac-fastapi: parameters in, stored bytes out.

Each method normalises its parameters once at the door, lets ``firnline.api.query`` build the
SELECT, and joins the stored bytes of the items into one reply: no model is made of what goes out
(100 items as dicts cost 26-48 ms of CPU, as bytes 1 ms).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlencode

import attr
import orjson
from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Engine, select
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import area, paging, query
from firnline.api.instants import parse_datetime
from firnline.api.links import (
    GEOJSON,
    HTML,
    JSON,
    OPENAPI,
    REL_JOBS,
    REL_PROCESSES,
    Base,
    JSONBytes,
    Link,
)
from firnline.api.query import Cursor, Search
from firnline.database import get_item, reading
from firnline.errors import BBoxError, GeometryError, InputError, NotFoundError, TooLargeError
from firnline.settings import Settings
from firnline.tables import collections as collections_table

STAC_VERSION = "1.1.0"
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


@attr.s
class CatalogClient(BaseCoreClient):
    """Answers the STAC routes from the database; runs in stac-fastapi's thread pool.

    Its methods return replies where the base class is annotated with models (stac-fastapi 7 takes
    both), and get the parameters as they were sent, to name them in errors.

    Every method takes the `request` that it answers among its keywords, and raises
    :class:`firnline.errors.FirnlineError` where it can't.
    """

    engine: Engine = attr.ib(kw_only=True)
    settings: Settings = attr.ib(kw_only=True)
    key: bytes = attr.ib(init=False)

    def __attrs_post_init__(self) -> None:
        self.key = paging.key_for(self.settings.database)

    def landing_page(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /: a STAC catalog with the links that clients start from (STAC API - Core)."""
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            stored = connection.execute(
                select(collections_table.c.id, collections_table.c.content).order_by("id")
            ).all()
        children: list[Link] = [
            {
                "rel": "child",
                "type": JSON,
                "title": orjson.loads(content).get("title", id),
                "href": base.collection(id),
            }
            for id, content in stored
        ]
        search = "/search"
        page = {
            "type": "Catalog",
            "stac_version": STAC_VERSION,
            "id": self.landing_page_id,
            "title": self.title,
            "description": self.description,
            "conformsTo": self.conformance_classes(),
            "links": [
                base.link("self", title="This document"),
                base.link("root", title=self.title),
                base.link("data", "/collections", title="Collections"),
                base.link("conformance", "/conformance", title="Conformance classes"),
                base.link("search", search, GEOJSON, title="Item search", method="GET"),
                base.link("search", search, GEOJSON, title="Item search", method="POST"),
                base.link("service-desc", "/api", OPENAPI, title="OpenAPI description"),
                base.link("service-doc", "/api.html", HTML, title="API documentation"),
                base.link(REL_PROCESSES, "/processes", title="Processes"),
                base.link(REL_JOBS, "/jobs", title="Jobs"),
                *children,
            ],
        }
        return JSONBytes(orjson.dumps(page))

    def conformance(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /conformance."""
        return JSONBytes(orjson.dumps({"conformsTo": self.conformance_classes()}))

    def all_collections(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /collections."""
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            stored = connection.execute(
                select(collections_table.c.id, collections_table.c.content).order_by("id")
            ).all()
        each = b",".join(base.with_collection_links(content, id) for id, content in stored)
        links = [base.link("self", "/collections"), base.link("root"), base.link("parent")]
        body = b'{"collections":[' + each + b'],"links":' + orjson.dumps(links) + b"}"
        return JSONBytes(base.resolve(body))

    def get_collection(  # type: ignore[override]
        self, collection_id: str, **kwargs: Any
    ) -> Response:
        """GET /collections/{collection_id}."""
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            content = connection.scalar(
                select(collections_table.c.content).where(
                    collections_table.c.id == _stored_text(collection_id)
                )
            )
        if content is None:
            raise _no_collection(collection_id)
        return JSONBytes(base.resolve(base.with_collection_links(content, collection_id)))

    def get_item(  # type: ignore[override]
        self, item_id: str, collection_id: str, **kwargs: Any
    ) -> Response:
        """GET /collections/{collection_id}/items/{item_id}."""
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            content = get_item(connection, _stored_text(collection_id), _stored_text(item_id))
        if content is None:
            raise NotFoundError(
                f"there is no item {item_id[:100]!r} in collection {collection_id[:100]!r}"
            )
        item = base.with_item_links(content, collection_id, item_id)
        return JSONBytes(base.resolve(item), media_type=GEOJSON)

    def item_collection(  # type: ignore[override]
        self,
        collection_id: str,
        collections: str | None = None,
        ids: str | None = None,
        bbox: str | None = None,
        intersects: str | None = None,
        datetime: str | None = None,
        limit: int = query.DEFAULT_LIMIT,
        token: str | None = None,
        **kwargs: Any,
    ) -> Response:
        """GET /collections/{collection_id}/items."""
        request: Request = kwargs["request"]
        _check_query(request, ItemsParameters)
        if collections and collection_id not in collections.split(","):
            raise InputError(f"collections: these are the items of {collection_id[:100]!r} only")
        base = self._base(request)
        search = _search(
            [_stored_text(collection_id)],
            _words(ids),
            _numbers(bbox),
            _geojson(intersects),
            datetime,
            limit,
        )
        here = base.collection(collection_id)
        links: list[Link] = [
            {"rel": "collection", "type": JSON, "href": here},
            {"rel": "parent", "type": JSON, "href": here},
        ]
        return self._page(request, base, search, token, f"{here}/items", links)

    def get_search(  # type: ignore[override]
        self,
        collections: str | None = None,
        ids: str | None = None,
        bbox: str | None = None,
        intersects: str | None = None,
        datetime: str | None = None,
        limit: int = query.DEFAULT_LIMIT,
        token: str | None = None,
        **kwargs: Any,
    ) -> Response:
        """GET /search."""
        request: Request = kwargs["request"]
        _check_query(request, SearchParameters)
        search = _search(
            _words(collections),
            _words(ids),
            _numbers(bbox),
            _geojson(intersects),
            datetime,
            limit,
        )
        base = self._base(request)
        return self._page(request, base, search, token, f"{base.url}/search")

    def post_search(  # type: ignore[override]
        self, search_request: SearchBody, **kwargs: Any
    ) -> Response:
        """POST /search."""
        request: Request = kwargs["request"]
        asked = search_request
        limit = query.DEFAULT_LIMIT if asked.limit is None else asked.limit
        search = _search(
            asked.collections, asked.ids, asked.bbox, asked.intersects, asked.datetime, limit
        )
        base = self._base(request)
        return self._page(request, base, search, asked.token, f"{base.url}/search", body=asked)

    def _base(self, request: Request) -> Base:
        return Base.of(request, self.settings.public_url)

    def _page(
        self,
        request: Request,
        base: Base,
        search: Search,
        token: str | None,
        here: str,
        links: Iterable[Link] = (),
        *,
        body: SearchBody | None = None,
    ) -> Response:
        """One page of a search as GeoJSON.

        numberMatched counts all matches and numberReturned the page (OGC API - Features,
        /req/core/fc-numberMatched, -numberReturned).
        """
        if token:
            search = replace(search, after=paging.decode(token, search, self.key))
        dialect = self.engine.dialect.name
        with reading(self.engine) as connection:
            rows = connection.execute(query.page(search, dialect)).all()
            matched = rows[0][-1] if rows else -1
            if matched < 0:
                matched = connection.scalar(query.count(search, dialect)) or 0
            if not rows and body is None and search.collections:
                self._check_collection(connection, request)
        features = [
            base.with_item_links(content, collection, id)
            for collection, id, _, content, _ in rows[: search.limit]
        ]
        links = [base.link("root"), *links]
        if body is None:
            asked = f"?{request.url.query}" if request.url.query else ""
            links.append({"rel": "self", "type": GEOJSON, "href": here + asked})
        if len(rows) > search.limit:
            collection, id, end, _, _ = rows[search.limit - 1]
            following = paging.encode(Cursor(end, collection, id), search, self.key)
            links.append(_next_link(request, here, following, body))
        reply = (
            b'{"type":"FeatureCollection","features":[%b],"links":%b,'
            b'"numberMatched":%d,"numberReturned":%d}'
            % (b",".join(features), orjson.dumps(links), matched, len(features))
        )
        return JSONBytes(base.resolve(reply), media_type=GEOJSON)

    def _check_collection(self, connection: Any, request: Request) -> None:
        """An empty page of a collection's items: is there such a collection at all?"""
        id = request.path_params.get("collection_id")
        if id is not None and not connection.scalar(
            select(collections_table.c.id).where(collections_table.c.id == id)
        ):
            raise _no_collection(id)


def _search(
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


def _stored_text(id: str) -> str:
    """An id from a path, as PostgreSQL takes it: it has no NUL, so nothing stored has one."""
    return id.replace("\0", "\ufffd")


def _words(text: str | None) -> list[str] | None:
    return [word.strip() for word in text.split(",")] if text else None


def _numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise BBoxError(
            f"bbox {text[:80]!r} is not understood; accepted: west,south,east,north in degrees"
        ) from None


def _geojson(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise GeometryError("intersects is not JSON; accepted: a GeoJSON geometry") from None
    if not isinstance(value, dict):
        raise GeometryError("intersects takes a GeoJSON geometry object")
    return value


def _check_query(request: Request, parameters: type[APIRequest]) -> None:
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


def _next_link(request: Request, here: str, token: str, body: SearchBody | None) -> Link:
    """The next page (STAC API - Item Search, Paging): for POST with the whole body, not merged."""
    link: Link = {"rel": "next", "type": GEOJSON}
    if body is not None:
        whole = {**body.model_dump(exclude_unset=True), "token": token}
        return link | {"method": "POST", "href": here, "body": whole}
    asked = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name != "token"
    ]
    return link | {"method": "GET", "href": f"{here}?{urlencode([*asked, ('token', token)])}"}


def _no_collection(id: str) -> NotFoundError:
    return NotFoundError(f"there is no collection {id[:100]!r}")
