"""How many items match, and the shorter way to a page of them.

To count is to find everything, which costs more than the page that was asked for. So a search over
a large catalog is first tried on a sample: a few hundred items spread evenly over the catalog,
looked up by their keys. The share that matches gives the number of matches, with a bound of its
error, at a cost that does not grow with the catalog; and it tells which way to the page is shorter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Float, Integer, Select, and_, case, cast, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY

from firnline.api import boxes, query
from firnline.api.query import Search, Shape, Way, made_once
from firnline.tables import LIVING, items

EXACT = 6_000
"""Catalogs of at most so many items (ITS_LIVE's has 4,300) are always counted exactly."""
SAMPLE = 400
"""Items in the sample: two standard errors are 5 % of the catalog, or less."""
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

    @property
    def expected(self) -> float:
        """Matches to be expected."""
        return self.span * self.found / SAMPLE

    def matched(self) -> Matched:
        """The estimate; two standard errors of a binomial share by Agresti and Coull (1998).

        Theirs adds two hits and two misses, so that no sample is taken for certain.
        """
        share = (self.found + 2) / (SAMPLE + 4)
        error = math.ceil(2 * self.span * math.sqrt(share * (1 - share) / (SAMPLE + 4)))
        digits = -max(0, math.floor(math.log10(error)))  # more than the error would be pretended
        return Matched(int(round(self.expected, digits)), error)


def choose(connection: Connection, search: Search) -> tuple[Way, Matched | None]:
    """The way to the first page, and the number of matches where that is known without it.

    What is to be looked up in an index costs by its matches, and what is to be walked to by how
    rare they are: where the square of the matches is less than the catalog times the page,
    gathering is the shorter way.
    """
    dialect, shape, values = connection.dialect.name, search.shape, search.values
    if search.ids:
        return Way.GATHER, None
    span = connection.scalar(_SPAN) or 0
    if span <= EXACT:
        if not shape.bare:
            return Way.GATHER, None
        return Way.WALK, Matched(connection.scalar(query.count(shape, dialect), values) or 0)
    if dialect == "sqlite" and (shape.boxes or shape.start or shape.end):
        enough = math.isqrt(span * search.limit)
        near = connection.scalar(_candidates(shape), values | {"enough": enough}) or 0
        if near < enough:  # the R*Tree tells sooner than a sample
            return Way.GATHER, None
    tried = Trial(span, connection.scalar(_sample(shape, dialect), values) or 0)
    if query.is_indexed(shape, dialect) and tried.expected**2 < span * search.limit:
        return Way.GATHER, None
    return Way.WALK, tried.matched()


def _span() -> Select[Any]:
    # Two subqueries: SQLite looks up the one or the other, and reads all for both at once.
    first = select(func.min(items.c.key)).scalar_subquery()
    return select(select(func.max(items.c.key)).scalar_subquery() - first + 1)


_SPAN = _span()


@made_once
def _candidates(shape: Shape) -> Select[Any]:
    asked = boxes.asked(shape.boxes) if shape.boxes else None
    return boxes.candidates(asked, shape.start, shape.end)


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
