"""Composites against plain loops, answers by hand, and noise of known size."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache import composite as module
from firnline.cache.composite import Composite, Estimator, composite
from firnline.cache.composite_error import speed
from firnline.cache.periods import Period, periods
from firnline.errors import InputError

D = np.datetime64
GAP = -32767
Values = NDArray[np.int16]

YEAR = periods("P1Y", D("2019-01-01"), D("2020-01-01"))
YEARS = periods("P1Y", D("2018-01-01"), D("2021-01-01"))


# --- by plain loops


def grouped(values: list[float], weights: list[float], p: float) -> float:
    """The quantile of weights that are spread over half a unit on both sides of their values."""
    u = sorted({v for v, w in zip(values, weights, strict=True) if w > 0})
    mass = [sum(w for v, w in zip(values, weights, strict=True) if v == a) for a in u]
    total, below = sum(mass), 0.0
    target = max(p, 2e-6) * total
    for i, (a, m) in enumerate(zip(u, mass, strict=True)):
        if below + m >= target - 1e-6 * total:
            if i + 1 < len(u) and abs(below + m - target) <= 1e-6 * total:
                return (a + u[i + 1]) / 2
            return a - 0.5 + min(max((target - below) / m, 0), 1)
        below += m
    raise AssertionError


def half_within(values: list[float], weights: list[float], centre: float) -> float:
    below, total = 0.0, sum(weights)
    for distance, weight in sorted(
        (abs(v - centre), w) for v, w in zip(values, weights, strict=True)
    ):
        below += weight
        if below >= (0.5 - 1e-6) * total:
            return distance
    raise AssertionError


Pair = tuple[float, float, float, float]  # value, sigma, overlap, middle in days


def outliers(pairs: list[Pair]) -> list[bool]:
    values, overlaps = [p[0] for p in pairs], [p[2] for p in pairs]
    median = grouped(values, overlaps, 0.5)
    scatter = 1.4826 * half_within(values, overlaps, median)
    about = math.pi / 2 * sum((o * s) ** 2 for _, s, o, _ in pairs) / sum(overlaps) ** 2
    return [
        abs(v - median) > 3.5 * scatter and (v - median) ** 2 > 3.5**2 * (s**2 + about)
        for v, s, _, _ in pairs
    ]


def excess(square: float, expected: float, freedom: float) -> float:
    return max(0.0, square - expected * (1 + 2 / (max(freedom, 0) + 2)))


def component(
    pairs: list[Pair], method: Estimator, centre: float, level: float
) -> dict[str, float]:
    values = [p[0] for p in pairs]
    w = [o / s**2 for _, s, o, _ in pairs]
    total = sum(w)
    n = total**2 / sum(x**2 for x in w)
    mean = sum(x * v for x, v in zip(w, values, strict=True)) / total
    squares = sum(x * (v - mean) ** 2 for x, v in zip(w, values, strict=True))
    noise = sum((x * s) ** 2 for x, (_, s, _, _) in zip(w, pairs, strict=True)) / total
    own = (total / sum(x / s for x, (_, s, _, _) in zip(w, pairs, strict=True))) ** 2
    out = {"n": n, "own": own, "dispersion": math.nan, "tau2": 0.0, "freedom": 0.0}
    out["date"] = sum(x * p[3] for x, p in zip(w, pairs, strict=True)) / total
    even = [o / (s**2 + level) for _, s, o, _ in pairs]
    a, aa = sum(even), sum(x**2 for x in even)
    centre_a = sum(x * v for x, v in zip(even, values, strict=True)) / a
    yy = sum(x * (v - centre_a) ** 2 for x, v in zip(even, values, strict=True))
    if a**2 / aa - 1 > 0.01:
        out["freedom"] = a**2 / aa - 1
        stated = sum(x * (1 - x / a) * p[1] ** 2 for x, p in zip(even, pairs, strict=True))
        out["tau2"] = excess(yy, stated, out["freedom"]) / (a - aa / a)
    chance = squares / total * (2 + 12 / n) / n
    days = [p[3] - out["date"] for p in pairs]
    spread = sum(x * d**2 for x, d in zip(w, days, strict=True)) / total
    out["aside"] = 0.0
    if spread > 1:
        slope = sum(x * d * v for x, d, v in zip(w, days, values, strict=True)) / total / spread
        out["aside"] = 2 * max(0, slope**2 - chance / spread) * (centre - out["date"]) ** 2
    out["off"] = centre - out["date"]
    if method == "mean":
        out |= {"value": mean, "stated": noise / total, "near": 0.0}
        if len(pairs) > 1:
            out["dispersion"] = math.sqrt(squares / total)
        return out
    median = grouped(values, w, 0.5)
    step = 0.5 / math.sqrt(n)
    low, high = grouped(values, w, 0.5 - step), grouped(values, w, 0.5 + step)
    out["value"] = median
    out["aside"] += 2 * max(0, (mean - median) ** 2 - (math.pi / 2 - 1) * chance)
    out["stated"] = (math.pi / 2 - (math.pi / 2 - 1) / n) / n * own
    out["near"] = ((high - median) ** 2 + (median - low) ** 2) / 2
    if len(pairs) > 1:
        out["dispersion"] = 1.4826 * half_within(values, w, median)
    return out


def line(periods_: list[list[Pair]], level: float) -> tuple[float, float, float]:
    """Unexplained variance about the line through all pairs, its freedom, and its slope squared."""
    if len(periods_) < 2:
        return 0.0, 0.0, 0.0
    pairs = [p for pairs in periods_ for p in pairs]
    a = [o / (s**2 + level) for _, s, o, _ in pairs]
    total = sum(a)
    n = total**2 / sum(x / (p[1] ** 2 + level) for x, p in zip(a, pairs, strict=True))
    if n - 1 <= 0.01:
        return 0.0, 0.0, 0.0
    day, value = (sum(x * p[k] for x, p in zip(a, pairs, strict=True)) / total for k in (3, 0))
    tt, ty, yy = (
        sum(x * (p[j] - m) * (p[k] - c) for x, p in zip(a, pairs, strict=True)) / total
        for j, k, m, c in ((3, 3, day, day), (3, 0, day, value), (0, 0, value, value))
    )
    slope = ty / tt if tt > 1 else 0.0
    noise = sum(x * p[1] ** 2 for x, p in zip(a, pairs, strict=True)) / total
    if n > 2.3:
        freedom, tau2 = n - 2, excess((yy - slope * ty) / (1 - 2 / n), noise, n - 2)
    else:
        freedom = min(n - 1, 1)
        tau2 = excess(yy / (1 - 1 / n), noise, freedom)
    steep = max(0.0, slope**2 - (tau2 + noise) / tt / len(periods_)) if tt > 1 else 0.0
    return tau2, freedom, steep


def variances(
    terms: list[dict[str, float]], of_line: tuple[float, float, float], method: Estimator
) -> list[tuple[float, float]]:
    """(stated, unexplained) of each period of a pixel; `terms` has those with pairs."""
    told = sorted([*((t["tau2"], t["freedom"]) for t in terms), (of_line[0], min(of_line[1], 3))])
    known = sum(freedom for _, freedom in told)
    below = itertools.accumulate(freedom for _, freedom in told)
    reached = (t for (t, _), part in zip(told, below, strict=True) if part >= (0.7 - 1e-6) * known)
    others = next(reached) if known else 0.0
    out = []
    for t in terms:
        n, freedom = t["n"], t["freedom"]
        tau2 = (freedom * t["tau2"] + 3 * others) / (freedom + 3)
        one = tau2 * (1 + 1.5 / (freedom + min(known, 3) + 1)) * (1 + 0.4 / n)
        off = t["aside"] + of_line[2] * t["off"] ** 2
        if method == "mean":
            out.append((t["stated"], one / n + off))
            continue
        sine = math.pi**2 / 2
        near = (n - 1) * (1 + 1.5 / n) * t["near"]
        near += 7 * (t["stated"] + sine / (n + sine - 1) * one)
        share = tau2 / (t["own"] + tau2)
        out.append(((1 - share) * t["stated"], share * near / (n - 1 + 7) + off))
    return out


def middle_day(period: Period) -> float:
    return float((period.mid - D("1970-01-01", "ns")) / np.timedelta64(1, "D"))


def share_of(period: Period, a: np.datetime64, b: np.datetime64) -> float:
    inside = min(b, period.end) - max(a, period.start)
    return max(float(inside / np.timedelta64(1, "ns")), 0) / float(
        (b - a) / np.timedelta64(1, "ns")
    )


def brute(
    vx: Values, vy: Values, sx: Any, sy: Any, date1: Any, date2: Any,
    spans: tuple[Period, ...], method: Estimator, clip: float | None = 3.5,
) -> dict[str, NDArray[np.floating]]:  # fmt: skip
    shape = (len(spans), *vx.shape[1:])
    out = {f.name: np.full(shape, np.nan) for f in fields(Composite)}
    for name in ("count", "rejected", "too_long"):
        out[name][...] = 0
    days1, days2 = ((d - D("1970-01-01", "ns")) / np.timedelta64(1, "D") for d in (date1, date2))
    levels = {"vx": np.median(sx) ** 2 / 4, "vy": np.median(sy) ** 2 / 4} if len(sx) else {}
    for y, x in np.ndindex(*shape[1:]):
        record: dict[str, list[list[Pair]]] = {"vx": [], "vy": []}
        terms: dict[str, list[dict[str, float]]] = {"vx": [], "vy": []}
        at = []
        for p, span in enumerate(spans):
            there = [
                k for k in range(len(vx))
                if share_of(span, date1[k], date2[k]) > 0 and GAP not in (vx[k, y, x], vy[k, y, x])
            ]  # fmt: skip
            if not there:
                continue
            both = {
                name: [
                    (float(v[k, y, x]), float(s[k]), share_of(span, date1[k], date2[k]),
                     float(days1[k] + days2[k]) / 2)
                    for k in there
                ]
                for name, v, s in (("vx", vx, sx), ("vy", vy, sy))
            }  # fmt: skip
            bad = [clip is not None and (a or b) for a, b in
                   zip(outliers(both["vx"]), outliers(both["vy"]), strict=True)]  # fmt: skip
            used = [k for k, b in zip(there, bad, strict=True) if not b]
            out["count"][p, y, x], out["rejected"][p, y, x] = len(used), sum(bad)
            if not used:
                continue
            at.append(p)
            for name, pairs in both.items():
                kept = [pair for pair, b in zip(pairs, bad, strict=True) if not b]
                terms[name].append(component(kept, method, middle_day(span), levels[name]))
                record[name].append(kept)
                out[name][p, y, x] = terms[name][-1]["value"]
            out["dispersion"][p, y, x] = math.hypot(*(t[-1]["dispersion"] for t in terms.values()))
            out["mean_date"][p, y, x] = sum(t[-1]["date"] for t in terms.values()) / 2
            out["first_date"][p, y, x] = min(days1[k] for k in used)
            out["last_date"][p, y, x] = max(days2[k] for k in used)
        found = {
            name: variances(t, line(record[name], levels[name]), method)
            for name, t in terms.items() if at
        }  # fmt: skip
        for i, p in enumerate(at):
            (x0, x1), (y0, y1) = found["vx"][i], found["vy"][i]
            vx_, vy_ = out["vx"][p, y, x], out["vy"][p, y, x]
            v = math.hypot(vx_, vy_)
            c, s = (abs(vx_) / v, abs(vy_) / v) if v else (math.sqrt(0.5), math.sqrt(0.5))
            change = (c * math.sqrt(x1) + s * math.sqrt(y1)) ** 2
            out["v"][p, y, x] = v
            out["v_error"][p, y, x] = math.sqrt(c * c * x0 + s * s * y0 + change)
            out["vx_error"][p, y, x], out["vy_error"][p, y, x] = (
                math.sqrt(x0 + x1),
                math.sqrt(y0 + y1),
            )
    return out


def assert_same(got: Composite, want: dict[str, NDArray[np.floating]]) -> None:
    for name, values in want.items():
        mine = getattr(got, name)
        if name in ("count", "rejected", "too_long"):
            assert mine.dtype == np.uint32
            np.testing.assert_array_equal(mine, values, err_msg=name)
            continue
        assert mine.dtype == np.float32
        # float32: of sums for velocities, of days since 1970 for dates
        limits = {"rtol": 2e-7, "atol": 0} if "date" in name else {"rtol": 2e-3, "atol": 2e-2}
        np.testing.assert_allclose(mine, values, err_msg=name, **limits)


def random_pairs(seed: int, pairs: int, shape: tuple[int, int], gaps: float) -> tuple[Any, ...]:
    """Arguments of `composite`: some pairs reach over New Year, some are wild in one component."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in "xy":
        v = np.rint(rng.normal(rng.integers(-9000, 9000), 20, (pairs, *shape))).astype(np.int16)
        wild = rng.random(v.shape) < 0.05
        v[wild] = rng.integers(-32766, 32767, v.shape)[wild]
        values.append(v)
    values[0][rng.random(values[0].shape) < gaps] = GAP
    values[1][values[0] == GAP] = GAP
    values[1][rng.random(values[1].shape) < gaps / 5] = GAP
    sigma = rng.uniform(1, 40, (2, pairs))
    start = D("2018-02-01", "ns") + rng.integers(0, 900 * 86_400, pairs).astype("m8[s]")
    end = start + rng.integers(86_400, 300 * 86_400, pairs).astype("m8[s]")
    return (*values, *sigma, start, end)


