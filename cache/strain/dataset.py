"""Strain rates of an xarray.Dataset, layer by layer.

Checks what the kernel can't know: that the grid is even and projected, which unit the velocity
has, and what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firnline.cache.strain.fields import (
    FIELDS,
    STRESS_FIELDS,
    Gaps,
    Method,
    check_choices,
    describe,
    select_fields,
)
from firnline.cache.strain.grid import grid_mapping, layer_dims, square_steps
from firnline.cache.strain.rates import strain_rates
from firnline.cache.strain.scale import radius_for, radius_grid
from firnline.cache.strain.stress import FlowLaw
from firnline.cache.strain.windows import Floats
from firnline.errors import InputError

if TYPE_CHECKING:
    import xarray as xr


def strain_dataset(
    ds: xr.Dataset,
    length_scale: float = 500.0,
    *,
    method: Method = "plane",
    gaps: Gaps = "fit",
    thickness: xr.DataArray | NDArray[np.floating[Any]] | None = None,
    flow_law: FlowLaw | float | None = None,
    fields: Collection[str] | None = None,
) -> xr.Dataset:
    """Strain rates of any Dataset with ``vx`` and ``vy`` on a projected grid.

    Parameters
    ----------
    ds : xarray.Dataset
        ``vx`` and ``vy`` in m/year on ``(y, x)`` or on one more dimension, as ``(time, y, x)``,
        with 1-D coordinates ``x`` and ``y`` in metres and a CF grid mapping (what
        ``ds.rio.write_crs`` writes). ``vx_error`` and ``vy_error`` are used when both are there,
        per pixel, per time or as one number. Values that equal a ``_FillValue`` (or
        ``missing_value``) among the attributes are missing, so that undecoded integers do.
        Layers are computed one after the other; a lazy Dataset is read layer by layer.
    length_scale : float
        Half length of the window in metres, at least one pixel: see :func:`radius_for`. In ice
        thicknesses where `thickness` is given: see :func:`radius_grid`.
    method : {"plane", "nominal", "logarithmic"}
        A plane fitted to the window, centred differences, or stakes that move with the ice (Alley
        et al. 2018): see :func:`strain_rates`.
    gaps : {"fit", "strict"}
        Fit to what is there where pixels are missing, or give no result there.
    thickness : xarray.DataArray or ndarray, shape (y, x), optional
        Ice thickness in metres on the same grid.
    flow_law : FlowLaw or float, optional
        Gives von Mises stresses as well. A number is the temperature of the ice in kelvin, and
        stands for ``FlowLaw.at`` of it.
    fields : collection of str, optional
        Names out of :data:`FIELDS` and :data:`STRESS_FIELDS`; by default all that can be had.

    Returns
    -------
    xarray.Dataset
        The fields, float32 (float64 for float64 input), dimensions and coordinates as given, the
        grid mapping kept. Its attributes record method, radius, the half length asked for and the
        true one, and the scale convention; with `thickness` the true half length is a field,
        ``half_length``.

    Raises
    ------
    CRSError
        When there is no CRS, or it is not a projected one in metres.
    InputError
        When vx or vy is missing, dimensions or coordinates don't fit, the spacing is unequal, the
        velocity is not per year, integers have no ``_FillValue``, the length scale is under one
        pixel or longer than the grid, or the thickness is on another grid.
    """
    import xarray as xr

    check_choices(method, gaps)
    if isinstance(flow_law, float | int):
        flow_law = FlowLaw.at(flow_law)
    for name in ("vx", "vy"):
        if name not in ds.data_vars:
            have = ", ".join(map(str, ds.data_vars)) or "none"
            raise InputError(f"no variable {name}: accepted is vx with vy, found {have}")
    dims = layer_dims(ds)
    mapping, _ = grid_mapping(ds)
    dx, dy = square_steps(ds)
    radius, extra, length = _length(ds, length_scale, thickness, abs(dx))

    vx, vy = (ds[name].transpose(*dims, "y", "x") for name in ("vx", "vy"))
    sigmas = _layer_errors(ds, dims)
    wanted = select_fields(fields, with_errors=sigmas is not None, with_stress=flow_law is not None)
    dtype = np.float64 if np.float64 in (vx.dtype, vy.dtype) else np.float32
    out = {name: np.empty(vx.shape, dtype) for name in wanted}
    for layer in np.ndindex(vx.shape[:-2]):
        errors: list[Floats | None] = [None, None]
        if sigmas is not None:
            for n, sigma in enumerate(sigmas):
                own = tuple(i for d, i in zip(dims, layer, strict=True) if d in sigma.dims)
                errors[n] = _decoded(sigma, own, dtype)
        result = strain_rates(
            _decoded(vx, layer, dtype),
            _decoded(vy, layer, dtype),
            dx=dx,
            dy=dy,
            radius=radius,
            method=method,
            gaps=gaps,
            vx_error=errors[0],
            vy_error=errors[1],
            flow_law=flow_law,
            fields=wanted,
        )
        for name, values in result.items():
            out[name][layer] = values

    about = {**FIELDS, **STRESS_FIELDS}
    attrs = {"grid_mapping": mapping}
    strain = xr.Dataset(
        {
            name: ((*dims, "y", "x"), values, {**about[name], **attrs})
            for name, values in out.items()
        }
        | {name: (("y", "x"), values, {**text, **attrs}) for name, (values, text) in extra.items()},
        coords={name: c for name, c in ds.coords.items() if set(c.dims) <= {*dims, "y", "x"}},
        attrs=describe(method, gaps, flow_law) | length,
    )
    return strain if mapping in strain.variables else strain.assign({mapping: ds[mapping]})


def _length(
    ds: xr.Dataset,
    length_scale: float,
    thickness: xr.DataArray | NDArray[np.floating[Any]] | None,
    spacing: float,
) -> tuple[int | NDArray[np.int32], dict[str, tuple[Floats, dict[str, str]]], dict[str, Any]]:
    """Radius in pixels, what to add to the fields about it, and to the attributes."""
    size = min(ds.sizes["y"], ds.sizes["x"])
    if thickness is None:
        radius, half_length = radius_for(length_scale, spacing)
        _check_fits(f"{length_scale:g} m", radius, size, spacing)
        return radius, {}, {
            "window_radius_pixels": radius,
            "half_length_m": half_length,
            "half_length_asked_m": float(length_scale),
        }  # fmt: skip
    pixels = radius_grid(length_scale, _on_grid(ds, thickness), spacing)
    if not pixels.any():
        raise InputError("thickness is nowhere above 0 m")
    _check_fits(f"{length_scale:g} ice thicknesses", int(pixels[pixels > 0].min()), size, spacing)
    used: Floats = np.where(pixels > 0, pixels * spacing, np.nan).astype(np.float32)
    text = {"long_name": "half length of the window that was used", "units": "m"}
    return pixels, {"half_length": (used, text)}, {
        "half_length_asked_ice_thicknesses": float(length_scale)
    }  # fmt: skip


def _check_fits(asked: str, radius: int, size: int, spacing: float) -> None:
    if 2 * radius + 1 > size:
        raise InputError(
            f"length scale {asked} is longer than the grid: a window of {2 * radius + 1} pixels "
            f"on {size}, accepted is up to {(size - 1) // 2 * spacing:g} m"
        )


def _on_grid(ds: xr.Dataset, thickness: xr.DataArray | NDArray[Any]) -> NDArray[Any]:
    shape = (ds.sizes["y"], ds.sizes["x"])
    if isinstance(thickness, np.ndarray):
        values = thickness
    else:
        same = set(thickness.dims) == {"y", "x"} and all(
            axis not in thickness.coords or np.array_equal(thickness[axis].values, ds[axis].values)
            for axis in ("y", "x")
        )
        values = thickness.transpose("y", "x").values if same else np.empty(0)
    if values.shape != shape:
        raise InputError(
            f"thickness is not on the grid of vx, (y, x) of {shape}: resample it, as with "
            "thickness.interp_like(ds.vx)"
        )
    return values


_PER_OTHER = re.compile(r"(/|per)\s*(d|day|days|s|sec|seconds?|h|hours?|months?)\b|\b(d|day|s)-1\b")


def _layer_errors(ds: xr.Dataset, dims: tuple[str, ...]) -> list[xr.DataArray] | None:
    """Find errors to use, each on (y, x), on the layers, on both or on neither; check units."""
    for name in ("vx", "vy"):
        units = str(ds[name].attrs.get("units", "")).lower()
        if _PER_OTHER.search(units):
            raise InputError(f"{name} is in {units}: accepted is metres per year")
    if not {"vx_error", "vy_error"} <= ds.variables.keys():
        return None
    errors = []
    for name in ("vx_error", "vy_error"):
        error = ds[name]
        rest = tuple(d for d in dims if d in error.dims)
        grid = tuple(d for d in ("y", "x") if d in error.dims)
        if len(grid) == 1 or len(rest) + len(grid) != error.ndim:
            raise InputError(f"{name} on {error.dims}: accepted is a number, time, (y, x) or both")
        errors.append(error.transpose(*rest, *grid))
    return errors


def _decoded(array: xr.DataArray, layer: tuple[int, ...], dtype: type[np.floating[Any]]) -> Floats:
    """Read one layer as floats, missing values as NaN; one that was not CF-decoded becomes so."""
    raw = np.asarray(array[layer].values if layer else array.values)
    if raw.dtype.kind not in "iuf":
        raise InputError(f"{array.name} is of type {raw.dtype}: accepted are real numbers")
    fills = [array.attrs[key] for key in ("_FillValue", "missing_value") if key in array.attrs]
    if raw.dtype.kind in "iu":
        fills += [array.encoding[k] for k in ("_FillValue", "missing_value") if k in array.encoding]
        if not fills and array.name in ("vx", "vy"):
            # -32767 m/year taken for a velocity would go unnoticed
            raise InputError(
                f"{array.name} is {raw.dtype} without _FillValue: say what is missing, "
                "or convert it to float"
            )
    values = raw.astype(dtype)
    for fill in fills:
        np.copyto(values, np.nan, where=raw == fill)
    if {"scale_factor", "add_offset"} & array.attrs.keys():
        values = values * dtype(array.attrs.get("scale_factor", 1))
        values += dtype(array.attrs.get("add_offset", 0))
    return values
