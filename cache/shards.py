"""Chunks and shards of a Zarr array, encoded in parallel and written whole.

Reading is zarr-python's; writing is done here because it is what a materialisation spends its
time on once the source is decoded: each chunk is copied once, encoded, and put down.

A shard is laid out as the specification of the codec ``sharding_indexed`` 1.0 says: the encoded
chunks one after the other, then the index, one (offset, length) of two little-endian uint64 for
each chunk in C order, all ones where a chunk is left out, and the index's CRC-32C.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

Raw = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

_LEFT_OUT = np.iinfo(np.uint64).max


def write(
    put: Callable[[str, list[bytes]], None],
    values: Raw,
    *,
    corner: Shape,
    chunk: Shape,
    shard: Shape | None,
    fill_value: Any,
    processors: Executor,
) -> None:
    """Write a part of an array that begins on a shard's (or unsharded chunk's) edge.

    Parameters
    ----------
    put
        Puts a file, given by its parts, at a path below the array's folder.
    values
        ``(time, y, x)``; reaches to the end of its shards or of the array.
    corner
        Index in the array of the part's first value.
    chunk, shard
        Shapes; a shard's is a multiple of the chunk's. Zarr v3 where there is a shard, else v2.
    fill_value
        What pads chunks on the array's edge.
    processors
        Where chunks are encoded (:func:`pack`, which releases the interpreter lock).
    """
    outer = shard or chunk
    encoding = []
    for index in _grid(values.shape, outer):
        start = [i * n for i, n in zip(index, outer, strict=True)]
        part = values[tuple(slice(s, s + n) for s, n in zip(start, outer, strict=True))]
        key = [str((c + s) // n) for c, s, n in zip(corner, start, outer, strict=True)]
        windows = _windows(outer, chunk)
        keep = shard is None  # an unsharded chunk is a file, and all files are written
        jobs = [processors.submit(_encode, part[w], chunk, fill_value, keep=keep) for w in windows]
        encoding.append((key, jobs))
    for key, jobs in encoding:
        encoded = [job.result() for job in jobs]
        if shard is None:
            put(".".join(key), encoded)
        else:
            put(f"c/{'/'.join(key)}", [*encoded, *_index(encoded)])


def _index(encoded: list[bytes]) -> tuple[bytes, bytes]:
    """The index of chunks that lie one after the other, and its checksum."""
    table = np.full((len(encoded), 2), _LEFT_OUT, "<u8")
    offset = 0
    for row, chunk in zip(table, encoded, strict=True):
        if chunk:
            row[:] = offset, len(chunk)
            offset += len(chunk)
    raw = table.tobytes()
    return raw, google_crc32c.value(raw).to_bytes(4, "little")


def _encode(part: Raw, chunk: Shape, fill_value: Any, *, keep: bool = False) -> bytes:
    """One encoded chunk; empty where all of it is the fill value, unless that is to be kept."""
    if part.shape == chunk:
        whole = np.ascontiguousarray(part)
    else:
        whole = np.full(chunk, fill_value, part.dtype)
        whole[tuple(slice(n) for n in part.shape)] = part
    # a few values tell of most chunks that they are not empty
    if not keep and (whole.reshape(-1)[::101] == fill_value).all() and (whole == fill_value).all():
        return b""
    return pack(whole)


def pack(values: Raw) -> bytes:
    """Values as a frame of Blosc zstd-1 with shuffle, in one block of all of them.

    Of blocks of 32 kB, as Blosc has them of itself, chunks of 200 kB take 4 % more room, a fourth
    longer to encode, and twice as long to decode.
    """
    return bytes(blosc.compress(values, b"zstd", 1, blosc.SHUFFLE, max(1, values.nbytes)))


def _grid(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(math.ceil(n / s)) for n, s in zip(shape, size, strict=True)))


def _windows(shard: Shape, chunk: Shape) -> Iterator[tuple[slice, ...]]:
    """The chunks of a shard in C order."""
    for index in _grid(shard, chunk):
        yield tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, chunk, strict=True))