@given(
    pairs=st.integers(0, 25),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    gaps=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    method=st.sampled_from(["median", "mean"]),
    clip=st.sampled_from([3.5, None]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=80)
def test_equals_plain_loops(
    pairs: int,
    shape: tuple[int, int],
    gaps: float,
    method: Estimator,
    clip: float | None,
    seed: int,
) -> None:
    given_ = random_pairs(seed, pairs, shape, gaps)
    got = composite(*given_, YEARS, method=method, clip=clip)
    assert_same(got, brute(*given_, YEARS, method, clip))


@pytest.mark.parametrize("spec", ["P3M", "season", "all"])
def test_equals_plain_loops_over_many_blocks(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_VALUES", 64)
    monkeypatch.setattr(module, "_BLOCK_WIDTH", 4)
    vx, vy, *rest = random_pairs(3, 50, (7, 9), 0.6)
    spans = periods(spec, rest[2].min(), rest[3].max())
    want = brute(vx, vy, *rest, spans, "median")
    assert_same(composite(vx, vy, *rest, spans), want)
    # a view with gaps between its rows is read as it is, and the dates may be in either order
    turned = composite(vx[:, ::-1], vy[:, ::-1], *rest[:2], rest[3], rest[2], spans)
    assert_same(turned, {name: values[:, ::-1] for name, values in want.items()})


# --- by hand


def column(*values: int) -> Values:
    return np.array(values, np.int16)[:, None, None]


def of_2019(count: int) -> tuple[NDArray[np.datetime64], NDArray[np.datetime64]]:
    """Dates of pairs that lie in 2019, one after the other."""
    start = D("2019-01-10", "ns") + np.arange(count) * np.timedelta64(1, "h")
    return start, start + np.timedelta64(20, "D")


def one(vx: Values, sigma: Any, vy: Values | None = None, **more: Any) -> dict[str, float]:
    """The composite of one pixel in 2019."""
    sigma = np.asarray(sigma, np.float64)
    dates = more.pop("dates", of_2019(len(vx)))
    got = composite(vx, vx if vy is None else vy, sigma, sigma, *dates, YEAR, **more)
    return {f.name: float(getattr(got, f.name)[0, 0, 0]) for f in fields(Composite)}


def test_the_median_leaves_the_fast_pair_aside_and_the_mean_does_not() -> None:
    values, sigma = column(100, 110, 160), [20.0, 20.0, 20.0]
    # the second third of the weight is spread over 109.5 to 110.5: its half is 110
    assert one(values, sigma)["vx"] == pytest.approx(110)
    assert one(values, sigma, method="mean")["vx"] == pytest.approx(370 / 3)
    assert one(values, sigma)["dispersion"] == pytest.approx(1.4826 * 10 * math.sqrt(2), rel=1e-4)


def test_weights_are_overlap_over_error_squared() -> None:
    # the third pair lies half in 2019, at twice the error: 1/8 of the weight of each other
    start = np.array(["2019-02-01", "2019-03-01", "2018-12-22"], "M8[ns]")
    end = np.array(["2019-02-21", "2019-03-21", "2019-01-11"], "M8[ns]")
    values, sigma = column(100, 102, 109), [1.0, 1.0, 2.0]
    mean = one(values, sigma, method="mean", dates=(start, end), clip=None)
    assert mean["vx"] == pytest.approx((100 + 102 + 109 / 8) / (2 + 1 / 8))
    # the half, 1.0625, lies 1/16 into the weight of 102, which is spread over 101.5 to 102.5
    median = one(values, sigma, dates=(start, end), clip=None)
    assert median["vx"] == pytest.approx(101.5 + 1 / 16, abs=1e-3)
    assert median["count"] == 3
    days = [float((a - D("1970-01-01")) / np.timedelta64(1, "D")) for a in start]
    assert median["first_date"] == min(days)
    assert median["last_date"] == days[1] + 20
    middle = (days[0] + 10 + days[1] + 10 + (days[2] + 10) / 8) / (2 + 1 / 8)
    assert median["mean_date"] == pytest.approx(middle, abs=2e-3)


def test_equal_but_for_the_rounding() -> None:
    """Of 600 values of 700 and 400 of 701, a median of whole numbers would be 700."""
    values = column(*[700] * 600, *[701] * 400)
    got = one(values, np.full(1000, 5.0))
    assert got["vx"] == pytest.approx(699.5 + 500 / 600, abs=1e-3)


def test_stated_error_of_equal_pairs() -> None:
    # whose values say nothing against it: n pairs, efficiency between 1 and 2/pi
    values = column(100, 101, 99, 100)
    n = 4
    factor = math.pi / 2 - (math.pi / 2 - 1) / n
    assert one(values, [2.0] * n)["vx_error"] == pytest.approx(2 * math.sqrt(factor / n))
    assert one(values, [2.0] * n, method="mean")["vx_error"] == pytest.approx(2 / math.sqrt(n))
    single = one(column(100), [2.0])
    assert (single["vx_error"], single["count"]) == (2, 1)
    assert math.isnan(single["dispersion"])


def test_an_outlier_in_one_component_takes_the_pair_out_of_both() -> None:
    vx, vy = column(100, 109, 91, 100, 900, GAP), column(50, 900, 61, 39, 50, 50)
    got = one(vx, np.full(6, 9.0), vy)
    assert (got["count"], got["rejected"]) == (3, 2)
    assert got["vx"] == pytest.approx(99.75)  # of 91 and twice 100: a quarter into the latter
    assert got["vy"] == pytest.approx(50)  # of 39, 50 and 61
    assert got["v"] == pytest.approx(math.hypot(got["vx"], got["vy"]))


def test_values_within_their_own_error_stay() -> None:
    """The deviation is 0 here: most values are equal after rounding."""
    # of 4 pairs of error 1 the median is uncertain by pi/2/4: 3.5 sqrt(1 + pi/8) = 4.13
    assert one(column(100, 100, 100, 104), np.ones(4))["rejected"] == 0
    assert one(column(100, 100, 100, 105), np.ones(4))["rejected"] == 1


def test_of_two_pairs_the_better_is_no_outlier() -> None:
    got = one(column(100, 300), [2.0, 80.0])
    assert (got["count"], got["rejected"]) == (2, 0)
    assert got["vx"] == pytest.approx(100, abs=0.6)


def test_a_pair_that_claims_to_be_exact_does_not_reject_all_others() -> None:
    got = one(column(0, 500, 510, 490, 505, 495), [0.1, 20, 20, 20, 20, 20])
    assert (got["count"], got["rejected"]) == (5, 1)
    assert got["vx"] == pytest.approx(500, abs=6)


def test_a_surge_is_not_its_own_outlier_nor_the_error_of_other_years() -> None:
    """Nine quiet years and a fast one, in which the ice changes by half."""
    rng = np.random.default_rng(3)
    years = np.repeat(np.arange(10), 20)
    values = np.where(years == 6, rng.uniform(1000, 3000, 200), 100 + rng.normal(0, 5, 200))
    start = D("2010-01-10", "ns") + (365 * years).astype("m8[D]")
    end = start + np.timedelta64(30, "D")
    spans = periods("P1Y", D("2010-01-01"), D("2020-01-01"))
    v = np.rint(values).astype(np.int16)[:, None, None]
    got = composite(v, v, np.full(200, 5.0), np.full(200, 5.0), start, end, spans)
    assert got.rejected.sum() == 0
    assert 1500 < got.vx[6, 0, 0] < 2500
    assert got.vx_error[6, 0, 0] > 100
    quiet = np.delete(got.vx_error[:, 0, 0], 6)
    assert (quiet < 3).all()


def test_no_pair_is_no_value() -> None:
    got = composite(
        column(GAP, GAP), column(GAP, 5), np.ones(2), np.ones(2), *of_2019(2), YEARS
    )  # fmt: skip
    for f in fields(Composite):
        values = getattr(got, f.name)
        assert values.shape == (3, 1, 1)
        assert not values.any() if values.dtype == np.uint32 else np.isnan(values).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -32767.0])
