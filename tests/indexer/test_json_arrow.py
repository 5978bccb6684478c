"""JSON of any shape through Parquet: the same values, and the same bytes where columns allow it."""

from __future__ import annotations

import io
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline.indexer.json_arrow import (
    Notes,
    Place,
    arrow_type,
    decoder,
    encoder,
    group_notes,
)

Groups = dict[str, list[Any]]


def through_parquet(groups: Groups) -> tuple[Groups, pa.Schema, Notes]:
    """Each document, a member `v` of a row, written and read; with the column and its notes."""
    places: dict[str, Place] = {}
    for name, documents in groups.items():
        places[name] = Place()
        for document in documents:
            places[name].look({"v": document})
    joined = Place()
    for place in places.values():
        joined.join(place)
    notes = Notes()
    kind = arrow_type(joined.members["v"], ("v",), notes)
    convert = encoder(kind, ("v",), notes)
    values = [document for documents in groups.values() for document in documents]
    json = ("v",) in notes.json
    encoded = [v if convert is None or (v is None and not json) else convert(v) for v in values]
    stream = io.BytesIO()
    pq.write_table(pa.table({"v": pa.array(encoded, type=kind)}), stream)
    column = pq.read_table(stream)["v"]
    read = iter(column.to_pylist())
    back: Groups = {}
    for name, documents in groups.items():
        own = Notes()
        group_notes(places[name], joined, (), own)
        both = Notes.from_json(orjson.loads(orjson.dumps((notes | own).to_json())))
        decode = decoder(column.type, ("v",), both, bytes.hex)
        taken = [next(read) for _ in documents]
        back[name] = [v if v is None or decode is None else decode(v) for v in taken]
    return back, column.type, notes


def without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_null(v) for k, v in value.items() if v is not None}
    return [without_null(v) for v in value] if isinstance(value, list) else value


def text(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([0.0, 1.0, -2.0, 1e22, "nan", "inf", "-inf", "", "_", "a"])
    | st.text(max_size=3)
)
names = st.sampled_from(["a", "b", "nodata", "_", ""])
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from(["x", "y"]), st.lists(documents, min_size=1, max_size=4), min_size=1
    )
)
def test_any_documents_keep_their_values(groups: Groups) -> None:
    """Whatever is mixed: equal numbers, and null as missing, are all that may differ."""
    back, _, _ = through_parquet(groups)
    assert without_null(back) == without_null(groups)


@settings(max_examples=200, derandomize=True)
@given(st.lists(documents, min_size=1, max_size=1))
def test_what_is_alone_keeps_its_bytes(documents: list[Any]) -> None:
    """A document by itself is of one kind at each place, but for the elements of its lists."""
    (document,) = documents
    if any(mixed_numbers(each) for each in lists(document)):
        return
    back, _, _ = through_parquet({"x": documents})
    assert [text(v) for v in back["x"]] == [text(v) for v in documents]


def lists(value: Any) -> list[list[Any]]:
    if isinstance(value, dict):
        return [each for member in value.values() for each in lists(member)]
    if isinstance(value, list):
        return [value, *(each for member in value for each in lists(member))]
    return []


def mixed_numbers(values: list[Any]) -> bool:
    """Whether elements, or their members, are unlike: in which case the notes may have no word."""
    return len({shape(value) for value in values}) > 1


def shape(value: Any) -> str:
    if isinstance(value, dict):
        return str(sorted((k, shape(v)) for k, v in value.items()))
    return str([shape(v) for v in value]) if isinstance(value, list) else type(value).__name__


