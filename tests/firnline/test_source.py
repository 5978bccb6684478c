"""The allow-list, and what each way to fail is called: missing, unreachable, corrupt, refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline import document
from firnline.allowed import check_allowed
from firnline.errors import (
    InputError,
    SourceCorruptError,
    SourceError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceRefusedError,
    SourceUnreachableError,
)
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.settings import ITS_LIVE
from firnline.source import Source

BODY = bytes(range(256)) * 2000
HOST = "its-live-data.s3.amazonaws.com"
ROOTS = ("https://data.example/velocity/v2", "s3://bucket/cubes/", "file:///srv/mirror/", HOST)


def read_document(location: Any, *, allowed: Any) -> bytes:
    """The bytes of a document that is read for the first time."""
    found = document.read_document(location, allowed=allowed)
    assert found is not None
    return found.data


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MirrorServer]:
    monkeypatch.setattr("firnline.web._RETRIES", 2)
    root = tmp_path / "mirror"
    (root / "cube" / "vx").mkdir(parents=True)
    (root / "cube" / "vx" / "0.0.0").write_bytes(BODY)
    (root / "catalog.json").write_bytes(BODY)
    (root / "a b").mkdir()
    (root / "a b" / "ü.json").write_bytes(b"{}")
    with MirrorServer(root) as server:
        yield server


# --- the allow-list -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"https://{HOST}/datacubes/v2/x.zarr",
        f"https://{HOST.upper()}/datacubes",
        f"https://{HOST}",
        "https://its-live-data.s3.us-west-2.amazonaws.com/a",
        "s3://its-live-data/velocity_mosaic/v2",
        f"https://{HOST}/a..b/c...d/..e",
        f"https://{HOST}/a%20b/x%2Fy",
    ],
)
def test_its_live_is_allowed(url: str) -> None:
    assert check_allowed(url, ITS_LIVE) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/etc/passwd",
        "etc/passwd",
        "file:///etc/passwd",
        f"http://{HOST}/x",  # not encrypted
        f"ftp://{HOST}/x",
        f"{HOST}/x",
        f"//{HOST}/x",
        f"https://{HOST}.evil.org/x",
        f"https://evil.org/{HOST}/x",
        f"https://evil.org/https://{HOST}/x",
        f"https://evil{HOST}/x",
        f"https://{HOST}@evil.org/x",
        f"https://user@{HOST}/x",
        f"https://user:password@{HOST}/x",
        f"https://@{HOST}/x",
        f"https://{HOST}:8443/x",
        f"https://{HOST}:/x",
        f"https://{HOST}:0/x",
        f"https://{HOST}:port/x",
        f"https://{HOST}./x",
        f"https://{HOST}\\@evil.org/x",
        f"https://{HOST}\\.evil.org/x",
        f"https://{HOST}/a/../b",
        f"https://{HOST}/..",
        f"https://{HOST}/a/%2e%2e/b",
        f"https://{HOST}/a/.%2E/b",
        f"https://{HOST}/a%2F..%2Fb",
        f"https://{HOST}/a/..\\b",
        f"https://{HOST}/a\\..\\b",
        f"https://{HOST}/a/.\t./b",
        f"https://{HOST}/a\nHost: evil.org",
        f" https://{HOST}/a",
        f"https://{HOST}/\x00",
        "https://[::1",
        "https://[::1]/x",
        "https://127.0.0.1/x",
        "https://169.254.169.254/latest/meta-data",
        "s3://its-live-data-evil/x",
        "s3://its-live-data.evil/x",
        "s3://other/its-live-data",
    ],
)
def test_everything_else_is_not(url: str) -> None:
    with pytest.raises(SourceNotAllowedError) as caught:
        check_allowed(url, ITS_LIVE)
    assert isinstance(caught.value, InputError)
    said = str(caught.value)
    assert "\n" not in said
    assert "\x00" not in said
    assert "password" not in said


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://data.example/velocity/v2", True),
        ("https://data.example/velocity/v2/", True),
        ("https://data.example/velocity/v2/cube.zarr", True),
        ("https://data.example/velocity/v2.1/cube.zarr", False),
        ("https://data.example/velocity/v2-other", False),
        ("https://data.example/velocity", False),
        ("https://data.example/velocity/V2/cube.zarr", False),
        ("https://data.example/velocity/v2/../v3", False),
        ("s3://bucket/cubes/x", True),
        ("s3://bucket/cubes", True),
        ("s3://bucket/cubesx", False),
        ("s3://bucket/", False),
        ("file:///srv/mirror/catalog.json", True),
        ("file://localhost/srv/mirror/catalog.json", False),
        ("file:///srv/mirrored/catalog.json", False),
        ("file:///srv/mirror/../../etc/passwd", False),
        (f"https://{HOST}/x", True),  # a bare host stands for https
        (f"http://{HOST}/x", False),
    ],
)
def test_roots_end_where_their_folder_ends(url: str, allowed: bool) -> None:
    if allowed:
        assert check_allowed(url, ROOTS) == url
        return
    with pytest.raises(SourceNotAllowedError, match="FIRNLINE_ALLOWED_SOURCES"):
        check_allowed(url, ROOTS)


def test_nothing_allowed_is_nothing() -> None:
    with pytest.raises(SourceNotAllowedError, match="accepts: nothing"):
        check_allowed(f"https://{HOST}/x", ())


_PIECES = st.sampled_from(
    ["https://", "http://", "s3://", "//", "/", "\\", "@", ":", "?", "#", "..", ".", "%2e", "%2E",
     "%2f", "%5c", "%00", "\t", "\n", " ", HOST, HOST.upper(), "evil.org", "data.example",
     "velocity", "v2", "user", "443", "0", "[", "]", "::1", "ｓ", "。", "cube.zarr"]
)  # fmt: skip


@settings(max_examples=2000)
@given(
    start=st.sampled_from(["", f"https://{HOST}", "https://data.example/velocity/v2"]),
    rest=st.lists(_PIECES | st.text(max_size=3), max_size=8).map("".join),
)
def test_what_passes_is_below_a_root_for_another_reader_of_urls(start: str, rest: str) -> None:
    """httpx's own parser and normaliser, which resolves dots as browsers do, is the oracle."""
    url = start + rest
    try:
        assert check_allowed(url, ROOTS[:1] + ROOTS[3:]) == url
    except SourceNotAllowedError:
        return
    read = httpx.URL(url)
    assert read.scheme == "https"
    assert not read.userinfo
    assert read.port is None
    if read.host == "data.example":
        assert f"{read.path}/".startswith("/velocity/v2/")
    else:
        assert read.host == HOST
    decoded = read.path
    assert ".." not in decoded.split("/")


