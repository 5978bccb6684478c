"""What can be counted of items, by name: some of all items, the rest by their properties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import BigInteger, ColumnElement, Connection, Text, case, cast, func, literal, null
from sqlalchemy import type_coerce as seen_as

from firnline.api import buckets, counting
from firnline.api.buckets import Answer, Interval
from firnline.api.counting import Part
from firnline.api.searches import Search
from firnline.api.summaries import TEXTS, Summaries, Values
from firnline.properties import Listed, Number, Truth, Word
from firnline.tables import items

PRECISION, MAX_PRECISION = 3, 12
"""Letters of a geohash: cells of three are about as large as cubes."""
_FEW = 20  # whole numbers that are counted one by one; of more, ranges
_DAY = 86_400_000_000  # microseconds
_DAYS_TO_1970 = datetime(1970, 1, 1, tzinfo=UTC).toordinal()


@dataclass(frozen=True)
class Aggregation:
    """What a caller can ask for by `name`, and how it is counted.

    `answer` gets the number of all matches, and their counts by each of the `parts`.
    """

    name: str
    data_type: str
    description: str
    parts: tuple[Part, ...]
    answer: Callable[..., Answer]


def available(
    summaries: Summaries,
    search: Search | None = None,
    interval: Interval | None = None,
    precision: int = PRECISION,
) -> dict[str, Aggregation]:
    """The aggregations of items that have such properties, by name.

    Parameters
    ----------
    search
        What is to be counted.
    interval
        Of ``datetime_frequency``; by default :data:`firnline.api.buckets.FEW_BUCKETS` decides.
    precision
        Letters of the geohashes, 1 to :data:`MAX_PRECISION`.
    """
    within = (search.start, search.end) if search else (None, None)
    found = {}
    for name, summary in sorted(summaries.properties.items()):
        if name not in TEXTS:
            called = f"{name}_frequency"
            of_property = _of_property(called, name, summary.alone, summary.members)
            if of_property is not None:
                found[called] = of_property
    cell = func.ST_GeoHash(func.ST_PointOnSurface(items.c.footprint), precision, type_=Text())
    times = [items.c.start_datetime, items.c.end_datetime]
    start, end = (seen_as(time, BigInteger) for time in times)
    fixed = (
        Aggregation("total_count", "integer", "Items", (), lambda total: {"value": total}),
        Aggregation(
            "datetime_min", "datetime", "The earliest start", (Part(start, "least"),), _instant
        ),
        Aggregation("datetime_max", "datetime", "The latest end", (Part(end, "most"),), _instant),
        Aggregation(
            "datetime_frequency",
            "datetime",
            "Items that overlap each day, month or year: one item may be in many of them",
            (Part(_ordinal(start)), Part(_ordinal(end))),
            lambda _, starts, ends: buckets.over_time(starts, ends, interval, within),
        ),
        _frequency("collection_frequency", "Items of each collection", items.c.collection),
        _frequency(
            "centroid_geohash_grid_frequency",
            "Items by the geohash of a point in the midst of their footprint",
            cell,
        ),
    )
    return found | {each.name: each for each in fixed}


def answers(connection: Connection, search: Search, asked: Sequence[Aggregation]) -> list[Answer]:
    """The matches of a search counted, as an AggregationCollection has them.

    Raises
    ------
    InputError
        There would be too many buckets.
    """
    parts = [part for aggregation in asked for part in aggregation.parts]
    total, counts = counting.count(connection, search, parts)
    each = iter(counts)
    return [
        {"name": one.name, "data_type": one.data_type}
        | one.answer(total, *(next(each) for _ in one.parts))
        for one in asked
    ]


def _of_property(called: str, name: str, alone: Values, members: Values) -> Aggregation | None:
    """By the values of a property, if they are of one kind that can be counted by."""
    stored = items.c.properties
    description = f"Items by {name}"
    if alone.types == {"string"} and not alone.instants and alone.few is not None:
        return _frequency(called, description, Word(stored, name))
    if alone.types == {"boolean"}:
        truth = Truth(stored, name)
        whole = case((truth.is_(True), 1), (truth.is_(False), 0), else_=null())
        return _frequency(called, description, whole, words=("false", "true"))
    small = max(abs(alone.least), abs(alone.most)) < 2**53  # beyond, numbers are not told apart
    if alone.types == {"integer"} and small and alone.few is not None and len(alone.few) <= _FEW:
        return _frequency(called, description, cast(Number(stored, name), BigInteger))
    if alone.types and alone.types <= {"integer", "number"}:
        edges = buckets.round_edges(alone.least, alone.most)

        def index(number: ColumnElement[float]) -> ColumnElement[int]:
            below = ((number < edge, n) for n, edge in enumerate(edges))
            return case((number.is_(None), null()), *below, else_=literal(len(edges)))

        return Aggregation(
            called,
            "numeric",
            f"Items by ranges of {name}, the same for every search",
            (Part(Number(stored, name), value=index),),
            lambda _, counts: buckets.ranges(counts, edges),
        )
    if not alone.count and members.types == {"string"}:
        return Aggregation(
            called,
            "string",
            f"Items that have each member of {name}: one item may have many of them",
            (Part(Listed(stored, name), "members"),),
            lambda _, counts: buckets.frequencies(counts, "string"),
        )
    return None


def _frequency(
    name: str,
    description: str,
    column: ColumnElement[str] | ColumnElement[int],
    words: Sequence[str] = (),
) -> Aggregation:
    """By each value of a column."""
    data_type = "string" if words or isinstance(column.type, Text) else "numeric"
    return Aggregation(
        name,
        data_type,
        description,
        (Part(column, "top"),),
        lambda total, counts: buckets.frequencies(counts, data_type, total=total, words=words),
    )


def _instant(_total: int, counts: buckets.Counts) -> Answer:
    return buckets.instant(counts)


def _ordinal(microseconds: ColumnElement[int]) -> ColumnElement[int]:
    """Days as :meth:`datetime.date.toordinal` counts them: whole division, as none is negative."""
    return (microseconds + _DAYS_TO_1970 * _DAY) // literal(_DAY, BigInteger)
