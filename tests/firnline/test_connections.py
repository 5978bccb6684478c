"""Names that lead inside: what is connected to, and what is not."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from firnline import web
from firnline.connections import is_public, may_be_private
from firnline.document import read_document
from firnline.errors import SourceRefusedError
from firnline.indexer.mirror import MirrorServer
from firnline.source import Source

HOST = "data.example.org"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.002)
    monkeypatch.setattr(web, "_RETRIES", 1)
    yield
    web._connections.cache_clear()
    web._proxy.cache_clear()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    (tmp_path / "a").write_bytes(b"inside")
    with MirrorServer(tmp_path) as server:
        yield server


class Resolver:
    """Answers for HOST, one list of addresses after the other; the last stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.left = [list(answer) for answer in answers]
        self.asked = 0
        self._real = socket.getaddrinfo

    def __call__(self, host: str, port: int, *more: Any, **named: Any) -> Any:
        if host != HOST:
            return self._real(host, port, *more, **named)
        self.asked += 1
        answer = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "",
             (each, port, 0, 0) if ":" in each else (each, port))
            for each in answer
        ]  # fmt: skip


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> Resolver:
    resolver = Resolver(*answers)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    return resolver


def named(server: MirrorServer) -> str:
    return server.url.replace("127.0.0.1", HOST)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "198.18.0.1", "::1", "::",
        "fe80::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_internet(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    assert not is_public(address)
    resolving(monkeypatch, [address])
    url = named(server)
    with pytest.raises(SourceRefusedError, match="is no public address") as caught:
        Source(url, allowed=(f"{url}/",)).get("a")
    assert f"{HOST} is at {address}" in str(caught.value)
    assert f"private://{HOST}" in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize(
    "address", ["52.92.1.1", "8.8.8.8", "2600:1fa0::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_what_is_wrapped_is_as_public_as_it_is(address: Any) -> None:
    public = address.is_global and not address.is_multicast
    assert is_public(str(address)) is public
    assert is_public(f"::ffff:{address}") is public
    assert is_public(f"64:ff9b::{int(address) >> 16:x}:{int(address) & 0xFFFF:x}") is public


def test_what_is_connected_to_is_what_was_looked_at(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that answers otherwise the second time is not asked a second time."""
    resolver = resolving(monkeypatch, ["52.92.1.1"], ["127.0.0.1"])
    tried: list[str] = []

    def refused(address: tuple[str, int], *_: Any, **__: Any) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib3.util.connection.create_connection", refused)
    monkeypatch.setattr(web, "_RETRIES", 0)
    with pytest.raises(web.SourceUnreachableError):
        read_document(f"{named(server)}/a", allowed=(f"{named(server)}/",))
    assert (tried, resolver.asked) == (["52.92.1.1"], 1)
    # and when it is asked again it is looked at again
    with pytest.raises(SourceRefusedError):
        read_document(f"{named(server)}/a", allowed=(f"{named(server)}/",))
    assert tried == ["52.92.1.1"]


def test_of_several_addresses_the_public_ones_are_tried(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["10.0.0.1", "2600:1fa0::1", "127.0.0.1", "52.92.1.1"])
    tried: list[str] = []

    def refused(address: tuple[str, int], *_: Any, **__: Any) -> None:
        tried.append(address[0])
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("urllib3.util.connection.create_connection", refused)
    monkeypatch.setattr(web, "_RETRIES", 0)
    with pytest.raises(web.SourceUnreachableError, match="refused"):
        read_document(f"{named(server)}/a", allowed=(f"{named(server)}/",))
    assert tried == ["2600:1fa0::1", "52.92.1.1"]


def test_a_redirect_to_a_name_that_leads_inside(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two allowed hosts one sends to the other, which has been taken over."""
    resolving(monkeypatch, ["127.0.0.1"])
    monkeypatch.setattr(
        web, "_once", redirected(web._once, f"{server.url}/from", f"{named(server)}/a")
    )
    with pytest.raises(SourceRefusedError, match="is no public address"):
        read_document(f"{server.url}/from", allowed=(f"{server.url}/", f"{named(server)}/"))
    assert server.requests == []


def redirected(once: Any, source: str, goal: str) -> Any:
    def ask(method: str, url: str, *more: Any) -> Any:
        if url == source:
            return web.Answer(302, {"location": goal}, b"")
        return once(method, url, *more)

    return ask


def test_what_the_operator_names_is_read(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, ["127.0.0.1"])
    url = named(server)
    blob = Source(url, allowed=(f"{url}/", f"private://{HOST}")).get("a")
    assert bytes(blob.data) == b"inside"
    assert bytes(Source(server.url, allowed=(f"{server.url}/",)).get("a").data) == b"inside"


def test_certificates_are_compared_with_the_name(
    server: MirrorServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though an address is connected to: here one that passes for public."""
    monkeypatch.setattr("firnline.connections.is_public", lambda _: True)
    resolving(monkeypatch, ["127.0.0.1"])
    authority = trustme.CA()
    certificate = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for issued, good in ((HOST, True), ("127.0.0.1", False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(issued).configure_cert(context)
        with MirrorServer(server.root, tls=context) as secure:
            source = Source(named(secure), allowed=(f"{named(secure)}/",))
            if good:
                assert bytes(source.get("a").data) == b"inside"
            else:
                with pytest.raises(SourceRefusedError, match="certificate is not trusted"):
                    source.get("a")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("::1", True), ("localhost", True), ("minio", True),
        ("store.internal", True), ("printer.local.", True), ("LOCALHOST", True),
        ("its-live-data.s3.amazonaws.com", False), ("data.example.org", False),
        ("local.example.org", False), ("127.0.0.1.example.org", False), ("other.example.org", True),
    ],
)  # fmt: skip
def test_hosts_that_need_no_look(host: str, expected: bool) -> None:
    allowed = ("https://data.example.org/", "private://Other.example.org/", "private://x.y/z")
    assert may_be_private(host, allowed) is expected
