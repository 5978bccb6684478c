"""Strain rates of a gridded horizontal velocity, by least-squares planes.

Conventions, because published codes differ in each of them:

- arrays are ``[row, col]``; ``x`` changes with the column by ``dx`` and ``y`` with the row by
  ``dy``, both signed (``dy`` is negative in a north-up raster). u, v are the components along +x
  and +y of the grid, in metres of the grid per year; strain rates come out per year.
- ``exx = du/dx``, ``eyy = dv/dy``, ``exy = (du/dy + dv/dx) / 2``: the *tensor* shear, half of the
  engineering one. Divergence is ``exx + eyy``, vorticity ``dv/dx - du/dy``.
- ``e1 >= e2`` are the principal rates, ``e1`` the most extensional; ``theta`` is the direction of
  ``e1``, anticlockwise from +x, in ``(-pi/2, pi/2]``.
- longitudinal, transverse and shear are the tensor in the frame of the flow at the pixel itself.
- ``effective`` includes the vertical rate of an incompressible body, ``ezz = -(exx + eyy)``.

Formulas: Nye (1959), doi:10.3189/S0022143000033018; Cuffey & Paterson (2010), chapter 3; flow
frame: Bindschadler et al. (1996), doi:10.3189/S0022143000003361. Noise makes ``e1`` and
``effective`` too large (with no strain and 0.005 per year of noise in each component, their means
are 0.0044 and 0.0072), and strain of single image pairs is mostly noise: feed composites.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firnline.errors import InputError

__all__ = ["ERROR_FIELDS", "FIELDS", "radius_for", "strain_rates"]

Floats: TypeAlias = NDArray[np.floating[Any]]

_RATE = "year-1"  # never "a-1": udunits reads "a" as are
_NOISE = "from the velocity errors, pixels independent; correlated noise makes it about 1.8x larger"


def _field(long_name: str, comment: str, units: str = _RATE) -> Mapping[str, str]:
    return MappingProxyType({"long_name": long_name, "units": units, "comment": comment})


FIELDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "exx": _field("strain rate along x", "du/dx"),
        "eyy": _field("strain rate along y", "dv/dy"),
        "exy": _field("shear strain rate, tensor component", "(du/dy + dv/dx) / 2"),
        "e1": _field(
            "most extensional principal strain rate",
            "(exx + eyy) / 2 + sqrt((exx - eyy)^2 / 4 + exy^2); biased upwards by noise",
        ),
        "e2": _field(
            "most compressive principal strain rate",
            "(exx + eyy) / 2 - sqrt((exx - eyy)^2 / 4 + exy^2); biased downwards by noise",
        ),
        "theta": _field(
            "direction of the most extensional principal strain rate",
            "atan2(2 exy, exx - eyy) / 2, anticlockwise from +x of the grid",
            "radian",
        ),
        "effective": _field(
            "effective strain rate",
            "sqrt(exx^2 + eyy^2 + exx eyy + exy^2), with ezz = -(exx + eyy); biased by noise",
        ),
        "longitudinal": _field(
            "strain rate along the flow", "exx c^2 + 2 exy c s + eyy s^2, (c, s) = (u, v) / |v|"
        ),
        "transverse": _field(
            "strain rate across the flow", "exx s^2 - 2 exy c s + eyy c^2, (c, s) = (u, v) / |v|"
        ),
        "shear": _field(
            "shear strain rate in the frame of the flow, tensor component",
            "(eyy - exx) c s + exy (c^2 - s^2), (c, s) = (u, v) / |v|",
        ),
        "divergence": _field("horizontal divergence", "exx + eyy, minus the vertical strain rate"),
        "vorticity": _field("vertical vorticity", "dv/dx - du/dy"),
        "exx_error": _field("standard error of the strain rate along x", _NOISE),
        "eyy_error": _field("standard error of the strain rate along y", _NOISE),
        "exy_error": _field("standard error of the shear strain rate", _NOISE),
        "e1_error": _field("standard error of the most extensional principal rate", _NOISE),
        "e2_error": _field("standard error of the most compressive principal rate", _NOISE),
    }
)
"""Attributes (``long_name``, ``units``, ``comment``: the formula) of every field, in order."""

ERROR_FIELDS: tuple[str, ...] = tuple(name for name in FIELDS if name.endswith("_error"))
"""The fields that need the errors of the velocity."""

SCALE_CONVENTION = (
    "velocity in grid metres per year along the grid axes, distances in grid metres; "
    "no map scale factor applied (it cancels to first order in a gradient)"
)
"""What is done about the scale of the map projection: recorded with every result."""

# A block's temporaries should stay in a core's L2 cache: 2**17 float32 are 512 kB.
_BLOCK_PIXELS = 2**17
_GAP_COLUMNS = 256


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
    spacing = abs(float(spacing))
    length_scale = float(length_scale)
    if not (math.isfinite(spacing) and spacing > 0):
        raise InputError(f"pixel spacing {spacing} m: accepted is a positive number of metres")
    # a spacing taken from coordinates carries float noise, so "one pixel" has a tolerance
    if not (math.isfinite(length_scale) and length_scale >= spacing * (1 - 1e-6)):
        raise InputError(
            f"length scale {length_scale:g} m is under one pixel: it is a half length, "
            f"accepted is {spacing:g} m (one pixel) or more"
        )
    radius = max(1, math.floor(length_scale / spacing + 0.5))
    return radius, radius * spacing


def strain_rates(
    vx: Floats,
    vy: Floats,
    *,
    dx: float,
    dy: float,
    radius: int,
    vx_error: ArrayLike | None = None,
    vy_error: ArrayLike | None = None,
    fields: Collection[str] | None = None,
) -> dict[str, Floats]:
    """Strain rates from a plane fitted to the velocity in a square window around each pixel.

    Where all pixels of the ``(2 radius + 1)^2`` window are there, the slopes of the plane are two
    separable sums (a ramp along one axis, a box along the other). Where some are missing, and
    beyond the edge of the grid all are, the plane is fitted to those that are there, provided that
    the centre is one of them and they are at least half of the window. Half of such a window never
    lies on one line, so that the fit always exists. A missing pixel touches no result beyond its
    windows.

    Parameters
    ----------
    vx, vy : ndarray, shape (y, x)
        Velocity along +x and +y in m/year, float32 or float64 (others become float64). A pixel is
        missing where either is not finite.
    dx, dy : float
        Signed step of x with the column and of y with the row in metres; ``dy`` is negative in a
        north-up raster.
    radius : int
        Pixels on each side of the centre, at least 1; see :func:`radius_for`.
    vx_error, vy_error : array_like, scalar or shape (y, x), optional
        Standard errors in m/year, independent from pixel to pixel and between components: both or
        neither. A window with an error that is negative or not finite gets rates without errors.
    fields : collection of str, optional
        Names out of :data:`FIELDS`; by default all, without the errors when none are given.

    Returns
    -------
    dict of str to ndarray, shape (y, x)
        In the order of :data:`FIELDS` and the precision of the input; NaN where no fit was made.
        The flow-frame fields are NaN where the ice does not move.

    Raises
    ------
    InputError
        For arrays that are not 2-D or differ in shape, a step of 0, a radius under 1, one error
        without the other, or unknown fields.

    Notes
    -----
    With ``w = 2 radius + 1`` the gain for a wave of length L along x is
    ``3 / (radius (radius + 1) w) * sum_j j sin(2 pi j dx / L) / (2 pi dx / L)``. For equal errors
    in a full window the error of a slope is ``sigma sqrt(3) / (dx w sqrt(radius (radius + 1)))``.
    Errors are propagated exactly through the fit that was made, with the covariance of the two
    slopes that gaps cause, and to first order through the principal rates:
    ``var(e1) = cos^4 t var(exx) + sin^4 t var(eyy) + sin^2 2t var(exy)`` in full windows.

    float32 is accurate because differences come before sums; fits with gaps are always float64.
    """
    u, v = _velocity(vx, vy)
    steps = (float(dx), float(dy))
    for name, step in zip(("dx", "dy"), steps, strict=True):
        if not math.isfinite(step) or step == 0:
            raise InputError(f"{name} is {step}: accepted is a signed step in metres, not 0")
    if isinstance(radius, bool) or int(radius) != radius or radius < 1:
        raise InputError(f"radius {radius}: accepted is a whole number of pixels, 1 or more")
    radius = int(radius)
    errors = _errors(vx_error, vy_error, u)
    wanted = select_fields(fields, with_errors=errors is not None)
    if errors is not None and not any(name in ERROR_FIELDS for name in wanted):
        errors = None

    out: dict[str, Floats] = {name: np.empty(u.shape, u.dtype) for name in wanted}
    ny, nx = u.shape
    rows = min(64, max(8, _BLOCK_PIXELS // max(nx, 1)))
    # 0/0 (no motion), inf - inf (missing input) and an overflow next to it end as NaN, as said
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for start in range(0, ny, rows):
            stop = min(start + rows, ny)
            full = _full_windows(u, v, radius, start, stop)
            _fill_full(u, v, errors, steps, radius, start, stop, out)
            if not full.all():
                block = {name: field[start:stop] for name, field in out.items()}
                for field in block.values():
                    np.copyto(field, np.nan, where=~full)
                _fill_gappy(u, v, errors, steps, radius, start, full, block)
    return out


def _velocity(vx: Floats, vy: Floats) -> tuple[Floats, Floats]:
    u, v = np.asarray(vx), np.asarray(vy)
    if u.ndim != 2 or u.shape != v.shape:
        raise InputError(
            f"vx {u.shape} and vy {v.shape}: accepted are two arrays of one shape (y, x)"
        )
    dtype = np.result_type(u, v)
    if dtype not in (np.float32, np.float64):
        if dtype.kind not in "iuf":
            raise InputError(f"velocity of type {dtype}: accepted are real numbers")
        dtype = np.dtype(np.float64)
    return np.ascontiguousarray(u, dtype), np.ascontiguousarray(v, dtype)


def _errors(
    vx_error: ArrayLike | None, vy_error: ArrayLike | None, like: Floats
) -> tuple[Floats, Floats] | None:
    """Variances of u and v: 0-d where the error is one number, else of the grid's shape."""
    if vx_error is None and vy_error is None:
        return None
    if vx_error is None or vy_error is None:
        raise InputError("one velocity error without the other: give vx_error and vy_error both")
    variances = []
    for name, error in (("vx_error", vx_error), ("vy_error", vy_error)):
        sigma = np.asarray(error, like.dtype)
        if sigma.shape not in ((), like.shape):
            raise InputError(
                f"{name} {sigma.shape}: accepted is a number or an array of shape {like.shape}"
            )
        # NaN, and not 0, for what can't be an error: the rates stay and their errors go missing
        bad = ~(np.isfinite(sigma) & (sigma >= 0))
        variances.append(np.ascontiguousarray(np.where(bad, np.nan, sigma) ** 2, like.dtype))
    return _scalar(variances[0], vx_error), _scalar(variances[1], vy_error)


