"""Which places may be read: what ``FIRNLINE_ALLOWED_SOURCES`` means."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

from firnline.errors import SourceNotAllowedError


def is_below(url: str, roots: Sequence[str]) -> bool:
    """Whether `url` lies under one of `roots`; what is no plain URL lies under none.

    A root is a URL (``https://host/prefix/``, ``s3://bucket/``, ``file:///dir/``) or a bare host,
    which stands for ``https://host/``.
    """
    try:
        parts = urlsplit(url)
        path = unquote(parts.path)
        plain = parts.username is None and parts.password is None and parts.port != 0
    except ValueError:  # no valid host or port
        return False
    # A backslash is a slash to some readers of URLs, and control characters are nothing to them.
    plain = plain and url.isprintable() and url == url.strip()
    if not plain or "\\" in url + path or ".." in path.split("/"):
        return False
    for root in roots:
        base = urlsplit(root if "://" in root else f"https://{root}/")
        prefix = unquote(base.path).rstrip("/") + "/"
        if (parts.scheme, parts.netloc.lower()) == (base.scheme, base.netloc.lower()) and (
            path.rstrip("/") + "/"
        ).startswith(prefix):
            return True
    return False


def check_allowed(url: str, allowed: Sequence[str]) -> str:
    """Return `url` if it lies under one of the roots in `allowed`, see :func:`is_below`.

    Raises
    ------
    SourceNotAllowedError
        It does not; the message names the setting.
    """
    if is_below(url, allowed):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        raise SourceNotAllowedError(f"{url[:200]!r} is not a URL") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no password
    raise SourceNotAllowedError(
        f"{shown if shown.isprintable() else repr(shown)} is not an allowed source; "
        f"FIRNLINE_ALLOWED_SOURCES accepts: {', '.join(allowed) or 'nothing'}"
    )
