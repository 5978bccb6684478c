"""From records of the source to STAC items: pure functions, no links.

Vocabulary: STAC 1.1 with the extensions projection, datacube, alternate-assets, version and
xarray-assets; ids, asset keys and roles are those of ITS_LIVE's own STAC catalog. Links are not
stored: they are made at reply, since they depend on the address of the server.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import ceil, floor
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson
import shapely
from shapely import Polygon
from shapely.geometry.base import BaseGeometry

from firnline.crs import parse_crs
from firnline.database import ItemRow
from firnline.footprint import Outline, bbox
from firnline.properties import searchable
from firnline.variables import ANNUAL_VARIABLES, CUBE_VARIABLES, MOSAIC_ASSETS, STATIC_VARIABLES

CUBES = "itslive-cubes"
MOSAICS = "velocity-mosaics"
SUBSETS = "subsets"

STAC_VERSION = "1.1.0"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
ZARR = "application/vnd+zarr"

_EXTENSIONS = "https://stac-extensions.github.io"
PROJECTION = f"{_EXTENSIONS}/projection/v2.0.0/schema.json"
DATACUBE = f"{_EXTENSIONS}/datacube/v2.3.0/schema.json"
ALTERNATE = f"{_EXTENSIONS}/alternate-assets/v1.2.0/schema.json"
VERSION = f"{_EXTENSIONS}/version/v1.2.0/schema.json"
XARRAY = f"{_EXTENSIONS}/xarray-assets/v1.0.0/schema.json"
FILE = f"{_EXTENSIONS}/file/v2.1.0/schema.json"
ORDER = f"{_EXTENSIONS}/order/v1.0.0/schema.json"
SCIENTIFIC = f"{_EXTENSIONS}/scientific/v1.0.0/schema.json"

FIRST_YEAR = 1982
"""Landsat 4, the first satellite of ITS_LIVE, was launched in 1982."""
OPEN_KWARGS: dict[str, Any] = {"engine": "zarr", "chunks": {}, "consolidated": True}
"""How xarray opens a cube. Without consolidated metadata a cube opened over http is empty."""

DT_EDGES = (0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 546)
"""Days: bin n of ``itslive:dt_histogram`` is from edge n to below the next; the last is open."""

_OLDER = "_V02"
_SHARDED = (2, 2)
"""Version from which on cubes are Zarr v3 with the dimension ``time`` (the producers' code)."""
_NAME = re.compile(r"_EPSG(\d+)_G(\d+)_X(-?\d+)_Y(-?\d+)$")
_GENERATION = re.compile(r"/(?:datacubes|timeseries)/v0*(\d+(?:\.\d+)*)")


TileSource = Literal["geometry_epsg", "proj_polygon", "file name", "cube"]
"""Where the area of a cube comes from, the best first: the catalog's own polygon; another one of
the catalog; the centre that the file name tells, with the size that all tiles had until version
2.2; and in place of that the cube's own attributes, once it was read."""


@dataclass(frozen=True)
class CubeRecord:
    """One datacube as a catalog has it."""

    id: str
    """Stem of the Zarr store's name."""
    url: str
    """Where the Zarr store is: https where its host is ITS_LIVE's, else as in the catalog."""
    epsg: int
    tile: Polygon
    """The area that the cube covers, in its own CRS, metres."""
    footprint: Outline
    """The same in lon/lat."""
    rgi: int | None = None
    """Number of the region in the Randolph Glacier Inventory."""
    region: str | None = None
    granule_count: int | None = None
    """Image pairs; the catalog's count, which lags behind the cube's own."""
    roi_percent_coverage: float | None = None
    composite_url: str | None = None
    """Where the cube's annual composites are."""
    tile_from: TileSource = "geometry_epsg"
    """What told the tile."""


@dataclass(frozen=True)
class MosaicRecord:
    """One velocity mosaic: a region, a version, and a year or (None) the static one."""

    region: int
    version: str
    """``2`` or ``2.1``."""
    year: int | None
    last_year: int
    """Last year of the version."""
    root: str
    """URL of the folder ``velocity_mosaic``."""
    crs: str
    footprint: Outline


def cube_name(id: str) -> tuple[int, int, tuple[float, float]] | None:
    """EPSG code, grid spacing (m) and centre (m) that the name of a cube tells, or None."""
    match = _NAME.search(id)
    if match is None:
        return None
    epsg, spacing, x, y = map(int, match.groups())
    return epsg, spacing, (float(x), float(y))


LATTICE_EDGE = 7.5
"""Metres that the cells of ITS_LIVE's lattice lie west and north of multiples of the spacing."""


def grid_of_tile(
    tile: tuple[float, float, float, float], spacing: int = 120
) -> tuple[list[int], list[float]]:
    """Shape (y, x) and affine transform of the cube over a tile, before its metadata is read.

    All cubes of a CRS share one lattice whose cell edges lie 7.5 m (half a pixel of Landsat's
    band 8) west and north of multiples of the spacing; an edge is the first one not west (not
    north) of the tile's (``Grid.bounding_box`` in its_live_production/src/grid.py).

    Parameters
    ----------
    tile
        left, bottom, right, top in metres.

    Returns
    -------
    shape : [rows, columns]
    transform : [spacing, 0, left edge, 0, -spacing, top edge], as ``proj:transform``
    """
    left, bottom, right, top = tile
    first, last = ceil(left / spacing), ceil(right / spacing)
    lowest, highest = floor(bottom / spacing), floor(top / spacing)
    edges = (first * spacing - LATTICE_EDGE, highest * spacing + LATTICE_EDGE)
    return (
        [highest - lowest, last - first],
        [float(spacing), 0.0, edges[0], 0.0, -float(spacing), edges[1]],
    )


def cube_item(record: CubeRecord, *, last_year: int) -> dict[str, Any]:
    """The item of a datacube, from the catalog alone.

    Time is nominal until the cube's own metadata is read: from 1982 to the end of `last_year`,
    marked by ``itslive:temporal_extent``.
    """
    start = f"{FIRST_YEAR}-01-01T00:00:00Z"
    end = f"{last_year}-12-31T23:59:59Z"
    generation = _GENERATION.search(record.url)
    later = generation is not None and _number(generation[1]) >= _SHARDED
    time = "time" if later else "mid_date"
    properties: dict[str, Any] = {
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "title": f"ITS_LIVE velocity datacube {record.id.removeprefix('ITS_LIVE_vel_')}",
        "itslive:temporal_extent": "nominal",
        "order:status": "orderable",  # as is_orderable() has it
        "proj:code": f"EPSG:{record.epsg}",
        "cube:dimensions": {
            time: {"type": "temporal", "extent": [start, end]},
        },
        "cube:variables": _renamed(CUBE_VARIABLES, "mid_date", time),
    }
    if generation is not None:
        properties["version"] = generation[1]
    for key, value in (
        ("itslive:granule_count", record.granule_count),
        ("itslive:roi_percent_coverage", record.roi_percent_coverage),
        ("itslive:region", record.region),
        ("itslive:rgi_code", record.rgi),
        ("itslive:footprint_from", _unusual(record.tile_from)),
    ):
        if value is not None:
            properties[key] = value
    name = cube_name(record.id)
    left, bottom, right, top = record.tile.bounds
    spacing: int | None = None
    if name is not None and name[1] > 0 and record.tile.area == (right - left) * (top - bottom):
        spacing = name[1]
        shape, transform = grid_of_tile(record.tile.bounds, spacing)
        left, top = transform[2], transform[5]
        right, bottom = left + shape[1] * spacing, top - shape[0] * spacing
        properties |= {"proj:shape": shape, "proj:transform": transform}
    properties["proj:bbox"] = [left, bottom, right, top]
    for axis, extent in (("y", [bottom, top]), ("x", [left, right])):
        properties["cube:dimensions"][axis] = {
            "type": "spatial",
            "axis": axis,
            "extent": extent,
            "reference_system": record.epsg,
        }
        if spacing is not None:
            properties["cube:dimensions"][axis]["step"] = spacing if axis == "x" else -spacing
    asset: dict[str, Any] = {
        "href": record.url,
        "type": ZARR,
        "title": "Image-pair velocities (Zarr)",
        "roles": ["data"],
        "xarray:open_kwargs": {**OPEN_KWARGS, "zarr_format": 3} if later else OPEN_KWARGS,
    }
    assets = {"zarr": asset}
    if record.composite_url is not None:
        assets["composite"] = {
            "href": record.composite_url,
            "type": ZARR,
            "title": "Annual composites (Zarr)",
            "roles": ["composite"],
            "xarray:open_kwargs": OPEN_KWARGS,
        }
    extensions = [PROJECTION, DATACUBE, ORDER, VERSION, XARRAY]
    return _item(CUBES, record.id, _placed(record.footprint), properties, assets, extensions)


def _unusual(source: TileSource) -> TileSource | None:
    return None if source == "geometry_epsg" else source


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _renamed(variables: dict[str, Any], dimension: str, name: str) -> dict[str, Any]:
    """The variables with a dimension called otherwise."""
    if dimension == name:
        return variables
    return {
        key: {**about, "dimensions": [name if d == dimension else d for d in about["dimensions"]]}
        for key, about in variables.items()
    }


def mosaic_item(record: MosaicRecord) -> dict[str, Any]:
    """The item of a velocity mosaic: one COG a variable, as ITS_LIVE's own items have them."""
    year = record.year
    # The static mosaics are climatological means since 2014.
    first, last = (2014, record.last_year) if year is None else (year, year)
    rgi = region_id(record.region)
    coverage = "static" if year is None else "annual"
    properties: dict[str, Any] = {
        "datetime": f"{last}-12-31T00:00:00Z" if year is None else f"{year}-01-01T00:00:00Z",
        "start_datetime": f"{first}-01-01T00:00:00Z",
        "end_datetime": f"{last}-12-31T23:59:59Z",
        "title": f"ITS_LIVE velocity mosaic {rgi}, "
        + ("climatology" if year is None else str(year)),
        "rgi": rgi,
        "temporal_coverage_type": coverage,
        "version": record.version,
        "gsd": 120,
        **_projection(record.crs),
    }
    netcdf: dict[str, Any] = {
        "href": mosaic_url(record, "netcdf"),
        "type": "application/netcdf",
        "title": "Full Velocity Mosaic Data (NetCDF)",
        "roles": ["data", "composite"],
    }
    assets = {"data_netcdf": netcdf}
    for variable in STATIC_VARIABLES if year is None else ANNUAL_VARIABLES:
        assets[f"cog_{variable}"] = {
            "href": mosaic_url(record, variable),
            "type": COG,
            **MOSAIC_ASSETS[variable],
        }
    assets["browse_png"] = {
        "href": mosaic_url(record, "browse"),
        "type": "image/png",
        "title": "Browse Image (Velocity Magnitude)",
        "roles": ["overview", "browse"],
    }
    extensions = [PROJECTION, VERSION]
    id = mosaic_id(record)
    if is_orderable(MOSAICS, id):
        properties["order:status"] = "orderable"
        extensions.append(ORDER)
    return _item(MOSAICS, id, _placed_once(record.footprint), properties, assets, extensions)


def mosaic_id(record: MosaicRecord) -> str:
    """``RGI05A_STATIC``, ``RGI05A_ANNUAL_2018``; an older version with its number, ``_V02``."""
    span = "STATIC" if record.year is None else f"ANNUAL_{record.year}"
    return f"{region_id(record.region)}_{span}" + (_OLDER if record.version == "2" else "")


def is_orderable(collection: str, id: str) -> bool:
    """Whether a part of an item can be materialised: of cubes, of mosaics the newest version."""
    return collection == CUBES or (collection == MOSAICS and not id.endswith(_OLDER))


def mosaic_url(record: MosaicRecord, what: str) -> str:
    """URL of the COG of a variable, or of ``netcdf`` or ``browse``."""
    span, year = ("static", "0000") if record.year is None else ("annual", str(record.year))
    # Version 2.1 is spelt with a capital V in file names, and has the browse images of version 2.
    version, spelling = (
        ("2", "v02")
        if record.version == "2" or what == "browse"
        else (record.version, f"V0{record.version}")
    )
    folder = {"netcdf": "", "browse": "browse/"}.get(what, "cog/")
    ending = {"netcdf": ".nc", "browse": "_v_browse.png"}.get(what, f"_{what}.tif")
    stem = f"ITS_LIVE_velocity_120m_{region_id(record.region)}_{year}_{spelling}"
    return f"{record.root.rstrip('/')}/v{version}/{span}/{folder}{stem}{ending}"


def region_id(number: int) -> str:
    """ITS_LIVE's name of a region of the Randolph Glacier Inventory, as ``RGI05A``."""
    return f"RGI{number:02d}A"


def to_https(url: str) -> str:
    """The URL by https where its bucket is ITS_LIVE's; others, as a mirror on loopback, as is."""
    key = _key(url)
    if key is None:
        return url
    parts = urlsplit(url)
    host = "its-live-data.s3.amazonaws.com" if parts.scheme == "s3" else parts.netloc.lower()
    return f"https://{host}/{key}"


def encode(item: dict[str, Any]) -> bytes:
    """JSON with sorted keys: the same item is always the same bytes.

    Its own links, if it has any, come last, where those made at reply are put before them.
    """
    links = item.get("links")
    content = {key: value for key, value in item.items() if key != "links"}
    encoded = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return encoded if not links else encoded[:-1] + b',"links":' + orjson.dumps(links) + b"}"


def digest(content: bytes) -> str:
    """What a harvest compares to see whether an item changed (BLAKE2b, 128 bits, hex)."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def item_row(item: dict[str, Any], footprint: BaseGeometry, source: str) -> ItemRow:
    """The row of the table ``items`` for an item; `source` is what it was harvested from."""
    properties = item["properties"]
    instant = properties["datetime"]
    content = encode(item)
    return ItemRow(
        collection=item["collection"],
        id=item["id"],
        start=datetime.fromisoformat(properties.get("start_datetime") or instant),
        end=datetime.fromisoformat(properties.get("end_datetime") or instant),
        footprint=footprint,
        content=content,
        digest=digest(content),
        source=source,
        properties=searchable(properties),
    )


def to_geojson(geometry: BaseGeometry) -> dict[str, Any]:
    """A Polygon or MultiPolygon as GeoJSON."""
    polygons = [
        [shapely.get_coordinates(ring).tolist() for ring in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(geometry)
    ]
    if geometry.geom_type == "Polygon":
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _placed(footprint: Outline) -> dict[str, Any]:
    return {"geometry": to_geojson(footprint), "bbox": bbox(footprint)}


# The mosaics of a region share one outline of thousands of vertices: made and kept once.
_placed_once = lru_cache(maxsize=64)(_placed)


def _item(
    collection: str,
    id: str,
    place: dict[str, Any],
    properties: dict[str, Any],
    assets: dict[str, dict[str, Any]],
    extensions: list[str],
) -> dict[str, Any]:
    for asset in assets.values():
        if (key := _key(asset["href"])) is not None:
            asset["alternate"] = {"s3": {"href": f"s3://its-live-data/{key}"}}
    if any("alternate" in asset for asset in assets.values()):
        extensions = [*extensions, ALTERNATE]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extensions,
        "id": id,
        "collection": collection,
        **place,
        "properties": properties,
        "assets": assets,
    }


def _key(url: str) -> str | None:
    """Key of an object in ITS_LIVE's own bucket, or None for a URL elsewhere."""
    parts = urlsplit(url)
    host = parts.netloc.lower()
    if parts.scheme == "s3":
        ours = host == "its-live-data"
    else:
        ours = host in (
            "its-live-data.s3.amazonaws.com",
            "its-live-data.s3.us-west-2.amazonaws.com",
        ) and parts.scheme in ("http", "https")
    return parts.path.lstrip("/") if ours else None


@lru_cache(maxsize=64)
def _projection(code: str) -> dict[str, Any]:
    """``proj:code``, and for an authority other than EPSG also the definition itself.

    Few clients resolve codes of other authorities; ITS_LIVE's own items call ESRI:102027 an EPSG
    code, which it is not.
    """
    authority, _, number = code.partition(":")
    if authority == "EPSG":
        return {"proj:code": code, "epsg": number}
    crs = parse_crs(code)
    return {"proj:code": code, "proj:wkt2": crs.to_wkt(), "proj:projjson": crs.to_json_dict()}
