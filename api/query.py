"""A search in normal form, and its SELECTs; pure, for SQLite and PostgreSQL alike.

Items have a total order: the keys asked for (by default ``end_datetime``, the newest first), then
collection, then id. A page goes on after the last item of the one before (keyset), so that rows
which come or go in between neither repeat nor hide others.

There are two ways to a page. *Gathering* finds all matches through the indexes, counts them and
sorts them: best when they are few. *Walking* goes through the items in their order and stops when
the page is full: best when matches are many, and the only way that does not grow with their
number. :func:`firnline.api.matched.choose` picks one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql.selectable import FromClause

from firnline.api import boxes, filter_sql
from firnline.api.area import Area
from firnline.api.filter_nodes import Node
from firnline.properties import Number, Word
from firnline.tables import LIVING, collections, items

DEFAULT_LIMIT = 10
MAX_LIMIT = 10_000
Rows: TypeAlias = "Select[*tuple[Any, ...]]"
Value: TypeAlias = "datetime | float | str | None"


@dataclass(frozen=True)
class SortKey:
    """One key of an order.

    `field` is ``id``, ``collection``, ``start_datetime``, ``end_datetime``, ``datetime`` (which
    is the end: all items have one) or a property. Items without the property come last, whichever
    the direction.
    """

    field: str
    descending: bool = False


NEWEST = (SortKey("end_datetime", descending=True),)


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the place of its last item in the order."""

    values: tuple[Value, ...]
    """Of the columns that :func:`order_columns` makes of the sort keys."""
    collection: str
    id: str


class Way(Enum):
    """How a page is found."""

    GATHER = "gather"
    WALK = "walk"


@dataclass(frozen=True)
class Search:
    """A search in normal form.

    An empty `collections` or `ids` restricts nothing. `start` and `end` bound the items whose own
    interval *overlaps* them, both inclusive. `filter` is CQL2 JSON that was checked; an item has
    at least one of the `words` in its id, title or description.
    """

    collections: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    area: Area | None = None
    start: datetime | None = None
    end: datetime | None = None
    filter: Node | None = None
    words: tuple[str, ...] = ()
    order: tuple[SortKey, ...] = NEWEST
    limit: int = DEFAULT_LIMIT
    after: Cursor | None = None

    @property
    def fingerprint(self) -> bytes:
        """What tells one set of matches, and their order, from another: all but the page."""
        words = (
            sorted(self.collections),
            sorted(self.ids),
            str(self.start),
            str(self.end),
            self.filter,
            sorted(self.words),
            self.order,
        )
        area = self.area.wkb if self.area else b""
        return hashlib.blake2b(repr(words).encode() + area, digest_size=16).digest()

    @property
    def bare(self) -> bool:
        """Whether nothing but collections restricts it."""
        return not (
            self.ids or self.area or self.start or self.end or self.words or self.filter is not None
        )


@dataclass(frozen=True)
class _Key:
    """A column of the order."""

    column: ColumnElement[Any]
    descending: bool
    nullable: bool


def page(search: Search, way: Way, dialect: str) -> Rows:
    """One row more than the page, if there is one.

    Columns: collection, id, content, matched (all matches; -1 when walking), and then the values
    of the order.
    """
    keys = _keys(search.order)
    found = select(
        items.c.key,
        items.c.collection,
        items.c.id,
        *(key.column.label(f"k{n}") for n, key in enumerate(keys)),
    ).where(*conditions(search, way, dialect))
    matched: ColumnElement[int] = literal(-1)
    chosen: FromClause
    if way is Way.GATHER:
        # Set apart, so that no database takes the index of the order, and the limit, for a hint.
        matches = found.cte("matches").prefix_with("MATERIALIZED")
        matched = select(func.count()).select_from(matches).scalar_subquery()
        columns = [_Key(matches.c[f"k{n}"], k.descending, k.nullable) for n, k in enumerate(keys)]
        rest = select(matches)
        if search.after is not None:
            rest = rest.where(or_(*_seeks(columns, matches, search.after)))
        chosen = _ordered(rest, columns, matches).limit(search.limit + 1).subquery("page")
    elif search.after is None:
        chosen = _ordered(found, keys, items).limit(search.limit + 1).subquery("page")
    else:
        # A seek in the index for each column of the order. As one condition with OR, thousands of
        # items that end at the same instant would be walked through from the first for every page.
        seeks = [
            _ordered(found.where(seek), keys, items).limit(search.limit + 1).subquery()
            for seek in _seeks(keys, items, search.after)
        ]
        chosen = union_all(*(select(seek) for seek in seeks)).subquery("page")
    places = [_Key(chosen.c[f"k{n}"], k.descending, k.nullable) for n, k in enumerate(keys)]
    rows = select(
        chosen.c.collection,
        chosen.c.id,
        items.c.content,
        matched.label("matched"),
        *(place.column for place in places),
    ).join(chosen, chosen.c.key == items.c.key)
    return _ordered(rows, places, chosen).limit(search.limit + 1)


