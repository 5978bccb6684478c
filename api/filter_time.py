"""What is in time, in a filter, as SQL: instants and intervals compared, and related.

Instants are canonical text (:mod:`firnline.properties`), whose order is theirs. A date is a day: a
timestamp within it is neither before nor after it. An interval has both its ends (OGC 21-065r2,
7.7.1), the whole last day included; an end that is open lies before or after all text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa
from sqlalchemy import ColumnElement, and_, func, or_

from firnline.api.filter_nodes import (
    OF_INTERVALS,
    Node,
    instant,
    instant_of,
    kinds,
    property_name,
    refused,
)
from firnline.functions import Stamp
from firnline.properties import Word
from firnline.tables import items

Condition: TypeAlias = ColumnElement[bool]


class _Span(NamedTuple):
    """First and last microsecond; both NULL where an item has no such thing."""

    start: ColumnElement[str]
    end: ColumnElement[str]


_OPEN = ("", "~")  # before and after every instant

_COMPARED: dict[str, Callable[[_Span, _Span], Condition]] = {
    "=": lambda a, b: and_(a.start <= b.end, a.end >= b.start),
    "<>": lambda a, b: or_(a.end < b.start, a.start > b.end),
    "<": lambda a, b: a.end < b.start,
    ">": lambda a, b: a.start > b.end,
    "<=": lambda a, b: a.start <= b.end,
    ">=": lambda a, b: a.end >= b.start,
}
_RELATED: dict[str, Callable[[_Span, _Span], Condition]] = {
    # 7.7.2, and the Time Ontology in OWL, to which it refers
    "t_after": lambda a, b: a.start > b.end,
    "t_before": lambda a, b: a.end < b.start,
    "t_contains": lambda a, b: and_(a.start < b.start, a.end > b.end),
    "t_disjoint": lambda a, b: or_(a.end < b.start, a.start > b.end),
    "t_during": lambda a, b: and_(a.start > b.start, a.end < b.end),
    "t_equals": lambda a, b: and_(a.start == b.start, a.end == b.end),
    "t_finishedby": lambda a, b: and_(a.start < b.start, a.end == b.end),
    "t_finishes": lambda a, b: and_(a.start > b.start, a.end == b.end),
    "t_intersects": lambda a, b: and_(a.start <= b.end, a.end >= b.start),
    "t_meets": lambda a, b: a.end == b.start,
    "t_metby": lambda a, b: a.start == b.end,
    "t_overlappedby": lambda a, b: and_(b.start < a.start, a.start < b.end, b.end < a.end),
    "t_overlaps": lambda a, b: and_(a.start < b.start, b.start < a.end, a.end < b.end),
    "t_startedby": lambda a, b: and_(a.start == b.start, a.end > b.end),
    "t_starts": lambda a, b: and_(a.start == b.start, a.end < b.end),
}


def compared(name: str, left: Node, right: Node) -> Condition:
    """A comparison of literal instants and properties."""
    return _COMPARED[name](_instant(left), _instant(right))


def related(name: str, left: Node, right: Node) -> Condition:
    """A temporal function."""
    return _RELATED[name](_argument(name, left), _argument(name, right))


def _instant(node: Node) -> _Span:
    named = instant_of(node)
    if named is None:
        return _stamped(node)
    first, last = instant(*named)
    return _Span(_text(first), _text(last))


def _stamped(node: Node) -> _Span:
    """A property; NULL for an item where it is neither a timestamp nor a date."""
    word = Word(items.c.properties, property_name(node) or "")
    return _Span(Stamp(word, last=False), Stamp(word, last=True))


def _argument(name: str, node: Node) -> _Span:
    if property_name(node) == "datetime":  # an item that has none has an interval
        own = _stamped(node)
        start = _stamped({"property": "start_datetime"}).start
        end = _stamped({"property": "end_datetime"}).end
        return _Span(func.coalesce(own.start, start), func.coalesce(own.end, end))
    if isinstance(node, Mapping) and "interval" in node:
        return _interval(node["interval"])
    if _is_property(node):
        return _stamped(node)
    if name in OF_INTERVALS:  # with an instant, 7.7.2 asks for a client's error
        raise refused(f"{name} takes properties and INTERVAL", node)
    if instant_of(node) is None:
        raise refused(f"{name} takes properties, TIMESTAMP, DATE and INTERVAL", node)
    return _instant(node)


def _interval(bounds: Node) -> _Span:
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise refused("INTERVAL takes two instants, or '..' where it is open", bounds)
    start, end = _bound(bounds[0], 0), _bound(bounds[1], 1)
    if isinstance(start, sa.BindParameter) and isinstance(end, sa.BindParameter):
        if str(start.value) > str(end.value):
            raise refused("INTERVAL ends after it starts", bounds)
        return _Span(start, end)
    # an interval of which one end is not known is not known
    return _Span(sa.case((end.is_not(None), start)), sa.case((start.is_not(None), end)))


def _bound(node: Node, side: int) -> ColumnElement[Any]:
    if node == "..":
        return _text(_OPEN[side])
    if isinstance(node, str):
        return _text(instant("date" if len(node) == 10 else "timestamp", node)[side])
    if not _is_property(node) and instant_of(node) is None:
        raise refused("INTERVAL takes instants, properties and '..'", node)
    return _instant(node)[side]


def _is_property(node: Node) -> bool:
    return property_name(node) is not None and "span" in kinds(node)


def _text(text: str) -> ColumnElement[str]:
    return sa.literal(text, sa.Text())
