"""One page of a search: found, counted, and where the next one starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from sqlalchemy import Connection

from firnline.api import matched, paging, query
from firnline.api.matched import Matched, Plan
from firnline.api.paging import Place
from firnline.api.searches import Cursor, Search, Way


class Row(NamedTuple):
    """A stored item."""

    content: bytes
    collection: str
    id: str


@dataclass(frozen=True)
class Page:
    """Items of a page, the number of all matches, and the token of the next page or None."""

    rows: list[Row]
    matched: Matched
    following: str | None


def find(connection: Connection, search: Search, token: str | None, key: bytes) -> Page:
    """The first page of a search, or the one that a token stands for.

    Raises
    ------
    TokenError
        This server did not make the token, or not for this search.
    """
    if token:
        place = paging.decode(token, search, key)
        search = replace(search, after=place.cursor)
        since = matched.proceed(connection, search) if place.way is Way.GATHER else None
        plan = Plan(place.way, place.matched, since)
    else:
        plan = matched.choose(connection, search)
    number = plan.matched
    found: Sequence[Any] = []
    if plan.since is not None:  # the newest matches are those of a later interval
        found = _found(connection, replace(search, start=plan.since), plan.way)
    if len(found) <= search.limit:  # these are not enough for a page
        found = _found(connection, search, plan.way)
    rows = found[: search.limit]
    if not token:
        if len(found) <= search.limit:  # that is all
            number = Matched(len(rows))
        elif number is None:
            number = Matched(found[0].matched)
    assert number is not None
    following = None
    if len(found) > search.limit:
        collection, id, _, _, *values = rows[-1]
        place = Place(Cursor(tuple(values), collection, id), plan.way, number)
        following = paging.encode(place, search, key)
    return Page([Row(row.content, row.collection, row.id) for row in rows], number, following)


def _found(connection: Connection, search: Search, way: Way) -> Sequence[Any]:
    statement = query.page(search.shape, way, connection.dialect.name)
    return connection.execute(statement, search.values).all()
