"""JSON of any shape as Arrow columns, and back.

Arrow gives each place one type, and has no way to tell a member that is missing from one that is
null. So all values are looked at first (:class:`Place`), and what a column's type does not say of
them is noted beside it (:class:`Notes`), for whole groups of documents:

- a place that has values of several types becomes text that is JSON;
- where numbers are whole in some documents and not in others, the column has fractions. If a
  group's own whole ones were all written without a point they get back that way; otherwise all
  get a point, which for JSON is the same number;
- an explicit null stays one where every document of a group has the member; otherwise it is gone.

A struct without members, which Parquet can't hold, gets one that is always null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, TypeAlias

import orjson
import pyarrow as pa

Path: TypeAlias = tuple[str | None, ...]
"""Names of members from the outside in; None for the elements of a list."""
Convert: TypeAlias = Callable[[Any], Any] | None
"""What makes one representation of a value from the other; None where they are the same."""

EMPTY = pa.struct([("_", pa.null())])
"""What an object without members is: Parquet has no struct without any."""

_WORDS = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""Numbers that JSON can't write, as STAC's ``nodata`` spells them."""
_EXACT = 2**53  # whole numbers up to here are numbers of double precision, too


class Place:
    """What values were seen at one place of many documents."""

    __slots__ = (
        "binary",
        "elements",
        "fractions",
        "lists",
        "members",
        "null",
        "objects",
        "pointed",
        "seen",
        "text",
        "truths",
        "widest",
        "words",
    )

    def __init__(self) -> None:
        self.seen = 0
        self.null = self.truths = self.fractions = self.lists = self.binary = False
        self.text = False
        """Text other than :data:`_WORDS`."""
        self.words = False
        self.pointed = False
        """A whole number with a point: ``2.0``."""
        self.widest = -1
        """The largest size of a whole number without a point; -1: there was none."""
        self.objects = 0
        self.members: dict[str, Place] = {}
        self.elements: Place | None = None

    def look(self, value: Any) -> None:
        """Take a value into account."""
        self.seen += 1
        kind = type(value)
        if kind is str:
            if value in _WORDS:
                self.words = True
            else:
                self.text = True
        elif kind is dict:
            self.objects += 1
            members = self.members
            for name, member in value.items():
                place = members.get(name)
                if place is None:
                    place = members[name] = Place()
                place.look(member)
        elif kind is list:
            self.lists = True
            if self.elements is None:
                self.elements = Place()
            for element in value:
                self.elements.look(element)
        elif kind is float:
            self.fractions = True
            if not self.pointed:
                self.pointed = value.is_integer()
        elif kind is bool:
            self.truths = True
        elif kind is int:
            self.widest = max(self.widest, abs(value))
        elif kind is bytes:
            self.binary = True
        else:
            self.null = True

    def join(self, other: Place) -> Place:
        """Take into account all that another place has."""
        self.seen += other.seen
        for name in ("null", "truths", "fractions", "lists", "binary", "text", "words", "pointed"):
            setattr(self, name, getattr(self, name) or getattr(other, name))
        self.widest = max(self.widest, other.widest)
        self.objects += other.objects
        for name, member in other.members.items():
            self.members.setdefault(name, Place()).join(member)
        if other.elements is not None:
            self.elements = (self.elements or Place()).join(other.elements)
        return self

    def numeric(self, name: str | None) -> bool:
        """Whether all values are numbers, with the words that stand for some."""
        numbers = self.fractions or self.widest >= 0
        return not self.text and (numbers or (self.words and name == "nodata"))

    def mixed(self, name: str | None) -> bool:
        """Whether no type but JSON has room for all values."""
        numbers = self.fractions or self.widest >= 0
        kinds = (self.truths, numbers, self.text or (self.words and not self.numeric(name)))
        if sum((*kinds, self.lists, self.binary, self.objects > 0)) > 1:
            return True
        return self.widest >= (_EXACT if self.fractions or self.words else 2**63)


@dataclass
class Notes:
    """What the types of the columns don't say."""

    json: set[Path] = field(default_factory=set)
    """Places whose text is JSON."""
    words: set[Path] = field(default_factory=set)
    """Places whose not-a-number and infinity were words."""
    whole: set[Path] = field(default_factory=set)
    """Places of fractional numbers whose whole ones had no point."""
    null: set[Path] = field(default_factory=set)
    """Members that are null where they have no value."""

    def to_json(self) -> dict[str, list[Path]]:
        """The notes as JSON has them."""
        return {name: sorted(paths, key=repr) for name, paths in vars(self).items() if paths}

    @classmethod
    def from_json(cls, document: Any) -> Notes:
        """Notes from what :meth:`to_json` made; TypeError or ValueError if it's something else."""
        return cls(**{name: set(map(tuple, paths)) for name, paths in document.items()})

    def __or__(self, other: Notes) -> Notes:
        """Both."""
        return Notes(**{name: paths | getattr(other, name) for name, paths in vars(self).items()})


