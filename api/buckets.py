"""What counts mean: the values and the buckets of STAC API - Aggregation 0.3. Pure.

``overflow`` is the number of items that are in none of the buckets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeAlias

from firnline.api.counting import MOST_VALUES, Count
from firnline.errors import InputError

Interval: TypeAlias = Literal["day", "month", "year"]
_INTERVALS: tuple[Interval, ...] = ("day", "month", "year")
FEW_BUCKETS = 120
"""Where no interval is asked for: as many at most, if years allow it."""
_RANGES = 10
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Counts: TypeAlias = Sequence[Count]
Answer: TypeAlias = "dict[str, Any]"


def instant(counts: Counts) -> Answer:
    """A single instant, from microseconds since 1970; null of nothing."""
    at = counts[0].value
    if at is None:
        return {"value": None}
    return {"value": (_EPOCH + timedelta(microseconds=at)).isoformat().replace("+00:00", "Z")}


def frequencies(
    counts: Counts, data_type: str, *, total: int | None = None, words: Sequence[str] = ()
) -> Answer:
    """A bucket for each value, the most frequent first.

    Parameters
    ----------
    total
        Of the items that match, where each has one value at most; None where one has several.
    words
        What whole numbers stand for.
    """
    known = sorted(
        (each for each in counts if each.value is not None),
        key=lambda each: (-each.items, each.value),
    )
    buckets: list[Answer] = [
        {
            "key": words[each.value] if words else str(each.value),
            "data_type": data_type,
            "frequency": each.items,
        }
        for each in known[:MOST_VALUES]
    ]
    if total is None:
        return {"buckets": buckets, "overflow": dict(counts).get(None, 0)}
    return {"buckets": buckets, "overflow": total - sum(each["frequency"] for each in buckets)}


def ranges(counts: Counts, edges: Sequence[float]) -> Answer:
    """A bucket for each range between edges, ``from`` included; the first and last are open.

    A count's value is the number of its range.
    """
    found = dict(counts)
    buckets = []
    for n, ends in enumerate(itertools.pairwise([None, *edges, None])):
        shown = ("*" if edge is None else f"{edge:g}" for edge in ends)
        bucket: Answer = {
            "key": "-".join(shown),
            "data_type": "numeric",
            "frequency": found.get(n, 0),
        }
        named = zip(("from", "to"), ends, strict=True)
        buckets.append(bucket | {end: edge for end, edge in named if edge is not None})
    return {"buckets": buckets, "overflow": found.get(None, 0)}


def round_edges(least: float, most: float) -> list[float]:
    """Up to eleven round numbers, evenly spaced, above `least` and not above `most`."""
    raw = (most - least) / _RANGES
    if not 0 < raw < math.inf:
        return []
    unit = 10.0 ** math.floor(math.log10(raw))
    width = next(unit * step for step in (1, 2, 5, 10) if unit * step >= raw)
    digits = max(0, -math.floor(math.log10(width)))
    first, last = math.floor(least / width) + 1, math.floor(most / width)
    return [round(n * width, digits) for n in range(first, last + 1)]


def over_time(
    starts: Counts,
    ends: Counts,
    interval: Interval | None,
    within: tuple[datetime | None, datetime | None],
) -> Answer:
    """A bucket for each day, month or year, with the items that overlap it.

    These are the ones that started by its end, without those that ended before its start.

    Parameters
    ----------
    starts, ends
        Items by the day on which they start and end, as :meth:`date.toordinal` counts days.
    interval
        By default the shortest that makes :data:`FEW_BUCKETS` at most.
    within
        Buckets are made of this time only.

    Raises
    ------
    InputError
        It would make more than :data:`firnline.api.counting.MOST_VALUES` buckets.
    """
    if not starts:
        return {"data_type": f"interval_{interval or 'year'}", "buckets": [], "overflow": 0}
    days = [min(day for day, _ in starts), max(day for day, _ in ends)]
    for n, (bound, inner) in enumerate(zip(within, (max, min), strict=True)):
        if bound is not None:
            days[n] = inner(days[n], bound.astimezone(UTC).toordinal())
    lengths = {each: _index(days[1], each) - _index(days[0], each) + 1 for each in _INTERVALS}
    chosen = interval or _shortest(lengths)
    if lengths[chosen] > MOST_VALUES:
        raise InputError(
            f"datetime_frequency_interval {chosen} makes {lengths[chosen]:,} buckets, more than "
            f"{MOST_VALUES:,}; take a longer one, or give a datetime"
        )
    first, length = _index(days[0], chosen), lengths[chosen]
    change = [0] * (length + 1)
    for day, found in starts:
        change[max(_index(day, chosen) - first, 0)] += found
    for day, found in ends:
        change[min(_index(day, chosen) - first + 1, length)] -= found
    buckets = [
        {"key": f"{_start(first + n, chosen)}T00:00:00Z", "data_type": "datetime", "frequency": on}
        for n, on in enumerate(itertools.accumulate(change[:-1]))
    ]
    return {"data_type": f"interval_{chosen}", "buckets": buckets, "overflow": 0}


def _shortest(lengths: Mapping[Interval, int]) -> Interval:
    for interval in _INTERVALS:
        if lengths[interval] <= FEW_BUCKETS:
            return interval
    return "year"


def _index(day: int, interval: Interval) -> int:
    """Of days, months or years since the first."""
    if interval == "day":
        return day
    at = date.fromordinal(day)
    return at.year if interval == "year" else 12 * at.year + at.month - 1


def _start(index: int, interval: Interval) -> date:
    if interval == "day":
        return date.fromordinal(index)
    return date(index, 1, 1) if interval == "year" else date(index // 12, index % 12 + 1, 1)
