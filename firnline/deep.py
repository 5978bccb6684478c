"""What a cube itself says that its catalog does not: from metadata and 1-D arrays to its item.

Pure, but for the two functions that keep the facts in the database. They are kept apart from the
items, so that a later harvest of the catalog makes the same item again: :func:`with_facts` is
applied wherever the item of a cube is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import shapely
from shapely import Polygon
from shapely.geometry import box
from sqlalchemy import Connection, select

from firnline.cube import Cube
from firnline.errors import GeometryError, SourceCorruptError
from firnline.footprint import bbox, footprint
from firnline.items import CUBES, DT_EDGES, to_geojson
from firnline.pairs import PairColumns
from firnline.tables import cubes
from firnline.tile import parse_tile
from firnline.variables import CUBE_VARIABLES

VERSION = 2
"""Raised when the facts change: cubes read by an older one are read again."""

Facts = dict[str, Any]
Raw = np.ndarray[Any, np.dtype[Any]]

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_WRITTEN = re.compile(r"(\d{1,2})-([A-Z][a-z]{2})-(\d{4}) (\d\d:\d\d:\d\d)")
# By mission and first digit: platform (what follows is the satellite's letter), constellation,
# instrument.
_SATELLITES = {
    "L4": ("landsat-4", "landsat", "tm"),
    "L5": ("landsat-5", "landsat", "tm"),
    "L7": ("landsat-7", "landsat", "etm+"),
    "L8": ("landsat-8", "landsat", "oli"),
    "L9": ("landsat-9", "landsat", "oli"),
    "S1": ("sentinel-1", "sentinel-1", "c-sar"),
    "S2": ("sentinel-2", "sentinel-2", "msi"),
}
_TYPES = {"U": "other", "S": "other", "O": "other", "T": "other", "M": "other", "m": "other"}


def cube_facts(cube: Cube, x: Raw, y: Raw, pairs: PairColumns, sensors: tuple[str, ...]) -> Facts:
    """The facts of a cube.

    Parameters
    ----------
    x, y
        Pixel centres in metres, ascending and descending.
    pairs
        All of its image pairs.
    sensors
        Names of the sensors, sorted.

    Raises
    ------
    SourceCorruptError
        It has no pairs, its grid is none, or its CRS is not told by a number.
    """
    known = pairs.mid_date[~np.isnat(pairs.mid_date)]
    if not len(known):
        raise SourceCorruptError(f"{cube.url} has no image pair with a date")
    for name, axis, sign in (("x", x, 1), ("y", y, -1)):
        steps = np.diff(axis)
        if len(axis) < 2 or np.ptp(steps) > 1e-3 or not sign * steps[0] > 0:
            raise SourceCorruptError(f"{cube.url}: {name} is not an evenly spaced axis")
    step_x, step_y = float(x[1] - x[0]), float(y[1] - y[0])
    left, top = float(x[0]) - step_x / 2, float(y[0]) - step_y / 2
    right, bottom = left + step_x * len(x), top + step_y * len(y)
    start, end = (_stamp(instant) for instant in (known.min(), known.max()))
    counts, _ = np.histogram(pairs.dt_days[np.isfinite(pairs.dt_days)], [*DT_EDGES, np.inf])
    names = np.unique(np.concatenate([pairs.satellite_1, pairs.satellite_2]))
    satellites = [str(name) for name in names if name]
    spatial = {"y": ([bottom, top], step_y), "x": ([left, right], step_x)}
    return {
        "epsg": _epsg(cube),
        "zarr_format": cube.zarr_format,
        "properties": {
            # mid-dates: what a period of a request is compared with
            "start_datetime": start,
            "end_datetime": end,
            "itslive:temporal_extent": "true",
            "itslive:granule_count": len(pairs),
            **platforms(satellites),
            "itslive:satellites": satellites,
            "itslive:sensors": list(sensors),
            "itslive:dt_histogram": {
                "unit": "d",
                "edges": list(DT_EDGES),
                "counts": counts.tolist(),
            },
            "itslive:etag": cube.etag,
            "created": _date(cube.attributes.get("date_created")),
            "updated": _date(cube.attributes.get("date_updated")),
            "proj:shape": [len(y), len(x)],
            "proj:transform": [step_x, 0.0, left, 0.0, step_y, top],
            "proj:bbox": [left, bottom, right, top],
            "cube:variables": _variables(cube),
        },
        # corners in the cube's CRS, for a catalog that does not tell them
        "tile": shapely.get_coordinates(_tile(cube, left, bottom, right, top)).tolist(),
        "time": {cube.time: {"type": "temporal", "extent": [start, end]}},
        "space": {
            axis: {"type": "spatial", "axis": axis, "extent": extent, "step": step}
            for axis, (extent, step) in spatial.items()
        },
    }


def platforms(satellites: Sequence[str]) -> dict[str, Any]:
    """STAC's common metadata of the satellites: platform, instruments, constellation.

    ``platform`` and ``constellation`` name one thing: where there are several, the field is left
    out (None), as STAC's maintainers advise for products of several platforms
    (radiantearth/stac-spec#1348); ``instruments`` lists all that took the images. Names are in
    lower case, as in the specification's examples; of Landsat 8 and 9 the velocities come from
    the panchromatic band, so from OLI alone.

    Parameters
    ----------
    satellites
        Mission and number as in the cubes: ``L8``, ``S2A``.
    """
    told = [_SATELLITES.get(name[:2]) for name in satellites]
    known = [about for about in told if about is not None]
    constellations = {constellation for _, constellation, _ in known}
    alone = len(known) == len(told) == 1
    together = len(known) == len(told) and len(constellations) == 1
    return {
        "platform": known[0][0] + satellites[0][2:].lower() if alone else None,
        "instruments": sorted({instrument for _, _, instrument in known}) or None,
        "constellation": constellations.pop() if together else None,
    }


def with_facts(item: dict[str, Any], facts: Facts) -> dict[str, Any]:
    """The item of a cube, with what was read in the cube itself.

    What the facts set they set whole, so that applying newer ones to an item that has older ones
    gives the item that the catalog and the newer ones make.
    """
    properties = {**item["properties"], **facts["properties"]}
    reference = int(properties["proj:code"].rpartition(":")[2])
    properties["cube:dimensions"] = {
        **facts["time"],
        **{
            axis: {**space, "reference_system": reference} for axis, space in facts["space"].items()
        },
    }
    item = _placed(item, properties, facts.get("tile"))
    zarr = item["assets"]["zarr"]
    kwargs = {**zarr["xarray:open_kwargs"], "zarr_format": facts["zarr_format"]}
    here = f"firnline:/collections/{CUBES}/items/{item['id']}/pairs"
    return {
        **item,
        "properties": {name: value for name, value in properties.items() if value is not None}
        | {"datetime": None},
        "assets": {**item["assets"], "zarr": {**zarr, "xarray:open_kwargs": kwargs}},
        "links": [
            {"rel": "pairs", "type": "application/json", "title": "Image pairs", "href": here}
        ],
    }


def _placed(
    item: dict[str, Any], properties: dict[str, Any], corners: Sequence[Sequence[float]] | None
) -> dict[str, Any]:
    """The item with the footprint of the cube's own tile, if its catalog did not tell one.

    A file name tells only the centre, and the size of a tile is not the same in all versions.
    """
    if corners is None or properties.get("itslive:footprint_from") not in ("file name", "cube"):
        return item
    properties["itslive:footprint_from"] = "cube"
    outline = footprint(Polygon(corners), properties["proj:code"])
    return {**item, "geometry": to_geojson(outline), "bbox": bbox(outline)}


def stored_facts(connection: Connection) -> dict[str, tuple[str, bytes]]:
    """Where each cube was read and what was found (JSON), by the id of its item."""
    chosen = select(cubes.c.id, cubes.c.url, cubes.c.facts)
    return {id: (url, facts) for id, url, facts in connection.execute(chosen)}


def deepened(item: dict[str, Any], known: Mapping[str, tuple[str, bytes]]) -> dict[str, Any]:
    """The item of a cube with the facts that are known of it, if they are of the same place."""
    url, facts = known.get(item["id"], (None, b""))
    if url != item["assets"]["zarr"]["href"]:
        return item
    return with_facts(item, orjson.loads(facts))


def _epsg(cube: Cube) -> int | None:
    """The EPSG code that the cube itself tells; None where it tells none."""
    mapping = cube.arrays.get("mapping")
    told = None if mapping is None else mapping.attributes.get("spatial_epsg")
    try:
        return int(cube.attributes.get("projection", "") if told is None else told)
    except (TypeError, ValueError):
        return None


def _tile(cube: Cube, left: float, bottom: float, right: float, top: float) -> Polygon:
    """The tile that the cube's attributes tell, if its grid lies in it; else the grid itself."""
    grid = box(left, bottom, right, top)
    try:
        tile = parse_tile(cube.attributes.get("proj_polygon"))
    except GeometryError:
        return grid
    # the outermost pixels may reach over the edge by their width
    near = shapely.symmetric_difference(tile, grid).area < 0.1 * grid.area
    return tile if near else grid


def _variables(cube: Cube) -> dict[str, Any]:
    """``cube:variables``: what the metadata says, with units and meaning where they are known.

    ``chunks`` is the shape of what one read takes, ``shards`` of the files where they hold several.
    """
    table: dict[str, Any] = {}
    for name, array in sorted(cube.arrays.items()):
        if name in ("x", "y", cube.time) or not array.dims:
            continue
        about = {k: v for k, v in CUBE_VARIABLES.get(name, {}).items() if k != "data_type"}
        unit = array.attributes.get("units")
        if unit is not None and "unit" not in about:
            about["unit"] = str(unit)
        table[name] = {
            "variable_type": "auxiliary",
            **about,
            "dimensions": list(array.dims),
            "data_type": _TYPES.get(array.dtype.kind, array.dtype.name),
            "chunks": list(array.chunks),
        }
        if array.shards is not None:
            table[name]["shards"] = list(array.shards.shape)
    return table


def _stamp(instant: np.datetime64) -> str:
    moment = instant.astype("M8[us]").item().replace(tzinfo=UTC)
    return str(moment.isoformat().replace("+00:00", "Z"))


def _date(text: Any) -> str | None:
    """``20-Jun-2025 00:14:51`` or ISO 8601, taken for UTC; None for what is neither.

    Not by strptime, whose names of months are those of the machine's language.
    """
    if not isinstance(text, str):
        return None
    try:
        if match := _WRITTEN.fullmatch(text.strip()):
            day, month, year, clock = match.groups()
            date = f"{year}-{_MONTHS.index(month) + 1:02d}-{int(day):02d}"
            moment = datetime.fromisoformat(f"{date}T{clock}+00:00")
        else:
            moment = datetime.fromisoformat(text.strip())
            moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except ValueError:
        return None
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
