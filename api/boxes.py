"""Where items are, asked of the database.

The predicate is ``ST_Intersects`` on both. PostGIS finds candidates by its GiST index itself; on
SQLite they come from the R*Tree and are tried all at once (``ST_Intersecting``), which takes a
third of the time that a call for each would.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Select, func, literal, select, union_all

from firnline.api.area import Area
from firnline.tables import Footprint, items, items_rtree, to_microseconds

_YEAR_2000 = 946_684_800_000_000  # microseconds since 1970: items_rtree counts days from there
_DAY = 86_400_000_000
Conditions = list[ColumnElement[bool]]


def relates(function: str, area: Area | None) -> ColumnElement[bool]:
    """A relation, as PostGIS names it, of an item to an area (None: to itself)."""
    asked = items.c.footprint if area is None else literal(area.wkb, Footprint())
    relation: ColumnElement[bool] = getattr(func, function)(
        items.c.footprint, asked, type_=Boolean()
    )
    return relation


def found(
    area: Area, dialect: str, start: datetime | None = None, end: datetime | None = None
) -> ColumnElement[bool]:
    """Whether an item intersects the area, looked up, with candidates in the interval only.

    It is true or false as the relation itself, also where it is negated.
    """
    if dialect != "sqlite":
        return relates("ST_Intersects", area)
    keys = select(func.ST_Intersecting(items.c.key, items.c.footprint, area.wkb)).where(
        near(area, start, end)
    )
    return items.c.key.in_(select(func.json_each(keys.scalar_subquery()).table_valued("value")))


def near(
    area: Area, start: datetime | None = None, end: datetime | None = None
) -> ColumnElement[bool]:
    """On SQLite: whether a box of the item meets one of the area, in the interval."""
    return items.c.key.in_(_keys([[*box, *_in_time(start, end)] for box in _near(area)]))


def overlapping(start: datetime | None, end: datetime | None) -> ColumnElement[bool]:
    """On SQLite: candidates for an interval, wherever they are."""
    return items.c.key.in_(_keys([_in_time(start, end)]))


def candidates(
    area: Area | None, start: datetime | None, end: datetime | None, most: int
) -> Select[Any]:
    """On SQLite: how many boxes are near the area and the interval, counted up to `most`."""
    boxes = [[*box, *_in_time(start, end)] for box in (_near(area) if area else [[]])]
    near = _keys(boxes).limit(most).subquery()
    return select(func.count()).select_from(near)


def _near(area: Area) -> list[Conditions]:
    tree = items_rtree.c
    return [
        [tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south]
        for west, south, east, north in area.boxes
    ]


def _in_time(start: datetime | None, end: datetime | None) -> Conditions:
    """An interval in the R*Tree: coarse, never too narrow (32-bit floats)."""
    times: Conditions = []
    if end is not None:
        times.append(items_rtree.c.start <= _days(end))
    if start is not None:
        times.append(items_rtree.c.end >= _days(start))
    return times


def _keys(sets: Sequence[Conditions]) -> Select[Any]:
    """Keys of the items with a box in the R*Tree that meets any of the sets of conditions.

    A UNION, since an OR of boxes would make SQLite read the whole tree.
    """
    key = items_rtree.c.id.op(">>")(1)
    selects = [select(key.label("key")).where(*conditions) for conditions in sets]
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery().c.key)


def _days(instant: datetime) -> float:
    return (to_microseconds(instant) - _YEAR_2000) / _DAY
