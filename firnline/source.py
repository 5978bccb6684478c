"""Bytes from where the data lives: https, s3 or a directory, and nowhere else.

Every URL is checked against ``FIRNLINE_ALLOWED_SOURCES`` before it is opened. What is missing,
what can't be reached and what is refused are three different errors: an outage never looks like
missing data.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotModifiedError
from obstore.store import LocalStore, S3Store

from firnline import web
from firnline.allowed import check_allowed, is_below
from firnline.errors import (
    InputError,
    SourceCorruptError,
    SourceMissingError,
    SourceUnreachableError,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_REGION = "us-west-2"  # of ITS_LIVE's bucket
_LARGEST = 4 << 30  # bytes of an object, where no one knows better
_ALWAYS: Mapping[str, str] = {}
_TRIES = 3  # to read a window, of which a server or a proxy may give less
_SIGNED_FOR = timedelta(hours=1)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Blob:
    """The bytes of one object (as a buffer, not copied) and the ETag they came with."""

    data: Buffer
    etag: str | None
    date: str | None = None
    """When it was given, by the server's clock (HTTP's Date)."""


@dataclass(frozen=True)
class _Window:
    """Bytes of an object: `length` from `start` on, or the last `length`."""

    start: int | None
    length: int


class _Transport(Protocol):
    def get(
        self, path: str, unless: Mapping[str, str], window: _Window | None, largest: int
    ) -> Blob | None:
        """Read an object or a window of it; None where a condition of HTTP, as a header, fails.

        An object of more than `largest` bytes is corrupt; one of one's own is not looked at so.
        """


class Source:
    """One root to read objects from, for instance a cube. Any number of threads may share it.

    Requests are made again on timeouts, resets, 429 and 5xx, see :mod:`firnline.web`.

    Parameters
    ----------
    url
        ``https://``, ``http://``, ``s3://`` or ``file://``.
    allowed
        Roots that may be read, see :func:`firnline.allowed.is_below`.
    signed
        Those of the ``s3://`` roots that are read with the credentials of the environment (the
        ``AWS_…`` variables, or the machine's role); others are read anonymously.

    Raises
    ------
    SourceNotAllowedError
    SourceMissingError
        A folder of one's own that is not there.
    """

    def __init__(self, url: str, *, allowed: Sequence[str], signed: Sequence[str] = ()) -> None:
        self.url = check_allowed(url.rstrip("/"), allowed)
        self._roots: dict[str, Any] = {"allowed": tuple(allowed), "signed": tuple(signed)}
        self._transport: _Transport
        parts = urlsplit(self.url)
        if parts.scheme == "file":
            self._transport = _Files(self.url)
        elif parts.scheme == "s3":
            root = _s3_root(parts.netloc)
            self._transport = (
                _SignedS3(self.url, (*allowed, root))
                if is_below(self.url, signed)
                else _Web(s3_address(self.url).rstrip("/"), (*allowed, root))
            )
        elif parts.scheme in ("http", "https"):
            self._transport = _Web(self.url, allowed)
        else:
            raise InputError(
                f"{parts.scheme or 'a path'} can't be read from; accepted: https, http, s3, file"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # in another process it makes connections of its own
        return functools.partial(Source, **self._roots), (self.url,)

    @property
    def remote(self) -> bool:
        """Whether bytes come over a network."""
        return not isinstance(self._transport, _Files)

    def get(self, path: str) -> Blob:
        """Read one object.

        Raises
        ------
        SourceMissingError
            The source answered that the object does not exist (404).
        SourceUnreachableError
            No answer, or a refusal, after all retries.
        SourceNotAllowedError
            The source sends to a place that may not be read.
        SourceCorruptError
            No object can have this name: whoever named it is wrong.
        """
        blob = self._get(path)
        assert blob is not None
        return blob

    def get_changed(
        self, path: str, etag: str | None, *, since: str | None = None, largest: int = _LARGEST
    ) -> Blob | None:
        """Read one object unless it is still the one with this ETag; None where it is.

        Where no ETag is known, unless it has not changed `since` (a date as HTTP has them).
        One request either way (If-None-Match, If-Modified-Since). Raises as :meth:`get`, and
        SourceCorruptError where it has more than `largest` bytes.
        """
        modified = {} if etag or not since else {"If-Modified-Since": since}
        return self._get(path, modified or _unless(etag), largest=largest)

    def get_range(self, path: str, start: int, length: int) -> Blob:
        """Read `length` bytes of an object from byte `start` on.

        Raises as :meth:`get`, and

        Raises
        ------
        SourceCorruptError
            The object ends before that.
        """
        blob = self._get(path, {}, _Window(start, length))
        assert blob is not None
        return blob

    def get_start(self, path: str, length: int) -> Blob:
        """Read the first `length` bytes of an object, or all if there are fewer.

        Raises as :meth:`get`.
        """
        blob = self._get(path, _ALWAYS, _Window(0, length), shorter=True)
        assert blob is not None
        return blob

    def get_suffix(self, path: str, length: int, etag: str | None = None) -> Blob | None:
        """Read the last `length` bytes of an object; None where it still has this ETag.

        Raises as :meth:`get_range`.
        """
        return self._get(path, _unless(etag), _Window(None, length))

    def _get(
        self,
        path: str,
        unless: Mapping[str, str] = _ALWAYS,
        window: _Window | None = None,
        *,
        shorter: bool = False,
        largest: int = _LARGEST,
    ) -> Blob | None:
        if any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable():
            raise SourceCorruptError(f"{self.url}: {path[:200]!r} names no object")
        for _ in range(_TRIES):
            try:
                blob = self._transport.get(path, unless, window, largest)
            except FileNotFoundError:
                raise SourceMissingError(f"{self.url}/{path} does not exist") from None
            if blob is None or window is None or shorter or _size(blob) == window.length:
                return blob
        raise SourceCorruptError(f"{self.url}/{path} is shorter than its index says")


class _Web:
    """Objects over HTTP; `allowed` says where redirects may lead to."""

    def __init__(self, url: str, allowed: Sequence[str]) -> None:
        self._url = url
        self._allowed = allowed

    def _address(self, path: str) -> str:
        return f"{self._url}/{quote(path)}"

    def get(
        self, path: str, unless: Mapping[str, str], window: _Window | None, largest: int
    ) -> Blob | None:
        headers = dict(unless)
        if window is not None:
            first, last = window.start, window.length
            if first is not None:
                last += first - 1
            headers["Range"] = f"bytes={'' if first is None else first}-{last}"
            largest = window.length
        url = self._address(path)
        answer = web.ask("GET", url, allowed=self._allowed, headers=headers, largest=largest)
        if answer.status == 404:
            raise FileNotFoundError
        etag = answer.headers.get("etag")
        shown = url.partition("?")[0]
        if answer.status == 304:
            if not unless:
                raise SourceUnreachableError(f"{shown}: the server answered 304 to no condition")
            return None
        if window is None and answer.status != 200:
            raise SourceUnreachableError(f"{shown}: the server answered {answer.status}")
        if window is not None and answer.status == 200:
            raise SourceUnreachableError(f"{shown}: the server does not give ranges of bytes")
        if answer.status == 416:  # it begins beyond the end
            return Blob(b"", etag)
        if window is not None:
            _check_range(shown, window, answer.headers.get("content-range", ""))
        return Blob(answer.body, etag, answer.headers.get("date"))


class _SignedS3(_Web):
    """Objects of a bucket, each address signed by obstore, which knows where credentials are."""

    def __init__(self, url: str, allowed: Sequence[str]) -> None:
        super().__init__(url, allowed)
        parts = urlsplit(url)
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _REGION
        prefix = unquote(parts.path).strip("/")
        # for finding credentials only, which are not far where there are any
        hurried: Any = {
            "client_options": {"allow_http": True, "connect_timeout": timedelta(seconds=2)},
            "retry_config": {"max_retries": 2},
        }
        self._store = S3Store(parts.netloc, prefix=prefix or None, region=region, **hurried)

    def _address(self, path: str) -> str:
        try:
            return obstore.sign(self._store, "GET", path, _SIGNED_FOR)
        except (BaseError, OSError) as error:
            raise SourceUnreachableError(
                f"{self._url}/{path} can't be signed for: {_first_line(error)}"
            ) from error


class _Files:
    """Objects in a directory."""

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._store = LocalStore(Path(unquote(urlsplit(url).path)))
        except BaseError:  # of all stores this one looks whether its root is there
            raise SourceMissingError(f"{url} does not exist") from None

    def get(
        self, path: str, unless: Mapping[str, str], window: _Window | None, largest: int
    ) -> Blob | None:
        etag = unless.get("If-None-Match")
        options: Any = {} if etag is None else {"if_none_match": etag}
        if window is not None and window.start is None:
            options["range"] = {"suffix": window.length}
        elif window is not None and window.start is not None:
            options["range"] = (window.start, window.start + window.length)
        try:
            result = obstore.get(self._store, path, options=options or None)
            return Blob(result.bytes(), result.meta["e_tag"])
        except FileNotFoundError:
            raise
        except NotModifiedError:
            return None
        except ValueError as error:
            raise SourceCorruptError(f"{self._url}: {path[:200]!r} names no object") from error
        except (BaseError, OSError) as error:
            raise SourceUnreachableError(f"{self._url}/{path}: {_first_line(error)}") from error


def _unless(etag: str | None) -> Mapping[str, str]:
    return _ALWAYS if etag is None else {"If-None-Match": etag}


def s3_address(url: str) -> str:
    """The HTTP address of what an ``s3://`` URL names, for reading it without a signature."""
    parts = urlsplit(url)
    return f"{_s3_root(parts.netloc)}{quote(unquote(parts.path)).lstrip('/')}"


