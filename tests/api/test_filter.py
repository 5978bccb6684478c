"""The door for filters: what is taken, what is refused and with which words."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from typing import Any

import cql2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from firnline.api import errors, filter
from firnline.api.filter import parse, query_to_cql2
from firnline.api.filter_sql import condition
from firnline.errors import FilterError

Json = Any
DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}


def op(name: str, *args: Json) -> Json:
    return {"op": name, "args": list(args)}


def compiled(given: object, language: str | None = None) -> list[str]:
    """What a filter is in SQL, for both databases."""
    expression = parse(given, language)
    return [str(condition(expression, name).compile(dialect=DIALECTS[name])) for name in DIALECTS]


def test_text_and_json() -> None:
    expression = op("<", {"property": "itslive:granule_count"}, 5)
    assert parse("itslive:granule_count < 5") == expression
    assert parse("itslive:granule_count < 5", "cql2-text") == expression
    text = '{"op": "<", "args": [{"property": "itslive:granule_count"}, 5]}'
    assert parse(text, "cql2-json") == expression
    assert parse(expression) == parse(expression, "cql2-json") == expression
    assert parse(True) is True
    assert parse("true") is True
    assert parse("NULL") is parse("null", "cql2-json") is False


def test_operators_in_any_case() -> None:
    args = [{"interval": ["2018-01-01", ".."]}, {"interval": ["2019-01-01", ".."]}]
    assert compiled(op("T_METBY", *args)) == compiled(op("t_metBy", *args))
    odd = "a Is NoT nUlL aNd CaSeI(s) lIkE 'x'"
    assert compiled(odd) == compiled("a IS NOT NULL AND casei(s) LIKE 'x'")


def test_conformance() -> None:
    root = "http://www.opengis.net/spec/cql2/1.0/conf/"
    assert all(uri.startswith(root) for uri in filter.CONFORMANCE)
    names = {uri.removeprefix(root) for uri in filter.CONFORMANCE}
    assert {"cql2-text", "cql2-json", "basic-cql2", "temporal-functions", "arithmetic"} <= names
    assert not {"functions", "accent-insensitive-comparison"} & names


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "Expr"),
        ("a = ", "line 1, column 5"),
        ("a = 1 AND\n AND b = 2", "line 2, column 6, 'b = 2'"),
        ("a = 'b", "line 1, column 5"),
        ("a == 1", "column 4"),
        ("_a = 1", "column 1"),
        ("a = 1\0", "NUL"),
        ("a = '\ud800'", "surrogate"),
        ("avg(a) = 1", "'avg' is not supported; accepted: and, or, not"),
        ("accenti(a) = 'b'", "'accenti' is not supported"),
        ("1 + 2", "a predicate is"),
        ("'a'", "a predicate is"),
        ("casei('a')", "a predicate is"),
        ("geometry = 1", "geometry is an argument of S_ functions"),
        ("POINT(0 0) = geometry", "a scalar is"),
        ("a = (1, 2)", "a scalar is"),
        ("a = INTERVAL('..', '..')", "a scalar is"),
        ("a = 1e400", "finite"),
        ('"a""b" = 1', "no quotes"),
        ('"a\\b" = 1', "backslashes"),
        ("a LIKE b", "like takes a pattern in quotes"),
        ("a LIKE 'b\\'", "does not end with its escape"),
        (f"a LIKE '{'%a' * 2_501}'", "at most 5,000 characters"),
        ("a = TIMESTAMP('2018-02-30T00:00:00Z')", "TIMESTAMP takes an RFC 3339 timestamp"),
        ("a = TIMESTAMP('2018-01-01')", "TIMESTAMP takes"),
        ("a = DATE('2018-02-30')", "DATE takes an RFC 3339 date"),
        ("a = DATE('2018-01-01T00:00:00Z')", "DATE takes"),
        ("T_AFTER(a, '2018-01-01')", "t_after takes properties, TIMESTAMP, DATE and INTERVAL"),
        ("T_DURING(a, DATE('2018-01-01'))", "t_during takes properties and INTERVAL"),
        ("T_AFTER(a, INTERVAL('2018-01-01'))", "INTERVAL takes two"),
        ("T_AFTER(a, INTERVAL('2018-01-02', '2018-01-01'))", "ends after it starts"),
        ("T_AFTER(a, INTERVAL('x', '..'))", "TIMESTAMP takes"),
        ("T_AFTER(id, INTERVAL('..', '..'))", "t_after takes"),
        ("S_INTERSECTS(a, POINT(0 0))", "S_ functions take geometry"),
        ("S_INTERSECTS(geometry, POINT(0 91))", "latitude"),
        ("S_INTERSECTS(geometry, BBOX(0,0,1))", "bbox takes 4 numbers"),
        ("S_INTERSECTS(geometry, BBOX(0,a,1,1))", "BBOX takes numbers"),
        ("S_INTERSECTS(geometry, POLYGON((0 0,1 1,1 0,0 1,0 0)))", "not valid: Self-intersection"),
        ("S_INTERSECTS(geometry, POLYGON((0 0,1 1,1 0,0 0.1)))", "first is also the last"),
        ("S_TOUCHES(geometry, LINESTRING(0 0,1 1,1 0,0 1))", "no line that crosses itself"),
        ("S_TOUCHES(geometry, LINESTRING(0 0,0 0))", "has no length"),
        ("S_WITHIN(geometry, GEOMETRYCOLLECTION(POINT(0 0),LINESTRING(0 0,1 1)))", "a mixture"),
        (
            "S_WITHIN(geometry, MULTIPOLYGON(((0 0,2 0,2 2,0 0)),((0 0,2 0,2 2,0 0))))",
            "polygons that overlap",
        ),
        ("A_CONTAINS(a, (1, b = 1))", "literals, properties and expressions"),
        ("a BETWEEN 1 AND (1, 2)", "a scalar is"),
        ({"op": "and", "args": []}, "`args` of one or more"),
        ({"op": "not", "args": [True, True]}, "`args` of 1"),
        ({"op": "="}, "`args` of 2"),
        ({"op": "in", "args": [1, 1]}, "in takes a list"),
        ({"op": None, "args": []}, "'none' is not supported"),
        ({}, "a predicate is"),
        ([], "a predicate is"),
        ({"property": 5}, "a property's name is text"),
        ({"property": "a\0"}, "NUL"),
        (op("=", {"property": "a"}, 10**400), "double precision"),
        (op("=", {"property": "a"}, float("nan")), "finite"),
        (op("=", {"property": "a"}, {"timestamp": 5}), "TIMESTAMP takes"),
        (op("s_intersects", {"property": "geometry"}, {"bbox": [10**400] * 4}), "double precision"),
        (op("s_intersects", {"property": "geometry"}, {"type": "Circle"}), "not a type"),
    ],
)
def test_refused(given: object, words: str) -> None:
    with pytest.raises(FilterError, match=r"^filter: ") as refused:
        compiled(given)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 700
    assert "\n" not in str(refused.value)
    assert errors.status_of(refused.value) == 400


@pytest.mark.parametrize(
    ("given", "language", "words"),
    [
        ("a = 1", "cql", "filter-lang: 'cql' is not one of cql2-text, cql2-json"),
        ({"op": "not", "args": [True]}, "cql2-text", "filter-lang is cql2-json"),
        ("a = 1", "cql2-json", "not JSON"),
        ('{"op":' * 5_000, "cql2-json", "not JSON"),
    ],
)
def test_refused_languages(given: object, language: str, words: str) -> None:
    with pytest.raises(FilterError, match=words):
        parse(given, language)


BOMBS = {
    "parentheses": "'('*n + 'a=1' + ')'*n",
    "open parentheses": "'('*n",
    "open arrays": "'((1),'*n",
    "arrays": "'A_EQUALS(a,' + '('*n + '1,2)' + ',3)'*(n-1) + ')'",
    "functions": "'a=' + 'f('*n + '1' + ')'*n",
    "geometries": "'GEOMETRYCOLLECTION('*n + 'POINT(0 0)' + ')'*n + '!'",
    "no geometries": "'POINT(' + '1 -1 -1 -1 '*n + ')'",
    "not": "'NOT '*n + 'a=1'",
    "not in parentheses": "'not('*n + 'a=1' + ')'*n",
    "minus": "'a=' + '-'*n + '1'",
    "sum": "'a=' + '1+'*n + '1'",
    "words run together": "'a=1' + 'or 1'*n",
    "words that begin with an operator": "'a' + ' orb'*n",
    "and": "' AND '.join(['a=1']*n)",
    "quotes": r"'a=' + '\'\' NOT '*n",
    "spaces": "'a=1' + ' '*n + '!'",
    "digits": "'a=' + '1e1'*n",
}


def test_bombs_are_refused() -> None:
    """In a process of its own, in a thread with a small stack: the parser ends both otherwise."""
    script = f"""
