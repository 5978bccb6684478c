"""Buckets made of counts: pure, against brute force."""

from __future__ import annotations

import calendar
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firnline.api.buckets import FEW_BUCKETS, Interval, over_time, ranges, round_edges
from firnline.api.counting import MOST_VALUES, Count
from firnline.errors import InputError

OPEN = (None, None)
days = st.integers(date(1983, 12, 1).toordinal(), date(1985, 3, 31).toordinal())
spans = st.lists(st.tuples(days, days).map(sorted), min_size=1, max_size=12)


def last_day(first: date, interval: Interval) -> date:
    if interval == "day":
        return first
    month = 12 if interval == "year" else first.month
    return date(first.year, month, calendar.monthrange(first.year, month)[1])


def counts(values: list[int]) -> list[Count]:
    return [Count(value, 1) for value in values]  # a value may come in several rows


@given(spans, st.sampled_from(["day", "month", "year"]))
def test_a_bucket_has_the_spans_that_overlap_it(
    given_spans: list[list[int]], interval: Interval
) -> None:
    answer = over_time(
        counts([first for first, _ in given_spans]),
        counts([last for _, last in given_spans]),
        interval,
        OPEN,
    )
    assert answer["data_type"] == f"interval_{interval}"
    previous: date | None = None
    for bucket in answer["buckets"]:
        first = datetime.fromisoformat(bucket["key"]).date()
        last = last_day(first, interval)
        assert previous is None or (first - previous).days == 1  # no gaps
        previous = last
        overlapping = [
            s for s in given_spans if s[0] <= last.toordinal() and s[1] >= first.toordinal()
        ]
        assert bucket["frequency"] == len(overlapping)
    keys = [bucket["key"] for bucket in answer["buckets"]]
    assert previous is not None
    assert keys[0][:10] <= date.fromordinal(min(s[0] for s in given_spans)).isoformat()
    assert previous.toordinal() >= max(s[1] for s in given_spans)


@given(spans, days)
def test_buckets_of_the_time_asked_for_only(given_spans: list[list[int]], day: int) -> None:
    """Of spans that overlap the time, as all matches of a search do."""
    at = datetime.combine(date.fromordinal(day), datetime.min.time(), UTC)
    met = [span for span in given_spans if span[0] <= day <= span[1]]
    starts, ends = counts([s[0] for s in met]), counts([s[1] for s in met])
    answer = over_time(starts, ends, "day", (at, at))
    shown = [(bucket["key"], bucket["frequency"]) for bucket in answer["buckets"]]
    assert shown == ([(f"{at:%Y-%m-%d}T00:00:00Z", len(met))] if met else [])


@pytest.mark.parametrize(
    ("last", "interval", "number"),
    [
        (date(2000, 1, 1), "day", 1),
        (date(2000, 4, 29), "day", 120),
        (date(2000, 4, 30), "month", 4),
        (date(2009, 12, 31), "month", 120),
        (date(2010, 1, 1), "year", 11),
        (date(2999, 1, 1), "year", 1000),
    ],
)
def test_the_shortest_interval_of_not_too_many_buckets(
    last: date, interval: str, number: int
) -> None:
    assert FEW_BUCKETS == 120
    starts, ends = counts([date(2000, 1, 1).toordinal()]), counts([last.toordinal()])
    answer = over_time(starts, ends, None, OPEN)
    assert answer["data_type"] == f"interval_{interval}"
    assert len(answer["buckets"]) == number


def test_too_many_buckets_are_refused() -> None:
    first = date(1980, 1, 1).toordinal()
    starts = counts([first])
    assert (
        len(over_time(starts, counts([first + MOST_VALUES - 1]), "day", OPEN)["buckets"]) == 10_000
    )
    with pytest.raises(InputError, match=r"datetime_frequency_interval day makes 10,001 buckets"):
        over_time(starts, counts([first + MOST_VALUES]), "day", OPEN)


@pytest.mark.parametrize(
    ("least", "most", "edges"),
    [
        (0, 100, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]),
        (3, 99, [10, 20, 30, 40, 50, 60, 70, 80, 90]),
        (0.12, 0.94, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        (-7, 8, [-6, -4, -2, 0, 2, 4, 6, 8]),
        (1_000, 80_000, [n * 10_000 for n in range(1, 9)]),
        (5, 5, []),
        (float("inf"), float("-inf"), []),
        (-1.7e308, 1.7e308, []),
    ],
)
def test_round_edges(least: float, most: float, edges: list[float]) -> None:
    assert round_edges(least, most) == edges


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_edges_are_evenly_spaced_and_within(one: float, other: float) -> None:
    least, most = sorted((one, other))
    edges = round_edges(least, most)
    assert edges == sorted(set(edges))
    assert len(edges) <= 11
    if edges:
        width = edges[1] - edges[0] if len(edges) > 1 else most - least
        assert least <= edges[0] + width * 1e-6
        assert edges[-1] <= most + width * 1e-6


def test_ranges_name_their_ends() -> None:
    answer = ranges([Count(0, 4), Count(2, 1), Count(None, 7)], [0.5, 1.5])
    expected: list[dict[str, Any]] = [
        {"key": "*-0.5", "data_type": "numeric", "frequency": 4, "to": 0.5},
        {"key": "0.5-1.5", "data_type": "numeric", "frequency": 0, "from": 0.5, "to": 1.5},
        {"key": "1.5-*", "data_type": "numeric", "frequency": 1, "from": 1.5},
    ]
    assert answer == {"buckets": expected, "overflow": 7}
