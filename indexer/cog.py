"""The grid of a Cloud-Optimised GeoTIFF, from its first bytes.

The bytes come through :mod:`firnline.source`; GDAL decodes them from memory, as a GeoTIFF and as
nothing else, so that nothing in them makes it open something.
"""

from __future__ import annotations

from typing import Any

from pyproj import CRS
from pyproj.exceptions import CRSError as ProjError

from firnline.errors import SourceCorruptError
from firnline.source import Source
from firnline.source_files import Grid

_FIRST = 16_384
"""Bytes: in a COG the tags of the full-size image come before the index of its tiles, which is
what grows with the image (GDAL's documentation of its COG driver)."""
_MOST = 1 << 20  # bytes of a header


def read_grid(source: Source, name: str, code: str) -> Grid:
    """Shape and transform of the COG `name` below `source`: one request, or two.

    Parameters
    ----------
    code
        The CRS that it should have, as ``EPSG:3413``.

    Raises
    ------
    SourceMissingError, SourceUnreachableError
    SourceCorruptError
        It is no GeoTIFF with its tags in front, it is not north up, or it names another CRS.
    """
    for length in (_FIRST, _MOST):
        data = bytes(source.get_start(name, length).data)
        read = _decode(data)
        if read is not None or len(data) < length:
            break
    if read is None:
        raise SourceCorruptError(f"{source.url}/{name} does not begin as a georeferenced COG")
    grid, wkt = read
    step_x, skew_x, _, skew_y, step_y, _ = grid.transform
    if skew_x or skew_y or step_x <= 0 or step_y >= 0:
        raise SourceCorruptError(f"{source.url}/{name} is not north up")
    try:
        told = CRS.from_wkt(wkt).to_epsg()
    except ProjError:
        raise SourceCorruptError(f"{source.url}/{name} has a CRS that can't be read") from None
    if told is not None and f"EPSG:{told}" != code:
        raise SourceCorruptError(f"{source.url}/{name} is in EPSG:{told}, not in {code}")
    return grid


def _decode(data: bytes) -> tuple[Grid, str] | None:
    """Grid and CRS (WKT), or None where these bytes don't tell them."""
    if not data:
        return None
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(data) as file, file.open(driver="GTiff") as raster:
            if raster.crs is None or raster.transform.is_identity:
                return None
            transform: Any = tuple(float(number) for number in raster.transform[:6])
            return Grid((raster.height, raster.width), transform), raster.crs.to_wkt()
    except (RasterioError, NotGeoreferencedWarning):  # which a filter may have made an error
        return None
