"""The grid of a Dataset: its CRS, its spacing, and what strain rates can't be computed on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyproj
from pyproj.exceptions import CRSError as ProjError

from firnline.errors import CRSError, InputError

if TYPE_CHECKING:
    import xarray as xr


def square_steps(ds: xr.Dataset) -> tuple[float, float]:
    """Signed steps of x and y in metres, equal but for the sign.

    Raises
    ------
    InputError
        No regular 1-D coordinates, or steps that differ.
    """
    dx, dy = _step(ds, "x"), _step(ds, "y")
    if not math.isclose(abs(dx), abs(dy), rel_tol=1e-4):
        raise InputError(f"unequal spacing, {abs(dx):g} m in x and {abs(dy):g} m in y: resample")
    return dx, dy


def layer_dims(ds: xr.Dataset) -> tuple[str, ...]:
    """Give the dimension besides y and x, if there is one.

    Raises
    ------
    InputError
        vx and vy differ in their dimensions, or these are others.
    """
    dims = ds["vx"].dims
    if set(dims) != set(ds["vy"].dims) or not {"y", "x"} <= set(dims) or len(dims) > 3:
        raise InputError(
            f"vx on {dims} and vy on {ds['vy'].dims}: accepted is (y, x) or (time, y, x) for both"
        )
    return tuple(str(dim) for dim in dims if dim not in ("y", "x"))


def grid_mapping(ds: xr.Dataset) -> tuple[str, pyproj.CRS]:
    """Find the grid mapping's name and CRS, projected and in metres; a CRS is never guessed.

    Raises
    ------
    CRSError
    """
    stated = [c.attrs.get("grid_mapping") or c.encoding.get("grid_mapping") for c in ds.values()]
    named = next((name for name in stated if name), None)
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
    if crs.axis_info and not math.isclose(crs.axis_info[0].unit_conversion_factor, 1.0):
        raise CRSError(f"coordinates of {crs.name} are not in metres: reproject first")
    return str(named), crs


def _step(ds: xr.Dataset, axis: str) -> float:
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
