"""The cubes that cover an area: found in the catalog, opened, their image pairs read.

Only metadata and 1-D arrays are read here; the velocity chunks are ``firnline.cache.fetch``'s.
"""

from __future__ import annotations

import json
import math
import mmap
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Boolean, Engine, func, literal, select

from firnline.cache.request import Request
from firnline.crs import parse_crs
from firnline.cube import Array, Cube, read_cube
from firnline.database import reading
from firnline.errors import NoCoverageError, SourceCorruptError, SourceMissingError
from firnline.footprint import footprint
from firnline.source import Source
from firnline.tables import LIVING, Footprint, items

Raw = np.ndarray[Any, np.dtype[Any]]

# Without these a pair has no place in time, or no identity: their absence is damage, not 'no data'.
_NEEDED = ("granule_url", "acquisition_date_img1", "acquisition_date_img2")
_LARGE = 1 << 22  # bytes of a chunk
_one_large = threading.Lock()  # of several cubes' granule URLs, one is decoded at a time


@dataclass(frozen=True)
class CubeItem:
    """A cube as the catalog has it; ``area`` is its outline in its own CRS."""

    id: str
    href: str
    crs: str
    area: BaseGeometry
    pairs: int
    spacing: float | None = None  # metres, where the catalog knows it


@dataclass(frozen=True)
class OpenCube:
    """A cube whose coordinates and image pairs have been read.

    ``x`` and ``y`` are pixel centres in metres, ``mid_date`` is ``datetime64[us] (pair,)``,
    ``granule`` the basename (bytes) of each pair's granule, its identity, and
    ``per_pair`` the other 1-D variables as stored.
    """

    id: str
    source: Source
    layout: Cube
    x: Raw
    y: Raw
    mid_date: Raw
    granule: Raw
    per_pair: Mapping[str, Raw]

    @property
    def pairs(self) -> int:
        """Number of image pairs."""
        return len(self.mid_date)


def find_cubes(engine: Engine, request: Request, window: str | None = None) -> list[CubeItem]:
    """The cubes of the catalog whose own outline shares some of the area asked for.

    Parameters
    ----------
    window
        A CRS: then the cubes in that CRS which share some of the area's bounding window there,
        which is what is stored, and may be more.

    Raises
    ------
    NoCoverageError
    """
    if window is None:
        asked = footprint(request.area, parse_crs(request.crs))
    else:
        asked = footprint(box(*request.area_in(parse_crs(window)).bounds), window)
    near = func.ST_Intersects(
        items.c.footprint, literal(shapely.to_wkb(asked), Footprint()), type_=Boolean()
    )
    with reading(engine) as connection:
        contents = connection.scalars(
            select(items.c.content)
            .where(items.c.collection == request.collection, LIVING, near)
            .order_by(items.c.id)
        ).all()
    found = [_cube_item(json.loads(content)) for content in contents]
    # lon/lat footprints are true to 100 m; the cube's own CRS decides
    chosen = []
    for cube in found:
        if window in (None, cube.crs):
            area = request.area_in(parse_crs(cube.crs))
            area = area if window is None else box(*area.bounds)
            if area.intersection(cube.area).area:
                chosen.append(cube)
    if not chosen:
        raise NoCoverageError(
            "no cube of the catalog covers this area; "
            "search the collection itslive-cubes for what there is"
        )
    return chosen


def _cube_item(content: Mapping[str, Any]) -> CubeItem:
    properties = content["properties"]
    return CubeItem(
        id=content["id"],
        href=content["assets"]["zarr"]["href"],
        crs=properties["proj:code"],
        area=box(*properties["proj:bbox"]),
        pairs=properties.get("itslive:granule_count") or 0,
        spacing=properties.get("proj:transform", [None])[0],
    )


def open_cube(item: CubeItem, source: Source, executor: Executor) -> OpenCube:
    """Read a cube's metadata, coordinates and 1-D variables, its requests on `executor`.

    Raises
    ------
    SourceMissingError
        There is no cube at its address.
    SourceUnreachableError, SourceCorruptError
    """
    layout = read_cube(source)
    time = layout.time
    reads: dict[str, Callable[[], Raw]] = {}
    for name, array in layout.arrays.items():
        if name in ("x", "y", time) or array.dims == (time,):
            reduce = _basenames if name == "granule_url" else None
            needed = name in ("x", "y", time, *_NEEDED)
            reads[name] = read_array(source, array, executor, reduce, needed=needed)
    read = {name: result() for name, result in reads.items()}
    for name in ("x", "y"):
        if len(read[name]) < 2 or not np.ptp(np.diff(read[name])) < 1e-3:
            raise SourceCorruptError(f"{source.url}: {name} is not an evenly spaced axis")
    granule = read.pop("granule_url", None)
    if granule is None:
        raise SourceMissingError(f"{source.url} has no granule_url, by which pairs are told apart")
    return OpenCube(
        id=item.id,
        source=source,
        layout=layout,
        x=read.pop("x"),
        y=read.pop("y"),
        mid_date=instants(read.pop(time), layout.arrays[time]),
        granule=granule,
        per_pair=read,
    )