import threading, time
from firnline.api.filter import parse
from firnline.errors import FilterError

def run():
    for name, bomb in {BOMBS!r}.items():
        for n in (8, 19, 60, 240, 10_000):
            started = time.process_time()
            try:
                parse(eval(bomb, {{"n": n}}))
            except FilterError as error:
                assert n > 8 or "not CQL2 text" in str(error), (name, n, error)
            else:
                assert n <= 240, (name, n)
            assert time.process_time() - started < 2, (name, n)
    print("all refused")

threading.stack_size(2**21)
thread = threading.Thread(target=run)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "all refused\n"), done.stderr


def test_nested_json_is_refused() -> None:
    node: Json = True
    for _ in range(20_000):
        node = {"op": "not", "args": [node]}
    with pytest.raises(FilterError, match="within others"):
        parse(node)
    array: Json = []
    for _ in range(20_000):
        array = [array]
    with pytest.raises(FilterError, match="within others"):
        parse(op("a_contains", {"property": "a"}, array))


def test_large_polygons_are_read_soon() -> None:
    ring = ",".join(f"{n / 100:.4f} -{n % 7}.5" for n in range(9_000))
    text = f"(S_INTERSECTS(geometry, POLYGON((0 0,{ring},0 0))) AND a = 1)"
    started = time.process_time()
    assert len(parse(text)["args"][0]["args"][1]["coordinates"][0]) == 9_002
    assert time.process_time() - started < 1


