"""What a cube keeps for each pair along its axes, in the axes of another CRS.

Turned when it's looked at, which may wait for the cube's own columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firnline.cache.columns import Columns
from firnline.cache.sources import OpenCube
from firnline.cache.vectors import rotate_errors
from firnline.cube import Array

Raw = np.ndarray[Any, np.dtype[Any]]
Floats = NDArray[np.floating[Any]]

COVARIANCE = "vx_vy_error_covariance"
"""Per pair, of the errors of vx and vy; missing where their axes were not turned."""


def turn_pairs(cube: OpenCube, jacobian: Floats) -> OpenCube:
    """A cube whose pairs' errors and stable shifts are along the axes of another CRS.

    A pair has one number for the whole scene: it's turned as in one place, when it's looked at.

    Parameters
    ----------
    jacobian : ndarray, shape (2, 2)
        Of the other CRS's coordinates by the cube's.
    """
    columns, arrays = cube.per_pair, dict(cube.layout.arrays)
    makers = {name: partial(columns.__getitem__, name) for name in columns}
    for name in columns:
        other = "vy" + name[2:]
        if not name.startswith(("vx_error", "vx_stable_shift")) or other not in columns:
            continue
        both = cache(partial(_turned, columns, arrays[name], arrays[other], jacobian))
        makers |= {which: partial(_one, both, which) for which in (name, other)}
        if name == "vx_error":
            makers[COVARIANCE] = partial(_one, both, COVARIANCE)
            arrays[COVARIANCE] = _covariance(arrays[name])
    return replace(cube, per_pair=Columns(makers), layout=replace(cube.layout, arrays=arrays))


def _one(columns: Callable[[], Mapping[str, Raw]], name: str) -> Raw:
    return columns()[name]


def _turned(
    columns: Mapping[str, Raw], first: Array, second: Array, jacobian: Floats
) -> dict[str, Raw]:
    x, y = columns[first.name], columns[second.name]
    there = _there(x, first.missing) & _there(y, second.missing)
    fx: Raw = np.where(there, x, 0).astype(np.float64)
    fy: Raw = np.where(there, y, 0).astype(np.float64)
    made: dict[str, Raw] = {}
    if first.name.startswith("vx_error"):
        fx, fy, covariance = rotate_errors(jacobian[:, :, None], fx, fy)
        made[COVARIANCE] = np.where(there, covariance, np.nan).astype(np.float32)
    else:
        fx, fy = (row[0] * fx + row[1] * fy for row in jacobian)
    made[first.name] = np.where(there, fx, first.missing).astype(x.dtype)
    made[second.name] = np.where(there, fy, second.missing).astype(y.dtype)
    return made


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
