"""What is packed small and says, or turns out, to be large: refused before it is there."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline import cube as cube_module
from firnline.cube import Array, read_cube
from firnline.errors import SourceCorruptError
from firnline.indexer.mirror import MirrorServer
from firnline.source import Source
from firnline.unpacking import unpacked

HUGE = 1 << 26
BOUND = 4 << 20


@contextmanager
def little() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < BOUND
    finally:
        tracemalloc.stop()


def streamed(data: bytes) -> bytes:
    """A frame that does not say its size."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(data) + packer.flush()


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "blosc": ("blosc", lambda: bytes(numcodecs.Blosc("zstd").encode(bytes(HUGE)))),
    "gzip": ("gzip", lambda: gzip.compress(bytes(HUGE))),
    "gzip of members": ("gzip", lambda: gzip.compress(bytes(HUGE // 64)) * 64),
    "zlib": ("zlib", lambda: zlib.compress(bytes(HUGE))),
    "zstd": ("zstd", lambda: zstandard.compress(bytes(HUGE))),
    "zstd that does not say": ("zstd", lambda: streamed(bytes(HUGE))),
    "lz4": ("lz4", lambda: bytes(numcodecs.LZ4().encode(bytes(HUGE)))),
    "lz4 that says less than none": ("lz4", lambda: b"\xff\xff\xff\xff" + bytes(40)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(name: str) -> None:
    codec, made = BOMBS[name]
    bomb = made()
    layout = Array("vx", ("t",), (600,), (600,), np.dtype("<i2"), None, {"id": codec})
    with little(), pytest.raises(SourceCorruptError, match="vx"):
        layout.decode(bomb)
    with little(), pytest.raises(Exception):  # noqa: B017, PT011  of the codec or ours
        unpacked(codec, memoryview(bomb), 1200)


@pytest.mark.parametrize("codec", [None, "gzip", "zstd", "blosc"])
def test_texts_that_say_they_are_many(codec: str | None) -> None:
    """Room for as many is made by who decodes them: 32 GB."""
    told = (2**32 - 1).to_bytes(4, "little") + bytes(200)
    packed = told if codec is None else bytes(numcodecs.get_codec({"id": codec}).encode(told))
    compressor = None if codec is None else {"id": codec}
    layout = Array("granule_url", ("t",), (6,), (6,), np.dtype(object), None, compressor)
    with little(), pytest.raises(SourceCorruptError, match="does not hold 6 texts"):
        layout.decode(packed)
    texts = np.array(["a", "", "bc", "ü", "5", "6"], object)
    good = numcodecs.VLenUTF8().encode(texts)
    packed = good if codec is None else bytes(numcodecs.get_codec({"id": codec}).encode(good))
    assert layout.decode(packed).tolist() == texts.tolist()


@settings(max_examples=300)
@given(
    codec=st.sampled_from(["blosc", "gzip", "lz4", "zlib", "zstd"]),
    data=st.binary(min_size=1, max_size=3000),
    room=st.integers(-3, 3),
)
def test_what_fits_is_what_was_packed(codec: str, data: bytes, room: int) -> None:
    packed = memoryview(bytes(numcodecs.get_codec({"id": codec}).encode(data)))
    if room >= 0:
        assert unpacked(codec, packed, len(data) + room) == data
    elif len(data) + room >= 0:
        with pytest.raises((ValueError, zstandard.ZstdError)):
            unpacked(codec, packed, len(data) + room)


def cube(folder: Path, pairs: int, **of_time: Any) -> dict[str, Any]:
    """Metadata of a cube whose arrays agree with each other, whatever they say."""

    def zarray(shape: list[int], chunks: list[int], dtype: str = "<f8") -> dict[str, Any]:
        return {
            "zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": dtype, "order": "C",
            "fill_value": None, "filters": None, "compressor": None,
        }  # fmt: skip

    length = of_time.get("chunk", pairs)
    arrays = {
        "mid_date": (zarray([pairs], [length]), ["mid_date"]),
        "granule_url": (zarray([pairs], [length], of_time.get("text", "<U64")), ["mid_date"]),
        "x": (zarray([2], [2]), ["x"]),
        "y": (zarray([2], [2]), ["y"]),
        "vx": (zarray([pairs, 2, 2], [length, 2, 2], "<i2"), ["mid_date", "y", "x"]),
    }
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": {}}
    for name, (array, dims) in arrays.items():
        metadata[f"{name}/.zarray"] = array
        metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": dims}
    document = {"zarr_consolidated_format": 1, "metadata": metadata}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".zmetadata").write_text(json.dumps(document))
    return document


@pytest.mark.parametrize(
    ("pairs", "of_time"),
    [
        (10**7 + 1, {}),
        (10**12, {"chunk": 10**8}),
        (10**18, {"chunk": 2**27}),
        (10**7, {"text": "<U1024"}),  # 40 GB of names
    ],
)
def test_more_pairs_than_can_be(tmp_path: Path, pairs: int, of_time: dict[str, Any]) -> None:
    cube(tmp_path / "c", pairs, **of_time)
    with little(), pytest.raises(SourceCorruptError, match="beyond"):
        read_cube(Source(f"file://{tmp_path}/c", allowed=(f"file://{tmp_path}/",)))
    cube(tmp_path / "c", 200_000, text="<U1024")  # more than ITS_LIVE's largest
    assert read_cube(Source(f"file://{tmp_path}/c", allowed=(f"file://{tmp_path}/",))).pairs


def test_objects_larger_than_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends on and on is not heard to the end."""
    cube(tmp_path / "c", 60)
    (tmp_path / "c" / "vx").mkdir()
    (tmp_path / "c" / "vx" / "0.0.0").write_bytes(bytes(1_000_000))
    with MirrorServer(tmp_path) as server:
        source = Source(f"{server.url}/c", allowed=(f"{server.url}/",))
        layout = read_cube(source).variable("vx")
        assert layout.largest < 100_000
        with pytest.raises(SourceCorruptError, match="is larger than"):
            source.get_changed("vx/0.0.0", None, largest=layout.largest)
        assert source.get_range("vx/0.0.0", 10, 20).data == bytes(20)
        monkeypatch.setattr(cube_module, "_LARGEST_METADATA", 100)
        with pytest.raises(SourceCorruptError, match="is larger than"):
            read_cube(source)
