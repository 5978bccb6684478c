"""The bytes of a cube's chunks, be they objects of their own or parts of shards.

A shard's index is read once, by the range at its end, and kept: for the chunks (20000, 8, 8) in
shards (20000, 32, 32) of ITS_LIVE's version 2.2 it is 260 bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from firnline.cube import Array, unchecked
from firnline.errors import SourceCorruptError, SourceMissingError
from firnline.source import Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LEFT_OUT = np.iinfo(np.uint64).max
_LARGEST = 4 << 30  # bytes of an encoded chunk
_TRIES = 3


@dataclass(frozen=True)
class _Index:
    """Where the chunks of a shard are, (offset, length) in C order, and the shard's ETag."""

    entries: np.ndarray[Any, np.dtype[np.uint64]]
    etag: str | None


class ChunkReader:
    """Reads the chunks of one cube; any number of threads may share it.

    Parameters
    ----------
    source
        The cube.
    counted
        Called with the bytes of each request, those for indices too; 0 where nothing was there.
    """

    def __init__(self, source: Source, counted: Callable[[int], None] | None = None) -> None:
        self._source = source
        self._counted = counted or (lambda _: None)
        self._indices: dict[str, Future[_Index | None]] = {}
        self._lock = threading.Lock()

    def get(self, array: Array, index: tuple[int, ...]) -> Buffer | None:
        """The encoded bytes of a chunk, None where the source does not have it.

        Raises
        ------
        SourceUnreachableError
        SourceCorruptError
            A shard's index is damaged, or the shard changes faster than it can be read.
        """
        path, number = array.locate(index)
        if number is None:
            return self._whole(path)
        for _ in range(_TRIES):
            found = self._index(array, path)
            if found is None:
                return None
            offset, length = map(int, found.entries[number])
            if offset == length == _LEFT_OUT:
                return None
            if length > _LARGEST:
                raise SourceCorruptError(
                    f"{self._source.url}/{path}: a chunk of {length} bytes is not plausible"
                )
            blob = self._source.get_range(path, offset, length)
            self._counted(length)
            if blob.etag == found.etag:
                return blob.data
            with self._lock:  # written again since its index was read
                self._indices.pop(path, None)
        raise SourceCorruptError(f"{self._source.url}/{path} changes while it is read")

    def _whole(self, path: str) -> Buffer | None:
        try:
            data = self._source.get(path).data
        except SourceMissingError:
            self._counted(0)
            return None
        self._counted(memoryview(data).nbytes)
        return data

    def _index(self, array: Array, path: str) -> _Index | None:
        """The index of a shard, read by the first who asks; None where there is no such shard."""
        with self._lock:
            known = self._indices.get(path)
            waiting: Future[_Index | None] = Future() if known is None else known
            self._indices[path] = waiting
        if known is not None:
            return known.result()
        try:
            waiting.set_result(self._read_index(array, path))
        except BaseException as error:
            with self._lock:  # whoever asks next tries again
                self._indices.pop(path, None)
            waiting.set_exception(error)
            raise
        return waiting.result()

    def _read_index(self, array: Array, path: str) -> _Index | None:
        assert array.shards is not None
        each = [s // c for s, c in zip(array.shards.shape, array.chunks, strict=True)]
        length = 16 * prod(each) + (4 if array.shards.checked else 0)
        for attempt in range(_TRIES):
            try:
                if array.shards.at_end:
                    blob = self._source.get_suffix(path, length)
                else:
                    blob = self._source.get_range(path, 0, length)
            except SourceMissingError:
                self._counted(0)
                return None
            self._counted(length)
            view = memoryview(blob.data).cast("B")
            try:
                if array.shards.checked:
                    view = unchecked(view, f"{self._source.url}/{path}: the shard's index")
            except SourceCorruptError:  # it may be the transfer that broke
                if attempt == _TRIES - 1:
                    raise
                continue
            entries = np.frombuffer(bytes(view), "<u8").reshape(-1, 2)
            return _Index(entries, blob.etag)
        raise AssertionError("unreachable")
