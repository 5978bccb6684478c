"""Errors of composites hold the truth of the analytic sample as often as errors should.

The sample's glacier has a season and a trend, its pairs have gaps, dates and errors as real ones
do, and the truth of a year is a formula. All pixels of one sample see the same pairs and the same
season, so that one of them says little: the parts are of many samples.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from firnline.cache.composite import Estimator, composite
from firnline.cache.periods import periods
from firnline.indexer.flow import FlowField
from firnline.indexer.sample_cube import CubeContent, observe
from firnline.indexer.sample_pairs import PairMaker

YEARS = periods("P1Y", np.datetime64("2017-01-01"), np.datetime64("2021-01-01"))
FLOW = FlowField()
SAMPLES = {15: 120, 60: 50, 400: 16}
METHODS: tuple[Estimator, ...] = ("median", "mean")
X = FLOW.origin[0] + 1_800 * (np.arange(10) - 4.5)
Y = FLOW.origin[1] - 1_800 * (np.arange(10) - 4.5)
STEADY = FLOW.velocity(*np.meshgrid(X, Y))
# the middle of each year, where trend and season are those of its mean
FACTOR = FLOW.factor([2017.5, 2018.5, 2019.5, 2020.5])[:, None, None]


def sample(pairs: int, seed: int, strength: float) -> tuple[Any, ...]:
    """Arguments of `composite`: pairs of four years, whose noise is so many times the sample's."""
    maker = PairMaker(
        np.random.default_rng((seed, 7)), "http://none", "2017-01-01", "2020-12-31", 0.7
    )
    made = maker.make(pairs, "22W", (X[0], Y[-1], X[-1], Y[0]))
    for name in ("vx_error", "vy_error"):
        made.columns[name] = made.columns[name] * np.float32(strength)
    content = CubeContent(made, FLOW, noise=1.0, seed=(seed,), variables=("vx", "vy"))
    rng = np.random.default_rng((seed, 3))
    seen = observe(made, content, slice(None), (X, Y, *STEADY), rng)
    values = [seen[name].astype(np.int16) for name in ("vx", "vy")]
    errors = [made.columns[f"{name}_error"] for name in ("vx", "vy")]
    dates = [
        (made.columns[f"acquisition_date_img{n}"] * 86_400).astype("M8[s]").astype("M8[ns]")
        for n in (1, 2)
    ]
    return *values, *errors, *dates


Found = tuple[NDArray[np.floating], NDArray[np.floating]]


def found(pairs: int, strength: float, method: Estimator) -> dict[str, Found]:
    """By field: errors and how far values are off, (year, sample, pixel) each.

    Without pixels that a single pair ever saw: nothing tells there how the ice changes.
    """
    truth = {"vx": FACTOR * STEADY[0], "vy": FACTOR * STEADY[1]}
    truth["v"] = FACTOR * np.hypot(*STEADY)
    out: dict[str, list[list[NDArray[np.floating]]]] = {name: [[], []] for name in truth}
    for seed in range(SAMPLES[pairs]):
        given = sample(pairs, seed, strength)
        got = composite(*given, YEARS, method=method)
        several = ((given[0] != -32767) & (given[1] != -32767)).sum(axis=0) > 1
        for name, values in truth.items():
            error = np.where(several, getattr(got, f"{name}_error"), np.nan)
            out[name][0].append(error.reshape(len(YEARS), -1))
            out[name][1].append((getattr(got, name) - values).reshape(len(YEARS), -1))
    return {name: (np.stack(e, axis=1), np.stack(o, axis=1)) for name, (e, o) in out.items()}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strength", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("pairs", SAMPLES)
def test_the_truth_lies_within_the_errors_in_every_year(
    pairs: int, strength: float, method: Estimator
) -> None:
    for name, (error, off) in found(pairs, strength, method).items():
        some = np.isfinite(error)
        within = np.where(some, np.abs(off) / error, np.nan)
        one, two = np.mean(within[some] <= 1), np.mean(within[some] <= 2)
        assert 0.60 <= one <= 0.76, (name, one)
        assert two >= 0.90, (name, two)
        # of one year's few samples the part is known to 2 or 3 %
        for year, times in zip(YEARS, within, strict=True):
            one, two = (np.nanmean(np.where(np.isnan(times), np.nan, times <= k)) for k in (1, 2))
            assert 0.58 <= one <= 0.79, (name, year, one)
            assert two >= 0.88, (name, year, two)


@pytest.mark.parametrize("method", METHODS)
def test_errors_are_as_small_as_the_pairs_allow(method: Estimator) -> None:
    """Less with more pairs, and never far above what values are off."""
    sizes = []
    for pairs in SAMPLES:
        error, off = found(pairs, 1.0, method)["v"]
        some = np.isfinite(error)
        sizes.append(float(np.median(error[some])))
        # of normal errors the median size is 0.6745 standard deviations
        assert sizes[-1] < 1.4 * np.median(np.abs(off[some])) / 0.6745
        if pairs > 15:  # of a few pairs some errors are large, as Student's are
            assert np.sqrt(np.mean(error[some] ** 2)) < 1.4 * np.sqrt(np.mean(off[some] ** 2))
    assert sizes[2] < sizes[1] / 1.5
