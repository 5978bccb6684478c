"""The store of subsets in a bucket of a real S3 server: the same subset, whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import xarray as xr
from sqlalchemy import Engine, select, update

import firnline
from firnline.cache import bucket, drafts, eviction, jobs, store, worker
from firnline.cache.bucket import BucketPath
from firnline.cache.containment import StoredTiles
from firnline.cache.jobs import Job
from firnline.cache.materialise import plan_request
from firnline.cache.opening import ask, open_stored, subset_place
from firnline.cache.places import root, upload
from firnline.cache.request import Request
from firnline.database import connect, get_item, reading, writing
from firnline.errors import NotFoundError, StoreError, StoreUnreachableError
from firnline.settings import Settings
from firnline.tables import subsets

VARIABLES = ("vx", "vy")
LEASE = 1.0


def tell(what: str) -> None:
    sys.stdout.write(f"{what}\n")


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module", autouse=True)
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


@pytest.fixture(scope="module")
def asked(sample: Any) -> Request:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        "bbox": [left, bottom, left + 4500, top], "crs": "EPSG:3413", "variables": VARIABLES,
        "strain": False,
    }  # fmt: skip
    return Request.parse(inputs, Settings(_env_file=None))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
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


# --- a subset -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Installation:
    engine: Engine
    settings: Settings
    requests: int
    """That were made of the mirror for the first subset."""


@pytest.fixture(scope="module")
def kept(
    sample: Any, asked: Request, tmp_path_factory: pytest.TempPathFactory, _environment: None
) -> Iterator[Installation]:
    """An installation whose store is in the bucket and has the subset."""
    settings = sample.settings(
        tmp_path_factory.mktemp("kept") / "data",
        memory_limit=1,
        cache_url="s3://private/kept/cache",
        chunk_cache_quota=0,
    )
    engine = connect(settings.database)
    sample.server.clear()
    with structlog.testing.capture_logs():
        made(engine, settings, asked)
    yield Installation(engine, settings, len(sample.server.requests))
    engine.dispose()


def test_a_bucket_and_a_directory_hold_the_same(
    kept: Installation, asked: Request, on_disk: dict[str, tuple[int, str]]
) -> None:
    engine, settings = kept.engine, kept.settings
    place = subset_place(engine, settings, asked.subset_id)
    with reading(engine) as connection:
        row = connection.execute(
            select(subsets.c.generation, subsets.c.size).where(subsets.c.id == asked.subset_id)
        ).one()
        content = get_item(connection, "subsets", asked.subset_id)
    assert str(place) == f"{settings.cache_url}/subsets/{asked.subset_id}/{row.generation}"
    assert digests(place) == on_disk
    assert left_over(settings) == set()
    record = json.loads((place / "provenance.json").read_bytes())
    assert {n: (f["size"], f["sha256"]) for n, f in record["files"].items()} == on_disk
    item = json.loads(content or "")
    sizes = {path: about.size for path, about in place.files().items()}
    for asset in item["assets"].values():
        name = asset["href"].split("/", 4)[4]
        expected = sizes.get(name) or sum(
            size for path, size in sizes.items() if path.startswith(f"{name}/")
        )
        assert asset["file:size"] == expected, name
    assert row.size == sum(sizes.values())
    assert b"AKID" not in (content or b"")
    assert b"s3://" not in (content or b"")
    [checked] = eviction.verify(engine, settings, [asked.subset_id])
    assert (checked.damage, checked.files) == ((), len(on_disk))


def test_readers_in_python(kept: Installation, asked: Request) -> None:
    inputs = {name: value for name, value in asked.to_inputs().items() if value is not None}
    with open_stored(kept.engine, kept.settings, asked.subset_id, "composite") as ds:
        speed = ds["v"].values
    assert np.isfinite(speed).any()
    pairs = firnline.open(settings=kept.settings, **inputs)
    assert isinstance(pairs, xr.Dataset)
    row, column = pairs.sizes["y"] // 2, pairs.sizes["x"] // 2
    series = firnline.series(
        pairs, x=float(pairs.x[column]), y=float(pairs.y[row]), variables=["vx"]
    )
    expected = pairs["vx"].isel(y=row, x=column).dropna("mid_date")
    np.testing.assert_array_equal(series["vx"], expected.values)
    assert len(series) > 0


def test_a_chunk_that_is_not_there_is_an_error(kept: Installation, asked: Request) -> None:
    """Never missing values; and no credentials go along with a store."""
    place = subset_place(kept.engine, kept.settings, asked.subset_id)
    shard = next(place / name for name in place.files() if name.startswith("pairs.zarr/vx/c/"))
    content = shard.read_bytes()
    place.remove([shard.key.removeprefix(f"{place.key}/")])
    try:
        with (
            pytest.raises(StoreError, match=r"pairs\.zarr/vx/c/.* is missing: .*--mend"),
            open_stored(kept.engine, kept.settings, asked.subset_id, "pairs") as ds,
        ):
            ds["vx"].load()
    finally:
        shard.write_bytes(content)
    packed = pickle.dumps((place / "pairs.zarr").zarr())
    assert b"secret" not in packed
    assert pickle.loads(packed) == (place / "pairs.zarr").zarr()


def test_a_request_inside_is_answered_from_the_bucket(
    sample: Any, kept: Installation, asked: Request, tmp_path: Path
) -> None:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        **asked.to_inputs(), "bbox": [left, bottom, left + 2400, top], "geometry": None,
        "composite": None,
    }  # fmt: skip
    inner = Request.parse({k: v for k, v in inputs.items() if v is not None}, kept.settings)
    inner = inner.model_copy(update={"composite": None})
    assert kept.requests > 0
    sample.server.clear()
    place = made(kept.engine, kept.settings, inner)
    assert sample.server.requests == []
    other = sample.settings(tmp_path / "other", memory_limit=1)
    elsewhere = connect(other.database)
    worker.finish(elsewhere, other, jobs.submit(elsewhere, inner))
    folder = subset_place(elsewhere, other, inner.subset_id)
    elsewhere.dispose()
    assert isinstance(folder, Path)
    assert digests(place) == {
        path: (stored.size, stored.sha256)
        for path, stored in store.files(folder)
        if path != "provenance.json"
    }


@pytest.mark.parametrize("what", ["vx/zarr.json", "vx/c/"])
def test_a_subset_that_is_being_removed_while_it_is_read(
    sample: Any, kept: Installation, asked: Request, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """File by file, as buckets do: the job begins anew, from the cubes."""
    left, bottom, _, _ = sample.mirror.aoi
    left, bottom = left + 3000, bottom + (2400 if what == "vx/c/" else 0)  # in no other subset
    inputs = {
        "bbox": [left, bottom, left + 1200, bottom + 1200], "crs": "EPSG:3413",
        "variables": VARIABLES, "strain": False,
    }  # fmt: skip
    inner = Request.parse(inputs, kept.settings)
    place = subset_place(kept.engine, kept.settings, asked.subset_id)
    saved = {name: (place / name).read_bytes() for name in place.files()}
    going = [name for name in saved if name.startswith(f"pairs.zarr/{what}")]
    assert going
    copy = StoredTiles._copy

    def gone(self: StoredTiles, *arguments: Any) -> None:
        place.remove(["provenance.json", *going])
        copy(self, *arguments)

    monkeypatch.setattr(StoredTiles, "_copy", gone)
    sample.server.clear()
    try:
        made_anew = made(kept.engine, kept.settings, inner)
    finally:
        for name, content in saved.items():
            (place / name).write_bytes(content)
    assert json.loads((made_anew / "provenance.json").read_bytes())["read_from"] is None
    assert sample.server.requests != []


def test_a_refreshed_subset_is_another_generation(
    kept: Installation, asked: Request, on_disk: dict[str, tuple[int, str]]
) -> None:
    engine, settings = kept.engine, kept.settings
    before = subset_place(engine, settings, asked.subset_id)
    job = worker.finish(engine, settings, jobs.submit(engine, asked, refresh=True))
    assert job.status == "successful"
    after = subset_place(engine, settings, asked.subset_id)
    assert after != before
    assert digests(before) == digests(after) == on_disk


# --- workers that die -----------------------------------------------------------------------


class Machine:
    """A machine: worker processes with a disk of their own, sharing database and bucket."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        folder.mkdir()
        self._log = folder / "log"
        self.settings = settings.model_copy(
            update={"data_dir": folder / "data", "database_url": settings.database}
        )
        names = ["data_dir", "memory_limit", "lease_seconds", "concurrency", "log_format"]
        names += ["chunk_cache_quota", "database_url", "cache_url", "retry_seconds"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIRN")},
            **{f"FIRNLINE_{name.upper()}": str(getattr(self.settings, name)) for name in names},
            "FIRNLINE_ALLOWED_SOURCES": ",".join(settings.allowed_sources),
            "PYTHONWARNINGS": "default",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "firnline.cli", "worker"],
                env=self._environment, cwd=self._log.parent, stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


