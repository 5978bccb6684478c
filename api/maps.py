"""The maps of subsets: which file an asset is, and files that stay open between requests.

Which file is read comes from the item that the database has: an asset that is no Cloud-Optimised
GeoTIFF of a published subset is not there.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Engine

from firnline.api import parameters
from firnline.cache.bucket import BucketPath, gdal_options
from firnline.cache.eviction import touch
from firnline.cache.places import Place, root
from firnline.cache.products import FILES_ROOT
from firnline.database import get_item, reading
from firnline.errors import NotFoundError, StoreUnreachableError
from firnline.items import COG, SUBSETS
from firnline.settings import Settings

if TYPE_CHECKING:
    from rio_tiler.io import Reader

_MOST_OPEN = 16


@dataclass(frozen=True)
class Map:
    """A map of a subset: its file and what the item says of it."""

    key: str
    generation: str
    file: Place
    asset: Mapping[str, Any]


class Maps:
    """The maps of an installation.

    A tile of a COG holds all periods, and neighbouring pictures, and the next period, need the
    same ones: decoding them is nearly all of the time. GDAL keeps what it decoded (its block cache,
    5 % of the memory at most) as long as a file is open, so files stay open: the last 16, each one
    request's at a time, since GDAL's handles are no one's to share.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._root = root(settings) / "subsets"
        self._idle: list[tuple[Place, Reader]] = []  # the last used last
        self._lock = threading.Lock()

    def find(self, item_id: str, asset: str) -> Map:
        """A map by the id of its subset and its key.

        Raises
        ------
        NotFoundError
        """
        id = parameters.stored_text(item_id)
        with reading(self._engine) as connection:
            content = get_item(connection, SUBSETS, id)
        if content is None:
            raise NotFoundError(f"there is no subset {item_id[:80]!r}")
        assets = orjson.loads(content)["assets"]
        maps = [key for key, each in assets.items() if each.get("type") == COG]
        if asset not in maps:
            raise NotFoundError(
                f"subset {id} has no map {asset[:40]!r}; it has: {', '.join(maps) or 'none'}"
            )
        touch(self._engine, id)
        place = str(assets[asset]["href"]).removeprefix(f"{FILES_ROOT}/")
        return Map(asset, place.split("/")[1], self._root / place, assets[asset])

    @contextmanager
    def reader(self, map: Map) -> Iterator[Reader]:
        """The open file of a map, this request's alone.

        Raises
        ------
        NotFoundError
            The file was removed.
        StoreUnreachableError
        """
        with _reachable(map.file):
            reader = self._taken(map.file)
            if reader is None:
                reader = _opened(map)
            yield reader  # one that an error leaves is not used again, closed with its last name
        with self._lock:
            self._idle.append((map.file, reader))
            closed = self._idle[:-_MOST_OPEN]
            del self._idle[:-_MOST_OPEN]
        for _, each in closed:
            each.close()  # type: ignore[no-untyped-call]

    def _taken(self, file: Place) -> Reader | None:
        """An idle reader of a file; those of files that were removed are let go."""
        with self._lock:
            # a bucket is not asked: what is removed there is no longer in the database
            self._idle = [
                (path, each)
                for path, each in self._idle
                if not isinstance(path, Path) or path.exists()
            ]
            for n in reversed(range(len(self._idle))):
                if self._idle[n][0] == file:
                    return self._idle.pop(n)[1]
        return None


def _opened(map: Map) -> Reader:
    from rasterio.errors import RasterioIOError
    from rio_tiler.io import Reader

    try:
        return Reader(map.file.gdal if isinstance(map.file, BucketPath) else str(map.file))
    except RasterioIOError as error:
        if isinstance(map.file, Path) or not map.file.exists():
            raise NotFoundError(f"the file of {map.key} is no longer stored") from error
        raise


@contextmanager
def _reachable(file: Place) -> Iterator[None]:
    """Have GDAL find a bucket, and tell that it did not answer."""
    if isinstance(file, Path):
        yield
        return
    import rasterio
    from rasterio.errors import RasterioIOError
    from rasterio.session import DummySession

    # GDAL itself reads the credentials of the environment
    with rasterio.Env(DummySession(), **gdal_options()):
        try:
            yield
        except RasterioIOError:
            raise StoreUnreachableError(f"{file} can't be read: no answer") from None
