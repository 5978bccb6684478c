"""Filters give the same items on SQLite, on PostgreSQL and by `cql2`, item by item.

Left out, because `cql2` 0.6 answers otherwise than OGC 21-065r2, or than SQL where that leaves it
open (`test_filter_sql.py` has each of them):

- division by zero, and powers without a real value: infinity and NaN, here NULL;
- text that looks like a number or a truth value, which it converts;
- BETWEEN and IN of another type than the property's: false, not unknown;
- BETWEEN and IN with instants; DATE against timestamps; the last day of an interval of dates;
- `=` of two lists; nested objects; members of arrays that are properties;
- whether AND or OR of a single operand, which is no predicate, is null;
- case folding that is more than lower case (ß, ς).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

import cql2
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import mapping, shape
from sqlalchemy import Connection, select

from firnline.api import filter
from firnline.api.filter_sql import condition
from firnline.tables import items
from tests.api.conftest import make_item

Json = Any
Nodes = st.SearchStrategy[Json]

TEXTS = ["", "a", "abc", "ABC", "Abc", "a%c", "a_c", "a\\c", "a*c", "[a]", "it's", '"q"', "z\n"]
TEXTS += ["é", "É", "жук", "ЖУК", "𝄞x"]
NUMBERS = [0, 1, -1, 2, 3.5, -7, 0.25, 20, 100]
STAMPS = [
    f"2018-0{month}-01T00:00:00.{digits}Z"
    for month in (1, 2, 3)
    for digits in ("000000", "500000", "000001")
]
DAYS = ["2017-12-31", "2018-01-01", "2018-02-28", "2018-03-01"]
MEMBERS = [1, 2, 2.5, "a", "b", "É", True, False]
SHAPES = [
    "POINT(0 0)",
    "POINT(2 2)",
    "POINT(4 4)",
    "POINT(40 40)",
    "MULTIPOINT((2 2),(9 9))",
    "LINESTRING(0 0,4 4)",
    "LINESTRING(0 4,4 0)",
    "LINESTRING(-2 0,0 0,0 -2)",
    "MULTILINESTRING((0 0,4 4),(5 5,6 6))",
    "POLYGON((0 0,4 0,4 4,0 4,0 0))",
    "POLYGON((4 0,8 0,8 4,4 4,4 0))",
    "POLYGON((1 1,3 1,3 3,1 3,1 1))",
    "POLYGON((2 2,6 2,6 6,2 6,2 2))",
    "POLYGON((0 0,4 0,0 4,0 0))",
    "POLYGON((0 0,8 0,8 8,0 8,0 0),(1 1,3 1,3 3,1 3,1 1))",
    "MULTIPOLYGON(((0 0,1 0,1 1,0 1,0 0)),((2 2,4 2,4 4,2 4,2 2)))",
]
COLLECTION = "GEOMETRYCOLLECTION(POINT(2 2),POLYGON((5 5,6 5,6 6,5 6,5 5)))"


def made_items(count: int = 40) -> list[dict[str, Json]]:
    """Items with properties that are there, null, missing, or of another type than in others."""
    rng = random.Random(20180212)

    def some(values: list[Json], *others: Json) -> Json:
        """One of `values`, mostly; "missing" is for no value at all."""
        return rng.choice(values) if rng.random() < 0.7 else rng.choice([*others, "missing", None])

    def lists() -> list[Json]:
        return [rng.sample(MEMBERS, rng.randrange(5)) for _ in range(3)]

    made = []
    for n in range(count):
        start, end = sorted(rng.sample(STAMPS, 2))
        properties = {
            "n": some(NUMBERS, "abc", True),
            "m": some(NUMBERS),
            "k": some([1, -2, 0.5, 4]),
            "s": some(TEXTS, 5, False),
            "t": some(TEXTS),
            "b": some([True, False], 1, "abc"),
            "c": some([True, False]),
            "d": some(STAMPS, 7),
            "e": some(STAMPS),
            "day": some(DAYS),
            "l": some(lists(), "a", 1),
            "p": some(lists()),
            "view:off-nadir": some(NUMBERS, "abc"),
            "né": some(TEXTS),
            "datetime": rng.choice([None, *STAMPS[:3]]),
            "start_datetime": start,
            "end_datetime": end,
        }
        made.append(
            {
                "id": f"item-{n:02d}",
                "collection": ("one", "Two", "zwei-ü")[n % 3],
                "geometry": mapping(shapely.from_wkt(SHAPES[n % len(SHAPES)])),
                "properties": {k: v for k, v in properties.items() if v != "missing"},
            }
        )
    return made


ITEMS = made_items()


@pytest.fixture(scope="module")
def catalog(catalogs: Callable[..., dict[str, Connection]]) -> dict[str, Connection]:
    rows = []
    for item in ITEMS:
        properties = item["properties"]
        ends = [
            datetime.fromisoformat(properties["datetime"] or properties[f"{side}_datetime"])
            for side in ("start", "end")
        ]
        where = shape(item["geometry"])
        rows.append(make_item(item["id"], where, *ends, item["collection"], properties))
    return catalogs(rows)


def answers(connection: Connection, expressions: list[Json]) -> list[list[bool | None]]:
    """For each expression, true, false or None (unknown) for each item."""
    conditions = [condition(each, connection.dialect.name) for each in expressions]
    columns = [each.label(f"c{n}") for n, each in enumerate(conditions)]
    rows = connection.execute(select(*columns).select_from(items).order_by(items.c.id)).all()
    return [
        [None if value is None else bool(value) for value in column]
        for column in zip(*rows, strict=True)
    ]


def by_cql2(expression: Json) -> list[bool | None]:
    """What `cql2` makes of each item."""
    parsed: dict[bool, cql2.Expr] = {}
    found: list[bool | None] = []
    for item in ITEMS:
        instant = item["properties"]["datetime"] is not None
        if instant not in parsed:
            parsed[instant] = cql2.Expr(expression if instant else with_interval(expression))
        left = parsed[instant].reduce(item).to_json()
        found.append(left if isinstance(left, bool) else None)
    return found


def with_interval(node: Json) -> Json:
    """With an item's interval for `datetime` in temporal functions."""
    if not isinstance(node, dict) or "args" not in node:
        return node
    args = [with_interval(arg) for arg in node["args"]]
    if node["op"].startswith("t_"):
        bounds = [{"property": "start_datetime"}, {"property": "end_datetime"}]
        args = [{"interval": bounds} if arg == {"property": "datetime"} else arg for arg in args]
    return op(node["op"], *args)