@pytest.fixture
def machines(sample: Any, small: Settings, tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    both = Machine(small, tmp_path / "one"), Machine(small, tmp_path / "two")
    yield both
    sample.server.latency = 0.0
    for machine in both:
        machine.kill()
        tell(machine.log)
        assert "Traceback" not in machine.log
        assert "secret-of-the-tests" not in machine.log


def test_another_machine_goes_on_where_one_was_killed(
    sample: Any,
    engine: Engine,
    small: Settings,
    machines: tuple[Machine, Machine],
    asked: Request,
    on_disk: dict[str, tuple[int, str]],
) -> None:
    seed = int(os.environ.get("FIRNLINE_TEST_SEED") or random.randrange(2**32))
    tell(f"FIRNLINE_TEST_SEED={seed}")
    chance = random.Random(seed)
    moment = chance.uniform(0, 95)
    first, second = machines
    plan = plan_request(engine, small, asked)
    tiles = {tile.index for tile in plan.tiles}
    assert len(tiles) >= 8
    sample.server.latency = 0.01
    job = jobs.submit(engine, asked)
    first.start()
    wait_for(lambda: jobs.get(engine, job.id).progress >= moment or not _living(engine, job))
    time.sleep(chance.uniform(0.0, 0.3))
    first.kill()
    killed = jobs.get(engine, job.id)
    done = set(jobs.finished_tiles(engine, killed))
    tell(f"killed at {killed.progress} % with {len(done)} of {len(tiles)} tiles")
    if killed.living:
        assert generation(engine) is None, "nothing is published"
    time.sleep(0.1)  # what was under way at the mirror is answered
    sample.server.clear()
    sample.server.latency = 0.0
    second.start()
    wait_for(lambda: not _living(engine, job), 60)
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.message) == ("successful", "done")
    if killed.living:
        assert ended.attempt == 2
        assert chunk_requests(sample) == chunks_of(plan, tiles - done), "only what was not done"
    assert digests(subset_place(engine, small, asked.subset_id)) == on_disk
    place = root(small)
    assert [each.name for each in (place / "subsets" / asked.subset_id).folders()] == [
        generation(engine)
    ]
    wait_for(lambda: (place / "work").files() == {})
    wait_for(lambda: not list((second.settings.cache_dir / "work").glob("*/*")))