@pytest.mark.parametrize("method", ["median", "mean"])
def test_unusable_errors(bad: float, method: Estimator) -> None:
    values = column(100, 104, 108, 112)
    got = one(values, [2.0, 4.0, 6.0, bad], method=method)
    assert got == one(values, [2.0, 4.0, 6.0, 4.0], method=method)
    none = one(values, [bad] * 4, method=method)
    assert none["vx"] == pytest.approx(106)
    assert 1 < none["vx_error"] < 6  # by the scatter alone
    assert math.isnan(one(column(100), [bad], method=method)["vx_error"])


def test_a_missing_date_takes_no_part() -> None:
    start, end = of_2019(3)
    end[1] = D("NaT")
    got = one(column(100, 900, 102), np.ones(3), dates=(start, end))
    assert (got["count"], got["rejected"]) == (2, 0)


def test_extremes_of_int16() -> None:
    values = column(-32766, 32767, 32767, 32766)
    got = one(values, np.full(4, 1e5), method="mean")
    assert got["vx"] == pytest.approx((-32766 + 3 * 32767 - 1) / 4, rel=1e-6)
    assert got["count"] == 4
    assert one(values, np.full(4, 1e5))["vx"] == pytest.approx(32766.5, abs=0.6)


def test_large_values_keep_a_small_dispersion() -> None:
    rng = np.random.default_rng(8)
    values = rng.integers(29_998, 30_003, 5000).astype(np.int16)
    got = one(values[:, None, None], np.ones(5000), method="mean")
    assert got["vx"] == pytest.approx(values.mean(), rel=1e-7)
    assert got["dispersion"] == pytest.approx(math.sqrt(2) * values.std(), rel=1e-4)


