"""Arrays of both Zarr versions, read by our hands and by zarr-python's."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, ZstdCodec

from firnline.arrays import instants, read_array
from firnline.cache.counts import Counts
from firnline.chunks import ChunkReader, Kept, Turns
from firnline.cube import Array, Cube, parse_cube, read_cube, read_metadata
from firnline.errors import (
    SourceChangedError,
    SourceCorruptError,
    SourceMissingError,
    SourceUnreachableError,
)
from firnline.indexer.mirror import Fault, MirrorServer
from firnline.shard_index import ShardIndex, runs
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
        return read_array(ChunkReader(source), array, pool)()


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
    counts = Counts()
    reader, found = ChunkReader(source, counter=counts), cube.variable("v")
    server.clear()
    indices = [(t, i, j) for t in range(2) for i in range(2) for j in range(3)]  # one shard
    with ThreadPoolExecutor(12) as pool:
        chunks = list(pool.map(lambda index: reader.get(found, index), indices))
    assert [index for index, data in zip(indices, chunks, strict=True) if data is None] == [
        (0, 0, 1)
    ]
    assert {(r.path, r.status) for r in server.requests} == {("/timeseries/a.zarr/v/c/0/0/0", 206)}
    assert len(server.requests) == counts.requests == 1 + 11
    index = 16 * 12 + 4
    assert counts.bytes == index + sum(len(data) for data in chunks if data is not None)
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
    monkeypatch.setattr("firnline.web._RETRIES", 0)
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
    assert reader.get(array, (0, 0, 1)) is not None
    values: Any = zarr.open_group(root, mode="r+")["v"]
    values[:10, :4, :3] = 7  # takes less room than it did: what follows lies elsewhere
    again = reader.get(array, (0, 0, 1))
    assert again is not None
    np.testing.assert_array_equal(array.decode(again), values[:10, :4, 3:6])


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


class Shelf:
    """A keeper in memory, that tells what it was asked."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}
        self.turns = Turns()

    def read(self, key: str) -> Kept | None:
        return self.kept.get(key)

    def write(self, key: str, kept: Kept) -> None:
        self.kept[key] = Kept(bytes(kept.data), kept.etag, kept.version)

    def alone(self, key: str) -> Any:
        return self.turns.alone(key)


def flat(server: MirrorServer) -> tuple[Path, Source, Cube]:
    """A cube of chunks that are objects, one of them absent."""
    root = server.root / "timeseries" / "a.zarr"
    values = np.random.default_rng(5).integers(1, 99, SHAPE).astype("i2")
    values[:10, :4, :3] = 0
    array = group(root).create_array(
        "v", shape=SHAPE, dtype="i2", chunks=CHUNKS, fill_value=0,
        dimension_names=["time", "y", "x"],
    )  # fmt: skip
    array[...] = values
    source, cube = opened(server)
    return root, source, cube


def asked(server: MirrorServer) -> list[tuple[str, int]]:
    """What was asked for below the array, and how it was answered, since the last time."""
    found = [(r.path.partition("/v/")[2], r.status) for r in server.requests if "/v/" in r.path]
    server.clear()
    return found


