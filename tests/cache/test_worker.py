"""Real worker processes, killed, stopped and interrupted: the subset is the undisturbed one."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import zarr
from sqlalchemy import Engine, event, select

from firnline.cache import jobs, store, worker
from firnline.cache.jobs import Job
from firnline.cache.materialise import plan_request
from firnline.cache.opening import subset_place
from firnline.cache.plan import Plan
from firnline.cache.request import Request
from firnline.database import connect, get_item, migrate, reading
from firnline.errors import DatabaseError, JobDismissedError, JobLostError
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults
from firnline.settings import Settings
from firnline.tables import subsets

LEASE = 20.0  # no worker loses its job because it has to wait for a processor
KILLS = int(os.environ.get("FIRNLINE_TEST_JOB_KILLS", "10"))
VARIABLES = ("vx", "vy")


def tell(what: str) -> None:
    sys.stdout.write(f"{what}\n")


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
    return value


class Workers:
    """Worker processes of an installation, by process id."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._log = log
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        names = ["data_dir", "memory_limit", "lease_seconds", "concurrency", "log_format"]
        names += ["chunk_cache_quota", "database_url", "cache_url"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FIRN")},
            **{f"FIRNLINE_{name.upper()}": str(getattr(settings, name)) for name in names},
            "FIRNLINE_ALLOWED_SOURCES": ",".join(settings.allowed_sources),
            "PYTHONWARNINGS": "default",
        }

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "firnline.cli", "worker"],
                env=self._environment, cwd=self._log.parent, stdout=log, stderr=log,
            )  # fmt: skip
        self._running[process.pid] = process
        return process

    def owner(self, job: Job) -> subprocess.Popen[bytes] | None:
        """The process that has a job; its owner's name is host-pid-random."""
        if job.owner is None:
            return None
        return self._running.get(int(job.owner.rsplit("-", 2)[1]))

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait(10)
        del self._running[process.pid]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def close(self) -> None:
        for process in self._running.values():
            process.kill()
            process.wait(10)


@pytest.fixture
def small(settings: Settings) -> Settings:
    """Tiles of 20 x 20 pixels, few requests at once, no chunk kept."""
    return settings.model_copy(
        update={
            "memory_limit": 1,
            "lease_seconds": LEASE,
            "concurrency": 2,
            "chunk_cache_quota": 0,
        }
    )


@pytest.fixture
def workers(sample: Any, small: Settings, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(small, tmp_path / "workers.log")
    yield workers
    workers.close()
    sample.server.latency = 0.0
    tell(workers.log)  # seen when the test fails
    assert "Traceback" not in workers.log


@pytest.fixture(scope="module")
def asked(sample: Any) -> Request:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        "bbox": [left, bottom, left + 4500, top], "crs": "EPSG:3413", "variables": VARIABLES,
        "strain": {"length_scale": 480},
    }  # fmt: skip
    return Request.parse(inputs, Settings(_env_file=None))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def undisturbed(
    sample: Any, asked: Request, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[int, str]]:
    """What an installation of its own makes of the request: bytes and SHA-256 by file."""
    other = sample.settings(tmp_path_factory.mktemp("undisturbed") / "data", memory_limit=1)
    engine = connect(other.database)
    job = worker.finish(engine, other, jobs.submit(engine, asked))
    assert job.status == "successful", job.message
    files = digests(subset_place(engine, other, asked.subset_id))
    engine.dispose()
    return files


@pytest.fixture(autouse=True)
def _quiet(undisturbed: object) -> Iterator[None]:
    """Unconfigured, structlog renders tracebacks with every local variable, for seconds."""
    with structlog.testing.capture_logs():
        yield


def digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file of a subset but the provenance, which says when and how long."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }
    return {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}


def generation(engine: Engine) -> str | None:
    with reading(engine) as connection:
        return connection.scalar(select(subsets.c.generation))


def chunk_requests(sample: Any) -> Counter[str]:
    paths = (request.path for request in sample.server.requests)
    return Counter(path for path in paths if path.rsplit("/", 2)[-2] in VARIABLES)


