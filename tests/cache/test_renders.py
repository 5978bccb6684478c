from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firnline.cache.renders import render_of


def asset(*statistics: dict[str, float]) -> dict[str, Any]:
    return {"title": "Title", "bands": [{"statistics": each} for each in statistics]}


def of(mean: float, stddev: float, most: float) -> dict[str, float]:
    return {"minimum": -most, "maximum": most, "mean": mean, "stddev": stddev, "valid_percent": 9.0}


EMPTY = {"valid_percent": 0.0}


@pytest.mark.parametrize(
    ("key", "statistics", "rescale", "bidx", "colormap"),
    [
        ("cog_v", [of(100, 150, 5000)], [0, 500], 1, "turbo"),  # 400, rounded up
        ("cog_v", [of(100, 150, 320)], [0, 500], 1, "turbo"),  # no farther than the values go
        ("cog_v", [of(100, 150, 5000), of(800, 600, 5000)], [0, 2000], 2, "turbo"),
        ("cog_v", [of(10, 10, 99), EMPTY], [0, 30], 1, "turbo"),  # the latest with pixels
        ("cog_shear", [of(-0.01, 0.02, 1)], [-0.05, 0.05], 1, "rdbu_r"),
        ("cog_effective", [of(0.01, 0.0025, 1)], [0, 0.015], 1, "magma_r"),
        ("cog_count", [of(40, 20, 100)], [0, 80], 1, "viridis"),
        ("cog_vx", [EMPTY, EMPTY], [-1, 1], 1, "rdbu_r"),
    ],
)
def test_ranges(
    key: str, statistics: list[dict[str, float]], rescale: list[float], bidx: int, colormap: str
) -> None:
    assert render_of(key, asset(*statistics)) == {
        "title": "Title",
        "assets": [key],
        "bidx": [bidx],
        "rescale": [rescale],
        "colormap_name": colormap,
    }


@given(st.floats(1e-8, 1e8))
def test_ranges_are_round_and_large_enough(most: float) -> None:
    ((low, high),) = render_of("cog_v", asset(of(0, most / 2, 2 * most)))["rescale"]
    assert low == 0
    assert most * (1 - 1e-8) <= high <= most * 5 / 3 * (1 + 1e-8)
    digits = f"{high:e}".partition("e")[0].rstrip("0")
    assert digits in {"1.", "1.5", "2.", "3.", "5.", "8."}
