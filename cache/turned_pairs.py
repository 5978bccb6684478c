"""What a cube keeps for each pair along its axes, in the axes of another CRS. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firnline.cache.sources import OpenCube
from firnline.cache.vectors import rotate_errors
from firnline.cube import Array

Raw = np.ndarray[Any, np.dtype[Any]]
Floats = NDArray[np.floating[Any]]

COVARIANCE = "vx_vy_error_covariance"
"""Per pair, of the errors of vx and vy; missing where their axes were not turned."""


def turn_pairs(cube: OpenCube, jacobian: Floats) -> OpenCube:
    """A cube whose pairs' errors and stable shifts are along the axes of another CRS.

    A pair has one number for the whole scene: it's turned as in one place.

    Parameters
    ----------
    jacobian : ndarray, shape (2, 2)
        Of the other CRS's coordinates by the cube's.
    """
    per_pair, arrays = dict(cube.per_pair), dict(cube.layout.arrays)
    for name in cube.per_pair:
        other = "vy" + name[2:]
        if not name.startswith(("vx_error", "vx_stable_shift")) or other not in per_pair:
            continue
        missing = arrays[name].missing, arrays[other].missing
        x, y = cube.per_pair[name], cube.per_pair[other]
        there = _there(x, missing[0]) & _there(y, missing[1])
        fx: Raw = np.where(there, x, 0).astype(np.float64)
        fy: Raw = np.where(there, y, 0).astype(np.float64)
        if name.startswith("vx_error"):
            fx, fy, covariance = rotate_errors(jacobian[:, :, None], fx, fy)
            if name == "vx_error":
                per_pair[COVARIANCE] = np.where(there, covariance, np.nan).astype(np.float32)
                arrays[COVARIANCE] = _covariance(arrays[name])
        else:
            fx, fy = (row[0] * fx + row[1] * fy for row in jacobian)
        for which, turned, gone, old in ((name, fx, missing[0], x), (other, fy, missing[1], y)):
            per_pair[which] = np.where(there, turned, gone).astype(old.dtype)
    return replace(cube, per_pair=per_pair, layout=replace(cube.layout, arrays=arrays))


def _there(values: Raw, missing: Any) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values) & (values != missing))


def _covariance(error: Array) -> Array:
    return replace(
        error,
        name=COVARIANCE,
        dtype=np.dtype(np.float32),
        fill_value="NaN",
        attributes={
            "units": "meter2/year2",
            "description": "covariance of the errors of vx and vy, where their axes were turned",
        },
    )
