"""Shards and chunks written here, read back by zarr-python."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec

from firnline.cache import shards
from firnline.cache.places import writer

FILL = np.int16(-32767)


@pytest.fixture(scope="module")
def processors() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


@settings(max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30)),
    chunk=st.tuples(st.integers(1, 9), st.integers(1, 7), st.integers(1, 7)),
    per_shard=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)) | st.none(),
    missing=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_zarr_reads_what_was_written(
    shape: tuple[int, int, int],
    chunk: tuple[int, int, int],
    per_shard: tuple[int, int, int] | None,
    missing: float,
    seed: int,
) -> None:
    """Any shape, written tile by tile along y and x, comes back bit for bit."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-500, 500, shape).astype("i2")
    values[rng.random(shape) < missing] = FILL
    shard = (
        None if per_shard is None else tuple(c * n for c, n in zip(chunk, per_shard, strict=True))
    )
    with TemporaryDirectory() as name, ThreadPoolExecutor(2) as processors:
        path = Path(name) / "a.zarr"
        zarr.create_array(
            path, name="vx", shape=shape, dtype="i2", chunks=chunk, shards=shard, fill_value=FILL,
            zarr_format=2 if shard is None else 3,
            compressors=(
                numcodecs.Blosc("zstd", 1, 1)
                if shard is None
                else BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
            ),
        )  # fmt: skip
        _, high, wide = shard or chunk
        for y in range(0, shape[1], high):
            for x in range(0, shape[2], wide):
                part = values[:, y : y + high, x : x + wide]
                shards.write(
                    writer(path / "vx").put, part, corner=(0, y, x), chunk=chunk, shard=shard,
                    fill_value=FILL, processors=processors,
                )  # fmt: skip
        got = zarr.open_array(path, path="vx", mode="r")
        np.testing.assert_array_equal(got[...], values)


def test_missing_chunks_take_no_room(tmp_path: Path, processors: ThreadPoolExecutor) -> None:
    """A chunk without a value is left out of its shard, the shard is written all the same."""
    values = np.full((8, 4, 4), FILL)
    shards.write(
        writer(tmp_path).put, values, corner=(0, 0, 0), chunk=(4, 2, 2), shard=(8, 4, 4),
        fill_value=FILL, processors=processors,
    )  # fmt: skip
    # an index of 8 chunks of two 8-byte numbers, and its checksum
    assert (tmp_path / "c/0/0/0").stat().st_size == 8 * 16 + 4


def test_a_damaged_index_is_noticed(tmp_path: Path, processors: ThreadPoolExecutor) -> None:
    path = tmp_path / "a.zarr"
    array = zarr.create_array(
        path, name="vx", shape=(4, 2, 2), dtype="i2", chunks=(2, 2, 2), shards=(4, 2, 2),
        compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), fill_value=FILL,
    )  # fmt: skip
    shards.write(
        writer(path / "vx").put, np.ones((4, 2, 2), "i2"), corner=(0, 0, 0), chunk=(2, 2, 2),
        shard=(4, 2, 2), fill_value=FILL, processors=processors,
    )  # fmt: skip
    file = path / "vx/c/0/0/0"
    raw = bytearray(file.read_bytes())
    raw[-10] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match=r"(?i)checksum"):
        array[...]
