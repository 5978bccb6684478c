"""STAC parameters, normalised, to SELECT statements; pure, for SQLite and PostgreSQL alike.

Items are ordered by ``end_datetime`` descending, then collection, then id, which is an index and a
total order: a page goes on after the last item of the one before (keyset), so that rows which come
or go in between neither repeat nor hide others.

The spatial condition is that of :mod:`firnline.api.boxes`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, func, literal, or_, select, tuple_, union_all
from sqlalchemy.sql.selectable import FromClause

from firnline.api import boxes
from firnline.api.area import Area
from firnline.tables import LIVING, collections, items

DEFAULT_LIMIT = 10
MAX_LIMIT = 10_000
Rows: TypeAlias = "Select[*tuple[Any, ...]]"


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the place of its last item in the order."""

    end: datetime
    collection: str
    id: str


@dataclass(frozen=True)
class Search:
    """A search in normal form.

    An empty `collections` or `ids` restricts nothing. `start` and `end` bound the items whose own
    interval *overlaps* them, both inclusive.
    """

    collections: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    area: Area | None = None
    start: datetime | None = None
    end: datetime | None = None
    limit: int = DEFAULT_LIMIT
    after: Cursor | None = None

    @property
    def fingerprint(self) -> bytes:
        """What tells one set of matches from another: all but the page."""
        words = (sorted(self.collections), sorted(self.ids), str(self.start), str(self.end))
        area = self.area.wkb if self.area else b""
        return hashlib.blake2b(repr(words).encode() + area, digest_size=16).digest()


def page(search: Search, dialect: str) -> Rows:
    """One row more than the page, if there is one: collection, id, end, content, matched.

    With an area, the number of all matches comes along, so that the exact predicate runs once for
    each candidate; otherwise `matched` is -1, and :func:`count` answers from an index.
    """
    found = _found(search, dialect)
    matched: ColumnElement[int] = literal(-1)
    chosen: FromClause
    if search.area is not None:
        matches = found.cte("matches")
        matched = select(func.count()).select_from(matches).scalar_subquery()
        rest = select(matches)
        if search.after is not None:
            rest = rest.where(or_(_later(matches, search.after), _tied(matches, search.after)))
        chosen = _newest(rest, matches, search.limit).subquery("page")
    elif search.after is None:
        chosen = _newest(found, items, search.limit).subquery("page")
    else:
        # Two seeks in the index. As one condition with OR, thousands of items that end at the
        # same instant would be walked through from the first for every page.
        seeks = [
            _newest(found.where(condition), items, search.limit).subquery()
            for condition in (_tied(items, search.after), _later(items, search.after))
        ]
        chosen = union_all(*(select(seek) for seek in seeks)).subquery("page")
    rows = select(items.c.collection, items.c.id, items.c.end_datetime, items.c.content, matched)
    return _newest(rows.join(chosen, chosen.c.key == items.c.key), items, search.limit)


def count(search: Search, dialect: str) -> Select[int]:
    """The number of all matches, whatever the page."""
    return select(func.count()).select_from(items).where(*_conditions(search, dialect))


def _found(search: Search, dialect: str) -> Rows:
    order = (items.c.key, items.c.end_datetime, items.c.collection, items.c.id)
    return select(*order).where(*_conditions(search, dialect))


def _newest(rows: Rows, source: FromClause, limit: int) -> Rows:
    order = (source.c.end_datetime.desc(), source.c.collection, source.c.id)
    return rows.order_by(*order).limit(limit + 1)


def _later(source: FromClause, after: Cursor) -> ColumnElement[bool]:
    return source.c.end_datetime < after.end


def _tied(source: FromClause, after: Cursor) -> ColumnElement[bool]:
    return (source.c.end_datetime == after.end) & (
        tuple_(source.c.collection, source.c.id) > tuple_(after.collection, after.id)
    )


def _conditions(search: Search, dialect: str) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if search.area is None or dialect != "sqlite":
        # The R*Tree has no boxes of retired items, and the column lies behind the content: to
        # read it for each candidate would be to read each candidate's pages.
        conditions.append(LIVING)
    if search.collections:
        conditions.append(items.c.collection.in_(search.collections))
    elif search.ids:  # names them all, so that the index (collection, id) serves
        conditions.append(items.c.collection.in_(select(collections.c.id)))
    if search.ids:
        conditions.append(items.c.id.in_(search.ids))
    if search.start is not None:
        conditions.append(items.c.end_datetime >= search.start)
    if search.end is not None:
        conditions.append(items.c.start_datetime <= search.end)
    if search.area is not None:
        conditions += boxes.meets(search.area, dialect, search.start, search.end)
    return conditions