def _scalar(variance: Floats, error: ArrayLike) -> Floats:
    # ascontiguousarray makes a 1-element vector of a number
    return variance.reshape(()) if np.ndim(error) == 0 else variance


def select_fields(fields: Collection[str] | None, *, with_errors: bool) -> list[str]:
    if fields is None:
        return [name for name in FIELDS if with_errors or name not in ERROR_FIELDS]
    chosen = {fields} if isinstance(fields, str) else set(fields)
    if unknown := sorted(chosen - set(FIELDS)):
        raise InputError(f"unknown fields {', '.join(unknown)}: accepted are {', '.join(FIELDS)}")
    if not with_errors and (missing := sorted(chosen & set(ERROR_FIELDS))):
        raise InputError(f"{', '.join(missing)} asked for without vx_error and vy_error")
    return [name for name in FIELDS if name in chosen]


# --- full windows: separable sums over a block of rows


def _full_windows(u: Floats, v: Floats, radius: int, start: int, stop: int) -> NDArray[np.bool_]:
    """Where, in rows ``start`` to ``stop``, every pixel of the window is there."""
    ny, nx = u.shape
    full = np.zeros((stop - start, nx), bool)
    first, last = max(start, radius), min(stop, ny - radius)
    width = nx - 2 * radius
    if last <= first or width <= 0:
        return full
    rows = slice(first - radius, last + radius)
    valid = np.isfinite(u[rows])
    valid &= np.isfinite(v[rows])
    inner = full[first - start : last - start, radius : nx - radius]
    if valid.all():
        inner[...] = True
        return full
    across = valid[:, :width].copy()
    for k in range(1, 2 * radius + 1):
        across &= valid[:, k : k + width]
    inner[...] = True
    for k in range(2 * radius + 1):
        inner &= across[k : k + last - first]
    return full