class TestKeeping:
    def test_what_is_kept_is_not_asked_for_while_the_cube_is_the_same(
        self, server: MirrorServer
    ) -> None:
        _, source, cube = flat(server)
        shelf, counts, array = Shelf(), Counts(), cube.variable("v")
        first = ChunkReader(source, version=cube.etag, keeper=shelf)
        server.clear()
        data = [first.get(array, (0, 1, n)) for n in range(3)]
        assert len(asked(server)) == 3
        later = ChunkReader(source, version=cube.etag, keeper=shelf, counter=counts)
        assert [later.get(array, (0, 1, n)) for n in range(4)] == [
            *data,
            later.get(array, (0, 1, 3)),
        ]
        assert asked(server) == [("c/0/1/3", 200)]
        assert (counts.requests, counts.reused) == (1, 4)

    def test_a_cube_that_changed_is_asked_for_each_chunk_and_gives_what_changed(
        self, server: MirrorServer
    ) -> None:
        root, source, cube = flat(server)
        shelf, array = Shelf(), cube.variable("v")
        first = ChunkReader(source, version=cube.etag, keeper=shelf)
        kept = [first.get(array, (0, 1, n)) for n in range(3)]
        (root / "v" / "c" / "0" / "1" / "1").write_bytes(b"another")
        server.clear()
        later = ChunkReader(source, version='"later"', keeper=shelf)
        assert later.get(array, (0, 1, 0)) == kept[0]
        assert later.get(array, (0, 1, 1)) == b"another"
        assert asked(server) == [("c/0/1/0", 304), ("c/0/1/1", 200)]
        # and what was confirmed is not asked for again
        later.get(array, (0, 1, 0))
        later.get(array, (0, 1, 1))
        assert asked(server) == []

    def test_without_a_version_each_chunk_is_asked_for(self, server: MirrorServer) -> None:
        _, source, cube = flat(server)
        shelf, array = Shelf(), cube.variable("v")
        server.clear()
        for _ in range(2):
            assert ChunkReader(source, keeper=shelf).get(array, (0, 1, 0)) is not None
        assert asked(server) == [("c/0/1/0", 200), ("c/0/1/0", 304)]

    def test_what_is_absent_is_asked_for_each_time(self, server: MirrorServer) -> None:
        """A 404 by mistake must not outlive the mistake."""
        root, source, cube = flat(server)
        shelf, array = Shelf(), cube.variable("v")
        server.clear()
        for _ in range(2):
            reader = ChunkReader(source, version=cube.etag, keeper=shelf)
            assert reader.get(array, (0, 0, 0)) is None
            assert reader.uncertain
            reader.confirm()
            assert not reader.uncertain
        assert asked(server) == [("c/0/0/0", 404)] * 2
        (root / "v" / "c" / "0" / "0").mkdir(parents=True, exist_ok=True)
        (root / "v" / "c" / "0" / "0" / "0").write_bytes(b"there")
        assert reader.get(array, (0, 0, 0)) == b"there"

    def test_again_is_from_the_source(self, server: MirrorServer) -> None:
        _, source, cube = flat(server)
        shelf, array = Shelf(), cube.variable("v")
        reader = ChunkReader(source, version=cube.etag, keeper=shelf)
        whole = reader.get(array, (0, 1, 0))
        assert whole is not None
        (key,) = shelf.kept
        shelf.kept[key] = Kept(bytes(whole)[:-9], shelf.kept[key].etag, cube.etag)
        server.clear()
        data = reader.get(array, (0, 1, 0))
        assert data == bytes(whole)[:-9]
        np.testing.assert_array_equal(reader.decode(array, (0, 1, 0), data), array.decode(whole))
        assert asked(server) == [("c/0/1/0", 200)]
        assert reader.get(array, (0, 1, 0)) == whole, "what was mended is kept"

    def test_a_file_is_not_kept(self, server: MirrorServer) -> None:
        root, _, cube = flat(server)
        shelf = Shelf()
        local = Source(root.as_uri(), allowed=(root.parent.as_uri(),))
        reader = ChunkReader(local, version=cube.etag, keeper=shelf)
        assert reader.get(cube.variable("v"), (0, 1, 0)) is not None
        assert shelf.kept == {}

    def test_one_flight_for_many_who_want_it(self, server: MirrorServer) -> None:
        _, source, cube = flat(server)
        shelf, array = Shelf(), cube.variable("v")
        readers = [ChunkReader(source, version=cube.etag, keeper=shelf) for _ in range(12)]
        server.latency = 0.05
        server.clear()
        with ThreadPoolExecutor(12) as pool:
            data = list(pool.map(lambda reader: reader.get(array, (0, 1, 0)), readers))
        assert set(map(type, data)) == {bytes}
        assert len(set(data)) == 1
        assert asked(server) == [("c/0/1/0", 200)]

    def test_parts_of_shards(self, server: MirrorServer) -> None:
        """The index and the parts are kept apart; a shard that was written again is read anew."""
        root, source, array = sharded(server)
        version = read_cube(source).etag
        shelf = Shelf()

        def reader(version: str | None) -> ChunkReader:
            return ChunkReader(source, version=version, keeper=shelf)

        server.clear()
        first = reader(version).get_together(array, [(0, 0, 0), (0, 0, 1)])
        assert asked(server) == [("c/0/0/0", 206)] * 2  # index, both
        assert reader(version).get_together(array, [(0, 0, 1), (0, 0, 0)]) == first[::-1]
        assert asked(server) == []
        reader(version).get(array, (1, 1, 2))
        assert asked(server) == [("c/0/0/0", 206)]
        # the cube is another, the shard is not
        assert reader('"2"').get_together(array, [(0, 0, 0), (0, 0, 1)]) == first
        assert asked(server) == [("c/0/0/0", 304)]
        # the shard is another, too
        values = zarr.open_group(root, mode="r+")["v"]
        values[:20, :8, :9] = np.random.default_rng(3).integers(0, 999, (20, 8, 9))  # type: ignore[index]
        third = reader('"3"')
        data = third.get(array, (0, 0, 1))
        assert data is not None
        np.testing.assert_array_equal(array.decode(data), values[:10, :4, 3:6])  # type: ignore[index]
        assert asked(server) == [("c/0/0/0", 206)] * 2


