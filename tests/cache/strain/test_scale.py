"""From a half length to pixels: never rounded in silence."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firnline.cache.strain import radius_for, radius_grid
from firnline.errors import InputError


def test_radius_for() -> None:
    assert radius_for(500, 120) == (4, 480)
    assert radius_for(500, -120) == (4, 480)
    assert radius_for(120, 120.00000001)[0] == 1
    assert radius_for(540, 120) == (5, 600)
    for length in (119.0, 0.0, -500.0, math.nan, math.inf):
        with pytest.raises(InputError, match="accepted is 120 m"):
            radius_for(length, 120)
    with pytest.raises(InputError, match="spacing"):
        radius_for(500, 0)


@given(st.floats(120, 1e5), st.floats(1, 120))
def test_the_length_used_is_within_half_a_pixel(length: float, spacing: float) -> None:
    radius, used = radius_for(length, spacing)
    assert used == radius * spacing
    assert abs(used - length) <= spacing / 2 * (1 + 1e-9)


def test_radius_grid() -> None:
    thickness = np.array([[1000, 500, 60, 10], [0, -5, np.nan, np.inf]])
    got = radius_grid(1, thickness, -120)
    np.testing.assert_array_equal(got, [[8, 4, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(radius_grid(4, thickness, 120)[0], [33, 17, 2, 1])
    for thicknesses in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="ice thicknesses"):
            radius_grid(thicknesses, thickness, 120)
