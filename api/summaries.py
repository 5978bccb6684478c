"""Which properties the items of a collection have, and what values they take: from the items.

A collection of at most :data:`WHOLE` items is read whole. Of a larger one its newest items are
read and others spread evenly over the catalog, so that no collection takes long; that these were
not all is marked, and nothing is concluded that only all of them could tell. What was read is
kept for a minute in each process.
"""

from __future__ import annotations

import functools
import math
import operator
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import Connection, Engine, func, select

from firnline.database import reading
from firnline.tables import LIVING, items

WHOLE = 6_000
"""Collections of at most so many items (ITS_LIVE's have 3,100) are read whole."""
SPREAD = 4_000
"""Keys over the whole catalog whose items are looked at besides, if they are of the collection."""
KEPT = 60.0
"""Seconds."""
FEW = 200
"""Values of a property that are told one by one; of more, only bounds."""
TEXTS = ("title", "description")
"""Properties of which each item has its own, for people to read."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples spread evenly, whatever order the items came in
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")  # as firnline.properties has it

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}

Scalar: TypeAlias = "str | float | bool"


@dataclass(frozen=True)
class Values:
    """Values that a property takes, itself or as members of its lists."""

    count: int = 0
    """How often there was one."""
    types: frozenset[str] = frozenset()
    """JSON Schema's names: boolean, integer, number, string."""
    instants: bool = True
    """Whether all text is date-times."""
    least: float = math.inf
    most: float = -math.inf
    """Of the numbers."""
    distinct: frozenset[tuple[bool, Scalar]] | None = frozenset()
    """The values, each with whether it is a boolean (to Python True is 1); None: too many."""

    @classmethod
    def of(cls, values: Sequence[Scalar]) -> Values:
        """What these have in common."""
        kinds = set(map(type, values))
        distinct = {(kind is bool, v) for kind in kinds for v in set(values) if type(v) is kind}
        if {int, bool} <= kinds or {float, bool} <= kinds:  # of equal ones a set has one only
            distinct = {(type(value) is bool, value) for value in values}
        numbers = [value for truth, value in distinct if not (truth or isinstance(value, str))]
        text = (value for _, value in distinct if isinstance(value, str))
        return cls(
            len(values),
            frozenset(_TYPES[kind] for kind in kinds),
            all(map(_INSTANT.fullmatch, text)),
            min(numbers, default=math.inf),
            max(numbers, default=-math.inf),
            _few(distinct),
        )

    @property
    def few(self) -> list[Scalar] | None:
        """All of them in order, if they are few enough to be told one by one."""
        if self.distinct is None:
            return None
        order = sorted((isinstance(value, str), truth, value) for truth, value in self.distinct)
        return [value for _, _, value in order]

    def __or__(self, other: Values) -> Values:
        distinct = None
        if self.distinct is not None and other.distinct is not None:
            distinct = _few(self.distinct | other.distinct)
        return Values(
            self.count + other.count,
            self.types | other.types,
            self.instants and other.instants,
            min(self.least, other.least),
            max(self.most, other.most),
            distinct,
        )


def _few(distinct: Set[tuple[bool, Scalar]]) -> frozenset[tuple[bool, Scalar]] | None:
    return frozenset(distinct) if len(distinct) <= FEW else None


@dataclass(frozen=True)
class Summary:
    """One property: the values that stand alone, and those that are members of lists."""

    alone: Values = Values()
    members: Values = Values()
    listed: bool = False
    """Whether there is a list, be it without members."""
    nested: bool = False
    """Whether there is something else, which can be asked for, but not compared."""

    def __or__(self, other: Summary) -> Summary:
        return Summary(
            self.alone | other.alone,
            self.members | other.members,
            self.listed or other.listed,
            self.nested or other.nested,
        )


@dataclass(frozen=True)
class Summaries:
    """The properties of items."""

    properties: Mapping[str, Summary] = field(default_factory=dict)
    items: int = 0
    """How many were read."""
    whole: bool = True
    """Whether these are all."""

    @classmethod
    def of(cls, items: Iterable[Mapping[str, Any]], *, whole: bool = True) -> Summaries:
        """Of items, by their searchable properties."""
        alone: dict[str, list[Scalar]] = {}
        members: dict[str, list[Scalar]] = {}
        nested = set()
        count = 0
        for properties in items:
            count += 1
            for name, value in properties.items():
                if isinstance(value, list):
                    members.setdefault(name, []).extend(value)
                elif isinstance(value, Mapping):
                    nested.add(name)
                else:
                    alone.setdefault(name, []).append(value)
        summaries = {
            name: Summary(
                Values.of(alone.get(name, ())),
                Values.of(members.get(name, ())),
                name in members,
                name in nested,
            )
            for name in alone.keys() | members.keys() | nested
        }
        return cls(summaries, count, whole)

    def __or__(self, other: Summaries) -> Summaries:
        names = self.properties.keys() | other.properties.keys()
        none = Summary()
        return Summaries(
            {n: self.properties.get(n, none) | other.properties.get(n, none) for n in names},
            self.items + other.items,
            self.whole and other.whole,
        )


class Summariser:
    """The summaries of a database's collections, kept for :data:`KEPT` seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # of several that ask at once, one reads
        self._kept: dict[str, tuple[float, Summaries]] = {}

    def of(self, collections: Iterable[str]) -> Summaries:
        """What the items of some collections have between them.

        Raises
        ------
        DatabaseError
        """
        return functools.reduce(operator.or_, map(self._one, collections), Summaries())

    def _one(self, collection: str) -> Summaries:
        with self._lock:
            until, summaries = self._kept.get(collection, (0.0, Summaries()))
            if time.monotonic() >= until:
                with reading(self._engine) as connection:
                    summaries = summarised(connection, collection)
                self._kept[collection] = time.monotonic() + KEPT, summaries
            return summaries


def summarised(connection: Connection, collection: str) -> Summaries:
    """What the items of a collection have, read now."""
    chosen = select(items.c.key, items.c.properties).where(items.c.collection == collection, LIVING)
    newest = chosen.order_by(items.c.end_datetime.desc(), items.c.id).limit(WHOLE + 1)
    found = {row.key: row.properties for row in connection.execute(newest)}
    whole = len(found) <= WHOLE
    if not whole:
        # One by one: SQLite looks up the one or the other, and reads all for both at once.
        first, last = (connection.scalar(select(end(items.c.key))) for end in (func.min, func.max))
        keys = {first + int(n * _GOLDEN % 1 * (last - first + 1)) for n in range(SPREAD)}
        spread = chosen.where(items.c.key.in_(keys - found.keys()))
        found |= {row.key: row.properties for row in connection.execute(spread)}
    return Summaries.of(found.values(), whole=whole)
