"""From a velocity gradient to the fields of strain and their errors, pixel by pixel.

``into`` names the fields that are asked for and holds the arrays that they are written to, so
that each is made in place and a field that nobody asked for costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from firnline.cache.strain.gradients import Gradient
from firnline.cache.strain.windows import Floats

Mohr = tuple[Floats, Floats, Floats]  # exy, (exx - eyy) / 2, and the radius of Mohr's circle


def write_fields(gradient: Gradient, u: Floats, v: Floats, into: Mapping[str, Floats]) -> Mohr:
    """Write the fields that ``into`` has, from the slopes and the velocity at the pixel."""
    ux, uy, vx, vy, _ = gradient
    if "exx" in into:
        into["exx"][...] = ux
    if "eyy" in into:
        into["eyy"][...] = vy
    exy = np.add(uy, vx, out=into.get("exy"))
    exy *= 0.5
    if "vorticity" in into:
        np.subtract(vx, uy, out=into["vorticity"])
    trace = np.add(ux, vy, out=into.get("divergence"))
    mean = 0.5 * trace
    half = ux - vy
    half *= 0.5
    circle = half * half
    square = exy * exy
    if "effective" in into:
        # exx^2 + eyy^2 + exx eyy + exy^2 = 3 mean^2 + half^2 + exy^2
        effective = np.multiply(mean, mean, out=into["effective"])
        effective *= 3
        effective += circle
        effective += square
        np.sqrt(effective, out=effective)
    circle += square
    np.sqrt(circle, out=circle)
    if "e1" in into:
        np.add(mean, circle, out=into["e1"])
    if "e2" in into:
        np.subtract(mean, circle, out=into["e2"])
    if "theta" in into:
        np.arctan2(exy, half, out=into["theta"])
        into["theta"] *= 0.5
    if not into.keys().isdisjoint(("longitudinal", "transverse", "shear")):
        _write_flow_frame(exy, mean, half, u, v, into)
    return exy, half, circle


def _write_flow_frame(
    exy: Floats, mean: Floats, half: Floats, u: Floats, v: Floats, into: Mapping[str, Floats]
) -> None:
    # with c^2 - s^2 = cos 2a and 2 c s = sin 2a: longitudinal = mean + half cos 2a + exy sin 2a
    uu, vv = u * u, v * v
    cos2, sin2 = uu - vv, u * v
    sin2 *= 2
    uu += vv
    np.divide(1, uu, out=uu)
    cos2 *= uu
    sin2 *= uu
    if "longitudinal" in into or "transverse" in into:
        along = half * cos2
        np.multiply(exy, sin2, out=vv)
        along += vv
        if "longitudinal" in into:
            np.add(mean, along, out=into["longitudinal"])
        if "transverse" in into:
            np.subtract(mean, along, out=into["transverse"])
    if "shear" in into:
        shear = np.multiply(exy, cos2, out=into["shear"])
        sin2 *= half
        shear -= sin2


def write_errors(gradient: Gradient, mohr: Mohr, into: Mapping[str, Floats]) -> None:
    """First-order errors; u and v are independent of each other, their own slopes may not be.

    In a full window ``var(e1) = cos^4 t var(exx) + sin^4 t var(eyy) + sin^2 2t var(exy)``, and for
    e2 with sine and cosine exchanged; where gaps make the two slopes of a component covary, their
    covariance is added.
    """
    exy, half, circle = mohr
    u_xx, u_xy, u_yy, v_xx, v_xy, v_yy = gradient.covariances
    if "exx_error" in into:
        np.sqrt(u_xx, out=into["exx_error"])
    if "eyy_error" in into:
        np.sqrt(v_yy, out=into["eyy_error"])
    shear = u_yy + v_xx
    shear *= 0.25  # var(exy)
    if "exy_error" in into:
        np.sqrt(shear, out=into["exy_error"])
    if into.keys().isdisjoint(("e1_error", "e2_error")):
        return
    # where the two principal rates are equal theta is 0 by definition
    isotropic = circle == 0
    cos2 = np.where(isotropic, 1, half / circle)
    sin2 = np.where(isotropic, 0, exy / circle)
    cc, ss = 0.5 * (1 + cos2), 0.5 * (1 - cos2)
    shear *= sin2 * sin2
    # e1 = cc ux + ss vy + sin2 (uy + vx) / 2 and e2 = ss ux + cc vy - sin2 (uy + vx) / 2
    for name, a, b, sign in (("e1_error", cc, ss, 1), ("e2_error", ss, cc, -1)):
        if name in into:
            variance = a * a * u_xx + b * b * v_yy + shear
            variance += sign * sin2 * (a * u_xy + b * v_xy)
            np.sqrt(np.maximum(variance, 0), out=into[name])
