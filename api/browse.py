"""A collection's items as catalogs that lead to them (STAC API - Browseable).

Every item is reached from the landing page by `child` and `item` links: a collection has one child,
the catalog of all its items. A catalog of few items links to each; one of more divides them, in
the order of their ids, among children. A child's address names the ids between which its items
lie, so that it stays true while items come and go, and nothing is stored for it.
"""

from __future__ import annotations

import math
from typing import Annotated
from urllib.parse import urlencode

import attr
import orjson
from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Connection, Engine, func, select
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.collections import stored_collection
from firnline.api.links import GEOJSON, JSON, Base, JSONBytes, Link
from firnline.database import reading
from firnline.items import STAC_VERSION
from firnline.settings import Settings
from firnline.tables import LIVING, items

FEW = 1_000
"""A catalog has at most so many links to items, or to children."""


@attr.s
class BrowseParameters(APIRequest):
    """Path and query of GET /collections/{collection_id}/browse."""

    collection_id: Annotated[str, Path(description="Collection id")] = attr.ib()
    first: Annotated[
        str | None, Query(description="Only items from this id on; taken from a `child` link.")
    ] = attr.ib(default=None)
    before: Annotated[
        str | None, Query(description="Only items before this id; taken from a `child` link.")
    ] = attr.ib(default=None)


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The route of the catalogs of items."""
    router = APIRouter(tags=["Browsing"])

    @router.get(
        "/collections/{collection_id}/browse",
        summary="A catalog that leads to the items of a collection",
        response_class=Response,
        responses={200: {"description": "A STAC catalog", "content": {JSON: {}}}},
    )
    def browse(
        request: Request, asked: Annotated[BrowseParameters, Depends(BrowseParameters)]
    ) -> Response:
        """Leads to the items by `item` links, or by `child` links to catalogs of fewer."""
        parameters.check_query(request, BrowseParameters)
        base = Base.of(request, settings.public_url)
        collection = asked.collection_id
        with reading(engine) as connection:
            stored_collection(connection, collection)
            links = _links(connection, base, collection, asked.first, asked.before)
        whole = asked.first is None and asked.before is None
        here, query = f"{base.collection(collection)}/browse", request.url.query
        title = f"Items of {collection}"
        if not whole:
            title += f", from {asked.first or 'the first'} to before {asked.before or 'the end'}"
        document = {
            "type": "Catalog",
            "stac_version": STAC_VERSION,
            "id": "/".join([collection, "items", *filter(None, (asked.first, asked.before))]),
            "title": title,
            "description": f"{title}, in the order of their ids.",
            "links": [
                {"rel": "self", "type": JSON, "href": f"{here}?{query}" if query else here},
                base.link("root"),
                {
                    "rel": "parent",
                    "type": JSON,
                    "href": base.collection(collection) if whole else here,
                },
                *links,
            ],
        }
        return JSONBytes(orjson.dumps(document))

    return router


def _links(
    connection: Connection, base: Base, collection: str, first: str | None, before: str | None
) -> list[Link]:
    """To the items between two ids, or to catalogs that divide them."""
    within = [items.c.collection == parameters.stored_text(collection)]
    if first is not None:
        within.append(items.c.id >= parameters.stored_text(first))
    if before is not None:
        within.append(items.c.id < parameters.stored_text(before))
    # Retired ones are counted too: only so an index tells, and no item is read for it.
    count = connection.scalar(select(func.count()).select_from(items).where(*within)) or 0
    if count <= FEW:
        ids = connection.scalars(select(items.c.id).where(*within, LIVING).order_by(items.c.id))
        return [
            {"rel": "item", "type": GEOJSON, "href": base.item(collection, id), "title": id}
            for id in ids
        ]
    size = max(FEW, math.ceil(count / FEW))
    place = (func.row_number().over(order_by=items.c.id) - 1).label("place")
    numbered = select(items.c.id, place).where(*within).subquery()
    starts = connection.scalars(
        select(numbered.c.id).where(numbered.c.place % size == 0).order_by(numbered.c.place)
    ).all()
    edges = [first, *starts[1:], before]
    return [_child(base, collection, start, *edges[n : n + 2]) for n, start in enumerate(starts)]


def _child(base: Base, collection: str, start: str, first: str | None, before: str | None) -> Link:
    ends = {"first": first, "before": before}
    query = urlencode({name: id for name, id in ends.items() if id is not None})
    href = f"{base.collection(collection)}/browse?{query}"
    return {"rel": "child", "type": JSON, "href": href, "title": f"From {start}"}
