"""Strain rates of an xarray.Dataset: the kernel of ``firnline.cache.strain``, layer by layer.

Checks what the kernel can't know: that the grid is even and projected, which unit the velocity
has, and what is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from firnline.cache.strain import (
    FIELDS,
    SCALE_CONVENTION,
    Floats,
    radius_for,
    select_fields,
    strain_rates,
)
from firnline.errors import CRSError, InputError

if TYPE_CHECKING:
    import pyproj
    import xarray as xr


def strain_dataset(
    ds: xr.Dataset, length_scale: float = 500.0, *, fields: Collection[str] | None = None
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
        Half length of the window in metres, at least one pixel: see :func:`radius_for`.
    fields : collection of str, optional
        Names out of :data:`FIELDS`; by default all.

    Returns
    -------
    xarray.Dataset
        The fields, float32 (float64 for float64 input), dimensions and coordinates as given, the
        grid mapping kept. Its attributes record method, radius, the half length asked for and the
        true one, and the scale convention.

    Raises
    ------
    CRSError
        When there is no CRS, or it is not a projected one.
    InputError
        When vx or vy is missing, dimensions or coordinates don't fit, the spacing is unequal, the
        velocity is not per year, integers have no ``_FillValue``, or the length scale is under
        one pixel or longer than the grid.
    """
    import xarray as xr

    for name in ("vx", "vy"):
        if name not in ds.data_vars:
            have = ", ".join(map(str, ds.data_vars)) or "none"
            raise InputError(f"no variable {name}: accepted is vx with vy, found {have}")
    dims = _layer_dims(ds)
    mapping, crs = _grid_mapping(ds)
    metres = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
    if not math.isclose(metres, 1.0):
        raise CRSError(f"coordinates of {crs.name} are not in metres: reproject first")
    dx, dy = _spacing(ds, "x"), _spacing(ds, "y")
    if not math.isclose(abs(dx), abs(dy), rel_tol=1e-4):
        raise InputError(f"unequal spacing, {abs(dx):g} m in x and {abs(dy):g} m in y: resample")
    radius, half_length = radius_for(length_scale, dx)
    size = min(ds.sizes["y"], ds.sizes["x"])
    if 2 * radius + 1 > size:
        raise InputError(
            f"length scale {length_scale:g} m is longer than the grid: a window of "
            f"{2 * radius + 1} pixels on {size}, accepted is up to {(size - 1) // 2 * abs(dx):g} m"
        )

    vx, vy = (ds[name].transpose(*dims, "y", "x") for name in ("vx", "vy"))
    sigmas = _layer_errors(ds, dims)
    wanted = select_fields(fields, with_errors=sigmas is not None)
    dtype = np.float64 if np.float64 in (vx.dtype, vy.dtype) else np.float32
    out = {name: np.empty(vx.shape, dtype) for name in wanted}
    for layer in np.ndindex(vx.shape[:-2]):
        given: dict[str, Floats] = {}
        if sigmas is not None:
            for name, sigma in sigmas.items():
                own = tuple(i for d, i in zip(dims, layer, strict=True) if d in sigma.dims)
                given[name] = _decoded(sigma, own, dtype)
        result = strain_rates(
            _decoded(vx, layer, dtype),
            _decoded(vy, layer, dtype),
            dx=dx,
            dy=dy,
            radius=radius,
            fields=wanted,
            **given,
        )
        for name, values in result.items():
            out[name][layer] = values

    attrs = {"grid_mapping": mapping}
    strain = xr.Dataset(
        {
            name: ((*dims, "y", "x"), values, {**FIELDS[name], **attrs})
            for name, values in out.items()
        },
        coords={name: c for name, c in ds.coords.items() if set(c.dims) <= {*dims, "y", "x"}},
        attrs={
            "strain_method": "least-squares plane",
            "strain_radius": radius,
            "strain_window": 2 * radius + 1,
            "strain_half_length_asked": float(length_scale),
            "strain_half_length": half_length,
            "strain_half_length_units": "m",
            "strain_scale_convention": SCALE_CONVENTION,
        },
    )
    return strain if mapping in strain.variables else strain.assign({mapping: ds[mapping]})


