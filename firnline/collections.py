"""The three collections as STAC 1.1 collections, without links.

They carry ITS_LIVE's providers, licence and citation, so that users cite the data and not this
catalog.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from firnline.items import (
    ALTERNATE,
    COG,
    CUBES,
    DATACUBE,
    MOSAICS,
    OPEN_KWARGS,
    PROJECTION,
    SCIENTIFIC,
    STAC_VERSION,
    SUBSETS,
    VERSION,
    XARRAY,
    ZARR,
)
from firnline.variables import CUBE_VARIABLES, MOSAIC_ASSETS, STATIC_VARIABLES

COLLECTIONS = (CUBES, MOSAICS, SUBSETS)
"""Ids of the collections."""

LICENSE = "CC-BY-4.0"
MOSAICS_DOI = "10.5067/JQ6337239C96"

_ITS_LIVE = {
    "name": "NASA MEaSUREs ITS_LIVE",
    "roles": ["producer", "licensor"],
    "url": "https://its-live.jpl.nasa.gov/",
}
_NSIDC = {
    "name": "NASA National Snow and Ice Data Center Distributed Active Archive Center (NSIDC DAAC)",
    "roles": ["host"],  # ITS_LIVE's own collection says 'publisher', which STAC doesn't know
    "url": "https://nsidc.org/data/nsidc-0776/versions/2",
}
_AWS = {
    "name": "Registry of Open Data on AWS",
    "roles": ["host"],
    "url": "https://registry.opendata.aws/its-live-data/",
}
_PAPER = {
    "doi": "10.5194/tc-19-3517-2025",
    "citation": (
        "Gardner, A. S., et al.: ITS_LIVE global glacier velocity data in near-real time, "
        "The Cryosphere, 19, 3517, 2025. https://doi.org/10.5194/tc-19-3517-2025"
    ),
}
_CITATION = (
    "Velocity data of the NASA MEaSUREs project ITS_LIVE, https://its-live.jpl.nasa.gov/; "
    "please cite https://doi.org/10.5194/tc-19-3517-2025"
)
_MOSAICS_CITATION = (
    "MEaSUREs ITS_LIVE Regional Glacier and Ice Sheet Surface Velocities, Version 2. "
    "NASA National Snow and Ice Data Center Distributed Active Archive Center. "
    f"https://doi.org/{MOSAICS_DOI}"
)
_KEYWORDS = ["ice velocity", "glaciers", "ice sheets", "land ice", "ITS_LIVE", "remote sensing"]
_COMPONENTS_ARE = (
    "vx and vy are components along the axes of the CRS in `proj:code`, in metres of its grid a "
    "year, not east and north."
)


@dataclass(frozen=True)
class Extent:
    """What a collection's items span, and the values that they take."""

    bbox: tuple[float, float, float, float] = (-180.0, -90.0, 180.0, 90.0)
    """west, south, east, north."""
    start: datetime | None = None
    end: datetime | None = None
    summaries: dict[str, list[str]] = field(default_factory=dict)
    """Property name to sorted values; those without a value are left out."""


def collection(id: str, extent: Extent | None = None) -> dict[str, Any]:
    """One of :data:`COLLECTIONS` as a STAC collection; without an extent, worldwide and open."""
    extent = extent or Extent()
    interval = [
        None if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}" for at in (extent.start, extent.end)
    ]
    content = {CUBES: _cubes, MOSAICS: _mosaics, SUBSETS: _subsets}[id]()
    summaries = {**content.get("summaries", {})}
    summaries |= {name: values for name, values in extent.summaries.items() if values}
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "id": id,
        "itemType": "feature",  # OGC API - Features: the default, but OWSLib wants it said
        "license": LICENSE,
        "providers": [_ITS_LIVE, _NSIDC, _AWS] if id == MOSAICS else [_ITS_LIVE, _AWS],
        "sci:publications": [_PAPER],
        "extent": {
            "spatial": {"bbox": [list(extent.bbox)]},
            "temporal": {"interval": [interval]},
        },
        **content,
        "summaries": summaries,
    }


