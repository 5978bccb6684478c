"""Source chunks, fetched and decoded: as fast as they decode, in bounded memory.

Requests run ahead of decoding in a window of fixed length, across tiles and variables, so that
neither the network nor the processors wait for the other; decoding runs in as many threads as
there are processors (Blosc releases the interpreter lock). A chunk that several tiles need is
downloaded once: its compressed bytes are kept until the last of them has it, within a limit.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _told: dict[str, int] = field(default_factory=dict, repr=False)

    def add(self, *, requests: int = 0, bytes: int = 0, chunks: int = 0, absent: int = 0) -> None:
        """Add to the counts, from any thread."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.chunks += chunks
            self.absent += absent

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        return {name: getattr(self, name) for name in ("requests", "bytes", "chunks", "absent")}

    def since_last(self) -> dict[str, int]:
        """What was added since this was asked last: what a tile's checkpoint keeps."""
        now = self.as_dict()
        new = {name: count - self._told.get(name, 0) for name, count in now.items()}
        self._told = now
        return new

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, int]]) -> Counts:
        """The sum of counts by name."""
        whole = cls()
        for part in parts:
            whole.add(**part)
        return whole


class Fetcher:
    """Fetches the chunks of a plan's tiles, one (tile, variable) after the other.

    Use as a context manager.

    Parameters
    ----------
    plan
        What is fetched.
    tiles
        Those of its tiles that will be asked for.
    concurrency
        Requests under way at once.
    keep_bytes
        Limit of the compressed bytes that are kept for later tiles.
    """

    def __init__(
        self, plan: Plan, tiles: Iterable[Tile], *, concurrency: int, keep_bytes: int
    ) -> None:
        self.counts = Counts()
        self._plan = plan
        self._window = 2 * concurrency
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, str], Future[Buffer | None]] = {}
        self._sizes: dict[tuple[int, str], int] = {}
        self._kept_bytes = 0
        self._uses = plan.uses_of(tiles)
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
        # a request that hangs is not waited for: whoever stops has to be let go
        self._requests.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @property
    def processors(self) -> ThreadPoolExecutor:
        """As many threads as there are processors: idle between two buffers."""
        return self._decoders

    def tiles(
        self, work: Iterable[tuple[Tile, str]], check: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tile, str, Raw]]:
        """For each (tile, variable), the stitched buffer ``(layer, y, x)``, in order.

        Chunks of the next ones are requested while the caller works on a buffer. There is one
        buffer: its content is the caller's until the next is asked for. `check` is called before
        each chunk and while one is waited for; what it raises ends the fetch.

        Raises
        ------
        SourceUnreachableError, SourceCorruptError
            A chunk could not be had; what was under way is dropped.
        """
        work = list(work)
        ahead = self._request_ahead(work)
        waiting: deque[tuple[Chunk, Future[Buffer | None]]] = deque()
        buffer = np.empty(0, np.uint8)
        for tile, variable in work:
            array = self._plan.array(variable)
            shape = (self._plan.shape[0], *tile.shape)
            size = math.prod(shape) * array.dtype.itemsize
            if size > buffer.size:
                buffer = np.empty(size, np.uint8)
            target = buffer[:size].view(array.dtype).reshape(shape)
            list(
                self._decoders.map(
                    lambda part, missing=array.missing: part.fill(missing),
                    np.array_split(target, _DECODERS),
                )
            )
            decodes: deque[Future[None]] = deque()
            for _ in self._plan.chunks(tile, variable):
                waiting.extend(itertools.islice(ahead, self._window - len(waiting)))
                check()
                chunk, request = waiting.popleft()
                # in order, so that a decoder never waits for a request
                data = _wait(request, check)
                decodes.append(self._decoders.submit(self._place, target, variable, chunk, data))
                if len(decodes) > 2 * _DECODERS:
                    decodes.popleft().result()
            for decode in decodes:
                decode.result()
            check()
            yield tile, variable, target

    def _request_ahead(
        self, work: Iterable[tuple[Tile, str]]
    ) -> Iterator[tuple[Chunk, Future[Buffer | None]]]:
        """Start the requests in order; one for a chunk, whoever needs it."""
        for tile, variable in work:
            for chunk in self._plan.chunks(tile, variable):
                name = (chunk.cube, chunk.key)
                request = self._take(name) or self._requests.submit(self._get, chunk)
                self._uses[name] -= 1
                if self._uses[name] > 0 and self._kept_bytes < self._keep_bytes:
                    self._keep(name, request)
                yield chunk, request

    def _keep(self, name: tuple[int, str], request: Future[Buffer | None]) -> None:
        def count(done: Future[Buffer | None]) -> None:
            with self._lock:
                if self._kept.get(name) is done:
                    self._sizes[name] = _size(done)
                    self._kept_bytes += self._sizes[name]

        with self._lock:
            self._kept[name] = request
        request.add_done_callback(count)

    def _take(self, name: tuple[int, str]) -> Future[Buffer | None] | None:
        with self._lock:
            self._kept_bytes -= self._sizes.pop(name, 0)
            return self._kept.pop(name, None)

    def _get(self, chunk: Chunk) -> Buffer | None:
        """The chunk's bytes, or None where the source does not have it."""
        data = self._read(chunk)
        if data is None:
            # The cube's metadata came from the same place, so the place is there: ITS_LIVE's
            # writer leaves out chunks in which every value is missing.
            self.counts.add(absent=1)
        return data

    def _read(self, chunk: Chunk) -> Buffer | None:
        variable = chunk.key.split("/", 1)[0]
        array = self._plan.cubes[chunk.cube].layout.variable(variable)
        return self._readers[chunk.cube].get(array, chunk.index)

    def _place(self, target: Raw, variable: str, chunk: Chunk, data: Buffer | None) -> None:
        if data is None:
            return
        cube = self._plan.cubes[chunk.cube]
        array = cube.layout.variable(variable)
        values = self._decode(array, chunk, data)
        moves = self._plan.moves(chunk.cube, chunk.index[0], array.chunks[0])
        scatter(target, values, moves, chunk.rows, chunk.columns)
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


def _wait(request: Future[Buffer | None], check: Callable[[], None]) -> Buffer | None:
    while True:
        try:
            return request.result(timeout=0.5)
        except TimeoutError:
            if request.done():  # it was the request's own
                raise
            check()


def _size(request: Future[Buffer | None]) -> int:
    if request.cancelled() or request.exception() is not None:
        return 0
    data = request.result()
    return 0 if data is None else memoryview(data).nbytes
