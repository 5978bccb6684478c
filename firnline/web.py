"""HTTP as firnline asks it: patient, never sent elsewhere, never taking a part for the whole.

What fails in passing (429 and 5xx, timeouts, resets, a body cut short) is asked again after a wait
that doubles, with jitter. Where a server says ``Retry-After``, nothing is asked of that host before
then, by any thread. Redirects are followed to allowed places only, and no name is followed to a
private address, see :mod:`firnline.connections`.
"""

from __future__ import annotations

import functools
import os
import random
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3
from urllib3.exceptions import HTTPError, SSLError

from firnline.allowed import check_allowed
from firnline.connections import PublicPoolManager, may_be_private
from firnline.errors import (
    SourceCorruptError,
    SourceNotAllowedError,
    SourceRefusedError,
    SourceUnreachableError,
)
from firnline.version import __version__

_RETRIES = 8
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 15.0  # seconds
_PATIENCE = 180.0  # seconds after which nothing is tried again
_CONNECT = 10.0  # seconds until a connection stands
_STALL = 30.0  # seconds without a byte
_WHOLE = 600.0  # seconds for one body, however it trickles
_REDIRECTS = 5
_CONNECTIONS = 64  # kept open to a host
_PIECE = 1 << 20  # of a body, after which the clock is looked at
_EXPLANATION = 1 << 16  # bytes of an error's body that are read, for the connection's sake
_LARGEST = 8 << 30  # bytes of a body, unless the caller says less

_not_before: dict[str, float] = {}  # by host, of time.monotonic
_turns = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """A whole answer: 200, 206, 304, 404 (as which a 410 counts) or 416.

    The body is as it was sent, not decompressed.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class _PassingError(Exception):
    """It may go well the next time, not before `after` seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


def ask(
    method: str,
    url: str,
    *,
    allowed: Sequence[str],
    headers: Mapping[str, str] | None = None,
    largest: int = _LARGEST,
) -> Answer:
    """Ask for `url`, again and again if need be.

    Parameters
    ----------
    method
        ``GET`` or ``HEAD``.
    url
        Not checked: that is the caller's. Its query is kept out of messages, since it may be a
        signature.
    allowed
        Where redirects may lead to, see :func:`firnline.allowed.is_below`, and which hosts may be
        on a private network.
    largest
        Bytes of the body.

    Raises
    ------
    SourceUnreachableError
        No answer after all retries.
    SourceRefusedError
        A refusal.
    SourceNotAllowedError
        The server sends elsewhere.
    SourceCorruptError
        The body is larger than `largest`.
    """
    shown = url.partition("?")[0]
    began = time.monotonic()
    for attempt in range(_RETRIES + 1):
        try:
            return _follow(method, url, allowed, dict(headers or {}), largest)
        except _PassingError as failure:
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
            if attempt == _RETRIES or time.monotonic() - began + failure.after > _PATIENCE:
                raise SourceUnreachableError(f"{shown}: {failure}") from failure
            _hold(url, failure.after)
            _sleep(wait)
        except SourceRefusedError as error:
            raise SourceRefusedError(f"{shown}: {error}") from error.__cause__
        except SourceNotAllowedError as error:
            raise SourceNotAllowedError(f"{shown} sends elsewhere: {error}") from None
        except SourceCorruptError as error:
            raise SourceCorruptError(f"{shown} {error}") from None
    raise AssertionError("unreachable")


def _follow(
    method: str, url: str, allowed: Sequence[str], headers: dict[str, str], largest: int
) -> Answer:
    for _ in range(_REDIRECTS + 1):
        _await_turn(url)
        try:
            answer = _once(method, url, allowed, headers, largest)
        except HTTPError as error:
            if isinstance(error, SSLError) and isinstance(
                error.args[0], ssl.SSLCertVerificationError
            ):
                raise SourceRefusedError(f"its certificate is not trusted: {error}") from error
            raise _PassingError(_reason(error)) from error
        status = answer.status
        if status in (200, 206, 304, 404, 416):
            return answer
        if status == 410:
            return Answer(404, answer.headers, answer.body)
        if status in (301, 302, 303, 307, 308) and "location" in answer.headers:
            try:
                url = urljoin(url, answer.headers["location"])
            except ValueError:
                raise SourceRefusedError("it redirects to what is no URL") from None
            check_allowed(url, allowed)
            continue
        reason = f"the server answered {status}"
        if status in (401, 403):
            raise SourceRefusedError(f"{reason} (access denied)")
        if status in (408, 425, 429) or status >= 500:
            after = _retry_after(answer.headers)
            if after > _PATIENCE:
                reason += f" and asks to be left alone for {after:.0f} seconds"
            raise _PassingError(reason, after)
        raise SourceRefusedError(reason)
    raise SourceRefusedError("too many redirects")


