"""Connections to public addresses only, where the operator has not said otherwise.

A name that is allowed is still resolved by others, who may point it at this machine, its network
or a cloud's metadata service, and at something else the next time. So the addresses of a name are
looked at where the connection is made, and the one that was looked at is the one that's used.

What needs no look was named itself in ``FIRNLINE_ALLOWED_SOURCES``: an address, a name that no
public server resolves (``minio``, ``store.internal``), and a host that ``private://HOST`` stands
there for.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

from firnline.errors import SourceRefusedError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_LOCAL = (".internal", ".lan", ".local", ".localhost", ".home.arpa")
"""Ends of names that are not in the public DNS (RFC 6761, 6762, 8375; ICANN's for private use)."""


def is_public(address: str) -> bool:
    """Whether an address is one of the internet, and so is any IPv4 address within it."""
    ip = ipaddress.ip_address(address)
    inner: list[ipaddress.IPv4Address | None] = []
    if isinstance(ip, ipaddress.IPv6Address):
        teredo = None if ip.teredo is None else ip.teredo[1]
        inner = [ip.ipv4_mapped, ip.sixtofour, teredo]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    own = ip.is_global and not ip.is_multicast
    mapped = isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None
    return (own or mapped) and all(is_public(str(each)) for each in inner if each is not None)


def may_be_private(host: str, allowed: Sequence[str]) -> bool:
    """Whether a host of an allowed URL may be inside, see the top of this module."""
    host = host.lower().rstrip(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        local = "." not in host or host.endswith(_LOCAL)
        return local or any(root.rstrip("/").lower() == f"private://{host}" for root in allowed)
    return True


class _Public(HTTPConnection):
    """Connects to a public address of its host, or to none."""

    def _new_conn(self) -> socket.socket:
        name = self._dns_host
        try:
            found = socket.getaddrinfo(
                name, self.port, allowed_gai_family(), socket.SOCK_STREAM
            )  # fmt: skip
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        public = [address for address in addresses if is_public(address)]
        if not public:
            raise SourceRefusedError(
                f"{name} is at {addresses[0]}, which is no public address; if that is meant, add "
                f"private://{name} to FIRNLINE_ALLOWED_SOURCES"
            )
        try:
            for address in public[:-1]:
                self._dns_host = address
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError):
                    continue  # the next may be reached, as by IPv4
            self._dns_host = public[-1]
            return super()._new_conn()
        finally:
            self._dns_host = name  # which certificates are compared with


class _PublicTLS(_Public, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Public


class _PoolTLS(HTTPSConnectionPool):
    ConnectionCls = _PublicTLS


class PublicPoolManager(PoolManager):
    """urllib3's, all of whose connections are to public addresses.

    A host that has none raises SourceRefusedError.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.pool_classes_by_scheme = {"http": _Pool, "https": _PoolTLS}
