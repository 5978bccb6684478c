"""A cube's metadata and chunks: what is read, and that no lie in them is anything but 'corrupt'."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firnline.cube import Array, Cube, read_cube
from firnline.errors import SourceCorruptError, SourceMissingError, SourceUnreachableError
from firnline.indexer.mirror import Fault, Faults
from firnline.source import Blob, Source

BLOSC = {"id": "blosc", "cname": "zlib", "clevel": 5, "shuffle": 1, "blocksize": 0}


class FromMemory:
    """Stands for a source that holds one document."""

    url = "https://data.example/cube.zarr"

    def __init__(self, document: bytes) -> None:
        self.document = document

    def get_changed(self, path: str, etag: str | None, *, largest: int) -> Blob:
        assert (path, etag) == (".zmetadata", None)
        return Blob(self.document, '"etag"')


def read(document: Any) -> Cube:
    raw = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_cube(FromMemory(raw))  # type: ignore[arg-type]


def zarray(*shape: int, chunks: tuple[int, ...] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "zarr_format": 2, "shape": list(shape), "chunks": list(chunks or shape), "dtype": "<i2",
        "fill_value": None, "order": "C", "filters": None, "compressor": BLOSC, **more,
    }  # fmt: skip


def valid() -> dict[str, Any]:
    """The metadata of a small cube."""
    arrays = {
        "mid_date": (zarray(60, dtype="<f8"), ["mid_date"], {"units": "days since 1970-01-01"}),
        "x": (zarray(25, dtype="<f8"), ["x"], {}),
        "y": (zarray(35, dtype="<f8"), ["y"], {}),
        "vx": (
            zarray(60, 35, 25, chunks=(60, 10, 10)),
            ["mid_date", "y", "x"],
            {"missing_value": -32767, "units": "meter/year"},
        ),
        "mapping": (zarray(dtype="|u1"), [], {"spatial_epsg": 3413}),
        "satellite_img1": (zarray(60, dtype="<U2", fill_value=""), ["mid_date"], {}),
    }
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}, ".zattrs": {"title": "a cube"}}
    for name, (array, dims, attributes) in arrays.items():
        metadata[f"{name}/.zarray"] = array
        metadata[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": dims, **attributes}
    return {"zarr_consolidated_format": 1, "metadata": metadata}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid metadata with one value set, as ``vx/.zarray:chunks``; `...` removes it."""
    document = valid()
    name, _, key = path.partition(":")
    place, key = (document["metadata"][name], key) if key else (document["metadata"], name)
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return document


# --- metadata -------------------------------------------------------------------------------


def test_a_cube_is_what_its_metadata_says() -> None:
    cube = read(valid())
    assert (cube.url, cube.etag) == (FromMemory.url, '"etag"')
    assert (cube.time, cube.pairs) == ("mid_date", 60)
    assert cube.attributes == {"title": "a cube"}
    vx = cube.variable("vx")
    assert vx.dims == ("mid_date", "y", "x")
    assert (vx.shape, vx.chunks, vx.chunk_counts) == ((60, 35, 25), (60, 10, 10), (1, 4, 3))
    assert (vx.dtype, vx.missing) == (np.int16, -32767)
    assert vx.attributes == {"missing_value": -32767, "units": "meter/year"}
    assert vx.key((0, 3, 2)) == "vx/0.3.2"
    assert cube.variable("mapping").key(()) == "mapping/0"
    with pytest.raises(SourceMissingError, match=r"no variable 'vz'; it has vx"):
        cube.variable("vz")


def test_the_sample_s_cubes_are_read_as_zarr_reads_them(sample: Any) -> None:
    for about in sample.mirror.cubes:
        cube = read_cube(Source(f"{sample.server.url}/{about.path}", allowed=(sample.server.url,)))
        group = zarr.open_group(sample.mirror.root / about.path, mode="r")
        assert set(cube.arrays) == set(group.array_keys())
        assert cube.pairs == len(about.granules)
        for name, array in cube.arrays.items():
            other = group[name]
            assert isinstance(other, zarr.Array)
            assert (array.shape, array.chunks) == (other.shape, other.chunks)
            assert array.dtype == other.dtype
            expected = {k: v for k, v in other.attrs.items() if k != "_ARRAY_DIMENSIONS"}
            assert dict(array.attributes) == expected