# --- reading --------------------------------------------------------------------------------


def test_objects_come_with_their_etag(server: MirrorServer) -> None:
    source = Source(f"{server.url}/cube/", allowed=(f"{server.url}/",))
    assert source.url == f"{server.url}/cube"
    blob = source.get("vx/0.0.0")
    assert bytes(blob.data) == BODY
    assert blob.etag == httpx.get(f"{server.url}/cube/vx/0.0.0").headers["etag"]


def test_a_directory_is_a_source(server: MirrorServer) -> None:
    root = f"file://{quote(str(server.root))}/"
    source = Source(f"{root}cube", allowed=(root,))
    assert bytes(source.get("vx/0.0.0").data) == BODY
    with pytest.raises(SourceMissingError):
        source.get("vx/0.0.1")
    assert read_document(f"{root}a%20b/%C3%BC.json", allowed=(root,)) == b"{}"


def test_a_directory_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match="/none does not exist"):
        Source(f"{tmp_path.as_uri()}/none", allowed=(tmp_path.as_uri(),))


def test_the_start_of_an_object(server: MirrorServer) -> None:
    (server.root / "short").write_bytes(BODY[:10])
    source = Source(server.url, allowed=(f"{server.url}/",))
    assert bytes(source.get_start("short", 10_000).data) == BODY[:10]
    assert bytes(source.get_start("short", 3).data) == BODY[:3]
    with pytest.raises(SourceMissingError):
        source.get_start("none", 3)


def test_a_source_outside_the_roots_is_not_opened(server: MirrorServer) -> None:
    for url in (f"{server.url}/other", server.url, f"{server.url}/cube/../other"):
        with pytest.raises(SourceNotAllowedError):
            Source(url, allowed=(f"{server.url}/cube/",))
        with pytest.raises(SourceNotAllowedError):
            read_document(url, allowed=(f"{server.url}/cube/",))
    assert server.requests == []


@pytest.mark.parametrize("path", ["../catalog.json", "vx/../../catalog.json", "a//b", "\x00", ".."])
def test_no_name_leads_out_of_the_source(server: MirrorServer, path: str) -> None:
    source = Source(f"{server.url}/cube", allowed=(f"{server.url}/",))
    with pytest.raises(SourceCorruptError, match="names no object"):
        source.get(path)
    assert server.requests == []


@pytest.mark.parametrize("path", ["%2e%2e/catalog.json", "..\\catalog.json", "vx?x", "vx#x"])
def test_names_are_quoted(server: MirrorServer, path: str) -> None:
    source = Source(f"{server.url}/cube", allowed=(f"{server.url}/",))
    with pytest.raises(SourceMissingError):
        source.get(path)
    assert {r.path.startswith("/cube/") for r in server.requests} == {True}


def read(server: MirrorServer, how: str) -> bytes:
    allowed = (f"{server.url}/",)
    if how == "get":
        return bytes(Source(f"{server.url}/cube", allowed=allowed).get("vx/0.0.0").data)
    return read_document(f"{server.url}/catalog.json", allowed=allowed)


