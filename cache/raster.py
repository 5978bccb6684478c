"""Cloud-Optimised GeoTIFFs of one field, a band a period, with the statistics STAC wants.

A field goes through a block at a time, into a plain GeoTIFF which GDAL then turns into a
Cloud-Optimised one, so that memory knows nothing of the field's size.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from firnline.errors import CRSError, InputError, StoreError

if TYPE_CHECKING:  # rasterio is loaded when there is something to write
    from affine import Affine

__all__ = ["Field", "write_cog"]

_BLOCK = 512
_BANDS, _SIDE = 4, 256  # of a block that is copied: a shard of the fields' stores
_CACHE = 2**23  # bytes that GDAL keeps of files under way; its default is 5 % of the machine's
_TILE_BYTES = 2**22
_TYPES = ("uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")


class Field(Protocol):
    """A NumPy or Zarr array (band, y, x), of which blocks are read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(band, y, x)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    def __getitem__(self, block: Any) -> Any:
        """Read a block."""


def write_cog(
    path: str | os.PathLike[str],
    values: Field,
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
    values : ndarray or zarr.Array, shape (band, y, x)
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
    from rasterio.shutil import copy
    from rasterio.windows import Window

    names = [names] if isinstance(names, str) else list(names)
    count, height, width = values.shape if len(values.shape) == 3 else (0, 0, 0)
    if not count * height * width or values.dtype.name not in _TYPES:
        raise InputError(
            f"{long_name}: {values.dtype} {values.shape} can't be a COG, accepted are arrays on "
            f"(band, y, x) of {', '.join(_TYPES)}"
        )
    if len(names) != count:
        raise InputError(f"{long_name}: {len(names)} names, accepted is one for {count} bands")
    try:
        georeference = CRS.from_user_input(crs)
    except (RasterioCRSError, ValueError, TypeError) as error:
        raise CRSError(f"{long_name}: unreadable CRS {crs!r}") from error

    statistics = [_Statistics() for _ in names]
    target = Path(path)
    # in the same folder, so that the replacement is atomic; the ending is GDAL's to check
    name = f".{target.stem}.{uuid.uuid4().hex[:8]}"
    plain, aside = (target.with_name(f"{name}{end}.tif") for end in (".plain", ""))
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE):
            with rasterio.open(
                plain,
                "w",
                driver="GTiff",
                count=count,
                height=height,
                width=width,
                dtype=values.dtype.name,
                crs=georeference,
                transform=transform,
                nodata=nodata,
                tiled=True,
                blockxsize=_SIDE,
                blockysize=_SIDE,
                interleave="band",
                bigtiff="IF_SAFER",
            ) as out:
                for bands, rows, columns in _blocks(values.shape):
                    block = np.asarray(values[bands, rows, columns])
                    window = Window.from_slices(rows, columns)
                    out.write(block, list(range(bands.start + 1, bands.stop + 1)), window=window)
                    for one, band in zip(statistics[bands], block, strict=True):
                        one.add(band, nodata)
                out.update_tags(**{str(key): str(value) for key, value in tags.items()})
                for band, (label, one) in enumerate(zip(names, statistics, strict=True), start=1):
                    out.set_band_description(band, label)
                    out.set_band_unit(band, units)
                    out.update_tags(band, long_name=long_name, **_gdal_tags(one.as_dict()))
            copy(
                plain,
                aside,
                driver="COG",
                compress="DEFLATE",
                level=6,
                predictor="YES",
                blocksize=_block_size(values),
                overview_resampling="AVERAGE" if values.dtype.kind == "f" else "NEAREST",
                bigtiff="IF_SAFER",
            )
        aside.replace(target)
    except (RasterioError, CPLE_BaseError, OSError) as error:
        raise StoreError(f"can't write {target}: {error}") from error
    finally:
        # nothing of the name is left after the replacement; GDAL may leave side files
        for left in target.parent.glob(f"{name}*"):
            left.unlink(missing_ok=True)
    return [one.as_dict() for one in statistics]


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice]]:
    """Parts (bands, rows, columns) that cover a field."""
    parts = [
        [slice(n, min(n + size, length)) for n in range(0, length, size)]
        for length, size in zip(shape, (_BANDS, _SIDE, _SIDE), strict=True)
    ]
    bands, rows, columns = parts
    yield from product(bands, rows, columns)


def _block_size(values: Field) -> int:
    """Give the tile's edge: a multiple of 16 (TIFF), from 128 (less is all overhead) to 512."""
    size = int(np.clip(-(-max(values.shape[1:]) // 16) * 16, 128, _BLOCK))
    # a tile holds all bands: 480 months of float32 would make one of 512 half a gigabyte
    while size > 128 and size**2 * values.shape[0] * values.dtype.itemsize > _TILE_BYTES:
        size = max(128, size // 32 * 16)
    return size


@dataclass
class _Statistics:
    """Statistics of a band, a block of it at a time.

    Means and squares are merged as by Chan, Golub & LeVeque (1983), doi:10.2307/2683386.
    """

    pixels: int = 0
    valid: int = 0
    least: float = np.inf
    most: float = -np.inf
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    def add(self, values: NDArray[Any], nodata: float | None) -> None:
        """Take in the values of a block."""
        there = np.isfinite(values)
        if nodata is not None and np.isfinite(nodata):
            there &= values != nodata
        # pairwise sums in float64: float32 loses the mean of large rasters
        some = values[there].astype(np.float64)
        self.pixels += values.size
        if not some.size:
            return
        self.least, self.most = min(self.least, some.min()), max(self.most, some.max())
        mean = some.mean()
        off, total = mean - self.mean, self.valid + some.size
        self.squares += ((some - mean) ** 2).sum() + off**2 * self.valid * some.size / total
        self.mean += off * some.size / total
        self.valid = total

    def as_dict(self) -> dict[str, float]:
        """As in STAC's `bands`; of no valid pixel the share alone, which is 0."""
        percent = {"valid_percent": 100.0 * self.valid / self.pixels}
        if not self.valid:
            return percent
        return {
            "minimum": float(self.least),
            "maximum": float(self.most),
            "mean": float(self.mean),
            "stddev": float(np.sqrt(self.squares / self.valid)),
            **percent,
        }


def _gdal_tags(statistics: Mapping[str, float]) -> dict[str, str]:
    return {f"STATISTICS_{key.upper()}": repr(value) for key, value in statistics.items()}