class TestConfirming:
    def test_a_cube_that_is_as_it_was(self, server: MirrorServer) -> None:
        _, source, cube = flat(server)
        server.clear()
        ChunkReader(source, version=cube.etag).confirm()
        ChunkReader(source).confirm()
        assert [r.status for r in server.requests] == [304, 200]

    def test_a_cube_that_has_gone(self, server: MirrorServer) -> None:
        root, source, cube = flat(server)
        reader = ChunkReader(source, version=cube.etag)
        root.rename(root.with_name("elsewhere"))
        assert reader.get(cube.variable("v"), (0, 1, 0)) is None
        with pytest.raises(SourceMissingError, match="has gone while it was read"):
            reader.confirm()

    def test_a_cube_that_is_another(self, server: MirrorServer) -> None:
        root, source, cube = flat(server)
        reader = ChunkReader(source, version=cube.etag)
        with (root / "zarr.json").open("a") as file:
            file.write(" ")
        with pytest.raises(SourceChangedError, match="has changed while it was read"):
            reader.confirm()


class TestTogether:
    def test_what_is_asked_for_together_is_all_and_comes_at_once(
        self, server: MirrorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = server.root / "timeseries" / "a.zarr"
        values = np.random.default_rng(1).integers(-9, 9, SHAPE).astype("i2")
        values[:10, :4, :3] = 0
        array = group(root).create_array(
            "v", shape=SHAPE, dtype="i2", chunks=CHUNKS, shards=SHARDS, fill_value=0,
            dimension_names=["time", "y", "x"],
        )  # fmt: skip
        array[...] = values
        source, cube = opened(server)
        found = cube.variable("v")
        indices = [(t, i, j) for t in range(2) for i in range(2) for j in range(3)]
        size = (root / "v/c/0/0/0").stat().st_size
        for gap, most, requests in ((1 << 20, 1 << 20, 1), (0, size // 3, 3), (0, 1, 11)):
            monkeypatch.setattr("firnline.chunks._GAP", gap)
            monkeypatch.setattr("firnline.chunks.LONGEST_RUN", most)
            reader = ChunkReader(source)
            server.clear()
            groups = reader.together(found, indices)
            assert sorted(index for part in groups for index in part) == indices
            assert groups[-1] == [(0, 0, 0)], "which is absent"
            assert asked(server) == [("c/0/0/0", 206)], "the index"
            assert len(groups) - 1 == requests
            for part in groups:
                for index, data in zip(part, reader.get_together(found, part), strict=True):
                    if index == (0, 0, 0):
                        assert data is None
                        continue
                    window = (slice(i * n, i * n + n) for i, n in zip(index, CHUNKS, strict=True))
                    np.testing.assert_array_equal(found.decode(data), values[tuple(window)])
            assert asked(server) == [("c/0/0/0", 206)] * requests

    def test_what_lay_in_a_gap_is_kept(self, server: MirrorServer) -> None:
        _, source, array = sharded(server)
        shelf, version = Shelf(), read_cube(source).etag
        reader = ChunkReader(source, version=version, keeper=shelf)
        indices = [(t, i, j) for t in range(2) for i in range(2) for j in range(3)]
        server.clear()
        reader.get_together(array, indices[::4])
        assert len(asked(server)) == 2
        assert len(shelf.kept) > 1 + 3
        reader.get_together(array, indices)
        assert len(asked(server)) <= 2, "before and behind it"

    def test_a_shard_that_ends_before_its_chunks(self, server: MirrorServer) -> None:
        """An index that is right, of a shard that isn't: never absent."""
        root, source, array = sharded(server)
        shard = root / "v" / "c" / "0" / "0" / "0"
        whole = shard.read_bytes()
        shard.write_bytes(whole[-(16 * 12 + 4) :])
        indices = [(t, i, j) for t in range(2) for i in range(2) for j in range(3)]
        for together in (indices, indices[:2]):
            with pytest.raises(SourceCorruptError, match="shorter than its index"):
                ChunkReader(source).get_together(array, together)

    def test_lengths_that_can_not_be(self, server: MirrorServer) -> None:
        """In an index without a checksum."""
        root = server.root / "timeseries" / "a.zarr"
        codec = ShardingCodec(
            chunk_shape=CHUNKS, codecs=[BytesCodec(), ZstdCodec()], index_codecs=[BytesCodec()]
        )
        array = group(root).create_array(
            "v", shape=SHAPE, dtype="i2", chunks=SHARDS, serializer=codec, compressors=None,
            dimension_names=["time", "y", "x"], fill_value=0,
        )  # fmt: skip
        array[...] = 5
        source, cube = opened(server)
        shard = root / "v" / "c" / "0" / "0" / "0"
        whole = shard.read_bytes()
        for length in (0, 1 << 40, (1 << 64) - 1):
            shard.write_bytes(whole[:-8] + length.to_bytes(8, "little"))
            for read in (
                ChunkReader(source).get,
                lambda *a: ChunkReader(source).together(a[0], [a[1]]),
            ):
                with pytest.raises(SourceCorruptError, match=f"{length} bytes is not plausible"):
                    read(cube.variable("v"), (1, 1, 2))


@given(
    spans=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 30)), max_size=12),
    gap=st.integers(0, 12),
    most=st.integers(1, 60),
)
def test_runs_are_the_places_in_order_cut_where_they_must_be(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    places, at = [], 0
    for skip, length in spans:
        places.append((at + skip, length))
        at += skip + length
    found = list(runs(places[::-1], gap=gap, most=most))
    assert [place for run in found for place in run] == places
    assert all(found)
    ends = [[start + length for start, length in run] for run in found]
    for run, stops in zip(found, ends, strict=True):
        assert len(run) == 1 or stops[-1] - run[0][0] <= most
        assert all(start - stop <= gap for (start, _), stop in zip(run[1:], stops, strict=False))
    for (run, stops), (after, _) in pairwise(zip(found, ends, strict=True)):
        start, length = after[0]
        assert start - stops[-1] > gap or start + length - run[0][0] > most, "a needless cut"


@given(data=st.data())
def test_what_lies_within_a_range_of_a_shard(data: st.DataObject) -> None:
    whole = (1 << 64) - 1
    number = st.integers(0, 40) | st.sampled_from([whole, whole - 3, 1 << 63])
    entries = data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=9))
    start = data.draw(st.integers(0, 40))
    end = data.draw(st.integers(start, 60))
    table = ShardIndex(np.array(entries, "<u8"), None)
    assert table.within(start, end) == [
        (offset, length) for offset, length in entries if start <= offset and offset + length <= end
    ]
