"""Von Mises stress against the flow law written out, in SI units."""

from __future__ import annotations

import math

import numpy as np
import pytest

from firnline.cache.strain import FlowLaw
from firnline.errors import InputError

YEAR = 365.25 * 86_400


def test_rate_factor() -> None:
    """Cuffey and Paterson (2010), table 3.4: -10 C 3.5e-25 (at 263 K), -20 C 1.2, -5 C 9.3."""
    assert FlowLaw.at(263).rate_factor == pytest.approx(3.5e-25)
    assert FlowLaw.at(253.15).rate_factor == pytest.approx(1.2e-25, rel=0.05)
    assert FlowLaw.at(268.15).rate_factor == pytest.approx(9.3e-25, rel=0.05)
    assert FlowLaw.at(262.999999).rate_factor == pytest.approx(FlowLaw.at(263).rate_factor)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_von_mises(dtype: type[np.floating]) -> None:
    law = FlowLaw.at(263)
    rate = np.array([0, 0.1, np.nan, 0.02], dtype)
    got = law.von_mises(rate)
    assert got.dtype == dtype
    # B = 1.419e8 Pa s^(1/3) by hand
    want = math.sqrt(3) * 3.5e-25 ** (-1 / 3) * (0.1 / YEAR) ** (1 / 3) / 1e3
    assert want == pytest.approx(360.9, abs=0.5)
    np.testing.assert_allclose(got, [0, want, np.nan, want * 0.2 ** (1 / 3)], rtol=1e-6)


def test_another_exponent() -> None:
    law = FlowLaw(rate_factor=2e-31, n=4)
    want = math.sqrt(3) * (0.05 / YEAR / 2e-31) ** 0.25 / 1e3
    np.testing.assert_allclose(law.von_mises(np.array([0.05])), want, rtol=1e-12)
    assert law.describe()["flow_law_rate_factor_units"] == "Pa-4 s-1"


def test_tensile_counts_extension_only() -> None:
    law = FlowLaw.at(263)
    e1, e2 = np.array([0.1, 0.1, -0.01, 0.1]), np.array([-0.3, 0.1, -0.2, 0.0])
    got = law.von_mises_tensile(e1, e2)
    one_way, both_ways = law.von_mises(np.array([0.1 / math.sqrt(2), 0.1]))
    np.testing.assert_allclose(got, [one_way, both_ways, 0, one_way], rtol=1e-12)


@pytest.mark.parametrize("temperature", [-10.0, 0.0, 300.0, math.nan])
def test_temperatures_are_those_of_ice_in_kelvin(temperature: float) -> None:
    with pytest.raises(InputError, match="kelvin"):
        FlowLaw.at(temperature)


@pytest.mark.parametrize(("factor", "n"), [(0, 3), (-1, 3), (1e-24, 0), (math.nan, 3)])
def test_laws_that_are_none(factor: float, n: float) -> None:
    with pytest.raises(InputError, match="positive"):
        FlowLaw(factor, n)
