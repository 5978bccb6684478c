"""Functions of conditions that SQLite and PostgreSQL do not share, under one name for both.

What SQLite lacks is registered on each of its connections (:func:`register`): PostGIS's relations
over WKB (shapely), case folding, arithmetic, sets. On PostgreSQL the same elements are
expressions of its own. Each gives the same answers on both, and NULL where an operand is NULL.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import orjson
import shapely
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Boolean, ColumnElement, Float, Text, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from firnline.geohash import geohash

_WKB_POINT = struct.Struct("<BIdd")  # byte order, type, x, y: a tenth of the time of GEOS's writer
_SMALLEST, _LARGEST = 1e-150, 1e150
_LARGEST_LN = 346  # ln(1e150), and a little

DAY = ("T00:00:00.000000Z", "T23:59:59.999999Z")
"""What the first and the last microsecond of a date have behind it."""
_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)

_CONVERSE = {
    "ST_Intersects": shapely.intersects,
    "ST_Equals": shapely.equals,
    "ST_Touches": shapely.touches,
    "ST_Crosses": shapely.crosses,
    "ST_Overlaps": shapely.overlaps,
    "ST_Within": shapely.contains,
    "ST_Contains": shapely.within,
}
"""What holds from the second geometry to the first, where the relation holds the other way."""


class Folded(FunctionElement[str]):
    """Text without its case: full case folding (Unicode 14, 5.18), as CQL2's CASEI asks."""

    inherit_cache = True
    type = Text()


class Calculated(FunctionElement[float]):
    """An arithmetic operator of CQL2 on two numbers, in double precision.

    NULL where there is no number: a division by zero, a root of a negative number, or operands
    and powers whose size is not within 1e-150 to 1e150. ``%`` is exact on the numbers as they are
    written in decimals, with the sign of the first; ``div`` truncates.
    """

    inherit_cache = True
    type = Float()

    def __init__(self, name: str, left: ColumnElement[Any], right: ColumnElement[Any]) -> None:
        super().__init__(literal_column(f"'{_NAMES[name]}'"), left, right)


class Stamp(FunctionElement[str]):
    """The first or (with `last`) last microsecond of a canonical date-time or a date.

    NULL where the text is neither (:func:`firnline.properties.canonical`).
    """

    inherit_cache = True
    type = Text()

    def __init__(self, text: ColumnElement[Any], *, last: bool) -> None:
        super().__init__(text, literal_column(f"'{DAY[last]}'"))


class Joined(FunctionElement[str]):
    """Texts one behind the other; ``+`` takes time with the square of their number."""

    inherit_cache = True
    type = Text()


class ListContains(FunctionElement[bool]):
    """Whether a JSON array has all the members of a second: both are sets of scalars."""

    inherit_cache = True
    type = Boolean()


class ListsOverlap(FunctionElement[bool]):
    """Whether two JSON arrays have a member in common."""

    inherit_cache = True
    type = Boolean()


_NAMES = {
    "+": "plus",
    "-": "minus",
    "*": "times",
    "/": "by",
    "div": "div",
    "%": "mod",  # a percent sign in SQL would be taken for a parameter's
    "^": "power",
}
_ON_POSTGRESQL = {
    "plus": "l + r",
    "minus": "l - r",
    "times": "l * r",
    "by": "l / nullif(r, 0)",
    "div": "trunc(l / nullif(r, 0))",
    "mod": "mod(l::text::numeric, nullif(r, 0)::text::numeric)::double precision",
    "power": "CASE WHEN l = 0 THEN CASE WHEN r = 0 THEN 1 WHEN r > 0 THEN 0 END "
    f"WHEN (l > 0 OR r = trunc(r)) AND abs(r * ln(abs(l))) <= {_LARGEST_LN} THEN power(l, r) END",
}


@compiles(Joined)
def _joined(element: Joined, compiler: Any, **kw: Any) -> str:
    return "(" + " || ".join(compiler.process(each, **kw) for each in element.clauses) + ")"


