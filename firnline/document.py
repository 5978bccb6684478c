"""Whole documents, such as catalogs, and whether files exist: what is asked by plain HTTP.

Documents are read by conditional requests, of an allowed host only (a redirect's goal too), and
never larger than :data:`LARGEST`, decompressed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from firnline import web
from firnline.allowed import check_allowed
from firnline.errors import (
    FirnlineError,
    SourceCorruptError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)
from firnline.source import Source, s3_address

LARGEST = 1 << 28
"""Bytes of a document, thirty times the real catalog."""

_MEMBERS = 100  # each costs a copy of all that follows it
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Validators:
    """What tells, without reading it, whether a document is still the one that was read."""

    etag: str | None = None
    """The ETag of the answer; of a local file a digest of its bytes."""
    modified: str | None = None
    """Last-Modified, as the server spelt it."""


@dataclass(frozen=True)
class Document:
    """A whole document, decompressed, and what to ask with the next time."""

    data: bytes
    validators: Validators


def read_document(
    location: str | Path, *, allowed: Sequence[str], known: Validators | None = None
) -> Document | None:
    """Read one whole document from a local path or an allowed URL.

    A path is the operator's own and is not checked. What is compressed by gzip, in transit or at
    rest, is decompressed.

    Parameters
    ----------
    known
        What the document had when it was last read.

    Returns
    -------
    Document or None
        None: it's still the one of `known` (over HTTP a 304, with nothing read).

    Raises
    ------
    SourceNotAllowedError, SourceMissingError, SourceUnreachableError
    SourceCorruptError
        More than :data:`LARGEST`, or not the gzip that it begins as.
    """
    url = str(location)
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https", "s3", "file") and "://" in url:
        raise SourceNotAllowedError(f"{scheme} can't be read from; accepted: https, http, s3, file")
    known = known or Validators()
    if scheme in ("http", "https"):
        return _download(url, allowed, known)
    if scheme == "s3":
        check_allowed(url, allowed)
        folder, _, name = url.rpartition("/")
        blob = Source(folder, allowed=(folder + "/",)).get(unquote(name))
        data, etag = bytes(blob.data), blob.etag
    else:
        data = _read(location, allowed)
        # A file may be replaced and keep its times; its bytes are quickly looked at.
        etag = hashlib.blake2b(data, digest_size=16).hexdigest()
    if etag is not None and etag == known.etag:
        return None
    return Document(_inflated(data, url), Validators(etag))


def _read(location: str | Path, allowed: Sequence[str]) -> bytes:
    path = Path(location)
    if urlsplit(str(location)).scheme == "file":
        path = Path(unquote(urlsplit(check_allowed(str(location), allowed)).path))
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise SourceMissingError(f"{location} does not exist") from None
    except OSError as error:
        raise SourceUnreachableError(f"{location}: {error.strerror}") from error


@dataclass(frozen=True)
class Seen:
    """What a file is known by without being read."""

    etag: str | None
    size: int | None
    """Bytes, where the server tells."""


def look_up(
    files: Sequence[Sequence[str]], *, allowed: Sequence[str], concurrency: int = 16
) -> Generator[Seen | FirnlineError | None]:
    """Whether files are there, by HEAD (or by looking, for ``file://``).

    Parameters
    ----------
    files
        For each the URLs that it may have: it is there if one of them is, the first one first.

    Yields
    ------
    Seen or FirnlineError or None
        In the order of `files`. None: the server said that there is no such file. An error is no
        answer, or a refusal: an outage must not make anything look missing.
    """

    def look(urls: Sequence[str]) -> Seen | FirnlineError | None:
        try:
            return next(filter(None, (_seen(url, allowed) for url in urls)), None)
        except FirnlineError as error:
            return error

    with ThreadPoolExecutor(concurrency) as executor:
        try:
            yield from executor.map(look, files)
        finally:  # the rest would each wait for its retries
            executor.shutdown(cancel_futures=True)


def _seen(url: str, allowed: Sequence[str]) -> Seen | None:
    parts = urlsplit(check_allowed(url, allowed))
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        try:
            return Seen(None, path.stat().st_size) if path.is_file() else None
        except OSError as error:
            raise SourceUnreachableError(f"{url}: {error.strerror}") from error
    if parts.scheme == "s3":
        url = s3_address(url)
        allowed = [*allowed, url]
    answer = web.ask("HEAD", url, allowed=allowed)
    if answer.status == 404:
        return None
    size = answer.headers.get("content-length", "")
    return Seen(answer.headers.get("etag"), int(size) if size.isdecimal() else None)


def _download(url: str, allowed: Sequence[str], known: Validators) -> Document | None:
    headers = {"Accept-Encoding": "gzip"}
    if known.etag is not None:
        headers["If-None-Match"] = known.etag
    if known.modified is not None:
        headers["If-Modified-Since"] = known.modified
    check_allowed(url, allowed)
    answer = web.ask("GET", url, allowed=allowed, headers=headers, largest=LARGEST)
    if answer.status == 304 and known != Validators():
        return None
    if answer.status == 304:
        raise SourceUnreachableError(f"{url}: the server answered 304 to what was no condition")
    if answer.status == 404:
        raise SourceMissingError(f"{url} does not exist")
    if answer.status != 200:
        raise SourceUnreachableError(f"{url}: the server answered {answer.status}")
    encoding = answer.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise SourceCorruptError(f"{url} came in the encoding {encoding[:40]!r}, not as gzip")
    validators = Validators(answer.headers.get("etag"), answer.headers.get("last-modified"))
    return Document(_inflated(answer.body, url), validators)


def _inflated(data: bytes, name: str) -> bytes:
    """`data`, decompressed if it is gzip; never more of it than the largest document."""
    if not data.startswith(_GZIP):
        return data
    body = bytearray()
    rest = data
    try:
        for _ in range(_MEMBERS):  # a gzip file may have several
            member = zlib.decompressobj(wbits=31)
            body += member.decompress(rest, LARGEST + 1 - len(body))
            if len(body) > LARGEST:
                raise _too_large(name)
            if not member.eof:
                raise SourceCorruptError(f"{name}: its gzip is cut short")
            rest = member.unused_data
            if not rest:
                return bytes(body)
    except zlib.error as error:
        raise SourceCorruptError(f"{name} is not readable as gzip: {error}") from None
    raise SourceCorruptError(f"{name} is gzip of more than {_MEMBERS} members, not a catalog")


def _too_large(name: str) -> SourceCorruptError:
    return SourceCorruptError(f"{name} is larger than {LARGEST / 2**20:g} MiB, not a catalog")