def chunks_of(plan: Plan, tiles: set[int]) -> Counter[str]:
    """Requests for some of the tiles, each fetched by itself."""
    return Counter(
        f"/{plan.cubes[chunk.cube].source.url.split('/', 3)[3]}/{chunk.key}"
        for tile in plan.tiles
        if tile.index in tiles
        for variable in VARIABLES
        for chunk in plan.chunks(tile, variable)
    )


def complete_generations(settings: Settings, asked: Request) -> list[str]:
    """Names of the folders that readers could be sent to; each of them is whole."""
    folder = settings.cache_dir / "subsets" / asked.subset_id
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    for name in found:
        for path in (folder / name).glob("*.zarr"):
            store.verify(path)
        assert (folder / name / "provenance.json").exists()
    return found


@pytest.mark.timeout(300 + 20 * KILLS)
def test_killed_workers_make_the_undisturbed_subset(
    sample: Any,
    engine: Engine,
    small: Settings,
    workers: Workers,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
) -> None:
    """Generations of a subset, each by three workers of which two are killed, as a rule."""
    seed = int(os.environ.get("FIRNLINE_TEST_SEED") or random.randrange(2**32))
    tell(f"FIRNLINE_TEST_SEED={seed}")
    chance = random.Random(seed)
    plan = plan_request(engine, small, asked)
    tiles = {tile.index for tile in plan.tiles}
    assert len(tiles) >= 8
    workers.start()
    kills = 0
    while kills < KILLS:
        before = generation(engine)
        job = jobs.submit(engine, asked, refresh=True)
        sample.server.latency = 0.01
        attempts, done = 1, set[int]()
        for moment in sorted(chance.uniform(-10, 100) for _ in range(2)):
            workers.start()  # the one that will take over
            wait_for(lambda job=job: workers.owner(jobs.get(engine, job.id)))
            enough = min(moment / 90, 1) * len(tiles)
            wait_for(
                lambda job=job, n=enough: (
                    len(jobs.finished_tiles(engine, job)) >= n
                    or not jobs.get(engine, job.id).living
                )
            )
            time.sleep(chance.uniform(0.0, 0.4))
            if process := workers.owner(jobs.get(engine, job.id)):
                workers.kill(process)
            killed = jobs.get(engine, job.id)
            if not killed.living:  # it was done before it could be killed
                if process:  # what it did not come to remove is the sweeper's, in an hour
                    shutil.rmtree(small.cache_dir / "work" / job.id, ignore_errors=True)
                break
            kills += 1
            assert killed.attempt == attempts
            assert generation(engine) == before, "readers see what they saw before"
            complete_generations(small, asked)
            done = set(jobs.finished_tiles(engine, killed))
            sample.settle()
            tell(f"killed with {len(done)} of {len(tiles)} tiles")
            attempts += 1
            expire(engine, killed)
            wait_for(lambda job=job, n=attempts: jobs.get(engine, job.id).attempt == n)
        sample.server.latency = 0.0
        wait_for(lambda job=job: not jobs.get(engine, job.id).living)
        ended = jobs.get(engine, job.id)
        assert (ended.status, ended.message, ended.attempt) == ("successful", "done", attempts)
        if killed.living:
            assert chunk_requests(sample) == chunks_of(plan, tiles - done), "only what was not done"
        assert generation(engine) != before
        assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed
        assert generation(engine) in complete_generations(small, asked)
        wait_for(lambda: list((small.cache_dir / "work").iterdir()) == [])


def test_a_stalled_worker_finds_that_it_has_lost(
    sample: Any,
    engine: Engine,
    small: Settings,
    workers: Workers,
    asked: Request,
    freeze: Callable[[Any], None],
    undisturbed: dict[str, tuple[int, str]],
) -> None:
    """One is frozen in the middle, another takes over, the first goes on at the same time."""
    sample.server.latency = 0.05
    workers.start()
    workers.start()
    job = jobs.submit(engine, asked)
    first = wait_for(lambda: workers.owner(jobs.get(engine, job.id)))
    wait_for(lambda: jobs.finished_tiles(engine, job))
    freeze(first)
    expire(engine, jobs.get(engine, job.id))
    wait_for(lambda: jobs.get(engine, job.id).attempt == 2)
    first.send_signal(signal.SIGCONT)
    sample.server.latency = 0.01
    wait_for(lambda: not jobs.get(engine, job.id).living)
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.message) == ("successful", "done")
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed
    assert complete_generations(small, asked) == [generation(engine)]
    wait_for(lambda: list((small.cache_dir / "work").iterdir()) == [])
    assert first.poll() is None, "it goes on with other jobs"


