"""Conditional requests (RFC 9110, 13): what a client has already is not sent again."""

from __future__ import annotations

import hashlib
from email.utils import parsedate_to_datetime

from starlette.datastructures import Headers
from starlette.responses import Response

_KEPT = ("cache-control", "etag", "last-modified", "vary")


def tag_of(content: bytes) -> str:
    """An entity tag: a weak one, since the content may leave in several encodings."""
    return f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'


def not_modified(asked: Headers, reply: Response) -> Response | None:
    """The 304 in place of a reply, if the client has it.

    RFC 9110, 13.2.2: If-None-Match, compared weakly, goes before If-Modified-Since.
    """
    if not _is_known(asked, reply.headers):
        return None
    kept = {name: value for name, value in reply.headers.items() if name in _KEPT}
    return Response(status_code=304, headers=kept)


def _is_known(asked: Headers, reply: Headers) -> bool:
    tags = asked.get("if-none-match")
    if tags is not None:
        known = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        return "*" in known or reply["etag"].removeprefix("W/") in known
    since, changed = asked.get("if-modified-since"), reply.get("last-modified")
    if since is None or changed is None:
        return False
    try:
        return parsedate_to_datetime(since) >= parsedate_to_datetime(changed)
    except (TypeError, ValueError):
        return False
