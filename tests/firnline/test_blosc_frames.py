"""Blosc frames taken apart."""

from __future__ import annotations

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline.blosc_frames import parts


@settings(max_examples=300)
@given(
    dtype=st.sampled_from(["u1", "<i2", "<f8", "S160"]),
    count=st.integers(1, 4000),
    codec=st.sampled_from(["zlib", "lz4", "zstd", "blosclz"]),
    shuffle=st.sampled_from([0, 1, 2]),
    block=st.sampled_from([0, 64, 512, 4096]),
    least=st.integers(1, 40_000),
    seed=st.integers(0, 9),
)
def test_parts_are_frames_that_hold_it_in_order(
    dtype: str, count: int, codec: str, shuffle: int, block: int, least: int, seed: int
) -> None:
    """Against numcodecs, which wrote it and decodes each part."""
    size = count * np.dtype(dtype).itemsize
    noise = np.random.default_rng(seed).integers(0, 1 + 60 * (seed % 3), size, "u1")
    values = noise.view(dtype)
    encoded = numcodecs.Blosc(codec, 1, shuffle, block).encode(values)
    pieces = []
    found = list(parts(memoryview(encoded), least))
    for n, (frame, size) in enumerate(found, start=1):
        pieces.append(bytes(numcodecs.Blosc().decode(bytes(frame))))
        assert len(pieces[-1]) == size
        assert size >= least or n == len(found)
    assert b"".join(pieces) == noise.tobytes()


def frame() -> bytearray:
    return bytearray(numcodecs.Blosc("zlib", 1, 1, 512).encode(np.arange(4000)))


@pytest.mark.parametrize("start", [-1, 0, 16, 1 << 30])
def test_blocks_outside_of_a_frame_are_refused(start: int) -> None:
    damaged = frame()
    damaged[24:28] = start.to_bytes(4, "little", signed=True)
    with pytest.raises(ValueError, match="outside"):
        list(parts(memoryview(damaged), 1000))


def test_a_damaged_header_is_refused() -> None:
    for at, value, reason in [(8, 0, "header"), (12, 40, "header"), (4, 1 << 31, "too short")]:
        damaged = frame()
        damaged[at : at + 4] = value.to_bytes(4, "little")
        with pytest.raises(ValueError, match=reason):
            list(parts(memoryview(damaged), 1000))
