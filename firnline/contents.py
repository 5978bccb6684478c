"""The JSON of items as databases keep it: a zstd frame over a dictionary of typical items.

Most of an item is what all of its kind say. Compressed with that known beforehand it takes a
tenth of its size, and a fifth of what it takes by itself, in less time.

The dictionary (``typical_items.ndjson``: a mosaic, a deeply read cube and a cube, all made up) is
a part of the format: without the very bytes no stored item can be read, and another one is another
format, with a migration of its own. Each frame has a checksum, so that what was packed with
another dictionary is an error, and not another item.
"""

from __future__ import annotations

import threading
from pathlib import Path

import zstandard

from firnline.errors import DatabaseError

_DICTIONARY = zstandard.ZstdCompressionDict(
    Path(__file__).with_name("typical_items.ndjson").read_bytes(),
    dict_type=zstandard.DICT_TYPE_RAWCONTENT,
)
_LEVEL = 1  # level 3 takes a tenth more time and saves 1 %


class _Zstd(threading.local):  # its objects serve one thread at a time
    def __init__(self) -> None:
        self.pack = zstandard.ZstdCompressor(
            level=_LEVEL, dict_data=_DICTIONARY, write_checksum=True
        ).compress
        self.unpack = zstandard.ZstdDecompressor(dict_data=_DICTIONARY).decompress


_zstd = _Zstd()


def pack(content: bytes) -> bytes:
    """The JSON of an item, compressed."""
    return _zstd.pack(content)


def unpack(packed: bytes) -> bytes:
    """What :func:`pack` was given.

    Raises
    ------
    DatabaseError
        It is damaged, or was not made by :func:`pack`.
    """
    try:
        return _zstd.unpack(packed)
    except zstandard.ZstdError as error:
        raise DatabaseError(f"a stored item can't be read: {error}") from None
