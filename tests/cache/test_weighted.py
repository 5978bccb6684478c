"""Weighted medians and deviations of rows, against sorted lists and the standard library."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from firnline.cache.weighted import Ordered

Array = NDArray[np.floating]


def rows(*values: list[int]) -> NDArray[np.int16]:
    return np.array(values, np.int16)


def quantile(values: NDArray[np.int16], weights: list[float], p: float = 0.5) -> float:
    ordered = Ordered(values, np.ones(values.shape, bool))
    ordered.weigh(np.ones(values.shape, bool), np.array(weights, np.float32))
    return float(ordered.quantile(p)[0])


def test_by_hand() -> None:
    # spread over 0.5 to 4.5, half of it lies below 2.5
    assert quantile(rows([4, 1, 3, 2]), [1] * 4) == 2.5
    assert quantile(rows([10, 30]), [1, 1]) == 20
    # 3 of 4 parts of the weight are spread over 29.5 to 30.5: half of all is at 1/3 of them
    assert quantile(rows([10, 30]), [1, 3]) == pytest.approx(29.5 + 1 / 3)
    # three values of one number, and one of the next: 2 of 3 thirds
    assert quantile(rows([7, 7, 7, 8]), [1] * 4) == pytest.approx(6.5 + 2 / 3)
    assert quantile(rows([-5]), [2.0]) == -5
    assert quantile(rows([10, 20, 30]), [1, 1, 1], 0) == pytest.approx(9.5, abs=1e-4)
    assert quantile(rows([10, 20, 30]), [1, 1, 1], 1) == pytest.approx(30.5)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=40))
def test_without_weights_it_is_the_median_of_grouped_data(values: list[int]) -> None:
    got = quantile(rows(values), [1.0] * len(values))
    ordered = sorted(values)
    below, above = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    if below == above:
        assert got == pytest.approx(statistics.median_grouped(values), abs=1e-4)
    else:  # where that takes the lower edge of the upper group, the middle of the gap is right
        assert got == (below + above) / 2


def plain_quantile(values: list[int], weights: list[float], p: float) -> float:
    """By the definition: the weight of a number is spread over half a unit on both sides."""
    masses: dict[int, float] = {}
    for value, weight in zip(values, weights, strict=True):
        masses[value] = masses.get(value, 0) + weight
    masses = {value: mass for value, mass in sorted(masses.items()) if mass > 0}
    total, below = sum(masses.values()), 0.0
    for value, mass in masses.items():
        if below + mass >= (p - 1e-6) * total:
            later = [other for other in masses if other > value]
            if later and abs(below + mass - p * total) <= 1e-6 * total:
                return (value + later[0]) / 2
            return value - 0.5 + min(max((p * total - below) / mass, 0), 1)
        below += mass
    raise AssertionError


def plain_deviation(values: list[int], weights: list[float], centre: float) -> float:
    pairs = sorted((abs(v - centre), w) for v, w in zip(values, weights, strict=True))
    total, below = sum(w for _, w in pairs), 0.0
    for distance, weight in pairs:
        below += weight
        if below >= (0.5 - 1e-6) * total:
            return distance
    raise AssertionError


@given(
    n=st.integers(1, 40),
    spread=st.sampled_from([0.4, 3.0, 60.0, 9000.0]),
    equal=st.booleans(),
    p=st.sampled_from([0.1, 0.25, 0.5, 0.8]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200)
def test_equals_the_definitions(n: int, spread: float, equal: bool, p: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.clip(np.rint(rng.normal(0, spread, (7, n))), -32766, 32767).astype(np.int16)
    there = rng.random(values.shape) < 0.7
    use = there & (rng.random(values.shape) < 0.8)
    weights = np.ones(n) if equal else rng.integers(1, 1000, n) / 8
    ordered = Ordered(values, there)
    in_order = ordered.weigh(use, weights.astype(np.float32))
    np.testing.assert_allclose(in_order.sum(1), (use * weights).sum(1))
    found, median = ordered.quantile(p), ordered.quantile(0.5)
    deviation = ordered.deviation(median)
    for row in np.flatnonzero(use.any(axis=1)):
        mine, its = values[row, use[row]].tolist(), weights[use[row]].tolist()
        assert found[row] == pytest.approx(plain_quantile(mine, its, p), rel=1e-5, abs=2e-3)
        want = plain_deviation(mine, its, float(median[row]))
        assert deviation[row] == pytest.approx(want, rel=1e-5, abs=2e-3)


def test_order_keeps_what_belongs_to_a_value() -> None:
    values = rows([30, 10, 20], [5, 5, 5])
    there = np.array([[True, True, False], [False, False, False]])
    ordered = Ordered(values, there)
    weights = ordered.weigh(there, np.array([1, 2, 4], np.float32))
    np.testing.assert_array_equal(weights, [[2, 1], [0, 0]])
    np.testing.assert_array_equal(ordered.values[0], [10, 30])
    np.testing.assert_array_equal(ordered.of(np.array([7, 8, 9], np.float32)), [[8, 7], [0, 0]])
    np.testing.assert_array_equal(ordered.origin, [[1, 0], [3, 3]])
    np.testing.assert_array_equal(ordered.total, [3, 0])


def test_more_values_than_an_index_of_16_bits_holds() -> None:
    """Then they are ordered as 64-bit integers, with the extremes of int16 at both ends."""
    rng = np.random.default_rng(4)
    values = rng.integers(-32766, 32768, (2, 70_000)).astype(np.int16)
    values[:, 66_000:66_002] = 32767, -32766
    ordered = Ordered(values, np.ones(values.shape, bool))
    weights = ordered.weigh(np.ones(values.shape, bool), np.ones(70_000, np.float32))
    assert (weights == 1).all()
    np.testing.assert_array_equal(ordered.values, np.sort(values, axis=1))
    np.testing.assert_array_equal(
        np.take_along_axis(values, ordered.origin, axis=1), ordered.values
    )
    np.testing.assert_allclose(ordered.quantile(0.5), np.median(values, axis=1), atol=1)


def test_the_largest_value_is_not_taken_for_none() -> None:
    values = rows([32767, 0, 32767, 5])
    there = np.array([[True, False, True, False]])
    ordered = Ordered(values, there)
    np.testing.assert_array_equal(ordered.weigh(there, np.ones(4, np.float32)), [[1, 1]])
    assert ordered.quantile(0.5)[0] == 32767
