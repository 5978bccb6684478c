"""Source chunks, fetched and decoded: as fast as they decode, in bounded memory.

Requests run ahead of decoding in a window of fixed length, across tiles and variables, so that
neither the network nor the processors wait for the other; decoding runs in as many threads as
there are processors (Blosc releases the interpreter lock). A chunk that several tiles need is
downloaded once: its compressed bytes are kept until the last of them has it, within a limit.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from firnline.cache.plan import Chunk, Plan, Tile
from firnline.cache.stitch import scatter
from firnline.chunks import ChunkReader
from firnline.cube import Array
from firnline.errors import SourceCorruptError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Raw = np.ndarray[Any, np.dtype[Any]]

_DECODERS = max(2, os.cpu_count() or 1)
_TRIES = 3


@dataclass
class Counts:
    """What a fetch did: ``bytes`` as downloaded; ``absent`` chunks that the source lacks."""

    requests: int = 0
    bytes: int = 0
    chunks: int = 0
    absent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, requests: int = 0, bytes: int = 0, chunks: int = 0, absent: int = 0) -> None:
        """Add to the counts, from any thread."""
        with self.lock:
            self.requests += requests
            self.bytes += bytes
            self.chunks += chunks
            self.absent += absent


class Fetcher:
    """Fetches the chunks of a plan's tiles, one (tile, variable) after the other.

    Use as a context manager.

    Parameters
    ----------
    plan
        What is fetched.
    concurrency
        Requests under way at once.
    keep_bytes
        Limit of the compressed bytes that are kept for later tiles.
    """

    def __init__(self, plan: Plan, *, concurrency: int, keep_bytes: int) -> None:
        self.counts = Counts()
        self._plan = plan
        self._window = 2 * concurrency
        self._keep_bytes = keep_bytes
        self._kept: dict[tuple[int, str], Buffer | None] = {}
        self._kept_bytes = 0
        self._uses = dict(plan.uses)
        self._readers = [
            ChunkReader(cube.source, lambda size: self.counts.add(requests=1, bytes=size))
            for cube in plan.cubes
        ]
        self._local = threading.local()  # each decoder's scratch, of one chunk
        self._requests = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        for pool in (self._requests, self._decoders):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def processors(self) -> ThreadPoolExecutor:
        """As many threads as there are processors: idle between two buffers."""
        return self._decoders

    def tiles(
        self, work: Iterable[tuple[Tile, str]], stop: threading.Event | None = None
    ) -> Iterator[tuple[Tile, str, Raw]]:
        """For each (tile, variable), the stitched buffer ``(layer, y, x)``, in order.

        Chunks of the next ones are requested while the caller works on a buffer. There is one
        buffer: its content is the caller's until the next is asked for.

        Raises
        ------
        SourceUnreachableError, SourceCorruptError
            A chunk could not be had; what was under way is dropped.
        """
        ahead = self._request_ahead(work)
        waiting: deque[tuple[Chunk, Future[Buffer | None]]] = deque()
        done = False
        buffer = np.empty(0, np.uint8)
        for tile, variable in work:
            array = self._plan.array(variable)
            shape = (self._plan.shape[0], *tile.shape)
            size = math.prod(shape) * array.dtype.itemsize
            if size > buffer.size:
                buffer = np.empty(size, np.uint8)
            target = buffer[:size].view(array.dtype).reshape(shape)
            target.fill(array.missing)
            decodes: list[Future[None]] = []
            for _ in self._plan.chunks(tile, variable):
                while not done and len(waiting) < self._window:
                    following = next(ahead, None)
                    done = following is None
                    if following is not None:
                        waiting.append(following)
                if stop is not None and stop.is_set():
                    return
                chunk, request = waiting.popleft()
                request_done = request.result()  # in order: the decoder never waits for a request
                decodes.append(
                    self._decoders.submit(self._place, target, variable, chunk, request_done)
                )
                if len(decodes) > 2 * _DECODERS:
                    decodes[-2 * _DECODERS - 1].result()
            for decode in decodes:
                decode.result()
            yield tile, variable, target

    def _request_ahead(
        self, work: Iterable[tuple[Tile, str]]
    ) -> Iterator[tuple[Chunk, Future[Buffer | None]]]:
        for tile, variable in work:
            for chunk in self._plan.chunks(tile, variable):
                yield chunk, self._requests.submit(self._get, chunk)

    def _get(self, chunk: Chunk) -> Buffer | None:
        """The chunk's bytes, or None where the source does not have it."""
        name = (chunk.cube, chunk.key)
        with self.counts.lock:
            self._uses[name] -= 1
            last = self._uses[name] <= 0
            if name in self._kept:
                data = self._kept[name]
                if last:
                    del self._kept[name]
                    self._kept_bytes -= 0 if data is None else memoryview(data).nbytes
                return data
        data = self._read(chunk)
        if data is None:
            # The cube's metadata came from the same place, so the place is there: ITS_LIVE's
            # writer leaves out chunks in which every value is missing.
            self.counts.add(absent=1)
        if not last:
            size = 0 if data is None else memoryview(data).nbytes
            with self.counts.lock:
                if self._kept_bytes + size <= self._keep_bytes:
                    self._kept[name] = data
                    self._kept_bytes += size
        return data

    def _read(self, chunk: Chunk) -> Buffer | None:
        variable = chunk.key.split("/", 1)[0]
        array = self._plan.cubes[chunk.cube].layout.variable(variable)
        return self._readers[chunk.cube].get(array, chunk.index)

    def _place(self, target: Raw, variable: str, chunk: Chunk, data: Buffer | None) -> None:
        if data is None:
            return
        plan = self._plan
        cube, place = plan.cubes[chunk.cube], plan.placements[chunk.cube]
        array = cube.layout.variable(variable)
        values = self._decode(array, chunk, data)
        moves = plan.moves(chunk.cube, chunk.index[0], array.chunks[0])
        owned = None
        if place.shared:
            row = place.row + chunk.index[1] * array.chunks[1]
            column = place.column + chunk.index[2] * array.chunks[2]
            rows, columns = chunk.rows[1], chunk.columns[1]
            owner = plan.source_cube[
                row + rows.start : row + rows.stop, column + columns.start : column + columns.stop
            ]
            owned = owner == chunk.cube
        scatter(target, values, moves, chunk.rows, chunk.columns, owned)
        self.counts.add(chunks=1)

    def _decode(self, array: Array, chunk: Chunk, data: Buffer) -> Raw:
        """Decode; bytes that don't are fetched again, since it may be the transfer that broke."""
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or (scratch.shape, scratch.dtype) != (array.chunks, array.dtype):
            scratch = self._local.scratch = np.empty(array.chunks, array.dtype)
        for attempt in range(_TRIES):
            try:
                values: Raw = array.decode(data, out=scratch)
                return values
            except SourceCorruptError:
                if attempt == _TRIES - 1:
                    raise
                again = self._read(chunk)
                if again is None:
                    raise
                data = again
        raise AssertionError("unreachable")
