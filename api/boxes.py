"""Where items are, asked of the database.

The predicate is ``ST_Intersects`` on both. PostGIS finds candidates by its GiST index itself; on
SQLite they come from the R*Tree and are tried all at once (``ST_Intersecting``), which takes a
third of the time that a call for each would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Float,
    Integer,
    Select,
    bindparam,
    func,
    literal,
    select,
    union_all,
)

from firnline.api.area import Area
from firnline.tables import Footprint, items, items_rtree, to_microseconds

_YEAR_2000 = 946_684_800_000_000  # microseconds since 1970: items_rtree counts days from there
_DAY = 86_400_000_000
_SIDES = ("west", "south", "east", "north")


@dataclass(frozen=True)
class Asked:
    """An area as statements have it: its shape (WKB), and one or two boxes around it."""

    shape: ColumnElement[bytes]
    boxes: tuple[tuple[Any, ...], ...]


def given(area: Area) -> Asked:
    """An area within a statement."""
    return Asked(literal(area.wkb, Footprint()), area.boxes)


def asked(count: int) -> Asked:
    """Any area of so many boxes: a parameter of the statement, which :func:`values` fills in."""
    sides = tuple(tuple(bindparam(f"{s}{n}", type_=Float()) for s in _SIDES) for n in range(count))
    return Asked(bindparam("area", type_=Footprint()), sides)


def values(area: Area | None, start: datetime | None, end: datetime | None) -> dict[str, Any]:
    """The parameters of :func:`asked`, and of an interval."""
    values: dict[str, Any] = {}
    if area is not None:
        values["area"] = area.wkb
        for n, box in enumerate(area.boxes):
            values |= {f"{side}{n}": value for side, value in zip(_SIDES, box, strict=True)}
    if start is not None:
        values["first_day"] = days(start)
    if end is not None:
        values["last_day"] = days(end)
    return values


def relates(function: str, asked: Asked | None) -> ColumnElement[bool]:
    """A relation, as PostGIS names it, of an item to an area (None: to itself)."""
    other = items.c.footprint if asked is None else asked.shape
    relation: ColumnElement[bool] = getattr(func, function)(
        items.c.footprint, other, type_=Boolean()
    )
    return relation


def found(
    asked: Asked, dialect: str, start: bool = False, end: bool = False
) -> ColumnElement[bool]:
    """Whether an item intersects the area, looked up, with candidates in the interval only.

    It is true or false as the relation itself, also where it is negated.
    """
    if dialect != "sqlite":
        return relates("ST_Intersects", asked)
    keys = select(func.ST_Intersecting(items.c.key, items.c.footprint, asked.shape)).where(
        near(asked, start, end)
    )
    return items.c.key.in_(select(func.json_each(keys.scalar_subquery()).table_valued("value")))


def near(asked: Asked | None, start: bool = False, end: bool = False) -> ColumnElement[bool]:
    """On SQLite: whether a box of the item meets one of the area (None: any), in the interval."""
    return items.c.key.in_(_union(_boxes(asked, start, end, _KEY)))


def candidates(asked: Asked | None, start: bool, end: bool, until: bool) -> Select[Any]:
    """On SQLite: keys and ends (days) of boxes near the area and the interval, `enough` of them.

    Those that end later than `until` are left out where that is given.
    """
    selects = _boxes(asked, start, end, _KEY, items_rtree.c.end)
    if until:
        selects = [each.where(items_rtree.c.end <= _day("until")) for each in selects]
    near = _union(selects)
    return near.limit(bindparam("enough", type_=Integer()))


_KEY = items_rtree.c.id.op(">>")(1).label("key")


def _boxes(
    asked: Asked | None, start: bool, end: bool, *columns: ColumnElement[Any]
) -> list[Select[Any]]:
    """Boxes in the R*Tree that meet one of the area's, in the interval.

    The tree is coarse, but never too narrow (32-bit floats).
    """
    tree = items_rtree.c
    chosen = select(*columns)
    if start:
        chosen = chosen.where(tree.end >= _day("first_day"))
    if end:
        chosen = chosen.where(tree.start <= _day("last_day"))
    if asked is None:
        return [chosen]
    return [
        chosen.where(tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south)
        for west, south, east, north in asked.boxes
    ]


def _day(name: str) -> ColumnElement[float]:
    return bindparam(name, type_=Float())


def _union(selects: Sequence[Select[Any]]) -> Select[Any]:
    """A UNION, since an OR of boxes would make SQLite read the whole tree."""
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery())


def days(instant: datetime) -> float:
    """An instant as the R*Tree has it."""
    return (to_microseconds(instant) - _YEAR_2000) / _DAY


def instant(days: float) -> datetime:
    """The instant that the R*Tree has so, or the last of the calendar where it rounded beyond."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return start + min(timedelta(days=days), datetime.max.replace(tzinfo=UTC) - start)
