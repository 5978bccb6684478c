"""How the calendar is cut, and how much of an image pair lies in each part."""

from __future__ import annotations

import datetime as dt
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache.periods import Period, canonical, overlap, period_label, periods
from firnline.errors import InputError

D = np.datetime64


def days(*dates: str) -> NDArray[np.datetime64]:
    return np.array(dates, "datetime64[ns]")


def starts(spec: str, start: str, end: str) -> list[str]:
    return [str(p.start)[:10] for p in periods(spec, D(start), D(end))]


def test_years_with_a_leap_year() -> None:
    got = periods("P1Y", D("2019-06-15"), D("2021-03-01"))
    assert [(str(p.start)[:10], str(p.end)[:10]) for p in got] == [
        ("2019-01-01", "2020-01-01"),
        ("2020-01-01", "2021-01-01"),
        ("2021-01-01", "2022-01-01"),
    ]
    assert got[0].mid == D("2019-07-02T12:00")
    assert got[1].mid == D("2020-07-02")  # 366 days


def test_months_and_february() -> None:
    got = periods("month", D("2019-12-31T23:59:59"), D("2020-03-01"))
    assert [str(p.start)[:10] for p in got] == ["2019-12-01", "2020-01-01", "2020-02-01"]
    assert got[-1].end - got[-1].start == np.timedelta64(29, "D")


@pytest.mark.parametrize(
    ("spec", "start", "first", "end"),
    [
        ("P3M", "2020-05-05", "2020-04-01", "2020-07-01"),
        ("P5Y", "2018-05-05", "2015-01-01", "2020-01-01"),
        ("P6M", "1969-07-20", "1969-07-01", "1970-01-01"),
        ("P1Y6M", "2000-01-01", "1999-07-01", "2001-01-01"),
        ("year", "2020-12-31", "2020-01-01", "2021-01-01"),
        ("season", "2020-01-31", "2019-12-01", "2020-03-01"),
        ("season", "2019-12-01", "2019-12-01", "2020-03-01"),
        ("season", "1968-11-30", "1968-09-01", "1968-12-01"),
        # 2020-02-24 was a Monday, as 1969-12-29 was; week 1 of 2021 began in it
        ("P1W", "2020-02-29", "2020-02-24", "2020-03-02"),
        ("P1W", "2021-01-04", "2021-01-04", "2021-01-11"),
        ("P2W", "1970-01-11", "1969-12-29", "1970-01-12"),
        ("P2W", "1969-12-28", "1969-12-15", "1969-12-29"),
        ("P16D", "2019-01-16", "2019-01-01", "2019-01-17"),
        ("P16D", "2019-12-31", "2019-12-19", "2020-01-01"),  # 13 days, of 365 = 22 * 16 + 13
        ("P8D", "2020-12-30", "2020-12-26", "2021-01-01"),  # 6 days of a leap year
        ("P1D", "2020-02-29T13:00", "2020-02-29", "2020-03-01"),
    ],
)
def test_alignment(spec: str, start: str, first: str, end: str) -> None:
    got = periods(spec, D(start), D(start) + np.timedelta64(1, "s"))
    assert [(p.start, p.end) for p in got] == [(D(first), D(end))]


def test_end_is_exclusive_and_all_is_one() -> None:
    assert len(periods("P1Y", D("2019-01-01"), D("2020-01-01"))) == 1
    assert len(periods("P1Y", D("2019-01-01"), D("2020-01-01T00:00:00.000000001"))) == 2
    assert starts("P16D", "2019-12-20", "2020-01-17") == ["2019-12-19", "2020-01-01"]
    (got,) = periods("all", D("2013-04-01"), D("2024-04-01"))
    assert (got.start, got.end) == (D("2013-04-01"), D("2024-04-01"))


@pytest.mark.parametrize(
    "spec",
    ["P", "", "p1y", "P0Y", "P0D", "PT1M", "P1.5Y", "1Y", "P-1Y", "yearly", "P1Y ", "ALL", "P1M1Y",
     "P367D", "P1W1D", "P1M15D", "P1Y\n"],
)  # fmt: skip
def test_bad_spec(spec: str) -> None:
    with pytest.raises(InputError, match="accepted are year, month, season, all, or an ISO 8601"):
        periods(spec, D("2019-01-01"), D("2020-01-01"))


@pytest.mark.parametrize("end", ["2019-01-01", "2018-01-01", "NaT"])
def test_bad_span(end: str) -> None:
    with pytest.raises(InputError, match="after the start"):
        periods("P1Y", D("2019-01-01"), D(end))


