"""Bytes from where the data lives: https, s3 or a directory, and nowhere else.

Every URL is checked against ``FIRNLINE_ALLOWED_SOURCES`` before it is opened. What is missing,
what can't be reached and what is refused are three different errors: an outage never looks like
missing data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import (
    BaseError,
    NotModifiedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import HTTPStore, LocalStore, S3Store

from firnline.errors import (
    InputError,
    SourceCorruptError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_RETRIES = 5
_TIMEOUT = 60.0  # seconds for one request


def check_allowed(url: str, allowed: Sequence[str]) -> str:
    """Return `url` if it lies under one of the roots in `allowed`.

    A root is a URL (``https://host/prefix/``, ``s3://bucket/``, ``file:///dir/``) or a bare host,
    which stands for ``https://host/``.

    Raises
    ------
    SourceNotAllowedError
        It does not; the message names the setting.
    """
    try:
        parts = urlsplit(url)
        path = unquote(parts.path)
        plain = parts.username is None and parts.password is None and parts.port != 0
    except ValueError:  # no valid host or port
        raise SourceNotAllowedError(f"{url[:200]!r} is not a URL") from None
    # A backslash is a slash to some readers of URLs, and control characters are nothing to them.
    plain = plain and url.isprintable() and url == url.strip()
    if plain and "\\" not in url + path and ".." not in path.split("/"):
        for root in allowed:
            base = urlsplit(root if "://" in root else f"https://{root}/")
            prefix = unquote(base.path).rstrip("/") + "/"
            if (parts.scheme, parts.netloc.lower()) == (base.scheme, base.netloc.lower()) and (
                path.rstrip("/") + "/"
            ).startswith(prefix):
                return url
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no password
    raise SourceNotAllowedError(
        f"{shown if shown.isprintable() else repr(shown)} is not an allowed source; "
        f"FIRNLINE_ALLOWED_SOURCES accepts: {', '.join(allowed) or 'nothing'}"
    )


@dataclass(frozen=True)
class Blob:
    """The bytes of one object (as a buffer, not copied) and the ETag they came with."""

    data: Buffer
    etag: str | None


class Source:
    """One root to read objects from, for instance a cube.

    Requests are retried with exponential backoff and jitter on timeouts, resets, 429 and 5xx
    (by obstore); a body cut short is continued by range.

    Parameters
    ----------
    url
        ``https://``, ``http://``, ``s3://`` (anonymous) or ``file://``.
    allowed
        Roots that may be read, see :func:`check_allowed`.

    Raises
    ------
    SourceNotAllowedError
    SourceMissingError
        A folder of one's own that is not there.
    """

    def __init__(self, url: str, *, allowed: Sequence[str]) -> None:
        self.url = check_allowed(url.rstrip("/"), allowed)
        self._store = _open_store(self.url)

    def get(self, path: str) -> Blob:
        """Read one object.

        Raises
        ------
        SourceMissingError
            The source answered that the object does not exist (404).
        SourceUnreachableError
            No answer, or a refusal, after all retries.
        SourceCorruptError
            No object can have this name: whoever named it is wrong.
        """
        return self._get(path)

    def get_changed(self, path: str, etag: str | None) -> Blob | None:
        """Read one object unless it is still the one with this ETag; None where it is.

        One request either way (If-None-Match). Raises as :meth:`get`.
        """
        try:
            return self._get(path, {} if etag is None else {"if_none_match": etag})
        except NotModifiedError:
            return None

    def get_range(self, path: str, start: int, length: int) -> Blob:
        """Read `length` bytes of an object from byte `start` on.

        Raises as :meth:`get`, and

        Raises
        ------
        SourceCorruptError
            The object ends before that.
        """
        blob = self._get(path, {"range": (start, start + length)})
        return self._checked(path, blob, length)

    def get_start(self, path: str, length: int) -> Blob:
        """Read the first `length` bytes of an object, or all if there are fewer.

        Raises as :meth:`get`.
        """
        return self._get(path, {"range": (0, length)})

    def get_suffix(self, path: str, length: int) -> Blob:
        """Read the last `length` bytes of an object. Raises as :meth:`get_range`."""
        return self._checked(path, self._get(path, {"range": {"suffix": length}}), length)

    def _get(self, path: str, options: Any = None) -> Blob:
        try:
            result = obstore.get(self._store, path, options=options or None)
            return Blob(result.bytes(), result.meta["e_tag"])
        except FileNotFoundError:
            raise SourceMissingError(f"{self.url}/{path} does not exist") from None
        except NotModifiedError:
            raise
        except ValueError as error:
            raise SourceCorruptError(f"{self.url}: {path[:200]!r} names no object") from error
        except (BaseError, OSError) as error:
            raise SourceUnreachableError(f"{self.url}/{path}: {_reason(error)}") from error

    def _checked(self, path: str, blob: Blob, length: int) -> Blob:
        if memoryview(blob.data).nbytes != length:
            raise SourceCorruptError(f"{self.url}/{path} is shorter than its index says")
        return blob


def _open_store(url: str) -> HTTPStore | S3Store | LocalStore:
    scheme = urlsplit(url).scheme
    retries: Any = {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=3 * _TIMEOUT),
        "backoff": {
            "init_backoff": timedelta(milliseconds=100),
            "max_backoff": timedelta(seconds=15),
            "base": 2,
        },
    }
    client: Any = {
        "allow_http": scheme == "http",
        "timeout": timedelta(seconds=_TIMEOUT),
        "connect_timeout": timedelta(seconds=10),
    }
    if scheme in ("http", "https"):
        return HTTPStore.from_url(url, client_options=client, retry_config=retries)
    if scheme == "s3":
        return S3Store.from_url(
            url,
            skip_signature=True,
            region="us-west-2",
            client_options=client,
            retry_config=retries,
        )
    if scheme == "file":
        try:
            return LocalStore(Path(unquote(urlsplit(url).path)))
        except BaseError:  # of all stores this one looks whether its root is there
            raise SourceMissingError(f"{url} does not exist") from None
    raise InputError(f"{scheme or 'a path'} can't be read from; accepted: https, http, s3, file")


def _reason(error: Exception) -> str:
    """The first line of an obstore error, without its Rust debug dump and the URL's repetition."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access denied"
    line = str(error).strip().splitlines()[0]
    return line.rsplit(" - ", 1)[-1].strip(" :")
