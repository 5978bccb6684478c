"""Cloud-Optimised GeoTIFFs of one field, a band a period, with the statistics STAC wants."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from firnline.errors import CRSError, InputError, StoreError

if TYPE_CHECKING:  # rasterio is loaded when there is something to write
    from affine import Affine

__all__ = ["write_cog"]

_BLOCK = 512
_TILE_BYTES = 2**24
_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


def write_cog(
    path: str | os.PathLike[str],
    values: NDArray[Any],
    *,
    transform: Affine,
    crs: Any,
    nodata: float | None,
    names: Sequence[str],
    units: str,
    long_name: str,
    tags: Mapping[str, str],
) -> list[dict[str, float]]:
    """Write one field as a Cloud-Optimised GeoTIFF, whole or not at all.

    Parameters
    ----------
    path : path-like
        Where; replaced when it exists. Its folder must exist.
    values : ndarray, shape (band, y, x)
        uint8, uint16, int16, uint32, int32, float32 or float64.
    transform : affine.Affine
        From (col, row) of pixel corners to coordinates in the unit of the CRS.
    crs : str, int, pyproj.CRS or rasterio.crs.CRS
        Anything rasterio reads, ``ESRI:`` codes and WKT too.
    nodata : float or None
        The value that means missing; NaN is usual for floats. Other non-finite floats are left
        out of the statistics as well.
    names : sequence of str, one a band
        Descriptions of the bands: what GIS programs show, as ``e1 2019``.
    units, long_name : str
        Unit and ``long_name`` tag of every band.
    tags : mapping of str to str
        Tags of the dataset: source, method, licence and the like.

    Returns
    -------
    list of dict of str to float, one a band
        ``minimum``, ``maximum``, ``mean``, ``stddev`` (of the population) and ``valid_percent``:
        the statistics object of STAC's ``bands``. With no valid pixel ``valid_percent`` alone.

    Raises
    ------
    CRSError
        When the CRS can't be read.
    InputError
        When the array is not 3-D, empty, of another type, or not of one name a band.
    StoreError
        When the file can't be written.

    Notes
    -----
    Layout: GDAL's COG driver; tiles of 512, smaller for smaller grids and for many bands, which
    lie together in a tile; DEFLATE with the predictor
    of the type, which every reader has (ZSTD is missing in many); overviews by averaging for
    floats and by the nearest pixel for integers. The statistics are written as GDAL's
    ``STATISTICS_*`` tags, so that QGIS stretches without reading the pixels.
    """
    import rasterio

    # what the COG driver raises when it closes is in no public module (rasterio 1.4.4, 1.5)
    from rasterio._err import CPLE_BaseError
    from rasterio.crs import CRS
    from rasterio.errors import CRSError as RasterioCRSError
    from rasterio.errors import RasterioError

    values = np.asarray(values)
    names = [names] if isinstance(names, str) else list(names)
    if values.ndim != 3 or not values.size or values.dtype.name not in _TYPES:
        raise InputError(
            f"{long_name}: {values.dtype} {values.shape} can't be a COG, accepted are arrays on "
            f"(band, y, x) of {', '.join(_TYPES)}"
        )
    if len(names) != len(values):
        raise InputError(
            f"{long_name}: {len(names)} names, accepted is one for {len(values)} bands"
        )
    try:
        georeference = CRS.from_user_input(crs)
    except (RasterioCRSError, ValueError, TypeError) as error:
        raise CRSError(f"{long_name}: unreadable CRS {crs!r}") from error

    statistics = [_statistics(band, nodata) for band in values]
    floats = values.dtype.kind == "f"
    target = Path(path)
    # in the same folder, so that the replacement is atomic; the ending is GDAL's to check
    aside = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.tif")
    try:
        with rasterio.open(
            aside,
            "w",
            driver="COG",
            count=values.shape[0],
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype.name,
            crs=georeference,
            transform=transform,
            nodata=nodata,
            compress="DEFLATE",
            level=6,
            predictor="YES",
            blocksize=_block_size(values),
            overview_resampling="AVERAGE" if floats else "NEAREST",
            bigtiff="IF_SAFER",
        ) as out:
            out.write(values)
            out.update_tags(**{str(key): str(value) for key, value in tags.items()})
            for band, (name, one) in enumerate(zip(names, statistics, strict=True), start=1):
                out.set_band_description(band, name)
                out.set_band_unit(band, units)
                out.update_tags(band, long_name=long_name, **_gdal_tags(one))
        aside.replace(target)
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise StoreError(f"can't write {target}: {error}") from error
    finally:
        # nothing of the name is left after the replacement; GDAL may leave a side file
        for left in (aside, aside.with_name(f"{aside.name}.aux.xml")):
            left.unlink(missing_ok=True)
    return statistics


def _block_size(values: NDArray[Any]) -> int:
    """Give the tile's edge: a multiple of 16 (TIFF), from 128 (less is all overhead) to 512."""
    size = int(np.clip(-(-max(values.shape[1:]) // 16) * 16, 128, _BLOCK))
    # a tile holds all bands: 480 months of float32 would make one of 512 half a gigabyte
    while size > 128 and size**2 * len(values) * values.itemsize > _TILE_BYTES:
        size = max(128, size // 32 * 16)
    return size


def _statistics(values: NDArray[Any], nodata: float | None) -> dict[str, float]:
    valid = np.isfinite(values)
    if nodata is not None and np.isfinite(nodata):
        valid &= values != nodata
    some = values[valid]
    percent = {"valid_percent": 100.0 * some.size / values.size}
    if not some.size:
        return percent
    # pairwise sums in float64: float32 loses the mean of large rasters
    return {
        "minimum": float(some.min()),
        "maximum": float(some.max()),
        "mean": float(some.mean(dtype=np.float64)),
        "stddev": float(some.std(dtype=np.float64)),
        **percent,
    }


def _gdal_tags(statistics: Mapping[str, float]) -> dict[str, str]:
    return {f"STATISTICS_{key.upper()}": repr(value) for key, value in statistics.items()}
