"""Documents over HTTP as servers really send them, and as none should."""

from __future__ import annotations

import gzip
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from firnline import document
from firnline.document import Document, Seen, Validators, look_up, read_document
from firnline.errors import (
    SourceCorruptError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)

Answer = tuple[int, dict[str, str], bytes]
TEXT = b'{"type": "FeatureCollection"}' * 1000


class Server:
    """Answers by a function of method, path and headers; notes what came."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str, Any], Answer] = lambda *_: (200, {}, TEXT)
        self.asked: list[tuple[str, str]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.command, self.path))
                status, headers, body = server.answer(self.command, self.path, self.headers)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firnline.web._sleep", lambda _: None)


def read(server: Server, **more: Any) -> Document | None:
    return read_document(f"{server.url}/c.json", allowed=[f"{server.url}/"], **more)


def data(server: Server) -> bytes:
    document = read(server)
    assert document is not None
    return document.data


class TestGzip:
    def test_in_transit(self, server: Server) -> None:
        headers = {"Content-Encoding": "gzip"}
        server.answer = lambda *_: (200, headers, gzip.compress(TEXT))
        assert data(server) == TEXT

    def test_at_rest(self, server: Server, tmp_path: Path) -> None:
        server.answer = lambda *_: (200, {}, gzip.compress(TEXT))
        assert data(server) == TEXT
        path = tmp_path / "catalog.json.gz"
        path.write_bytes(gzip.compress(TEXT[:7]) + gzip.compress(TEXT[7:]))  # two members
        found = read_document(path, allowed=[])
        assert found is not None
        assert found.data == TEXT

    @pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
    def test_bombs(
        self, server: Server, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A gigabyte of zeros in a megabyte: no more than the limit is ever made of it."""
        monkeypatch.setattr(document, "LARGEST", 1 << 20)
        made: list[int] = []

        class Counting:
            def __init__(self, *arguments: Any, **more: Any) -> None:
                self.inner = zlib.decompressobj(*arguments, **more)

            def decompress(self, data: bytes, most: int) -> bytes:
                part = self.inner.decompress(data, most)
                made.append(len(part))
                return part

        class Zlib:
            error = zlib.error
            decompressobj = Counting

        monkeypatch.setattr(document, "zlib", Zlib)
        bomb = gzip.compress(bytes(1 << 28))
        assert len(bomb) < 1 << 20
        server.answer = lambda *_: (200, headers, bomb)
        with pytest.raises(SourceCorruptError, match="larger than 1 MiB"):
            read(server)
        assert sum(made) == (1 << 20) + 1

    def test_many_members(self, server: Server) -> None:
        server.answer = lambda *_: (200, {}, gzip.compress(b"") * 10_000)
        with pytest.raises(SourceCorruptError, match="more than 100 members"):
            read(server)

    def test_packed_twice_stays_packed_once(self, server: Server) -> None:
        inner = gzip.compress(TEXT)
        headers = {"Content-Encoding": "gzip"}
        server.answer = lambda *_: (200, headers, gzip.compress(inner))
        assert data(server) == inner

    @pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "deflate", "zstd"])
    def test_other_encodings(self, server: Server, encoding: str) -> None:
        server.answer = lambda *_: (200, {"Content-Encoding": encoding}, b"x")
        with pytest.raises(SourceCorruptError, match="came in the encoding"):
            read(server)

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (gzip.compress(TEXT)[:-20], "cut short"),
            (gzip.compress(TEXT)[:10] + b"\xff" * 40, "not readable as gzip"),
            (b"\x1f\x8b\x08", "cut short"),
            (gzip.compress(TEXT) + b"rubbish", "not readable as gzip"),
        ],
        ids=["tail", "middle", "head", "appended"],
    )
    def test_damaged(self, server: Server, body: bytes, reason: str) -> None:
        server.answer = lambda *_: (200, {}, body)
        with pytest.raises(SourceCorruptError, match=reason):
            read(server)


