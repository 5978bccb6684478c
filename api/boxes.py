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
from firnline.tables import Footprint, items, items_rtree, to_microseconds, tree_time

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
        values["first_year"] = years(start)
    if end is not None:
        values["last_year"] = years(end)
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
    return found_among(asked, near(asked, start, end))


def found_among(asked: Asked, candidates: ColumnElement[bool]) -> ColumnElement[bool]:
    """On SQLite: whether an item is one of the candidates and intersects the area."""
    keys = select(func.ST_Intersecting(items.c.key, items.c.footprint, asked.shape))
    keys = keys.where(candidates)
    return items.c.key.in_(select(func.json_each(keys.scalar_subquery()).table_valued("value")))


def near(asked: Asked | None, start: bool = False, end: bool = False) -> ColumnElement[bool]:
    """On SQLite: whether a box of the item meets one of the area (None: any), in the interval."""
    return items.c.key.in_(_union(_boxes(asked, start, end, _KEY)))


def count(asked: Asked | None, start: bool, end: bool, until: bool) -> Select[int]:
    """On SQLite: how many boxes are near the area and in the interval, or `enough`.

    Those that end later than `until` are left out where that is given.
    """
    boxes = _union(_until(_boxes(asked, start, end, items_rtree.c.id), until))
    return select(func.count()).select_from(
        boxes.limit(bindparam("enough", type_=Integer())).subquery()
    )


def sample(asked: Asked | None, start: bool, end: bool, until: bool) -> Select[Any]:
    """Keys and ends (years) of some of these boxes: of the part `share` of 2**32 of all keys.

    By the fraction of the key's multiple of the golden ratio (D. Knuth, The Art of Computer
    Programming, 6.4), which is spread evenly, whatever order the items came in.
    """
    fraction = _KEY.op("*")(_GOLDEN).op("&")(2**32 - 1)
    chosen = fraction < bindparam("share", type_=Integer())
    boxes = _until(_boxes(asked, start, end, _KEY, items_rtree.c.end), until)
    return _union([each.where(chosen) for each in boxes])


_GOLDEN = 2_654_435_769  # 2**32 divided by the golden ratio
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
        chosen = chosen.where(tree.end >= _year("first_year"))
    if end:
        chosen = chosen.where(tree.start <= _year("last_year"))
    if asked is None:
        return [chosen]
    return [
        chosen.where(tree.west <= east, tree.east >= west, tree.south <= north, tree.north >= south)
        for west, south, east, north in asked.boxes
    ]


def _until(selects: Sequence[Select[Any]], until: bool) -> Sequence[Select[Any]]:
    return (
        [each.where(items_rtree.c.end <= _year("until")) for each in selects] if until else selects
    )


def _year(name: str) -> ColumnElement[float]:
    return bindparam(name, type_=Float())


def _union(selects: Sequence[Select[Any]]) -> Select[Any]:
    """A UNION, since an OR of boxes would make SQLite read the whole tree."""
    return selects[0] if len(selects) == 1 else select(union_all(*selects).subquery())


def years(instant: datetime) -> float:
    """An instant as the R*Tree has it."""
    return tree_time(to_microseconds(instant))


def instant(years: float) -> datetime:
    """The instant that the R*Tree has so, or the last of the calendar where it rounded beyond."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    return start + min(timedelta(days=365.25 * years), datetime.max.replace(tzinfo=UTC) - start)