def _layer_dims(ds: xr.Dataset) -> tuple[str, ...]:
    """Give the dimension besides y and x, if there is one."""
    dims = ds["vx"].dims
    if set(dims) != set(ds["vy"].dims) or not {"y", "x"} <= set(dims) or len(dims) > 3:
        raise InputError(
            f"vx on {dims} and vy on {ds['vy'].dims}: accepted is (y, x) or (time, y, x) for both"
        )
    return tuple(str(dim) for dim in dims if dim not in ("y", "x"))


def _grid_mapping(ds: xr.Dataset) -> tuple[str, pyproj.CRS]:
    """Find the grid mapping's name and CRS; a CRS is never guessed."""
    import pyproj
    from pyproj.exceptions import CRSError as ProjError

    vx = ds["vx"]
    named = vx.attrs.get("grid_mapping") or vx.encoding.get("grid_mapping")
    if named is None:
        found = [name for name, c in ds.variables.items() if "grid_mapping_name" in c.attrs]
        found += [name for name in ("spatial_ref", "mapping", "crs") if name in ds.variables]
        named = found[0] if found else None
    if named is None or named not in ds.variables:
        raise CRSError("the Dataset has no CRS: give it one, as with ds.rio.write_crs(3413)")
    attrs = ds[named].attrs
    # WKT before CF: real ITS_LIVE mosaics state semi_major_axis in km
    texts = [attrs[key] for key in ("crs_wkt", "spatial_ref") if attrs.get(key)]
    if "spatial_epsg" in attrs:
        texts.append(f"EPSG:{int(attrs['spatial_epsg'])}")
    try:
        crs = pyproj.CRS.from_user_input(texts[0]) if texts else pyproj.CRS.from_cf(dict(attrs))
    except (ProjError, KeyError, ValueError) as error:
        raise CRSError(f"grid mapping {named!r} is not a readable CRS: {error}") from error
    if not crs.is_projected:
        raise CRSError(f"{crs.name} is not a projected CRS: reproject to metres first")
    return str(named), crs


def _spacing(ds: xr.Dataset, axis: str) -> float:
    """Signed step of a coordinate in metres."""
    if axis not in ds.coords or ds[axis].dims != (axis,):
        raise InputError(f"no 1-D coordinate {axis}: accepted are x and y in metres")
    values = np.asarray(ds[axis].values, np.float64)
    if values.size < 2 or not np.isfinite(values).all():
        raise InputError(f"coordinate {axis} has {values.size} values: accepted are 2 or more")
    step = float(values[-1] - values[0]) / (values.size - 1)
    # float32 coordinates of polar grids are rounded to a quarter of a metre
    if step == 0 or np.abs(np.diff(values) - step).max() > 5e-3 * abs(step):
        raise InputError(f"unequal spacing along {axis}: accepted is a regular grid")
    return step


_PER_OTHER = re.compile(r"(/|per)\s*(d|day|days|s|sec|seconds?|h|hours?|months?)\b|\b(d|day|s)-1\b")


def _layer_errors(ds: xr.Dataset, dims: tuple[str, ...]) -> dict[str, xr.DataArray] | None:
    """Find errors to use, each on (y, x), on the layers, on both or on neither; check units."""
    for name in ("vx", "vy"):
        units = str(ds[name].attrs.get("units", "")).lower()
        if _PER_OTHER.search(units):
            raise InputError(f"{name} is in {units}: accepted is metres per year")
    if not {"vx_error", "vy_error"} <= ds.variables.keys():
        return None
    errors = {}
    for name in ("vx_error", "vy_error"):
        error = ds[name]
        rest = tuple(d for d in dims if d in error.dims)
        grid = tuple(d for d in ("y", "x") if d in error.dims)
        if len(grid) == 1 or len(rest) + len(grid) != error.ndim:
            raise InputError(f"{name} on {error.dims}: accepted is a number, time, (y, x) or both")
        errors[name] = error.transpose(*rest, *grid)
    return errors


def _decoded(array: xr.DataArray, layer: tuple[int, ...], dtype: type[np.floating[Any]]) -> Floats:
    """Read one layer as floats, missing values as NaN; one that was not CF-decoded becomes so."""
    raw = np.asarray(array[layer].values if layer else array.values)
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
