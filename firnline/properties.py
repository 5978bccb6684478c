"""What filters and sorting see of an item's properties, and how SQL reads it.

An item's content is stored ready to send; a search can't parse that for every row. Beside it the
row has :func:`searchable`, a short JSON object: text, numbers, booleans and lists of them. Text
that is an RFC 3339 date-time stands there in one form (UTC, six decimals), so that its order as
text is its order in time; what a filter compares with it passes through :func:`canonical`.

A property has one type in each item, and :class:`Number`, :class:`Word` and :class:`Truth` are
NULL where it has another, or is missing: a comparison of a number with text is neither true nor
false (CQL2, OGC 21-065r2, 6.2: predicates on NULL).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Boolean, ColumnElement, Float, Text, literal, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

INDEXED_WORDS = ("proj:code", "itslive:region")
INDEXED_NUMBERS = ("itslive:granule_count",)
"""Properties with an index: those of our collections that people search by, and that tell items
apart. Each costs every harvest; see docs/decisions/0020-search.md."""

_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")
_SIMPLE = (str, int, float, bool)
_NAME = re.compile(r'[^"\\\x00-\x1f]+')


def canonical(text: str) -> str:
    """The text itself, or an RFC 3339 date-time as ``2018-01-01T00:00:00.000000Z``."""
    if len(text) < 20 or not _INSTANT.fullmatch(text):  # most are not: the short test first
        return text
    try:
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):  # 30 February, a leap second, the year 0
        return text
    return instant.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def is_name(name: str) -> bool:
    """Whether a property of this name can be searched by: others can't be paths in SQLite."""
    return _NAME.fullmatch(name) is not None


def searchable(properties: Mapping[str, Any]) -> bytes:
    """JSON of those properties that can be compared: scalars, and lists of scalars.

    What is more than that is there as an empty object: it can be asked whether there is any.
    """
    kept: dict[str, Any] = {}
    for name, value in properties.items():
        if not is_name(name):
            continue
        if isinstance(value, str):
            value = _stored(value)
        elif isinstance(value, list):
            simple = all(isinstance(member, _SIMPLE) for member in value)
            value = [_stored(v) if isinstance(v, str) else v for v in value] if simple else {}
        elif value is None:
            continue
        elif not isinstance(value, _SIMPLE):
            value = {}
        kept[name] = value
    return orjson.dumps(kept)


def _stored(text: str) -> str:
    # PostgreSQL's jsonb has no NUL: it is left out there and here alike.
    return canonical(text.replace("\0", ""))


class Property(FunctionElement[Any]):
    """A property of the stored object, NULL unless it is of the type that a subclass says."""

    inherit_cache = True
    sqlite_types = ""
    postgresql_type = ""
    postgresql_value = ""

    def __init__(self, column: ColumnElement[Any], name: str, *, indexed: bool = True) -> None:
        # An index serves only if its name is in the statement itself, not bound to it.
        constant = indexed and (name in INDEXED_WORDS or name in INDEXED_NUMBERS)
        super().__init__(column, literal_column(f"'{name}'") if constant else literal(name, Text()))


class Listed(Property):
    """A property that is a list, as JSON: text on SQLite, ``jsonb`` on PostgreSQL."""

    inherit_cache = True
    type = Text()
    sqlite_types = "'array'"
    postgresql_type = "array"
    postgresql_value = "{0} -> {1}"


class Number(Property):
    """A property that is a number."""

    inherit_cache = True
    type = Float()
    sqlite_types = "'integer', 'real'"
    postgresql_type = "number"
    postgresql_value = "({0} -> {1})::double precision"


class Word(Property):
    """A property that is text, compared by its bytes."""

    inherit_cache = True
    type = Text()
    sqlite_types = "'text'"
    postgresql_type = "string"
    postgresql_value = "{0} ->> {1}"


class Truth(Property):
    """A property that is true or false."""

    inherit_cache = True
    type = Boolean()
    sqlite_types = "'true', 'false'"
    postgresql_type = "boolean"
    postgresql_value = "({0} -> {1})::boolean"


class Kept(Property):
    """Something that is NULL only where there is no such property, or it is null itself."""

    inherit_cache = True


@compiles(Property, "sqlite")
def _on_sqlite(element: Property, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(clause, **kw) for clause in element.clauses)
    path = f"'$.\"{name[1:-1]}\"'" if name.startswith("'") else f"'$.\"' || {name} || '\"'"
    if isinstance(element, Kept):
        return f"json_type({column}, {path})"
    return (
        f"CASE WHEN json_type({column}, {path}) IN ({element.sqlite_types}) "
        f"THEN json_extract({column}, {path}) END"
    )


@compiles(Property, "postgresql")
def _on_postgresql(element: Property, compiler: Any, **kw: Any) -> str:
    column, name = (compiler.process(clause, **kw) for clause in element.clauses)
    if isinstance(element, Kept):
        return f"({column} -> {name})"
    value = element.postgresql_value.format(column, name)
    collated = ' COLLATE "C"' if isinstance(element, Word) else ""
    return (
        f"(CASE WHEN jsonb_typeof({column} -> {name}) = '{element.postgresql_type}' "
        f"THEN {value} END{collated})"
    )