def test_a_time_dimension_by_its_later_name() -> None:
    text = json.dumps(valid()).replace("mid_date", "time")
    assert read(text.encode()).time == "time"


def test_missing_values() -> None:
    def missing(dtype: str, fill: Any = None, **attributes: Any) -> Any:
        return Array("a", (), (), (), np.dtype(dtype), fill, None, attributes=attributes).missing

    assert missing("<i2", missing_value=-32767, _FillValue=5) == -32767
    assert missing("<i2", _FillValue=5) == 5
    assert missing("<i2", 7) == 7
    assert missing("<i2") == 0
    assert missing("<i2", 0, missing_value=-32767.0) == -32767
    assert np.isnan(missing("<f4", "NaN"))
    assert missing("<f4", "-Infinity") == -np.inf
    assert isinstance(missing("<i2", 7), np.int16)
    for dtype, value in (("<i2", 40_000), ("|u1", -1), ("<i2", "x"), ("<i2", [1, 2]), ("<i2", {})):
        with pytest.raises(SourceCorruptError, match="missing"):
            missing(dtype, missing_value=value)


LIES = {
    "chunks negative": ("vx/.zarray:chunks", [60, -10, 10]),
    "chunks of nothing": ("vx/.zarray:chunks", [60, 0, 10]),
    "a chunk beyond memory": ("vx/.zarray:chunks", [2**20, 2**10, 2**10]),
    "chunks beyond any machine": ("vx/.zarray:chunks", [2**40, 2**40, 2**40]),
    "more chunks than can be": ("vx/.zarray:shape", [10**12, 35, 25]),
    "chunks without number": ("vx/.zarray:chunks", [float("inf"), 10, 10]),
    "chunks not a number": ("vx/.zarray:chunks", [float("nan"), 10, 10]),
    "chunks of words": ("vx/.zarray:chunks", ["ten", 10, 10]),
    "chunks of another rank": ("vx/.zarray:chunks", [60, 10]),
    "no chunks": ("vx/.zarray:chunks", ...),
    "chunks null": ("vx/.zarray:chunks", None),
    "shape negative": ("vx/.zarray:shape", [60, -35, 25]),
    "shape of another rank": ("vx/.zarray:shape", [60, 35]),
    "shape unlike the coordinates": ("vx/.zarray:shape", [60, 35, 26]),
    "more pairs than dates": ("vx/.zarray:shape", [61, 35, 25]),
    "dimensions swapped": ("vx/.zattrs:_ARRAY_DIMENSIONS", ["mid_date", "x", "y"]),
    "dimensions too few": ("vx/.zattrs:_ARRAY_DIMENSIONS", ["mid_date", "y"]),
    "dimensions missing": ("vx/.zattrs:_ARRAY_DIMENSIONS", ...),
    "dimensions of lists": ("vx/.zattrs:_ARRAY_DIMENSIONS", [["mid_date"], "y", "x"]),
    "dimensions of numbers": ("vx/.zattrs:_ARRAY_DIMENSIONS", [0, 1, 2]),
    "dimensions null": ("vx/.zattrs:_ARRAY_DIMENSIONS", None),
    "a type that is none": ("vx/.zarray:dtype", "<q9"),
    "Python objects": ("vx/.zarray:dtype", "|O"),
    "records": ("vx/.zarray:dtype", [["a", "<i2"], ["b", "<i2"]]),
    "records in short": ("vx/.zarray:dtype", "i2,i2"),
    "no type": ("vx/.zarray:dtype", None),
    "a type of no size": ("vx/.zarray:dtype", "|S0"),
    "Zarr v3": ("vx/.zarray:zarr_format", 3),
    "Fortran order": ("vx/.zarray:order", "F"),
    "filters": ("vx/.zarray:filters", [{"id": "delta", "dtype": "<i2"}]),
    "a codec that runs what it decodes": ("vx/.zarray:compressor", {"id": "pickle"}),
    "a codec that is none": ("vx/.zarray:compressor", {"id": "none such"}),
    "a codec without name": ("vx/.zarray:compressor", {"cname": "zlib"}),
    "a codec of nonsense": ("vx/.zarray:compressor", {**BLOSC, "colour": "blue"}),
    "a codec by its name": ("vx/.zarray:compressor", "blosc"),
    "a list of codecs": ("vx/.zarray:compressor", [BLOSC]),
    "no compressor said": ("vx/.zarray:compressor", ...),
    "no fill value said": ("vx/.zarray:fill_value", ...),
    "a separator that leads out": ("vx/.zarray:dimension_separator", "/../"),
    "a separator of two": ("vx/.zarray:dimension_separator", ".."),
    "an array named like a way out": ("../vx/.zarray", zarray(60)),
    "an array named like the root": ("//.zarray", zarray(60)),
    "an array without a name": ("/.zarray", zarray(60)),
    "an array of Windows": ("..\\vx/.zarray", zarray(60)),
    "an array that is a list": ("vx/.zarray", []),
    "an array that is null": ("vx/.zarray", None),
    "attributes that are a list": ("vx/.zattrs", [1, 2]),
    "no time": ("mid_date/.zarray", ...),
    "no x": ("x/.zarray", ...),
    "no y": ("y/.zarray", ...),
    "x without dimension": ("x/.zarray", zarray()),
    "x and its dimensions gone": ("x", None),
}