@compiles(Folded, "sqlite")
@compiles(Calculated, "sqlite")
@compiles(Stamp, "sqlite")
@compiles(ListContains, "sqlite")
@compiles(ListsOverlap, "sqlite")
def _call(element: FunctionElement[Any], compiler: Any, **kw: Any) -> str:
    return f"{type(element).__name__}({compiler.process(element.clauses, **kw)})"


@compiles(Folded, "postgresql")
def _folded(element: Folded, compiler: Any, **kw: Any) -> str:
    # PostgreSQL has casefold() from 18 on. The lower case of the upper case tells the same texts
    # apart (of all characters, as a test finds), but for the final sigma, and for the dotless i,
    # whose upper case is I and for which a character of private use stands in.
    text = compiler.process(element.clauses, **kw)
    upper = f"""upper(translate(lower({text} COLLATE "und-x-icu"), 'ı', U&'\\F8FF'))"""
    return f"""(translate(lower({upper}), U&'ς\\F8FF', 'σı') COLLATE "C")"""


@compiles(Stamp, "postgresql")
def _stamp(element: Stamp, compiler: Any, **kw: Any) -> str:
    # without its digits, and with anything for them: a regular expression takes nine times as long
    text, rest = (compiler.process(clause, **kw) for clause in element.clauses)
    return (
        "(SELECT CASE translate(t, '0123456789', '') WHEN '--T::.Z' THEN "  # noqa: S608
        "CASE WHEN t LIKE '____-__-__T__:__:__.______Z' THEN t END WHEN '--' THEN "
        f"CASE WHEN t LIKE '____-__-__' THEN t || {rest} END END "
        f"FROM (SELECT {text} AS t OFFSET 0) AS given)"
    )


@compiles(Calculated, "postgresql")
def _calculated(element: Calculated, compiler: Any, **kw: Any) -> str:
    # What leaves the range of numbers raises here. The subquery, which OFFSET keeps from being
    # merged, has each operand once: nested in CASEs they would double at every level.
    name, left, right = (compiler.process(clause, **kw) for clause in element.clauses)
    within = " AND ".join(
        f"({side} = 0 OR abs({side}) BETWEEN {_SMALLEST} AND {_LARGEST})" for side in "lr"
    )
    return (
        f"(SELECT CASE WHEN {within} THEN {_ON_POSTGRESQL[name[1:-1]]} END "  # noqa: S608
        f"FROM (SELECT {left} AS l, {right} AS r OFFSET 0) AS operands)"
    )


@compiles(ListContains, "postgresql")
def _contains(element: ListContains, compiler: Any, **kw: Any) -> str:
    left, right = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({left} @> {right})"


@compiles(ListsOverlap, "postgresql")
def _overlap(element: ListsOverlap, compiler: Any, **kw: Any) -> str:
    left, right = (compiler.process(clause, **kw) for clause in element.clauses)
    return (
        "(SELECT CASE WHEN l IS NOT NULL AND r IS NOT NULL THEN EXISTS (SELECT FROM "  # noqa: S608
        "jsonb_array_elements(r) AS member WHERE l @> jsonb_build_array(member)) END "
        f"FROM (SELECT {left} AS l, {right} AS r OFFSET 0) AS sets)"
    )


def register(connection: Any) -> None:
    """Give an SQLite connection (of the driver) these functions."""
    for name, converse in _CONVERSE.items():
        relation = functools.partial(_relates, converse)
        connection.create_function(name, 2, relation, deterministic=True)
    connection.create_function("ST_PointOnSurface", 1, _point_on_surface, deterministic=True)
    connection.create_function("ST_GeoHash", 2, _geohash, deterministic=True)
    connection.create_aggregate("ST_Intersecting", 3, _Intersecting)
    for kind, arity, function in _ON_SQLITE:
        connection.create_function(kind.__name__, arity, function, deterministic=True)