def _once(
    method: str, url: str, allowed: Sequence[str], headers: dict[str, str], largest: int
) -> Answer:
    parts = urlsplit(url)
    proxy = _proxy(parts.scheme, parts.netloc)
    tls = parts.scheme == "https" or (proxy or "").startswith("https")
    anywhere = may_be_private(parts.hostname or "", allowed)
    response = _connections(proxy, os.getpid(), tls, anywhere).urlopen(
        method,
        url,
        headers={"User-Agent": f"firnline/{__version__}", **headers},
        redirect=False,
        retries=False,
        preload_content=False,
        decode_content=False,
        timeout=urllib3.Timeout(connect=_CONNECT, read=_STALL),
    )
    try:
        # 200 to a question for a range is the whole object, which no one asked for
        good = response.status == 206 or (response.status == 200 and "Range" not in headers)
        body = _body(response, largest if good else _EXPLANATION, strict=good)
    except BaseException:
        response.close()  # what is left in it would be the next answer's beginning
        raise
    return Answer(response.status, response.headers, body)


def _body(response: urllib3.BaseHTTPResponse, largest: int, *, strict: bool) -> bytes:
    """All of a body of at most `largest` bytes; of a larger one an error, or if not strict, less.

    urllib3 raises where it's shorter than its Content-Length.
    """
    deadline = time.monotonic() + _WHOLE
    parts, size = [], 0
    while part := response.read(_PIECE):
        parts.append(part)
        size += len(part)
        if size > largest:
            if strict:
                raise SourceCorruptError(f"is larger than {largest / 2**20:g} MiB")
            response.close()
            break
        if time.monotonic() > deadline:
            raise _PassingError(f"the body did not come within {_WHOLE:.0f} seconds")
    return parts[0] if len(parts) == 1 else b"".join(parts)


@functools.lru_cache(maxsize=8)
def _connections(proxy: str | None, process: int, tls: bool, anywhere: bool) -> urllib3.PoolManager:
    """The connections of a process, which must not go over to one that's forked from it.

    Of a proxy the names are its own to resolve; else only public addresses, but `anywhere`.
    """
    context = None
    if tls:
        context = ssl.create_default_context()  # the system's authorities, and SSL_CERT_FILE's
        context.load_verify_locations(certifi.where())  # some systems have none
    if proxy is not None:
        return urllib3.ProxyManager(proxy, maxsize=_CONNECTIONS, ssl_context=context)
    manager = urllib3.PoolManager if anywhere else PublicPoolManager
    return manager(maxsize=_CONNECTIONS, ssl_context=context)


@functools.lru_cache(maxsize=256)
def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host."""
    return None if proxy_bypass(host) else getproxies().get(scheme)


def _hold(url: str, seconds: float) -> None:
    """Ask nothing more of a host for so long."""
    if seconds:
        with _turns:
            host = urlsplit(url).netloc
            _not_before[host] = max(_not_before.get(host, 0.0), time.monotonic() + seconds)


def _await_turn(url: str) -> None:
    host = urlsplit(url).netloc
    while (wait := _not_before.get(host, 0.0) - time.monotonic()) > 0:
        _sleep(wait + random.uniform(0, 0.1))  # not all at the same moment


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that Retry-After asks for (RFC 9110, 10.2.3: seconds or a date); 0 if it doesn't.

    A date is compared with the server's own Date: clocks differ.
    """
    told = headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(told) - now).total_seconds())
    except (TypeError, ValueError):  # not a date, or one without a time zone
        return 0.0


def _reason(error: HTTPError) -> str:
    """What an error of urllib3 says, without the object that it happened to."""
    cause = error.args[-1] if error.args else error
    text = str(cause) or type(cause).__name__
    return text.splitlines()[0].rsplit(": ", 1)[-1][:200]


_sleep = time.sleep
