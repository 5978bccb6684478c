"""Stores of subsets in a bucket of a real S3 server, and what is looked at in them."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, select

from firnline.cache import jobs, store, worker
from firnline.cache.bucket import BucketPath
from firnline.cache.opening import subset_place
from firnline.cache.places import root
from firnline.cache.request import Request
from firnline.database import connect, reading
from firnline.settings import Settings
from firnline.tables import subsets

VARIABLES = ("vx", "vy")
LEASE = 20.0  # no worker loses its job because it has to wait for a processor


def tell(what: str) -> None:
    sys.stdout.write(f"{what}\n")


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="package", autouse=True)
def _environment(s3_server: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in s3_server.credentials.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Unconfigured, structlog renders tracebacks for seconds."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A folder of the private bucket that no other test has."""
    return f"s3://private/{tmp_path.name}/cache"


@pytest.fixture
def small(settings: Settings, url: str) -> Settings:
    """A store in the bucket; tiles of 20 x 20 pixels, few requests at once, no chunk kept."""
    return settings.model_copy(
        update={
            "cache_url": url,
            "memory_limit": 1,
            "lease_seconds": LEASE,
            "concurrency": 2,
            "chunk_cache_quota": 0,
        }
    )


@pytest.fixture(scope="package")
def asked(sample: Any) -> Request:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        "bbox": [left, bottom, left + 4500, top], "crs": "EPSG:3413", "variables": VARIABLES,
        "strain": False,
    }  # fmt: skip
    return Request.parse(inputs, Settings(_env_file=None))  # type: ignore[call-arg]


@pytest.fixture(scope="package")
def on_disk(
    sample: Any, asked: Request, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """What an installation with a directory makes of the request: bytes and SHA-256 by file."""
    other = sample.settings(tmp_path_factory.mktemp("disk") / "data", memory_limit=1)
    engine = connect(other.database)
    job = worker.finish(engine, other, jobs.submit(engine, asked))
    assert job.status == "successful", job.message
    folder = subset_place(engine, other, asked.subset_id)
    assert isinstance(folder, Path)
    found = {
        path: (stored.size, stored.sha256)
        for path, stored in store.files(folder)
        if path != "provenance.json"
    }
    engine.dispose()
    return found


def digests(folder: Any) -> dict[str, tuple[int, str]]:
    """Every file of a subset in a bucket but the provenance, which says when and how long."""
    names = [name for name in folder.files() if name != "provenance.json"]
    found = {name: (folder / name).read_bytes() for name in names}
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}


def generation(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return connection.scalar(select(subsets.c.generation))


def left_behind(
    engine: Engine,
    settings: Settings,
    request: Request,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> BucketPath:
    """The generation of a worker that died at a place of firnline.cache, with its only job."""

    def crash(*args: Any, **kwargs: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(f"firnline.cache.{place}", crash)
        with pytest.raises(SystemExit):
            worker.run_next(engine, settings, "first")
    there = root(settings)
    assert isinstance(there, BucketPath)
    [folder] = (there / "subsets" / request.subset_id).folders()
    return folder


def made(engine: Engine, settings: Settings, request: Request) -> BucketPath:
    """Materialise a request; the folder of its subset."""
    job = worker.finish(engine, settings, jobs.submit(engine, request))
    assert (job.status, job.message) == ("successful", "done")
    place = subset_place(engine, settings, request.subset_id)
    assert isinstance(place, BucketPath)
    return place


def left_over(settings: Settings) -> set[str]:
    """Files of the store that are in no subset, in the bucket and on this disk."""
    place = root(settings)
    assert isinstance(place, BucketPath)
    scratch = (settings.cache_dir / "work").rglob("*")
    return set((place / "work").files()) | {str(path) for path in scratch if path.is_file()}


def chunk_requests(sample: Any) -> Counter[str]:
    paths = (request.path for request in sample.server.requests)
    return Counter(path for path in paths if path.rsplit("/", 2)[-2] in VARIABLES)


def chunks_of(plan: Any, tiles: set[int]) -> Counter[str]:
    """Requests for some of the tiles, each fetched by itself."""
    return Counter(
        f"/{plan.cubes[chunk.cube].source.url.split('/', 3)[3]}/{chunk.key}"
        for tile in plan.tiles
        if tile.index in tiles
        for variable in VARIABLES
        for chunk in plan.chunks(tile, variable)
    )
