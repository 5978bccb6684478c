"""The trend of a speed, against numpy's own fits and against what is known of it beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from firnline.cache.trend import linear_trend
from firnline.errors import InputError

YEARS = np.arange(2014, 2023) + 0.5
RNG = np.random.default_rng(4)


def test_a_line_is_found_exactly_whatever_the_weights() -> None:
    slopes = RNG.normal(0, 30, (6, 7))
    values = 800 + slopes * (YEARS - 2018)[:, None, None]
    errors = RNG.uniform(1, 40, values.shape)
    found = linear_trend(values, errors, YEARS, rounding=0)
    np.testing.assert_allclose(found.slope, slopes, rtol=1e-6)
    # what is on the line has the error of the stated errors alone
    w = 1 / errors**2
    mean = (w * YEARS[:, None, None]).sum(0) / w.sum(0)
    spread = (w * (YEARS[:, None, None] - mean) ** 2).sum(0)
    np.testing.assert_allclose(found.error, spread**-0.5, rtol=1e-6)
    assert (found.count == 9).all()


def test_it_is_numpys_weighted_fit() -> None:
    """`polyfit` with its covariance: unscaled, and scaled where chi^2 is more than n - 2."""
    values, errors = RNG.normal(500, 60, (9, 5, 5)), RNG.uniform(10, 90, (9, 5, 5))
    found = linear_trend(values, errors, YEARS, rounding=1)
    sigma = np.hypot(errors, 12**-0.5)
    scaled = []
    for at in np.ndindex(5, 5):
        own = (slice(None), *at)
        line, stated = np.polyfit(YEARS - 2018, values[own], 1, w=1 / sigma[own], cov="unscaled")
        _, seen = np.polyfit(YEARS - 2018, values[own], 1, w=1 / sigma[own], cov=True)
        assert found.slope[at] == pytest.approx(line[0], rel=1e-5)
        scaled.append(seen[0, 0] > stated[0, 0])
        assert found.error[at] == pytest.approx(max(stated[0, 0], seen[0, 0]) ** 0.5, rel=1e-5)
    assert 0 < sum(scaled) < 25  # both cases were met


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.68, 0.85), (3.0, 0.6, 0.76)])
def test_errors_hold_the_truth_as_often_as_they_say(factor: float, low: float, high: float) -> None:
    """Also where the years scatter by three times of what is stated."""
    values = 12.5 * (YEARS - 2018)[:, None, None] + RNG.normal(0, 20 * factor, (9, 100, 100))
    found = linear_trend(values, np.full(values.shape, 20.0), YEARS, rounding=0)
    within = np.abs(found.slope - 12.5) < found.error
    assert low < within.mean() < high


def test_missing_years_take_no_part_and_three_are_needed() -> None:
    values = np.broadcast_to(3.0 * (YEARS - 2000)[:, None, None], (9, 1, 4)).copy()
    errors = np.full(values.shape, 5.0)
    values[2:, 0, 0] = np.nan  # two are left
    errors[3:, 0, 1] = np.nan  # three
    values[:, 0, 2] = np.nan  # none
    values[4, 0, 3], errors[4, 0, 3] = 1e6, -1  # no error: none of its business
    found = linear_trend(values, errors, YEARS, rounding=0)
    np.testing.assert_array_equal(found.count[0], [2, 3, 0, 8])
    np.testing.assert_array_equal(np.isnan(found.slope[0]), [True, False, True, False])
    np.testing.assert_array_equal(np.isnan(found.error), np.isnan(found.slope))
    np.testing.assert_allclose(found.slope[0, [1, 3]], 3, rtol=1e-6)


def test_an_error_that_was_rounded_to_zero_is_not_exact() -> None:
    values = np.array([0.0, 1.0, 10.0, 3.0]).reshape(4, 1, 1)
    errors = np.array([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1)
    found = linear_trend(values, errors, np.arange(4), rounding=1)
    w = 1 / (errors.ravel() ** 2 + 1 / 12)
    expected = np.polyfit(np.arange(4), values.ravel(), 1, w=np.sqrt(w))[0]
    assert found.slope[0, 0] == pytest.approx(expected, rel=1e-6)


def test_misfits() -> None:
    with pytest.raises(InputError, match=r"accepted are \(time, y, x\)"):
        linear_trend(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), [1, 2], rounding=0)
