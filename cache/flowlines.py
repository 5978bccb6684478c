"""Flowlines of a Dataset of velocities: streamlines with a CRS, as GeoDataFrame and GeoJSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import ArrayLike
from shapely.geometry.base import BaseGeometry

from firnline.cache.grid import Floats, Grid
from firnline.cache.opening import opened
from firnline.cache.streamlines import Direction, Streamline, streamlines
from firnline.crs import crs_code, parse_crs
from firnline.errors import InputError, TooLargeError

if TYPE_CHECKING:
    import geopandas as gpd
    import xarray as xr

_MOST_SEEDS = 10_000


def flowlines(
    ds: xr.Dataset | str,
    *,
    lon: ArrayLike | None = None,
    lat: ArrayLike | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    area: BaseGeometry | tuple[float, float, float, float] | None = None,
    spacing: float | None = None,
    crs: str | None = None,
    time: str | np.datetime64 | None = None,
    step: float | None = None,
    max_length: float | None = None,
    direction: Direction = "both",
    min_speed: float = 1.0,
) -> gpd.GeoDataFrame:
    """Follow the flow through points, or through a grid of points in an area.

    Parameters
    ----------
    ds : xarray.Dataset
        ``vx`` and ``vy`` in m/year on ``(y, x)``, or on ``(time, y, x)`` and `time` says which:
        a composite, a mosaic. Or the id of a subset, whose composites are meant.
    lon, lat : float or sequence, optional
        Seeds in degrees.
    x, y : float or sequence, optional
        Seeds in `crs`, by default that of the Dataset.
    area : shapely geometry or (west, south, east, north), optional
        Where to put seeds, in `crs`; by default OGC:CRS84 for an area.
    spacing : float, optional
        Between the seeds of an area in metres; by default eight pixels.
    time : str or datetime64, optional
        A date, month or year, as ``"2019-07"``: the layer nearest to its middle.
    step : float, optional
        Between two vertices in metres; by default half a pixel.
    max_length : float, optional
        How far to go in each direction, in metres; by default twice around the grid.
    direction : {"both", "downstream", "upstream"}
    min_speed : float
        Where a line ends, in m/year.

    Returns
    -------
    geopandas.GeoDataFrame
        A LineString each in the CRS of the Dataset, from upstream to downstream. ``seed`` is the
        number of its seed (those without velocity have no line), ``seed_distance`` where it lies;
        ``length`` in metres and ``travel_time`` in years of all of it; ``distance`` and ``time``
        the same for each vertex, from the upstream end; ``upstream_end`` and ``downstream_end``
        why it ends: edge, no data, slow or length. Metres are those of the grid, as are those of
        the velocity, so that the time needs no correction for the map's scale.

    Raises
    ------
    InputError
        No seeds, or not one way to say them; no velocity; several times and none chosen.
    CRSError
        The Dataset has no projected CRS.
    NotFoundError
        There is no such subset.
    """
    import geopandas as gpd

    ds = opened(ds, "composite")
    grid = Grid.of(ds)
    layer = _layer(ds, time)
    if area is None:
        px, py = grid.points(lon=lon, lat=lat, x=x, y=y, crs=crs)
    elif any(part is not None for part in (lon, lat, x, y)):
        raise InputError("seeds are given either as points or by an area")
    else:
        px, py = _seeds(grid, area, spacing, crs)
    if px.size > _MOST_SEEDS:
        raise TooLargeError(f"{px.size:,} seeds; accepted are {_MOST_SEEDS:,}: space them wider")
    around = 2 * sum(abs(axis[-1] - axis[0]) for axis in (grid.x, grid.y))
    found = streamlines(
        _floats(layer["vx"]),
        _floats(layer["vy"]),
        grid,
        px,
        py,
        step=grid.spacing / 2 if step is None else step,
        max_length=2 * float(around) if max_length is None else max_length,
        direction=direction,
        min_speed=min_speed,
    )
    lines = {n: line for n, line in enumerate(found) if line is not None and line.x.size > 1}
    return gpd.GeoDataFrame(
        [_row(seed, line) for seed, line in lines.items()],
        columns=[*_COLUMNS, "geometry"],
        geometry="geometry",
        crs=grid.crs,
    )


_COLUMNS = (
    "seed", "seed_distance", "length", "travel_time", "upstream_end", "downstream_end",
    "distance", "time",
)  # fmt: skip


def _row(seed: int, line: Streamline) -> dict[str, Any]:
    return {
        "seed": seed,
        "seed_distance": float(line.distance[line.seed]),
        "length": float(line.distance[-1]),
        "travel_time": float(line.time[-1]),
        "upstream_end": line.ends[0],
        "downstream_end": line.ends[1],
        "distance": line.distance.tolist(),
        "time": line.time.tolist(),
        "geometry": shapely.LineString(np.stack([line.x, line.y], axis=1)),
    }


def to_geojson(lines: gpd.GeoDataFrame) -> dict[str, Any]:
    """A FeatureCollection in longitude and latitude (RFC 7946), vertex by vertex as they are.

    ``distance`` and ``time`` of the properties have one number for each position.
    """
    crs = lines.crs
    document: dict[str, Any] = json.loads(lines.to_crs("OGC:CRS84").to_json())
    for feature in document["features"]:
        del feature["id"]
    document.pop("crs", None)
    document["units"] = {"distance": "m", "length": "m", "time": "year", "travel_time": "year"}
    document["distances_in"] = crs_code(crs)
    return document


def _seeds(
    grid: Grid,
    area: BaseGeometry | tuple[float, float, float, float],
    spacing: float | None,
    crs: str | None,
) -> tuple[Floats, Floats]:
    """Points in an area, on multiples of the spacing: the same ones for overlapping areas."""
    outline = area if isinstance(area, BaseGeometry) else shapely.box(*area)
    dense = shapely.segmentize(outline, max(outline.length / 200, 1e-9))
    given = parse_crs(crs or "OGC:CRS84")
    moved = shapely.transform(
        dense, lambda xy: np.column_stack(grid.project(xy[:, 0], xy[:, 1], given))
    )
    side = 8 * grid.spacing if spacing is None else spacing
    if not side > 0:
        raise InputError(f"spacing {side:g} m: accepted is a positive number")
    left, bottom, right, top = moved.bounds
    # nothing grows on what lies beside the grid
    left, right = max(left, grid.x.min()), min(right, grid.x.max())
    bottom, top = max(bottom, grid.y.min()), min(top, grid.y.max())
    if max(right - left, 0) * max(top - bottom, 0) > 4 * _MOST_SEEDS * side**2:
        raise TooLargeError(f"seeds every {side:g} m are too many here: space them wider")
    axes = [
        np.arange(np.ceil(low / side), np.floor(high / side) + 1) * side
        for low, high in ((left, right), (bottom, top))
    ]
    px, py = (part.ravel() for part in np.meshgrid(*axes))
    inside = shapely.intersects_xy(moved, px, py)
    if not inside.any():
        raise InputError("no seed lies in both the area and the grid: space them closer")
    return px[inside], py[inside]


def _layer(ds: xr.Dataset, time: str | np.datetime64 | None) -> xr.Dataset:
    for name in ("vx", "vy"):
        if name not in ds.data_vars:
            raise InputError(f"no variable {name}: accepted is vx with vy")
    ds = ds[["vx", "vy"]]
    rest = [dim for dim in ds["vx"].dims if dim not in ("y", "x")]
    if len(rest) > 1 or {"y", "x"} - set(ds["vx"].dims):
        raise InputError(f"vx on {ds['vx'].dims}: accepted is (y, x) or (time, y, x)")
    if rest:
        if time is not None:
            ds = ds.isel({rest[0]: _nearest(ds[rest[0]].values, time)})
        elif ds.sizes[rest[0]] == 1:
            ds = ds.isel({rest[0]: 0})
        else:
            count = ds.sizes[rest[0]]
            raise InputError(f"there are {count} layers: say which by time, as '2019-07-01'")
    return ds.transpose("y", "x")


def _nearest(times: np.ndarray[Any, np.dtype[Any]], time: str | np.datetime64) -> int:
    try:
        asked = np.datetime64(str(time))
    except ValueError:
        raise InputError(f"time {str(time)[:40]!r}: accepted is a date as 2019-07-01") from None
    # a year or a month is meant as a whole: its middle
    first, last = asked.astype("M8[ns]"), (asked + 1).astype("M8[ns]")
    asked = first + (last - first) // 2
    return int(np.argmin(np.abs(times.astype("M8[ns]") - asked)))


def _floats(array: xr.DataArray) -> Floats:
    return np.asarray(array.values, np.float64)