@pytest.mark.parametrize("path_and_value", LIES.values(), ids=LIES)
def test_lies_are_corrupt(path_and_value: tuple[str, Any]) -> None:
    path, value = path_and_value
    document = changed(path, value)
    if path == "x":
        document["metadata"]["x/.zarray"] = zarray()
        document["metadata"]["x/.zattrs"] = {}
    with pytest.raises(SourceCorruptError) as caught:
        read(document)
    assert str(caught.value).startswith(f"{FromMemory.url} has no metadata of a Zarr")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        b"", b"{", b"null", b"[]", b"5", b'"metadata"', b"{}", b'{"metadata": null}',
        b'{"metadata": []}', b'{"metadata": "vx/.zarray"}', b'{"metadata": {}}', b"\xff\xfe",
        b"<html>not found</html>", b"[" * 200_000, b'{"metadata": ' + b"[" * 200_000,
        b'{"metadata": {"a": ' + b"9" * 10_000 + b"}}",
    ],
    ids=lambda document: str(document[:24]),
)  # fmt: skip
def test_what_is_no_metadata_is_corrupt(document: bytes) -> None:
    with pytest.raises(SourceCorruptError):
        read(document)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 70)
    | st.floats()
    | st.sampled_from(["", "<i2", "|O", "<U9999999", "<M8[s]", "mid_date", "x", "NaN", "blosc"])
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))
        else:
            yield (*path, key)


_PLACES = [place for place in _places(valid()) if place]