def _fill_full(
    u: Floats,
    v: Floats,
    errors: tuple[Floats, Floats] | None,
    steps: tuple[float, float],
    radius: int,
    start: int,
    stop: int,
    out: Mapping[str, Floats],
) -> None:
    """Write rows ``start`` to ``stop`` as if no pixel were missing, but for the grid's edge.

    Windows with a missing pixel hold anything afterwards: the ramp's middle weight is zero and
    lets a missing centre through. The caller overwrites them.
    """
    ny, nx = u.shape
    first, last = max(start, radius), min(stop, ny - radius)
    if last <= first or nx <= 2 * radius:
        return
    rows, inside = slice(first - radius, last + radius), slice(radius, nx - radius)
    into = {name: field[first:last, inside] for name, field in out.items()}
    ux, uy = _slopes(u[rows], steps, radius)
    vx, vy = _slopes(v[rows], steps, radius)
    centre = (slice(first, last), inside)
    mohr = _derive(ux, uy, vx, vy, u[centre], v[centre], into)
    if errors is not None:
        covariances = [
            _slope_covariance(s if s.ndim == 0 else s[rows], steps, radius, ux.shape)
            for s in errors
        ]
        _derive_errors(covariances[0], covariances[1], ux, vy, mohr, into)


def _box(a: Floats, radius: int, axis: int) -> Floats:
    n = a.shape[axis] - 2 * radius
    total = _part(a, 0, n, axis) + _part(a, 1, n, axis)
    for k in range(2, 2 * radius + 1):
        total += _part(a, k, n, axis)
    return total


