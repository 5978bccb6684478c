"""The grids that tiles are cut by: Web Mercator and the polar ones."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from firnline.errors import NotFoundError

if TYPE_CHECKING:
    from morecantile import TileMatrixSet

GRIDS = ("WebMercatorQuad", "EPSG3413", "EPSG3031")

HALF_WIDTH = 4_194_304.0
"""Of the polar grids, in metres: 2^22. Pixels of 256 x 256 tiles are 2^(15 - z) m wide.

The square that NASA's GIBS uses for both; the middles of its sides are at 52.6 degrees of latitude.
"""
DEEPEST = 14


@functools.cache
def grid(name: str) -> TileMatrixSet:
    """A tile matrix set.

    Raises
    ------
    NotFoundError
    """
    import morecantile
    from pyproj import CRS

    if name not in GRIDS:
        raise NotFoundError(f"there is no grid {name[:40]!r}; there are: {', '.join(GRIDS)}")
    if name == "WebMercatorQuad":
        world: TileMatrixSet = morecantile.tms.get(name)
        return world
    polar: TileMatrixSet = morecantile.TileMatrixSet.custom(
        [-HALF_WIDTH, -HALF_WIDTH, HALF_WIDTH, HALF_WIDTH],
        CRS.from_epsg(int(name.removeprefix("EPSG"))),
        id=name,
        title=f"Polar stereographic, {name[:4]}:{name[4:]}",
        minzoom=0,
        maxzoom=DEEPEST,
    )
    return polar