def _s3_root(bucket: str) -> str:
    """The HTTP root of a bucket, with a slash at its end.

    ``AWS_ENDPOINT_URL_S3`` and ``AWS_ENDPOINT_URL`` name another S3 than Amazon's, as they do for
    Amazon's own clients. Amazon's global endpoint finds a bucket's region by the host's name.
    """
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if endpoint := os.environ.get(name):
            return f"{endpoint.rstrip('/')}/{bucket}/"
    return f"https://{bucket}.s3.amazonaws.com/"


def _check_range(shown: str, window: _Window, told: str) -> None:
    """The server's own word on which bytes it gives has to be the question's."""
    match = _CONTENT_RANGE.fullmatch(told)
    if match is None:
        raise SourceUnreachableError(f"{shown}: the server does not say which bytes it gives")
    first, _, size = match.groups()
    expected = window.start
    if expected is None and size != "*":
        expected = max(0, int(size) - window.length)
    if expected is not None and int(first) != expected:
        raise SourceUnreachableError(f"{shown}: the server gives bytes that were not asked for")


def _size(blob: Blob) -> int:
    return memoryview(blob.data).nbytes


def _first_line(error: Exception) -> str:
    """The first line of an obstore error, without its Rust debug dump and the URL's repetition."""
    line = str(error).strip().splitlines()[0]
    return line.rsplit(" - ", 1)[-1].strip(" :")
