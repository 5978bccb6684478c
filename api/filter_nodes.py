"""What a node of CQL2 JSON (OGC 21-065r2) is, before there is any SQL: its operator, the kinds of
value it can be, and the instants, shapes and patterns that literals stand for.

Each refusal says what was found and what is accepted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, date
from typing import Any, TypeAlias

import shapely
from shapely.geometry.base import BaseGeometry

from firnline.api.area import Area, from_bbox, from_geojson
from firnline.api.instants import parse_datetime
from firnline.errors import FilterError, InputError
from firnline.functions import DAY
from firnline.properties import is_name

Node: TypeAlias = Any
"""A part of CQL2 JSON."""

COMPARISONS = ("=", "<>", "<", ">", "<=", ">=")
ARITHMETIC = ("+", "-", "*", "/", "%", "div", "^")
ARRAYS = ("a_containedby", "a_contains", "a_equals", "a_overlaps")
SPATIAL = (
    *("s_contains", "s_crosses", "s_disjoint", "s_equals"),
    *("s_intersects", "s_overlaps", "s_touches", "s_within"),
)
OF_TIMES = ("t_after", "t_before", "t_disjoint", "t_equals", "t_intersects")
OF_INTERVALS = (
    *("t_contains", "t_during", "t_finishedby", "t_finishes", "t_meets"),
    *("t_metby", "t_overlappedby", "t_overlaps", "t_startedby", "t_starts"),
)
_ARITY = {
    **dict.fromkeys(("and", "or"), None),
    **dict.fromkeys(("not", "isnull", "casei"), 1),
    **dict.fromkeys((*COMPARISONS, "like", "in", *ARITHMETIC, *ARRAYS), 2),
    **dict.fromkeys((*SPATIAL, *OF_TIMES, *OF_INTERVALS), 2),
    "between": 3,
}

LARGEST = 1.7976931348623157e308
"""The largest number in double precision."""
_LONGEST_PATTERN = 5_000  # SQLite takes 50,000 bytes
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_BETWEEN_MICROSECONDS = "+"  # behind an instant: after it, and before the next
_WORLD = Area(shapely.box(-180, -90, 180, 90), ((-180.0, -90.0, 180.0, 90.0),))


def refused(reason: str, node: Node = None) -> FilterError:
    """The error that a filter is answered with."""
    found = "" if node is None else f", not {json.dumps(node, default=str)[:100]}"
    return FilterError(f"filter: {reason}{found}")


def operation(node: Node) -> tuple[str, list[Node]] | None:
    """Name (in lower case; any is accepted) and arguments of an operator or function.

    None for another node.

    Raises
    ------
    FilterError
        It is not supported, or takes another number of arguments.
    """
    if not (isinstance(node, Mapping) and "op" in node):
        return None
    name, args = str(node["op"]).lower(), node.get("args")
    if name not in _ARITY:
        raise refused(f"{name[:40]!r} is not supported; accepted: {', '.join(_ARITY)}")
    arity = _ARITY[name]
    match name, args:
        case "between", [value, [low, high]]:  # as drafts of CQL2 had it, and clients write it
            args = [value, low, high]
    if not isinstance(args, list) or not args or (arity is not None and len(args) != arity):
        raise refused(f"{name} takes an array `args` of {arity or 'one or more'}", node)
    return name, args


def flattened(name: str, args: list[Node]) -> list[Node]:
    """The operands of AND or OR, with those of the same within it, which say the same."""
    operands, stack = [], args[::-1]
    while stack:
        node = stack.pop()
        named = operation(node)
        if named is not None and named[0] == name:
            stack += named[1][::-1]
        else:
            operands.append(node)
    return operands


def property_name(node: Node) -> str | None:
    """The name of a property, without the prefix ``properties.``; None for another node."""
    if not (isinstance(node, Mapping) and "property" in node):
        return None
    name = node["property"]
    if not isinstance(name, str):
        raise refused("a property's name is text", name)
    name = name.removeprefix("properties.")
    if not is_name(name):
        raise refused("a property's name has no quotes, backslashes or control characters", name)
    return name


def kinds(node: Node) -> tuple[str, ...]:
    """What a scalar can be: number, word, truth, or span (of time); nothing if it is null."""
    if node is None:
        return ()
    if isinstance(node, bool):
        return ("truth",)
    if isinstance(node, int | float):
        if not abs(node) <= LARGEST:
            raise refused("a number is finite and within double precision", node)
        return ("number",)
    if isinstance(node, str):
        return ("word",)
    name = property_name(node)
    if name == "geometry":
        raise refused("geometry is an argument of S_ functions only")
    if name is not None:
        return ("word",) if name in ("id", "collection") else ("number", "word", "truth", "span")
    if instant_of(node) is not None:
        return ("span",)
    named = operation(node)
    if named is None:
        raise refused("a scalar is a property, a literal or an expression", node)
    if named[0] == "casei":
        return ("word",)
    return ("number",) if named[0] in ARITHMETIC else ("truth",)


def common_kinds(*nodes: Node) -> list[str]:
    """The kinds that all of them can be; not spans where all can be text, which says the same."""
    first, *others = map(kinds, nodes)
    common = [kind for kind in first if all(kind in each for each in others)]
    return [kind for kind in common if kind != "span" or "word" not in common]


def instant_of(node: Node) -> tuple[str, Node] | None:
    """Granularity (``date`` or ``timestamp``) and text of a literal instant, or None."""
    for granularity in ("date", "timestamp"):
        if isinstance(node, Mapping) and granularity in node:
            return granularity, node[granularity]
    return None


def instant(granularity: str, text: Node) -> tuple[str, str]:
    """First and last microsecond of a literal instant, as canonical text.

    The two are the same for a timestamp. One between microseconds comes out between their texts.
    """
    try:
        if granularity == "date" and isinstance(text, str) and _DATE.fullmatch(text):
            date.fromisoformat(text)
            return text + DAY[0], text + DAY[1]
        if granularity == "timestamp" and isinstance(text, str) and "/" not in text:
            after, before = parse_datetime(text)
            assert before is not None
            assert after is not None
            exact = before.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
            moment = exact + "Z" + (_BETWEEN_MICROSECONDS if after > before else "")
            return moment, moment
    except ValueError:  # DatetimeError is one of these
        pass
    accepted = "2018-02-12" if granularity == "date" else "2018-02-12T23:20:50Z"
    raise refused(f"{granularity.upper()} takes an RFC 3339 {granularity} as {accepted!r}", text)


def glob(pattern: str) -> str:
    r"""What a pattern of LIKE (``%``, ``_``, escaped by ``\``) is for SQLite's GLOB."""
    if len(pattern) > _LONGEST_PATTERN:
        raise refused(f"a pattern of like has at most {_LONGEST_PATTERN:,} characters")
    out, characters = [], iter(pattern)
    for character in characters:
        if character == "\\":
            character = next(characters, "")
            if not character:
                raise refused("a pattern of like does not end with its escape, \\", pattern)
        elif character in "%_":
            out.append("*" if character == "%" else "?")
            continue
        out.append(f"[{character}]" if character in "*?[" else character)
    return "".join(out)