@settings(max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(_PLACES), _VALUES | st.just(...)), min_size=1, max_size=3
    )
)
def test_changed_metadata_is_read_or_corrupt(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    document = copy.deepcopy(valid())
    for place, value in changes:
        holder: Any = document
        try:
            for key in place[:-1]:
                holder = holder[key]
            if value is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    try:
        cube = read(document)
    except SourceCorruptError:
        return
    # what is accepted can be used: every chunk has a name and a size that fits
    for array in cube.arrays.values():
        assert len(array.dims) == len(array.shape) == len(array.chunks)
        assert all(chunk > 0 for chunk in array.chunks)
        assert 0 < array.dtype.itemsize * np.prod(array.chunks, dtype=float) <= 2**31
        assert not array.dtype.hasobject
        key = array.key((0,) * len(array.chunks))
        assert ".." not in key.replace("/", ".").split(".")
        assert key.count("..") == 0
        with suppress(SourceCorruptError):
            assert np.ndim(array.missing) == 0
        with pytest.raises(SourceCorruptError):
            array.decode(b"not a chunk")
    assert cube.pairs >= 0


@settings(max_examples=300)
@given(data=st.binary(max_size=60), at=st.floats(0, 1), cut=st.booleans())
def test_damaged_documents_are_read_or_corrupt(data: bytes, at: float, cut: bool) -> None:
    raw = json.dumps(valid()).encode()
    place = int(at * len(raw))
    damaged = raw[:place] + data + (b"" if cut else raw[place + len(data) :])
    try:
        read(damaged)
    except SourceCorruptError:
        return
    json.loads(damaged)


def test_an_outage_is_not_a_corrupt_cube(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    url = f"{sample.server.url}/{sample.mirror.cubes[0].path}"
    source = Source(url, allowed=(sample.server.url,))
    sample.server.faults = Faults(Fault("status", status=503), match="*/.zmetadata")
    try:
        with pytest.raises(SourceUnreachableError, match="503"):
            read_cube(source)
    finally:
        sample.server.faults = None
    with pytest.raises(SourceMissingError):
        read_cube(Source(f"{url}x", allowed=(sample.server.url,)))


# --- chunks ---------------------------------------------------------------------------------


def array(
    shape: tuple[int, ...], dtype: str = "<i2", compressor: dict[str, Any] | None = BLOSC
) -> Array:
    dims = ("mid_date", "y", "x")[: len(shape)]
    return Array("vx", dims, shape, shape, np.dtype(dtype), None, compressor)


@st.composite
def frames(draw: st.DrawFn) -> tuple[Array, np.ndarray[Any, Any], bytes]:
    """An array, a chunk of it, and the chunk as numcodecs encodes it."""
    shape = draw(st.sampled_from([(1,), (60,), (3, 3), (60, 10, 10), (7, 5, 3), (2000, 10, 10)]))
    dtype = draw(st.sampled_from(["<i2", ">i2", "<f8", "|u1", "<U3", "<M8[ns]"]))
    seed, spread = draw(st.integers(0, 99)), draw(st.sampled_from([1, 3, 60]))
    raw = np.random.default_rng(seed).integers(0, spread, shape)
    values = raw.astype("U3") if dtype == "<U3" else raw.astype(dtype)
    compressor = draw(
        st.sampled_from(
            [
                BLOSC,
                {**BLOSC, "cname": "zlib", "clevel": 2},
                {**BLOSC, "cname": "zstd", "shuffle": 2},
                {**BLOSC, "cname": "lz4", "shuffle": 0, "blocksize": 1024},
                {**BLOSC, "cname": "blosclz", "clevel": 9},
                {**BLOSC, "clevel": 0},
                {"id": "zlib", "level": 1},
                {"id": "gzip", "level": 1},
                {"id": "zstd", "level": 1},
                {"id": "lz4", "acceleration": 1},
                None,
            ]
        )
    )
    codec = None if compressor is None else numcodecs.get_codec(dict(compressor))
    encoded = values.tobytes() if codec is None else bytes(codec.encode(values))
    return array(shape, dtype, compressor), values, encoded


@settings(max_examples=200)
@given(frame=frames(), given_memory=st.booleans())
def test_chunks_decode_as_numcodecs_decodes_them(
    frame: tuple[Array, np.ndarray[Any, Any], bytes], given_memory: bool
) -> None:
    layout, values, encoded = frame
    out = np.zeros(layout.chunks, layout.dtype) if given_memory else None
    got = layout.decode(encoded, out=out)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    for other in (memoryview(encoded), bytearray(encoded), np.frombuffer(encoded, "u1")):
        np.testing.assert_array_equal(layout.decode(other), values)


@settings(max_examples=300)
@given(frame=frames(), at=st.floats(0, 1, exclude_max=True), given_memory=st.booleans())
def test_a_chunk_cut_short_is_corrupt(
    frame: tuple[Array, np.ndarray[Any, Any], bytes], at: float, given_memory: bool
) -> None:
    layout, _, encoded = frame
    out = np.zeros(layout.chunks, layout.dtype) if given_memory else None
    with pytest.raises(SourceCorruptError, match="vx"):
        layout.decode(encoded[: int(at * len(encoded))], out=out)


@settings(max_examples=500)
@given(
    frame=frames(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1),
    early=st.booleans(),
    given_memory=st.booleans(),
)
def test_a_damaged_chunk_is_corrupt_or_of_the_right_shape(
    frame: tuple[Array, np.ndarray[Any, Any], bytes],
    flips: list[tuple[float, int]],
    early: bool,
    given_memory: bool,
) -> None:
    """Blosc has no checksum of its own: more can't be told, but nothing else may happen."""
    layout, values, encoded = frame
    damaged = bytearray(encoded)
    for at, flip in flips:
        damaged[int(at * min(len(damaged), 32 if early else 1 << 30))] ^= flip
    out = np.zeros(layout.chunks, layout.dtype) if given_memory else None
    try:
        got = layout.decode(bytes(damaged), out=out)
    except SourceCorruptError:
        pass
    else:
        assert (got.shape, got.dtype) == (values.shape, values.dtype)


def test_a_flipped_byte_of_its_live_s_own_codec_is_noticed() -> None:
    """Blosc with zlib, as ITS_LIVE writes: zlib's checksum finds what the payload lost."""
    random = np.random.default_rng(1)
    values = random.normal(100, 20, (2000, 10, 10)).astype("<i2")
    values[random.random(values.shape) < 0.7] = -32767
    layout = array(values.shape)
    encoded = bytes(numcodecs.get_codec(dict(BLOSC)).encode(values))
    for at in range(16, len(encoded), 211):
        damaged = encoded[:at] + bytes([encoded[at] ^ 0x55]) + encoded[at + 1 :]
        with pytest.raises(SourceCorruptError):
            layout.decode(damaged)


@settings(max_examples=200)
@given(frame=frames(), factor=st.sampled_from([0.5, 2, 3]))
def test_a_chunk_of_another_size_is_corrupt(
    frame: tuple[Array, np.ndarray[Any, Any], bytes], factor: float
) -> None:
    layout, _, encoded = frame
    first, *rest = layout.chunks
    chunks = (max(1, int(first * factor)), *rest)
    if chunks == layout.chunks:
        return
    other = Array("vx", layout.dims, chunks, chunks, layout.dtype, None, layout.compressor)
    with pytest.raises(SourceCorruptError):
        other.decode(encoded)
    with pytest.raises(SourceCorruptError):
        other.decode(encoded, out=np.zeros(chunks, layout.dtype))


@settings(max_examples=500)
@given(
    frame=frames(),
    count=st.integers(1, 5000),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255))),
    early=st.booleans(),
    end=st.floats(0, 1),
)
def test_pieces_are_the_chunk_or_it_is_corrupt(
    frame: tuple[Array, np.ndarray[Any, Any], bytes],
    count: int,
    flips: list[tuple[float, int]],
    early: bool,
    end: float,
) -> None:
    """Of 1-D arrays: in order and no longer than asked for; damage is an error, or wrong values."""
    whole, values, encoded = frame
    size = (values.size,)
    layout = Array("vx", ("mid_date",), size, size, whole.dtype, None, whole.compressor)
    damaged = bytearray(encoded)
    for at, flip in flips:
        damaged[int(at * min(len(damaged), 32 if early else 1 << 30))] ^= flip
    cut = bytes(damaged[: round(end * len(damaged))]) if end < 0.2 else bytes(damaged)
    try:
        got = [piece.copy() for piece in layout.pieces(cut, count)]
    except SourceCorruptError:
        assert cut != encoded
        return
    assert all(len(piece) == count for piece in got[:-1])
    assert {piece.dtype for piece in got} == {whole.dtype}
    joined = np.concatenate(got)
    assert joined.shape == size
    if cut == encoded:
        np.testing.assert_array_equal(joined, values.ravel())


def test_a_frame_that_declares_a_huge_size_allocates_nothing() -> None:
    layout = array((60, 10, 10))
    encoded = bytearray(numcodecs.Blosc("zlib").encode(np.zeros((60, 10, 10), "<i2")))
    encoded[4:8] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(SourceCorruptError, match="does not hold 12000 bytes"):
        layout.decode(bytes(encoded))


def test_a_chunk_runs_nothing(tmp_path: Path) -> None:
    """`pickle` is in numcodecs' registry: metadata that names it must not choose it."""
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (mark.write_text, ("run",))

    document = changed("vx/.zarray:compressor", {"id": "pickle"})
    with pytest.raises(SourceCorruptError, match="pickle"):
        read(document).variable("vx").decode(pickle.dumps(Evil()))
    assert not mark.exists()
