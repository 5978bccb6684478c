"""The STAC client of stac-fastapi: parameters in, stored bytes out.

Each method normalises its parameters once at the door, lets ``firnline.api.query`` build the
SELECT, and joins the stored bytes of the items into one reply: no model is made of what goes out
(100 items as dicts cost 26-48 ms of CPU, as bytes 1 ms).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl, urlencode

import attr
import orjson
from sqlalchemy import Engine, select
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import collections, pages, paging, parameters
from firnline.api.fields import Fields
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
from firnline.database import get_item, reading
from firnline.errors import InputError, NotFoundError
from firnline.settings import Settings
from firnline.tables import collections as collections_table

STAC_VERSION = "1.1.0"


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
    collections_key: bytes = attr.ib(init=False)

    def __attrs_post_init__(self) -> None:
        self.key = paging.key_for(self.settings.database)
        # Of its own: a token of collections is none of items.
        self.collections_key = paging.key_for(f"collections of {self.settings.database}")

    def landing_page(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /: a STAC catalog with the links that clients start from (STAC API - Core)."""
        parameters.check_query(kwargs["request"], APIRequest)
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
                *base.extension_links(),
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
        parameters.check_query(kwargs["request"], APIRequest)
        return JSONBytes(orjson.dumps({"conformsTo": self.conformance_classes()}))

    def all_collections(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /collections: all of them, or those that a collection search finds."""
        request: Request = kwargs["request"]
        parameters.check_query(request, parameters.CollectionsParameters)
        base = self._base(request)
        asked = parameters.as_body(kwargs, parameters.SearchBody)
        search = parameters.normalised(asked)
        with reading(self.engine) as connection:
            page = collections.find(connection, search, asked.token, self.collections_key)
        here = f"{base.url}/collections"
        query = f"?{request.url.query}" if request.url.query else ""
        links: list[Link] = [
            {"rel": "self", "type": JSON, "href": here + query},
            base.link("root"),
            base.link("parent"),
        ]
        if page.following is not None:
            links.append(_next_link(request, here, page.following, asked, JSON))
        each = b",".join(base.with_collection_links(content, id) for id, content in page.rows)
        body = b'{"collections":[%b],"links":%b,"numberMatched":%d,"numberReturned":%d}' % (
            each,
            orjson.dumps(links),
            page.matched,
            len(page.rows),
        )
        return JSONBytes(base.resolve(body))

    def get_collection(  # type: ignore[override]
        self, collection_id: str, **kwargs: Any
    ) -> Response:
        """GET /collections/{collection_id}."""
        parameters.check_query(kwargs["request"], APIRequest)
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            content = collections.stored_collection(connection, collection_id)
        return JSONBytes(base.resolve(base.with_collection_links(content, collection_id)))

    def get_item(  # type: ignore[override]
        self, item_id: str, collection_id: str, **kwargs: Any
    ) -> Response:
        """GET /collections/{collection_id}/items/{item_id}."""
        parameters.check_query(kwargs["request"], APIRequest)
        base = self._base(kwargs["request"])
        with reading(self.engine) as connection:
            content = get_item(
                connection, parameters.stored_text(collection_id), parameters.stored_text(item_id)
            )
        if content is None:
            raise NotFoundError(
                f"there is no item {item_id[:100]!r} in collection {collection_id[:100]!r}"
            )
        item = base.with_item_links(content, collection_id, item_id)
        return JSONBytes(base.resolve(item), media_type=GEOJSON)

    def item_collection(  # type: ignore[override]
        self, collection_id: str, collections: str | None = None, **kwargs: Any
    ) -> Response:
        """GET /collections/{collection_id}/items."""
        request: Request = kwargs["request"]
        parameters.check_query(request, parameters.ItemsParameters)
        if collections and collection_id not in collections.split(","):
            raise InputError(f"collections: these are the items of {collection_id[:100]!r} only")
        base = self._base(request)
        asked = parameters.as_body(kwargs, parameters.SearchBody)
        asked.collections = [parameters.stored_text(collection_id)]
        here = base.collection(collection_id)
        links: list[Link] = [
            {"rel": "collection", "type": JSON, "href": here},
            {"rel": "parent", "type": JSON, "href": here},
        ]
        return self._page(request, base, asked, f"{here}/items", links)

    def get_search(self, **kwargs: Any) -> Response:  # type: ignore[override]
        """GET /search."""
        request: Request = kwargs["request"]
        parameters.check_query(request, parameters.SearchParameters)
        base = self._base(request)
        asked = parameters.as_body(kwargs, parameters.SearchBody)
        return self._page(request, base, asked, f"{base.url}/search")

    def post_search(  # type: ignore[override]
        self, search_request: parameters.SearchBody, **kwargs: Any
    ) -> Response:
        """POST /search; what is asked is in its body."""
        parameters.check_query(kwargs["request"], APIRequest)
        base = self._base(kwargs["request"])
        return self._page(kwargs["request"], base, search_request, f"{base.url}/search")

    def _base(self, request: Request) -> Base:
        return Base.of(request, self.settings.public_url)

    def _page(
        self,
        request: Request,
        base: Base,
        asked: parameters.SearchBody,
        here: str,
        links: Iterable[Link] = (),
    ) -> Response:
        """One page of a search as GeoJSON.

        numberMatched counts all matches and numberReturned the page (OGC API - Features,
        /req/core/fc-numberMatched, -numberReturned). Of a large catalog the first may be an
        estimate: `firnline:numberMatchedError` is then there, and says how far off it may be.
        """
        search = parameters.normalised(asked)
        fields = parameters.fields(asked)
        with reading(self.engine) as connection:
            if "collection_id" not in request.path_params:
                collections.check_known(connection, search.collections)
            found = pages.find(connection, search, asked.token, self.key)
            if not found.rows and "collection_id" in request.path_params:
                # No items: is there such a collection at all?
                collections.stored_collection(connection, request.path_params["collection_id"])
        features = [
            _pruned(base, row, fields) if fields else base.with_item_links(*row)
            for row in found.rows
        ]
        links = [base.link("root"), *links]
        if request.method == "GET":
            query = f"?{request.url.query}" if request.url.query else ""
            links.append({"rel": "self", "type": GEOJSON, "href": here + query})
        if found.following is not None:
            links.append(_next_link(request, here, found.following, asked))
        matched = b'"numberMatched":%d' % found.matched.number
        if found.matched.error:
            matched += b',"firnline:numberMatchedError":%d' % found.matched.error
        reply = (
            b'{"type":"FeatureCollection","features":[%b],"links":%b,%b,"numberReturned":%d}'
            % (
                b",".join(features),
                orjson.dumps(links),
                matched,
                len(features),
            )
        )
        return JSONBytes(base.resolve(reply), media_type=GEOJSON)


def _pruned(base: Base, row: pages.Row, fields: Fields) -> bytes:
    """An item with the members that were asked for."""
    item = fields.of_item(orjson.loads(row.content))
    content = orjson.dumps(item)
    if not fields.has("links"):
        return content
    return base.with_item_links(content, row.collection, row.id)


def _next_link(
    request: Request,
    here: str,
    token: str,
    asked: parameters.SearchBody,
    type: str = GEOJSON,
) -> Link:
    """The next page (STAC API - Item Search, Paging): for POST with the whole body, not merged."""
    link: Link = {"rel": "next", "type": type}
    if request.method == "POST":
        whole = {**asked.model_dump(exclude_unset=True, by_alias=True), "token": token}
        return link | {"method": "POST", "href": here, "body": whole}
    query = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name != "token"
    ]
    return link | {"method": "GET", "href": f"{here}?{urlencode([*query, ('token', token)])}"}
