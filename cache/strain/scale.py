"""From a half length, in metres or in ice thicknesses, to a whole number of pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firnline.errors import InputError


def radius_for(length_scale: float, spacing: float) -> tuple[int, float]:
    """Give the window radius that comes nearest to a half length.

    Parameters
    ----------
    length_scale : float
        Half length of the window in metres, from its centre to the centre of its outermost pixel.
    spacing : float
        Distance between neighbouring pixels in metres; its sign is ignored.

    Returns
    -------
    radius : int
        Pixels on each side of the centre, at least 1: the window is ``2 radius + 1`` wide.
    true_half_length : float
        ``radius * |spacing|`` in metres: what was really used, to be recorded with the result.

    Raises
    ------
    InputError
        When either is not a positive number, or the length is less than one pixel.
    """
    spacing = _positive(spacing)
    length_scale = float(length_scale)
    # a spacing taken from coordinates carries float noise, so "one pixel" has a tolerance
    if not (math.isfinite(length_scale) and length_scale >= spacing * (1 - 1e-6)):
        raise InputError(
            f"length scale {length_scale:g} m is under one pixel: it is a half length, "
            f"accepted is {spacing:g} m (one pixel) or more"
        )
    radius = max(1, math.floor(length_scale / spacing + 0.5))
    return radius, radius * spacing


def radius_grid(
    thicknesses: float, thickness: NDArray[np.floating[Any]], spacing: float
) -> NDArray[np.int32]:
    """Give every pixel the window radius that comes nearest to so many ice thicknesses.

    Parameters
    ----------
    thicknesses : float
        Half length of the window in ice thicknesses. Alley et al. (2018) take several: stresses
        reach that far along a glacier.
    thickness : ndarray, shape (y, x)
        Ice thickness in metres.
    spacing : float
        Distance between neighbouring pixels in metres; its sign is ignored.

    Returns
    -------
    ndarray of int32, shape (y, x)
        At least 1, also where the ice is thinner than that: ``radius * |spacing|`` is the length
        that was used. 0, for no result, where the thickness is missing, zero or negative.

    Raises
    ------
    InputError
        When `thicknesses` or `spacing` is not a positive number.
    """
    spacing = _positive(spacing)
    thicknesses = float(thicknesses)
    if not (math.isfinite(thicknesses) and thicknesses > 0):
        raise InputError(f"{thicknesses:g} ice thicknesses: accepted is a positive number")
    thickness = np.asarray(thickness)
    ice = np.isfinite(thickness) & (thickness > 0)
    pixels = np.floor(np.where(ice, thickness, 0) * (thicknesses / spacing) + 0.5)
    # more pixels than any grid has make no difference, and fit the type
    return np.where(ice, np.clip(pixels, 1, 2**20), 0).astype(np.int32)


def _positive(spacing: float) -> float:
    spacing = abs(float(spacing))
    if not (math.isfinite(spacing) and spacing > 0):
        raise InputError(f"pixel spacing {spacing} m: accepted is a positive number of metres")
    return spacing