def count(search: Search, dialect: str) -> Select[int]:
    """The number of all matches, whatever the page."""
    found = conditions(search, Way.GATHER, dialect)
    return select(func.count()).select_from(items).where(*found)


def conditions(search: Search, way: Way, dialect: str) -> list[ColumnElement[bool]]:
    """What an item has to meet, put so that it can be looked up, or asked of one item at a time."""
    met: list[ColumnElement[bool]] = [LIVING]
    if search.collections:
        met.append(items.c.collection.in_(search.collections))
    elif search.ids:  # names them all, so that the index (collection, id) serves
        met.append(items.c.collection.in_(select(collections.c.id)))
    if search.ids:
        met.append(items.c.id.in_(search.ids))
    if search.start is not None:
        met.append(items.c.end_datetime >= search.start)
    if search.end is not None:
        met.append(items.c.start_datetime <= search.end)
    if search.filter is not None:
        looked_up = way is Way.GATHER
        met.append(filter_sql.condition(search.filter, dialect, looked_up=looked_up))
    if search.words:
        met.append(or_(*(_has_word(word) for word in search.words)))
    if search.area is not None and way is Way.WALK:
        met.append(boxes.relates("ST_Intersects", search.area))
    elif search.area is not None:
        met.append(boxes.found(search.area, dialect, search.start, search.end))
    elif (search.start or search.end) and way is Way.GATHER and dialect == "sqlite":
        met.append(boxes.overlapping(search.start, search.end))
    return met


def _has_word(word: str) -> ColumnElement[bool]:
    """Whether a word, of whatever case, is part of an item's own texts."""
    texts = (items.c.id, *(Word(items.c.properties, name) for name in ("title", "description")))
    return or_(*(text.icontains(word, autoescape=True) for text in texts))


def is_indexed(search: Search, dialect: str) -> bool:
    """Whether an index finds the matches: without one, gathering reads all items."""
    in_time = bool(search.start or search.end) and dialect == "sqlite"
    return bool(search.ids or search.area or in_time) or filter_sql.is_indexed(search.filter)


def _keys(order: Sequence[SortKey]) -> list[_Key]:
    columns = {
        "id": items.c.id,
        "collection": items.c.collection,
        "start_datetime": items.c.start_datetime,
        "end_datetime": items.c.end_datetime,
        "datetime": items.c.end_datetime,
    }
    keys = []
    for key in order:
        if key.field in columns:
            keys.append(_Key(columns[key.field], key.descending, nullable=False))
        else:  # numbers before words: a property may be either
            for kind in (Number, Word):
                column = kind(items.c.properties, key.field)
                keys.append(_Key(column, key.descending, nullable=True))
    return keys


def _ordered(rows: Rows, keys: Sequence[_Key], source: Any) -> Rows:
    order: list[ColumnElement[Any]] = []
    for key in keys:
        if key.nullable:
            order.append(case((key.column.is_(None), 1), else_=0))
        order.append(key.column.desc() if key.descending else key.column)
    return rows.order_by(*order, source.c.collection, source.c.id)


def _seeks(keys: Sequence[_Key], source: Any, after: Cursor) -> list[ColumnElement[bool]]:
    """What comes after `after`: one condition a column, that the earlier ones are equal in."""
    seeks: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for key, value in zip(keys, after.values, strict=True):
        if value is None:  # nothing comes after a missing one, but others that miss it
            equal.append(key.column.is_(None))
            continue
        later = key.column < value if key.descending else key.column > value
        seeks.append(and_(*equal, or_(later, key.column.is_(None)) if key.nullable else later))
        equal.append(key.column == value)
    # Not a comparison of rows, for which PostgreSQL leaves the order's index for that of the ids.
    collection, id = source.c.collection, source.c.id
    last = or_(collection > after.collection, id > after.id)
    return [*seeks, and_(*equal, collection >= after.collection, last)]
