"""Tiles done by other processes: any executor, and a Dask cluster that loses a worker."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.bucket import BucketPath
from firnline.cache.materialise import plan_request
from firnline.cache.opening import subset_place
from firnline.cache.places import Place, below
from firnline.cache.request import Request
from firnline.cache.tiles import TileTask, do_tile
from firnline.database import connect
from firnline.errors import StoreError
from firnline.indexer.mirror import Fault, Faults
from firnline.settings import Settings

ROOT = Path(__file__).parents[2]


def contents(folder: Place) -> dict[str, bytes]:
    names = (
        folder.files()
        if isinstance(folder, BucketPath)
        else [path.relative_to(folder).as_posix() for path in below(folder)]
    )
    return {name: (folder / name).read_bytes() for name in names if name != "provenance.json"}


@pytest.fixture
def in_bucket(s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of a bucket; who is started from now on has its credentials."""
    for name, value in s3_server.credentials.items():
        monkeypatch.setenv(name, value)
    return f"s3://private/{tmp_path.name}"


@pytest.fixture(scope="module")
def asked(sample: Any) -> Request:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        "bbox": [left, bottom, left + 4500, top], "crs": "EPSG:3413", "variables": ["vx", "vy"],
        "strain": False,
    }  # fmt: skip
    return Request.parse(inputs, Settings(_env_file=None))  # type: ignore[call-arg]


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Tiles of 20 x 20 pixels; no chunk kept, so that requests tell what was done."""
    return settings.model_copy(update={"memory_limit": 1, "chunk_cache_quota": 0})


@pytest.fixture(scope="module")
def by_threads(
    sample: Any, asked: Request, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What an installation of its own makes of the request in its own process."""
    other = sample.settings(tmp_path_factory.mktemp("threads") / "data", memory_limit=1)
    engine = connect(other.database)
    job = worker.finish(engine, other, jobs.submit(engine, asked))
    assert job.status == "successful", job.message
    found = contents(subset_place(engine, other, asked.subset_id))
    engine.dispose()
    return found


def processes() -> Executor:
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@pytest.mark.parametrize("make", [processes, lambda: ThreadPoolExecutor(3)])
def test_any_executor_gives_the_same(
    engine: Engine,
    small: Settings,
    asked: Request,
    by_threads: dict[str, bytes],
    make: Callable[[], Executor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @contextmanager
    def made(settings: Settings) -> Iterator[Executor]:
        with make() as executor:
            yield executor

    monkeypatch.setattr("firnline.cache.materialise.tile_executor", made)
    job = worker.finish(engine, small, jobs.submit(engine, asked))
    assert (job.status, job.message) == ("successful", "done")
    assert contents(subset_place(engine, small, asked.subset_id)) == by_threads


def test_what_a_tile_fails_of_the_job_fails_of(
    sample: Any, engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ThreadPoolExecutor(2)
    sample.server.faults = Faults(Fault("status", status=403), match="*/vx/*")
    held: AbstractContextManager[Executor] = nullcontext(executor)
    monkeypatch.setattr("firnline.cache.materialise.tile_executor", lambda settings: held)
    job = worker.finish(engine, small, jobs.submit(engine, asked))
    executor.shutdown()
    assert job.status == "failed"
    assert "403" in job.message
    assert list((small.cache_dir / "work").iterdir()) == []


def test_a_plan_that_another_wrote_is_not_opened(
    engine: Engine, small: Settings, asked: Request, tmp_path: Path
) -> None:
    file = tmp_path / "plan"
    file.write_bytes(pickle.dumps(plan_request(engine, small, asked)))
    task = TileTask(file, "0" * 64, tmp_path, tmp_path, 0, 1, 1, tmp_path, 0)
    with pytest.raises(StoreError, match="is not the plan that the job's worker wrote"):
        do_tile(task)


def test_a_plan_travels(sample: Any, engine: Engine, small: Settings, asked: Request) -> None:
    plan = plan_request(engine, small, asked)
    there = pickle.loads(pickle.dumps(plan))
    assert there.fingerprint == plan.fingerprint
    assert there.tiles == plan.tiles
    source = there.cubes[0].source
    assert source.url == plan.cubes[0].source.url
    assert source.get_changed(".zmetadata", there.cubes[0].layout.etag) is None


class Cluster:
    """A scheduler and two workers of one thread each, all processes of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "scheduler.json"
        self._scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        deadline = time.monotonic() + 60
        # it is there before all of it is written
        while not self._file.exists() or not self._file.read_text().endswith("\n}"):
            assert self._scheduler.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        self.address: str = json.loads(self._file.read_text())["address"]
        self.workers = [self._start("worker", "--nthreads", "1", "--no-nanny") for _ in range(2)]

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *options,
                 "--scheduler-file", str(self._file), "--no-dashboard"],
                cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"TMPDIR": str(self._folder)},
            )  # fmt: skip

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def close(self) -> None:
        for process in (*self.workers, self._scheduler):
            process.kill()
            process.wait(10)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.mark.parametrize("kind", ["directory", "bucket"])
def test_a_cluster_that_loses_a_worker_gives_the_same(
    kind: str,
    sample: Any,
    engine: Engine,
    small: Settings,
    asked: Request,
    by_threads: dict[str, bytes],
    in_bucket: str,
    cluster: Cluster,
) -> None:
    far = small.model_copy(update={"dask_scheduler": cluster.address, "concurrency": 2})
    if kind == "bucket":
        far = far.model_copy(update={"cache_url": in_bucket})
    killed_at: list[int] = []

    def kill(progress: int, message: str) -> None:
        if progress >= 25 and not killed_at:
            killed_at.append(progress)
            cluster.workers[0].kill()

    sample.server.latency = 0.02
    try:
        job = worker.finish(engine, far, jobs.submit(engine, asked), shown=kill)
    finally:
        sample.server.latency = 0.0
    assert (job.status, job.message, job.attempt) == ("successful", "done", 1), cluster.log
    assert killed_at
    assert killed_at[0] < 90
    assert cluster.workers[0].wait(30) != 0
    place = subset_place(engine, far, asked.subset_id)
    assert isinstance(place, BucketPath) is (kind == "bucket")
    assert contents(place) == by_threads
    assert not list((far.cache_dir / "work").glob("*/*"))


def test_a_scheduler_that_is_not_there(
    engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("firnline.cache.executors._TIMEOUT", "1s")
    far = small.model_copy(update={"dask_scheduler": "tcp://127.0.0.1:9"})
    job = worker.finish(engine, far, jobs.submit(engine, asked))
    assert job.status == "failed"
    assert "no Dask scheduler at tcp://127.0.0.1:9" in job.message