def _living(engine: Engine, job: Job) -> bool:
    return jobs.get(engine, job.id).living


def test_a_stalled_machine_does_no_harm(
    sample: Any,
    engine: Engine,
    small: Settings,
    machines: tuple[Machine, Machine],
    asked: Request,
    on_disk: dict[str, tuple[int, str]],
) -> None:
    """One is frozen in the middle, another ends its job, the first goes on."""
    first, second = machines
    sample.server.latency = 0.01
    job = jobs.submit(engine, asked)
    first.start()
    wait_for(lambda: len(jobs.finished_tiles(engine, job)) >= 2)
    assert first.process is not None
    first.process.send_signal(signal.SIGSTOP)
    second.start()
    wait_for(lambda: not _living(engine, job), 60)
    place = subset_place(engine, small, asked.subset_id)
    before = place.files()["provenance.json"]
    first.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "lost to another worker" in first.log)
    assert digests(place) == on_disk
    assert place.files()["provenance.json"] == before
    assert first.process.poll() is None, "it goes on with other jobs"
    jobs_after = jobs.get(engine, job.id)
    assert (jobs_after.status, jobs_after.attempt) == ("successful", 2)


@pytest.mark.parametrize("where", ["places.upload", "drafts._BucketDraft.clear"])
def test_whatever_moment_it_dies_at(
    engine: Engine,
    small: Settings,
    asked: Request,
    on_disk: dict[str, tuple[int, str]],
    where: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next attempt publishes the same, once; what readers are sent to is whole."""
    job = jobs.submit(engine, asked)

    def crash(*args: Any, **kwargs: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(f"firnline.cache.{where}", crash)
        with pytest.raises(SystemExit):
            worker.run_next(engine, small, "first")
    published = generation(engine)
    assert (published is not None) is (where == "drafts._BucketDraft.clear")
    if published is None:
        with writing(engine) as connection:  # its lease runs out
            connection.execute(
                update(jobs.jobs).values(lease_expires=datetime.now(UTC) - timedelta(seconds=1))
            )
    ended = worker.finish(engine, small, job)
    assert (ended.status, ended.message) == ("successful", "done")
    assert digests(subset_place(engine, small, asked.subset_id)) == on_disk
    [checked] = eviction.verify(engine, small)
    assert checked.damage == ()


def test_a_provenance_that_is_there_stays(
    engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an attempt that died before it could register; the item says how large it is."""
    job = jobs.submit(engine, asked)
    folder = left_behind(engine, small, asked, "products.register", monkeypatch)
    record = json.loads((folder / "provenance.json").read_bytes())
    (folder / "provenance.json").write_bytes(json.dumps(record, indent=3).encode())
    before = folder.files()["provenance.json"]
    jobs.beat(engine, jobs.get(engine, job.id), -1.0)
    ended = worker.finish(engine, small, job)
    assert ended.status == "successful", ended.message
    assert subset_place(engine, small, asked.subset_id) == folder
    assert folder.files()["provenance.json"] == before
    with reading(engine) as connection:
        item = json.loads(get_item(connection, "subsets", asked.subset_id) or "")
    assert item["assets"]["provenance"]["file:size"] == before.size


def test_tiles_whose_files_are_gone_are_done_again(
    engine: Engine,
    small: Settings,
    asked: Request,
    on_disk: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs.submit(engine, asked)
    folder = left_behind(engine, small, asked, "products.make", monkeypatch)
    shards = sorted(name for name in folder.files() if "/vx/c/" in name)
    folder.remove(shards[:1])
    (root(small) / "work" / job.id / "tiles").remove(["3.npz"])
    jobs.beat(engine, jobs.get(engine, job.id), -1.0)
    checkpoints: list[int] = []
    checkpoint = jobs.checkpoint

    def noted(engine: Engine, job: Job, tile: int, manifest: Any) -> None:
        checkpoints.append(tile)
        checkpoint(engine, job, tile, manifest)

    monkeypatch.setattr(jobs, "checkpoint", noted)
    ended = worker.finish(engine, small, job)
    assert ended.status == "successful", ended.message
    assert len(checkpoints) in (1, 2)
    assert 3 in checkpoints
    assert digests(subset_place(engine, small, asked.subset_id)) == on_disk
    folder.remove()
    assert ask(engine, small, asked).living, "what has no files is made anew"


def test_a_job_that_is_dismissed_or_fails_leaves_nothing(
    sample: Any, engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = root(small)
    assert isinstance(place, BucketPath)
    job = jobs.submit(engine, asked)
    checkpoint = jobs.checkpoint

    def then_dismiss(*args: Any) -> None:
        checkpoint(*args)
        jobs.dismiss(engine, job.id)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "checkpoint", then_dismiss)
        assert worker.run_next(engine, small, "first")
    assert jobs.get(engine, job.id).status == "dismissed"
    assert place.files() == {}
    job = jobs.submit(engine, asked)
    with monkeypatch.context() as patch:

        def broken(*args: Any, **kwargs: Any) -> None:
            raise StoreError("it is broken")

        patch.setattr("firnline.cache.products.make", broken)
        assert worker.run_next(engine, small, "first")
    assert jobs.get(engine, job.id).message == "it is broken"
    assert place.files() == {}
    assert left_over(small) == set()


# --- a bucket that goes away ----------------------------------------------------------------


def test_a_bucket_that_goes_away_is_waited_for(
    sample: Any,
    engine: Engine,
    small: Settings,
    asked: Request,
    on_disk: dict[str, tuple[int, str]],
    s3_server: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the middle: nothing is published, the job waits, and goes on where it was."""
    monkeypatch.setattr(bucket, "_PATIENCE", timedelta(seconds=0.5))
    job = jobs.submit(engine, asked)
    checkpoint = jobs.checkpoint

    def then_away(*args: Any) -> None:
        checkpoint(*args)
        if len(jobs.finished_tiles(engine, job)) == 3:
            s3_server.stop()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(jobs, "checkpoint", then_away)
            assert worker.run_next(engine, small, "first")
        back = jobs.get(engine, job.id)
        assert (back.status, back.attempt) == ("accepted", 1)
        assert "can't be written: no answer" in back.message
        assert generation(engine) is None
        done = set(jobs.finished_tiles(engine, job))
        assert len(done) == 3
        with pytest.raises(StoreUnreachableError, match="can't be listed: no answer"):
            (root(small) / "subsets").is_dir()
    finally:
        s3_server.start()
    time.sleep(0.3)  # what was under way at the mirror is answered
    sample.server.clear()
    ended = worker.finish(engine, small, back)
    assert (ended.status, ended.attempt) == ("successful", 2)
    plan = plan_request(engine, small, asked)
    rest = {tile.index for tile in plan.tiles} - done
    assert chunk_requests(sample) == chunks_of(plan, rest)
    assert digests(subset_place(engine, small, asked.subset_id)) == on_disk


def test_a_bucket_that_does_not_exist(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror answers 404 to all of it, as Amazon's does."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", sample.server.url)
    folder = BucketPath("no-such-bucket", "cache")
    for do in (folder.is_dir, folder.files, folder.folders, folder.remove):
        with pytest.raises(StoreError, match="can't be listed: there is no such bucket"):
            do()
    with pytest.raises(FileNotFoundError):
        folder.read_bytes()


def test_credentials_that_are_refused_are_said_and_not_shown(
    engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-one")
    job = worker.finish(engine, small, jobs.submit(engine, asked))
    assert (job.status, job.attempt) == ("failed", 1)
    assert "the server refuses (403 Forbidden)" in job.message
    assert "AWS_" in job.message
    assert "right-one" not in job.message
    assert "AKID" not in job.message
    assert "Signature" not in job.message


# --- what is stored -------------------------------------------------------------------------


@pytest.fixture
def stored(database: Engine, settings: Settings, url: str) -> Callable[..., str]:
    """Stores a subset of so many bytes that was used so many hours ago."""
    place = BucketPath.parse(url)

    def make(n: int, size: int, hours: float = 5.0, *, pinned: bool = False) -> str:
        from firnline.database import put_subset

        inputs = {"bbox": [n * 1000, 0, n * 1000 + 500, 500], "crs": "EPSG:3413"}
        request = Request.parse(inputs, settings)
        folder = place / "subsets" / request.subset_id / "generation"
        data = b"x" * size
        (folder / "pairs.zarr/0").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        record = {"files": {"pairs.zarr/0": {"size": size, "sha256": sha256}}}
        (folder / "provenance.json").write_bytes(json.dumps(record).encode())
        with writing(database) as connection:
            put_subset(
                connection, id=request.subset_id, request_key=request.key,
                request=json.dumps(request.to_inputs()), generation="generation", sources="[]",
                size=size, pinned=pinned, last_used=datetime.now(UTC) - timedelta(hours=hours),
            )  # fmt: skip
        return request.subset_id

    return make


def test_what_is_open_in_any_process_stays(
    database: Engine,
    small: Settings,
    stored: Callable[..., str],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eviction, "_kept", set())
    monkeypatch.setattr(eviction, "_touched", {})
    place = BucketPath.parse(url)
    opened, idle = stored(1, 400, 9), stored(2, 400, 8)
    (place / "subsets" / opened / "before/pairs.zarr/0").write_bytes(b"1")
    (place / "subsets" / idle / "before/pairs.zarr/0").write_bytes(b"1")
    eviction.keep_used(database, opened)

    def used() -> bool:
        with reading(database) as connection:
            when = connection.scalar(select(subsets.c.last_used).where(subsets.c.id == opened))
        return bool(when and datetime.now(UTC) - when < timedelta(minutes=1))

    wait_for(used)
    monkeypatch.setattr(eviction, "_past", lambda instant: True)
    assert [gone.id for gone in eviction.evict(database, small, quota=0)] == [idle]
    names = ("before/pairs.zarr/0", "generation/pairs.zarr/0", "generation/provenance.json")
    left = {f"subsets/{opened}/{name}" for name in names}
    assert set(place.files()) == left
    later = datetime.now(UTC) - timedelta(days=2)
    with writing(database) as connection:  # superseded long ago
        connection.execute(update(subsets).values(created=later))
    eviction.evict(database, small, quota=1000)
    assert set(place.files()) == left - {f"subsets/{opened}/before/pairs.zarr/0"}


def test_eviction_and_damage(
    database: Engine, small: Settings, stored: Callable[..., str], url: str
) -> None:
    place = BucketPath.parse(url) / "subsets"
    limited = small.model_copy(update={"cache_quota": 1000})
    oldest, pinned, newest = stored(1, 400, 9), stored(2, 400, 8, pinned=True), stored(3, 400, 7)
    assert [gone.id for gone in eviction.evict(database, limited)] == [oldest]
    assert {name.split("/")[0] for name in place.files()} == {pinned, newest}
    assert eviction.evict(database, limited) == []
    (place / pinned / "generation/pairs.zarr/0").write_bytes(b"y" * 400)
    (place / newest / "generation/pairs.zarr").remove()
    found = {one.id: one.damage for one in eviction.verify(database, limited)}
    assert found[pinned] == ("pairs.zarr/0: its content is not what was written",)
    assert found[newest] == ("pairs.zarr/0: No such file or directory",)
    (place / pinned / "generation/provenance.json").write_bytes(b"{")
    [checked] = eviction.verify(database, limited, [pinned])
    assert "provenance.json" in checked.damage[0]
    job = eviction.mend(database, limited, newest)
    assert job.living
    jobs.dismiss(database, job.id)
    eviction.pin(database, pinned, False)
    assert eviction.remove(database, limited, pinned).size == 400
    assert {name.split("/")[0] for name in place.files()} == {newest}


def test_orphans_are_swept(
    database: Engine,
    small: Settings,
    stored: Callable[..., str],
    url: str,
    asked: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = BucketPath.parse(url)
    kept = stored(1, 10)
    job = jobs.submit(database, asked)
    folder = place / "subsets" / asked.subset_id
    (folder / "20260101T000000000000Z-deadbeef" / "pairs.zarr/vx/c/0").write_bytes(b"1")
    (folder / f"20260101T000000000000Z-{job.id[:8]}" / "pairs.zarr/vx/c/0").write_bytes(b"1")
    (place / "work" / job.id / "tiles/0.npz").write_bytes(b"1")
    (place / "work" / "of-a-job-that-ended" / "tiles/0.npz").write_bytes(b"1")
    before = set(place.files())
    eviction.evict(database, small)
    assert set(place.files()) == before, "they may be about to be published"
    monkeypatch.setattr(eviction, "_past", lambda instant: True)
    eviction.evict(database, small)
    gone = before - set(place.files())
    assert gone == {
        f"subsets/{asked.subset_id}/20260101T000000000000Z-deadbeef/pairs.zarr/vx/c/0",
        "work/of-a-job-that-ended/tiles/0.npz",
    }
    assert (place / "subsets" / kept / "generation").is_dir()


# --- files ----------------------------------------------------------------------------------


def test_files_of_a_bucket(url: str, tmp_path: Path) -> None:
    folder = BucketPath.parse(url)
    body = random.Random(1).randbytes(20_000_000)
    (tmp_path / "files" / "a").mkdir(parents=True)
    (tmp_path / "files" / "a" / "large").write_bytes(body)
    (tmp_path / "files" / "small").write_bytes(b"12")
    files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    upload(tmp_path / "files", files, folder)
    assert {name: about.size for name, about in folder.files().items()} == {
        "a/large": len(body),
        "small": 2,
    }
    assert (folder / "a/large").digest() == (len(body), hashlib.sha256(body).hexdigest())
    (folder / "a/large").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == body
    assert b"".join((folder / "a/large").blocks(10, 9_000_000)) == body[10:9_000_000]
    assert [each.name for each in folder.folders()] == ["a"]
    assert (folder / "a").is_dir()
    assert (folder / "a").exists()
    assert (folder / "small").exists()
    assert not (folder / "smal").exists()
    for missing in (folder / "none", folder / "a"):
        with pytest.raises(FileNotFoundError, match="is not there"):
            missing.read_bytes()
    with pytest.raises(FileExistsError):
        (folder / "small").write_new(b"3")
    (folder / "new").write_new(b"3")
    assert (folder / "new").read_bytes() == b"3"
    folder.remove(["none", "new"])
    folder.remove()
    assert folder.files() == {}


def test_who_is_not_there_is_told_at_the_door(
    engine: Engine, small: Settings, asked: Request
) -> None:
    with pytest.raises(NotFoundError):
        open_stored(engine, small, asked.subset_id, "pairs")


def test_drafts_know_their_generations() -> None:
    assert drafts.made_by("20260101T000000000000Z-0123abcd", "0123abcd-1111-2222")
    assert not drafts.made_by("20260101T000000000000Z-0123abcd", "0123abce-1111-2222")