def as_text(expression: Json) -> Json:
    """As CQL2 text, which has no empty array."""
    return expression if "[]" in json.dumps(expression) else cql2.Expr(expression).to_text()


def op(name: str, *args: Json) -> Json:
    return {"op": name, "args": list(args)}


def prop(*names: str) -> Nodes:
    return st.sampled_from(names).map(lambda name: {"property": name})


def applied(names: str, *args: Nodes) -> Nodes:
    """One of these operators on such arguments."""
    return st.builds(op, st.sampled_from(names.split()), *args)


def comparison(left: Nodes, right: Nodes) -> Nodes:
    return applied("= <> < > <= >=", left, right) | applied("= <> < > <= >=", right, left)


def parsed(text: str) -> Json:
    return cql2.parse_text(text).to_json()


literal_numbers = st.sampled_from(NUMBERS) | st.integers(-400, 400).map(lambda n: n / 4)
divisors = st.sampled_from([1, -2, 0.5, 3]) | prop("k")
plain_numbers = literal_numbers | prop("n", "m", "k", "view:off-nadir", "missing")
numbers = st.recursive(
    plain_numbers,
    lambda inner: (
        applied("+ - *", inner, inner)
        | applied("/", inner, divisors)
        | applied("% div", plain_numbers, divisors)
        | applied("^", plain_numbers, st.integers(0, 3))
    ),
    max_leaves=5,
)
sure_numbers = literal_numbers | prop("m", "k", "missing")
literal_texts = st.sampled_from(TEXTS) | st.text("abAéÉж*?[]%_\\", max_size=4)
plain_texts = literal_texts | prop("s", "t", "né", "id", "collection", "missing")
texts = plain_texts | applied("casei", plain_texts)
escaped = ["a\\%c", "a\\_c", "a\\\\c", "%\\\\%", "it's", "_", "%\n", ""]
patterns = st.text("abcABé%%__*?[]", max_size=5) | st.sampled_from(escaped)
timestamps = st.sampled_from([*STAMPS, "2018-02-01T01:00:00+01:00"]).map(
    lambda text: {"timestamp": text}
)
dates = st.sampled_from(DAYS).map(lambda text: {"date": text})
literal_bounds = st.lists(st.sampled_from(["..", *STAMPS, ".."]), min_size=2, max_size=2)
ends = prop("d", "e", "start_datetime", "end_datetime", "missing")
bounds = literal_bounds.filter(lambda pair: ".." in pair or pair[0] <= pair[1]) | st.lists(
    ends, min_size=2, max_size=2
)
spans = bounds.map(lambda pair: {"interval": pair}) | prop("datetime", "d", "e", "missing")
lists = prop("l", "p", "missing") | st.lists(st.sampled_from(MEMBERS), max_size=4)
sides = st.tuples(st.integers(-1, 9), st.integers(1, 5))
boxes = st.tuples(sides, sides).map(
    lambda xy: {"bbox": [xy[0][0], xy[1][0], sum(xy[0]), sum(xy[1])]}
)
shapes = st.sampled_from([parsed(text) for text in SHAPES])
geometry = st.just({"property": "geometry"})
of_times = "t_after t_before t_disjoint t_equals t_intersects"
of_intervals = (
    "t_contains t_during t_finishedBy t_finishes t_meets t_metBy t_overlappedBy t_overlaps "
    "t_startedBy t_starts"
)
of_space = "s_contains s_crosses s_disjoint s_equals s_intersects s_overlaps s_touches s_within"