SPECS = st.one_of(
    st.sampled_from(["year", "month", "season", "all"]),
    st.builds("P{}M".format, st.integers(1, 40)),
    st.builds("P{}Y{}M".format, st.integers(0, 5), st.integers(1, 30)),
    st.builds("P{}W".format, st.integers(1, 60)),
    st.builds("P{}D".format, st.integers(1, 366)),
)


@given(spec=SPECS, start=st.integers(-5_000, 20_000), length=st.integers(1, 5_000))
def test_periods_tile_the_span(spec: str, start: int, length: int) -> None:
    a, b = D(start, "D"), D(start + length, "D")
    got = periods(spec, a, b)
    assert got[0].start <= a < got[0].end
    assert got[-1].start < b <= got[-1].end
    assert all(p.end == q.start for p, q in itertools.pairwise(got))
    assert all(p.start < p.end for p in got)
    assert periods(canonical(spec), a, b) == got
    assert canonical(canonical(spec)) == canonical(spec)


@given(st.integers(-5_000, 30_000), st.integers(1, 366))
def test_days_are_counted_from_new_year(day: int, length: int) -> None:
    date = D(day, "D").item()
    (got,) = periods(f"P{length}D", D(day, "D"), D(day + 1, "D"))
    nth = date.timetuple().tm_yday - 1
    begin = dt.date(date.year, 1, 1) + dt.timedelta(nth // length * length)
    end = min(begin + dt.timedelta(length), dt.date(date.year + 1, 1, 1))
    assert (got.start, got.end) == (D(begin), D(end))


def test_one_spelling() -> None:
    spelt = {"P12M": "P1Y", "year": "P1Y", "P24M": "P2Y", "P1Y6M": "P18M", "month": "P1M"}
    spelt |= {"P07D": "P7D", "season": "season", "all": "all", "P1W": "P1W"}
    assert {spec: canonical(spec) for spec in spelt} == spelt


@pytest.mark.parametrize(
    ("spec", "day", "label"),
    [
        ("P1Y", "2019-05-05", "2019"),
        ("P1M", "2019-05-05", "2019-05"),
        ("P1W", "2018-12-31", "2019-W01"),
        ("P1D", "2019-05-05", "2019-05-05"),
        ("season", "2018-12-05", "2019-DJF"),
        ("season", "2019-02-05", "2019-DJF"),
        ("season", "2019-03-05", "2019-MAM"),
        ("season", "2019-08-31", "2019-JJA"),
        ("season", "2019-11-05", "2019-SON"),
        ("P3M", "2019-05-05", "2019-04-01/2019-07-01"),
    ],
)
def test_labels(spec: str, day: str, label: str) -> None:
    (period,) = periods(spec, D(day), D(day) + np.timedelta64(1, "D"))
    assert period_label(period, spec) == label


def test_overlap_by_hand() -> None:
    years = periods("P1Y", D("2019-01-01"), D("2021-01-01"))
    date1 = days("2019-12-22", "2019-06-01", "2021-01-05", "2018-12-22", "2020-01-01", "NaT")
    date2 = days("2020-01-11", "2019-07-01", "2021-02-01", "2021-01-10", "2020-01-01", "2020-01-01")
    got = overlap(years, date1, date2)
    assert got.dtype == np.float32
    want = [[0.5, 1, 0, 365 / 750, 0, 0], [0.5, 0, 0, 366 / 750, 1, 0]]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_array_equal(overlap(years, date2, date1), got)


@given(st.lists(st.tuples(st.integers(17_000, 18_500), st.integers(0, 900)), max_size=20))
def test_fractions_add_up_to_one(pairs: list[tuple[int, int]]) -> None:
    date1 = np.array([a for a, _ in pairs], "datetime64[D]")
    date2 = np.array([a + n for a, n in pairs], "datetime64[D]")
    months = periods("P1M", D(16_000, "D"), D(20_000, "D"))
    np.testing.assert_allclose(overlap(months, date1, date2).sum(0), 1, rtol=1e-5)


def test_overlap_of_misfit_dates() -> None:
    with pytest.raises(InputError, match="one length"):
        overlap((), days("2020-01-01"), days())


def test_period_is_a_value() -> None:
    assert (
        Period(D("2020-01-01", "ns"), D("2021-01-01", "ns"))
        == periods("P1Y", D("2020-01-01"), D("2020-01-02"))[0]
    )
