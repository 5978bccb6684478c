"""A shard's index: where its chunks are, and which of them are best read together. Pure.

Zarr codec ``sharding_indexed`` 1.0: offset and length of each chunk in C order, as uint64 of little
end, all ones for a chunk that is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from firnline.cube import Array, unchecked
from firnline.errors import SourceCorruptError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Place = tuple[int, int]
"""Offset and length of a chunk in its shard."""

_LEFT_OUT = np.iinfo(np.uint64).max
_LARGEST = 4 << 30  # bytes of an encoded chunk


@dataclass(frozen=True)
class ShardIndex:
    """``entries`` (chunk, 2), and the ETag of the shard that it is of."""

    entries: np.ndarray[Any, np.dtype[np.uint64]]
    etag: str | None

    def place(self, number: int) -> Place | None:
        """Where a chunk is; None where the shard does not have it.

        Raises
        ------
        SourceCorruptError
            It can't be that long, or that short.
        """
        offset, length = map(int, self.entries[number])
        if offset == length == _LEFT_OUT:
            return None
        if not 0 < length <= _LARGEST:
            raise SourceCorruptError(f"a chunk of {length} bytes is not plausible")
        return offset, length

    def within(self, start: int, end: int) -> list[Place]:
        """The chunks that lie in a range of the shard's bytes."""
        last = np.uint64(end) - self.entries[:, 1]
        inside = (self.entries[:, 1] <= end) & (start <= self.entries[:, 0])
        inside &= self.entries[:, 0] <= last
        return [(int(offset), int(length)) for offset, length in self.entries[inside]]


def index_length(array: Array) -> int:
    """Bytes of the index of an array's shards."""
    assert array.shards is not None
    each = (s // c for s, c in zip(array.shards.shape, array.chunks, strict=True))
    return 16 * prod(each) + (4 if array.shards.checked else 0)


def parse_index(array: Array, data: Buffer, etag: str | None) -> ShardIndex:
    """The index of a shard from its bytes, of :func:`index_length`.

    Raises
    ------
    SourceCorruptError
        Its checksum is not theirs.
    """
    assert array.shards is not None
    view = memoryview(data).cast("B")
    if array.shards.checked:
        view = unchecked(view, "a shard's index")
    return ShardIndex(np.frombuffer(bytes(view), "<u8").reshape(-1, 2), etag)


def runs(places: Iterable[Place], *, gap: int, most: int) -> Iterator[list[Place]]:
    """Sort places into runs, each to be read in one request.

    Places up to `gap` bytes apart share a run, as long as it's no longer than `most`.
    """
    run: list[Place] = []
    start = end = 0
    for offset, length in sorted(places):
        if run and (offset - end > gap or max(end, offset + length) - start > most):
            yield run
            run = []
        start, end = (start, max(end, offset + length)) if run else (offset, offset + length)
        run.append((offset, length))
    if run:
        yield run
