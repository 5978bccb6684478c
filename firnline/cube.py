"""A cube as it lies on its source: arrays, chunks, codecs, read from the consolidated metadata.

Both generations: Zarr v2 as ITS_LIVE writes it today (``.zmetadata``), and Zarr v3 in shards as
its next version will be (consolidated in ``zarr.json``). Sizes that the metadata declares are
checked before anything is allocated, since a chunk is decoded into memory of the declared size.
Nothing about a cube is assumed: dimension names, widths and chunks are what its own metadata says.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any

import blosc2
import google_crc32c
import numpy as np
from numcodecs import VLenUTF8
from numcodecs.registry import get_codec

from firnline.blosc_frames import parts
from firnline.errors import SourceCorruptError, SourceMissingError
from firnline.source import Blob, Source
from firnline.unpacking import unpacked

blosc2.set_releasegil(True)  # chunks are decoded in threads

_LARGEST_CHUNK = 2 << 30
_LARGEST_ARRAY = 8 << 30  # bytes of one that is not three-dimensional: those are read whole
_LARGEST_METADATA = 64 << 20  # bytes: a hundred times ITS_LIVE's
_LONGEST_TEXT = 8192  # bytes of one of variable length, on average
_LONGEST = 10_000_000  # pairs, or pixels along a side
_LATER = "/timeseries/"
"""Part of the addresses of ITS_LIVE's cubes from version 2.2 on, which are Zarr v3."""
_MOST_CHUNKS = 10_000_000
# The registry of numcodecs also has codecs that run what they decode, such as pickle.
_CODECS = ("blosc", "gzip", "lz4", "zlib", "zstd")
MISSING = -32767  # of the int16 velocity variables (ITS_LIVE datacube format)


@dataclass(frozen=True)
class Shards:
    """How chunks lie in shards (Zarr codec ``sharding_indexed`` 1.0).

    ``shape`` is that of a shard; its index stands at the shard's end or else at its beginning, and
    is followed by a CRC-32C or not.
    """

    shape: tuple[int, ...]
    at_end: bool = True
    checked: bool = True