def _ramp(a: Floats, radius: int, axis: int) -> Floats:
    """Sum of ``j a[j]``: differences first, which float32 takes without loss."""
    n = a.shape[axis] - 2 * radius
    total = _part(a, radius + 1, n, axis) - _part(a, radius - 1, n, axis)
    term = np.empty_like(total)
    for j in range(2, radius + 1):
        np.subtract(_part(a, radius + j, n, axis), _part(a, radius - j, n, axis), out=term)
        term *= j
        total += term
    return total


def _square(a: Floats, radius: int, axis: int) -> Floats:
    """Sum of ``j^2 a[j]``."""
    n = a.shape[axis] - 2 * radius
    total = _part(a, radius + 1, n, axis) + _part(a, radius - 1, n, axis)
    for j in range(2, radius + 1):
        total += j**2 * (_part(a, radius + j, n, axis) + _part(a, radius - j, n, axis))
    return total


def _part(a: Floats, start: int, length: int, axis: int) -> Floats:
    return a[start : start + length] if axis == 0 else a[:, start : start + length]


def _norm(radius: int) -> float:
    """Sum of ``j^2`` over the whole window."""
    w = 2 * radius + 1
    return w * radius * (radius + 1) * w / 3


def _slopes(a: Floats, steps: tuple[float, float], radius: int) -> tuple[Floats, Floats]:
    """Slopes along x and y of the planes of all full windows in ``a``."""
    along_x = _box(_ramp(a, radius, 1), radius, 0)
    along_y = _box(_ramp(a, radius, 0), radius, 1)
    along_x *= 1 / (steps[0] * _norm(radius))
    along_y *= 1 / (steps[1] * _norm(radius))
    return along_x, along_y


Covariance: TypeAlias = tuple[Floats, Floats, Floats]  # of (x slope, y slope): xx, xy, yy


