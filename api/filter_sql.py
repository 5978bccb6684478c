"""CQL2 JSON (OGC 21-065r2) to a condition on ``items``, for SQLite and PostgreSQL alike.

Logic has three values: a predicate on a property that an item does not have, or has in another
type, is NULL, and AND, OR and NOT go on as in SQL. So an operand is taken as each kind of value
that it can be, and a comparison of two that have no kind in common is NULL. What makes no sense
whatever the item is an error.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import shapely
import sqlalchemy as sa
from sqlalchemy import ColumnElement, and_, func, literal, not_, or_
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.sql.elements import Grouping

from firnline.api import boxes, filter_time
from firnline.api.filter_nodes import (
    ARITHMETIC,
    ARRAYS,
    COMPARISONS,
    Node,
    area,
    common_kinds,
    flattened,
    glob,
    instant,
    instant_of,
    kinds,
    operation,
    property_name,
    refused,
    related,
)
from firnline.functions import Calculated, Folded, Joined, ListContains, ListsOverlap
from firnline.properties import (
    INDEXED_NUMBERS,
    INDEXED_WORDS,
    Kept,
    Listed,
    Number,
    Truth,
    Word,
    canonical,
)
from firnline.tables import items

Condition: TypeAlias = ColumnElement[bool]
Value: TypeAlias = ColumnElement[Any]

_UNKNOWN: Condition = sa.cast(sa.null(), sa.Boolean())
_TYPES: dict[str, Callable[..., Value]] = {"number": Number, "word": Word, "truth": Truth}
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_RELATED_AS_SETS: dict[str, Callable[[Value, Value], Condition]] = {
    "a_containedby": lambda a, b: ListContains(b, a),
    "a_contains": lambda a, b: ListContains(a, b),
    "a_equals": lambda a, b: and_(ListContains(a, b), ListContains(b, a)),
    "a_overlaps": lambda a, b: ListsOverlap(a, b),
}
_RELATED_IN_SPACE: dict[str, tuple[str, str, Callable[..., Any]]] = {
    # in PostGIS, the other way round, on shapes
    "s_contains": ("ST_Contains", "s_within", shapely.contains),
    "s_crosses": ("ST_Crosses", "s_crosses", shapely.crosses),
    "s_equals": ("ST_Equals", "s_equals", shapely.equals),
    "s_intersects": ("ST_Intersects", "s_intersects", shapely.intersects),
    "s_overlaps": ("ST_Overlaps", "s_overlaps", shapely.overlaps),
    "s_touches": ("ST_Touches", "s_touches", shapely.touches),
    "s_within": ("ST_Within", "s_contains", shapely.within),
}


def condition(expression: Node, dialect: str, *, looked_up: bool = True) -> Condition:
    """The condition that an item satisfies a filter.

    Parameters
    ----------
    expression
        CQL2 JSON within the limits of :func:`firnline.api.filter.parse`.
    dialect
        ``sqlite`` or ``postgresql``.
    looked_up
        Whether indexes may find the items; otherwise it is asked of one item at a time.

    Raises
    ------
    FilterError
    """
    return _Compiler(dialect, looked_up=looked_up).predicate(expression)


class _Compiler:
    """Nodes to SQL.

    Only properties and literals may be there more than once: what nests would double at each
    level.
    """

    def __init__(self, dialect: str, *, looked_up: bool) -> None:
        self.dialect = dialect
        self.looked_up = looked_up
        self.sqlite = dialect == "sqlite"
        self.others: dict[str, Callable[..., Condition]] = {
            "between": self.between,
            "in": self.is_in,
            "isnull": self.is_null,
            "like": self.like,
        }

    def predicate(self, node: Node) -> Condition:
        """A node as a condition."""
        if node is None:
            return _UNKNOWN
        if isinstance(node, bool):
            return sa.true() if node else sa.false()
        if property_name(node) is not None:
            return self.value(node, "truth") if "truth" in kinds(node) else _UNKNOWN
        name, args = operation(node) or ("", [])
        if name in ("and", "or"):
            operands = map(self.predicate, flattened(name, args))
            return and_(*operands) if name == "and" else or_(*operands)
        if name == "not":
            return not_(self.predicate(args[0]))
        if name in COMPARISONS:
            return _known([self.compared(name, kind, *args) for kind in common_kinds(*args)])
        if name in self.others:
            return self.others[name](*args)
        if name in ARRAYS:
            return _RELATED_AS_SETS[name](*map(self.array, args))
        if name.startswith("t_"):
            return filter_time.related(name, *args)
        if name.startswith("s_"):
            return self.in_space(name, *args)
        raise refused("a predicate is a comparison, a boolean property, true or false", node)

    def value(self, node: Node, kind: str, *, equal: bool = False) -> Value:
        """A scalar that can be of this kind; NULL for an item where it is not. Not for spans.

        What an index says to be `equal` is in the order of a page there: it serves a walk too.
        """
        name = property_name(node)
        if name is not None:
            if name in ("id", "collection"):
                return items.c[name]
            return _TYPES[kind](items.c.properties, name, indexed=self.looked_up or equal)
        if isinstance(node, bool):
            return literal(node, sa.Boolean())
        if isinstance(node, int | float):
            return literal(float(node), sa.Float())
        if isinstance(node, str):
            return literal(canonical(node), sa.Text())
        op, args = cast("tuple[str, list[Node]]", operation(node))
        if op in ARITHMETIC:
            return Calculated(op, *(self.operand(arg, "number") for arg in args))
        if op == "casei":
            return Folded(self.operand(args[0], "word"))
        return Grouping(self.predicate(node))  # NOT binds less than = does

    def operand(self, node: Node, kind: str) -> Value:
        if kind in kinds(node):
            return self.value(node, kind)
        return sa.cast(sa.null(), sa.Float() if kind == "number" else sa.Text())

    def compared(self, name: str, kind: str, left: Node, right: Node) -> Condition:
        if kind == "span":
            return filter_time.compared(name, left, right)
        a, b = (self.value(side, kind, equal=name == "=") for side in (left, right))
        if not self.sqlite and name not in ("=", "<>"):  # columns are in the database's order
            a, b = (sa.collate(x, "C") if isinstance(x, sa.Column) else x for x in (a, b))
        return cast("Condition", _COMPARED[name](a, b))

    def between(self, value: Node, low: Node, high: Node) -> Condition:
        """NULL if any of the three is (req. between-predicate, C), where AND could be false."""
        results: list[Condition] = []
        for kind in common_kinds(value, low, high):
            if kind == "truth":
                continue  # the value is there twice, and predicates nest
            above = self.compared(">=", kind, value, low)
            below = self.compared("<=", kind, value, high)
            if isinstance(low, Mapping) or isinstance(high, Mapping):
                results.append(sa.cast(above, sa.Integer()) + sa.cast(below, sa.Integer()) == 2)
            else:
                results.append(and_(above, below))
        return _known(results)

    def is_in(self, value: Node, members: Node) -> Condition:
        if not isinstance(members, list):
            raise refused("in takes a list of values", members)
        if not members:
            return sa.false()
        known = [member for member in members if member is not None]
        results = []
        for kind in kinds(value):
            same = [member for member in known if kind in common_kinds(value, member)]
            if same and kind == "span":
                results.append(or_(*(self.compared("=", kind, value, each) for each in same)))
            elif same:
                values = [self.value(each, kind) for each in same]
                tested = self.value(value, kind)
                if self.sqlite or all(isinstance(each, sa.BindParameter) for each in values):
                    results.append(tested.in_(values))
                else:  # of IN it makes an OR, with the value once for each member
                    results.append(tested == sa.any_(array(values)))
        found = _known(results)
        return found if len(known) == len(members) else or_(found, _UNKNOWN)

    def is_null(self, node: Node) -> Condition:
        name = property_name(node)
        if name == "geometry":
            return sa.false()
        if name is not None and name not in ("id", "collection"):
            return Kept(items.c.properties, name).is_(None)
        possible = kinds(node)
        if possible in ((), ("span",)):
            return sa.false() if possible else sa.true()
        return self.value(node, possible[0]).is_(None)

    def like(self, node: Node, pattern: Node) -> Condition:
        folded = False
        while (named := operation(pattern)) is not None and named[0] == "casei":
            pattern, folded = named[1][0], True
        if not isinstance(pattern, str):
            raise refused("like takes a pattern in quotes, or casei of one", pattern)
        pattern = canonical(pattern)
        globbed = glob(pattern)
        if "word" not in kinds(node):
            return _UNKNOWN
        # SQLite's own LIKE is blind to the case of ASCII.
        asked: Value = literal(globbed if self.sqlite else pattern, sa.Text())
        asked = Folded(asked) if folded else asked
        return self.value(node, "word").bool_op("GLOB" if self.sqlite else "LIKE")(asked)

    def array(self, node: Node) -> Value:
        """A list as JSON; NULL if a member is."""
        name = property_name(node)
        if name is not None:
            return Listed(items.c.properties, name)
        pieces: list[str | Value] = ["["]
        # In text an array of one may come as its member: it is but in parentheses.
        for n, member in enumerate(node if isinstance(node, list) else [node]):
            for piece in ("," if n else "", self.encoded(member)):
                if isinstance(piece, str) and isinstance(pieces[-1], str):
                    pieces[-1] += piece
                else:
                    pieces.append(piece)
        pieces.append("]")
        text = Joined(
            *(literal(each, sa.Text()) if isinstance(each, str) else each for each in pieces)
        )
        return text if self.sqlite else sa.cast(text, JSONB)

    def encoded(self, member: Node) -> str | Value:
        """A member of an array as JSON text."""
        named = instant_of(member)
        if named is not None:
            first, _ = instant(*named)
            return json.dumps(named[1] if named[0] == "date" else first)
        possible = kinds(member)
        if not isinstance(member, Mapping):
            if member is None:
                return sa.cast(sa.null(), sa.Text())
            number = possible == ("number",)
            return json.dumps(float(member) if number else _canonical(member))
        if possible == ("truth",):
            raise refused("an array has literals, properties and expressions as members", member)
        texts = [self.quoted(self.value(member, kind), kind) for kind in possible if kind in _TYPES]
        return _known(texts)

    def quoted(self, value: Value, kind: str) -> Value:
        if not self.sqlite:
            return sa.cast(func.to_jsonb(value), sa.Text())
        if kind == "truth":
            return sa.case((value, "true"), (not_(value), "false"))
        return func.nullif(func.json_quote(value, type_=sa.Text()), "null")

    def in_space(self, name: str, left: Node, right: Node) -> Condition:
        if name == "s_disjoint":
            return not_(self.in_space("s_intersects", left, right))
        function, converse, on_shapes = _RELATED_IN_SPACE[name]
        a, b = area(left), area(right)
        if name != "s_intersects":
            a, b = a and related(name, a), b and related(name, b)
        if a is not None and b is not None:
            return sa.true() if on_shapes(a.shape, b.shape) else sa.false()
        if a is not None:
            return self.in_space(converse, right, left)
        asked = None if b is None else boxes.given(b)
        exact = boxes.relates(function, asked)
        if asked is None or not self.looked_up:
            return exact
        if name == "s_intersects":
            return boxes.found(asked, self.dialect)
        return and_(boxes.near(asked), exact) if self.sqlite else exact


def is_indexed(expression: Node) -> bool:
    """Whether to look a filter's items up is to read hardly more than them.

    One of the conditions that must all hold has an index of its own. Not where it says what a
    property is equal to: that many items share, and a walk through them is in order already.
    """
    name, args = operation(expression) or ("", [])
    if name == "and":
        return any(map(is_indexed, args))
    if name.startswith("s_"):
        return name != "s_disjoint"
    asked = property_name(args[0]) if args else None
    if name == "=":
        return asked == "id"
    if name not in ("<", ">", "<=", ">=", "between", "in"):
        return False
    given = args[1] if isinstance(args[1], list) else args[1:]
    if asked in INDEXED_NUMBERS:
        return all(isinstance(value, int | float) for value in given)
    return asked in ("id", *INDEXED_WORDS) and all(isinstance(value, str) for value in given)


def _known(results: Sequence[Value]) -> Value:
    """The one of them that is not NULL: a value is of one kind only."""
    if len(results) < 2:
        return results[0] if results else _UNKNOWN
    return func.coalesce(*results)


def _canonical(literal: Node) -> Node:
    return canonical(literal) if isinstance(literal, str) else literal
