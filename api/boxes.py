"""Which items lie in an area: the exact predicate, and on SQLite the R*Tree before it.

PostGIS finds candidates by its GiST index itself; on SQLite they come from the boxes of
:data:`firnline.tables.items_rtree`. Every item has a footprint and boxes, so "its boxes are near,
and it meets the area" is true or false like "it meets the area", also where it is negated.
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


def meets(
    area: Area, dialect: str, start: datetime | None = None, end: datetime | None = None
) -> list[ColumnElement[bool]]:
    """That the footprint intersects an area, as conditions that all hold.

    Parameters
    ----------
    start, end
        What the item's time must overlap is asked elsewhere; the R*Tree uses it already.
    """
    exact = relates("ST_Intersects", area)
    if dialect != "sqlite":
        return [exact]
    times = _in_time(start, end)
    tree = items_rtree.c
    if area.rectangular:
        within = [
            [tree.west >= west, tree.east <= east, tree.south >= south, tree.north <= north, *times]
            for west, south, east, north in area.boxes
        ]
        exact = or_(items.c.key.in_(_keys(within)), exact)
    return [near(area, *times), exact]


def relates(function: str, area: Area | None) -> ColumnElement[bool]:
    """A spatial relation, as PostGIS names it, of the footprint to an area (None: to itself)."""
    asked = items.c.footprint if area is None else literal(area.wkb, Footprint())
    relation: ColumnElement[bool] = getattr(func, function)(
        items.c.footprint, asked, type_=Boolean()
    )
    return relation


def near(area: Area, *times: ColumnElement[bool]) -> ColumnElement[bool]:
    """That a box of the item meets a box of the area, on SQLite."""
    tree = items_rtree.c
    boxes = [
        [tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south, *times]
        for west, south, east, north in area.boxes
    ]
    return items.c.key.in_(_keys(boxes))


def _keys(boxes: Sequence[Sequence[ColumnElement[bool]]]) -> Select[Any]:
    """Keys of the items with a box in the R*Tree that meets any of the sets of conditions.

    A UNION, since an OR of boxes would make SQLite read the whole tree.
    """
    key = items_rtree.c.id.op(">>")(1)
    selects = [select(key.label("key")).where(*conditions) for conditions in boxes]
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery().c.key)


def _in_time(start: datetime | None, end: datetime | None) -> list[ColumnElement[bool]]:
    """The interval in the R*Tree: coarse, never too narrow (32-bit floats)."""
    times = []
    if end is not None:
        times.append(items_rtree.c.start <= _days(end))
    if start is not None:
        times.append(items_rtree.c.end >= _days(start))
    return times


def _days(instant: datetime) -> float:
    return (to_microseconds(instant) - _YEAR_2000) / _DAY
