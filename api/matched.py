"""How many items match, and the shorter way to a page of them.

To count is to find everything, which costs more than the page that was asked for. So a search over
a large catalog is first tried on a sample: a few hundred items spread evenly over the catalog,
looked up by their keys. The share that matches gives the number of matches, with a bound of its
error, at a cost that does not grow with the catalog; and it tells which way to the page is shorter.

On SQLite the R*Tree tells sooner, and more: how many boxes are near, and, of a sample, when they
end. Where they are many and the newest items are asked for, only the newest boxes are looked at
closely, and the sample gives the number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import orjson
from sqlalchemy import (
    Connection,
    Float,
    Integer,
    Select,
    Text,
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
_SAMPLE_NEAR = 50  # of the boxes that the R*Tree found, most of which match
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
        if not _by_end(search.order) or near < _few(search):
            return Plan(Way.GATHER)
        sample = _sampled(connection, search, near)
        tried = _tried(connection, search, near, sample)
        share = tried.found / tried.size
        since = _since(search, near, sample, share) if share >= _LEAST_SHARE else None
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
    if near is None or near < _few(search):
        return None
    return _since(search, near, _sampled(connection, search, near), 2 * _LEAST_SHARE)


_Sample: TypeAlias = Sequence[Any]


def _near(connection: Connection, search: Search, span: int) -> int | None:
    """On SQLite: the number of boxes near a place and time, unless there are many."""
    if connection.dialect.name != "sqlite" or not search.shape.in_tree:
        return None
    enough = math.isqrt(span * search.limit)
    values = _in_tree(search) | {"enough": enough}
    near = connection.scalar(_counted(search.shape), values) or 0
    return near if near < enough else None


def _in_tree(search: Search) -> dict[str, Any]:
    values = search.values
    if search.after is not None and isinstance(last := search.after.values[0], datetime):
        values["until"] = boxes.years(last)
    return values


def _few(search: Search) -> int:
    """Boxes that hold a page if the least share of them matches: so many are soon gathered."""
    return round((search.limit + 1) / _LEAST_SHARE * 1.2) + 20


def _sampled(connection: Connection, search: Search, near: int) -> _Sample:
    """Keys and ends (years) of some `SAMPLE` of the boxes near."""
    values = _in_tree(search) | {"share": 2**32 * SAMPLE // near}
    return connection.execute(_boxes(search.shape), values).all()


def _tried(connection: Connection, search: Search, near: int, sample: _Sample) -> Trial:
    keys = list({key for key, _ in sample})  # an item may have two boxes
    tried = keys[:: max(1, len(keys) // _SAMPLE_NEAR)]
    values = search.values | {"keys": orjson.dumps(tried).decode()}
    found = connection.scalar(_count_among(search.shape, connection.dialect.name), values) or 0
    return Trial(round(near * len(keys) / len(sample)), found, len(tried))


def _since(search: Search, near: int, sample: _Sample, share: float) -> datetime | None:
    """When the newest boxes end, as many as a page needs if that share of them match.

    By the rank among the sampled ends, with 2.5 standard errors; None if all are needed.
    """
    needed = 1.1 * (search.limit + 1) / share * len(sample) / near
    rank = math.ceil(needed + 2.5 * math.sqrt(needed)) + 1
    if rank > len(sample):
        return None
    return boxes.instant(sorted(end for _, end in sample)[-rank])


def _by_end(order: Sequence[SortKey]) -> bool:
    return order[0].descending and order[0].field in ("datetime", "end_datetime")


def _span() -> Select[Any]:
    # Two subqueries: SQLite looks up the one or the other, and reads all for both at once.
    first = select(func.min(items.c.key)).scalar_subquery()
    return select(select(func.max(items.c.key)).scalar_subquery() - first + 1)


_SPAN = _span()


@made_once
def _counted(shape: Shape) -> Select[int]:
    return boxes.count(*_place(shape))


@made_once
def _boxes(shape: Shape) -> Select[Any]:
    return boxes.sample(*_place(shape))


def _place(shape: Shape) -> tuple[boxes.Asked | None, bool, bool, bool]:
    asked = boxes.asked(shape.boxes) if shape.boxes else None
    until = shape.after is not None and _by_end(shape.order)
    return asked, shape.start, shape.end, until


@made_once
def _count_among(shape: Shape, dialect: str) -> Select[int]:
    asked = func.json_each(bindparam("keys", type_=Text())).table_valued("value")
    keys = items.c.key.in_(select(asked))  # parameters of their own would be compiled every time
    met = query.conditions(shape, Way.WALK, dialect, keys)
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
