"""A search in normal form, and its shape, which statements are made of; pure.

A statement is made of a search's :class:`Shape`, and executed with its values: to put one together
takes SQLAlchemy longer than it takes a database to find ten items.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

from firnline.api import boxes
from firnline.api.area import Area
from firnline.api.filter_nodes import Node

DEFAULT_LIMIT = 10
MAX_LIMIT = 10_000
Value: TypeAlias = "datetime | float | str | None"
_KEPT = 256  # statements of each kind


@dataclass(frozen=True)
class SortKey:
    """One key of an order.

    `field` is ``id``, ``collection``, ``start_datetime``, ``end_datetime``, ``datetime`` (which
    is the end: all items have one) or a property. Items without the property come last, whichever
    the direction.
    """

    field: str
    descending: bool = False


NEWEST = (SortKey("end_datetime", descending=True),)


@dataclass(frozen=True)
class Cursor:
    """Where a page ended: the place of its last item in the order."""

    values: tuple[Value, ...]
    """Of the columns that :func:`order_columns` makes of the sort keys."""
    collection: str
    id: str


class Way(Enum):
    """How a page is found."""

    GATHER = "gather"
    WALK = "walk"


@dataclass(frozen=True)
class Search:
    """A search in normal form.

    An empty `collections` or `ids` restricts nothing. `start` and `end` bound the items whose own
    interval *overlaps* them, both inclusive. `filter` is CQL2 JSON that was checked; an item has
    at least one of the `words` in its id, title or description.
    """

    collections: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    area: Area | None = None
    start: datetime | None = None
    end: datetime | None = None
    filter: Node | None = None
    words: tuple[str, ...] = ()
    order: tuple[SortKey, ...] = NEWEST
    limit: int = DEFAULT_LIMIT
    after: Cursor | None = None

    @property
    def fingerprint(self) -> bytes:
        """What tells one set of matches, and their order, from another: all but the page."""
        words = (
            sorted(self.collections),
            sorted(self.ids),
            str(self.start),
            str(self.end),
            self.filter,
            sorted(self.words),
            self.order,
        )
        area = self.area.wkb if self.area else b""
        return hashlib.blake2b(repr(words).encode() + area, digest_size=16).digest()

    @property
    def shape(self) -> Shape:
        """What its statements are made of."""
        return Shape(
            bool(self.collections),
            bool(self.ids),
            len(self.area.boxes) if self.area else 0,
            self.start is not None,
            self.end is not None,
            self.filter,
            self.words,
            self.order,
            None if self.after is None else tuple(v is not None for v in self.after.values),
        )

    @property
    def values(self) -> dict[str, Any]:
        """What its statements are executed with."""
        values: dict[str, Any] = {"most": self.limit + 1}
        if self.collections:
            values["collections"] = self.collections
        if self.ids:
            values["ids"] = self.ids
        if self.start is not None:
            values["start"] = self.start
        if self.end is not None:
            values["end"] = self.end
        if self.after is not None:
            values |= {f"after{n}": value for n, value in enumerate(self.after.values)}
            values |= {"after_collection": self.after.collection, "after_id": self.after.id}
        return values | boxes.values(self.area, self.start, self.end)


@dataclass(frozen=True)
class Shape:
    """What a search asks, but not the values that it asks for: those of one shape share statements.

    `boxes` is the number of the area's, 0 without one; `after` says which of the cursor's values
    there are. Filters and words are as in the search, for each has statements of its own.
    """

    collections: bool = False
    ids: bool = False
    boxes: int = 0
    start: bool = False
    end: bool = False
    filter: Node | None = None
    words: tuple[str, ...] = ()
    order: tuple[SortKey, ...] = NEWEST
    after: tuple[bool, ...] | None = None

    @property
    def bare(self) -> bool:
        """Whether nothing but collections restricts it."""
        return not (self.ids or self.in_tree or self.words or self.filter is not None)

    @property
    def in_tree(self) -> bool:
        """Whether a place or a time restricts it, which SQLite looks up in the R*Tree."""
        return bool(self.boxes or self.start or self.end)


_Rest = ParamSpec("_Rest")
_Made = TypeVar("_Made")


def made_once(
    make: Callable[Concatenate[Shape, _Rest], _Made],
) -> Callable[Concatenate[Shape, _Rest], _Made]:
    """Keeps the statements that are made, but for those with filters and words in them."""
    kept = cast("Callable[Concatenate[Shape, _Rest], _Made]", lru_cache(_KEPT)(make))

    @wraps(make)
    def statement(shape: Shape, /, *rest: _Rest.args, **more: _Rest.kwargs) -> _Made:
        if shape.filter is not None or shape.words:
            return make(shape, *rest, **more)
        return kept(shape, *rest, **more)

    return statement
