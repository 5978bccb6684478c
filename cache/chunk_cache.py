"""Source chunks on disk, as they were fetched, so that overlapping areas never download one twice.

One file a chunk, named by a hash of the chunk's address, with a checksum: a file that is damaged is
no file. Files are written aside and renamed, so any number of processes may share the folder and
be killed at any moment. They are written by a thread of its own, which no one waits for unless it
falls far behind.

The least recently used go when the quota is near. The sizes are summed up in one small file, and
the folder is looked through only when that says it's full, or once a day, for what killed processes
did not sum up. A disk that is full, or that can't be written, is no error: chunks are fetched then.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import google_crc32c
import structlog

from firnline.chunks import Kept, Turns
from firnline.settings import Settings

log = structlog.get_logger(__name__)

# checksum of all that follows, version of this layout, bytes of the JSON that is next
_HEAD = struct.Struct("<IHH")
_LAYOUT = 1
_USAGE = "usage"
_FULL, _LESS = 15 / 16, 14 / 16  # shares of the quota: what is full, and what it's brought down to
_UNSAID = 1 / 128  # of the quota, that a process writes before it adds it to the sum
_BEHIND = 64 << 20  # bytes that wait to be written
_DAY = 86_400.0
_LEFT_BEHIND = 3_600.0  # seconds after which a file that is written aside is someone's who died


class ChunkCache:
    """Chunks by address in a folder; any number of threads and processes may share it.

    Parameters
    ----------
    folder
        Made when first needed.
    quota
        Bytes, as the files' sizes say.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self._folder = folder
        self._quota = quota
        self._turns = Turns()
        self._waiting: dict[str, Kept] = {}
        self._waiting_bytes = 0
        self._written = threading.Condition()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="keep")
        self._grown = 0  # bytes that this process has not added to the sum yet
        self._complained = False

    def alone(self, key: str) -> AbstractContextManager[None]:
        """Wait until no other thread of this process is at the same key."""
        return self._turns.alone(key)

    def read(self, key: str) -> Kept | None:
        """What is kept by this name, and whole."""
        with self._written:
            if (waiting := self._waiting.get(key)) is not None:
                return waiting
        path = self._path(key)
        try:
            with path.open("rb") as file:
                checksum, layout, size = _HEAD.unpack(file.read(_HEAD.size))
                about = file.read(size)
                body = file.read()
            found, etag, version = json.loads(about)
        except (OSError, ValueError, TypeError, struct.error):
            return None  # not there, or damaged
        told = google_crc32c.extend(google_crc32c.value(about), body)
        if (layout, found, told) != (_LAYOUT, key, checksum):
            return None
        with suppress(OSError):
            os.utime(path)  # used now
        return Kept(body, etag, version)

    def write(self, key: str, kept: Kept) -> None:
        """Keep this, soon, if there is room."""
        size = memoryview(kept.data).nbytes
        if size > self._quota * (1 - _FULL):
            return
        with self._written:
            self._written.wait_for(lambda: self._waiting_bytes < _BEHIND)
            self._waiting_bytes += size
            self._waiting[key] = kept
        try:
            self._writer.submit(self._store, key, kept, size)
        except RuntimeError:  # this process is about to end
            self._forget(key, kept, size)

    def flush(self) -> None:
        """Wait until all is written. A process that ends does so by itself."""
        with self._written:
            self._written.wait_for(lambda: not self._waiting)

    def _store(self, key: str, kept: Kept, size: int) -> None:
        try:
            self._grown += self._put(key, kept)
            if self._grown > self._quota * _UNSAID or self._waiting_bytes == size:
                self._sum_up()
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("chunks are not kept", folder=str(self._folder), reason=str(error))
        finally:
            self._forget(key, kept, size)

    def _forget(self, key: str, kept: Kept, size: int) -> None:
        with self._written:
            self._waiting_bytes -= size
            if self._waiting.get(key) is kept:
                del self._waiting[key]
            self._written.notify_all()

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return self._folder / name[0] / name[1:]  # few folders: making one takes as long as a file

    def _put(self, key: str, kept: Kept) -> int:
        """Write a file; by how much the folder grew."""
        about = json.dumps([key, kept.etag, kept.version]).encode()
        body = bytes(kept.data)
        checksum = google_crc32c.extend(google_crc32c.value(about), body)
        parts = (_HEAD.pack(checksum, _LAYOUT, len(about)), about, body)
        size = sum(map(len, parts))
        path = self._path(key)
        aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
        # As few calls as can be: each gives the interpreter lock to those who decode.
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the first in its folder
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                if hasattr(os, "posix_fallocate"):  # halves the time of the next call
                    os.posix_fallocate(descriptor, 0, size)
                if os.writev(descriptor, parts) < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
            before = _size(path)
            aside.rename(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        return size - before

    def _sum_up(self) -> None:
        """Add to the sum of all processes; who finds that it's full makes room."""
        descriptor = os.open(self._folder / _USAGE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as usage:
            try:
                fcntl.flock(usage, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another is at it: the next time
                return
            total, looked = _parse(usage.read())
            total += self._grown
            self._grown = 0
            if total > self._quota * _FULL or time.time() - looked > _DAY:
                total, looked = self._make_room(), time.time()
            usage.seek(0)
            usage.write(f"{total} {looked:.0f}".encode().ljust(64))

    def _make_room(self) -> int:
        """Remove what was used least recently if it's more than the quota; the bytes that stay."""
        files = []
        for folder in os.scandir(self._folder):
            if not folder.is_dir():
                continue
            for file in os.scandir(folder):
                try:
                    about = file.stat()
                except FileNotFoundError:
                    continue
                if file.name.endswith(".partial"):
                    if time.time() - about.st_mtime > _LEFT_BEHIND:
                        Path(file).unlink(missing_ok=True)
                    continue
                files.append((about.st_mtime_ns, about.st_size, file.path))
        total = sum(size for _, size, _ in files)
        if total > self._quota * _FULL:
            for _, size, path in sorted(files):
                Path(path).unlink(missing_ok=True)
                total -= size
                if total <= self._quota * _LESS:
                    break
        return total


def open_chunk_cache(settings: Settings) -> ChunkCache | None:
    """The chunk cache of an installation, one in a process; None where its quota is 0."""
    return chunk_cache(chunk_folder(settings), settings.chunk_cache_quota)


def chunk_folder(settings: Settings) -> Path:
    """Where an installation keeps its chunks."""
    return settings.data_dir / "chunks"


def chunk_cache(folder: Path, quota: int) -> ChunkCache | None:
    """The chunk cache in a folder, one in a process; None where its quota is 0."""
    if not quota:
        return None
    with _opening:  # lru_cache lets two who come at once make one each
        return _open(folder, quota)


_opening = threading.Lock()
_open = functools.lru_cache(maxsize=None)(ChunkCache)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _parse(usage: bytes) -> tuple[int, float]:
    """Bytes of all files, and when they were last summed up from the files themselves."""
    try:
        total, looked = usage.split()
        return int(total), float(looked)
    except ValueError:
        return 0, 0.0  # new, or damaged: look