# --- the dt filter


def test_long_pairs_are_left_out_where_the_ice_is_fast() -> None:
    """Short pairs see 3000 m/year, or 30 m/year beside it; those of 100 days see a tenth."""
    start = D("2019-01-10", "ns") + np.arange(16) * np.timedelta64(10, "D")
    length = np.where(np.arange(16) % 2, 100, 12)
    fast = np.where(length == 12, 3000, 300) + np.arange(16)
    values = np.stack([fast, fast // 100], axis=-1).astype(np.int16)[:, None, :]
    end = start + length.astype("m8[D]")
    given_ = (values, values * 0, np.full(16, 10.0), np.full(16, 10.0), start, end, YEAR)
    plain = composite(*given_)
    assert plain.count.tolist() == [[[16, 16]]]
    # 3000 m/year are 99 m in 12 days and 821 m in 100
    filtered = composite(*given_, max_displacement=500.0)
    assert filtered.count.tolist() == [[[8, 16]]]
    assert filtered.too_long.tolist() == [[[8, 0]]]
    assert filtered.vx[0, 0, 0] == pytest.approx(3007, abs=5)
    assert filtered.vx[0, 0, 1] == plain.vx[0, 0, 1]
    # all are too long for 3 m: at 30 m/year that's 37 days
    assert composite(*given_, max_displacement=3.0).too_long.tolist() == [[[16, 8]]]


def test_without_short_pairs_all_tell_the_speed() -> None:
    start = D("2019-01-10", "ns") + np.arange(8) * np.timedelta64(10, "D")
    end = start + np.array([12] * 4 + [64] * 4, "m8[D]")  # four short ones are too few
    values = column(*[900] * 4, *[1000] * 4)
    given_ = (values, values * 0, np.full(8, 90.0), np.full(8, 90.0), start, end, YEAR)
    # the median is 950 m/year: 64 days are 166 m
    assert composite(*given_, max_displacement=165.0).too_long[0, 0, 0] == 4
    assert composite(*given_, max_displacement=168.0).too_long[0, 0, 0] == 0


# --- errors of known size


def coverage(
    truth: NDArray[np.floating], value: NDArray[np.floating], error: NDArray[np.floating]
) -> tuple[float, float]:
    off = np.abs(value - truth) / error
    return float(np.mean(off <= 1)), float(np.mean(off <= 2))


def assert_calibrated(one_sigma: float, two_sigma: float) -> None:
    assert 0.60 <= one_sigma <= 0.76
    assert two_sigma >= 0.90


def noisy(
    pairs: int,
    change: Callable[[NDArray[np.floating]], NDArray[np.floating]] | None = None,
    outliers: float = 0.0,
    seed: int = 0,
) -> tuple[NDArray[np.floating], list[Any]]:
    """The truth of 40 x 40 pixels, and pairs of 2019 with errors as stated over a change."""
    rng = np.random.default_rng((seed, pairs))
    sigma = rng.uniform(10, 80, pairs)
    # they begin from July 2018 on, so that some overlap 2019 by a part
    start = D("2018-07-15", "ns") + rng.integers(0, 520 * 86_400, pairs).astype("m8[s]")
    end = start + rng.integers(185 * 86_400, 200 * 86_400, pairs).astype("m8[s]")
    truth = rng.uniform(-5000, 5000, (2, 40, 40))
    values = []
    for component_ in truth:
        v = component_ + sigma[:, None, None] * rng.standard_normal((pairs, 40, 40))
        if change is not None:
            v += change(rng.random(v.shape))
        wild = rng.random(v.shape) < outliers
        v[wild] = rng.uniform(-9000, 9000, v.shape)[wild]
        values.append(np.rint(v).astype(np.int16))
    return truth, [*values, sigma, sigma, start, end, YEAR]


@pytest.mark.parametrize("method", ["median", "mean"])
@pytest.mark.parametrize("pairs", [1, 2, 3, 6, 15, 40, 150])
def test_errors_are_calibrated(pairs: int, method: Estimator) -> None:
    """With noise of the stated size the truth lies within one error in 60-76 % of the pixels."""
    covered = []
    # of few pairs, it depends on how they share the weight
    for seed in range(20 if pairs < 10 else 2):
        truth, given_ = noisy(pairs, seed=seed)
        got = composite(*given_, method=method)
        covered.append(
            [
                coverage(truth[0], got.vx[0], got.vx_error[0]),
                coverage(np.hypot(*truth), got.v[0], got.v_error[0]),
            ]
        )
    for field in np.mean(covered, axis=0):
        assert_calibrated(*field)


@pytest.mark.parametrize("method", ["median", "mean"])
@pytest.mark.parametrize("pairs", [15, 60, 200])
@pytest.mark.parametrize(
    "change",
    [
        lambda part: 150 * np.sin(2 * np.pi * part),  # a season
        lambda part: 500 * (part - 0.5),  # a trend
    ],
    ids=["season", "trend"],
)
def test_errors_are_calibrated_where_the_ice_changes(
    pairs: int, method: Estimator, change: Callable[..., Any]
) -> None:
    """Stated errors know nothing of it: the scatter does."""
    covered = []
    for seed in range(4):
        truth, given_ = noisy(pairs, change, seed=seed)
        got = composite(*given_, method=method)
        covered.append(coverage(truth[0], got.vx[0], got.vx_error[0]))
    assert_calibrated(*np.mean(covered, axis=0))


@pytest.mark.parametrize("method", ["median", "mean"])
def test_pairs_on_one_side_of_the_year_know_that_they_are(method: Estimator) -> None:
    """Ice that gains 500 m/year in a year, seen from April on: the year's mean is not there."""
    rng = np.random.default_rng(6)
    start = D("2019-04-01", "ns") + rng.integers(0, 250 * 86_400, 80).astype("m8[s]")
    end = start + np.timedelta64(16, "D")
    part = (start + (end - start) // 2 - D("2019-01-01")) / np.timedelta64(365, "D")
    sigma = np.full(80, 20.0)
    v = 800 + 500 * (part[:, None, None] - 0.5) + 20 * rng.standard_normal((80, 20, 20))
    v = np.rint(v).astype(np.int16)
    late = composite(v, v, sigma, sigma, start, end, YEAR, method=method)
    off, error = late.vx[0] - 800, late.vx_error[0]
    assert off.mean() > 40
    assert np.mean(np.abs(off) <= 2 * error) > 0.9
    assert error.mean() < 2.5 * off.mean()
    assert late.mean_date.mean() == pytest.approx(part.mean() * 365 + 17_897, abs=3)


def test_a_median_knows_that_it_is_not_the_mean() -> None:
    """A surge in a fifth of the year: the mean is 200 m/year above the median, chance or not."""
    rng = np.random.default_rng(8)
    start = D("2019-01-01", "ns") + (np.arange(500) * 60_480).astype("m8[s]")
    end = start + np.timedelta64(12, "D")
    v = np.where(np.arange(500) % 5 == 0, 2000, 1000)[:, None, None]
    v = np.rint(v + 20 * rng.standard_normal((500, 12, 12))).astype(np.int16)
    sigma = np.full(500, 20.0)
    given_ = (v, v, sigma, sigma, start, end, YEAR)
    got = composite(*given_, clip=None)
    mean = composite(*given_, clip=None, method="mean")
    np.testing.assert_allclose(mean.vx[0] - got.vx[0], 200, atol=20)
    np.testing.assert_allclose(got.vx_error[0], 200 * 2**0.5, rtol=0.15)
    assert mean.vx_error.max() < 30  # which has no such trouble


def test_outliers_do_not_spoil_the_calibration() -> None:
    truth, given_ = noisy(60, outliers=0.1)
    got = composite(*given_)
    assert_calibrated(*coverage(truth[0], got.vx[0], got.vx_error[0]))
    # either component may be wild: 1 - 0.9^2 of the pairs, less those that land within reach
    assert got.rejected.sum() / (got.rejected.sum() + got.count.sum()) == pytest.approx(0.19, 0.05)
    plain = composite(*given_, clip=None, method="mean")
    assert np.mean(np.abs(plain.vx[0] - truth[0]) <= 2 * got.vx_error[0]) < 0.5


def test_values_finer_than_their_rounding() -> None:
    """Errors below a metre a year, of many pairs: a median of whole numbers could not meet them."""
    rng = np.random.default_rng(2)
    truth = rng.uniform(-50, 50, (50, 50))
    v = np.rint(truth + rng.standard_normal((400, 50, 50))).astype(np.int16)
    start = np.full(400, D("2019-02-01", "ns"))
    end = start + np.timedelta64(16, "D")
    got = composite(v, v, np.ones(400), np.ones(400), start, end, YEAR)
    assert np.quantile(got.vx_error, [0.5, 0.99]) == pytest.approx([0.063, 0.11], abs=0.02)
    assert_calibrated(*coverage(truth, got.vx[0], got.vx_error[0]))


# --- bounds


@pytest.mark.parametrize(
    "change",
    [
        {"vx": np.ones((3, 2), np.int16)},
        {"vy": np.ones((3, 2, 2), np.float32)},
        {"vy": np.ones((3, 2, 3), np.int16)},
        {"vx_error": np.ones(2)},
        {"date1": of_2019(2)[0]},
        {"date2": of_2019(3)[0][None]},
    ],
)
def test_misfits(change: dict[str, Any]) -> None:
    given_: dict[str, Any] = {
        "vx": np.ones((3, 2, 2), np.int16),
        "vy": np.ones((3, 2, 2), np.int16),
        "vx_error": np.ones(3),
        "vy_error": np.ones(3),
        "date1": of_2019(3)[0],
        "date2": of_2019(3)[1],
        "periods": YEAR,
    }
    with pytest.raises(InputError, match="accepted"):
        composite(**{**given_, **change})


def test_memory_is_bounded() -> None:
    """A tile of 4,000 pairs, 26 MB: not much more beyond it than for a block of it."""
    rng = np.random.default_rng(1)
    values = np.full((4000, 40, 40), GAP, np.int16)
    values[rng.random(values.shape, np.float32) < 0.3] = 500
    start = D("2018-01-01", "ns") + rng.integers(0, 1_000, 4000).astype("m8[D]")
    end = start + np.timedelta64(16, "D")
    sigma = rng.uniform(1, 9, 4000)
    tracemalloc.start()
    composite(values, values, sigma, sigma, start, end, YEARS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


# --- speed


def test_speed_by_hand() -> None:
    vx, vy = (np.array(v, np.float32) for v in ([3, 0, np.nan, 0], [4, 0, 1, -5]))
    # stated variances of 1 and 4: as of independent components
    x, y = (np.array([[s] * 4, [0] * 4], np.float32) for s in (1, 4))
    v, error = speed(vx, vy, x, y)
    np.testing.assert_allclose(v, [5, 0, np.nan, 5])
    np.testing.assert_allclose(error, [math.sqrt(9 + 64) / 5, math.sqrt(2.5), np.nan, 2], rtol=1e-6)
    # a change of the speed by 10, along (3, 4) / 5, seen as 6 in vx and 8 in vy
    x, y = (np.array([[0] * 4, [s] * 4], np.float32) for s in (36, 64))
    assert speed(vx, vy, x, y)[1][0] == pytest.approx(10)
