"""Small arrays of a cube, read whole: coordinates, and what a cube keeps for each image pair.

The velocity chunks are ``firnline.cache.fetch``'s, which reads them one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any

import numpy as np

from firnline.chunks import ChunkReader
from firnline.cube import Array
from firnline.errors import SourceCorruptError

if TYPE_CHECKING:
    from typing_extensions import Buffer

Raw = np.ndarray[Any, np.dtype[Any]]

_PIECE = 1 << 20  # bytes that are decoded at a time of what is reduced


def read_array(
    reader: ChunkReader,
    array: Array,
    executor: Executor,
    reduce: Callable[[Raw], Raw] | None = None,
    *,
    needed: bool = False,
) -> Callable[[], Raw]:
    """Start to read a whole 0-D, 1-D or 2-D array; the returned function waits for it.

    A chunk that the source does not have is the array's missing value, or an error where the
    array is `needed`. `reduce` makes 1-D chunks smaller piece by piece as they are decoded, since a
    cube's granule URLs take 4 kB a pair.
    """

    def chunk(index: tuple[int, ...]) -> Raw:
        shape = tuple(
            min(size, array.shape[d] - index[d] * size) for d, size in enumerate(array.chunks)
        )
        data = reader.get(array, index)
        if data is None:
            if needed:
                raise SourceCorruptError(
                    f"{reader.source.url} has metadata, but no {array.key(index)}"
                )
            missing = array.missing
            return np.full(shape, str(missing) if array.dtype.kind == "O" else missing)
        part = tuple(slice(n) for n in shape)
        if reduce is None or array.dtype.kind == "O":
            values = reader.decode(array, index, data)[part]
            values = values.astype("U") if array.dtype.kind == "O" else values.copy()
            return values if reduce is None else reduce(values)

        def decode(encoded: Buffer) -> Raw:
            pieces = array.pieces(encoded, max(1, _PIECE // array.dtype.itemsize))
            return np.concatenate([reduce(piece) for piece in pieces])

        return reader.decode(array, index, data, by=decode)[part]

    futures: dict[tuple[int, ...], Future[Raw]] = {
        index: executor.submit(chunk, index) for index in np.ndindex(*array.chunk_counts)
    }

    def result() -> Raw:
        parts = {index: future.result() for index, future in futures.items()}
        if len(parts) == 1:
            return parts[next(iter(parts))]
        if len(array.dims) == 1:
            return np.concatenate([parts[index] for index in sorted(parts)])
        whole = np.empty(array.shape, array.dtype)
        for index, part in parts.items():
            corner = [i * n for i, n in zip(index, array.chunks, strict=True)]
            whole[tuple(slice(c, c + n) for c, n in zip(corner, part.shape, strict=True))] = part
        return whole

    return result


def basenames(urls: Raw) -> Raw:
    """Last part of each URL as UTF-8 bytes, in as narrow a type as fits them."""
    return np.array([url.rsplit("/", 1)[-1].encode() for url in urls.tolist()], "S")


def instants(values: Raw, array: Array) -> Raw:
    """`datetime64[us]` of a CF time axis in days, seconds or smaller units since an epoch.

    Microseconds are what the axis carries: ITS_LIVE sets the YYMMDD of the first image as the
    microseconds of each mid-date; as float64 days they come with noise below that.
    """
    if values.dtype.kind == "M":
        return values.astype("M8[us]")
    unit, _, epoch = str(array.attributes.get("units", "")).partition(" since ")
    per_unit = {
        "days": 86_400_000_000,
        "seconds": 1_000_000,
        "milliseconds": 1_000,
        "microseconds": 1,
        "nanoseconds": 1e-3,
    }
    try:
        start = np.datetime64(epoch.strip().removesuffix("Z"), "us")
        scale = per_unit[unit.strip()]
    except (KeyError, ValueError):
        raise SourceCorruptError(
            f"{array.name} has units {array.attributes.get('units')!r}; "
            f"understood: {', '.join(per_unit)} since a date"
        ) from None
    if values.dtype.kind in "iu":
        # whole numbers stay so: as float64, nanoseconds of today are 256 apart
        exact = values.astype("i8")
        steps = (exact + 500) // 1000 if scale < 1 else exact * int(scale)
        return start + steps.astype("m8[us]")
    known = np.isfinite(values)
    values = np.where(known, values, 0)
    whole = np.floor(values)
    # days and their fraction apart, so that neither loses its last digits
    microseconds = whole.astype("i8") * scale + np.rint((values - whole) * scale)
    instants = start + microseconds.astype("i8").astype("m8[us]")
    instants[~known] = np.datetime64("NaT")
    return instants