class TestAnswers:
    def test_larger_than_a_document(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(document, "LARGEST", len(TEXT))
        assert data(server) == TEXT
        server.answer = lambda *_: (200, {}, TEXT + b"x")
        with pytest.raises(SourceCorruptError, match="larger than"):
            read(server)

    def test_a_body_cut_short_is_an_outage(self, server: Server) -> None:
        server.answer = lambda *_: (200, {"Content-Length": str(2 * len(TEXT))}, TEXT)
        with pytest.raises(SourceUnreachableError, match=r"IncompleteRead|incomplete"):
            read(server)

    @pytest.mark.parametrize("status", [500, 502, 503, 429])
    def test_tried_again(self, server: Server, status: int) -> None:
        server.answer = lambda *_: (200, {}, TEXT) if len(server.asked) > 3 else (status, {}, b"")
        assert data(server) == TEXT
        assert len(server.asked) == 4
        server.answer = lambda *_: (status, {}, b"")
        with pytest.raises(SourceUnreachableError, match=f"the server answered {status}"):
            read(server)
        assert len(server.asked) == 4 + 9

    @pytest.mark.parametrize("status", [400, 401, 403, 418, 206])
    def test_refusals_are_no_outage_to_wait_for(self, server: Server, status: int) -> None:
        server.answer = lambda *_: (status, {}, b"")
        with pytest.raises(SourceUnreachableError, match=f"the server answered {status}"):
            read(server)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("status", [404, 410])
    def test_missing(self, server: Server, status: int) -> None:
        server.answer = lambda *_: (status, {}, b"")
        with pytest.raises(SourceMissingError):
            read(server)

    def test_not_modified_without_being_asked(self, server: Server) -> None:
        server.answer = lambda *_: (304, {}, b"")
        with pytest.raises(SourceUnreachableError, match="304"):
            read(server)


class TestRedirects:
    def test_to_another_host_is_refused_unless_allowed(self, server: Server) -> None:
        other = Server()
        try:
            server.answer = lambda *_: (302, {"Location": f"{other.url}/c.json"}, b"")
            with pytest.raises(SourceNotAllowedError, match=other.url):
                read(server)
            (refused,) = look_up([[f"{server.url}/c.json"]], allowed=[f"{server.url}/"])
            assert isinstance(refused, SourceNotAllowedError)
            assert not other.asked
            both = [f"{server.url}/", f"{other.url}/"]
            found = read_document(f"{server.url}/c.json", allowed=both)
            assert found is not None
            assert found.data == TEXT
            (seen,) = look_up([[f"{server.url}/c.json"]], allowed=both)
            assert seen == Seen(None, len(TEXT))
        finally:
            other.close()

    @pytest.mark.parametrize(
        "goal", ["file:///etc/passwd", "http://169.254.169.254/", "//evil.example/c.json"]
    )
    def test_to_what_is_no_source(self, server: Server, goal: str) -> None:
        server.answer = lambda *_: (307, {"Location": goal}, b"")
        with pytest.raises(SourceNotAllowedError):
            read(server)

    def test_within_the_host(self, server: Server) -> None:
        def answer(method: str, path: str, headers: Any) -> Answer:
            return (200, {}, TEXT) if path == "/there" else (301, {"Location": "/there"}, b"")

        server.answer = answer
        assert data(server) == TEXT

    def test_in_a_circle(self, server: Server) -> None:
        server.answer = lambda *_: (302, {"Location": "/c.json"}, b"")
        with pytest.raises(SourceUnreachableError, match="too many redirects"):
            read(server)


class TestConditions:
    def test_what_is_known_is_sent(self, server: Server) -> None:
        seen: list[tuple[str | None, str | None]] = []

        def answer(method: str, path: str, headers: Any) -> Answer:
            seen.append((headers["If-None-Match"], headers["If-Modified-Since"]))
            if headers["If-None-Match"] == 'W/"a"':
                return 304, {}, b""
            return 200, {"ETag": 'W/"a"', "Last-Modified": "Sat, 01 Jan 2022 00:00:00 GMT"}, TEXT

        server.answer = answer
        first = read(server)
        assert first is not None
        assert first.validators == Validators('W/"a"', "Sat, 01 Jan 2022 00:00:00 GMT")
        assert read(server, known=first.validators) is None
        assert read(server, known=Validators('"b"')) == first
        assert seen == [
            (None, None),
            ('W/"a"', "Sat, 01 Jan 2022 00:00:00 GMT"),
            ('"b"', None),
        ]

    def test_a_file_by_its_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "c.json"
        path.write_bytes(TEXT)
        for location, allowed in ((path, []), (path.as_uri(), [tmp_path.as_uri()])):
            first = read_document(location, allowed=allowed)
            assert first is not None
            assert read_document(location, allowed=allowed, known=first.validators) is None
        path.write_bytes(TEXT[:-1] + b" ")
        assert read_document(path, allowed=[], known=first.validators) is not None
        with pytest.raises(SourceNotAllowedError):
            read_document(path.as_uri(), allowed=[])
        with pytest.raises(SourceMissingError):
            read_document(tmp_path / "other", allowed=[])
        with pytest.raises(SourceUnreachableError):
            read_document(tmp_path, allowed=[])


class TestLookUp:
    def test_each_is_asked_once(self, server: Server) -> None:
        def answer(method: str, path: str, headers: Any) -> Answer:
            number = int(path.removeprefix("/"))
            assert headers["Accept-Encoding"] == "identity"
            return (200 if number % 3 else 404 if number % 2 else 410), {"ETag": path}, b"x" * 7

        server.answer = answer
        files = [[f"{server.url}/{n}"] for n in range(60)]
        found = list(look_up(files, allowed=[server.url]))
        assert found == [Seen(f"/{n}", 7) if n % 3 else None for n in range(60)]
        assert sorted(server.asked) == sorted(("HEAD", f"/{n}") for n in range(60))
        assert list(look_up([], allowed=[])) == []

    @pytest.mark.parametrize("status", [403, 500, 503])
    def test_neither_yes_nor_no(self, server: Server, status: int) -> None:
        """One file without an answer is an error of its own, and the others are told."""
        server.answer = lambda _, path, __: (status if path == "/7" else 200, {}, b"")
        found = list(look_up([[f"{server.url}/{n}"] for n in range(20)], allowed=[server.url]))
        assert found[:7] + found[8:] == [Seen(None, 0)] * 19
        assert isinstance(found[7], SourceUnreachableError)
        assert f"/7: the server answered {status}" in str(found[7])

    def test_no_answer_to_one_of_its_names_is_no_no(self, server: Server) -> None:
        """A file with two names is missing when both are, and only then."""
        statuses = {"/a": 404, "/b": 200, "/c": 404, "/d": 503}
        server.answer = lambda _, path, __: (statuses[path], {}, b"")
        files = [[f"{server.url}/{name}" for name in names] for names in ("ab", "ac", "ad", "bd")]
        second, none, unknown, first = look_up(files, allowed=[server.url])
        assert (second, none, first) == (Seen(None, 0), None, Seen(None, 0))
        assert isinstance(unknown, SourceUnreachableError)

    def test_what_is_not_allowed_is_not_asked(self, server: Server) -> None:
        files = [["https://example.org/2"], [f"{server.url}/1"]]
        refused, seen = look_up(files, allowed=[server.url])
        assert isinstance(refused, SourceNotAllowedError)
        assert seen == Seen(None, len(TEXT))

    def test_the_rest_is_not_asked_when_no_one_wants_to_know(self, server: Server) -> None:
        files = [[f"{server.url}/{n}"] for n in range(500)]
        answers = look_up(files, allowed=[server.url], concurrency=2)
        next(answers)
        answers.close()
        assert len(server.asked) < 100

    def test_files_of_one_s_own(self, tmp_path: Path) -> None:
        (tmp_path / "a b").write_bytes(b"12345")
        files = [[(tmp_path / name).as_uri()] for name in ("a b", "c", ".")]
        assert list(look_up(files, allowed=[tmp_path.as_uri()])) == [Seen(None, 5), None, None]
