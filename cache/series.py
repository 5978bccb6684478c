"""Velocity series at points or along flowlines: a table with a row for each time and point.

For plotting: values, their errors, and the span of time that each stands for.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from firnline.cache.grid import Grid, Method, sample
from firnline.cache.opening import opened
from firnline.errors import InputError

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd
    import xarray as xr
    from shapely import LineString

Format = Literal["csv", "json", "parquet"]
Raw = np.ndarray[Any, np.dtype[Any]]

_UNITS = {"lon": "degree", "lat": "degree", "x": "m", "y": "m", "distance": "m", "dt_days": "day"}


def series(
    ds: xr.Dataset | str,
    *,
    lon: ArrayLike | None = None,
    lat: ArrayLike | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    crs: str | None = None,
    along: gpd.GeoDataFrame | LineString | None = None,
    spacing: float | None = None,
    variables: Collection[str] | None = None,
    method: Method | None = None,
) -> pd.DataFrame:
    """Values over time at some points, or along some lines.

    Parameters
    ----------
    ds : xarray.Dataset
        Image pairs ``(mid_date, y, x)``, a subset's or a cube's own; or composites or strain rates
        ``(time, y, x)``; or one map ``(y, x)``. Decoded, as xarray opens it; lazy ones are read
        only where the points are. Or the id of a subset, whose image pairs are meant.
    lon, lat : float or sequence, optional
        Points in degrees.
    x, y : float or sequence, optional
        Points in `crs`, by default that of the Dataset.
    along : GeoDataFrame of flowlines, or a LineString in the Dataset's CRS, optional
        Points along it instead, from its beginning.
    spacing : float, optional
        Between them in metres; by default a pixel.
    variables : collection of str, optional
        Which of the Dataset's maps; by default all with a dimension of time.
    method : {"nearest", "bilinear"}, optional
        A pixel's own values, or between the centres of the pixels around (missing where one of
        them is). By default ``nearest`` for points, ``bilinear`` along lines.

    Returns
    -------
    pandas.DataFrame
        A row for each time and point that has a value, sorted by time. ``point`` (its number,
        from 0), ``lon``, ``lat``, ``x``, ``y`` (of the Dataset's CRS), along lines ``line`` (its
        index) and ``distance`` in metres; ``mid_date``, ``start`` and ``end``: the span that a
        value stands for, of image pairs ``mid_date -+ dt / 2``, of composites their period; for
        pairs ``dt_days``, ``satellite_1``, ``satellite_2`` and ``granule``; the variables, ``v``
        always from ``vx`` and ``vy`` (ITS_LIVE's own does not hold more than 32767 m/year), and
        errors ``vx_error``, ``vy_error`` of a pair. ``attrs["units"]`` has the units.

    Raises
    ------
    InputError
        No points, or not one way to say them; a point outside of the grid; a variable that is
        not there.
    CRSError
        The Dataset has no projected CRS.
    NotFoundError
        There is no such subset.
    """
    import pandas as pd

    ds = opened(ds, "pairs")
    grid = Grid.of(ds)
    names = _maps(ds, variables)
    layers = [str(dim) for dim in ds[names[0]].dims if dim not in ("y", "x")]
    if along is None:
        px, py = grid.points(lon=lon, lat=lat, x=x, y=y, crs=crs)
        place: dict[str, Raw] = {}
    else:
        if any(part is not None for part in (lon, lat, x, y, crs)):
            raise InputError("points are given either by their coordinates or by along")
        px, py, place = _along(grid, along, grid.spacing if spacing is None else spacing)
    row, column = grid.locate(px, py)
    if not grid.inside(row, column).all():
        first = int(np.argmin(grid.inside(row, column)))
        raise InputError(
            f"point {px[first]:.0f}, {py[first]:.0f} is outside of the grid: x from "
            f"{grid.x.min():.0f} to {grid.x.max():.0f}, y from {grid.y.min():.0f} to "
            f"{grid.y.max():.0f} in {grid.crs.name}"
        )
    how: Method = method or ("nearest" if along is None else "bilinear")
    values: dict[str, Raw] = {}
    for name in names:
        array = ds[name].transpose(*layers, "y", "x")
        # there is nothing between two dates or two counts
        values[name] = sample(array, row, column, how if array.dtype.kind == "f" else "nearest")
    if {"vx", "vy"} <= values.keys():
        values["v"] = np.hypot(values["vx"], values["vy"])
    lon_, lat_ = (np.round(part, 7) for part in grid.lonlat(px, py))  # to a centimetre
    of_point = {"point": np.arange(px.size), **place, "lon": lon_, "lat": lat_, "x": px, "y": py}
    when, which = _of_layers(ds, layers[0]) if layers else ({}, {})
    shape = (ds.sizes[layers[0]] if layers else 1, px.size)
    frame = pd.DataFrame(
        {
            name: np.broadcast_to(part, shape).ravel()
            for group, is_column in ((of_point, 0), (when, 1), (values, 0), (which, 1))
            for name, part in ((n, p[:, None] if is_column else p) for n, p in group.items())
        }
    )
    known = [name for name in values if values[name].dtype.kind == "f"]
    frame = frame.dropna(subset=known, how="all") if known else frame
    frame = frame.sort_values(["mid_date", "point"] if layers else ["point"], kind="stable")
    frame.attrs["units"] = _units(ds, frame)
    return frame.reset_index(drop=True)


def _maps(ds: xr.Dataset, wanted: Collection[str] | None) -> list[str]:
    """The variables on the grid that are wanted, all of the same dimensions."""
    maps = {str(name): v.dims for name, v in ds.data_vars.items() if {"y", "x"} <= set(v.dims)}
    layered = {name: dims for name, dims in maps.items() if len(dims) == 3} or maps
    if wanted is None:
        names = [name for name in layered if ds[name].dtype.kind in "fiuM"]
    else:
        unknown = [name for name in wanted if name not in layered]
        if unknown:
            raise InputError(
                f"no variable {unknown[0][:40]!r}: accepted are {', '.join(map(str, layered))}"
            )
        names = list(wanted)
    if not names or any(set(maps[name]) != set(maps[names[0]]) for name in names):
        raise InputError("no variables on (time, y, x)")
    return names


def _of_layers(ds: xr.Dataset, layer: str) -> tuple[dict[str, Raw], dict[str, Raw]]:
    """What belongs to each time whatever the place: its dates; and errors, satellites, names."""
    mid = ds[layer].values.astype("M8[us]")
    when: dict[str, Raw] = {"mid_date": mid}
    # xarray's decode_coords="all" moves it
    bounds = ds[layer].attrs.get("bounds") or ds[layer].encoding.get("bounds")
    if "date_dt" in ds.variables:
        dt = ds["date_dt"].values
        days = dt / np.timedelta64(1, "D") if dt.dtype.kind == "m" else dt
        half = np.rint(np.nan_to_num(days.astype(np.float64)) * 43_200e6).astype("m8[us]")
        when |= {"start": mid - half, "end": mid + half, "dt_days": days}
    elif bounds in ds.variables:
        start, end = ds[bounds].values.astype("M8[us]").T
        when |= {"start": start, "end": end}
    which: dict[str, Raw] = {
        name: ds[name].values
        for name in ("vx_error", "vy_error")
        if name in ds.variables and ds[name].dims == (layer,)
    }
    for image in (1, 2):
        parts = [f"{part}_img{image}" for part in ("mission", "satellite")]
        if set(parts) <= set(ds.variables):
            both = zip(*(ds[part].values.tolist() for part in parts), strict=True)
            which[f"satellite_{image}"] = np.array([f"{m}{s}" for m, s in both], object)
    granules = next((ds[name] for name in ("granule", "granule_url") if name in ds.variables), None)
    if granules is not None:
        names = [str(name).rsplit("/", 1)[-1] for name in granules.values]
        which["granule"] = np.array(names, object)
    return when, which


def _along(
    grid: Grid, along: gpd.GeoDataFrame | LineString, spacing: float
) -> tuple[Raw, Raw, dict[str, Raw]]:
    """Points every so many metres of each line, its beginning and its end among them."""
    import geopandas as gpd
    import shapely

    if not spacing > 0:
        raise InputError(f"spacing {spacing:g} m: accepted is a positive number")
    lines = along if isinstance(along, gpd.GeoDataFrame) else gpd.GeoDataFrame(geometry=[along])
    if lines.crs is not None and lines.crs != grid.crs:
        lines = lines.to_crs(grid.crs)
    parts = []
    for index, line in lines.geometry.items():
        if line is None or line.geom_type != "LineString" or line.is_empty:
            raise InputError("along: accepted are LineStrings")
        distance = np.append(np.arange(0, line.length, spacing), line.length)
        at = shapely.get_coordinates(shapely.line_interpolate_point(line, distance))
        parts.append((at, distance, np.full(distance.size, index)))
    if not parts:
        raise InputError("along has no line")
    at, distance, index = (np.concatenate(part) for part in zip(*parts, strict=True))
    place = {"line": index, "distance": distance}
    return at[:, 0], at[:, 1], place if len(lines) > 1 else {"distance": distance}


def _units(ds: xr.Dataset, frame: pd.DataFrame) -> dict[str, str]:
    stated = {
        str(name): str(ds[name].attrs["units"])
        for name in ds.variables
        if "units" in ds[name].attrs
    }
    stated |= {"v": stated["vx"]} if "vx" in stated else {}
    return {
        name: (_UNITS | stated).get(name, _UNITS.get(name, ""))
        for name in map(str, frame.columns)
        if name in _UNITS or name in stated
    }


def encode(frame: pd.DataFrame, format: Format) -> bytes:
    """A table as a file: UTF-8 CSV, JSON (one object a row) or Parquet; instants in UTC.

    Raises
    ------
    InputError
        For another format.
    """
    frame = frame.copy()
    dates = [name for name in frame.columns if frame[name].dtype.kind == "M"]
    if format == "parquet":
        for name in dates:
            frame[name] = frame[name].dt.tz_localize("UTC")
        out = io.BytesIO()
        frame.to_parquet(out, index=False)
        return out.getvalue()
    for name in dates:
        text = np.datetime_as_string(frame[name].to_numpy("M8[ms]")).tolist()
        frame[name] = [None if instant == "NaT" else f"{instant}Z" for instant in text]
    if format == "csv":
        return frame.to_csv(index=False).encode()
    if format == "json":
        return frame.to_json(orient="records", double_precision=6).encode()
    raise InputError(f"format {format!r}: accepted are csv, json, parquet")
