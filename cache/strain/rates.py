"""Strain rates of a whole grid: blocks of it, one after the other on each core."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from firnline.cache.strain.fields import (
    ERROR_FIELDS,
    STRESS_FIELDS,
    Gaps,
    Method,
    check_choices,
    select_fields,
)
from firnline.cache.strain.gradients import Gradient, fit_gradient, rectangles, trimmed
from firnline.cache.strain.invariants import write_errors, write_fields
from firnline.cache.strain.stakes import follow_stakes
from firnline.cache.strain.stress import FlowLaw
from firnline.cache.strain.windows import Floats, Square, Star, Window
from firnline.errors import InputError

# A block's temporaries should stay in a core's caches: 2**17 float32 are 512 kB. Logarithmic rates
# are made in float64, of more of them.
_BLOCK_ROWS, _BLOCK_COLUMNS, _NARROW_COLUMNS = 32, 4096, 1024

# glibc (2.36) gives the memory of temporaries back to the system and faults it in again page by
# page, half of the time of a large grid, until it has seen a block of up to 32 MB come and go: then
# it keeps twice as much. Such a block is asked for, and not touched.
_HEAP_BYTES = 2**24

Area = tuple[slice, slice]


def strain_rates(
    vx: ArrayLike,
    vy: ArrayLike,
    *,
    dx: float,
    dy: float,
    radius: int | NDArray[np.integer[Any]],
    method: Method = "plane",
    gaps: Gaps = "fit",
    vx_error: ArrayLike | None = None,
    vy_error: ArrayLike | None = None,
    flow_law: FlowLaw | None = None,
    fields: Collection[str] | None = None,
    workers: int | None = None,
) -> dict[str, Floats]:
    """Strain rates of the velocity around each pixel.

    Parameters
    ----------
    vx, vy : array_like, shape (y, x)
        Velocity along +x and +y in m/year, float32 or float64 (others become float64). A pixel is
        missing where either is not finite.
    dx, dy : float
        Signed step of x with the column and of y with the row in metres; ``dy`` is negative in a
        north-up raster.
    radius : int or ndarray of int, shape (y, x)
        Half length in pixels, at least 1; see :func:`radius_for`. Of its own for each pixel, or 0
        for no result there; see :func:`radius_grid`.
    method : {"plane", "nominal", "logarithmic"}
        A plane fitted to the ``(2 radius + 1)^2`` window; centred differences between four stakes
        ``radius`` away; or their logarithmic strain while they move with the ice: see
        `gradients` and `stakes`.
    gaps : {"fit", "strict"}
        Where pixels are missing, and beyond the edge of the grid all are. ``"fit"``: the plane is
        fitted to those of the window (for nominal: of the centre and the four stakes) that are
        there, provided that the centre is one of them, they are at least half and not on one line.
        Logarithmic rates need what the stakes pass, and their mean velocity is of what is there.
        ``"strict"``: no result unless all that the method reads is there. A missing pixel touches
        no result beyond its windows: of ``2 radius + 1`` pixels, or ``4 radius + 1`` if
        logarithmic.
    vx_error, vy_error : array_like, scalar or shape (y, x), optional
        Standard errors in m/year, independent from pixel to pixel and between components: both or
        neither. A window with an error that is negative or not finite gets rates without errors.
    flow_law : FlowLaw, optional
        Gives von Mises stresses as well.
    fields : collection of str, optional
        Names out of :data:`FIELDS` and :data:`STRESS_FIELDS`; by default all that can be had.
    workers : int, optional
        Threads; by default as many as there are cores.

    Returns
    -------
    dict of str to ndarray, shape (y, x)
        In the order of :data:`FIELDS` and the precision of the input; NaN where there is no result.
        The flow-frame fields are NaN where the ice does not move.

    Raises
    ------
    InputError
        For arrays that are not 2-D or differ in shape, a step of 0, a radius under 1, one error
        without the other, unknown fields, methods or gaps, or logarithmic rates of oblong pixels.

    Notes
    -----
    With ``w = 2 radius + 1`` the gain of the plane fit for a wave of length L along x is
    ``3 / (radius (radius + 1) w) * sum_j j sin(2 pi j dx / L) / (2 pi dx / L)``. For equal errors
    in a full window the error of a slope is ``sigma sqrt(3) / (dx w sqrt(radius (radius + 1)))``;
    of nominal rates it is ``sigma / (dx radius sqrt(2))``. Errors are propagated exactly through
    the fit that was made, with the covariance of the two slopes that gaps cause, and to first order
    through the principal rates. Logarithmic rates have the errors of nominal ones, to first order
    and a little too large, since a moving stake's velocity is a mean of its neighbours'.

    float32 is accurate because differences come before sums; fits with gaps and logarithmic rates
    are always made in float64.
    """
    check_choices(method, gaps)
    u, v = _velocity(vx, vy)
    steps = (float(dx), float(dy))
    for name, step in zip(("dx", "dy"), steps, strict=True):
        if not math.isfinite(step) or step == 0:
            raise InputError(f"{name} is {step}: accepted is a signed step in metres, not 0")
    if method == "logarithmic" and not math.isclose(abs(dx), abs(dy), rel_tol=1e-4):
        raise InputError(f"pixels of {abs(dx):g} x {abs(dy):g} m: accepted for logarithmic rates "
                         "are square ones")  # fmt: skip
    errors = _errors(vx_error, vy_error, u.shape)
    wanted = select_fields(fields, with_errors=bool(errors), with_stress=flow_law is not None)
    if not any(name in ERROR_FIELDS for name in wanted):
        errors = ()
    if not any(name in STRESS_FIELDS for name in wanted):
        flow_law = None
    kernel = _Kernel(u, v, steps, _radius(radius, u.shape), method, gaps, errors, flow_law)
    out: dict[str, Floats] = {name: np.empty(u.shape, kernel.dtype) for name in wanted}
    np.empty(_HEAP_BYTES, np.uint8)
    with ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="strain") as pool:
        for _ in pool.map(lambda area: kernel.write(area, out), kernel.areas()):
            pass
    return out


def _velocity(vx: ArrayLike, vy: ArrayLike) -> tuple[Floats, Floats]:
    u, v = np.asarray(vx), np.asarray(vy)
    if u.ndim != 2 or u.shape != v.shape:
        raise InputError(
            f"vx {u.shape} and vy {v.shape}: accepted are two arrays of one shape (y, x)"
        )
    if {u.dtype.kind, v.dtype.kind} - set("iuf"):
        raise InputError(f"velocity of type {u.dtype} and {v.dtype}: accepted are real numbers")
    return u, v


def _radius(radius: int | NDArray[np.integer[Any]], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """0-d or of the grid's shape; 0 for no result."""
    pixels = np.asarray(radius)
    least = 1 if pixels.ndim == 0 else 0
    whole = pixels.dtype.kind in "iu" or (pixels.dtype.kind == "f" and (pixels % 1 == 0).all())
    if not whole or pixels.shape not in ((), shape) or (pixels < least).any():
        raise InputError(
            f"radius {radius if pixels.ndim == 0 else pixels.shape}: accepted is a whole number of "
            f"pixels, 1 or more, or one for each pixel of {shape}"
        )
    # no window that large has half of its pixels, or three of its stakes, on the grid
    return np.where(pixels < max(shape), pixels, 0).astype(np.int64)


