"""Decompression into no more than is expected, whatever the bytes say of themselves."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping

import numcodecs
import zstandard


def unpacked(codec: str, data: memoryview, largest: int) -> bytes:
    """What one of Zarr's codecs packed: ``blosc``, ``gzip``, ``lz4``, ``zlib`` or ``zstd``.

    Raises
    ------
    ValueError
        It's more than `largest` bytes, by its own word or as it comes; then no more was allocated.
    Exception
        Each codec has errors of its own for what is damaged.
    """
    return _CODECS[codec](data, largest)


def _declared(size: int, largest: int) -> None:
    if not 0 <= size <= largest:
        raise ValueError(f"it says that it holds {size} bytes, and may hold {largest}")


def _inflated(data: memoryview, largest: int, bits: int) -> bytes:
    parts, left, rest = [], largest, bytes(data)
    while rest:  # gzip may have several members
        member = zlib.decompressobj(bits)
        parts.append(member.decompress(rest, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise ValueError(f"it holds more than {largest} bytes")
        if not member.eof:
            raise ValueError("it is cut short")
        rest = member.unused_data
    return b"".join(parts)


def _zstd(data: memoryview, largest: int) -> bytes:
    size = zstandard.get_frame_parameters(data).content_size
    if size != zstandard.CONTENTSIZE_UNKNOWN:
        _declared(size, largest)
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=largest)


def _lz4(data: memoryview, largest: int) -> bytes:
    _declared(int.from_bytes(data[:4], "little"), largest)  # numcodecs' header
    return bytes(numcodecs.LZ4().decode(data))


def _blosc(data: memoryview, largest: int) -> bytes:
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("it is cut short")
    _declared(int.from_bytes(data[4:8], "little"), largest)
    return bytes(numcodecs.Blosc().decode(data))


_CODECS: Mapping[str, Callable[[memoryview, int], bytes]] = {
    "blosc": _blosc,
    "gzip": lambda data, largest: _inflated(data, largest, 31),
    "lz4": _lz4,
    "zlib": lambda data, largest: _inflated(data, largest, 15),
    "zstd": _zstd,
}
