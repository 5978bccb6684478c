"""Links, which are not stored but made at reply, and spliced into the stored bytes.

Two conventions of stored documents (items and collections, UTF-8 JSON without white space between
tokens):

- They have no links, or *end* with a member ``links`` that holds only what can't be inferred, as
  ``derived_from`` or ``license``: ``{...,"links":[...]}``. The inferred ones go before these.
- A string that starts with ``firnline:/`` is an address of this service, whatever its address is
  today: ``"href":"firnline:/files/ID/GENERATION/cog_v.tif"`` leaves as
  ``"href":"https://example.org/files/ID/GENERATION/cog_v.tif"``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import quote

import orjson
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from firnline.api.conditional import not_modified, tag_of
from firnline.items import is_orderable

JSON = "application/json"
GEOJSON = "application/geo+json"
OPENAPI = "application/vnd.oai.openapi+json;version=3.0"
HTML = "text/html"
SCHEMA = "application/schema+json"
REL_PROCESSES = "http://www.opengis.net/def/rel/ogc/1.0/processes"
REL_JOBS = "http://www.opengis.net/def/rel/ogc/1.0/job-list"
REL_MONITOR = "monitor"  # RFC 5989
REL_RESULTS = "http://www.opengis.net/def/rel/ogc/1.0/results"
REL_EXECUTE = "http://www.opengis.net/def/rel/ogc/1.0/execute"
REL_QUERYABLES = "http://www.opengis.net/def/rel/ogc/1.0/queryables"
REL_SORTABLES = "http://www.opengis.net/def/rel/ogc/1.0/sortables"

Link = dict[str, Any]
_ORDER = (
    b',{"rel":"order","type":"application/json","href":"%b/processes/materialise",'
    b'"title":"How to materialise a part of it"}'
)
_OWN = b'"links":['


class JSONBytes(Response):
    """A reply of bytes that are JSON already.

    Caches have to ask again, or QGIS would go on showing pages of yesterday; what has not changed
    is not sent again.
    """

    media_type = JSON

    def __init__(self, content: bytes, status: int = 200, media_type: str = JSON) -> None:
        headers = {"Cache-Control": "no-cache", "ETag": tag_of(content)}
        super().__init__(content, status, headers, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or 304 to a GET that has it."""
        asked = Headers(scope=scope)
        conditional = scope["method"] in ("GET", "HEAD") and self.status_code == 200
        short = not_modified(asked, self) if conditional else None
        if short is not None:  # as the whole reply has it where it is compressed
            short.headers.add_vary_header("Accept-Encoding")
        await (super().__call__ if short is None else short)(scope, receive, send)


@dataclass(frozen=True)
class Base:
    """The address of this service, without a slash at its end."""

    url: str

    @classmethod
    def of(cls, request: Request, public_url: str) -> Base:
        """The public URL if one is set; else what the request came to.

        The server applies forwarded headers of proxies that it trusts (uvicorn's
        ``--proxy-headers``) and its root path before, once.
        """
        return cls((public_url or str(request.base_url)).rstrip("/"))

    @cached_property
    def json(self) -> bytes:
        """The URL, escaped as within a JSON string."""
        return orjson.dumps(self.url)[1:-1]

    def resolve(self, document: bytes) -> bytes:
        """Stored bytes with the addresses of this service made absolute."""
        return document.replace(b'"firnline:/', b'"' + self.json + b"/")

    def collection(self, id: str) -> str:
        """Address of a collection."""
        return f"{self.url}/collections/{quote(id, safe='')}"

    def item(self, collection: str, id: str) -> str:
        """Address of an item."""
        return f"{self.collection(collection)}/items/{quote(id, safe='')}"

    def link(self, rel: str, path: str = "", type: str = JSON, **more: object) -> Link:
        """A link to a path of this service."""
        return {"rel": rel, "type": type, "href": self.url + (path or "/"), **more}

    def extension_links(self, within: str = "") -> list[Link]:
        """Queryables, sortables and aggregations, of all items or (the path of) a collection."""
        return [
            self.link(REL_QUERYABLES, f"{within}/queryables", SCHEMA, title="Queryables"),
            self.link(REL_SORTABLES, f"{within}/sortables", SCHEMA, title="Sortables"),
            self.link("aggregations", f"{within}/aggregations", title="Aggregations there are"),
            *(
                self.link("aggregate", f"{within}/aggregate", title="Aggregations", method=method)
                for method in ("GET", "POST")
            ),
        ]

    def with_item_links(self, content: bytes, collection: str, id: str) -> bytes:
        """An item with self, parent, collection and root (STAC API - Features, Item links).

        What can be materialised also links to what tells how (Order extension).
        """
        before, after = _item_links(self.json, collection, is_orderable(collection, id))
        return _spliced(content, before + quote(id, safe="").encode() + after)

    def with_collection_links(self, content: bytes, id: str) -> bytes:
        """A collection with self, parent, root, items, a child that leads to them, and the rest."""
        here = self.collection(id)
        links = [
            {"rel": "self", "type": JSON, "href": here},
            self.link("parent"),
            self.link("root"),
            {"rel": "items", "type": GEOJSON, "href": f"{here}/items"},
            {"rel": "child", "type": JSON, "href": f"{here}/browse", "title": f"Items of {id}"},
            *self.extension_links(here.removeprefix(self.url)),
        ]
        return _spliced(content, orjson.dumps(links)[1:-1])


@lru_cache(maxsize=64)
def _item_links(base: bytes, collection: str, orderable: bool) -> tuple[bytes, bytes]:
    """The links of any item of a collection, before its id and after it."""
    place = b"%b/collections/%b" % (base, quote(collection, safe="").encode())
    return (
        b'{"rel":"self","type":"application/geo+json","href":"%b/items/' % place,
        b'"},{"rel":"parent","type":"application/json","href":"%b"},'
        b'{"rel":"collection","type":"application/json","href":"%b"},'
        b'{"rel":"root","type":"application/json","href":"%b/"}%b'
        % (place, place, base, _ORDER % base if orderable else b""),
    )


def _spliced(content: bytes, links: bytes) -> bytes:
    at = content.rfind(_OWN)
    if at >= 0 and _is_last_member(content, at):
        at += len(_OWN)
        comma = b"" if content[at : at + 1] == b"]" else b","
        return content[:at] + links + comma + content[at:]
    return content[:-1] + b',"links":[' + links + b"]}"


def _is_last_member(content: bytes, at: int) -> bool:
    """Whether what starts at `at` is the document's own last member, not one deeper inside."""
    try:
        orjson.loads(b"{" + content[at:])
    except orjson.JSONDecodeError:
        return False
    return True
