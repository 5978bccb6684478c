"""Windows of Cloud-Optimised GeoTIFFs, over byte ranges that :mod:`firnline.source` reads.

GDAL decodes and never connects: it is given a file object, and the GeoTIFF driver alone. So the
list of allowed sources, retries and errors are the same as for cubes, and nothing in a file, nor
beside it, makes GDAL open something.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from affine import Affine
from pyproj import CRS
from pyproj.exceptions import CRSError as ProjError

from firnline.cache.counts import Counts
from firnline.chunks import Keeper, Kept
from firnline.errors import FirnlineError, SourceChangedError, SourceCorruptError
from firnline.source import Source

Raw = np.ndarray[Any, np.dtype[Any]]

_FIRST = 1 << 16  # bytes: the tags and tile index of most mosaics; what is left comes when needed
_NAME = "mosaic.tif"


class RemoteCog:
    """A COG of one band, to read windows of; for one thread at a time.

    Parameters
    ----------
    url
        Where it is, below a root that `allowed` or `signed` has.
    crs
        The CRS that it should have, as ``EPSG:3413``.
    counts
        What is read is added to it.
    keeper
        Keeps the tiles that were read.
    **roots
        ``allowed`` and ``signed`` of :class:`firnline.source.Source`.

    Raises
    ------
    SourceNotAllowedError, SourceMissingError, SourceUnreachableError
    SourceCorruptError
        It is no GeoTIFF, not north up, or in another CRS.
    """

    def __init__(
        self, url: str, crs: str, counts: Counts, keeper: Keeper | None = None, **roots: Any
    ) -> None:
        self.url = url
        folder, _, name = url.rpartition("/")
        self._bytes = _Ranges(Source(folder, **roots), name, counts, keeper)
        with self._opened() as raster:
            self.shape: tuple[int, int] = raster.shape
            """Rows, columns."""
            self.transform: Affine = raster.transform
            """From (column, row) of pixel corners to x and y."""
            self.nodata: float | None = raster.nodata
            """The value that means missing, as the file says."""
            self.tags: dict[str, str] = raster.tags()
            """Tags of the dataset."""
            self._check(raster.crs, crs)

    @property
    def etag(self) -> str | None:
        """The ETag that all that was read came with."""
        return self._bytes.etag

    def read(self, rows: slice, columns: slice) -> Raw:
        """Read the pixels of a window, ``(y, x)``, as stored.

        Raises
        ------
        SourceChangedError
            The file is another one by now.
        SourceUnreachableError, SourceMissingError, SourceCorruptError
        """
        from rasterio.windows import Window

        with self._opened() as raster:
            return np.asarray(raster.read(1, window=Window.from_slices(rows, columns)))

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open for a moment: rasterio (1.4) crashes where a file of an opener goes on in a thread,
        or a context, that did not open it. All that this reads again is in memory.
        """
        # of no use to jobs of cubes, 15 MB
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError

        try:
            with rasterio.open(_NAME, driver="GTiff", opener=self._open) as raster:
                yield raster
        except (RasterioError, NotGeoreferencedWarning) as error:
            if self._bytes.failure is not None:  # below GDAL, where nothing can be raised
                raise self._bytes.failure from error
            raise SourceCorruptError(f"{self.url} can't be decoded: {error}") from error

    def _open(self, path: str, mode: str = "rb") -> io.RawIOBase:
        if path.rpartition("/")[2] != _NAME:  # GDAL looks for side files
            raise FileNotFoundError(path)
        self._bytes.seek(0)
        return self._bytes

    def _check(self, found: Any, crs: str) -> None:
        a = self.transform
        if found is None or a.b or a.d or a.a <= 0 or a.e >= 0:
            raise SourceCorruptError(f"{self.url} is not georeferenced, or not north up")
        try:
            told = CRS.from_wkt(found.to_wkt()).to_epsg()
        except ProjError:
            raise SourceCorruptError(f"{self.url} has a CRS that can't be read") from None
        if told is not None and f"EPSG:{told}" != crs:
            raise SourceCorruptError(f"{self.url} is in EPSG:{told}, not in {crs}")


class _Ranges(io.RawIOBase):
    """A remote object as a file: its beginning is kept, what lies behind is read when asked for.

    Where that fails nothing is read, and `failure` says why: GDAL can't pass an exception on.
    """

    def __init__(self, source: Source, name: str, counts: Counts, keeper: Keeper | None) -> None:
        self._source, self._name = source, name
        self._counts, self._keeper = counts, keeper
        self.failure: FirnlineError | None = None
        first = source.get_start(name, _FIRST)
        self.etag, self._first = first.etag, bytes(first.data)
        counts.add(requests=1, bytes=len(self._first))
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the size of a remote file is not known")
        self._place = offset + (self._place if whence == io.SEEK_CUR else 0)
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._place + size
        if end <= len(self._first) or len(self._first) < _FIRST:
            data = self._first[self._place : end]
        else:
            try:
                data = self._behind(self._place, size)
            except FirnlineError as error:
                self.failure = error
                return b""
        self._place += len(data)
        return data

    def close(self) -> None:
        """GDAL closes and opens it as it likes; there is nothing to let go of."""

    def _behind(self, start: int, size: int) -> bytes:
        if self._keeper is None or self.etag is None:
            return self._fetch(start, size)
        key = f"{self._source.url}/{self._name} {self.etag} {start}+{size}"
        with self._keeper.alone(key):
            if (kept := self._keeper.read(key)) is not None:
                self._counts.add(reused=1)
                return bytes(kept.data)
            data = self._fetch(start, size)
            self._keeper.write(key, Kept(data, self.etag, None))
            return data

    def _fetch(self, start: int, size: int) -> bytes:
        blob = self._source.get_range(self._name, start, size)
        self._counts.add(requests=1, bytes=size)
        if blob.etag != self.etag:
            raise SourceChangedError(f"{self._source.url}/{self._name} changed while it was read")
        return bytes(blob.data)
