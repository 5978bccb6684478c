"""Every way in which a request can fail, against a real server, and what is made of it."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from firnline import web
from firnline.errors import SourceCorruptError, SourceNotAllowedError, SourceUnreachableError
from firnline.indexer.mirror import Fault, MirrorServer
from firnline.source import Source

BODY = bytes(range(256)) * 3000


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.002)
    monkeypatch.setattr(web, "_STALL", 0.3)
    yield
    web._connections.cache_clear()
    web._proxy.cache_clear()


class Scripted:
    """Faults one after the other, then health; notes when it was asked."""

    def __init__(self, *faults: Fault | None) -> None:
        self.left = list(faults)
        self.asked: list[float] = []

    def __call__(self, method: str, path: str, attempt: int) -> Fault | None:
        self.asked.append(time.monotonic())
        return self.left.pop(0) if self.left else None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    (tmp_path / "a").write_bytes(BODY)
    (tmp_path / "b").write_bytes(b"b")
    with MirrorServer(tmp_path) as server:
        yield server


def get(server: MirrorServer, name: str = "a") -> bytes:
    return web.ask("GET", f"{server.url}/{name}", allowed=()).body


PASSING = [
    Fault("status", status=429),
    Fault("status", status=408),
    Fault("status", status=500),
    Fault("status", status=502),
    Fault("status", status=503),
    Fault("status", status=504),
    Fault("cut"),
    Fault("reset"),
    Fault("stall", seconds=5),
    Fault("hang", seconds=5),
    Fault("hang", seconds=0),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_what_passes_is_asked_again(server: MirrorServer, fault: Fault) -> None:
    server.faults = script = Scripted(fault, fault)
    assert get(server) == BODY
    assert len(script.asked) == 3


def test_a_burst_of_all_of_them(server: MirrorServer) -> None:
    server.faults = Scripted(*PASSING[2:6], Fault("reset"), Fault("cut"), Fault("stall", seconds=1))
    assert get(server) == BODY


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.status}")
def test_what_stays_is_an_error_that_says_why(
    server: MirrorServer, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_RETRIES", 1)
    server.faults = lambda *_: fault
    with pytest.raises(SourceUnreachableError) as caught:
        get(server)
    said = str(caught.value)
    assert said.startswith(f"{server.url}/a: ")
    assert "\n" not in said
    assert len(said) < 200
    words = {
        "status": f"answered {fault.status}", "cut": "IncompleteRead", "reset": "reset",
        "stall": "timed out", "hang": "timed out" if fault.seconds else "closed connection",
    }  # fmt: skip
    assert words[fault.kind] in said


def test_waits_double_with_jitter(server: MirrorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(web, "_sleep", waits.append)
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.1)
    monkeypatch.setattr(web, "_LONGEST_WAIT", 5.0)
    server.faults = lambda *_: Fault("status", status=500)
    for _ in range(2):
        with pytest.raises(SourceUnreachableError):
            get(server)
    for n, wait in enumerate(waits[:8]):
        most = min(5.0, 0.1 * 2**n)
        assert most / 2 <= wait <= most
    assert len(waits) == 16
    assert all(one != two for one, two in zip(waits[:8], waits[8:], strict=True)), "no jitter"


class TestRetryAfter:
    @pytest.mark.parametrize("status", [429, 503])
    @pytest.mark.parametrize("form", ["seconds", "date"])
    def test_no_one_asks_before(self, server: MirrorServer, status: int, form: str) -> None:
        told = 1 if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        server.faults = script = Scripted(Fault("status", status=status, retry_after=told))
        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(get, server)
            while server.url.removeprefix("http://") not in web._not_before:
                time.sleep(0.005)
            others = [pool.submit(get, server, "b") for _ in range(8)]
            assert first.result() == BODY
            assert {other.result() for other in others} == {b"b"}
        # a date is in whole seconds: 2 from now is more than 1 away
        assert min(script.asked[1:]) - script.asked[0] > 0.95
        assert max(script.asked) - script.asked[0] < 20

    def test_other_hosts_are_asked_meanwhile(self, server: MirrorServer, tmp_path: Path) -> None:
        server.faults = Scripted(Fault("status", status=503, retry_after=3))
        with MirrorServer(tmp_path) as other, ThreadPoolExecutor(1) as pool:
            held = pool.submit(get, server)
            while server.url.removeprefix("http://") not in web._not_before:
                time.sleep(0.005)
            assert get(other) == BODY
            assert not held.done()
            assert held.result() == BODY

    def test_longer_than_our_patience(self, server: MirrorServer) -> None:
        server.faults = script = Scripted(Fault("status", status=503, retry_after=3600))
        with pytest.raises(SourceUnreachableError, match="left alone for 3600 seconds"):
            get(server)
        assert len(script.asked) == 1

    @pytest.mark.parametrize(
        ("told", "seconds"),
        [
            ("5", 5), (" 7 ", 7), ("0", 0), ("", 0), ("-1", 0), ("soon", 0), ("1e3", 0), ("٣", 0),
            ("Wed, 21 Oct 2015 07:28:30 GMT", 30),
            ("Wednesday, 21-Oct-15 07:28:10 GMT", 10),
            ("Wed, 21 Oct 2015 07:27:00 GMT", 0),
            ("Wed, 21 Oct 2015 07:28:30", 0),  # of no time zone
            ("Wed, 99 Oct 2015 07:28:30 GMT", 0),
        ],
    )  # fmt: skip
    def test_its_forms_by_the_servers_own_clock(self, told: str, seconds: float) -> None:
        headers = {"retry-after": told, "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
        assert web._retry_after(headers) == seconds

    @given(st.text())
    def test_nonsense_is_nothing(self, told: str) -> None:
        assert web._retry_after({"retry-after": told}) >= 0


class TestBodies:
    def test_a_body_that_trickles(
        self, server: MirrorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each byte comes in time, but never all of them."""
        monkeypatch.setattr(web, "_WHOLE", 0.5)
        monkeypatch.setattr(web, "_RETRIES", 0)
        server.bandwidth = len(BODY) / 2
        with pytest.raises(SourceUnreachableError, match=r"within \d+ seconds"):
            get(server)

    def test_larger_than_what_is_read(self, server: MirrorServer) -> None:
        url = f"{server.url}/a"
        assert web.ask("GET", url, allowed=(), largest=len(BODY)).body == BODY
        with pytest.raises(SourceCorruptError, match="is larger than"):
            web.ask("GET", url, allowed=(), largest=len(BODY) - 1)
        assert get(server) == BODY, "the connection was spoilt"

    def test_connections_are_used_again(self, server: MirrorServer) -> None:
        server.faults = Scripted(*[Fault("status", status=status) for status in (500, 503, 429)])
        for _ in range(20):
            assert get(server) == BODY
        pool = web._connections(None, os.getpid(), False, True).connection_from_url(server.url)
        assert pool.num_connections == 1
        assert pool.num_requests == 23