def read_array(
    source: Source,
    array: Array,
    executor: Executor,
    reduce: Callable[[Raw], Raw] | None = None,
    *,
    needed: bool = False,
) -> Callable[[], Raw]:
    """Start to read a whole 0-D, 1-D or 2-D array; the returned function waits for it.

    A chunk that the source does not have is the array's missing value, or an error where the
    array is `needed`. `reduce` makes each 1-D chunk smaller as it comes, since a cube's granule
    URLs take 4 kB a pair.
    """

    def chunk(index: tuple[int, ...]) -> Raw:
        shape = tuple(
            min(size, array.shape[d] - index[d] * size) for d, size in enumerate(array.chunks)
        )
        try:
            data = source.get(array.key(index)).data
        except SourceMissingError:
            if needed:
                raise SourceCorruptError(
                    f"{source.url} has metadata, but no {array.key(index)}"
                ) from None
            return np.full(shape, array.missing)
        if math.prod(array.chunks) * array.dtype.itemsize < _LARGE:
            return reduced(array.decode(data)[tuple(slice(n) for n in shape)])
        with _one_large:
            return reduced(array.decode(data, out=_aside(array))[tuple(slice(n) for n in shape)])

    def reduced(values: Raw) -> Raw:
        return values.copy() if reduce is None else reduce(values)

    futures: dict[tuple[int, ...], Future[Raw]] = {
        index: executor.submit(chunk, index) for index in np.ndindex(*array.chunk_counts)
    }

    def result() -> Raw:
        parts = {index: future.result() for index, future in futures.items()}
        if len(parts) == 1:
            return parts[next(iter(parts))]
        if len(array.dims) == 1:
            return np.concatenate([parts[index] for index in sorted(parts)])
        whole = np.empty(array.shape, array.dtype)
        for index, part in parts.items():
            corner = [i * n for i, n in zip(index, array.chunks, strict=True)]
            whole[tuple(slice(c, c + n) for c, n in zip(corner, part.shape, strict=True))] = part
        return whole

    return result


def _aside(array: Array) -> Raw:
    """Memory for a large chunk that is given back to the system at once when it's dropped.

    The allocator would keep it: a cube's granule URLs are decoded once, and are the largest thing
    in the memory of a small job.
    """
    size = math.prod(array.chunks) * array.dtype.itemsize
    return np.frombuffer(mmap.mmap(-1, size), array.dtype)


def _basenames(urls: Raw) -> Raw:
    """Last part of each URL as UTF-8 bytes, in as narrow a type as fits them."""
    block = 4096  # rows: fixed-width URLs are 4 kB each, so few at a time are made Python strings
    names = [
        np.array([url.rsplit("/", 1)[-1].encode() for url in urls[first : first + block].tolist()])
        for first in range(0, len(urls), block)
    ]
    return np.concatenate(names) if names else np.empty(0, "S1")


def instants(values: Raw, array: Array) -> Raw:
    """`datetime64[us]` of a CF time axis in days, seconds or smaller units since an epoch.

    Microseconds are what the axis carries: ITS_LIVE sets the YYMMDD of the first image as the
    microseconds of each mid-date; as float64 days they come with noise below that.
    """
    unit, _, epoch = str(array.attributes.get("units", "")).partition(" since ")
    per_unit = {
        "days": 86_400_000_000,
        "seconds": 1_000_000,
        "milliseconds": 1_000,
        "microseconds": 1,
        "nanoseconds": 1e-3,
    }
    try:
        start = np.datetime64(epoch.strip().removesuffix("Z"), "us")
        scale = per_unit[unit.strip()]
    except (KeyError, ValueError):
        raise SourceCorruptError(
            f"{array.name} has units {array.attributes.get('units')!r}; "
            f"understood: {', '.join(per_unit)} since a date"
        ) from None
    known = np.isfinite(values)
    values = np.where(known, values, 0)
    whole = values if values.dtype.kind in "iu" else np.floor(values)
    # days and their fraction apart, so that neither loses its last digits
    microseconds = whole.astype("i8") * scale + np.rint((values - whole) * scale)
    instants = start + microseconds.astype("i8").astype("m8[us]")
    instants[~known] = np.datetime64("NaT")
    return instants
