"""How many items match, and the shorter way to a page of them.

To count is to find everything, which costs more than the page that was asked for. So a search over
a large catalog is first tried on a sample: a few hundred items spread evenly over the catalog,
looked up by their keys. The share that matches gives the number of matches, with a bound of its
error, at a cost that does not grow with the catalog; and it tells which way to the page is shorter.

On SQLite the R*Tree tells sooner, and more: which boxes are near, and when they end. Where they are
many and the newest items are asked for, only the newest boxes are looked at closely, and a sample
of all of them gives the number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import orjson
from sqlalchemy import (
    Connection,
    Float,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY

from firnline.api import boxes, query
from firnline.api.searches import Search, Shape, SortKey, Way, made_once
from firnline.tables import LIVING, items

EXACT = 6_000
"""Catalogs of at most so many items (ITS_LIVE's has 4,300) are always counted exactly."""
SAMPLE = 400
"""Items in the sample: two standard errors are 5 % of the catalog, or less."""
_SAMPLE_NEAR = 100  # of the boxes that the R*Tree found, most of which match
_LEAST_SHARE = 1 / 4  # of these that has to match, lest the newest be too few for the page
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples spread evenly, whatever order the items came in
_PLACES = [round(n * _GOLDEN % 1, 6) for n in range(SAMPLE)]


@dataclass(frozen=True)
class Matched:
    """The number of matches."""

    number: int
    error: int = 0
    """Of an estimate: two standard errors. 0 if the number is exact."""


@dataclass(frozen=True)
class Trial:
    """What a sample told."""

    span: int
    """Keys from the first item's to the last one's, used or not: the sample is drawn of them."""
    found: int
    """Keys of the sample whose item matches."""
    size: int = SAMPLE
    """Keys of the sample."""

    @property
    def expected(self) -> float:
        """Matches to be expected."""
        return self.span * self.found / self.size

    def matched(self) -> Matched:
        """The estimate; two standard errors of a binomial share by Agresti and Coull (1998).

        Theirs adds two hits and two misses, so that no sample is taken for certain.
        """
        share = (self.found + 2) / (self.size + 4)
        error = math.ceil(2 * self.span * math.sqrt(share * (1 - share) / (self.size + 4)))
        digits = -max(0, math.floor(math.log10(error)))  # more than the error would be pretended
        return Matched(int(round(self.expected, digits)), error)


@dataclass(frozen=True)
class Plan:
    """How to find a page."""

    way: Way
    matched: Matched | None = None
    """The number of matches, where that is known beforehand."""
    since: datetime | None = None
    """The page lies among the matches that end no earlier, most likely."""


def choose(connection: Connection, search: Search) -> Plan:
    """The way to the first page, and the number of matches where that is known without it.

    What is to be looked up in an index costs by its matches, and what is to be walked to by how
    rare they are: where the square of the matches is less than the catalog times the page,
    gathering is the shorter way.
    """
    dialect, shape, values = connection.dialect.name, search.shape, search.values
    if search.ids:
        return Plan(Way.GATHER)
    span = connection.scalar(_SPAN) or 0
    if span <= EXACT:
        if not shape.bare:
            return Plan(Way.GATHER)
        return Plan(Way.WALK, Matched(connection.scalar(query.count(shape, dialect), values) or 0))
    near = _near(connection, search, span)
    if near is not None:
        if not _by_end(search.order) or len(near) < _few(search, _LEAST_SHARE):
            return Plan(Way.GATHER)
        tried = _tried(connection, search, near)
        share = tried.found / tried.size
        since = _since(near, _few(search, share)) if share >= _LEAST_SHARE else None
        return Plan(Way.GATHER, tried.matched(), since)
    tried = Trial(span, connection.scalar(_sample(shape, dialect), values) or 0)
    if query.is_indexed(shape, dialect) and tried.expected**2 < span * search.limit:
        return Plan(Way.GATHER)
    return Plan(Way.WALK, tried.matched())


def proceed(connection: Connection, search: Search) -> datetime | None:
    """As :attr:`Plan.since`, of a later page that is gathered."""
    span = connection.scalar(_SPAN) or 0
    if search.ids or span <= EXACT or not _by_end(search.order):
        return None
    near = _near(connection, search, span)
    few = _few(search, 2 * _LEAST_SHARE)
    return None if near is None or len(near) < few else _since(near, few)


_Near: TypeAlias = Sequence[Any]


def _near(connection: Connection, search: Search, span: int) -> _Near | None:
    """On SQLite: keys and ends (days) of the boxes near a place and time, unless there are many."""
    if connection.dialect.name != "sqlite" or not search.shape.in_tree:
        return None
    enough = math.isqrt(span * search.limit)
    values = search.values | {"enough": enough}
    if search.after is not None and isinstance(last := search.after.values[0], datetime):
        values["until"] = boxes.days(last)
    near = connection.execute(_candidates(search.shape), values).all()
    return near if len(near) < enough else None


def _few(search: Search, share: float) -> int:
    """So many boxes should do for a page if that share of them match."""
    return round((search.limit + 1) / share * 1.2) + 20


def _since(near: _Near, few: int) -> datetime:
    """When a few of the boxes, the newest, end."""
    return boxes.instant(float(np.partition([end for _, end in near], -few)[-few]))


def _tried(connection: Connection, search: Search, near: _Near) -> Trial:
    keys = sorted({key for key, _ in near})
    sample = keys[:: max(1, len(keys) // _SAMPLE_NEAR)]
    values = search.values | {"keys": sample}
    found = connection.scalar(_count_among(search.shape, connection.dialect.name), values) or 0
    return Trial(len(keys), found, len(sample))


def _by_end(order: Sequence[SortKey]) -> bool:
    return order[0].descending and order[0].field in ("datetime", "end_datetime")


def _span() -> Select[Any]:
    # Two subqueries: SQLite looks up the one or the other, and reads all for both at once.
    first = select(func.min(items.c.key)).scalar_subquery()
    return select(select(func.max(items.c.key)).scalar_subquery() - first + 1)


_SPAN = _span()


@made_once
def _candidates(shape: Shape) -> Select[Any]:
    asked = boxes.asked(shape.boxes) if shape.boxes else None
    until = shape.after is not None and _by_end(shape.order)
    return boxes.candidates(asked, shape.start, shape.end, until)


@made_once
def _count_among(shape: Shape, dialect: str) -> Select[int]:
    met = query.conditions(shape, Way.WALK, dialect)
    keys = items.c.key.in_(bindparam("keys", expanding=True))
    return select(func.count()).select_from(items).where(keys, *met)


@made_once
def _sample(shape: Shape, dialect: str) -> Select[Any]:
    """How many of the sample's items match."""
    place: Any
    if dialect == "sqlite":
        place = func.json_each(orjson.dumps(_PLACES).decode()).table_valued("value", name="place")
    else:
        places = func.unnest(literal(_PLACES, ARRAY(Float)))
        place = places.table_valued("value").render_derived(name="place")
    first = select(func.min(items.c.key)).scalar_subquery()
    span = select(_span().scalar_subquery().label("span"), first.label("first")).cte("ends")
    key = span.c.first + cast(func.floor(place.c.value * span.c.span), Integer)
    met = and_(*query.conditions(shape, Way.WALK, dialect))
    return (
        select(func.count(case((met, 1))))
        .select_from(span)
        .join(place, literal(True))
        .join(items, items.c.key == key)
        .where(LIVING)
    )
