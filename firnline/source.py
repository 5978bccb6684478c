"""Bytes from where the data lives: https, s3 or a directory, and nowhere else.

Every URL is checked against ``FIRNLINE_ALLOWED_SOURCES`` before it is opened. What is missing,
what can't be reached and what is refused are three different errors: an outage never looks like
missing data.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

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
_LARGEST_DOCUMENT = 1 << 30


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
        return LocalStore(Path(unquote(urlsplit(url).path)))
    raise InputError(f"{scheme or 'a path'} can't be read from; accepted: https, http, s3, file")


def _reason(error: Exception) -> str:
    """The first line of an obstore error, without its Rust debug dump and the URL's repetition."""
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return "access denied"
    line = str(error).strip().splitlines()[0]
    return line.rsplit(" - ", 1)[-1].strip(" :")


def read_document(location: str | Path, *, allowed: Sequence[str]) -> bytes:
    """Read one whole document, such as a catalog, from a local path or an allowed URL.

    A path is the operator's own and is not checked; a redirect is followed only to an allowed
    place.

    Raises
    ------
    SourceNotAllowedError, SourceMissingError, SourceUnreachableError, SourceCorruptError
    """
    scheme = urlsplit(str(location)).scheme
    if scheme in ("s3", "file"):
        folder, _, name = str(location).rpartition("/")
        check_allowed(str(location), allowed)
        return bytes(Source(folder, allowed=(folder + "/",)).get(unquote(name)).data)
    if scheme in ("http", "https"):
        return _download(str(location), allowed)
    if "://" in str(location):
        raise SourceNotAllowedError(f"{scheme} can't be read from; accepted: https, http, s3, file")
    try:
        return Path(location).read_bytes()
    except FileNotFoundError:
        raise SourceMissingError(f"{location} does not exist") from None
    except OSError as error:
        raise SourceUnreachableError(f"{location}: {error.strerror}") from error


def _download(url: str, allowed: Sequence[str]) -> bytes:
    import httpx

    with httpx.Client(timeout=_TIMEOUT, follow_redirects=False) as client:
        for attempt in range(_RETRIES):
            try:
                return _follow(client, url, allowed)
            except httpx.InvalidURL as error:
                raise SourceNotAllowedError(f"{url[:200]!r} is not a URL: {error}") from None
            except httpx.DecodingError as error:
                raise SourceCorruptError(f"{url}: {error}") from error
            except (httpx.TransportError, _TryAgain) as error:
                if attempt == _RETRIES - 1:
                    reason = str(error) or type(error).__name__
                    raise SourceUnreachableError(f"{url}: {reason}") from error
                time.sleep(0.2 * 2**attempt)
    raise AssertionError("unreachable")


class _TryAgain(Exception):
    """A 429 or 5xx answer."""


def _follow(client: Any, url: str, allowed: Sequence[str]) -> bytes:
    for _ in range(5):
        with client.stream("GET", check_allowed(url, allowed)) as response:
            if response.is_redirect:
                try:
                    url = urljoin(url, response.headers.get("location", ""))
                except ValueError:
                    raise SourceUnreachableError(f"{url} redirects to what is no URL") from None
                continue
            if response.status_code in (404, 410):
                raise SourceMissingError(f"{url} does not exist ({response.status_code})")
            if response.status_code == 429 or response.status_code >= 500:
                raise _TryAgain(f"the server answered {response.status_code}")
            if response.status_code != 200:
                raise SourceUnreachableError(f"{url}: the server answered {response.status_code}")
            body = bytearray()
            for part in response.iter_bytes():
                body += part
                if len(body) > _LARGEST_DOCUMENT:
                    raise SourceCorruptError(f"{url} is larger than 1 GiB, not a catalog")
            return bytes(body)
    raise SourceUnreachableError(f"{url}: too many redirects")
