from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from obstore.store import HTTPStore

from firnline.indexer.mirror import Fault, Faults, MirrorServer, Request

BODY = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bucket"
    (root / "a").mkdir(parents=True)
    (root / "a" / "0.0.0").write_bytes(BODY)
    (root / "a" / ".zarray").write_text("{}")
    (root / "empty").write_bytes(b"")
    (root / "b c.tif").write_bytes(b"II*\0")
    (tmp_path / "secret").write_text("not for you")
    (root / "link").symlink_to(tmp_path / "secret")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[MirrorServer]:
    with MirrorServer(root) as server:
        yield server


def ask(
    server: MirrorServer, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_get_and_head(server: MirrorServer) -> None:
    status, headers, body = ask(server, "/a/0.0.0")
    assert (status, body) == (200, BODY)
    assert headers["content-length"] == str(len(BODY))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"].startswith('"')
    status, head, body = ask(server, "/a/0.0.0", "HEAD", Range="bytes=0-1")
    assert (status, body) == (200, b"")
    # A HEAD has the headers of the GET; Range means nothing to it (RFC 9110, 14.2).
    for name in ("content-length", "etag", "last-modified", "content-type"):
        assert head[name] == headers[name]
    assert ask(server, "/empty")[::2] == (200, b"")
    assert ask(server, "/b%20c.tif?x=1")[::2] == (200, b"II*\0")
    assert ask(server, "/a/0.0.0", "PUT")[0] == 501


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a/.zarray", "application/json"),
        ("/a/0.0.0", "application/octet-stream"),
        ("/b%20c.tif", "image/tiff"),
    ],
)
def test_content_type(server: MirrorServer, path: str, kind: str) -> None:
    assert ask(server, path)[1]["content-type"] == kind


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=10000-", 10000, 10240),
        ("bytes=-7", 10233, 10240),
        ("bytes=-99999", 0, 10240),
        ("bytes=10230-99999", 10230, 10240),
    ],
)
def test_ranges(server: MirrorServer, wanted: str, first: int, end: int) -> None:
    status, headers, body = ask(server, "/a/0.0.0", Range=wanted)
    assert status == 206
    assert body == BODY[first:end]
    assert headers["content-range"] == f"bytes {first}-{end - 1}/10240"
    assert headers["content-length"] == str(end - first)


@pytest.mark.parametrize("wanted", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
def test_range_beyond_the_end(server: MirrorServer, wanted: str) -> None:
    status, headers, _ = ask(server, "/a/0.0.0", Range=wanted)
    assert (status, headers["content-range"]) == (416, "bytes */10240")


@pytest.mark.parametrize("wanted", ["bytes=5-2", "bytes=-", "lines=1-2", "bytes=0-1,4-5", "x"])
def test_what_is_no_range_gets_the_whole(server: MirrorServer, wanted: str) -> None:
    assert ask(server, "/a/0.0.0", Range=wanted)[::2] == (200, BODY)


def test_if_range(server: MirrorServer) -> None:
    etag = ask(server, "/a/0.0.0")[1]["etag"]
    assert ask(server, "/a/0.0.0", Range="bytes=1-2", If_Range=etag)[0] == 206
    assert ask(server, "/a/0.0.0", Range="bytes=1-2", If_Range='"old"')[0] == 200


def test_conditional_get(server: MirrorServer, root: Path) -> None:
    _, headers, _ = ask(server, "/a/0.0.0")
    etag, changed = headers["etag"], headers["last-modified"]
    status, again, body = ask(server, "/a/0.0.0", If_None_Match=f'"x", {etag}')
    assert (status, body, again["etag"]) == (304, b"", etag)
    assert ask(server, "/a/0.0.0", If_None_Match="*")[0] == 304
    assert ask(server, "/a/0.0.0", If_None_Match='"x"', If_Modified_Since=changed)[0] == 200
    assert ask(server, "/a/0.0.0", If_Modified_Since=changed)[0] == 304
    assert ask(server, "/a/0.0.0", If_Modified_Since=formatdate(0, usegmt=True))[0] == 200
    assert ask(server, "/a/0.0.0", If_Modified_Since="whenever")[0] == 200
    # Same length, other content: the tag must tell.
    time.sleep(0.01)
    (root / "a" / "0.0.0").write_bytes(BODY[::-1])
    status, headers, body = ask(server, "/a/0.0.0", If_None_Match=etag)
    assert (status, body) == (200, BODY[::-1])
    assert headers["etag"] != etag


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/a",
        "/a/",
        "/",
        "/a//0.0.0",
        "/../secret",
        "/a/../../secret",
        "/%2e%2e/secret",
        "/a/%2e%2e/%2e%2e/secret",
        "/..%2fsecret",
        "/..%5csecret",
        "/link",
        "/a/0.0.0%00.txt",
        "/a/0.0.0/x",
    ],
)
def test_nothing_outside_and_nothing_missing(server: MirrorServer, path: str) -> None:
    status, _, body = ask(server, path)
    assert status == 404
    assert b"not for you" not in body


