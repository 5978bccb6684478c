"""Where items are, asked of the database: the exact predicate, and what finds candidates for it.

The exact predicate is ``ST_Intersects`` on both. PostGIS finds candidates by its GiST index
itself; on SQLite they come from the R*Tree, and what lies wholly within a bounding box is taken
without asking further.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Select, func, literal, or_, select, union_all

from firnline.api.area import Area
from firnline.tables import Footprint, items, items_rtree, to_microseconds

_YEAR_2000 = 946_684_800_000_000  # microseconds since 1970: items_rtree counts days from there
_DAY = 86_400_000_000
Conditions = list[ColumnElement[bool]]


def intersects(area: Area) -> ColumnElement[bool]:
    """The exact predicate."""
    return func.ST_Intersects(items.c.footprint, literal(area.wkb, Footprint()), type_=Boolean())


def meets(area: Area, start: datetime | None, end: datetime | None, dialect: str) -> Conditions:
    """Items that intersect the area; candidates are looked up in the interval only."""
    exact = intersects(area)
    if dialect != "sqlite":
        return [exact]
    times = in_time(start, end)
    if area.rectangular:
        within = items.c.key.in_(_found([[*box, *times] for box in _within(area)]))
        exact = or_(within, exact)
    return [items.c.key.in_(_found([[*box, *times] for box in _near(area)])), exact]


def in_time(start: datetime | None, end: datetime | None) -> Conditions:
    """An interval in the R*Tree: coarse, never too narrow (32-bit floats)."""
    times: Conditions = []
    if end is not None:
        times.append(items_rtree.c.start <= _days(end))
    if start is not None:
        times.append(items_rtree.c.end >= _days(start))
    return times


def overlapping(start: datetime | None, end: datetime | None) -> ColumnElement[bool]:
    """On SQLite: candidates for an interval, wherever they are."""
    return items.c.key.in_(_found([in_time(start, end)]))


def _near(area: Area) -> list[Conditions]:
    tree = items_rtree.c
    return [
        [tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south]
        for west, south, east, north in area.boxes
    ]


def _within(area: Area) -> list[Conditions]:
    tree = items_rtree.c
    return [
        [tree.west >= west, tree.east <= east, tree.south >= south, tree.north <= north]
        for west, south, east, north in area.boxes
    ]


def _found(sets: Sequence[Conditions]) -> Select[Any]:
    """Keys of the items with a box in the R*Tree that meets any of the sets of conditions.

    A UNION, since an OR of boxes would make SQLite read the whole tree.
    """
    key = items_rtree.c.id.op(">>")(1)
    selects = [select(key.label("key")).where(*conditions) for conditions in sets]
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery().c.key)


def _days(instant: datetime) -> float:
    return (to_microseconds(instant) - _YEAR_2000) / _DAY