@dataclass(frozen=True)
class Array:
    """One array of a cube: what is needed to name its chunks and to decode them.

    ``shape`` and ``chunks`` follow ``dims``; ``attributes`` are as stored, not CF-decoded. In an
    array with ``shards``, several chunks make one object. A chunk that is ``checked`` ends with a
    CRC-32C.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    compressor: Mapping[str, Any] | None
    separator: str = "."
    attributes: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    shards: Shards | None = None
    checked: bool = False

    @property
    def largest(self) -> int:
        """Most bytes that a chunk may take, packed."""
        if self.dtype.kind == "O":
            return _LARGEST_CHUNK
        return prod(self.chunks) * self.dtype.itemsize * 5 // 4 + 65_536  # what can't be packed

    @property
    def missing(self) -> Any:
        """The value that stands for 'no data'.

        ITS_LIVE's writer gives integer variables a ``missing_value`` attribute and no fill value,
        so that an absent chunk read by the book is 0: the attribute goes first.

        Raises
        ------
        SourceCorruptError
            It is not a value of the array's type.
        """
        for value in (
            self.attributes.get("missing_value"),
            self.attributes.get("_FillValue"),
            self.fill_value,
        ):
            if value is None:
                continue
            try:
                missing = self.dtype.type(value)
            except (TypeError, ValueError, OverflowError):
                missing = None
            if missing is None or np.ndim(missing):
                raise SourceCorruptError(f"{self.name}: {value!r} is no missing {self.dtype}")
            return missing
        return self.dtype.type()

    @property
    def chunk_counts(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(
            ceil(size / chunk) for size, chunk in zip(self.shape, self.chunks, strict=True)
        )

    def key(self, index: tuple[int, ...]) -> str:
        """Name of a chunk below the cube's root: its object's path, and its place in a shard."""
        path, number = self.locate(index)
        return path if number is None else f"{path}#{number}"

    def locate(self, index: tuple[int, ...]) -> tuple[str, int | None]:
        """Path of the object that holds a chunk, and the chunk's number in the shard's index.

        The number is None where the object is the chunk.
        """
        if self.shards is None:
            return self._path(index), None
        each = [s // c for s, c in zip(self.shards.shape, self.chunks, strict=True)]
        outer = tuple(i // n for i, n in zip(index, each, strict=True))
        inner = tuple(i % n for i, n in zip(index, each, strict=True))
        return self._path(outer), int(np.ravel_multi_index(inner, each)) if each else 0

    def _path(self, index: tuple[int, ...]) -> str:
        words = [*([self.prefix] if self.prefix else []), *map(str, index)]
        return f"{self.name}/{self.separator.join(words) or '0'}"

    def decode(
        self, data: Any, out: np.ndarray[Any, np.dtype[Any]] | None = None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Decode one chunk; a Blosc one into `out`, of a full chunk's shape, if that is given.

        A chunk on the edge has the full chunk's shape as well.

        Raises
        ------
        SourceCorruptError
            The bytes don't decode, or not to the size that the metadata declares.
        """
        view = memoryview(data).cast("B")
        if self.checked:
            view = unchecked(view, f"a chunk of {self.name}")
        try:
            if self.dtype.kind == "O":
                return self._decode_texts(view)
            if self.compressor is not None and self.compressor.get("id") == "blosc":
                return self._decode_blosc(view, out)
            # not into `out`: these codecs don't tell when it isn't filled
            raw = self._unpacked(view, prod(self.chunks) * self.dtype.itemsize)
            return np.frombuffer(raw, dtype=self.dtype).reshape(self.chunks)
        except SourceCorruptError:
            raise
        except Exception as error:  # noqa: BLE001  each codec has errors of its own
            reason = str(error) or type(error).__name__
            raise SourceCorruptError(f"a chunk of {self.name} does not decode: {reason}") from None

    def _unpacked(self, view: memoryview, largest: int) -> memoryview | bytes:
        if self.compressor is None:
            return view
        return unpacked(self.compressor["id"], view, largest)

    def _decode_texts(self, view: memoryview) -> np.ndarray[Any, np.dtype[Any]]:
        count = prod(self.chunks)
        text = self._unpacked(view, min(count * _LONGEST_TEXT, _LARGEST_CHUNK))
        if int.from_bytes(text[:4], "little") != count:  # for which room is made
            raise ValueError(f"it does not hold {count} texts")
        return np.asarray(VLenUTF8().decode(text)).reshape(self.chunks)

    def _decode_blosc(
        self, view: memoryview, out: np.ndarray[Any, np.dtype[Any]] | None
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Decode a Blosc frame by c-blosc2, whose zlib is twice as fast as numcodecs' (1.3 ms
        instead of 2.6 ms of CPU for a chunk of 1.6 MB, blosc2 4.14 and numcodecs 0.16).
        """
        expected = self._check_blosc(view)
        values = np.empty(self.chunks, self.dtype) if out is None else out
        if expected:
            # a context of its own for each call: blosc2.decompress takes turns on a global one
            blosc2.decompress2(view, dst=values.reshape(-1).view(np.uint8), nthreads=1)
        return values

    def _check_blosc(self, view: memoryview) -> int:
        """Refuse what is not a frame of the size that is declared; that size in bytes."""
        expected = prod(self.chunks) * self.dtype.itemsize
        # bytes 4-8 and 12-16 of a frame: sizes before and after compression
        if len(view) < 16 or int.from_bytes(view[4:8], "little") != expected:
            raise SourceCorruptError(f"a chunk of {self.name} does not hold {expected} bytes")
        if int.from_bytes(view[12:16], "little") != len(view):
            raise SourceCorruptError(f"a chunk of {self.name} is cut short")
        return expected

    def pieces(self, data: Any, count: int) -> Iterator[np.ndarray[Any, np.dtype[Any]]]:
        """Decode a chunk of a 1-D array `count` values at a time, in memory for so many.

        Raises
        ------
        SourceCorruptError
            As :meth:`decode`.
        """
        view = memoryview(data).cast("B")
        if self.checked:
            view = unchecked(view, f"a chunk of {self.name}")
        if self.compressor is None or self.compressor.get("id") != "blosc":
            whole = self.decode(data)
            for first in range(0, len(whole), count):
                yield whole[first : first + count]
            return
        size, step = self._check_blosc(view), count * self.dtype.itemsize
        rest = np.empty(0, np.uint8)
        try:
            for part, length in parts(view, step):
                raw = np.empty(len(rest) + length, np.uint8)
                raw[: len(rest)] = rest
                blosc2.decompress2(part, dst=raw[len(rest) :], nthreads=1)
                size -= length
                until = len(raw) if size == 0 else len(raw) // step * step
                for first in range(0, until, step):
                    yield raw[first : min(first + step, until)].view(self.dtype)
                rest = raw[until:]
        except Exception as error:  # noqa: BLE001  as above
            raise SourceCorruptError(f"a chunk of {self.name} does not decode: {error}") from None


@dataclass(frozen=True)
class Cube:
    """The layout of one cube; ``etag`` is that of its metadata."""

    url: str
    etag: str | None
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any]
    zarr_format: int = 2
    metadata: bytes = field(default=b"", repr=False)
    """The consolidated metadata as it was read."""
    date: str | None = None
    """When it was read, by the source's clock (HTTP's Date)."""

    @property
    def time(self) -> str:
        """Name of the dimension of image pairs: ``mid_date``, or ``time`` in later versions."""
        return next(dim for dim in ("mid_date", "time") if dim in self.arrays)

    @property
    def pairs(self) -> int:
        """Number of image pairs."""
        return self.arrays[self.time].shape[0]

    def variable(self, name: str) -> Array:
        """An array of the cube.

        Raises
        ------
        SourceMissingError
            The cube has no such variable; the message lists those that it has.
        """
        try:
            return self.arrays[name]
        except KeyError:
            has = ", ".join(sorted(n for n, a in self.arrays.items() if len(a.dims) == 3))
            raise SourceMissingError(f"{self.url} has no variable {name!r}; it has {has}") from None


def unchecked(view: memoryview, what: str) -> memoryview:
    """Bytes without the CRC-32C that they end with.

    Raises
    ------
    SourceCorruptError
        It is not theirs.
    """
    body, told = view[:-4], bytes(view[-4:])
    if len(told) < 4 or google_crc32c.value(bytes(body)).to_bytes(4, "little") != told:
        raise SourceCorruptError(f"{what} does not have the checksum that it tells")
    return body


def read_cube(source: Source) -> Cube:
    """Read the consolidated metadata of a cube: one request.

    What can't be understood is read once more, since it may have broken on the way.

    Raises
    ------
    SourceMissingError
        There is no cube at this place.
    SourceCorruptError
        The metadata can't be understood, or declares impossible sizes.
    """
    for again in (True, False):
        blob = read_metadata(source)
        assert blob is not None  # it is, where no ETag is given
        try:
            return replace(parse_cube(source.url, bytes(blob.data), blob.etag), date=blob.date)
        except SourceCorruptError:
            if not again:
                raise
    raise AssertionError("unreachable")


def read_metadata(source: Source, etag: str | None = None) -> Blob | None:
    """The consolidated metadata of a cube as it lies there; None where it still has this ETag.

    One request where the generation is the one that the cube's address lets expect, else two.

    Raises
    ------
    SourceMissingError
        There is no cube at this place.
    """
    names = [".zmetadata", "zarr.json"]
    if _LATER in source.url:
        names.reverse()
    try:
        return source.get_changed(names[0], etag, largest=_LARGEST_METADATA)
    except SourceMissingError:
        try:
            return source.get_changed(names[1], etag, largest=_LARGEST_METADATA)
        except SourceMissingError:
            raise SourceMissingError(
                f"{source.url} does not exist, or has no consolidated metadata"
            ) from None


def parse_cube(url: str, metadata: bytes, etag: str | None) -> Cube:
    """The layout that consolidated metadata tells, of either generation.

    Raises
    ------
    SourceCorruptError
        The metadata can't be understood, or declares impossible sizes.
    """
    try:
        document = json.loads(metadata)
        zarr_format = document.get("zarr_format", 2)
        if zarr_format == 3:
            contents = document["consolidated_metadata"]["metadata"]
            arrays = {
                name: _array_v3(name, meta)
                for name, meta in contents.items()
                if meta["node_type"] == "array"
            }
            attributes = document.get("attributes", {})
        else:
            contents = document["metadata"]
            arrays = {
                key.removesuffix("/.zarray"): _array(key.removesuffix("/.zarray"), contents)
                for key in contents
                if key.endswith("/.zarray")
            }
            attributes = contents.get(".zattrs", {})
        cube = Cube(url, etag, arrays, attributes, zarr_format, bytes(metadata))
        _check(cube)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise SourceCorruptError(
            f"{url} has no metadata of a Zarr v2 or v3 cube: {error!r}"
        ) from error
    return cube


def _array(name: str, metadata: Mapping[str, Any]) -> Array:
    meta = metadata[f"{name}/.zarray"]
    attributes = dict(metadata.get(f"{name}/.zattrs", {}))
    if meta["zarr_format"] != 2 or meta.get("filters") or meta.get("order", "C") != "C":
        raise ValueError(f"{name}: only Zarr v2 in C order without filters is understood")
    compressor = meta["compressor"]
    if compressor is not None and compressor["id"] not in _CODECS:
        raise ValueError(f"{name}: the compressor {compressor['id']!r} is not understood")
    array = Array(
        name=name,
        dims=tuple(attributes.pop("_ARRAY_DIMENSIONS", ())),
        shape=tuple(int(n) for n in meta["shape"]),
        chunks=tuple(int(n) for n in meta["chunks"]),
        dtype=_dtype(meta["dtype"]),
        fill_value=meta["fill_value"],
        compressor=compressor,
        separator=meta.get("dimension_separator", "."),
        attributes=attributes,
    )
    _check_array(array)
    return array


def _array_v3(name: str, meta: Mapping[str, Any]) -> Array:
    """An array of a Zarr v3 group.

    Of the codecs, those are understood that xarray and zarr-python write by themselves.
    """
    shape = tuple(int(n) for n in meta["shape"])
    if meta["chunk_grid"]["name"] != "regular":
        raise ValueError(f"{name}: only regular chunks are understood")
    chunks = tuple(int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"])
    codecs, shards = meta["codecs"], None
    if codecs[0]["name"] == "sharding_indexed":
        if len(codecs) > 1:
            raise ValueError(f"{name}: codecs around shards are not understood")
        outer = codecs[0]["configuration"]
        index = [codec["name"] for codec in outer["index_codecs"]]
        if index[0] != "bytes" or index[1:] not in ([], ["crc32c"]):
            raise ValueError(f"{name}: a shard's index in {index} is not understood")
        shards = Shards(chunks, outer.get("index_location", "end") == "end", len(index) == 2)
        chunks = tuple(int(n) for n in outer["chunk_shape"])
        codecs = outer["codecs"]
        if any(n < 1 for n in chunks) or any(
            s % c for s, c in zip(shards.shape, chunks, strict=True)
        ):
            raise ValueError(f"{name}: shards of {shards.shape} don't hold chunks of {chunks}")
    dtype = _dtype_v3(meta["data_type"])
    serializer, *rest = codecs
    if serializer["name"] != ("vlen-utf8" if dtype.kind == "O" else "bytes"):
        raise ValueError(f"{name}: the codec {serializer['name']} is not understood")
    if serializer.get("configuration", {}).get("endian") == "big":
        dtype = dtype.newbyteorder(">")
    checked = bool(rest) and rest[-1]["name"] == "crc32c"
    packed = [_compressor_v3(codec) for codec in (rest[:-1] if checked else rest)]
    if len(packed) > 1:
        raise ValueError(f"{name}: more than one compressor is not understood")
    encoding = meta["chunk_key_encoding"]
    default = encoding["name"] == "default"
    attributes = dict(meta.get("attributes", {}))
    if isinstance(attributes.get("_FillValue"), str) and dtype.kind == "f":
        # xarray writes it as the base64 of a double
        (attributes["_FillValue"],) = struct.unpack(
            "<d", base64.b64decode(attributes["_FillValue"])
        )
    array = Array(
        name=name,
        dims=tuple(meta.get("dimension_names") or ()),
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=meta["fill_value"],
        compressor=packed[0] if packed else None,
        separator=encoding.get("configuration", {}).get("separator", "/" if default else "."),
        attributes=attributes,
        prefix="c" if default else "",
        shards=shards,
        checked=checked,
    )
    _check_array(array)
    return array


def _dtype_v3(told: Any) -> np.dtype[Any]:
    name, about = (told, {}) if isinstance(told, str) else (told["name"], told["configuration"])
    if name == "string":
        return np.dtype(object)
    if name == "fixed_length_utf32":
        return np.dtype(f"<U{int(about['length_bytes']) // 4}")
    if name == "numpy.datetime64":
        return np.dtype(f"<M8[{int(about['scale_factor'])}{about['unit']}]")
    dtype = np.dtype(name)
    if dtype.kind not in "biuf":
        raise ValueError(f"the data type {name} is not understood")
    return dtype.newbyteorder("<")


def _compressor_v3(codec: Mapping[str, Any]) -> dict[str, Any]:
    """The codec as numcodecs takes it, for decoding."""
    if codec["name"] not in ("blosc", "gzip", "zstd"):
        raise ValueError(f"the codec {codec['name']} is not understood")
    return {"id": codec["name"]}


def _check_array(array: Array) -> None:
    name = array.name
    if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
        raise ValueError(f"{name!r} is no name of an array")
    if array.compressor is not None:
        get_codec(dict(array.compressor))  # its parameters may be nonsense as well
    if array.separator not in (".", "/"):
        raise ValueError(f"{name}: {array.separator!r} separates no chunk keys")
    if not all(isinstance(dim, str) for dim in array.dims):
        raise ValueError(f"{name}: {array.dims} are no names of dimensions")
    if not len(array.dims) == len(array.shape) == len(array.chunks):
        raise ValueError(f"{name}: dimensions, shape and chunks disagree")
    if any(n < 1 for n in array.chunks) or any(n < 0 for n in array.shape):
        raise ValueError(f"{name}: impossible shape {array.shape} or chunks {array.chunks}")
    if prod(array.chunks) * array.dtype.itemsize > _LARGEST_CHUNK:
        raise ValueError(f"{name}: a chunk of {array.chunks} is beyond {_LARGEST_CHUNK} bytes")
    if prod(array.chunk_counts) > _MOST_CHUNKS:
        raise ValueError(f"{name}: {array.shape} in chunks of {array.chunks} is beyond belief")
    if len(array.dims) < 3 and prod(array.shape) * array.dtype.itemsize > _LARGEST_ARRAY:
        raise ValueError(f"{name}: {array.shape} is beyond {_LARGEST_ARRAY} bytes")


def _dtype(name: object) -> np.dtype[Any]:
    dtype = np.dtype(name) if isinstance(name, str) else None
    if dtype is None or dtype.kind not in "biufSUmM" or not dtype.itemsize:
        raise ValueError(f"the type {name!r} is not understood")
    return dtype


def _check(cube: Cube) -> None:
    """Every array must agree with the coordinates on the length of its dimensions."""
    sizes = {name: cube.arrays[name].shape[0] for name in (cube.time, "y", "x")}
    for name, size in sizes.items():
        if size > _LONGEST:
            raise ValueError(f"{name} is {size} long, which is beyond belief")
    for array in cube.arrays.values():
        for dim, size in zip(array.dims, array.shape, strict=True):
            if size != sizes.get(dim, size):
                raise ValueError(f"{array.name}: {dim} is {size} long, its coordinate {sizes[dim]}")
