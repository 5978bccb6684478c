"""The SELECTs of a search; pure, for SQLite and PostgreSQL alike.

Items have a total order: the keys asked for (by default ``end_datetime``, the newest first), then
collection, then id. A page goes on after the last item of the one before (keyset), so that rows
which come or go in between neither repeat nor hide others.

There are two ways to a page. *Gathering* finds all matches through the indexes, counts them and
sorts them: best when they are few. *Walking* goes through the items in their order and stops when
the page is full: best when matches are many, and the only way that does not grow with their
number. :func:`firnline.api.matched.choose` picks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    union_all,
)
from sqlalchemy.sql.selectable import FromClause

from firnline.api import boxes, filter_sql
from firnline.api.searches import Shape, SortKey, Way, made_once
from firnline.properties import Number, Word
from firnline.tables import LIVING, collections, items

Rows: TypeAlias = "Select[*tuple[Any, ...]]"
_MOST: ColumnElement[int] = bindparam("most", type_=Integer())


@dataclass(frozen=True)
class _Key:
    """A column of the order."""

    column: ColumnElement[Any]
    descending: bool
    nullable: bool


@made_once
def page(shape: Shape, way: Way, dialect: str) -> Rows:
    """One row more than the page, if there is one.

    Columns: collection, id, content, matched (all matches; -1 when walking), and then the values
    of the order.
    """
    keys = _keys(shape.order)
    found = select(
        items.c.key,
        items.c.collection,
        items.c.id,
        *(key.column.label(f"k{n}") for n, key in enumerate(keys)),
    ).where(*conditions(shape, way, dialect))
    matched: ColumnElement[int] = literal(-1)
    chosen: FromClause
    if way is Way.GATHER:
        # Set apart, so that no database takes the index of the order, and the limit, for a hint.
        matches = found.cte("matches").prefix_with("MATERIALIZED")
        matched = select(func.count()).select_from(matches).scalar_subquery()
        columns = [_Key(matches.c[f"k{n}"], k.descending, k.nullable) for n, k in enumerate(keys)]
        rest = select(matches)
        if shape.after is not None:
            rest = rest.where(or_(*_seeks(columns, matches, shape.after)))
        chosen = _ordered(rest, columns, matches).limit(_MOST).subquery("page")
    elif shape.after is None:
        chosen = _ordered(found, keys, items).limit(_MOST).subquery("page")
    else:
        # A seek in the index for each column of the order. As one condition with OR, thousands of
        # items that end at the same instant would be walked through from the first for every page.
        seeks = [
            _ordered(found.where(seek), keys, items).limit(_MOST).subquery()
            for seek in _seeks(keys, items, shape.after)
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
    return _ordered(rows, places, chosen).limit(_MOST)


@made_once
def count(shape: Shape, dialect: str) -> Select[int]:
    """The number of all matches, whatever the page."""
    found = conditions(shape, Way.GATHER, dialect)
    return select(func.count()).select_from(items).where(*found)


def conditions(
    shape: Shape, way: Way, dialect: str, among: ColumnElement[bool] | None = None
) -> list[ColumnElement[bool]]:
    """What an item has to meet, put so that it can be looked up, or asked of one item at a time.

    On SQLite the area can be asked of some items at once, those that meet `among`.
    """
    met: list[ColumnElement[bool]] = [LIVING]
    if shape.collections:
        met.append(items.c.collection.in_(bindparam("collections", expanding=True)))
    elif shape.ids:  # names them all, so that the index (collection, id) serves
        met.append(items.c.collection.in_(select(collections.c.id)))
    if shape.ids:
        met.append(items.c.id.in_(bindparam("ids", expanding=True)))
    if shape.start:
        met.append(items.c.end_datetime >= bindparam("start"))
    if shape.end:
        met.append(items.c.start_datetime <= bindparam("end"))
    if shape.filter is not None:
        looked_up = way is Way.GATHER
        met.append(filter_sql.condition(shape.filter, dialect, looked_up=looked_up))
    if shape.words:
        met.append(or_(*(_has_word(word) for word in shape.words)))
    if shape.boxes and among is not None:
        met.append(boxes.found_among(boxes.asked(shape.boxes), among))
    elif shape.boxes and way is Way.WALK:
        met.append(boxes.relates("ST_Intersects", boxes.asked(shape.boxes)))
    elif shape.boxes:
        met.append(boxes.found(boxes.asked(shape.boxes), dialect, shape.start, shape.end))
    elif shape.in_tree and way is Way.GATHER and dialect == "sqlite":
        met.append(boxes.near(None, shape.start, shape.end))
    return met


def _has_word(word: str) -> ColumnElement[bool]:
    """Whether a word, of whatever case, is part of an item's own texts."""
    texts = (items.c.id, *(Word(items.c.properties, name) for name in ("title", "description")))
    return or_(*(text.icontains(word, autoescape=True) for text in texts))


def is_indexed(shape: Shape, dialect: str) -> bool:
    """Whether an index finds the matches: without one, gathering reads all items."""
    in_tree = shape.in_tree if dialect == "sqlite" else shape.boxes
    return bool(shape.ids or in_tree) or filter_sql.is_indexed(shape.filter)


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


def _seeks(keys: Sequence[_Key], source: Any, after: Sequence[bool]) -> list[ColumnElement[bool]]:
    """What comes after a cursor: one condition a column, that the earlier ones are equal in."""
    seeks: list[ColumnElement[bool]] = []
    equal: list[ColumnElement[bool]] = []
    for n, (key, is_given) in enumerate(zip(keys, after, strict=True)):
        if not is_given:  # nothing comes after a missing one, but others that miss it
            equal.append(key.column.is_(None))
            continue
        value = bindparam(f"after{n}", type_=key.column.type)
        later = key.column < value if key.descending else key.column > value
        seeks.append(and_(*equal, or_(later, key.column.is_(None)) if key.nullable else later))
        equal.append(key.column == value)
    # Not a comparison of rows, for which PostgreSQL leaves the order's index for that of the ids.
    collection, id = source.c.collection, source.c.id
    last = or_(collection > bindparam("after_collection"), id > bindparam("after_id"))
    return [*seeks, and_(*equal, collection >= bindparam("after_collection"), last)]