def _slope_covariance(
    variance: Floats, steps: tuple[float, float], radius: int, shape: tuple[int, ...]
) -> Covariance:
    """Covariance of the two slopes of full windows, for a block's variances of the velocity."""
    norm = _norm(radius)
    dx, dy = steps
    if variance.ndim == 0:
        flat = np.broadcast_to(variance, shape)
        return flat * (1 / (dx**2 * norm)), flat * 0, flat * (1 / (dy**2 * norm))
    xx = _box(_square(variance, radius, 1), radius, 0)
    xy = _ramp(_ramp(variance, radius, 1), radius, 0)
    yy = _square(_box(variance, radius, 1), radius, 0)
    xx *= 1 / (dx * norm) ** 2
    xy *= 1 / (dx * dy * norm**2)
    yy *= 1 / (dy * norm) ** 2
    # ramps see neither the centre row nor the centre column
    np.copyto(xy, np.nan, where=np.isnan(xx + yy))
    return xx, xy, yy


# --- windows with gaps: moments of what is there, in float64


def _fill_gappy(
    u: Floats,
    v: Floats,
    errors: tuple[Floats, Floats] | None,
    steps: tuple[float, float],
    radius: int,
    start: int,
    full: NDArray[np.bool_],
    block: Mapping[str, Floats],
) -> None:
    """Fit planes to what is there in the windows that are not full, and write their fields.

    Only around them: in a grid without gaps they are a rim of ``radius`` pixels.
    """
    stop = start + full.shape[0]
    todo = ~full
    todo &= np.isfinite(u[start:stop])
    todo &= np.isfinite(v[start:stop])
    for left in range(0, full.shape[1], _GAP_COLUMNS):
        part = todo[:, left : left + _GAP_COLUMNS]
        if not part.any():
            continue
        row, col = (np.flatnonzero(part.any(axis=axis)) for axis in (1, 0))
        here = (
            slice(int(row[0]), int(row[-1]) + 1),
            slice(left + int(col[0]), left + int(col[-1]) + 1),
        )
        area = (slice(here[0].start + start, here[0].stop + start), here[1])
        into = {name: field[here] for name, field in block.items()}
        _fit_area(u, v, errors, steps, radius, area, todo[here], into)


def _fit_area(
    u: Floats,
    v: Floats,
    errors: tuple[Floats, Floats] | None,
    steps: tuple[float, float],
    radius: int,
    area: tuple[slice, slice],
    todo: NDArray[np.bool_],
    into: Mapping[str, Floats],
) -> None:
    a, b = _with_rim(u, area, radius), _with_rim(v, area, radius)
    there = np.isfinite(a) & np.isfinite(b)
    moments = _moments(there.astype(np.float64), radius)
    at = todo & (2 * moments[0] >= (2 * radius + 1) ** 2)
    if not at.any():
        return
    n, x, y, xx, xy, yy = (moment[at] for moment in moments)
    x /= n
    y /= n
    xx -= n * x * x
    xy -= n * x * y
    yy -= n * y * y
    # the slopes are sums over the window of (value times) weights linear in x and y,
    # p x + q y + s: the last two rows of (A^T A)^-1 A^T, A with the columns 1, x, y
    determinant = xx * yy - xy * xy
    p_x, q_x = yy / (determinant * steps[0]), -xy / (determinant * steps[0])
    p_y, q_y = -xy / (determinant * steps[1]), xx / (determinant * steps[1])
    weights = ((p_x, q_x, -p_x * x - q_x * y), (p_y, q_y, -p_y * x - q_y * y))
    slopes = []
    for values in (a, b):
        values[~there] = 0
        across, along = _box(values, radius, 1), _ramp(values, radius, 1)
        sums = (
            _box(along, radius, 0)[at],
            _ramp(across, radius, 0)[at],
            _box(across, radius, 0)[at],
        )
        slopes += [p * sums[0] + q * sums[1] + s * sums[2] for p, q, s in weights]
    ux, uy, vx, vy = slopes
    fitted = {name: np.empty(len(ux)) for name in into}
    mohr = _derive(ux, uy, vx, vy, u[area][at], v[area][at], fitted)
    if errors is not None:
        cov_u, cov_v = (
            _fit_covariance(variance, weights, there, area, radius, at) for variance in errors
        )
        _derive_errors(cov_u, cov_v, ux, vy, mohr, fitted)
    for name, field in into.items():
        field[at] = fitted[name]