predicates = st.one_of(
    prop("b", "c", "missing"),
    comparison(numbers, numbers),
    comparison(numbers, texts),
    comparison(texts, texts),
    comparison(prop("b", "c", "n"), prop("b", "c", "s") | st.booleans()),
    comparison(prop("n", "s", "b", "m"), prop("n", "s", "t", "c")),
    comparison(prop("d", "e", "start_datetime"), timestamps | prop("e", "end_datetime")),
    comparison(prop("day", "missing"), dates),
    applied("between", sure_numbers, sure_numbers, sure_numbers),
    applied("in", prop("m"), st.lists(literal_numbers, min_size=1, max_size=4)),
    applied("in", prop("t", "id"), st.lists(literal_texts, min_size=1, max_size=4)),
    applied("in", prop("n", "s"), literal_numbers.map(lambda n: [n, 1, "abc", True])),
    applied("like", texts, patterns | applied("casei", patterns)),
    applied("isNull", prop("n", "s", "b", "l", "d", "id", "missing", "datetime") | numbers | texts),
    applied("a_contains a_containedBy a_equals a_overlaps", lists, lists),
    applied(f"{of_times} {of_intervals}", spans, spans),
    applied(of_times, spans, timestamps | dates),
    applied(of_space, geometry, shapes | boxes | geometry),
    applied(of_space, shapes | boxes, geometry | shapes),
    applied("s_intersects s_disjoint", geometry, st.just(parsed(COLLECTION))),
)  # fmt: skip
a_predicate = st.deferred(lambda: predicates)  # its description would be long
filters = st.recursive(
    a_predicate,
    lambda inner: (
        applied("not", inner)
        | applied("and or", inner)
        | applied("and or", inner, inner)
        | applied("and or", inner, inner, inner)
        | comparison(inner, st.booleans() | prop("c"))
        | applied("isNull", a_predicate)
    ),
    max_leaves=6,
)


@given(st.lists(filters, min_size=12, max_size=12), st.booleans())
@settings(max_examples=100)
def test_all_three_answer_alike(
    catalog: dict[str, Connection], made: list[Json], by_text: bool
) -> None:
    expected = [by_cql2(each) for each in made]
    asked = [as_text(each) for each in made] if by_text else made
    expressions = [filter.parse(each) for each in asked]
    for name, connection in catalog.items():
        found = answers(connection, expressions)
        for text, got, wanted in zip(asked, found, expected, strict=True):
            assert got == wanted, (name, text)


def test_every_relation_to_every_shape(catalog: dict[str, Connection]) -> None:
    made = [
        op(relation, {"property": "geometry"}, parsed(text))
        for relation in of_space.split()
        for text in SHAPES
    ]
    expected = [by_cql2(each) for each in made]
    assert all(any(column) and not all(column) for column in zip(*expected, strict=True))
    for connection in catalog.values():
        assert answers(connection, made) == expected