def arrow_type(place: Place, path: Path, notes: Notes) -> pa.DataType:
    """The type of a column, or of a part of it; notes what is JSON, and what are words."""
    name = path[-1]
    if place.mixed(name):
        notes.json.add(path)
        return pa.string()
    if place.objects:
        members = [
            (member, arrow_type(place.members[member], (*path, member), notes))
            for member in sorted(place.members)
        ]
        return pa.struct(members) if members else EMPTY
    if place.lists:
        assert place.elements is not None
        return pa.list_(arrow_type(place.elements, (*path, None), notes))
    if place.numeric(name):
        if place.words:
            notes.words.add(path)
        return pa.float64() if place.fractions or place.words else pa.int64()
    if place.text or place.words:
        return pa.string()
    if place.binary:
        return pa.binary()
    return pa.bool_() if place.truths else pa.null()


def group_notes(place: Place, joined: Place, path: Path, notes: Notes) -> None:
    """Note what can be said of a group of documents; `joined` is the place in all documents."""
    inner: list[tuple[str | None, Place, Place]]
    inner = [(name, member, joined.members[name]) for name, member in place.members.items()]
    if place.elements is not None and joined.elements is not None:
        inner.append((None, place.elements, joined.elements))
    for name, part, other in inner:
        here = (*path, name)
        if other.mixed(name):
            continue
        if name is not None and part.null and part.seen == place.objects:
            notes.null.add(here)
        if part.widest >= 0 and not part.pointed and (other.fractions or other.words):
            notes.whole.add(here)
        group_notes(part, other, here, notes)


def encoder(type_: pa.DataType, path: Path, notes: Notes) -> Convert:
    """What makes values for a column of those of JSON."""
    if path in notes.json:
        return lambda value: orjson.dumps(value).decode()
    if path in notes.words:
        return lambda value: _WORDS[value] if isinstance(value, str) else value
    if pa.types.is_struct(type_):
        members = {
            member.name: convert
            for member in type_
            if (convert := encoder(member.type, (*path, member.name), notes)) is not None
        }
        if not members:
            return None
        json = {name for name in members if (*path, name) in notes.json}  # has a null of its own

        def encode(value: dict[str, Any]) -> dict[str, Any]:
            return {
                name: members[name](member)
                if name in members and (member is not None or name in json)
                else member
                for name, member in value.items()
            }

        return encode
    if pa.types.is_list(type_):
        each = encoder(type_.value_type, (*path, None), notes)
        return None if each is None else _of_each(each)
    return None


def decoder(
    type_: pa.DataType, path: Path, notes: Notes, binary: Callable[[bytes], Any]
) -> Convert:
    """What makes JSON of a column's values, as ``to_pylist`` gives them; whoever wrote the column.

    Parameters
    ----------
    binary
        What bytes stand for.

    Raises
    ------
    ValueError
        Values of this type are not JSON.
    """
    types = pa.types
    if path in notes.json:
        return orjson.loads
    if types.is_struct(type_):
        members = [
            (member.name, decoder(member.type, (*path, member.name), notes, binary))
            for member in type_
        ]
        return _of_members(members, {name for name, _ in members if (*path, name) in notes.null})
    if types.is_map(type_):
        item = decoder(type_.item_type, (*path, None), notes, binary)
        return lambda value: {k: v if item is None or v is None else item(v) for k, v in value}
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        each = decoder(type_.value_type, (*path, None), notes, binary)
        return None if each is None else _of_each(each)
    if types.is_dictionary(type_):
        return decoder(type_.value_type, path, notes, binary)
    if types.is_floating(type_):
        whole = _whole if path in notes.whole else None
        return _spelt(whole) if path in notes.words or path[-1] == "nodata" else whole
    if types.is_timestamp(type_):
        return instant
    if types.is_date(type_):
        return date.isoformat
    if types.is_decimal(type_):
        return float
    if types.is_binary(type_) or types.is_large_binary(type_):
        return binary
    if any(is_it(type_) for is_it in _AS_THEY_ARE):
        return None
    raise ValueError(f"{'.'.join(name or '[]' for name in path)} is of type {type_}")


_AS_THEY_ARE = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_null,
)


def _of_members(members: Sequence[tuple[str, Convert]], null: set[str]) -> Convert:
    def decode(value: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for name, convert in members:
            member = value[name]
            if member is not None:
                made[name] = member if convert is None else convert(member)
            elif name in null:
                made[name] = None
        return made

    return decode


def _of_each(convert: Callable[[Any], Any]) -> Convert:
    return lambda value: [None if element is None else convert(element) for element in value]


def _spelt(otherwise: Convert) -> Convert:
    """Words for what is no number to JSON."""

    def decode(value: float) -> Any:
        if math.isfinite(value):
            return value if otherwise is None else otherwise(value)
        return str(value)

    return decode


def _whole(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def instant(value: datetime) -> str:
    """An instant as RFC 3339 in UTC, to the microsecond, without a fraction that is zero."""
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return aware.isoformat().replace("+00:00", "Z")
