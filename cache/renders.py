"""How maps are to be coloured: the STAC render extension's words, from the maps' statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

RENDER = "https://stac-extensions.github.io/render/v2.0.0/schema.json"

_SPEED, _AMOUNT, _COUNT, _SIGNED = "turbo", "magma_r", "viridis", "rdbu_r"
_COLORMAPS = {
    "v": _SPEED,
    "v_error": _AMOUNT,
    "dv_dt_error": _AMOUNT,
    "count": _COUNT,
    "effective": _AMOUNT,
    "von_mises": _AMOUNT,
    "von_mises_tensile": _AMOUNT,
}
"""By field; what has a sign diverges from white at zero."""
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 10.0)


def render_of(key: str, asset: Mapping[str, Any]) -> dict[str, Any]:
    """The colours and range of one map, an entry of STAC's ``renders``.

    The range holds most pixels of all periods, so that these can be compared: up to the largest
    mean plus two standard deviations, rounded up to 1, 1.5, 2, 3, 5 or 8 times a power of ten;
    from zero, or symmetric about it where values have a sign. The band is the latest that has
    pixels.

    Parameters
    ----------
    key
        ``cog_`` and the field's name.
    asset
        Its STAC asset: ``title``, ``bands`` with ``statistics`` (unit of the field).

    Returns
    -------
    dict
        ``title``, ``assets``, ``bidx`` (from 1), ``rescale`` ([[least, most]]), ``colormap_name``.
    """
    colormap = _COLORMAPS.get(key.removeprefix("cog_"), _SIGNED)
    statistics: Sequence[Mapping[str, float]] = [
        band.get("statistics", {}) for band in asset.get("bands", [])
    ]
    known = [one for one in statistics if "mean" in one]
    spread = [abs(one["mean"]) + 2 * one["stddev"] for one in known]
    extremes = [max(abs(one["minimum"]), abs(one["maximum"])) for one in known]
    most = _rounded_up(min(max(spread, default=0.0), max(extremes, default=0.0)))
    filled = [n for n, one in enumerate(statistics, 1) if one in known]
    return {
        "title": asset.get("title", key),
        "assets": [key],
        "bidx": [filled[-1] if filled else 1],
        "rescale": [[-most if colormap == _SIGNED else 0.0, most]],
        "colormap_name": colormap,
    }


def _rounded_up(value: float) -> float:
    if not value > 0 or not math.isfinite(value):
        return 1.0
    power = math.floor(math.log10(value))
    step = next(step for step in _STEPS if value <= step * 10.0**power * (1 + 1e-9))
    return float(f"{step}e{power}")  # the decimal number, not the product that is near it
