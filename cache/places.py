"""Where subsets are stored: a directory of this machine, or a folder of a bucket.

A place is a :class:`~pathlib.Path` or a :class:`~firnline.cache.bucket.BucketPath`, which has the
methods of a path that readers use. What the two don't share is here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from firnline.cache.bucket import BucketPath
from firnline.settings import Settings

Place: TypeAlias = Path | BucketPath

_AT_ONCE = 8  # files under way to or from a bucket
_BEHIND = 32 << 20  # bytes that wait to be put


class Stored(NamedTuple):
    """A file: bytes and SHA-256."""

    size: int
    sha256: str


def root(settings: Settings) -> Place:
    """The place of an installation's subsets and of what is made of them."""
    if settings.cache_in_bucket:
        return BucketPath.parse(settings.cache_url)
    return settings.cache_dir


def generation_place(settings: Settings, id: str, generation: str) -> Place:
    """The folder of a generation of a subset."""
    return root(settings) / "subsets" / id / generation


def for_zarr(place: Place) -> Any:
    """What zarr and xarray open to read below a place."""
    return place if isinstance(place, Path) else place.zarr()


def digest(file: Place) -> Stored:
    """Bytes and SHA-256 of a file.

    Raises
    ------
    OSError
        It can't be read; `FileNotFoundError` where it is not there.
    StoreError
    """
    if not isinstance(file, Path):
        return Stored(*file.digest())
    with file.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        return Stored(os.fstat(stream.fileno()).st_size, sha256)


def discard(place: Place) -> None:
    """Remove a folder; of one on a disk as much as is possible, a sweeper gets the rest."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.remove()


def below(folder: Path) -> Iterator[Path]:
    """The files below a folder in order, one folder at a time.

    Path.rglob (Python 3.11) remembers all that it gave: 70 MB for a hundred thousand.
    """
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


class Writer(Protocol):
    """Puts files into a folder."""

    def put(self, path: str, parts: Sequence[bytes]) -> None:
        """Put a file, now or by the next :meth:`settle`."""

    def settle(self) -> dict[str, Stored]:
        """Wait until all files are there; what was put since the last time, if not on this disk.

        Raises
        ------
        StoreError
        OSError
        """

    def close(self) -> None:
        """Put nothing more; what is under way ends first."""


class _DiskWriter:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, path: str, parts: Sequence[bytes]) -> None:
        file = self._folder / path
        try:
            out = file.open("wb")
        except FileNotFoundError:  # the first in its folder
            file.parent.mkdir(parents=True, exist_ok=True)
            out = file.open("wb")
        with out:
            out.writelines(parts)

    def settle(self) -> dict[str, Stored]:
        return {}

    def close(self) -> None:
        return


class _BucketWriter:
    def __init__(self, folder: BucketPath) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="put")
        self._pending: deque[tuple[int, Future[tuple[str, Stored]]]] = deque()
        self._pending_bytes = 0
        self._stored: dict[str, Stored] = {}

    def put(self, path: str, parts: Sequence[bytes]) -> None:
        data = b"".join(parts)
        self._pending.append((len(data), self._pool.submit(self._put, path, data)))
        self._pending_bytes += len(data)
        while self._pending_bytes > _BEHIND:
            self._wait()

    def _put(self, path: str, data: bytes) -> tuple[str, Stored]:
        (self._folder / path).write_bytes(data)
        return path, Stored(len(data), hashlib.sha256(data).hexdigest())

    def _wait(self) -> None:
        size, oldest = self._pending.popleft()
        path, stored = oldest.result()
        self._stored[path] = stored
        self._pending_bytes -= size

    def settle(self) -> dict[str, Stored]:
        while self._pending:
            self._wait()
        stored, self._stored = self._stored, {}
        return stored

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def writer(folder: Place) -> Writer:
    """A writer of files below a folder."""
    return _DiskWriter(folder) if isinstance(folder, Path) else _BucketWriter(folder)


def upload(
    folder: Path, files: Iterable[Path], to: BucketPath, check: Callable[[], None] = lambda: None
) -> None:
    """Put files below a folder of this machine to the same paths below one of a bucket.

    `check` is called now and then; what it raises ends this.
    """

    def put(file: Path) -> None:
        (to / file.relative_to(folder).as_posix()).upload(file)

    _each(put, files, check)


def download(
    files: Iterable[tuple[BucketPath, Path]], check: Callable[[], None] = lambda: None
) -> None:
    """Fetch files of a bucket; `check` as of :func:`upload`."""
    _each(lambda pair: pair[0].download(pair[1]), files, check)


def _each(do: Callable[[Any], None], what: Iterable[Any], check: Callable[[], None]) -> None:
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="transfer") as pool:
        pending = [pool.submit(do, each) for each in what]
        try:
            for each in pending:
                each.result()
                check()
        finally:
            pool.shutdown(cancel_futures=True)
