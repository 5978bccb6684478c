"""Composites against plain loops, answers by hand, and noise of known size."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache import composite as module
from firnline.cache.composite import Composite, Period, composite, overlap, periods, speed
from firnline.errors import InputError

D = np.datetime64
GAP = -32767


def days(*dates: str) -> NDArray[np.datetime64]:
    return np.array(dates, "datetime64[ns]")


# --- periods


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
    got = periods("P1M", D("2019-12-31T23:59:59"), D("2020-03-01"))
    assert [str(p.start)[:10] for p in got] == ["2019-12-01", "2020-01-01", "2020-02-01"]
    assert got[-1].end - got[-1].start == np.timedelta64(29, "D")


@pytest.mark.parametrize(
    ("spec", "start", "first", "end"),
    [
        ("P3M", "2020-05-05", "2020-04-01", "2020-07-01"),
        ("P5Y", "2018-05-05", "2015-01-01", "2020-01-01"),
        ("P6M", "1969-07-20", "1969-07-01", "1970-01-01"),
        ("P1Y6M", "2000-01-01", "1999-07-01", "2001-01-01"),
        ("P12M", "2020-12-31", "2020-01-01", "2021-01-01"),
    ],
)
def test_alignment(spec: str, start: str, first: str, end: str) -> None:
    (got,) = periods(spec, D(start), D(start) + np.timedelta64(1, "D"))
    assert (got.start, got.end) == (D(first), D(end))


def test_end_is_exclusive_and_all_is_one() -> None:
    assert len(periods("P1Y", D("2019-01-01"), D("2020-01-01"))) == 1
    assert len(periods("P1Y", D("2019-01-01"), D("2020-01-01T00:00:00.000000001"))) == 2
    (got,) = periods("all", D("2013-04-01"), D("2024-04-01"))
    assert (got.start, got.end) == (D("2013-04-01"), D("2024-04-01"))


@pytest.mark.parametrize(
    "spec", ["P", "", "p1y", "P0Y", "P1D", "PT1M", "P1.5Y", "1Y", "P-1Y", "yearly", "P1Y ", "ALL"]
)
def test_bad_spec(spec: str) -> None:
    with pytest.raises(InputError, match="P1Y, P3M or P1M, or all"):
        periods(spec, D("2019-01-01"), D("2020-01-01"))


@pytest.mark.parametrize("end", ["2019-01-01", "2018-01-01", "NaT"])
def test_bad_span(end: str) -> None:
    with pytest.raises(InputError, match="after the start"):
        periods("P1Y", D("2019-01-01"), D(end))


@given(
    months=st.integers(1, 40),
    start=st.integers(0, 20_000),
    length=st.integers(1, 5_000),
)
def test_periods_tile_the_span(months: int, start: int, length: int) -> None:
    a, b = D(start, "D"), D(start + length, "D")
    got = periods(f"P{months}M", a, b)
    assert got[0].start <= a < got[0].end
    assert got[-1].start < b <= got[-1].end
    assert all(p.end == q.start for p, q in itertools.pairwise(got))


# --- overlap


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


# --- composite


def brute(
    values: NDArray[np.int16],
    sigma: NDArray[np.floating[Any]],
    weights: NDArray[np.floating[Any]],
    clip: float | None = 3.5,
) -> list[NDArray[np.floating[Any]]]:
    shape = (len(weights), *values.shape[1:])
    out = [np.full(shape, np.nan) for _ in range(3)] + [np.zeros(shape) for _ in range(2)]
    good = sigma[np.isfinite(sigma) & (sigma > 0)]
    own = [s if math.isfinite(s) and s > 0 else float(np.median(good)) for s in sigma.tolist()]
    for p, y, x in np.ndindex(*shape):
        pairs = [
            (float(values[k, y, x]), own[k], float(weights[p, k]))
            for k in range(len(values))
            if weights[p, k] > 0 and values[k, y, x] != GAP
        ]
        if not pairs:
            continue
        median = float(np.median([v for v, _, _ in pairs]))
        mad = float(np.median([abs(v - median) for v, _, _ in pairs]))
        kept = [
            (v, s, w / s**2)
            for v, s, w in pairs
            if clip is None or abs(v - median) <= clip * max(1.4826 * mad, s)
        ]
        total = sum(w for _, _, w in kept)
        mean = sum(w * v for v, _, w in kept) / total
        out[0][p, y, x] = mean
        out[1][p, y, x] = math.sqrt(sum((w * s) ** 2 for _, s, w in kept)) / total
        if len(kept) > 1:
            out[2][p, y, x] = math.sqrt(sum(w * (v - mean) ** 2 for v, _, w in kept) / total)
        out[3][p, y, x] = len(kept)
        out[4][p, y, x] = len(pairs) - len(kept)
    return out


def assert_same(got: Composite, want: list[NDArray[np.floating[Any]]]) -> None:
    np.testing.assert_array_equal(got.count, want[3])
    np.testing.assert_array_equal(got.rejected, want[4])
    np.testing.assert_allclose(got.value, want[0], rtol=1e-5, atol=5e-3)
    np.testing.assert_allclose(got.error, want[1], rtol=1e-4)
    np.testing.assert_allclose(got.dispersion, want[2], rtol=1e-3, atol=2e-2)


@given(
    shape=st.tuples(st.integers(0, 25), st.integers(1, 4), st.integers(1, 5)),
    periods_=st.integers(1, 4),
    gaps=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    outliers=st.sampled_from([0.0, 0.1]),
    clip=st.sampled_from([3.5, None]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_equals_plain_loops(
    shape: tuple[int, int, int],
    periods_: int,
    gaps: float,
    outliers: float,
    clip: float | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(rng.integers(-9000, 9000), 20, shape).astype(np.int16)
    wild = rng.random(shape) < outliers
    values[wild] = rng.integers(-32766, 32767, shape)[wild]
    values[rng.random(shape) < gaps] = GAP
    # odd numbers of 16ths: no |v - median|, a multiple of a half, equals 3.5 of them
    sigma = (2 * rng.integers(8, 300, shape[0]) + 1) / 16
    weights = np.clip(rng.uniform(-0.5, 1, (periods_, shape[0])), 0, 1).astype(np.float32)
    assert_same(composite(values, sigma, weights, clip=clip), brute(values, sigma, weights, clip))


def test_equals_plain_loops_over_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_VALUES", 64)
    rng = np.random.default_rng(3)
    values = rng.normal(500, 30, (60, 7, 9)).astype(np.int16)
    values[rng.random(values.shape) < 0.6] = GAP
    sigma = (2 * rng.integers(8, 300, 60) + 1) / 16
    weights = rng.uniform(0, 1, (3, 60))
    assert_same(composite(values, sigma, weights), brute(values, sigma, weights))
    # a view with gaps between its rows is read as it is
    assert_same(
        composite(values[::2, 1:, ::-1], sigma[::2], weights[:, ::2]),
        brute(values[::2, 1:, ::-1], sigma[::2], weights[:, ::2]),
    )


def column(*values: int) -> NDArray[np.int16]:
    return np.array(values, np.int16)[:, None, None]


def numbers(got: Composite) -> tuple[float, ...]:
    return tuple(
        float(a[0, 0, 0]) for a in (got.value, got.error, got.dispersion, got.count, got.rejected)
    )


def test_two_pairs_by_hand() -> None:
    # weights 1/1 and 0.5/4 = 1/8: (100 + 109/8) / (9/8); error sqrt(1 + 4/64) / (9/8)
    got = composite(column(100, 109), np.array([1.0, 2.0]), np.array([[1.0, 0.5]]))
    value, error, dispersion, count, rejected = numbers(got)
    assert value == pytest.approx(101)
    assert error == pytest.approx(math.sqrt(1 + 1 / 16) * 8 / 9)
    assert dispersion == pytest.approx(math.sqrt((1 + 64 / 8) * 8 / 9))
    assert (count, rejected) == (2, 0)


def test_an_outlier_is_rejected_and_counted() -> None:
    got = composite(column(100, 101, 99, 100, 900, GAP), np.ones(6), np.ones((1, 6)))
    value, error, _, count, rejected = numbers(got)
    assert value == pytest.approx(100)
    assert error == pytest.approx(0.5)
    assert (count, rejected) == (4, 1)


def test_values_within_their_own_error_stay() -> None:
    """MAD is 0 here: most values are equal after rounding."""
    got = composite(column(100, 100, 100, 103), np.ones(4), np.ones((1, 4)))
    assert numbers(got)[3:] == (4, 0)
    got = composite(column(100, 100, 100, 104), np.ones(4), np.ones((1, 4)))
    assert numbers(got)[3:] == (3, 1)


def test_a_surge_is_not_its_own_outlier() -> None:
    """Ten quiet years and a fast one: each is composited from its own pairs."""
    values = column(*[100] * 50, *[2000] * 5)
    weights = np.zeros((2, 55))
    weights[0, :50] = weights[1, 50:] = 1
    got = composite(values, np.full(55, 5.0), weights)
    np.testing.assert_allclose(got.value[:, 0, 0], [100, 2000])
    assert got.rejected.sum() == 0


def test_no_pair_is_no_value() -> None:
    got = composite(column(GAP, GAP), np.ones(2), np.array([[1.0, 1.0], [0.0, 0.0]]))
    for field in (got.value, got.error, got.dispersion):
        assert field.dtype == np.float32
        assert np.isnan(field).all()
    assert got.count.dtype == np.uint32
    assert not got.count.any()
    one = composite(column(7, GAP), np.ones(2), np.array([[1.0, 1.0]]))
    value, error, dispersion, count, _ = numbers(one)
    assert (value, error, count) == (7, 1, 1)
    assert math.isnan(dispersion)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -32767.0])
def test_unusable_sigma_becomes_the_median(bad: float) -> None:
    values = column(100, 104, 108, 112)
    got = composite(values, np.array([2.0, 4.0, 6.0, bad]), np.ones((1, 4)))
    want = composite(values, np.array([2.0, 4.0, 6.0, 4.0]), np.ones((1, 4)))
    assert numbers(got) == numbers(want)
    none = composite(values, np.full(4, bad), np.ones((1, 4)))
    assert numbers(none)[0] == pytest.approx(106)
    assert math.isnan(numbers(none)[1])


def test_extremes_of_int16() -> None:
    values = column(-32766, 32767, 32767, 32766)
    got = composite(values, np.full(4, 1e5), np.ones((1, 4)))
    assert numbers(got)[0] == pytest.approx((-32766 + 3 * 32767 - 1) / 4, rel=1e-6)
    assert numbers(got)[3] == 4


def test_large_mean_keeps_a_small_dispersion() -> None:
    rng = np.random.default_rng(8)
    values = rng.integers(29_998, 30_003, (5000, 1, 1)).astype(np.int16)
    got = composite(values, np.ones(5000), np.ones((1, 5000)))
    assert got.value[0, 0, 0] == pytest.approx(values.mean(), rel=1e-7)
    assert got.dispersion[0, 0, 0] == pytest.approx(values.std(), rel=1e-4)


@pytest.mark.parametrize("pairs", [3, 6, 40])
def test_errors_are_calibrated(pairs: int) -> None:
    """With noise of the stated size the truth lies within one error in 60-76 % of the pixels."""
    rng = np.random.default_rng(pairs)
    sigma = rng.uniform(10, 80, pairs)
    truth = rng.uniform(-5000, 5000, (60, 60))
    values = np.round(truth + sigma[:, None, None] * rng.standard_normal((pairs, 60, 60)))
    got = composite(values.astype(np.int16), sigma, rng.uniform(0.1, 1, (1, pairs)))
    off = np.abs(got.value[0] - truth) / got.error[0]
    assert 0.60 <= np.mean(off <= 1) <= 0.76
    assert np.mean(off <= 2) >= 0.90


def test_outliers_do_not_spoil_the_calibration() -> None:
    rng = np.random.default_rng(9)
    sigma = rng.uniform(10, 30, 60)
    values = np.round(700 + sigma[:, None, None] * rng.standard_normal((60, 50, 50)))
    wild = rng.random(values.shape) < 0.1
    values[wild] = rng.uniform(-9000, 9000, values.shape)[wild]
    got = composite(values.astype(np.int16), sigma, np.ones((1, 60)))
    off = np.abs(got.value[0] - 700) / got.error[0]
    assert 0.60 <= np.mean(off <= 1) <= 0.76
    assert np.mean(off <= 2) >= 0.90
    plain = composite(values.astype(np.int16), sigma, np.ones((1, 60)), clip=None)
    assert np.mean(np.abs(plain.value[0] - 700) <= 2 * plain.error[0]) < 0.2
    assert got.rejected.sum() == pytest.approx(wild.sum(), rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"values": np.ones((3, 2), np.int16)},
        {"values": np.ones((3, 2, 2), np.float32)},
        {"sigma": np.ones(2)},
        {"weights": np.ones((1, 2))},
        {"weights": np.ones(3)},
    ],
)
def test_misfits(change: dict[str, Any]) -> None:
    given_: dict[str, Any] = {
        "values": np.ones((3, 2, 2), np.int16),
        "sigma": np.ones(3),
        "weights": np.ones((1, 3)),
    }
    with pytest.raises(InputError, match="accepted"):
        composite(**{**given_, **change})


def test_memory_is_bounded_and_time_in_the_right_order() -> None:
    """A tile of 8,000 pairs: under 100 MB beyond the input, and nowhere near a Python loop."""
    rng = np.random.default_rng(1)
    values = np.full((8000, 40, 40), GAP, np.int16)
    values[rng.random(values.shape, np.float32) < 0.3] = 500
    weights = np.zeros((4, 8000), np.float32)
    weights[rng.integers(0, 4, 8000), np.arange(8000)] = 1
    sigma = rng.uniform(1, 9, 8000)
    begin = time.perf_counter()
    composite(values, sigma, weights)
    assert time.perf_counter() - begin < 5  # 0.15 s when nothing else runs
    tracemalloc.start()
    composite(values, sigma, weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# --- speed


def test_speed_by_hand() -> None:
    vx, vy = np.array([3.0, 0.0, np.nan, 0.0]), np.array([4.0, 0.0, 1.0, -5.0])
    v, error = speed(vx, vy, np.full(4, 1.0), np.full(4, 2.0))
    np.testing.assert_allclose(v, [5, 0, np.nan, 5])
    np.testing.assert_allclose(
        error, [math.sqrt(9 + 64) / 5, math.sqrt(2.5), np.nan, 2], rtol=1e-12
    )


def test_period_is_a_value() -> None:
    assert (
        Period(D("2020-01-01", "ns"), D("2021-01-01", "ns"))
        == periods("P1Y", D("2020-01-01"), D("2020-01-02"))[0]
    )