@functools.lru_cache(maxsize=64)
def _prepared(wkb: bytes) -> BaseGeometry:
    geometry = shapely.from_wkb(wkb)
    shapely.prepare(geometry)
    return geometry


def _relates(converse: Callable[..., Any], stored: bytes, asked: bytes) -> bool:
    """A relation on SQLite: `asked` is one geometry for many rows, so it is kept prepared."""
    return bool(converse(_prepared(asked), shapely.from_wkb(stored)))


class _Intersecting:
    """Aggregate on SQLite: JSON of the keys whose footprint intersects `asked`, tried at once."""

    def __init__(self) -> None:
        self.keys: list[int] = []
        self.stored: list[bytes] = []
        self.asked = b""

    def step(self, key: int, stored: bytes, asked: bytes) -> None:
        self.keys.append(key)
        self.stored.append(stored)
        self.asked = asked

    def finalize(self) -> str:
        if not self.keys:
            return "[]"
        hits = shapely.intersects(_prepared(self.asked), shapely.from_wkb(self.stored))
        return orjson.dumps(np.array(self.keys)[hits], option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _point_on_surface(stored: bytes) -> bytes:
    """ST_PointOnSurface on SQLite; GEOS finds the same point for PostGIS."""
    point = shapely.point_on_surface(shapely.from_wkb(stored))
    return _WKB_POINT.pack(1, 1, point.x, point.y)


def _geohash(point: bytes, length: int) -> str:
    """ST_GeoHash on SQLite, of what the function above gave."""
    _, _, lon, lat = _WKB_POINT.unpack(point)
    return geohash(lon, lat, length)


def _fold(text: str | None) -> str | None:
    return None if text is None else text.casefold()


def _stamped(text: str | None, rest: str) -> str | None:
    if text is None:
        return None
    stamp = text + rest if len(text) == len("2018-02-12") else text
    return stamp if _STAMP.fullmatch(stamp) else None


def calculate(name: str, left: float | None, right: float | None) -> float | None:
    """What :class:`Calculated` gives, by the names of its operators."""
    if left is None or right is None or not (_calculable(left) and _calculable(right)):
        return None
    left, right = float(left), float(right)
    if name in _TOTAL:
        return _TOTAL[name](left, right)
    if name == "power":
        return _power(left, right)
    if right == 0:
        return None
    if name == "mod":
        if left.is_integer() and right.is_integer() and abs(left) < 2**53 > abs(right):
            return math.fmod(left, right)
        dividend, divisor = Fraction(repr(left)), Fraction(repr(right))
        return float(dividend - divisor * math.trunc(dividend / divisor))
    return left / right if name == "by" else float(math.trunc(left / right))


_TOTAL: dict[str, Callable[[float, float], float]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
}


def _calculable(number: float) -> bool:
    return number == 0 or _SMALLEST <= abs(number) <= _LARGEST


def _power(base: float, exponent: float) -> float | None:
    if base == 0:
        return None if exponent < 0 else float(exponent == 0)
    if base < 0 and exponent != math.trunc(exponent):
        return None
    if abs(exponent * math.log(abs(base))) > _LARGEST_LN:
        return None
    return float(base**exponent)


def _contains_members(left: str | None, right: str | None) -> bool | None:
    return None if left is None or right is None else _members(left) >= _members(right)


def _shares_members(left: str | None, right: str | None) -> bool | None:
    return None if left is None or right is None else not _members(left).isdisjoint(_members(right))


@functools.lru_cache(maxsize=64)
def _members(array: str) -> frozenset[tuple[bool, Any]]:
    """The set of a JSON array of scalars; true is not 1."""
    return frozenset((isinstance(member, bool), member) for member in orjson.loads(array))


_ON_SQLITE: tuple[tuple[type[FunctionElement[Any]], int, Callable[..., Any]], ...] = (
    (Folded, 1, _fold),
    (Calculated, 3, calculate),
    (Stamp, 2, _stamped),
    (ListContains, 2, _contains_members),
    (ListsOverlap, 2, _shares_members),
)
