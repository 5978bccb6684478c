"""The opaque token of a next page: where the last one ended, sealed for its search.

Nothing is stored for it. The seal (keyed BLAKE2) covers the position and the search's filters, so
that a token can neither be made up nor be used with another search; the page size may change.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from hmac import compare_digest

import orjson

from firnline.api.query import Cursor, Search
from firnline.errors import TokenError
from firnline.tables import to_microseconds

_SEAL = 12  # bytes
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def key_for(database_url: str) -> bytes:
    """A key that all processes of one database share, and that outlives them."""
    return hashlib.blake2b(database_url.encode(), person=b"firnline-paging!").digest()


def encode(cursor: Cursor, search: Search, key: bytes) -> str:
    """The token for the page that follows `cursor`."""
    position = orjson.dumps([to_microseconds(cursor.end), cursor.collection, cursor.id])
    return urlsafe_b64encode(_seal(position, search, key) + position).rstrip(b"=").decode()


def decode(token: str, search: Search, key: bytes) -> Cursor:
    """The position that a token stands for.

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
    end, collection, id = orjson.loads(position)
    return Cursor(_EPOCH + timedelta(microseconds=end), collection, id)


def _seal(position: bytes, search: Search, key: bytes) -> bytes:
    sealed = search.fingerprint + position
    return hashlib.blake2b(sealed, key=key, digest_size=_SEAL).digest()