def area(node: Node) -> Area | None:
    """The area of a geometry or BBOX; None for the item's own geometry."""
    if property_name(node) == "geometry":
        return None
    try:
        if isinstance(node, Mapping) and "type" in node:  # and may have a bbox beside it
            return from_geojson(node)
        if isinstance(node, Mapping) and "bbox" in node:
            return from_bbox(_numbers(node["bbox"])) or _WORLD
    except FilterError:
        raise
    except InputError as error:
        raise refused(str(error).replace("intersects", "the geometry", 1)) from None
    raise refused("S_ functions take geometry, and geometries or BBOX", node)


def _numbers(values: Node) -> list[float]:
    known = isinstance(values, list) and not any(isinstance(each, Mapping) for each in values)
    if not known or any(kinds(each) != ("number",) for each in values):
        raise refused("BBOX takes numbers", values)
    return [float(each) for each in values]


def related(name: str, given: Area) -> Area:
    """The area as a shape that every relation is defined for, and soon decided.

    S_INTERSECTS and S_DISJOINT need none of this. The others are defined for parts of one
    dimension that don't overlap (OGC 06-103r4, 6.1.15); each crossing of a line with itself
    would be worked out for each item.
    """
    shape = given.shape
    if shape.geom_type == "GeometryCollection":
        shape = _homogeneous(name, shape)
    if not shape.is_valid or (shape.geom_type.endswith("LineString") and not shape.is_simple):
        raise refused(f"{name} takes no line that crosses itself or has no length")
    return Area(shape, given.boxes)


def _homogeneous(name: str, collection: BaseGeometry) -> BaseGeometry:
    parts = list(shapely.get_parts(collection))
    types = {part.geom_type for part in parts}
    if types == {"Point"}:
        return shapely.MultiPoint(parts)
    if types == {"LineString"}:
        return shapely.MultiLineString(parts)
    reason = "polygons that overlap" if types == {"Polygon"} else "a mixture of geometries"
    raise refused(f"{name} does not take {reason}")
