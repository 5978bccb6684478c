"""Workers and servers that die while a subset is put into a bucket: it's the same at the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from firnline.cache import bucket, eviction, jobs, worker
from firnline.cache.bucket import BucketPath
from firnline.cache.jobs import Job
from firnline.cache.materialise import plan_request
from firnline.cache.opening import ask, subset_place
from firnline.cache.places import root
from firnline.cache.request import Request
from firnline.database import get_item, reading, writing
from firnline.errors import StoreError, StoreUnreachableError
from firnline.settings import Settings
from tests.cache.bucket.conftest import (
    chunk_requests,
    chunks_of,
    digests,
    generation,
    left_behind,
    left_over,
    tell,
    wait_for,
)


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
    moment = chance.uniform(0, 1)
    first, second = machines
    plan = plan_request(engine, small, asked)
    tiles = {tile.index for tile in plan.tiles}
    assert len(tiles) >= 8
    sample.server.latency = 0.01
    job = jobs.submit(engine, asked)
    first.start()
    wait_for(lambda: jobs.get(engine, job.id).owner or not _living(engine, job))
    enough = moment * len(tiles)
    wait_for(lambda: len(jobs.finished_tiles(engine, job)) >= enough or not _living(engine, job))
    time.sleep(chance.uniform(0.0, 0.3))
    first.kill()
    killed = jobs.get(engine, job.id)
    done = set(jobs.finished_tiles(engine, killed))
    tell(f"killed with {len(done)} of {len(tiles)} tiles")
    if killed.living:
        assert generation(engine) is None, "nothing is published"
        jobs.beat(engine, killed, -1.0)  # its lease is over
    else:
        (root(small) / "work").remove()  # what it did not come to remove is the sweeper's
    sample.settle()
    sample.server.latency = 0.0
    second.start()
    wait_for(lambda: not _living(engine, job))
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
    freeze: Callable[[Any], None],
) -> None:
    """One is frozen in the middle, another ends its job, the first goes on."""
    first, second = machines
    sample.server.latency = 0.05
    job = jobs.submit(engine, asked)
    first.start()
    wait_for(lambda: len(jobs.finished_tiles(engine, job)) >= 2)
    assert first.process is not None
    freeze(first.process)
    jobs.beat(engine, jobs.get(engine, job.id), -1.0)  # its lease is over
    sample.server.latency = 0.01
    second.start()
    wait_for(lambda: not _living(engine, job))
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
    job = jobs.submit(engine, asked)
    checkpoint = jobs.checkpoint

    def then_away(*args: Any) -> None:
        checkpoint(*args)
        if len(jobs.finished_tiles(engine, job)) == 3:
            s3_server.stop()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(bucket, "_PATIENCE", timedelta(seconds=0.5))
            bucket._client.cache_clear()  # which has the patience of before
            patch.setattr(jobs, "checkpoint", then_away)
            assert worker.run_next(engine, small, "first")
            with pytest.raises(StoreUnreachableError, match="can't be listed: no answer"):
                (root(small) / "subsets").is_dir()
        back = jobs.get(engine, job.id)
        assert (back.status, back.attempt) == ("accepted", 1)
        assert "can't be written: no answer" in back.message
        assert generation(engine) is None
        done = set(jobs.finished_tiles(engine, job))
        assert len(done) == 3
    finally:
        bucket._client.cache_clear()
        s3_server.start()
    sample.settle()  # what was under way at the mirror is answered
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