def _with_rim(a: Floats, area: tuple[slice, slice], radius: int) -> NDArray[np.float64]:
    """Copy an area and ``radius`` pixels around it, NaN beyond the grid."""
    spans = [
        (max(0, s.start - radius), min(size, s.stop + radius), s.start - radius)
        for s, size in zip(area, a.shape, strict=True)
    ]
    out = np.full([s.stop - s.start + 2 * radius for s in area], np.nan)
    to = tuple(slice(low - origin, high - origin) for low, high, origin in spans)
    out[to] = a[tuple(slice(low, high) for low, high, _ in spans)]
    return out


def _moments(a: Floats, radius: int) -> tuple[Floats, ...]:
    """Sums over the windows of a times 1, x, y, x^2, xy and y^2, in pixels from the centre."""
    across, along, squared = (f(a, radius, 1) for f in (_box, _ramp, _square))
    return (
        _box(across, radius, 0),
        _box(along, radius, 0),
        _ramp(across, radius, 0),
        _box(squared, radius, 0),
        _ramp(along, radius, 0),
        _square(across, radius, 0),
    )


def _fit_covariance(
    variance: Floats,
    weights: tuple[tuple[Floats, Floats, Floats], tuple[Floats, Floats, Floats]],
    there: NDArray[np.bool_],
    area: tuple[slice, slice],
    radius: int,
    at: NDArray[np.bool_],
) -> Covariance:
    """Covariance of the two slopes: sums of the products of their weights and the variance."""
    noise = variance if variance.ndim == 0 else _with_rim(variance, area, radius)
    sums = _moments(np.where(there, noise, 0.0).astype(np.float64), radius)
    one, x, y, xx, xy, yy = (moment[at] for moment in sums)

    def product(f: tuple[Floats, Floats, Floats], g: tuple[Floats, Floats, Floats]) -> Floats:
        # (p x + q y + s) (p' x + q' y + s'), summed
        total: Floats = f[0] * g[0] * xx + f[1] * g[1] * yy + f[2] * g[2] * one
        total += (f[0] * g[1] + f[1] * g[0]) * xy
        total += (f[0] * g[2] + f[2] * g[0]) * x
        total += (f[1] * g[2] + f[2] * g[1]) * y
        return total

    first, second = weights
    return product(first, first), product(first, second), product(second, second)


# --- from slopes to fields, for blocks and for lists of fits alike


def _derive(
    ux: Floats,
    uy: Floats,
    vx: Floats,
    vy: Floats,
    u: Floats,
    v: Floats,
    into: Mapping[str, Floats],
) -> tuple[Floats, Floats, Floats]:
    """Write the fields that ``into`` has; return exy, (exx - eyy) / 2 and Mohr's circle's radius.

    ``out=into.get(name)`` writes in place what was asked for, and is a temporary otherwise.
    """
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
        effective = into["effective"]
        np.multiply(mean, mean, out=effective)
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
        _derive_flow_frame(exy, mean, half, u, v, into)
    return exy, half, circle


def _derive_flow_frame(
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


def _derive_errors(
    cov_u: Covariance,
    cov_v: Covariance,
    ux: Floats,
    vy: Floats,
    mohr: tuple[Floats, Floats, Floats],
    into: Mapping[str, Floats],
) -> None:
    """First-order errors; u and v are independent of each other, their own slopes may not be."""
    exy, half, circle = mohr
    (u_xx, u_xy, u_yy), (v_xx, v_xy, v_yy) = cov_u, cov_v
    if "exx_error" in into:
        np.sqrt(u_xx, out=into["exx_error"])
        into["exx_error"][np.isnan(ux)] = np.nan
    if "eyy_error" in into:
        np.sqrt(v_yy, out=into["eyy_error"])
        into["eyy_error"][np.isnan(vy)] = np.nan
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


# --- xarray