def _cubes() -> dict[str, Any]:
    return {
        "title": "ITS_LIVE velocity datacubes",
        "description": (
            "One item for each datacube of ITS_LIVE: velocities of all image pairs since 1982 "
            "that touch a tile of 100 km, on a grid of 120 m, as Zarr. "
            f"{_COMPONENTS_ARE} "
            "The dimension `mid_date` is neither sorted nor free of duplicates; the same image "
            "pair may be in several neighbouring cubes, and the basename of `granule_url` is its "
            "identity. `v` saturates at 32767: compute speed from vx and vy.\n\n"
            "Properties of their own: `itslive:temporal_extent` is `nominal` where start and end "
            "are the project's and not yet the cube's; `itslive:granule_count` is the number of "
            "image pairs by the catalog, which lags behind the cube; "
            "`itslive:roi_percent_coverage` is the percentage of the tile that is of interest, "
            "as published (it may exceed 100); `itslive:region` and `itslive:rgi_code` are the "
            "region's name and its number in the Randolph Glacier Inventory; "
            "`itslive:footprint_from` tells where the geometry comes from if not from the "
            "catalog's `geometry_epsg`. Of cubes that were read themselves: `itslive:satellites` "
            "and `itslive:sensors` that took the images, `itslive:dt_histogram` of the days "
            "between them, `itslive:etag` of the metadata; `platform` and `constellation` where "
            "there is one only."
        ),
        "keywords": [*_KEYWORDS, "datacube", "Zarr", "time series", "Landsat", "Sentinel"],
        "stac_extensions": [PROJECTION, DATACUBE, ALTERNATE, VERSION, XARRAY, SCIENTIFIC],
        "sci:citation": _CITATION,
        "item_assets": {
            "zarr": {
                "title": "Image-pair velocities (Zarr)",
                "type": ZARR,
                "roles": ["data"],
                "xarray:open_kwargs": OPEN_KWARGS,
            },
            "composite": {
                "title": "Annual composites (Zarr)",
                "type": ZARR,
                "roles": ["composite"],
                "xarray:open_kwargs": OPEN_KWARGS,
            },
        },
        "summaries": {"cube:variables": {"type": "object", "enum": [CUBE_VARIABLES]}},
    }


def _mosaics() -> dict[str, Any]:
    return {
        "title": "ITS_LIVE velocity mosaics",
        "description": (
            "Annual mean velocities and climatological (`STATIC`) means of glacier regions on a "
            "grid of 120 m, one Cloud-Optimised GeoTIFF a variable. Ids, asset keys and roles "
            "are those of ITS_LIVE's own items; the suffix `_V02` marks the version before 2.1. "
            f"{_COMPONENTS_ARE} "
            "An item's geometry is the union of the tiles that its mosaic is made of, inside of "
            "which most is not ice. A file is listed by the naming scheme, and after a deep "
            "harvest only if it exists: then with its size and `itslive:etag`, and a mosaic with "
            "its grid. `rgi` is ITS_LIVE's name of the region; `temporal_coverage_type` is "
            "`annual` or `static`."
        ),
        "keywords": [*_KEYWORDS, "mosaic", "COG", "RGI", "autoRIFT"],
        "stac_extensions": [PROJECTION, ALTERNATE, VERSION, SCIENTIFIC],
        "sci:doi": MOSAICS_DOI,
        "sci:citation": _MOSAICS_CITATION,
        "item_assets": {
            f"cog_{name}": {"type": COG, **MOSAIC_ASSETS[name]} for name in STATIC_VARIABLES
        },
        "summaries": {"gsd": [120]},
    }


def _subsets() -> dict[str, Any]:
    return {
        "title": "Materialised subsets",
        "description": (
            "Areas of interest that were stitched from ITS_LIVE's cubes or mosaics and are kept "
            "by this server: image pairs sorted by time and without duplicates, composites, "
            "strain rates, and a record of where all of it came from. Derived from ITS_LIVE; "
            f"cite the data as its collections say. {_COMPONENTS_ARE}\n\n"
            "Properties of their own: `firnline:request` is what was asked for; "
            "`firnline:pairs_read`, `firnline:pairs_kept` and `firnline:pairs_merged` count image "
            "pairs; `firnline:stale` is true when a source has changed since."
        ),
        "keywords": [*_KEYWORDS, "strain rate", "composite"],
        "stac_extensions": [SCIENTIFIC],
        "sci:citation": _CITATION,
    }
