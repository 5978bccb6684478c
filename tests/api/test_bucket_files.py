"""Files, maps and series of subsets in a bucket: what the same files in a directory give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from firnline.api.app import create_app
from firnline.cache import bucket, jobs, worker
from firnline.cache.bucket import BucketPath
from firnline.cache.opening import subset_place
from firnline.cache.places import below, upload
from firnline.cache.request import Request
from firnline.database import connect
from firnline.errors import StoreUnreachableError

URL = "s3://private/of-the-api/cache"


@dataclass(frozen=True)
class Both:
    """One catalog served twice: its files in a directory, and in a bucket."""

    disk: TestClient
    bucket: TestClient
    folder: Path
    place: BucketPath

    @property
    def item(self) -> str:
        return f"/collections/subsets/items/{self.place.key.split('/')[-2]}"

    @property
    def files(self) -> str:
        return "/files/" + "/".join(self.place.key.split("/")[-2:])


@pytest.fixture(scope="module")
def both(sample: Any, s3_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_server.credentials.items():
            patch.setenv(name, value)
        settings = sample.settings(tmp_path_factory.mktemp("both") / "data")
        engine = connect(settings.database)
        left, bottom, _, top = sample.mirror.aoi
        inputs = {"bbox": [left, bottom, left + 4500, top], "crs": "EPSG:3413", "strain": False}
        job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
        assert job.subset is not None, job.message
        folder = subset_place(engine, settings, job.subset)
        far = settings.model_copy(update={"cache_url": URL})
        place = subset_place(engine, far, job.subset)
        assert isinstance(folder, Path)
        assert isinstance(place, BucketPath)
        upload(folder, below(folder), place)
        (BucketPath.parse(URL) / "subsets" / job.subset / "secret").write_bytes(
            b"of no one's business"
        )
        (folder / "empty").write_bytes(b"")
        (place / "empty").write_bytes(b"")
        yield Both(
            *(
                TestClient(create_app(each, engine), raise_server_exceptions=False)
                for each in (settings, far)
            ),
            folder,
            place,
        )
        engine.dispose()


KEPT = ("content-type", "content-length", "content-range", "accept-ranges", "cache-control",
        "x-content-type-options", "content-disposition", "content-encoding")  # fmt: skip


def alike(both: Both, path: str, method: str = "GET", **headers: str) -> Any:
    """Ask both; the answers have the same status, body and headers (but for dates and tags)."""
    one, other = (
        each.request(method, path, headers={"Accept-Encoding": "identity", **headers})
        for each in (both.disk, both.bucket)
    )
    assert other.status_code == one.status_code, other.text[:300]
    assert other.content == one.content
    for name in KEPT:
        assert other.headers.get(name) == one.headers.get(name), name
    return other


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "name", ["v.tif", "thumbnail.png", "pairs.zarr/zarr.json", "pairs.zarr/vx/c/0/0/0", "empty"]
)
def test_whole_files(both: Both, method: str, name: str) -> None:
    answer = alike(both, f"{both.files}/{name}", method)
    assert answer.status_code == 200
    assert {"etag", "last-modified"} <= set(answer.headers)
    if method == "GET":
        assert answer.content == (both.folder / name).read_bytes()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=0-0", 206), ("bytes=100-199", 206), ("bytes=7000-", 206), ("bytes=-10", 206),
        ("bytes=-99999999", 206), ("bytes=200-99999999", 206), ("bytes=99999999-", 416),
        ("bytes=5-2", 400), ("lines=1-2", 400),
    ],
)  # fmt: skip
def test_ranges(both: Both, method: str, asked: str, status: int) -> None:
    path = f"{both.files}/v.tif"
    assert len((both.folder / "v.tif").read_bytes()) > 7000
    if status == 206:
        assert alike(both, path, method, Range=asked).status_code == 206
        return
    answer = both.bucket.request(method, path, headers={"Range": asked})
    assert (
        answer.status_code == both.disk.request(method, path, headers={"Range": asked}).status_code
    )
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 416:
        size = (both.folder / "v.tif").stat().st_size
        assert answer.headers["content-range"] == f"bytes */{size}"


def test_several_ranges_are_answered_by_the_whole(both: Both) -> None:
    answer = both.bucket.get(f"{both.files}/v.tif", headers={"Range": "bytes=0-1,100-101"})
    assert answer.status_code == 200
    assert answer.content == (both.folder / "v.tif").read_bytes()


def test_conditions(both: Both) -> None:
    path = f"{both.files}/v.tif"
    first = both.bucket.get(path)
    tag, changed = first.headers["etag"], first.headers["last-modified"]
    for headers, status in [
        ({"If-None-Match": tag}, 304),
        ({"If-None-Match": '"other"'}, 200),
        ({"If-Modified-Since": changed}, 304),
        ({"Range": "bytes=0-9", "If-Range": tag}, 206),
        ({"Range": "bytes=0-9", "If-Range": changed}, 206),
        ({"Range": "bytes=0-9", "If-Range": '"other"'}, 200),
    ]:
        answer = both.bucket.get(path, headers=headers)
        assert answer.status_code == status, headers
        if status == 304:
            assert (answer.content, answer.headers["etag"]) == (b"", tag)


@pytest.mark.parametrize(
    "path",
    [
        "none.tif", "", "pairs.zarr", "pairs.zarr/", "v.tif/", "/v.tif", "%2e/v.tif",
        "..%2fsecret", "%2e%2e/secret", "..%5csecret", "%2fetc/passwd", "v.tif%00", "x" * 5000,
        "a%0ab",
    ],
)  # fmt: skip
def test_nothing_else_is_served(both: Both, path: str) -> None:
    for method in ("GET", "HEAD"):
        answer = both.bucket.request(method, f"{both.files}/{path}")
        assert answer.status_code == 404
        assert b"business" not in answer.content
    unknown = both.files.replace("subset-", "subset-0")
    assert both.bucket.get(f"{unknown}/v.tif").status_code == 404


def test_maps_series_and_lines(both: Both) -> None:
    def asked(path: str) -> Any:
        answer = alike(both, f"{both.item}/{path}")
        assert answer.status_code == 200, answer.text
        return answer

    for band in (1, 2):
        assert asked(f"assets/cog_v/preview.png?bidx={band}").headers["content-type"] == "image/png"
    left, bottom, right, top = both.disk.get(both.item).json()["properties"]["proj:bbox"]
    x, y = (left + right) / 2, (bottom + top) / 2
    half = 2.0**22
    pixel = 2.0 ** (15 - 10) * 256
    tile = f"{int((x + half) // pixel)}/{int((half - y) // pixel)}"
    assert len(asked(f"assets/cog_v/tiles/EPSG3413/10/{tile}.png").content) > 500
    west, south, east, north = both.disk.get(both.item).json()["bbox"]
    point = asked(f"assets/cog_v/point/{(west + east) / 2},{(south + north) / 2}").json()
    assert any(value is not None for value in point["values"])
    for dataset in ("pairs", "composite"):
        rows = asked(f"series?x={x}&y={y}&dataset={dataset}").json()
        assert rows["numberReturned"] > 0
    assert asked(f"flowlines?x={x}&y={y}&time=2019-07-01").json()["features"]


def test_an_outage_says_so(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 and when to come again, not 404: the file may well be there."""
    from datetime import timedelta

    monkeypatch.setattr(bucket, "_PATIENCE", timedelta(seconds=0.3))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreUnreachableError):
        both.place.exists()
    for path in (
        f"{both.files}/v.tif",
        f"{both.item}/series?x=0&y=0",
        f"{both.item}/assets/cog_count/preview.png",
    ):
        answer = both.bucket.get(path)
        assert answer.status_code == 503, path
        assert answer.headers["retry-after"] == "5"
        assert "the subsets' store does not answer now" in answer.json()["detail"]
        assert "127.0.0.1" not in answer.text
