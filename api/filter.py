"""The door for filters: CQL2 text, CQL2 JSON and STAC's ``query``, all to CQL2 JSON in limits.

Text is parsed by ``cql2``, a recursive parser that ends the process when its stack does, and that
reads a group of parentheses which turns out wrong twice at each level. So what a text can do to it
is bounded before. JSON is taken as it is, since what the parser says of it names no place; what
is in it is checked where it is compiled (:mod:`firnline.api.filter_sql`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import cql2
import orjson

from firnline.api.filter_nodes import LARGEST, Node, kinds, refused
from firnline.errors import FilterError

LANGUAGES = ("cql2-text", "cql2-json")
MAX_DEPTH = 10
"""Of operators, functions and arrays within others. SQLite's parser has a stack of 100 symbols,
which 15 sums within sums fill, inside the statement of a page."""
MAX_OPERATIONS = 250
"""Of operators, functions and properties, all together."""
MAX_VALUES = 10_000
"""Of members of arrays, all together."""
_MAX_PARENTHESES = 20  # within others: each takes 5 kB of the parser's stack
_MAX_WORK = 2_000_000  # characters that the parser may have to read, repetitions included: 0.5 s

_CLASSES = (
    *("cql2-text", "cql2-json", "basic-cql2", "advanced-comparison-operators"),
    *("case-insensitive-comparison", "basic-spatial-functions", "basic-spatial-functions-plus"),
    *("spatial-functions", "temporal-functions", "array-functions", "property-property"),
    "arithmetic",
)
CONFORMANCE = tuple(f"http://www.opengis.net/spec/cql2/1.0/conf/{name}" for name in _CLASSES)
"""Requirements classes of OGC 21-065r2 that filters conform to."""

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_NUMBER = r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?"
# Coordinates of a geometry: their signs are no operators, and there are thousands.
_POSITION = re.compile(rf"(?<=[(,])\s*{_NUMBER}(?:\s+{_NUMBER}){{1,3}}\s*(?=[,)])", re.IGNORECASE)
# The parser takes `1orb` for `1 OR b`: a word that begins like an operator is counted as one.
_OPERATOR = re.compile(
    r"[-+*/%^<>=]|(?<![^\W\d])(?:and|or|not|in|is|like|between|div)", re.IGNORECASE
)
_TOKEN = re.compile(r"[\w.:]+|[^\s\w]")
_FUNCTION = re.compile(
    r"(?!(?:and|or|not|in|is|like|between|div|(?:multi)?(?:point|linestring|polygon)"
    r"|geometrycollection)$)[^\W\d][\w.:]*",
    re.IGNORECASE,
)
_PLACE = re.compile(r"--> (\d+):(\d+)")

_NESTING = ("property", "interval", "timestamp", "date")

_COMPARISONS = {"eq": "=", "neq": "<>", "lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_PATTERNS = {"startsWith": "{}%", "endsWith": "%{}", "contains": "%{}%"}


def parse(given: object, language: str | None = None) -> Node:
    """A filter as CQL2 JSON within the limits of this module; never None.

    Parameters
    ----------
    given
        CQL2 text; or CQL2 JSON, as text or as what it stands for.
    language
        ``cql2-text`` or ``cql2-json``. By default a text is ``cql2-text``, and all else JSON.

    Raises
    ------
    FilterError
    """
    if language not in (None, *LANGUAGES):
        raise FilterError(
            f"filter-lang: {str(language)[:40]!r} is not one of {', '.join(LANGUAGES)}"
        )
    expression: Node = given
    if isinstance(given, str):
        _check_text(given)
        expression = _parsed_json(given) if language == "cql2-json" else _parsed_text(given)
    elif language == "cql2-text":
        raise refused("cql2-text is text; for JSON, filter-lang is cql2-json")
    _check_size(expression)
    return False if expression is None else expression  # NULL is satisfied by nothing


def query_to_cql2(query: object) -> Node:
    """The ``query`` of STAC's query extension (v1.0.0) as CQL2 JSON.

    As ``{"eo:cloud_cover": {"gte": 1, "lt": 10}}``: all conditions must hold.

    Raises
    ------
    FilterError
    """
    if not isinstance(query, Mapping):
        raise FilterError('query takes an object as {"eo:cloud_cover": {"lt": 10}}')
    conditions = []
    for name, operations in query.items():
        if not isinstance(operations, Mapping) or not operations:
            raise FilterError(f'query: {str(name)[:40]!r} takes an object as {{"lt": 10}}')
        conditions += [_queried(name, *each) for each in operations.items()]
    expression: Node = {"op": "and", "args": conditions} if conditions else True
    try:
        _check_size(expression)
        for each in conditions:
            kinds(each["args"][0])
    except FilterError as error:
        raise FilterError(str(error).replace("filter", "query", 1)) from None
    return expression


def _queried(name: str, operator: str, value: object) -> dict[str, Any]:
    where = {"property": name}
    if operator in _COMPARISONS and _is_scalar(value):
        return {"op": _COMPARISONS[operator], "args": [where, value]}
    if operator in _PATTERNS and isinstance(value, str):
        escaped = re.sub(r"([\\%_])", r"\\\1", value)
        return {"op": "like", "args": [where, _PATTERNS[operator].format(escaped)]}
    if operator == "in" and isinstance(value, list) and all(map(_is_scalar, value)):
        return {"op": "in", "args": [where, value]}
    raise FilterError(
        f"query: {str(operator)[:40]!r} of {str(name)[:40]!r} is not understood; accepted: "
        "eq, neq, lt, lte, gt, gte with a text, a finite number or a boolean; "
        "startsWith, endsWith, contains with a text; in with an array"
    )


def _is_scalar(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) <= LARGEST)


def _check_size(expression: Node) -> None:
    operations = values = 0
    stack: list[tuple[Node, int, str]] = [(expression, 0, "")]
    while stack:
        node, depth, within = stack.pop()
        if isinstance(node, str):
            _check_text(node)
        elif isinstance(node, list):
            values += len(node)
            stack += [(each, depth + 1, "") for each in node]
        elif isinstance(node, Mapping):
            operations += 1
            op, args = str(node.get("op")).lower(), node.get("args")
            # AND in AND is one (firnline.api.filter_nodes.flattened)
            inner = depth + (op != within or op not in ("and", "or"))
            stack += [(each, inner, op) for each in args] if isinstance(args, list) else []
            stack += [(node[key], depth, "") for key in _NESTING if key in node]
        if depth > MAX_DEPTH:
            raise refused(f"more than {MAX_DEPTH} operators and arrays within others")
        if operations > MAX_OPERATIONS or values > MAX_VALUES:
            raise refused(
                f"more than {MAX_OPERATIONS} operators, functions and properties, "
                f"or {MAX_VALUES:,} values in arrays"
            )


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise refused("text has no half of a surrogate pair", text) from None
    if "\0" in text:
        raise refused("text has no NUL", text)


def _parsed_json(text: str) -> Node:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        hint = "; for CQL2 text, filter-lang is cql2-text"
        raise FilterError(f"filter: not JSON: {error}{hint}") from None


def _parsed_text(text: str) -> Node:
    bare = _POSITION.sub("0", _QUOTED.sub("0", text))
    depth, groups = _nesting(bare)
    # coordinates and quoted text are read eight times as fast
    work = (len(bare) + len(text) // 8) << groups
    if depth > _MAX_PARENTHESES or work > _MAX_WORK:
        raise refused(
            f"more than {_MAX_PARENTHESES} parentheses within others, or too long for so many"
        )
    if len(_OPERATOR.findall(bare)) > MAX_OPERATIONS:
        raise refused(f"more than {MAX_OPERATIONS} operators")
    try:
        return cql2.parse_text(text).to_json()
    except Exception as error:  # noqa: BLE001 - to_json() raises no other
        raise _misread(text, error) from None


def _nesting(text: str) -> tuple[int, int]:
    """How many parentheses are open at most, and how many of them that are not a function's."""
    opened: list[bool] = []
    depth = grouping = groups = 0
    before = ""
    for token in _TOKEN.findall(text):
        if token == "(":
            opened.append(_FUNCTION.fullmatch(before) is None)
            grouping += opened[-1]
            depth, groups = max(depth, len(opened)), max(groups, grouping)
        elif token == ")" and opened:
            grouping -= opened.pop()
        before = token
    return depth, groups


def _misread(text: str, error: Exception) -> FilterError:
    place = _PLACE.search(str(error))
    if place is None:
        return FilterError(f"filter: not CQL2 text: {str(error)[:200]}")
    line, column = map(int, place.groups())
    rest = text.split("\n")[line - 1][column - 1 :][:30]
    expected = str(error).rpartition("= ")[2][:300]
    return FilterError(
        f"filter: not CQL2 text from line {line}, column {column}, {rest!r}, on: {expected}"
    )