@pytest.mark.parametrize(
    ("groups", "kind"),
    [
        ({"x": [1, 2]}, pa.int64()),
        ({"x": [1.0, 2.5]}, pa.float64()),
        ({"x": [1, 2.5]}, pa.float64()),  # whole ones had no point: they have none again
        ({"x": [1, 2], "y": [1.0, 2.5]}, pa.float64()),
        ({"x": [-32767, 0], "y": ["nan"]}, pa.float64()),
        ({"x": ["inf", -1.5, "-inf"]}, pa.float64()),
        ({"x": ["nan", "north"]}, pa.string()),
        ({"x": ["nan"]}, pa.string()),  # a word, where nothing says that it is a number
        ({"x": [{"nodata": "nan"}]}, pa.struct([("nodata", pa.float64())])),
        ({"x": [2**63 - 1, -5]}, pa.int64()),
        ({"x": [2**64 - 1, -5]}, pa.string()),
        ({"x": [2**53 - 1, 0.5]}, pa.float64()),
        ({"x": [2**53 + 1, 0.5]}, pa.string()),
        ({"x": [True, False]}, pa.bool_()),
        ({"x": [True, 1]}, pa.string()),
        ({"x": [False, {"a": 1}]}, pa.string()),
        ({"x": [False, None, {"a": 1}]}, pa.string()),
        ({"x": [{}]}, pa.struct([("_", pa.null())])),
        ({"x": [{}, {"a": {}}, {"a": {"b": 1}}]}, None),
        ({"x": [{"a": None}, {"a": 1}]}, pa.struct([("a", pa.int64())])),
        ({"x": [{"a": None}], "y": [{"a": 1}, {}]}, pa.struct([("a", pa.int64())])),
        ({"x": [[]], "y": [[1], []]}, pa.list_(pa.int64())),
        ({"x": [[None, 1.5], [None]]}, pa.list_(pa.float64())),
        ({"x": [[1, "a"], ["b"]]}, pa.list_(pa.string())),
        ({"x": [[1, None, "a"]]}, pa.list_(pa.string())),
        ({"x": [[{"a": 1, "b": []}, {"a": 2, "b": ["c"]}]]}, None),
        ({"x": [{"extent": ["a", "b"]}, {"extent": [1.0, 2.0]}]}, None),
    ],
)  # fmt: skip
def test_bytes_that_are_kept(groups: Groups, kind: pa.DataType | None) -> None:
    back, found, _ = through_parquet(groups)
    assert {name: [text(v) for v in values] for name, values in back.items()} == {
        name: [text(v) for v in values] for name, values in groups.items()
    }
    if kind is not None:
        assert found == kind


@pytest.mark.parametrize(
    ("groups", "back"),
    [
        ({"x": [1, 1.0]}, {"x": [1.0, 1.0]}),  # both ways to write it: it gets a point
        ({"x": [{"a": None}, {}]}, {"x": [{}, {}]}),  # null here, missing there: it's missing
        ({"x": [{"a": None}], "y": [{"a": None}, {}]}, {"x": [{"a": None}], "y": [{}, {}]}),
    ],
)
def test_bytes_that_are_not_kept(groups: Groups, back: Groups) -> None:
    found, _, _ = through_parquet(groups)
    assert text(found) == text(back)


def test_columns_of_other_writers() -> None:
    def read(values: list[Any], kind: pa.DataType) -> list[Any]:
        decode = decoder(kind, ("v",), Notes(), bytes.hex)
        taken = pa.array(values, type=kind).to_pylist()
        return [decode(value) if decode is not None else value for value in taken]

    assert read([datetime(2020, 1, 2, 3, 4, 5, 678000)], pa.timestamp("ms")) == [
        "2020-01-02T03:04:05.678000Z"
    ]
    assert read([datetime(2020, 1, 2)], pa.timestamp("us", "Asia/Kathmandu")) == [
        "2020-01-02T00:00:00Z"
    ]
    assert read([date(2020, 1, 2)], pa.date32()) == ["2020-01-02"]
    assert read([[("a", 1), ("b", 2)]], pa.map_(pa.string(), pa.int8())) == [{"a": 1, "b": 2}]
    assert read(["a", "b"], pa.dictionary(pa.int8(), pa.string())) == ["a", "b"]
    assert read([[1.5]], pa.large_list(pa.float32())) == [[1.5]]
    assert read([b"\x01"], pa.binary()) == ["01"]
    assert read([Decimal("1.50")], pa.decimal128(5, 2)) == [1.5]
    with pytest.raises(ValueError, match=r"v\.a\.\[\] is of type duration"):
        decoder(pa.struct([("a", pa.list_(pa.duration("s")))]), ("v",), Notes(), bytes.hex)
