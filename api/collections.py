"""Collection search: the collections of which something lies in an area, a time, or a text.

There are few collections, and their extents and texts are within their JSON: they are read in the
order of their ids and looked at one by one, on both databases alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
import shapely
from sqlalchemy import Connection, select

from firnline.api import paging, parameters
from firnline.api.matched import Matched
from firnline.api.paging import Place
from firnline.api.searches import Cursor, Search, Way
from firnline.errors import InputError, NotFoundError
from firnline.tables import collections


@dataclass(frozen=True)
class Page:
    """Ids and stored JSON of a page, the number of all that match, and the next page's token."""

    rows: list[tuple[str, bytes]]
    matched: int
    following: str | None


def find(connection: Connection, search: Search, token: str | None, key: bytes) -> Page:
    """A page of the collections that a search finds, by their ids.

    Of the search, area, start, end and words count, as STAC API - Collection Search has them:
    *any* of a collection's boxes intersects the area, *any* of its intervals overlaps the time,
    and *any* of the words is in its id, title, description or keywords, whatever their case.

    Raises
    ------
    TokenError
        This server did not make the token, or not for this search.
    """
    rows = connection.execute(
        select(collections.c.id, collections.c.content).order_by(collections.c.id)
    ).all()
    found = sorted((id, content) for id, content in rows if _meets(search, content))
    after = None if token is None else paging.decode(token, search, key).cursor.id
    rest = [row for row in found if after is None or row[0] > after]
    page = rest[: search.limit]
    following = None
    if len(rest) > len(page):
        place = Place(Cursor((), "", page[-1][0]), Way.WALK, Matched(len(found)))
        following = paging.encode(place, search, key)
    return Page(page, len(found), following)


def stored_collection(connection: Connection, id: str) -> bytes:
    """The stored JSON of a collection.

    Raises
    ------
    NotFoundError
        There is none of this id.
    """
    content = connection.scalar(
        select(collections.c.content).where(collections.c.id == parameters.stored_text(id))
    )
    if content is None:
        raise NotFoundError(f"there is no collection {id[:100]!r}")
    return bytes(content)


def check_known(connection: Connection, asked: Sequence[str]) -> None:
    """Refuse the parameter `collections` if it names one that there is not.

    Raises
    ------
    InputError
    """
    if not asked:
        return
    known = ids_of(connection, None)
    for id in asked:
        if id not in known:
            raise InputError(f"collections: there is no {id[:100]!r}; accepted: {', '.join(known)}")


def ids_of(connection: Connection, id: str | None) -> list[str]:
    """Ids of all collections, or the one that is given.

    Raises
    ------
    NotFoundError
        There is none of this id.
    """
    if id is None:
        return list(connection.scalars(select(collections.c.id).order_by(collections.c.id)))
    stored_collection(connection, id)
    return [id]


def _meets(search: Search, content: bytes) -> bool:
    if not (search.area or search.start or search.end or search.words):
        return True
    collection = orjson.loads(content)
    extent = collection["extent"]
    if search.area is not None:
        boxes = [each for box in extent["spatial"]["bbox"] for each in _boxes(box)]
        if not search.area.shape.intersects(shapely.union_all(boxes)):
            return False
    if not any(_overlaps(search, interval) for interval in extent["temporal"]["interval"]):
        return False
    return not search.words or _has_word(search.words, collection)


def _boxes(bbox: Sequence[float]) -> list[shapely.Geometry]:
    """A STAC bbox, of two or three dimensions, as one box, or two at the antimeridian."""
    half = len(bbox) // 2
    (west, south), (east, north) = bbox[:2], bbox[half : half + 2]
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    return [shapely.box(left, south, right, north) for left, right in spans]


def _overlaps(search: Search, interval: Sequence[str | None]) -> bool:
    first, last = (None if end is None else _instant(end) for end in interval)
    before = search.end is not None and first is not None and first > search.end
    after = search.start is not None and last is not None and last < search.start
    return not before and not after


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _has_word(words: Sequence[str], collection: Mapping[str, Any]) -> bool:
    texts = [collection.get(name, "") for name in ("id", "title", "description")]
    texts += collection.get("keywords", ())
    return any(word.casefold() in text.casefold() for word in words for text in texts)
