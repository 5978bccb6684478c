"""How the memory that a job may use is shared out among what takes most of it."""

from __future__ import annotations

import ctypes
import functools
import gc
from dataclasses import dataclass

_PROCESS = 240_000_000
"""Bytes of the process itself: its libraries, the pairs, the smallest tile, a block of maps."""

_LEAST_KEPT = 2_000_000
"""Bytes of chunks that tiles share: without any, each would be fetched up to four times."""


_SHORT = 400_000_000
"""Limit in bytes below which maps and pictures, 100 MB with their libraries, are made apart."""


@dataclass(frozen=True)
class Shares:
    """Bytes for each of what grows with what it's given; there is less elsewhere.

    ``buffer`` is one variable of a tile; composites need two of them. ``ahead`` is what was
    requested and not decoded yet, ``kept`` what was fetched and is kept for later tiles, ``held``
    what is read of a cube before it is resampled.
    """

    buffer: int
    held: int
    ahead: int
    kept: int


def shares(limit: int) -> Shares:
    """What a job under this limit (FIRNLINE_MEMORY_LIMIT, in bytes) may use for what."""
    room = max(0, limit - _PROCESS)
    kept = max(room // 12, min(limit // 8, _LEAST_KEPT))
    return Shares(buffer=room // 14, held=room // 4, ahead=room // 6, kept=kept)


def is_short(limit: int) -> bool:
    """Whether a job under this limit has no memory for what a process of its own can do."""
    return limit < _SHORT


_ARENA_MAX = -8  # malloc.h


@functools.cache
def settle() -> None:
    """Make this process one that does jobs: said at each, done once.

    All threads use one heap, where the C library (glibc) can: by itself it makes one for each, up
    to eight a processor, none of which gives to the others what it has free. A job took 1.4 times
    the memory, and as long. And the garbage collector leaves alone what is there by now, mostly
    libraries: to look them through took 80 ms of a job's second.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
    gc.freeze()


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library (glibc) can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
