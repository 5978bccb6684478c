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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from firnline.cache.crossing import Crossing
from firnline.cache.memory import Shares
from firnline.cache.plan import Chunk, Part, Plan, Tile
from firnline.cache.stitch import fill, scatter
from firnline.chunks import ChunkReader, Index, Keeper
from firnline.cube import Array
from firnline.errors import SourceCorruptError, SourceMissingError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Raw = np.ndarray[Any, np.dtype[Any]]
Request = Future["Buffer | None"]
T = TypeVar("T")

_DECODERS = max(2, os.cpu_count() or 1)


@dataclass
class Counts:
    """What a fetch did.

    ``bytes`` as downloaded; ``absent`` chunks that the source lacks; ``reused`` ones (and indices
    of shards) that an earlier fetch had kept; ``conflicts`` are values that were there already from
    a cube before, and others; ``recomputed`` speeds that the source's type was too narrow for.
    """

    requests: int = 0
    bytes: int = 0
    chunks: int = 0
    absent: int = 0
    reused: int = 0
    conflicts: int = 0
    recomputed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _told: dict[str, int] = field(default_factory=dict, repr=False)

    def add(
        self,
        *,
        requests: int = 0,
        bytes: int = 0,
        chunks: int = 0,
        absent: int = 0,
        reused: int = 0,
        conflicts: int = 0,
        recomputed: int = 0,
    ) -> None:
        """Add to the counts, from any thread."""
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.chunks += chunks
            self.absent += absent
            self.reused += reused
            self.conflicts += conflicts
            self.recomputed += recomputed

    def as_dict(self) -> dict[str, int]:
        """The counts by name."""
        names = ("requests", "bytes", "chunks", "absent", "reused", "conflicts", "recomputed")
        return {name: getattr(self, name) for name in names}

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
    memory
        Limits of the compressed bytes that wait to be decoded, and are kept for later tiles.
    keeper
        Where chunks are kept for later jobs.
    """

    def __init__(
        self,
        plan: Plan,
        tiles: Iterable[Tile],
        *,
        concurrency: int,
        memory: Shares,
        keeper: Keeper | None = None,
    ) -> None:
        self.counts = Counts()
        self._plan = plan
        sharded = any(
            cube.layout.variable(name).shards
            for cube in plan.cubes
            for name in plan.request.variables
        )
        self._window = (4 if sharded else 2) * concurrency  # several chunks come at once
        self._memory = memory
        self._largest = 0  # chunk that came, in bytes
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, str], Request] = {}
        self._sizes: dict[tuple[int, str], int] = {}
        self._kept_bytes = 0
        self._uses = plan.uses_of(tiles)
        self._all_uses = sum(self._uses.values())
        self._crossing = Crossing(plan)
        self._readers = [
            ChunkReader(cube.source, version=cube.layout.etag, keeper=keeper, counter=self.counts)
            for cube in plan.cubes
        ]
        self._local = threading.local()  # each decoder's scratch, of one chunk
        self._requests = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
        self._confirmers = ThreadPoolExecutor(4, thread_name_prefix="confirm")
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *exc: object) -> None:
        # a request that hangs is not waited for: whoever stops has to be let go
        self._requests.shutdown(wait=False, cancel_futures=True)
        self._confirmers.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=True, cancel_futures=True)

    @property
    def bytes_left(self) -> int:
        """About as many are still to be downloaded, by what chunks took so far."""
        left = sum(self._uses.values())
        asked = self._all_uses - left
        return self.counts.bytes * left // asked if asked else 0

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
            for each in self._confirm(self._readers):
                _wait(each, check)  # it's no damage where it is another cube by now
            raise

    def _tiles(
        self, work: Sequence[tuple[Tile, str]], check: Callable[[], None]
    ) -> Iterator[tuple[Tile, str, Raw]]:
        ahead = self._request_ahead(work)
        waiting: deque[tuple[Chunk, Request]] = deque()
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
                    ready = max(0, self._reach() - len(waiting))
                    waiting.extend(itertools.islice(ahead, ready))
                    check()
                    chunk, request = waiting.popleft()
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
            ended = self._readers if last or work[n][0] is not tile else []
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

    def _reach(self) -> int:
        """How many chunks may be under way: as large, by what is known, as the largest that came.

        One at least, and until one has come as many as requests go at once.
        """
        if not self._largest:
            return self._window // 2
        return max(1, min(self._window, self._memory.ahead // self._largest))

    def _confirm(self, readers: Iterable[ChunkReader]) -> list[Future[None]]:
        return [self._confirmers.submit(reader.confirm) for reader in readers]

    def _request_ahead(self, work: Iterable[tuple[Tile, str]]) -> Iterator[tuple[Chunk, Request]]:
        """Start the requests in order; one for a chunk, whoever needs it."""
        for tile, variable in work:
            for group in self._plan.groups(tile, variable):
                requests = []
                new = []
                for chunk in group:
                    name = chunk.cube, chunk.key
                    request = self._take(name)
                    if request is None:
                        request = Future()
                        new.append((chunk, request))
                    self._uses[name] -= 1
                    if self._uses[name] > 0 and self._kept_bytes < self._memory.kept:
                        self._keep(name, request)
                    requests.append(request)
                if new:
                    array = self._plan.cubes[group[0].cube].layout.variable(group[0].variable)
                    self._requests.submit(self._fetch_group, array, new)
                yield from zip(group, requests, strict=True)

    def _fetch_group(self, array: Array, group: Sequence[tuple[Chunk, Request]]) -> None:
        """Fetch chunks of one object; where that takes several requests, side by side."""
        try:
            parts = [group]
            if array.shards is not None:
                whose: dict[Index, tuple[Chunk, Request]]
                whose = {chunk.index: (chunk, request) for chunk, request in group}
                together = self._readers[group[0][0].cube].together(array, list(whose))
                parts = [[whose[index] for index in part] for part in together]
            for part in parts[1:]:
                self._requests.submit(self._fetch, array, part)
        except BaseException as error:  # noqa: BLE001  raised where the chunks are waited for
            _fail(group, error)
        else:
            self._fetch(array, parts[0])

    def _fetch(self, array: Array, part: Sequence[tuple[Chunk, Request]]) -> None:
        """Fetch chunks of one object by one request, and give them to those who wait."""
        cube = part[0][0].cube
        try:
            found = self._readers[cube].get_together(array, [chunk.index for chunk, _ in part])
        except BaseException as error:  # noqa: BLE001  raised where the chunks are waited for
            _fail(part, error)
            return
        for (chunk, request), data in zip(part, found, strict=True):
            if data is None:
                self.counts.add(absent=1)
                request.set_result(data)
                continue
            self._largest = max(self._largest, memoryview(data).nbytes)
            if self._kept.get((cube, chunk.key)) is request:
                data = bytes(data)  # not the whole request that it is a part of
            request.set_result(data)

    def _keep(self, name: tuple[int, str], request: Request) -> None:
        def count(done: Request) -> None:
            with self._lock:
                if self._kept.get(name) is done:
                    self._sizes[name] = _size(done)
                    self._kept_bytes += self._sizes[name]

        with self._lock:
            self._kept[name] = request
        request.add_done_callback(count)

    def _take(self, name: tuple[int, str]) -> Request | None:
        with self._lock:
            self._kept_bytes -= self._sizes.pop(name, 0)
            return self._kept.pop(name, None)

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
        reader = self._readers[chunk.cube]
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
        reader = self._readers[chunk.cube]
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


def _fail(part: Sequence[tuple[Chunk, Request]], error: BaseException) -> None:
    for _, request in part:
        if not request.done():
            request.set_exception(error)


def _wait(request: Future[T], check: Callable[[], None]) -> T:
    while True:
        try:
            return request.result(timeout=0.5)
        except TimeoutError:
            if request.done():  # it was the request's own
                raise
            check()


def _size(request: Request) -> int:
    if request.cancelled() or request.exception() is not None:
        return 0
    data = request.result()
    return 0 if data is None else memoryview(data).nbytes
