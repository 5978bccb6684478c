"""Objects of a real S3 server, for everyone and for those who sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import obstore
import pytest

from firnline import web
from firnline.document import Seen, look_up, read_document
from firnline.errors import (
    SourceCorruptError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)
from firnline.indexer.mirror import Fault, MirrorServer
from firnline.source import Source

BODY = bytes(range(256)) * 40
NAMES = ("vx/0.0.0", "vx/c/0/1/0", "with space/ü+&=%41?#.x", "zarr.json")
ALLOWED = ("s3://public/", "s3://private/")


@pytest.fixture(scope="module")
def server(s3_server: Any) -> Any:
    for bucket in ("public", "private"):
        for name in NAMES:
            obstore.put(s3_server.store(bucket), f"a b/cube.zarr/{name}", BODY)
    return s3_server


@pytest.fixture(autouse=True)
def _environment(server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(web, "_RETRIES", 0)


def opened(bucket: str, *, signed: bool) -> Source:
    url = f"s3://{bucket}/a%20b/cube.zarr"
    return Source(url, allowed=ALLOWED, signed=[f"s3://{bucket}/"] if signed else ())


@pytest.mark.parametrize(("bucket", "signed"), [("public", False), ("private", True)])
def test_objects_windows_and_conditions(bucket: str, signed: bool) -> None:
    source = opened(bucket, signed=signed)
    assert source.remote
    for name in NAMES:
        blob = source.get(name)
        assert blob.data == BODY
        assert source.get_changed(name, blob.etag) is None
        again = source.get_changed(name, '"another"')
        assert again is not None
        assert again.data == BODY
        part = source.get_range(name, 300, 500)
        assert (part.data, part.etag) == (BODY[300:800], blob.etag)
        end = source.get_suffix(name, 77)
        assert end is not None
        assert (end.data, end.etag) == (BODY[-77:], blob.etag)
        assert source.get_suffix(name, 77, blob.etag) is None
    with pytest.raises(SourceMissingError, match=r"cube\.zarr/vx/0\.0\.1 does not exist"):
        source.get("vx/0.0.1")
    for start in (len(BODY) - 5, len(BODY), 10 * len(BODY)):
        with pytest.raises(SourceCorruptError, match="shorter than its index says"):
            source.get_range("vx/0.0.0", start, 10)


def test_what_is_private_is_refused_to_who_does_not_sign() -> None:
    with pytest.raises(SourceUnreachableError, match="access denied") as caught:
        opened("private", signed=False).get("vx/0.0.0")
    assert "X-Amz" not in str(caught.value)


def test_wrong_and_missing_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceUnreachableError, match="access denied") as caught:
        opened("private", signed=True).get("vx/0.0.0")
    assert "X-Amz" not in str(caught.value), "a signature must not be told"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # no role of this machine
    with pytest.raises(SourceUnreachableError, match="can't be signed for"):
        opened("private", signed=True).get("vx/0.0.0")


def test_only_the_roots_that_are_named_are_signed() -> None:
    """Credentials are of no use, and may do harm, where everyone may read."""
    url = "s3://public/a%20b/cube.zarr"
    for signed in ((), ("s3://private/",), ("s3://public/other/",), ("s3://publicx/",)):
        source = Source(url, allowed=ALLOWED, signed=signed)
        assert type(source._transport).__name__ == "_Web"
    source = Source(url, allowed=ALLOWED, signed=("s3://public/a%20b/",))
    assert type(source._transport).__name__ == "_SignedS3"
    assert source.get("zarr.json").data == BODY


def test_documents(server: Any) -> None:
    obstore.put(server.store("public"), "catalog.json", b"{}")
    found = read_document("s3://public/catalog.json", allowed=ALLOWED)
    assert found is not None
    assert found.data == b"{}"
    assert (
        read_document("s3://public/catalog.json", allowed=ALLOWED, known=found.validators) is None
    )
    files = [[f"s3://public/{name}"] for name in ("catalog.json", "a b/cube.zarr/vx/0.0.0", "none")]
    catalog, chunk, none = look_up(files, allowed=ALLOWED)
    assert catalog == Seen(found.validators.etag, 2)
    assert isinstance(chunk, Seen)
    assert chunk.size == len(BODY)
    assert none is None


def test_a_bucket_that_sends_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it signed or not: the signature is not taken there, and nothing is read from there."""
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "x").write_bytes(BODY)
    with MirrorServer(tmp_path) as elsewhere, MirrorServer(tmp_path) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.url)
        endpoint.faults = lambda *_: Fault("redirect", location=f"{elsewhere.url}{{path}}")
        for signed in ((), ("s3://public/",)):
            with pytest.raises(SourceNotAllowedError, match="sends elsewhere") as caught:
                Source("s3://public", allowed=ALLOWED, signed=signed).get("x")
            assert "X-Amz" not in str(caught.value)
        assert elsewhere.requests == []
        # within the bucket it may
        endpoint.faults = lambda _, path, __: (
            Fault("redirect", location="/public/x") if path == "/public/y" else None
        )
        assert Source("s3://public", allowed=ALLOWED).get("y").data == BODY


def test_amazons_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an endpoint the bucket's name is the host's, which is in the bucket's own region."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    asked: list[str] = []

    def ask(method: str, url: str, **_: Any) -> web.Answer:
        asked.append(url)
        return web.Answer(200, {}, BODY)

    monkeypatch.setattr(web, "ask", ask)
    for signed in ((), ("s3://its-live-data/",)):
        roots = {"allowed": ("s3://its-live-data/",), "signed": signed}
        Source("s3://its-live-data/a%20b/cube.zarr", **roots).get("vx/0")
    path = "a%20b/cube.zarr/vx/0"
    assert asked[0] == f"https://its-live-data.s3.amazonaws.com/{path}"
    address, query = asked[1].split("?")
    assert address == f"https://s3.us-west-2.amazonaws.com/its-live-data/{path}"
    assert "X-Amz-Signature=" in query