@pytest.mark.parametrize("how", ["get", "document"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, SourceMissingError),
        (403, SourceRefusedError),
        (401, SourceRefusedError),
        (400, SourceRefusedError),
        (429, SourceUnreachableError),
        (500, SourceUnreachableError),
        (503, SourceUnreachableError),
    ],
)
def test_a_status_is_missing_refused_or_unreachable(
    server: MirrorServer, how: str, status: int, error: type[SourceError]
) -> None:
    server.faults = Faults(Fault("status", status=status))
    with pytest.raises(error) as caught:
        read(server, how)
    assert type(caught.value) is error
    said = str(caught.value)
    assert said.startswith(f"{server.url}/")
    assert "\n" not in said
    assert len(said) < 300
    tries = len(server.requests)
    assert tries == 1 if status in (400, 401, 403, 404) else tries > 1


@pytest.mark.parametrize("how", ["get", "document"])
@pytest.mark.parametrize(
    "fault", [Fault("status", status=503), Fault("cut"), Fault("hang", seconds=0)]
)
def test_a_fault_that_passes_is_tried_again(server: MirrorServer, how: str, fault: Fault) -> None:
    server.faults = Faults(fault, times=1)
    assert read(server, how) == BODY
    assert len(server.requests) == 2


@pytest.mark.parametrize("how", ["get", "document"])
@pytest.mark.parametrize("fault", [Fault("cut"), Fault("hang", seconds=0)])
def test_a_fault_that_stays_is_unreachable(server: MirrorServer, how: str, fault: Fault) -> None:
    server.faults = Faults(fault)
    with pytest.raises(SourceUnreachableError, match=server.url):
        read(server, how)


@pytest.mark.parametrize("how", ["get", "document"])
def test_no_server_is_unreachable(server: MirrorServer, how: str) -> None:
    server.close()
    with pytest.raises(SourceUnreachableError, match=server.url) as caught:
        read(server, how)
    assert "\n" not in str(caught.value)


def test_a_path_of_the_operator_s_is_read(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    path.write_bytes(b"[]")
    assert read_document(path, allowed=()) == b"[]"
    assert read_document(str(path), allowed=()) == b"[]"
    with pytest.raises(SourceMissingError, match="does not exist"):
        read_document(tmp_path / "none.json", allowed=())
    with pytest.raises(SourceUnreachableError, match="directory"):
        read_document(tmp_path, allowed=())
    with pytest.raises(SourceNotAllowedError):
        read_document("ftp://host/catalog.json", allowed=())


# --- redirects ------------------------------------------------------------------------------


class Redirecting:
    """A server of which every answer is a redirect, a body of bad gzip, or a small body."""

    def __init__(self) -> None:
        self.to = ""
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                bad = self.path == "/gzip"
                body = b"no gzip" if bad else b"" if self.path == "/from" else b"the document"
                self.send_response(302 if self.path == "/from" else 200)
                if self.path == "/from":
                    self.send_header("Location", outer.to)
                if bad:
                    self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def redirecting() -> Iterator[Redirecting]:
    server = Redirecting()
    yield server
    server.close()


def test_a_redirect_to_an_allowed_place_is_followed(redirecting: Redirecting) -> None:
    redirecting.to = "/there"
    assert read_document(f"{redirecting.url}/from", allowed=(redirecting.url,)) == b"the document"
    assert redirecting.asked == ["/from", "/there"]


@pytest.mark.parametrize(
    "to",
    ["{other}/there", "//{other_host}/there", "file:///etc/passwd", "http://user@{host}/there"],
)
def test_a_redirect_elsewhere_is_refused(
    redirecting: Redirecting, server: MirrorServer, to: str
) -> None:
    redirecting.to = to.format(
        other=server.url, other_host=server.url.removeprefix("http://"),
        host=redirecting.url.removeprefix("http://"),
    )  # fmt: skip
    with pytest.raises(SourceNotAllowedError):
        read_document(f"{redirecting.url}/from", allowed=(redirecting.url,))
    assert server.requests == []
    assert redirecting.asked == ["/from"]


def test_redirects_that_lead_nowhere(
    redirecting: Redirecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    redirecting.to = "/from"
    with pytest.raises(SourceUnreachableError, match="too many redirects"):
        read_document(f"{redirecting.url}/from", allowed=(redirecting.url,))
    redirecting.to = "http://[::1"
    with pytest.raises(SourceUnreachableError, match="what is no URL"):
        read_document(f"{redirecting.url}/from", allowed=(redirecting.url,))


def test_a_name_that_does_not_resolve_is_unreachable(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", nothing)
    with pytest.raises(SourceUnreachableError, match="not known"):
        read_document("https://data.example/velocity/v2/x.json", allowed=ROOTS)
