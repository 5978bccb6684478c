"""Source chunks, taken as they come, decoded and stitched: as fast as they decode.

They are asked for ahead (:mod:`firnline.cache.chunk_requests`), so that neither the network nor the
processors wait for the other; decoding runs in as many threads as there are processors (Blosc
releases the interpreter lock).
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from firnline.cache.chunk_requests import ChunkRequests
from firnline.cache.crossing import Crossing
from firnline.cache.plan import Chunk, Part, Plan, Tile
from firnline.cache.stitch import fill, scatter
from firnline.chunks import ChunkReader
from firnline.errors import SourceCorruptError, SourceMissingError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Raw = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")

_DECODERS = max(2, os.cpu_count() or 1)


class Fetcher:
    """Fetches the chunks of a plan's tiles, one (tile, variable) after the other.

    Use as a context manager, which closes the requests.

    Parameters
    ----------
    plan
        What is fetched.
    requests
        Of that plan's chunks.
    """

    def __init__(self, plan: Plan, requests: ChunkRequests) -> None:
        self._plan = plan
        self._requests = requests
        self.counts = self._requests.counts
        self._crossing = Crossing(plan)
        self._local = threading.local()  # each decoder's scratch, of one chunk
        self._confirmers = ThreadPoolExecutor(4, thread_name_prefix="confirm")
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        # what hangs is not waited for: whoever stops has to be let go
        self._requests.close()
        self._confirmers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @property
    def bytes_left(self) -> int:
        """About as many are still to be downloaded, by what chunks took so far."""
        return self._requests.bytes_left

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
        SourceMissingError, SourceChangedError
            A cube has gone, or is another one by now: what came of it can't be used.
        """
        try:
            yield from self._tiles(list(work), check)
        except (SourceCorruptError, SourceMissingError):
            for each in self._confirm(self._requests.readers):
                _wait(each, check)  # it's no damage where it is another cube by now
            raise

    def _tiles(
        self, work: Sequence[tuple[Tile, str]], check: Callable[[], None]
    ) -> Iterator[tuple[Tile, str, Raw]]:
        self._requests.begin(work)
        buffer = np.empty(0, np.uint8)
        for n, (tile, variable) in enumerate(work, start=1):
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
            for part in self._plan.parts(tile, variable):
                if part.fills:  # not before those it leaves their place to
                    _drain(decodes)
                into = {variable: target}
                if part.time is not None:
                    into = self._crossing.windows(tile, part, variable)
                for _ in part.chunks:
                    check()
                    chunk, request = self._requests.take()
                    # in order, so that a decoder never waits for a request
                    data = _wait(request, check)
                    decodes.append(self._decoders.submit(self._place, into, part, chunk, data))
                    if len(decodes) > 2 * _DECODERS:
                        decodes.popleft().result()
                if part.time is not None:
                    _drain(decodes)
                    put = self._crossing.put(target, tile, variable, part, into, self._decoders)
                    self.counts.add(conflicts=put)
            # Before a tile counts as done: ITS_LIVE's writer leaves out chunks in which every value
            # is missing, but all are absent where the cube has gone.
            last = n == len(work)
            ended = self._requests.readers if last or work[n][0] is not tile else []
            confirmed = self._confirm(ended if last else [r for r in ended if r.uncertain])
            for decode in decodes:
                decode.result()
            for each in confirmed:
                _wait(each, check)
            for each in self._confirm([r for r in ended if r.uncertain]):
                _wait(each, check)  # bytes that did not decode were fetched since
            check()
            self._local = threading.local()  # the caller may need the memory
            yield tile, variable, target

    def _confirm(self, readers: Iterable[ChunkReader]) -> list[Future[None]]:
        return [self._confirmers.submit(reader.confirm) for reader in readers]

    def _place(
        self, into: Mapping[str, Raw], part: Part, chunk: Chunk, data: Buffer | None
    ) -> None:
        if data is None:
            return
        target = into[chunk.variable]
        array = self._plan.cubes[chunk.cube].layout.variable(chunk.variable)
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or (scratch.shape, scratch.dtype) != (array.chunks, array.dtype):
            scratch = self._local.scratch = np.empty(array.chunks, array.dtype)
        reader = self._requests.readers[chunk.cube]
        values = reader.decode(array, chunk.index, data, out=scratch)
        moves = self._plan.moves(chunk.cube, chunk.index[0], array.chunks[0])
        if part.time is not None:  # one pair after the other, until they are resampled
            moves = moves[0], np.arange(len(moves[0]))
            scatter(target, values, moves, chunk.rows, chunk.columns)
        else:
            if target.dtype != values.dtype:
                values = self._recomputed(values.astype(target.dtype), chunk)
            if part.fills:
                put = fill(target, values, moves, chunk.rows, chunk.columns, array.missing)
                self.counts.add(conflicts=put)
            else:
                scatter(target, values, moves, chunk.rows, chunk.columns)
        self.counts.add(chunks=1)

    def _recomputed(self, speed: Raw, chunk: Chunk) -> Raw:
        """Speeds of a chunk, from the components where the source's type is full.

        These are so few that their chunks are asked for when one is found.
        """
        cube = self._plan.cubes[chunk.cube].layout
        pairs, _ = self._plan.moves(chunk.cube, chunk.index[0], speed.shape[0])
        window = speed[pairs, chunk.rows[1], chunk.columns[1]]
        full = window == np.iinfo(cube.variable("v").dtype).max
        if not full.any():
            return speed
        parts = []
        reader = self._requests.readers[chunk.cube]
        for name in ("vx", "vy"):
            array = cube.variable(name)
            data = reader.get(array, chunk.index) if array.chunks == speed.shape else None
            if data is None:
                raise SourceCorruptError(f"{cube.url}: there is v at {chunk.key}, but no {name}")
            values = reader.decode(array, chunk.index, data)
            values = values[pairs, chunk.rows[1], chunk.columns[1]]
            full &= values != array.missing
            parts.append(values.astype(np.float64))
        window[full] = np.rint(np.hypot(*parts)[full])
        speed[pairs, chunk.rows[1], chunk.columns[1]] = window
        self.counts.add(recomputed=int(full.sum()))
        return speed


def _drain(decodes: deque[Future[None]]) -> None:
    while decodes:
        decodes.popleft().result()


def _wait(request: Future[T], check: Callable[[], None]) -> T:
    while True:
        try:
            return request.result(timeout=0.5)
        except TimeoutError:
            if request.done():  # it was the request's own
                raise
            check()