def test_a_refusal_is_not_tried_again(
    sample: Any, engine: Engine, small: Settings, asked: Request
) -> None:
    job = jobs.submit(engine, asked)
    sample.server.faults = Faults(Fault("status", status=403), match="*/vy/*")
    assert worker.run_next(engine, small, "first")
    sample.server.faults = None
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.attempt) == ("failed", 1)
    assert ended.message.endswith("the server answered 403 (access denied)")


def test_a_source_that_goes_away_in_the_middle_is_waited_for(
    sample: Any,
    engine: Engine,
    small: Settings,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job goes back to the queue with its finished tiles; the next try does the others."""
    monkeypatch.setattr("firnline.web._sleep", lambda _: None)
    job = jobs.submit(engine, asked)
    checkpoint = jobs.checkpoint

    def then_away(*args: Any) -> None:
        checkpoint(*args)
        if len(jobs.finished_tiles(engine, job)) == 3:
            sample.server.faults = Faults(Fault("status", 503))

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "checkpoint", then_away)
        assert worker.run_next(engine, small, "first")
    back = jobs.get(engine, job.id)
    assert (back.status, back.attempt, back.owner) == ("accepted", 1, None)
    assert "503" in back.message
    assert generation(engine) is None
    done = set(jobs.finished_tiles(engine, job))
    assert len(done) >= 3
    sample.settle()  # what was under way when the job was put back is asked for to the end
    sample.server.faults = None
    ended = worker.finish(engine, small, back)
    assert (ended.status, ended.attempt) == ("successful", 2)
    plan = plan_request(engine, small, asked)
    rest = {tile.index for tile in plan.tiles} - done
    assert chunk_requests(sample) == chunks_of(plan, rest)
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_stopped_hands_its_job_back(
    sample: Any,
    engine: Engine,
    small: Settings,
    workers: Workers,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    signum: int,
) -> None:
    sample.server.latency = 0.01
    job = jobs.submit(engine, asked)
    process = workers.start()
    wait_for(lambda: len(jobs.finished_tiles(engine, job)) >= 2)
    process.send_signal(signum)
    assert process.wait(30) == 0
    back = jobs.get(engine, job.id)
    assert (back.status, back.attempt, back.owner) == ("accepted", 0, None)
    done = set(jobs.finished_tiles(engine, job))
    assert len(done) >= 2
    assert generation(engine) is None
    sample.settle()
    sample.server.latency = 0.0
    ended = worker.finish(engine, small, back)
    assert (ended.status, ended.attempt) == ("successful", 1)
    plan = plan_request(engine, small, asked)
    rest = {tile.index for tile in plan.tiles} - done
    assert chunk_requests(sample) == chunks_of(plan, rest)
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed


@pytest.mark.parametrize(
    ("held_up", "signals", "status", "code"),
    [("vx", 1, "accepted", 0), ("granule_url", 2, "running", 128 + signal.SIGTERM)],
)
def test_a_worker_that_is_stopped_waits_for_no_source(
    sample: Any,
    engine: Engine,
    small: Settings,
    workers: Workers,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    held_up: str,
    signals: int,
    status: str,
    code: int,
) -> None:
    """One that never answers. Before there is a plan nothing looks at a signal; a second one ends.

    Whoever has the job then goes on with it when the lease has run out.
    """
    held = threading.Event()

    def hang(method: str, path: str, nth: int) -> Fault | None:
        if path.rsplit("/", 2)[-2] != held_up:
            return None
        held.set()
        return Fault("hang", seconds=600)

    sample.server.faults = hang
    job = jobs.submit(engine, asked)
    process = workers.start()
    assert held.wait(60)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in workers.log)
    assert process.wait(30) == code
    left = jobs.get(engine, job.id)
    assert left.status == status
    if left.owner is not None:
        expire(engine, left)
    sample.server.faults = None
    ended = worker.finish(engine, small, job)
    assert (ended.status, ended.attempt) == ("successful", signals)
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed


def test_a_job_that_is_dismissed_leaves_nothing(
    sample: Any, engine: Engine, small: Settings, workers: Workers, asked: Request
) -> None:
    sample.server.latency = 0.01
    job = jobs.submit(engine, asked)
    process = workers.start()
    wait_for(lambda: jobs.finished_tiles(engine, job))
    assert (small.cache_dir / "work" / job.id).exists()
    jobs.dismiss(engine, job.id)
    wait_for(lambda: not (small.cache_dir / "work" / job.id).exists())
    time.sleep(0.3)
    wait_for(lambda: not any(files for _, _, files in os.walk(small.cache_dir)))
    assert jobs.get(engine, job.id).status == "dismissed"
    with reading(engine) as connection:
        assert get_item(connection, "subsets", asked.subset_id) is None
    assert process.poll() is None
    # and it takes the next job
    other = jobs.submit(engine, asked)
    assert other.id != job.id
    wait_for(lambda: jobs.get(engine, other.id).status in ("running", "successful"))


# --- in this process: what ends a job, at a moment of our choice ---------------------------


def crash(*args: Any, **kwargs: Any) -> None:
    """End as a killed process does: no handler of `Exception` sees it."""
    raise SystemExit


def expire(engine: Engine, job: Job) -> None:
    jobs.beat(engine, job, -1.0)


def claim_and_run(engine: Engine, settings: Settings, owner: str) -> bool:
    return worker.run_next(engine, settings, owner)


@pytest.mark.parametrize(
    "moment",
    ["cache.store.write_field", "cache.store.verify", "cache.products.make",
     "cache.products._provenance", "cache.store.publish"],
)  # fmt: skip
def test_a_crash_after_the_last_tile_fetches_nothing_again(
    sample: Any,
    engine: Engine,
    settings: Settings,
    small: Settings,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    job = jobs.submit(engine, asked)
    with monkeypatch.context() as patch:
        patch.setattr(f"firnline.{moment}", crash)
        with pytest.raises(SystemExit):
            claim_and_run(engine, small, "first")
    assert generation(engine) is None
    assert complete_generations(small, asked) == []
    expire(engine, jobs.get(engine, job.id))
    sample.server.clear()
    assert claim_and_run(engine, small, "second")
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.message, ended.attempt) == ("successful", "done", 2)
    assert chunk_requests(sample) == Counter()
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed
    assert complete_generations(small, asked) == [generation(engine)]
    assert list((small.cache_dir / "work").iterdir()) == []


def test_a_crash_between_moving_and_registering_is_mended(
    engine: Engine,
    settings: Settings,
    small: Settings,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = jobs.submit(engine, asked)
    with monkeypatch.context() as patch:
        patch.setattr("firnline.cache.products.register", crash)
        with pytest.raises(SystemExit):
            claim_and_run(engine, small, "first")
    assert generation(engine) is None, "no reader is sent to what was not registered"
    expire(engine, jobs.get(engine, job.id))
    assert claim_and_run(engine, small, "second")
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.attempt) == ("successful", 2)
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed
    assert generation(engine) in complete_generations(small, asked)
    assert list((small.cache_dir / "work").iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_whatever_goes_wrong_ends_the_job_with_a_reason(
    engine: Engine,
    small: Settings,
    asked: Request,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("firnline.cache.store.write", fail)
    job = jobs.submit(engine, asked)
    assert claim_and_run(engine, small, "first")
    ended = jobs.get(engine, job.id)
    assert ended.status == "failed"
    assert ended.message
    assert "\n" not in ended.message
    assert list((small.cache_dir / "work").iterdir()) == []


@pytest.mark.parametrize("lost", [True, False])
def test_a_worker_that_fails_after_losing_its_job_leaves_the_folder_alone(
    engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The folder is then the new owner's; when the job was dismissed it is nobody's."""
    job = jobs.submit(engine, asked)

    def fail(*args: Any, **kwargs: Any) -> None:
        if lost:
            expire(engine, jobs.get(engine, job.id))
            assert jobs.claim(engine, "second", 60) is not None
        else:
            jobs.dismiss(engine, job.id)
        raise RuntimeError("the first worker's disk")

    monkeypatch.setattr("firnline.cache.store.write", fail)
    # no heartbeat in between: it would find out first
    slow = small.model_copy(update={"lease_seconds": 60.0})
    assert claim_and_run(engine, slow, "first")
    assert any((small.cache_dir / "work" / job.id).rglob("plan.json")) is lost
    seen = jobs.get(engine, job.id)
    assert (seen.status, seen.owner) == (("running", "second") if lost else ("dismissed", None))


@pytest.mark.parametrize("end", ["lost", "dismissed"])
def test_a_worker_that_is_stopped_after_losing_its_job(
    engine: Engine, small: Settings, asked: Request, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    job = jobs.submit(engine, asked)
    stop = threading.Event()

    def check(self: Any) -> None:
        if not (small.cache_dir / "work" / job.id).exists():
            return
        if end == "lost":
            expire(engine, jobs.get(engine, job.id))
            assert jobs.claim(engine, "second", 60) is not None
        else:
            jobs.dismiss(engine, job.id)
        raise worker.Stopped

    monkeypatch.setattr(worker.Heartbeat, "check", check)
    slow = small.model_copy(update={"lease_seconds": 60.0})
    assert worker.run_next(engine, slow, "first", stop=stop)
    assert (small.cache_dir / "work" / job.id).exists() is (end == "lost")
    assert jobs.get(engine, job.id).status == ("running" if end == "lost" else "dismissed")


def test_a_heartbeat_outlives_a_database_that_is_away_for_a_moment(
    engine: Engine, asked: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs.submit(engine, asked)
    job = jobs.claim(engine, "first", 4.0)
    assert job is not None
    beat, failures = jobs.beat, iter([True, True, False])

    def shaky(*args: Any, **kwargs: Any) -> None:
        if next(failures, False):
            raise DatabaseError("the database did not answer")
        beat(*args, **kwargs)

    monkeypatch.setattr(jobs, "beat", shaky)
    with worker.Heartbeat(engine, job, 4.0, threading.Event(), None) as pulse:
        pulse.say(42, "4 of 9 tiles")
        wait_for(lambda: jobs.get(engine, job.id).progress == 42)
        pulse.check()

    def gone(*args: Any, **kwargs: Any) -> None:
        raise DatabaseError("the database did not answer")

    monkeypatch.setattr(jobs, "beat", gone)
    with worker.Heartbeat(engine, job, 0.4, threading.Event(), None) as pulse:
        wait_for(lambda: not pulse._thread.is_alive())
        with pytest.raises(JobLostError, match="ran out"):
            pulse.check()


def test_a_heartbeat_tells_of_a_dismissal(engine: Engine, asked: Request) -> None:
    made = jobs.submit(engine, asked)
    job = jobs.claim(engine, "first", 1.0)
    assert job is not None
    shown: list[tuple[int, str]] = []
    said = lambda *words: shown.append(words)  # noqa: E731
    with worker.Heartbeat(engine, job, 0.4, threading.Event(), said) as pulse:
        pulse.say(7, "tile")
        pulse.check()
        jobs.dismiss(engine, made.id)
        wait_for(lambda: not pulse._thread.is_alive())
        with pytest.raises(JobDismissedError):
            pulse.check()
    assert shown == [(7, "tile")]


def test_a_worker_waits_for_a_database_that_is_away(
    engine: Engine, small: Settings, asked: Request
) -> None:
    """Its loop goes on; the job is done once the database answers."""
    job = jobs.submit(engine, asked)
    away = threading.Event()
    away.set()
    refused = []

    def refuse(*args: Any) -> None:
        if away.is_set():
            refused.append(1)
            raise sqlite3.OperationalError("disk I/O error")

    other = connect(small.database)
    event.listen(other, "do_connect", refuse)
    stop = threading.Event()
    loop = threading.Thread(
        target=worker.run, args=(other, small, stop), kwargs={"interval": 0.05}, daemon=True
    )
    loop.start()
    wait_for(lambda: len(refused) > 2)
    away.clear()
    wait_for(lambda: jobs.get(engine, job.id).status == "successful")
    stop.set()
    loop.join(60)
    assert not loop.is_alive()
    other.dispose()


def test_a_half_written_store_is_not_where_readers_look_and_is_finished_later(
    engine: Engine,
    small: Settings,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A half-written Zarr opens without an error: so it must not be found."""
    job = jobs.submit(engine, asked)
    with monkeypatch.context() as patch:
        patch.setattr("firnline.cache.store.verify", crash)
        with pytest.raises(SystemExit):
            claim_and_run(engine, small, "first")
    (work,) = (small.cache_dir / "work" / job.id).rglob("pairs.zarr")
    assert "vx" in zarr.open_group(work, mode="r")
    assert not (small.cache_dir / "subsets").exists()
    with reading(engine) as connection:
        assert get_item(connection, "subsets", asked.subset_id) is None
    # what zarr leaves when it is killed as it writes a chunk
    for name in ("strain.zarr/e2/c/0/0.0123abcd.partial", "pairs.zarr/vx/c/0/0/.0.half"):
        (work.parent / name).write_bytes(b"half")
    expire(engine, jobs.get(engine, job.id))
    assert claim_and_run(engine, small, "second")
    assert jobs.get(engine, job.id).message == "done"
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed


def test_a_database_server_that_crashes_in_the_middle(
    sample: Any,
    small: Settings,
    mortal_postgres: Any,
    tmp_path: Path,
    asked: Request,
    undisturbed: dict[str, tuple[int, str]],
) -> None:
    """It's away for longer than the lease; the worker waits, and the job ends as if nothing was."""
    with mortal_postgres.database() as name:
        settings = small.model_copy(
            update={"database_url": mortal_postgres.url(name), "lease_seconds": 2.0}
        )
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [sample.mirror.catalog_url], mosaics=False)
        running = Workers(settings, tmp_path / "workers.log")
        sample.server.latency = 0.02
        try:
            job = jobs.submit(engine, asked)
            running.start()
            wait_for(lambda: len(jobs.finished_tiles(engine, job)) >= 2)
            mortal_postgres.stop()
            time.sleep(settings.lease_seconds + 0.5)
            mortal_postgres.start()
            engine.dispose()  # its connections died
            sample.server.latency = 0.0
            wait_for(lambda: not jobs.get(engine, job.id).living)
            ended = jobs.get(engine, job.id)
            assert (ended.status, ended.message) == ("successful", "done")
            assert digests(subset_place(engine, settings, asked.subset_id)) == undisturbed
            assert "Traceback" not in (tmp_path / "workers.log").read_text()
        finally:
            sample.server.latency = 0.0
            running.close()
            engine.dispose()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, where this process may mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k,mode=0777", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_a_reason_and_leaves_nothing(
    engine: Engine,
    small: Settings,
    asked: Request,
    small_disk: Path,
    undisturbed: dict[str, tuple[int, str]],
) -> None:
    assert sum(size for size, _ in undisturbed.values()) > 400_000
    settings = small.model_copy(update={"cache_url": str(small_disk)})
    job = jobs.submit(engine, asked)
    assert worker.run_next(engine, settings, "first")
    ended = jobs.get(engine, job.id)
    assert ended.status == "failed"
    assert ended.message == "the store can't be written: No space left on device"
    assert generation(engine) is None
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    # with room the same request is done
    ended = worker.finish(engine, small, jobs.submit(engine, asked))
    assert ended.status == "successful", ended.message
    assert digests(subset_place(engine, small, asked.subset_id)) == undisturbed
