from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

from firnline.database import writing
from firnline.settings import Settings
from firnline.tables import subsets
from tests.api.conftest import Client

BODY = bytes(range(256)) * 10
HERE = "/files/subset-0123456789abcdef/g2"
COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture(autouse=True)
def folder(engine: Engine, settings: Settings) -> Path:
    """A published subset with two generations, and things around it that are nobody's business."""
    now = datetime(2024, 1, 1, tzinfo=UTC)
    with writing(engine) as connection:
        connection.execute(
            insert(subsets).values(
                id="subset-0123456789abcdef",
                request_key="k",
                request="{}",
                generation="g2",
                sources="[]",
                size=1,
                stale=False,
                created=now,
                last_used=now,
            )
        )
    root = settings.cache_dir / "subsets" / "subset-0123456789abcdef"
    for generation in ("g1", "g2"):
        (root / generation / "pairs.zarr" / "vx" / "c" / "0").mkdir(parents=True)
        for name in ("cog_v.tif", "thumbnail.png", "provenance.json", "empty"):
            (root / generation / name).write_bytes(b"" if name == "empty" else BODY)
        for name in ("zarr.json", ".zmetadata", "vx/.zarray", "vx/c/0/0"):
            (root / generation / "pairs.zarr" / name).write_bytes(BODY)
    other = settings.cache_dir / "subsets" / "subset-unpublished" / "g1"
    other.mkdir(parents=True)
    (other / "cog_v.tif").write_bytes(b"secret")
    (settings.cache_dir / "secret.txt").write_bytes(b"secret")
    (root / "g2" / "link.txt").symlink_to(settings.cache_dir / "secret.txt")
    (root / "g2" / "up").symlink_to(settings.cache_dir)
    (root / "g3").symlink_to(other)
    return root


def without_id(answer: Any) -> dict[str, str]:
    """Headers but the one that every request has its own of."""
    return {name: value for name, value in answer.headers.items() if name != "x-request-id"}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("cog_v.tif", COG),
        ("thumbnail.png", "image/png"),
        ("provenance.json", "application/json"),
        ("pairs.zarr/zarr.json", "application/json"),
        ("pairs.zarr/.zmetadata", "application/json"),
        ("pairs.zarr/vx/.zarray", "application/json"),
        ("pairs.zarr/vx/c/0/0", "application/octet-stream"),
    ],
)
@pytest.mark.parametrize("generation", ["g1", "g2"])
def test_whole_files(client: Client, path: str, media_type: str, generation: str) -> None:
    url = f"/files/subset-0123456789abcdef/{generation}/{path}"
    answer = client.http.get(url)
    assert answer.status_code == 200
    assert answer.content == BODY
    assert answer.headers["content-type"] == media_type
    assert answer.headers["accept-ranges"] == "bytes"
    assert "immutable" in answer.headers["cache-control"]
    assert {"etag", "last-modified"} <= set(answer.headers)
    head = client.http.head(url)
    assert head.content == b""
    assert without_id(head) == without_id(answer)
    assert int(head.headers["content-length"]) == len(BODY)


@pytest.mark.parametrize(
    ("range_", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=2559-", 2559, 2559),
        ("bytes=-10", 2550, 2559),
        ("bytes=-99999", 0, 2559),
        ("bytes=2000-99999", 2000, 2559),
    ],
)
def test_ranges(client: Client, range_: str, first: int, last: int) -> None:
    for method in ("GET", "HEAD"):
        answer = client.http.request(method, f"{HERE}/cog_v.tif", headers={"Range": range_})
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/2560"
        assert int(answer.headers["content-length"]) == last - first + 1
        assert answer.content == (BODY[first : last + 1] if method == "GET" else b"")


def test_several_ranges(client: Client) -> None:
    answer = client.http.get(f"{HERE}/cog_v.tif", headers={"Range": "bytes=0-1,100-101"})
    assert answer.status_code == 206
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert BODY[100:102] in answer.content


