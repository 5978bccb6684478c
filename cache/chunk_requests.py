"""The chunks of a plan's tiles: asked for in order, each once, ahead of those who decode them.

As one comes the next is asked for, across tiles and variables, as many as there is memory for. A
chunk that several tiles need is downloaded once: its compressed bytes are kept until the last of
them has it, within a limit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

from firnline.cache.counts import Counts
from firnline.cache.memory import Shares
from firnline.cache.plan import Chunk, Plan, Tile
from firnline.chunks import ChunkReader, Index, Keeper
from firnline.cube import Array

if TYPE_CHECKING:
    from typing_extensions import Buffer

Request: TypeAlias = "Future[Buffer | None]"
_Name = tuple[int, str]
"""Cube and key of a chunk, in one plan."""
_Identity = tuple[str, str, str]
"""Address and version of a cube, and a chunk's key: the same in any plan."""

_AHEAD = 4  # as many chunks may wait to be decoded as are under way at once


class ChunkRequests:
    """Asks for the chunks that a plan's tiles need.

    Parameters
    ----------
    plan
        What is asked for.
    tiles
        Those of its tiles that will be.
    concurrency
        Requests under way at once.
    memory
        Limits of the compressed bytes that wait to be decoded, and are kept for later tiles.
    keeper
        Where chunks are kept for later jobs.
    earlier
        What was begun before the plan was made: its threads and counts are gone on with, and what
        it has asked for is not asked for again.
    """

    def __init__(
        self,
        plan: Plan,
        tiles: Iterable[Tile],
        *,
        concurrency: int,
        memory: Shares,
        keeper: Keeper | None = None,
        earlier: ChunkRequests | None = None,
    ) -> None:
        self.counts: Counts = Counts() if earlier is None else earlier.counts
        known: dict[tuple[str, str | None], ChunkReader] = {}
        if earlier is not None:
            known = {(reader.source.url, reader.version): reader for reader in earlier.readers}
        self.readers: list[ChunkReader] = [
            known.get((cube.source.url, cube.layout.etag))
            or ChunkReader(
                cube.source, version=cube.layout.etag, keeper=keeper, counter=self.counts
            )
            for cube in plan.cubes
        ]
        """Of each cube."""
        self._plan = plan
        sharded = any(
            cube.layout.variable(name).shards
            for cube in plan.cubes
            for name in plan.request.variables
        )
        self._at_once = (4 if sharded else 2) * concurrency  # several chunks come at once
        self._most = _AHEAD * self._at_once
        self._memory = memory
        self._largest = 0  # chunk that came, in bytes
        self._lock = threading.RLock()
        self._to_ask: Iterator[list[Chunk]] = iter(())
        self._asked: deque[tuple[Chunk, Request]] = deque()
        self._under_way = 0  # chunks that were asked for and have not come
        self._kept: dict[_Name, Request] = {}
        self._sizes: dict[_Name, int] = {}
        self._kept_bytes = 0
        self._uses = plan.uses_of(tiles)
        self._all_uses = sum(self._uses.values())
        if earlier is None:
            self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="fetch")
            self._begun: dict[_Identity, Request] = {}
        else:
            self._threads, self._begun = earlier._hand_over()
            self._largest = earlier._largest

    def close(self) -> None:
        """Drop what is not under way; a request that hangs is not waited for."""
        with self._lock:
            self._to_ask = iter(())
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def bytes_left(self) -> int:
        """About as many are still to be downloaded, by what chunks took so far."""
        left = sum(self._uses.values())
        asked = self._all_uses - left
        return self.counts.bytes * left // asked if asked else 0

    def begin(self, work: Iterable[tuple[Tile, str]]) -> None:
        """Begin to ask for the chunks of each (tile, variable), and go on as they come."""
        with self._lock:
            self._to_ask = (
                group for tile, variable in work for group in self._plan.groups(tile, variable)
            )
            self._ask_more()

    def take(self) -> tuple[Chunk, Request]:
        """The next chunk in order, from whoever asks first."""
        with self._lock:
            if not self._asked:
                self._asked.extend(self._ask(next(self._to_ask)))
            taken = self._asked.popleft()
            self._ask_more()
            return taken

    def _ask_more(self) -> None:
        while len(self._asked) < self._reach() and self._under_way < self._at_once:
            group = next(self._to_ask, None)
            if group is None:
                return
            self._asked.extend(self._ask(group))

    def _reach(self) -> int:
        """How many chunks may wait: as large, by what is known, as the largest that came.

        Until one has come as many as requests go at once.
        """
        if not self._largest:
            return self._at_once // 2
        return min(self._most, self._memory.ahead // self._largest)

    def _hand_over(self) -> tuple[ThreadPoolExecutor, dict[_Identity, Request]]:
        """Ask for no more; the threads, and the requests by what they are for in any plan."""
        with self._lock:
            self._to_ask = iter(())
            begun = ((self._identity((c.cube, c.key)), request) for c, request in self._asked)
            return self._threads, {name: request for name, request in begun if name is not None}

    def _ask(self, group: Sequence[Chunk]) -> list[tuple[Chunk, Request]]:
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
            requests.append((chunk, request))
        if new:
            array = self._plan.cubes[group[0].cube].layout.variable(group[0].variable)
            self._under_way += len(new)
            self._threads.submit(self._fetch_group, array, new)
        return requests

    def _fetch_group(self, array: Array, group: Sequence[tuple[Chunk, Request]]) -> None:
        """Fetch chunks of one object; where that takes several requests, side by side."""
        try:
            parts = [group]
            if array.shards is not None:
                whose: dict[Index, tuple[Chunk, Request]]
                whose = {chunk.index: (chunk, request) for chunk, request in group}
                together = self.readers[group[0][0].cube].together(array, list(whose))
                parts = [[whose[index] for index in part] for part in together]
            for part in parts[1:]:
                self._threads.submit(self._fetch, array, part)
        except BaseException as error:  # noqa: BLE001  raised where the chunks are waited for
            self._fail(group, error)
        else:
            self._fetch(array, parts[0])

    def _fetch(self, array: Array, part: Sequence[tuple[Chunk, Request]]) -> None:
        """Fetch chunks of one object by one request, and give them to those who wait."""
        cube = part[0][0].cube
        try:
            found = self.readers[cube].get_together(array, [chunk.index for chunk, _ in part])
        except BaseException as error:  # noqa: BLE001  raised where the chunks are waited for
            self._fail(part, error)
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
        self._came(len(part))

    def _fail(self, part: Sequence[tuple[Chunk, Request]], error: BaseException) -> None:
        for _, request in part:
            if not request.done():
                request.set_exception(error)
        self._came(len(part))

    def _came(self, chunks: int) -> None:
        with self._lock:
            self._under_way -= chunks
            self._ask_more()

    def _keep(self, name: _Name, request: Request) -> None:
        def count(done: Request) -> None:
            with self._lock:
                if self._kept.get(name) is done:
                    self._sizes[name] = _size(done)
                    self._kept_bytes += self._sizes[name]

        self._kept[name] = request
        request.add_done_callback(count)

    def _take(self, name: _Name) -> Request | None:
        self._kept_bytes -= self._sizes.pop(name, 0)
        kept = self._kept.pop(name, None)
        identity = self._identity(name)
        return kept or (None if identity is None else self._begun.pop(identity, None))

    def _identity(self, name: _Name) -> _Identity | None:
        """Of a chunk in any plan; None where the cube's version is not known."""
        cube, key = name
        source, version = self._plan.cubes[cube].source, self._plan.cubes[cube].layout.etag
        return None if version is None else (source.url, version, key)


def _size(request: Request) -> int:
    if request.cancelled() or request.exception() is not None:
        return 0
    data = request.result()
    return 0 if data is None else memoryview(data).nbytes
