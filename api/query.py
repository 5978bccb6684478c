"""STAC parameters, normalised, to SELECT statements; pure, for SQLite and PostgreSQL alike.

Items are ordered by ``end_datetime`` descending, then collection, then id, which is an index and a
total order: a page goes on after the last item of the one before (keyset), so that rows which come
or go in between neither repeat nor hide others.

The exact spatial predicate is ``ST_Intersects`` on both. PostGIS finds candidates by its GiST
index itself; on SQLite they come from the R*Tree, and what lies wholly within a bounding box is
taken without asking further.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Boolean, ColumnElement, Select, func, literal, or_, select, tuple_, union_all
from sqlalchemy.sql.selectable import FromClause

from firnline.api.area import Area
from firnline.tables import LIVING, Footprint, collections, items, items_rtree, to_microseconds

DEFAULT_LIMIT = 10
MAX_LIMIT = 10_000
_YEAR_2000 = 946_684_800_000_000  # microseconds since 1970: items_rtree counts days from there
_DAY = 86_400_000_000
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
        conditions += _meets(search.area, search, dialect)
    return conditions


def _meets(area: Area, search: Search, dialect: str) -> list[ColumnElement[bool]]:
    exact: ColumnElement[bool] = func.ST_Intersects(
        items.c.footprint, literal(area.wkb, Footprint()), type_=Boolean()
    )
    if dialect != "sqlite":
        return [exact]
    times = _in_time(search)
    tree = items_rtree.c
    near = [
        [tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south, *times]
        for west, south, east, north in area.boxes
    ]
    if area.rectangular:
        within = [
            [tree.west >= west, tree.east <= east, tree.south >= south, tree.north <= north, *times]
            for west, south, east, north in area.boxes
        ]
        exact = or_(items.c.key.in_(_keys(within)), exact)
    return [items.c.key.in_(_keys(near)), exact]


def _keys(boxes: Sequence[Sequence[ColumnElement[bool]]]) -> Select[Any]:
    """Keys of the items with a box in the R*Tree that meets any of the sets of conditions.

    A UNION, since an OR of boxes would make SQLite read the whole tree.
    """
    key = items_rtree.c.id.op(">>")(1)
    selects = [select(key.label("key")).where(*conditions) for conditions in boxes]
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery().c.key)


def _in_time(search: Search) -> list[ColumnElement[bool]]:
    """The search's interval in the R*Tree: coarse, never too narrow (32-bit floats)."""
    times = []
    if search.end is not None:
        times.append(items_rtree.c.start <= _days(search.end))
    if search.start is not None:
        times.append(items_rtree.c.end >= _days(search.start))
    return times


def _days(instant: datetime) -> float:
    return (to_microseconds(instant) - _YEAR_2000) / _DAY