@pytest.mark.parametrize(
    ("range_", "status"),
    [("bytes=2560-", 416), ("bytes=9999-10000", 416), ("bytes=5-2", 400), ("lines=1-2", 400)],
)
def test_ranges_that_are_not_there(client: Client, range_: str, status: int) -> None:
    options = {"headers": {"Range": range_}}
    problem = client.problem("GET", f"{HERE}/cog_v.tif", status, **options)
    assert "Range" in problem["detail"]
    if status == 416:
        answer = client.http.get(f"{HERE}/cog_v.tif", **options)
        assert answer.headers["content-range"] == "bytes */2560"


def test_not_modified(client: Client) -> None:
    first = client.http.get(f"{HERE}/cog_v.tif")
    tag, changed = first.headers["etag"], first.headers["last-modified"]
    for headers, status in [
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": f'"other", W/{tag}'}, 304),
        ({"If-None-Match": "*"}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": changed}, 304),
        (
            {"If-Modified-Since": format_datetime(datetime(1999, 1, 1, tzinfo=UTC), usegmt=True)},
            200,
        ),
        ({"If-Modified-Since": "yesterday"}, 200),
        ({"If-None-Match": '"other"', "If-Modified-Since": changed}, 200),
    ]:
        answer = client.http.get(f"{HERE}/cog_v.tif", headers=headers)
        assert answer.status_code == status, headers
        if status == 304:
            assert answer.content == b""
            assert answer.headers["etag"] == tag


def test_if_range(client: Client) -> None:
    tag = client.http.head(f"{HERE}/cog_v.tif").headers["etag"]
    for given, status in ((tag, 206), ('"other"', 200)):
        headers = {"Range": "bytes=0-9", "If-Range": given}
        assert client.http.get(f"{HERE}/cog_v.tif", headers=headers).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        f"{HERE}/none.tif",
        f"{HERE}/",
        f"{HERE}/pairs.zarr",
        f"{HERE}/pairs.zarr/",
        f"{HERE}/cog_v.tif/",
        f"{HERE}//cog_v.tif",
        f"{HERE}/%2e/cog_v.tif",
        f"{HERE}/..%2fg2/cog_v.tif",
        f"{HERE}/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        f"{HERE}/..%2f..%2f..%2fsecret.txt",
        f"{HERE}/..%5c..%5c..%5csecret.txt",
        f"{HERE}/%2fetc/passwd",
        f"{HERE}//etc/passwd",
        f"{HERE}/cog_v.tif%00",
        f"{HERE}/" + "x" * 5000,
        f"{HERE}/link.txt",
        f"{HERE}/up/secret.txt",
        "/files/subset-0123456789abcdef/g3/cog_v.tif",
        "/files/subset-0123456789abcdef/none/cog_v.tif",
        "/files/subset-0123456789abcdef/%2e%2e/subset-unpublished/g1/cog_v.tif",
        "/files/subset-0123456789abcdef/..%2fsubset-unpublished/g1/cog_v.tif",
        "/files/subset-unpublished/g1/cog_v.tif",
        "/files/../subset-unpublished/g1/cog_v.tif",
        "/files/%00/g1/cog_v.tif",
    ],
)
def test_nothing_else_is_served(client: Client, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = client.http.request(method, path)
        assert answer.status_code == 404
        assert b"secret" not in answer.content.replace(b"secret.txt", b"")
        assert answer.headers["content-type"] == "application/problem+json"


def test_browsers_of_other_sites_may_read(client: Client) -> None:
    origin = {"Origin": "https://viewer.example"}
    answer = client.http.get(f"{HERE}/cog_v.tif", headers={**origin, "Range": "bytes=0-9"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "Content-Range" in answer.headers["access-control-expose-headers"]
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    preflight = client.http.options(f"{HERE}/cog_v.tif", headers={**origin, **asked})
    assert preflight.status_code == 200


def test_an_empty_file(client: Client) -> None:
    answer = client.http.get(f"{HERE}/empty")
    assert (answer.status_code, answer.content) == (200, b"")
    client.problem("GET", f"{HERE}/empty", 416, headers={"Range": "bytes=0-9"})