FRAGMENTS = re.findall(
    r"\S+",
    """a n s ( ) ( ) , , 'x' '' " 1 2.5 -1 + - * / % ^ div = <> >= AND OR NOT IN BETWEEN LIKE IS
    NULL TRUE casei( TIMESTAMP( DATE( INTERVAL( '..' '2018-01-01' '2018-01-01T00:00:00Z' foo( id
    S_INTERSECTS( S_TOUCHES( A_CONTAINS( T_AFTER( T_DURING( geometry datetime POINT( POINT(1 2)
    POLYGON(( 0 0, BBOX( GEOMETRYCOLLECTION( EMPTY Z M é \\ %""",
)


@given(
    st.text(max_size=20)
    | st.binary(max_size=20)
    | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map(" ".join)
)
@settings(max_examples=1_200)
def test_any_text_is_taken_or_refused(text: str | bytes) -> None:
    try:
        compiled(text if isinstance(text, str) else text.decode("latin-1"))
    except FilterError as error:
        str(error).encode()  # it can be sent


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["..", "2018-01-01", "2018-01-01T00:00:00Z", "a%\\", "geometry", "Point"])
)
keys = st.sampled_from(
    ["op", "args", "property", "timestamp", "date", "interval", "bbox", "type", "coordinates", "x"]
)
anything = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
VALID = [
    parse("a % 2 = 1 AND casei(s) LIKE casei('Ab') OR NOT b"),
    parse("T_INTERSECTS(datetime, INTERVAL('2018-01-01', '..')) AND d > DATE('2018-01-01')"),
    parse("n BETWEEN 1 AND a AND n IN (1, 'x', b) AND A_OVERLAPS(l, (1, n)) AND x IS NULL"),
    parse("S_TOUCHES(geometry, POINT(1 2)) OR S_DISJOINT(geometry, BBOX(170,0,-170,5))"),
]


@st.composite
def damaged(draw: Any) -> Json:
    """A valid filter with some of its nodes replaced."""

    def spoiled(node: Json) -> Json:
        if draw(st.integers(0, 9)) == 0:
            return draw(anything)
        if isinstance(node, dict):
            return {key: spoiled(value) for key, value in node.items()}
        return [spoiled(each) for each in node] if isinstance(node, list) else node

    return spoiled(draw(st.sampled_from(VALID)))


@given(damaged())
@settings(max_examples=400)
def test_any_json_is_taken_or_refused(node: Json) -> None:
    try:
        compiled(node, "cql2-json")
    except FilterError as error:
        str(error).encode()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({}, "true"),
        ({"a": {"eq": 1}}, "a = 1"),
        ({"a": {"neq": "x"}}, "a <> 'x'"),
        ({"a": {"eq": True}}, "a = true"),
        ({"a": {"lt": 10, "gte": 1.5}}, "a < 10 AND a >= 1.5"),
        ({"a": {"gt": 1}, "b:c": {"lte": "x"}}, "a > 1 AND b:c <= 'x'"),
        ({"a": {"in": [1, "x"]}}, "a IN (1, 'x')"),
        ({"a": {"startsWith": "50%_\\"}}, "a LIKE '50\\%\\_\\\\%'"),
        ({"a": {"endsWith": "x"}}, "a LIKE '%x'"),
        ({"a": {"contains": "x"}}, "a LIKE '%x%'"),
    ],
)
def test_query(query: Json, text: str) -> None:
    found, wanted = query_to_cql2(query), parse(text)
    if isinstance(wanted, dict) and wanted["op"] != "and":
        wanted = op("and", wanted)
    assert found == wanted
    if isinstance(found, dict):
        assert cql2.Expr(found).to_json()["args"]
        condition(found, "sqlite")


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (None, "query takes an object"),
        ([], "query takes an object"),
        ({"a": 5}, "'a' takes an object"),
        ({"a": {}}, "'a' takes an object"),
        ({"a": {"like": "x"}}, "'like' of 'a' is not understood; accepted: eq, neq"),
        ({"a": {"lt": None}}, "'lt' of 'a'"),
        ({"a": {"lt": [1]}}, "'lt' of 'a'"),
        ({"a": {"in": 1}}, "'in' of 'a'"),
        ({"a": {"in": [[1]]}}, "'in' of 'a'"),
        ({"a": {"contains": 1}}, "'contains' of 'a'"),
        ({"a": {"eq": float("inf")}}, "'eq' of 'a'"),
        ({"geometry": {"eq": 1}}, "geometry is an argument of S_ functions"),
        ({'a"b': {"eq": 1}}, "no quotes"),
        ({"a": {"eq": "\0"}}, "NUL"),
        ({"\ud800": {"eq": 1}}, "surrogate"),
        ({f"a{n}": {"eq": 1} for n in range(200)}, "more than"),
    ],
)
def test_query_refused(query: Json, words: str) -> None:
    with pytest.raises(FilterError, match=r"^query") as refused:
        query_to_cql2(query)
    assert words in str(refused.value)
    str(refused.value).encode()
