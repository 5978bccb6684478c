"""The bytes of a cube's chunks, be they objects of their own or parts of shards.

A shard's index is read once and kept; of the chunks that are asked for together, those that lie
close to each other come in one request.

What was fetched before may be kept by a :class:`Keeper`. A cube's *version* is the ETag of its
consolidated metadata, which ITS_LIVE's writer changes with each update (``date_updated``): as long
as it stays, what is kept is not asked for again. When a cube has grown, each chunk is asked for
with its own ETag, and only those that changed come again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from firnline.cube import Array, read_metadata
from firnline.errors import SourceChangedError, SourceCorruptError, SourceMissingError
from firnline.shard_index import Place, ShardIndex, index_length, parse_index, runs
from firnline.source import Blob, Source

if TYPE_CHECKING:
    from typing_extensions import Buffer

Raw = np.ndarray[Any, np.dtype[Any]]
Index = tuple[int, ...]
"""Of a chunk, along each dimension of its array."""

_GAP = 128 << 10
"""Bytes not asked for that are read to save a request, see docs/decisions/0023-fetching.md."""
LONGEST_RUN = 4 << 20
"""Bytes that chunks are asked for together: more would keep those who decode waiting."""
_TRIES = 5


@dataclass(frozen=True)
class Kept:
    """Bytes that were fetched: of an object with this ETag, in a cube of this version.

    Where no ETag is known, of one that had not changed `since` (a date as HTTP has them): these are
    not what came, but values that are as good, and are not to be kept.
    """

    data: Buffer
    etag: str | None
    version: str | None
    since: str | None = None


class Keeper(Protocol):
    """Keeps what was fetched, by name; may lose it at any time."""

    def read(self, key: str) -> Kept | None:
        """What is kept by this name."""

    def write(self, key: str, kept: Kept) -> None:
        """Keep this, if there is room."""

    def alone(self, key: str) -> AbstractContextManager[None]:
        """Wait until no other thread of this process is at the same key."""


class Turns:
    """A lock for each key, which is there while someone holds it or waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Hold the lock of a key."""
        with self._lock:
            lock, users = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._locks.pop(key)
                if users > 1:
                    self._locks[key] = lock, users - 1


class Counter(Protocol):
    """Is told what a reader does, from any thread."""

    def add(self, *, requests: int = 0, bytes: int = 0, reused: int = 0) -> None:
        """Count requests, the bytes that came, and what was kept and not asked for again."""


class _MovedError(Exception):
    """A shard is not the one of its index any more."""


class ChunkReader:
    """Reads the chunks of one cube; any number of threads may share it.

    Parameters
    ----------
    source
        The cube.
    version
        ETag of the metadata that its arrays were made from.
    keeper
        Where chunks are looked for first, and put; of no use for a local source.
    counter
        What was asked and what came.
    """

    def __init__(
        self,
        source: Source,
        *,
        version: str | None = None,
        keeper: Keeper | None = None,
        counter: Counter | None = None,
    ) -> None:
        self.source = source
        self.version = version
        self._keeper = keeper if source.remote else None
        self._counter = counter
        self._turns = Turns()
        self._indices: dict[str, ShardIndex | None] = {}
        self._uncertain = False

    def get(self, array: Array, index: Index, *, again: bool = False) -> Buffer | None:
        """The encoded bytes of a chunk, None where the source does not have it.

        With `again` they come from the source, whatever is kept.

        Raises
        ------
        SourceUnreachableError, SourceNotAllowedError
        SourceCorruptError
            A shard's index is damaged, or the shard changes faster than it can be read.
        """
        return self.get_together(array, [index], again=again)[0]

    def together(self, array: Array, indices: Sequence[Index]) -> list[list[Index]]:
        """Sort chunks of one shard by which are best asked for together; reads its index."""
        path, _ = array.locate(indices[0])
        table = self._index(array, path)
        placed: dict[Place, Index] = {}
        absent: list[Index] = []
        for index in indices:
            place = None if table is None else self._place(path, table, array.locate(index)[1])
            if place is None:
                absent.append(index)
            else:
                placed[place] = index
        groups = [
            [placed[place] for place in run] for run in runs(placed, gap=_GAP, most=LONGEST_RUN)
        ]
        return [*groups, absent] if absent else groups

    def get_together(
        self, array: Array, indices: Sequence[Index], *, again: bool = False
    ) -> list[Buffer | None]:
        """As :meth:`get`, of several chunks of one object, in as few requests as they need."""
        path, first = array.locate(indices[0])
        if first is None:
            with self._alone(path):
                get = functools.partial(self.source.get_changed, path, largest=array.largest)
                whole = self._current(path, get, again)
            return [None if whole is None else whole.data]
        for attempt in range(_TRIES):
            # an index that a shard is not of any more is not taken from the keeper either
            table = self._index(array, path, again=again or attempt > 0)
            if table is None:
                return [None] * len(indices)
            places = [self._place(path, table, array.locate(index)[1]) for index in indices]
            try:
                found = self._parts(path, table, {p for p in places if p is not None}, again)
            except _MovedError:
                continue
            return [None if place is None else found[place] for place in places]
        raise SourceCorruptError(f"{self.source.url}/{path} changes while it is read")

    def decode(
        self,
        array: Array,
        index: Index,
        data: Buffer,
        out: Raw | None = None,
        *,
        by: Callable[[Buffer], Raw] | None = None,
    ) -> Raw:
        """Decode a chunk; bytes that don't are fetched again: they may have broken on the way.

        Parameters
        ----------
        out
            See :meth:`firnline.cube.Array.decode`.
        by
            What decodes it, if that is not :meth:`firnline.cube.Array.decode`.

        Raises
        ------
        SourceCorruptError
            They don't after several times. What :meth:`get` raises.
        """
        decode = by or functools.partial(array.decode, out=out)
        for _ in range(_TRIES - 1):
            try:
                return decode(data)
            except SourceCorruptError:
                self._uncertain = True
                fresh = self.get(array, index, again=True)
                if fresh is None:
                    raise
                data = fresh
        return decode(data)

    def confirm(self) -> None:
        """Make sure that the cube is still there, and is the one that its metadata told of.

        One conditional request. Until it is asked, that chunks are absent is not certain: they
        are, too, where the whole cube has gone.

        Raises
        ------
        SourceMissingError
            It has gone.
        SourceChangedError
            Another one, or a later state of it, is in its place.
        """
        self._uncertain = False
        self._count(0)
        try:
            blob = read_metadata(self.source, self.version)
        except SourceMissingError:
            raise SourceMissingError(f"{self.source.url} has gone while it was read") from None
        if blob is not None and self.version is not None:
            raise SourceChangedError(f"{self.source.url} has changed while it was read")

    @property
    def uncertain(self) -> bool:
        """Whether chunks were found absent, or broken, since the cube was last confirmed."""
        return self._uncertain

    def _current(self, name: str, load: Callable[..., Blob | None], again: bool) -> Kept | None:
        """What the source has by a name: kept, if the cube is the same, else asked for.

        `load` gets an ETag, or where none is known `since`, and returns None where the source
        still has that. What it does not have
        is asked for each time: a 404 by mistake must not outlive the mistake.
        """
        kept = None if self._keeper is None or again else self._keeper.read(self._key(name))
        if kept is not None and self.version is not None and kept.version == self.version:
            self._reuse()
            return kept
        try:
            since = {} if kept is None or kept.since is None else {"since": kept.since}
            blob = load(None if kept is None else kept.etag, **since)
        except SourceMissingError:
            self._count(0)
            self._uncertain = True
            return None
        if blob is None:
            assert kept is not None
            self._count(0)
            if kept.since is not None:
                self._reuse()
                return kept
            found = Kept(kept.data, kept.etag, self.version)
        else:
            self._count(memoryview(blob.data).nbytes)
            found = Kept(blob.data, blob.etag, self.version)
        self._keep(name, found)
        return found

    def _place(self, path: str, table: ShardIndex, number: int | None) -> Place | None:
        assert number is not None
        try:
            return table.place(number)
        except SourceCorruptError as error:
            raise SourceCorruptError(f"{self.source.url}/{path}: {error}") from None

    def _parts(
        self, path: str, table: ShardIndex, places: AbstractSet[Place], again: bool
    ) -> dict[Place, Buffer]:
        """Chunks of a shard."""
        found: dict[Place, Buffer] = {}
        with ExitStack() as turns:
            if self._keeper is not None and table.etag is not None:
                for place in sorted(places):  # in one order, so that no two wait for each other
                    turns.enter_context(self._alone(_part(path, place)))
                    kept = None if again else self._keeper.read(self._key(_part(path, place)))
                    if kept is not None and kept.etag == table.etag:
                        self._reuse()
                        found[place] = kept.data
            for run in runs(places - found.keys(), gap=_GAP, most=LONGEST_RUN):
                start, end = run[0][0], max(map(sum, run))
                blob = self.source.get_range(path, start, end - start)
                self._count(end - start)
                if blob.etag != table.etag:
                    raise _MovedError
                view = memoryview(blob.data)
                for offset, length in table.within(start, end):  # those in the gaps, too
                    part = found[offset, length] = view[offset - start :][:length]
                    if table.etag is not None:
                        kept = Kept(part, table.etag, self.version)
                        self._keep(_part(path, (offset, length)), kept)
        return found

    def _index(self, array: Array, path: str, *, again: bool = False) -> ShardIndex | None:
        """The index of a shard, read by the first who asks; None where there is no such shard."""
        with self._alone(f"{path}#index"):
            if path not in self._indices or again:
                self._indices[path] = self._read_index(array, path, again)
            return self._indices[path]

    def _read_index(self, array: Array, path: str, again: bool) -> ShardIndex | None:
        assert array.shards is not None
        at_end, length = array.shards.at_end, index_length(array)

        def load(etag: str | None) -> Blob | None:
            if at_end:
                return self.source.get_suffix(path, length, etag)
            return self.source.get_range(path, 0, length)

        for attempt in range(_TRIES):
            kept = self._current(f"{path}#index", load, again or attempt > 0)
            if kept is None:
                return None
            try:
                return parse_index(array, kept.data, kept.etag)
            except SourceCorruptError as error:  # it may be the transfer that broke
                reason = error
        raise SourceCorruptError(f"{self.source.url}/{path}: {reason}")

    def _key(self, name: str) -> str:
        return f"{self.source.url}/{name}"

    def _alone(self, name: str) -> AbstractContextManager[None]:
        """Be the only one of this process, or of this reader if nothing is kept, who asks."""
        return (self._keeper or self._turns).alone(self._key(name))

    def _keep(self, name: str, kept: Kept) -> None:
        # what has neither can't be known to be current later on
        if self._keeper is not None and (kept.etag, kept.version) != (None, None):
            self._keeper.write(self._key(name), kept)

    def _count(self, size: int) -> None:
        if self._counter is not None:
            self._counter.add(requests=1, bytes=size)

    def _reuse(self) -> None:
        if self._counter is not None:
            self._counter.add(reused=1)


def _part(path: str, place: Place) -> str:
    return f"{path}#{place[0]}+{place[1]}"
