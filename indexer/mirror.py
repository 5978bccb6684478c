"""A small HTTP server on loopback for a directory that stands for the bucket.

For the demo, tests and benchmarks, not for the world: it answers GET and HEAD with byte ranges
and strong ETags as S3 does, counts what it was asked, and can be slow, narrow or broken on
purpose. ``python -m firnline.indexer.mirror DIR`` runs it as a process of its own, so that a
benchmark does not share its interpreter lock; the URL is the first line on standard output.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import signal
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from os import fstat
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast
from urllib.parse import unquote, urlsplit

HOST = "127.0.0.1"
_PIECE = 64 * 1024
_JSON = "application/json"
_TYPES = {
    ".geojson": "application/geo+json",
    ".json": _JSON,
    ".png": "image/png",
    ".tif": "image/tiff",
    ".txt": "text/plain; charset=utf-8",
}
_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Request(NamedTuple):
    """One request as it was answered; status 0 where no answer was given."""

    method: str
    path: str
    status: int


@dataclass(frozen=True)
class Fault:
    """One way to fail."""

    kind: Literal["status", "cut", "reset", "short", "corrupt", "stall", "hang", "redirect"]
    """Answer with a status; end the connection half way through the body, or reset it; give half
    of the body for the whole, or flip one byte of it (nothing else tells); stay silent for
    `seconds` half way through the body, or at once, and close; or send to another place."""
    status: int = 503
    retry_after: int | str | None = None
    """Value of Retry-After, in seconds or a date, for a status."""
    seconds: float = 60.0
    location: str = ""
    """Where a redirect leads to; what was asked for is put in the place of ``{path}``."""


FaultPlan = Callable[[str, str, int], Fault | None]
"""Called with method, path and how often this method and path came before; None is health."""


@dataclass(frozen=True)
class Faults:
    """The same fault for some of the requests, the same ones in every run.

    Which ones is decided by a hash of seed, path and attempt, so that it does not depend on the
    order in which a client's threads come.
    """

    fault: Fault
    rate: float = 1.0
    """Share of the requests that fail."""
    match: str = "*"
    """Shell pattern of the paths, which begin with a slash; ``*`` also matches slashes."""
    times: int | None = None
    """A path fails in its first `times` requests only; None: in all."""
    seed: int = 0

    def __call__(self, method: str, path: str, attempt: int) -> Fault | None:
        """Choose what to do with a request."""
        if not fnmatchcase(path, self.match):
            return None
        if self.times is not None and attempt >= self.times:
            return None
        digest = hashlib.sha256(f"{self.seed} {method} {path} {attempt}".encode()).digest()
        return self.fault if int.from_bytes(digest[:8], "big") < self.rate * 2**64 else None


class MirrorServer:
    """Serves a directory on loopback, as a context manager or between `start` and `close`.

    Parameters
    ----------
    root : Path
        The directory; it need not exist yet.
    port : int
        0 takes a free one.
    latency : float
        Seconds before each answer.
    bandwidth : float, optional
        Bytes a second of all bodies together, as on one link; None is no limit.
    faults : callable, optional
        See :data:`FaultPlan` and :class:`Faults`.
    tls : ssl.SSLContext, optional
        Serve https, with the certificate of this context.

    Notes
    -----
    `latency`, `bandwidth` and `faults` may be changed while it runs.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        latency: float = 0.0,
        bandwidth: float | None = None,
        faults: FaultPlan | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.root = Path(root)
        self.latency = latency
        self.bandwidth = bandwidth
        self.faults = faults
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._attempts: dict[tuple[str, str], int] = {}
        self._free_at = 0.0
        self._server = _Server((HOST, port), self, tls)
        self._scheme = "http" if tls is None else "https"
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return f"{self._scheme}://{HOST}:{self._server.server_address[1]}"

    @property
    def requests(self) -> list[Request]:
        """The requests so far (a copy), in the order in which their answers began."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._lock:
            self._requests.clear()
            self._attempts.clear()

    def start(self) -> MirrorServer:
        """Serve from a thread."""
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop, drop all connections, and free the port."""
        self.stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.drop()
        self._server.server_close()

    def __enter__(self) -> MirrorServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What the handler's threads call.

    def record(self, method: str, path: str, status: int) -> None:
        """Note a request."""
        with self._lock:
            self._requests.append(Request(method, path, status))

    def choose(self, method: str, path: str) -> Fault | None:
        """Count an attempt and ask the fault plan."""
        with self._lock:
            attempt = self._attempts.get((method, path), 0)
            self._attempts[method, path] = attempt + 1
        return self.faults(method, path, attempt) if self.faults else None

    def pace(self, size: int) -> None:
        """Wait until the link has carried `size` more bytes."""
        if not self.bandwidth:
            return
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.bandwidth
            wait = self._free_at - time.monotonic()
        self.stopping.wait(wait)

    def find(self, path: str) -> Path | None:
        """Find the file that a URL's path names; None if there is none below the root."""
        parts = unquote(path).split("/")[1:]
        if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
            return None
        file = self.root.joinpath(*parts)
        # A link may lead out of the root: look at where it ends.
        if not file.resolve().is_relative_to(self.root.resolve()):
            return None
        return file if file.is_file() else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], mirror: MirrorServer, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(address, _Handler)
        if tls is not None:  # hands are shaken in each connection's own thread
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.mirror = mirror
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = threading.current_thread()
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)

    def drop(self) -> None:
        # Idle keep-alive connections would hold their threads for as long as the client likes.
        with self._lock:
            held = list(self._open.items())
        for connection, _ in held:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the client in the meantime
                continue
        for _, thread in held:
            thread.join(5.0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Clients that hang up are their own business; the rest is a bug and is printed.
        if not isinstance(sys.exception(), ConnectionError | TimeoutError | ssl.SSLError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "firnline-mirror"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = _PIECE

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: `requests` has it."""

    def _answer(self, *, body: bool) -> None:
        mirror = cast(_Server, self.server).mirror
        path = urlsplit(self.path).path
        if mirror.latency:
            mirror.stopping.wait(mirror.latency)
        fault = mirror.choose(self.command, path)
        if fault is not None and fault.kind == "hang":
            mirror.record(self.command, path, 0)
            mirror.stopping.wait(fault.seconds)
            self.close_connection = True
            return
        if fault is not None and fault.kind == "status":
            extra = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            self._refuse(mirror, path, fault.status, extra, body)
            return
        if fault is not None and fault.kind == "redirect":
            extra = {"Location": fault.location.replace("{path}", path)}
            self._refuse(mirror, path, HTTPStatus.FOUND, extra, body)
            return
        file = mirror.find(path)
        if file is None:
            self._refuse(mirror, path, HTTPStatus.NOT_FOUND, {}, body)
            return
        with file.open("rb") as stream:
            stat = fstat(stream.fileno())
            size = stat.st_size
            headers = {
                "ETag": f'"{size:x}-{stat.st_mtime_ns:x}"',
                "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
                "Accept-Ranges": "bytes",
                "Content-Type": _content_type(file),
            }
            if self._is_fresh(headers["ETag"], stat.st_mtime):
                self._head(mirror, path, HTTPStatus.NOT_MODIFIED, headers)
                return
            status, first, last = HTTPStatus.OK, 0, size - 1
            window = self._window(size, headers) if body else None
            if window is not None:
                first, last = window
                if first > last:
                    extra = {"Content-Range": f"bytes */{size}"}
                    range_error = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
                    self._refuse(mirror, path, range_error, extra, body)
                    return
                status = HTTPStatus.PARTIAL_CONTENT
            if fault is not None and fault.kind == "short":
                last = first + (last - first) // 2
            if status == HTTPStatus.PARTIAL_CONTENT:
                headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            headers["Content-Length"] = str(last - first + 1)
            stream.seek(first)
            data = stream.read(last - first + 1) if body else b""
        self._head(mirror, path, status, headers)
        kind = None if fault is None else fault.kind
        middle = len(data) // 2
        if kind == "corrupt" and data:
            data = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        if kind in ("cut", "reset", "stall"):
            data = data[:middle]
            self.close_connection = True
        for at in range(0, len(data), _PIECE):
            piece = data[at : at + _PIECE]
            mirror.pace(len(piece))
            self.wfile.write(piece)
        if kind == "stall" and fault is not None:
            self.wfile.flush()
            mirror.stopping.wait(fault.seconds)
        if kind == "reset":
            self._reset()

    def _reset(self) -> None:
        """Drop the connection without the end that a client could take for the body's."""
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # on, for no time
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())

    def _head(self, mirror: MirrorServer, path: str, status: int, headers: dict[str, str]) -> None:
        # Noted before it is sent: who has the answer finds it in the list.
        mirror.record(self.command, path, int(status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(
        self, mirror: MirrorServer, path: str, status: int, extra: dict[str, str], body: bool
    ) -> None:
        text = f"{int(status)}\n".encode()
        headers = {"Content-Type": _TYPES[".txt"], "Content-Length": str(len(text)), **extra}
        self._head(mirror, path, status, headers)
        if body:
            self.wfile.write(text)

    def _is_fresh(self, etag: str, changed: float) -> bool:
        if (known := self.headers.get("If-None-Match")) is not None:
            # RFC 9110, 13.1.2: it outranks If-Modified-Since and compares weakly.
            tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
            return etag in tags or "*" in tags
        if (since := self.headers.get("If-Modified-Since")) is not None:
            try:
                return int(changed) <= parsedate_to_datetime(since).timestamp()
            except ValueError:
                return False
        return False

    def _window(self, size: int, headers: dict[str, str]) -> tuple[int, int] | None:
        """First and last byte asked for; None for all; first > last if there are none."""
        wanted = _RANGE.fullmatch(self.headers.get("Range", "").strip())
        condition = self.headers.get("If-Range")
        if condition is not None and condition not in (headers["ETag"], headers["Last-Modified"]):
            return None
        # Several ranges, and what is no range, get the whole (RFC 9110, 14.2 allows it).
        if wanted is None or not any(wanted.groups()):
            return None
        start, end = wanted.groups()
        if not start:
            return (max(size - int(end), 0), size - 1) if int(end) else (size, size - 1)
        if end and int(end) < int(start):
            return None
        if int(start) >= size:
            return size, size - 1
        return int(start), min(int(end), size - 1) if end else size - 1


def _content_type(file: Path) -> str:
    if file.name in _METADATA:
        return _JSON
    return _TYPES.get(file.suffix, "application/octet-stream")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server as a process: print the URL, and serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a sample mirror on loopback.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--bandwidth", type=float, help="bytes a second of all answers together")
    options = parser.parse_args(arguments)
    if not options.directory.is_dir():
        parser.error(f"{options.directory} is not a directory")
    mirror = MirrorServer(
        options.directory,
        port=options.port,
        latency=options.latency,
        bandwidth=options.bandwidth,
    ).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: mirror.stopping.set())
    sys.stdout.write(f"{mirror.url}\n")
    sys.stdout.flush()
    mirror.stopping.wait()
    mirror.close()


if __name__ == "__main__":
    main()