class TestTls:
    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def secure(self, authority: trustme.CA, server: MirrorServer) -> Iterator[MirrorServer]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        with MirrorServer(server.root, tls=context) as secure:
            yield secure

    def test_a_source_over_https(
        self,
        secure: MirrorServer,
        authority: trustme.CA,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        certificate = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        source = Source(secure.url, allowed=(f"{secure.url}/",))
        secure.faults = Scripted(
            Fault("cut"), Fault("reset"), Fault("stall", seconds=1), Fault("hang", seconds=0)
        )
        assert source.get("a").data == BODY
        assert source.get_range("a", 5, 7).data == BODY[5:12]
        blob = source.get_suffix("a", 9)
        assert blob is not None
        assert blob.data == BODY[-9:]
        assert source.get_changed("a", blob.etag) is None

    def test_a_certificate_of_no_one(self, secure: MirrorServer) -> None:
        with pytest.raises(SourceUnreachableError, match="certificate is not trusted"):
            get(secure)
        assert secure.requests == []

    def test_another_hosts_certificate(
        self,
        server: MirrorServer,
        authority: trustme.CA,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        certificate = tmp_path / "ca.pem"
        authority.cert_pem.write_to_path(certificate)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("data.example").configure_cert(context)
        with MirrorServer(server.root, tls=context) as other:
            with pytest.raises(SourceUnreachableError, match="certificate is not trusted"):
                get(other)
            assert other.requests == []


class TestProxies:
    def test_the_environments_is_asked(
        self, server: MirrorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.delenv("no_proxy", raising=False)
        source = Source("http://data.example", allowed=("http://data.example/",))
        assert source.get("a").data == BODY

    def test_but_not_for_those_that_it_excludes(
        self, server: MirrorServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as nothing:
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{nothing.getsockname()[1]}")
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert get(server) == BODY


def test_redirects_lead_to_allowed_places_only(server: MirrorServer, tmp_path: Path) -> None:
    with MirrorServer(tmp_path) as other:
        server.faults = lambda *_: Fault("redirect", location=f"{other.url}{{path}}")
        source = Source(server.url, allowed=(f"{server.url}/",))
        for read in (
            lambda: source.get("a"),
            lambda: source.get_range("a", 0, 5),
            lambda: source.get_suffix("a", 5),
        ):
            with pytest.raises(SourceNotAllowedError, match=f"sends elsewhere: {other.url}/a"):
                read()
        assert other.requests == []
        both = Source(server.url, allowed=(f"{server.url}/", f"{other.url}/"))
        assert both.get_range("a", 3, 5).data == BODY[3:8]
        assert [(r.path, r.status) for r in other.requests] == [("/a", 206)]


def test_many_threads_share_the_connections(server: MirrorServer) -> None:
    lock = threading.Lock()
    answered = []

    def ask(_: int) -> None:
        body = get(server)
        with lock:
            answered.append(body == BODY)

    server.faults = lambda method, path, attempt: Fault("reset") if attempt % 3 == 1 else None
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(60)))
    assert answered == [True] * 60
