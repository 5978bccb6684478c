"""The opaque token of a next page: where the last one ended, sealed for its search.

Nothing is stored for it. The seal (keyed BLAKE2) covers the position and the search's filters, so
that a token can neither be made up nor be used with another search; the page size may change. The
way to the pages and the number of matches go along: they are found out once, for the first page.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hmac import compare_digest
from typing import Any

import orjson

from firnline.api.matched import Matched
from firnline.api.searches import Cursor, Search, Way
from firnline.errors import TokenError
from firnline.tables import to_microseconds

_SEAL = 12  # bytes
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Place:
    """Where a search goes on, and how."""

    cursor: Cursor
    way: Way
    matched: Matched


def key_for(database_url: str) -> bytes:
    """A key that all processes of one database share, and that outlives them."""
    return hashlib.blake2b(database_url.encode(), person=b"firnline-paging!").digest()


def encode(place: Place, search: Search, key: bytes) -> str:
    """The token for the page that follows `place`."""
    cursor, matched = place.cursor, place.matched
    values = [[to_microseconds(v)] if isinstance(v, datetime) else v for v in cursor.values]
    position = orjson.dumps(
        [values, cursor.collection, cursor.id, place.way.value, matched.number, matched.error]
    )
    return urlsafe_b64encode(_seal(position, search, key) + position).rstrip(b"=").decode()


def decode(token: str, search: Search, key: bytes) -> Place:
    """The place that a token stands for.

    Raises
    ------
    TokenError
        This server did not make it, or not for this search.
    """
    try:
        sealed = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (UnicodeEncodeError, binascii.Error):
        sealed = b""
    seal, position = sealed[:_SEAL], sealed[_SEAL:]
    if not compare_digest(seal, _seal(position, search, key)):
        raise TokenError(
            "token is not one that this server made for this search; take the whole `next` link"
        )
    values, collection, id, way, number, error = orjson.loads(position)
    cursor = Cursor(tuple(map(_value, values)), collection, id)
    return Place(cursor, Way(way), Matched(number, error))


def _value(value: Any) -> Any:
    return _EPOCH + timedelta(microseconds=value[0]) if isinstance(value, list) else value


def _seal(position: bytes, search: Search, key: bytes) -> bytes:
    sealed = search.fingerprint + position
    return hashlib.blake2b(sealed, key=key, digest_size=_SEAL).digest()