def _errors(
    vx_error: ArrayLike | None, vy_error: ArrayLike | None, shape: tuple[int, ...]
) -> tuple[Floats, ...]:
    if vx_error is None and vy_error is None:
        return ()
    if vx_error is None or vy_error is None:
        raise InputError("one velocity error without the other: give vx_error and vy_error both")
    sigmas = np.asarray(vx_error), np.asarray(vy_error)
    for name, sigma in zip(("vx_error", "vy_error"), sigmas, strict=True):
        if sigma.shape not in ((), shape):
            raise InputError(
                f"{name} {sigma.shape}: accepted is a number or an array of shape {shape}"
            )
    return sigmas


@dataclass(frozen=True)
class _Kernel:
    """What is computed, of what; :meth:`write` does it for one block."""

    u: Floats
    v: Floats
    steps: tuple[float, float]
    radius: NDArray[np.int64]
    method: Method
    gaps: Gaps
    errors: tuple[Floats, ...]
    flow_law: FlowLaw | None

    @property
    def dtype(self) -> np.dtype[np.floating[Any]]:
        dtype = np.result_type(self.u, self.v)
        return dtype if dtype in (np.float32, np.float64) else np.dtype(np.float64)

    def areas(self) -> Iterator[Area]:
        """Blocks that cover the grid, and such that most need nothing from beyond its edge."""
        ny, nx = self.u.shape
        r = int(self.radius.max(initial=1))
        # a window larger than its block would have the block read its rim many times
        rows = max(_BLOCK_ROWS, 2 * r)
        narrow = self.method == "logarithmic" or self.radius.ndim == 2
        columns = _NARROW_COLUMNS if narrow else _BLOCK_COLUMNS
        edge = min(r, nx // 2)
        sides = [(0, edge), *_cut(edge, nx - edge, columns), (nx - edge, nx)]
        for left, right in sides:
            # narrow at the sides, so tall: there are as few blocks there
            high = rows if right - left > edge else 16 * rows
            for top, bottom in _cut(0, ny, high):
                yield slice(top, bottom), slice(left, right)

    def write(self, area: Area, out: Mapping[str, Floats]) -> None:
        """Compute a block's fields and write them to their place."""
        into = {name: field[area] for name, field in out.items()}
        u, v = (a[area].astype(self.dtype, copy=False) for a in (self.u, self.v))
        law = self.flow_law
        if law is not None:  # it needs these, asked for or not
            for name in ("effective", "e1", "e2"):
                into.setdefault(name, np.empty_like(u))
        # 0/0 (no motion), inf - inf (missing input) and an overflow next to it end as NaN, as said
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            gradient = self._gradient(area)
            mohr = write_fields(gradient, u, v, into)
            if gradient.covariances:
                write_errors(gradient, mohr, into)
            if law is not None and "von_mises" in into:
                into["von_mises"][...] = law.von_mises(into["effective"])
            if law is not None and "von_mises_tensile" in into:
                into["von_mises_tensile"][...] = law.von_mises_tensile(into["e1"], into["e2"])

    def _gradient(self, area: Area) -> Gradient:
        if self.radius.ndim == 0 and self.radius:
            return self._at_radius(area, int(self.radius))
        radius = np.broadcast_to(self.radius, self.u.shape)[area]
        number = 4 + 3 * len(self.errors)
        whole = [np.full(radius.shape, np.nan, self.dtype) for _ in range(number)]
        for r in np.unique(radius[radius > 0]).tolist():
            mine = radius == r
            for part in rectangles(mine):
                rows, columns = (
                    slice(a.start + p.start, a.start + p.stop)
                    for a, p in zip(area, part, strict=True)
                )
                found = self._at_radius((rows, columns), r)
                for to, values in zip(whole, (*found[:4], *found.covariances), strict=True):
                    np.copyto(to[part], values, where=mine[part])
        return Gradient(whole[0], whole[1], whole[2], whole[3], tuple(whole[4:]))

    def _at_radius(self, area: Area, r: int) -> Gradient:
        variances = tuple(
            _variance(_with_rim(sigma, area, r, self.dtype) if sigma.ndim else sigma)
            for sigma in self.errors
        )
        window: Window = Square(r) if self.method == "plane" else Star(r)
        strict = self.gaps == "strict"
        if self.method != "logarithmic":
            u, v = (_with_rim(a, area, r, self.dtype) for a in (self.u, self.v))
            return fit_gradient(u, v, window, self.steps, variances, fill=not strict)
        u, v = (_with_rim(a, area, 2 * r, self.dtype) for a in (self.u, self.v))
        gradient = follow_stakes(u, v, r, self.steps, strict=strict)
        if not variances:
            return gradient
        near = trimmed(r)
        nominal = fit_gradient(u[near], v[near], window, self.steps, variances, fill=False)
        missing = np.isnan(gradient.ux)
        for term in nominal.covariances:
            np.copyto(term, np.nan, where=missing)
        return gradient._replace(covariances=nominal.covariances)


def _cut(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def _with_rim(a: Floats, area: Area, rim: int, dtype: np.dtype[np.floating[Any]]) -> Floats:
    """Copy an area and `rim` pixels around it, NaN beyond the grid."""
    spans = [
        (max(0, s.start - rim), min(size, s.stop + rim), s.start - rim)
        for s, size in zip(area, a.shape, strict=True)
    ]
    source = a[tuple(slice(low, high) for low, high, _ in spans)]
    shape = tuple(s.stop - s.start + 2 * rim for s in area)
    if source.shape == shape:
        return source.astype(dtype, copy=False)
    out = np.full(shape, np.nan, dtype)
    out[tuple(slice(low - origin, high - origin) for low, high, origin in spans)] = source
    return out


def _variance(sigma: Floats) -> Floats:
    """The square of an error; NaN for what can't be one: rates stay and their errors go missing."""
    return np.where(np.isfinite(sigma) & (sigma >= 0), sigma, np.nan) ** 2
