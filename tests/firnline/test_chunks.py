"""Arrays of both Zarr versions, read by our hands and by zarr-python's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from firnline.arrays import instants, read_array
from firnline.chunks import ChunkReader
from firnline.cube import Array, Cube, parse_cube, read_cube, read_metadata
from firnline.errors import SourceCorruptError, SourceMissingError, SourceUnreachableError
from firnline.indexer.mirror import Fault, MirrorServer
from firnline.source import Source

pytestmark = pytest.mark.filterwarnings("ignore:.*Zarr V3 spec", "ignore:Consolidated metadata")
SHAPE, CHUNKS, SHARDS = (25, 37, 19), (10, 4, 3), (20, 8, 9)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    with MirrorServer(tmp_path) as server:
        yield server


def group(root: Path, shape: tuple[int, ...] = SHAPE, dims: tuple[str, ...] = ()) -> zarr.Group:
    """A group with the axes that a cube has to have."""
    made = zarr.create_group(root, zarr_format=3)
    for name, size in zip(("time", "y", "x"), shape, strict=True):
        made.create_array(
            name, data=np.arange(size, dtype="i8"), dimension_names=[name], compressors=None
        )
    return made


def opened(server: MirrorServer, path: str = "timeseries/a.zarr") -> tuple[Source, Cube]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if (server.root / path / "zarr.json").exists():
            zarr.consolidate_metadata(server.root / path)
    source = Source(f"{server.url}/{path}", allowed=(f"{server.url}/",))
    return source, read_cube(source)


def whole(source: Source, array: Array) -> np.ndarray[Any, Any]:
    with ThreadPoolExecutor(4) as pool:
        return read_array(source, array, pool)()


CODECS: dict[str, dict[str, Any]] = {
    "blosc": {"compressors": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")},
    "zstd": {"compressors": ZstdCodec(level=1)},
    "gzip": {"compressors": GzipCodec(level=1)},
    "none": {"compressors": None},
    "zstd, checked": {"compressors": [ZstdCodec(level=1), Crc32cCodec()]},
    "big endian": {"serializer": BytesCodec(endian="big")},
    "dots": {"chunk_key_encoding": {"name": "v2", "separator": "."}},
}


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("shards", [None, SHARDS])
@pytest.mark.parametrize("dtype", ["i2", "u1", "f4"])
def test_values_are_those_that_zarr_wrote(
    server: MirrorServer, codecs: str, shards: Any, dtype: str
) -> None:
    root = server.root / "timeseries" / "a.zarr"
    values = np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)
    values[:20, :8, :9] = 0  # a shard that isn't there
    values[:, 12:16, 9:12] = 0  # a chunk that isn't in its shard
    array = group(root).create_array(
        "v", shape=SHAPE, dtype=dtype, chunks=CHUNKS, shards=shards, fill_value=0,
        dimension_names=["time", "y", "x"], **CODECS[codecs],
    )  # fmt: skip
    array[...] = values
    source, cube = opened(server)
    assert cube.zarr_format == 3
    assert (cube.time, cube.pairs) == ("time", SHAPE[0])
    found = cube.variable("v")
    assert found.chunks == CHUNKS
    np.testing.assert_array_equal(whole(source, found), values)
    keys = [found.key(index) for index in np.ndindex(*found.chunk_counts)]
    assert len(set(keys)) == len(keys)
    assert {key.split("/")[0] for key in keys} == {"v"}


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index", [[BytesCodec(), Crc32cCodec()], [BytesCodec()]])
def test_an_index_may_stand_at_either_end(server: MirrorServer, location: Any, index: Any) -> None:
    root = server.root / "timeseries" / "a.zarr"
    values = np.random.default_rng(1).integers(-9, 9, SHAPE).astype("i2")
    codec = ShardingCodec(
        chunk_shape=CHUNKS, codecs=[BytesCodec(), ZstdCodec()], index_codecs=index,
        index_location=location,
    )  # fmt: skip
    array = group(root).create_array(
        "v", shape=SHAPE, dtype="i2", chunks=SHARDS, serializer=codec, compressors=None,
        dimension_names=["time", "y", "x"], fill_value=0,
    )  # fmt: skip
    array[...] = values
    source, cube = opened(server)
    np.testing.assert_array_equal(whole(source, cube.variable("v")), values)


@pytest.mark.parametrize("dtype", [str, "<U5"])
def test_texts_of_either_kind(server: MirrorServer, dtype: Any) -> None:
    root = server.root / "timeseries" / "a.zarr"
    words = np.array([f"s{n}é" for n in range(SHAPE[0])])
    array = group(root).create_array(
        "name", shape=SHAPE[:1], dtype=dtype, chunks=(7,), dimension_names=["time"], fill_value=""
    )
    array[...] = words
    source, cube = opened(server)
    got = whole(source, cube.variable("name"))
    assert got.dtype.kind == "U"
    assert got.tolist() == words.tolist()


def test_a_shard_index_is_read_once_and_a_chunk_by_its_range(server: MirrorServer) -> None:
    root = server.root / "timeseries" / "a.zarr"
    values = np.ones(SHAPE, "i2")
    values[:10, :4, 3:6] = 0
    array = group(root).create_array(
        "v", shape=SHAPE, dtype="i2", chunks=CHUNKS, shards=SHARDS, fill_value=0,
        dimension_names=["time", "y", "x"],
    )  # fmt: skip
    array[...] = values
    source, cube = opened(server)
    sizes: list[int] = []
    reader, found = ChunkReader(source, sizes.append), cube.variable("v")
    server.clear()
    indices = [(t, i, j) for t in range(2) for i in range(2) for j in range(3)]  # one shard
    with ThreadPoolExecutor(12) as pool:
        chunks = list(pool.map(lambda index: reader.get(found, index), indices))
    assert [index for index, data in zip(indices, chunks, strict=True) if data is None] == [
        (0, 0, 1)
    ]
    assert {(r.path, r.status) for r in server.requests} == {("/timeseries/a.zarr/v/c/0/0/0", 206)}
    assert len(server.requests) == len(sizes) == 1 + 11
    assert sorted(sizes)[-1] == 16 * 12 + 4
    # a shard that isn't there is asked for once, too
    server.clear()
    (root / "v" / "c" / "1" / "0" / "0").unlink()
    assert [reader.get(found, (2, 0, j)) for j in range(3)] == [None] * 3
    assert [r.status for r in server.requests] == [404]


def sharded(server: MirrorServer) -> tuple[Path, Source, Array]:
    root = server.root / "timeseries" / "a.zarr"
    array = group(root).create_array(
        "v", shape=SHAPE, dtype="i2", chunks=CHUNKS, shards=SHARDS, fill_value=0,
        dimension_names=["time", "y", "x"],
    )  # fmt: skip
    array[...] = np.arange(np.prod(SHAPE)).reshape(SHAPE).astype("i2")
    source, cube = opened(server)
    return root, source, cube.variable("v")


def test_a_damaged_index_is_read_again_and_then_told(server: MirrorServer) -> None:
    _, source, array = sharded(server)
    server.faults = lambda method, path, attempt: (
        Fault("corrupt") if "/v/" in path and attempt == 0 else None
    )
    assert ChunkReader(source).get(array, (0, 0, 0)) is not None
    server.faults = lambda method, path, attempt: Fault("corrupt") if "/v/" in path else None
    with pytest.raises(SourceCorruptError, match="index does not have the checksum"):
        ChunkReader(source).get(array, (0, 0, 0))
    server.faults = None


def test_an_outage_is_not_remembered_as_an_absent_shard(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.source._RETRIES", 0)
    _, source, array = sharded(server)
    reader = ChunkReader(Source(source.url, allowed=(f"{server.url}/",)))
    server.faults = lambda *_: Fault("status", status=500)
    with pytest.raises(SourceUnreachableError):
        reader.get(array, (0, 0, 0))
    server.faults = None
    assert reader.get(array, (0, 0, 0)) is not None


def test_a_shard_that_is_written_again_is_looked_up_again(server: MirrorServer) -> None:
    root, source, array = sharded(server)
    reader = ChunkReader(source)
    first = reader.get(array, (0, 0, 0))
    assert first is not None
    values = zarr.open_group(root, mode="r+")["v"]
    values[:20, :8, :9] = np.random.default_rng(3).integers(0, 999, (20, 8, 9))  # type: ignore[index]
    again = reader.get(array, (0, 0, 0))
    assert again is not None
    np.testing.assert_array_equal(array.decode(again), values[:10, :4, :3])  # type: ignore[index]


def test_fill_values_as_xarray_writes_them(server: MirrorServer) -> None:
    import xarray as xr

    root = server.root / "timeseries" / "a.zarr"
    ds = xr.Dataset(
        {"a": ("time", np.array([1.0, np.nan, 3.0], "f4")), "b": ("time", np.zeros(3, "i2"))},
        coords={"time": np.arange(3), "y": np.arange(3), "x": np.arange(3)},
    )
    encoding = {"a": {"_FillValue": -32767.0}, "b": {"_FillValue": -32767}}
    ds.to_zarr(root, zarr_format=3, encoding=encoding, consolidated=False)
    _, cube = opened(server)
    assert cube.variable("a").missing == np.float32(-32767)
    assert cube.variable("b").missing == -32767


def test_nanoseconds_are_told_to_the_microsecond() -> None:
    exact = np.datetime64("2020-03-05T12:34:56.200305", "us")
    nanoseconds = np.array([exact.astype("i8") * 1000, exact.astype("i8") * 1000 + 400])
    array = Array("time", ("time",), (2,), (2,), np.dtype("i8"), 0, None,
                  attributes={"units": "nanoseconds since 1970-01-01"})  # fmt: skip
    np.testing.assert_array_equal(instants(nanoseconds, array), [exact, exact])
    assert instants(nanoseconds.astype("M8[ns]"), array)[0] == exact


def test_metadata_is_found_in_one_request_where_the_address_tells(server: MirrorServer) -> None:
    sharded(server)
    source = Source(f"{server.url}/timeseries/a.zarr", allowed=(f"{server.url}/",))
    server.clear()
    blob = read_metadata(source)
    assert blob is not None
    assert read_metadata(source, blob.etag) is None
    assert [r.status for r in server.requests] == [200, 304]
    (server.root / "elsewhere").mkdir()
    (server.root / "timeseries" / "a.zarr").rename(server.root / "elsewhere" / "a.zarr")
    source = Source(f"{server.url}/elsewhere/a.zarr", allowed=(f"{server.url}/",))
    server.clear()
    assert read_cube(source).zarr_format == 3
    assert [r.status for r in server.requests] == [404, 200]
    nothing = Source(f"{server.url}/nothing.zarr", allowed=(f"{server.url}/",))
    with pytest.raises(SourceMissingError, match="no consolidated metadata"):
        read_cube(nothing)


def damaged(change: Any) -> bytes:
    """Metadata of a small sharded cube, changed."""
    axis = {
        "node_type": "array", "data_type": "int64", "fill_value": 0, "attributes": {},
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
        "chunk_key_encoding": {"name": "default"}, "shape": [4],
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }  # fmt: skip
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {"chunk_shape": [4, 2, 2], "codecs": axis["codecs"], "index_codecs": index}
    v = {
        **axis, "shape": [4, 4, 4], "data_type": "int16", "dimension_names": ["time", "y", "x"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 4, 4]}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }  # fmt: skip
    arrays = {name: {**axis, "dimension_names": [name]} for name in ("time", "y", "x")} | {"v": v}
    document = {"zarr_format": 3, "consolidated_metadata": {"metadata": arrays}, "attributes": {}}
    document = json.loads(json.dumps(document))
    change(document, document["consolidated_metadata"]["metadata"]["v"])
    return json.dumps(document).encode()


def test_the_undamaged_metadata_is_good() -> None:
    cube = parse_cube("https://x", damaged(lambda *_: None), None)
    assert cube.variable("v").key((0, 1, 0)) == "v/c/0/0/0#2"


@pytest.mark.parametrize(
    "change",
    [
        lambda d, v: d.pop("consolidated_metadata"),
        lambda d, v: d.update(consolidated_metadata=None),
        lambda d, v: v.update(shape=[4, 4, 5]),
        lambda d, v: v.update(data_type="complex128"),
        lambda d, v: v.update(data_type={"name": "nothing", "configuration": {}}),
        lambda d, v: v.update(chunk_grid={"name": "rectilinear", "configuration": {}}),
        lambda d, v: v["codecs"].append({"name": "gzip", "configuration": {}}),
        lambda d, v: v["codecs"][0]["configuration"].update(chunk_shape=[3, 2, 2]),
        lambda d, v: v["codecs"][0]["configuration"].update(chunk_shape=[0, 2, 2]),
        lambda d, v: v["codecs"][0]["configuration"].update(codecs=[{"name": "transpose"}]),
        lambda d, v: v["codecs"][0]["configuration"].update(
            codecs=[{"name": "bytes"}, {"name": "lz77"}]
        ),
        lambda d, v: v["codecs"][0]["configuration"].update(index_codecs=[{"name": "bytes"}] * 2),
        lambda d, v: v.update(dimension_names=["time", "y"]),
    ],
)
def test_metadata_that_is_not_understood_is_refused(change: Any) -> None:
    with pytest.raises(SourceCorruptError, match="https://x"):
        parse_cube("https://x", damaged(change), None)