def test_one_connection_serves_many_requests(server: MirrorServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    local = None
    for path in ("/a/0.0.0", "/nothing", "/a/.zarray", "/empty"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert not answer.will_close
        assert connection.sock is not None
        assert local in (None, connection.sock.getsockname())
        local = connection.sock.getsockname()
    connection.close()


def test_requests_are_counted(server: MirrorServer) -> None:
    ask(server, "/a/0.0.0", "HEAD")
    ask(server, "/a/0.0.0?v=1", Range="bytes=0-1")
    ask(server, "/nothing")
    assert server.requests == [
        Request("HEAD", "/a/0.0.0", 200),
        Request("GET", "/a/0.0.0", 206),
        Request("GET", "/nothing", 404),
    ]
    server.clear()
    with ThreadPoolExecutor(16) as pool:
        assert all(b == BODY for _, _, b in pool.map(lambda _: ask(server, "/a/0.0.0"), range(200)))
    assert server.requests == [("GET", "/a/0.0.0", 200)] * 200


def test_statuses_on_purpose(server: MirrorServer) -> None:
    server.faults = Faults(Fault("status", retry_after=3), match="/a/*", times=2)
    for _ in range(2):
        status, headers, _ = ask(server, "/a/0.0.0")
        assert (status, headers["retry-after"]) == (503, "3")
    assert ask(server, "/a/0.0.0")[0] == 200
    assert ask(server, "/empty")[0] == 200
    server.faults = Faults(Fault("status", status=500))
    status, headers, body = ask(server, "/empty", "HEAD")
    assert (status, body) == (500, b"")
    assert "retry-after" not in headers


def test_a_body_that_is_cut(server: MirrorServer) -> None:
    server.faults = Faults(Fault("cut"))
    with pytest.raises(http.client.IncompleteRead) as failure:
        ask(server, "/a/0.0.0")
    assert failure.value.partial == BODY[: len(BODY) // 2]


def test_a_body_with_one_wrong_byte(server: MirrorServer) -> None:
    server.faults = Faults(Fault("corrupt"))
    status, _, body = ask(server, "/a/0.0.0")
    assert status == 200
    assert len(body) == len(BODY)
    assert sum(a != b for a, b in zip(body, BODY, strict=True)) == 1


def test_silence(server: MirrorServer) -> None:
    server.faults = lambda method, path, attempt: (
        Fault("hang", seconds=0.2) if not attempt else None
    )
    start = time.monotonic()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/a/0.0.0")
    assert time.monotonic() - start >= 0.2
    assert ask(server, "/a/0.0.0")[0] == 200
    assert [r.status for r in server.requests] == [0, 200]


def test_closing_does_not_wait_for_the_silent(root: Path) -> None:
    failures: list[BaseException] = []

    def wait(server: MirrorServer) -> None:
        try:
            ask(server, "/a/0.0.0")
        except (http.client.HTTPException, OSError) as error:
            failures.append(error)

    start = time.monotonic()
    with MirrorServer(root, faults=Faults(Fault("hang", seconds=60))) as server:
        client = threading.Thread(target=wait, args=(server,))
        client.start()
        while not server.requests:
            time.sleep(0.01)
    client.join()
    assert len(failures) == 1
    assert time.monotonic() - start < 30  # a hanging one would take 60


def test_a_rate_hits_the_same_requests_every_time() -> None:
    plan = Faults(Fault("status"), rate=0.3, seed=4)
    asked = [("GET", f"/{k}", 0) for k in range(2000)]
    hit = [plan(*a) is not None for a in asked]
    # 2,000 draws at 0.3: three standard deviations are 61.
    assert abs(sum(hit) - 600) < 62
    assert hit == [Faults(Fault("status"), rate=0.3, seed=4)(*a) is not None for a in asked]
    assert hit != [Faults(Fault("status"), rate=0.3, seed=5)(*a) is not None for a in asked]
    assert not any(Faults(Fault("status"), rate=0.0)(*a) for a in asked)


def test_a_client_that_retries_gets_through(server: MirrorServer) -> None:
    server.faults = Faults(Fault("status"), times=2)
    store = HTTPStore.from_url(
        server.url,
        client_options={"allow_http": True},
        retry_config={"max_retries": 3},
    )
    assert bytes(obstore.get(store, "a/0.0.0").bytes()) == BODY
    assert bytes(obstore.get_range(store, "a/0.0.0", start=5, end=9)) == BODY[5:9]
    assert [r.status for r in server.requests][:3] == [503, 503, 200]


def test_latency_and_bandwidth(server: MirrorServer) -> None:
    server.latency = 0.1
    start = time.monotonic()
    ask(server, "/empty")
    assert 0.1 <= time.monotonic() - start < 20.0
    server.latency, server.bandwidth = 0.0, 4 * len(BODY)
    start = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ask(server, "/a/0.0.0"), range(2)))
    # Two at once share the link: 2/4 s.
    assert 0.49 <= time.monotonic() - start < 20.0


def test_as_a_process(root: Path) -> None:
    command = [sys.executable, "-m", "firnline.indexer.mirror", str(root), "--latency", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
        connection.request("GET", "/a/0.0.0")
        assert connection.getresponse().read() == BODY
        connection.close()
        process.terminate()
        assert process.wait(10) == 0


def test_as_a_process_without_a_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "firnline.indexer.mirror", str(tmp_path / "no")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not a directory" in done.stderr
