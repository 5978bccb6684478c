"""The matches of a search counted, in one statement for both databases.

The matches are found once and kept, with what all that is to be counted needs of them, so that
all counts are of one state of the catalog; then each :class:`Part` groups them by one column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    Select,
    Text,
    case,
    cast,
    func,
    literal,
    null,
    select,
    true,
    union_all,
)
from sqlalchemy.sql.selectable import CTE, FromClause

from firnline.api import query
from firnline.api.searches import Search, Shape, Way
from firnline.tables import items

MOST_VALUES = 10_000
"""Values that are counted one by one; what has more is cut off after the most frequent."""


class Count(NamedTuple):
    """How many items have a value, which is text or a whole number; None: they have none."""

    value: Any
    items: int


@dataclass(frozen=True)
class Part:
    """A column that matches are counted by.

    `how`: by each of its values (``all``), by the most frequent of them (``top``), by the members
    of its lists, or not counted, but its ``least`` or ``most`` value taken. `value` makes of the
    column what is counted by.
    """

    column: ColumnElement[Any]
    how: Literal["all", "top", "members", "least", "most"] = "all"
    value: Callable[[ColumnElement[Any]], ColumnElement[Any]] = lambda column: column


def count(
    connection: Connection, search: Search, parts: Sequence[Part]
) -> tuple[int, list[list[Count]]]:
    """The number of all matches, and their counts by each of the parts, in no order."""
    counts: list[list[Count]] = [[] for _ in range(len(parts) + 1)]
    for part, word, whole, found in connection.execute(
        statement(search.shape, parts, connection.dialect.name), search.values
    ):
        counts[part].append(Count(whole if word is None else word, found))
    *by_part, ((_, total),) = counts
    return total, by_part


def statement(shape: Shape, parts: Sequence[Part], dialect: str) -> CompoundSelect[Any]:
    """Rows of the part's number, the value as text or as number, and how many items have it.

    The part that comes after the last one is the number of all matches.
    """
    matches = (
        select(items.c.key, *(part.column.label(f"c{n}") for n, part in enumerate(parts)))
        .where(*query.conditions(shape, Way.GATHER, dialect))
        .cte("matches")
        .prefix_with("MATERIALIZED")
    )
    each = [_counted(n, part, matches, dialect) for n, part in enumerate(parts)]
    total = select(*_row(len(parts), cast(null(), Text), func.count())).select_from(matches)
    return union_all(*each, total)


def _counted(number: int, part: Part, matches: CTE, dialect: str) -> Select[Any]:
    column = matches.c[f"c{number}"]
    value, found = part.value(column), func.count()
    source: FromClause = matches
    if part.how in ("least", "most"):
        extreme = func.min(column) if part.how == "least" else func.max(column)
        return select(*_row(number, extreme, found)).select_from(matches)
    if part.how == "members":
        each = func.json_each if dialect == "sqlite" else func.jsonb_array_elements_text
        member = each(column).table_valued("value")
        value = cast(member.c.value, Text)
        found = func.count(matches.c.key.distinct())
        source = matches.outerjoin(member, true())  # an item without members is counted as such
    grouped = select(*_row(number, value, found)).select_from(source).group_by(value)
    if part.how == "all":
        return grouped
    top = grouped.order_by(case((value.is_(None), 0), else_=1), found.desc(), value)
    return select(top.limit(MOST_VALUES + 1).subquery())


def _row(number: int, value: ColumnElement[Any], found: Any) -> tuple[ColumnElement[Any], ...]:
    word: ColumnElement[Any] = cast(null(), Text)
    whole: ColumnElement[Any] = cast(null(), BigInteger)
    if isinstance(value.type, Text):
        word = value
    else:
        whole = cast(value, BigInteger)
    return (
        literal(number).label("part"),
        word.label("word"),
        whole.label("whole"),
        found.label("found"),
    )
