"""The Zarr stores of a subset: created aside, written by whole shards, verified, published.

Writers work in a folder that no reader knows; publishing renames it to a generation folder, and
the database row that names the generation is what readers follow. A half-written Zarr opens
without an error and with holes: so every shard (or chunk, where there are no shards) is written,
empty or not, and a store in which one is missing is not published.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr

from firnline.cache import shards
from firnline.cache.places import Place, Stored, Writer, below, digest, for_zarr
from firnline.cache.plan import CHUNK_SIDE, CHUNK_TIME, SHARD_TIME, Plan, Tile
from firnline.cache.shards import Shape
from firnline.errors import StoreError

Raw = np.ndarray[Any, np.dtype[Any]]
Format = Literal["v3", "v2"]
Block = tuple[slice, slice, slice]
"""Times, rows and columns of a field, half-open."""

PAIRS = "pairs.zarr"
COMPOSITE = "composite.zarr"
STRAIN = "strain.zarr"
TREND = "trend.zarr"

_V2_CHUNK_TIME = 512
# The source calls 0 missing here, though it says 'measured': a decoder would make it NaN.
_ZERO_IS_A_VALUE = ("interp_mask",)
MAP_TIMES, MAP_SIDE = 4, 256
"""Periods and pixels a side of a block of fields."""


def pairs_layout(plan: Plan, name: str) -> tuple[Shape, Shape | None, Any]:
    """Chunks, shards and fill value of a variable ``(mid_date, y, x)``; None for none."""
    missing = None if name in _ZERO_IS_A_VALUE else plan.array(name).missing
    if plan.request.format == "v3":
        return (CHUNK_TIME, CHUNK_SIDE, CHUNK_SIDE), (SHARD_TIME, *plan.tile_shape), missing
    # half a tile each way, a whole number of pixels as tiles are
    high, wide = (side // 2 if side > CHUNK_SIDE else side for side in plan.tile_shape)
    return (_V2_CHUNK_TIME, high, wide), None, missing


def write(
    out: Writer, plan: Plan, name: str, tile: Tile, values: Raw, processors: Executor
) -> None:
    """Write one tile ``(mid_date, y, x)`` of a variable: whole shards, nothing is read back.

    `out` is of the subset's folder; the rest of the store need not be there yet. Chunks are encoded
    on `processors`. They are laid out by ``firnline.cache.shards``, since zarr-python's own codec
    copies each of them several times over.
    """
    chunk, shard, missing = pairs_layout(plan, name)
    shards.write(
        lambda path, parts: out.put(f"{PAIRS}/{name}/{path}", parts),
        values,
        corner=(0, tile.rows.start, tile.columns.start),
        chunk=chunk,
        shard=shard,
        fill_value=values.dtype.type(0 if missing is None else missing),
        processors=processors,
    )


def write_field(path: Path, name: str, values: Raw, block: Block) -> None:
    """Write a block of a field ``(time, y, x)``, chunks without a value as well."""
    array = zarr.open_array(path, path=name, mode="r+")
    # zarr 3.1 takes no notice of `config` when it opens an array
    array.with_config({"write_empty_chunks": True})[block] = values


def field_blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """The parts of a field ``(time, y, x)`` that are whole chunks, and shards, of their own."""
    sizes = (MAP_TIMES, MAP_SIDE, MAP_SIDE)
    parts = [
        [slice(n, min(n + size, length)) for n in range(0, length, size)]
        for length, size in zip(shape, sizes, strict=True)
    ]
    times, rows, columns = parts
    yield from itertools.product(times, rows, columns)


def opened(path: Place, name: str) -> zarr.Array[Any]:
    """An array, for reading parts of it."""
    return zarr.open_array(for_zarr(path), path=name, mode="r")


def verify(path: Path, elsewhere: Collection[str] = ()) -> None:
    """Check that a store opens and that every chunk of it is there.

    Parameters
    ----------
    path
        On this disk, with the metadata at least.
    elsewhere
        Paths from the subset's folder of files that are in place already, not on this disk.

    Raises
    ------
    StoreError
        Says what is missing.
    """
    try:
        group = zarr.open_consolidated(path, mode="r")  # else what is not there is made
    except (ValueError, KeyError, OSError) as error:
        raise StoreError(f"{path.name} does not open: {error}") from error
    for name, array in group.arrays():
        grid = array.shards or array.chunks
        expected = math.prod(math.ceil(n / c) for n, c in zip(array.shape, grid, strict=True))
        inside = f"{path.name}/{name}/"
        found = _chunk_files(path / name)
        found += sum(1 for file in elsewhere if file.startswith(inside))
        if found != expected:
            raise StoreError(f"{path.name}: {name} has {found} of {expected} chunks")


def _chunk_files(folder: Path) -> int:
    return sum(
        1 for file in below(folder) if not file.name.startswith(".z") and file.name != "zarr.json"
    )


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in below(folder))


def files(folder: Path) -> Iterator[tuple[str, Stored]]:
    """Each file below a folder: relative path, bytes and SHA-256."""
    for file in below(folder):
        yield file.relative_to(folder).as_posix(), digest(file)


def publish(work: Path, published: Path) -> None:
    """Move a finished folder to where readers will look; on one file system this is atomic."""
    try:
        published.parent.mkdir(parents=True, exist_ok=True)
        work.rename(published)
    except OSError as error:
        raise StoreError(f"{published} can't be published: {error.strerror}") from error


def adopt(folder: Path, attempt: int) -> Path | None:
    """Take over what an earlier attempt has written; None if there is nothing.

    Its folder is renamed to this attempt's: a worker that lost its job but does not know it yet
    finds its own folder gone, and can't touch what is written from now on.
    """
    mine = folder / str(attempt)
    earlier = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not earlier:
        return None
    (folder / str(max(earlier))).rename(mine)
    for path in below(mine):
        # zarr writes beside, then renames; so do maps and pictures. Zarr v2's metadata is .z...
        beside = path.name.startswith(".") and not path.name.startswith(".z")
        if beside or path.suffix == ".partial":
            path.unlink()
    return mine
