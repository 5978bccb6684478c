"""Compression and conditional requests, as clients and proxies see them."""

from __future__ import annotations

import gzip

import brotli
import httpx
import pytest
import zstandard
from sqlalchemy import Engine

from tests.api.conftest import box, make_item, put

DECODERS = {
    "gzip": gzip.decompress,
    "br": brotli.decompress,
    "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def raw(url: str, encoding: str, **headers: str) -> tuple[httpx.Response, bytes]:
    with httpx.stream("GET", url, headers={"Accept-Encoding": encoding, **headers}) as answer:
        return answer, b"".join(answer.iter_raw())


@pytest.mark.parametrize("encoding", DECODERS)
def test_encodings(served: str, engine: Engine, encoding: str) -> None:
    put(engine, [make_item(f"i{n}", box(n, 0, n + 1, 1)) for n in range(30)])
    plain, content = raw(f"{served}/search?limit=30", "identity")
    assert "content-encoding" not in plain.headers
    answer, encoded = raw(f"{served}/search?limit=30", encoding)
    assert answer.headers["content-encoding"] == encoding
    assert "accept-encoding" in answer.headers["vary"].lower()
    assert answer.headers["content-type"] == "application/geo+json"
    assert DECODERS[encoding](encoded) == content
    assert len(encoded) < len(content) / 4


@pytest.mark.parametrize("path", ["/queryables", "/collections/itslive-cubes/queryables", "/api"])
def test_json_of_other_names_is_compressed_too(served: str, path: str) -> None:
    plain, content = raw(f"{served}{path}", "identity")
    answer, encoded = raw(f"{served}{path}", "zstd")
    assert answer.headers["content-encoding"] == "zstd"
    assert answer.headers["content-type"] == plain.headers["content-type"] != "application/json"
    assert DECODERS["zstd"](encoded) == content


@pytest.mark.parametrize(
    ("accepted", "sent"),
    [
        ("*", "gzip"),
        ("*;q=0.5", "gzip"),
        ("gzip, *", "gzip"),
        ("br, *;q=0.1", "br"),
        ("*;q=0", None),
        ("gzip;q=0, *", None),
    ],
)
def test_anything_is_gzip(served: str, accepted: str, sent: str | None) -> None:
    """A client that takes `*` rarely knows zstd: requests without its package doesn't."""
    answer, _ = raw(f"{served}/collections", accepted)
    assert answer.headers.get("content-encoding") == sent


def test_a_page_that_did_not_change_is_not_sent_again(served: str, engine: Engine) -> None:
    url = f"{served}/search"
    put(engine, [make_item("a", box(0, 0, 1, 1))])
    first = httpx.get(url)
    assert first.headers["cache-control"] == "no-cache"  # ask again, every time
    tag = {"If-None-Match": first.headers["etag"]}
    for encoding in ("gzip", "identity"):
        again = httpx.get(url, headers={**tag, "Accept-Encoding": encoding})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert again.headers["vary"] == first.headers["vary"] == "Accept-Encoding, Origin"
    put(engine, [make_item("b", box(0, 0, 1, 1))])
    fresh = httpx.get(url, headers=tag)
    assert fresh.status_code == 200
    assert fresh.json()["numberMatched"] == 2
    assert fresh.headers["etag"] != first.headers["etag"]


def test_only_what_is_read_is_conditional(served: str) -> None:
    answer = httpx.post(f"{served}/search", json={}, headers={"If-None-Match": "*"})
    assert answer.status_code == 200
    answer = httpx.get(f"{served}/collections/none", headers={"If-None-Match": "*"})
    assert answer.status_code == 404
