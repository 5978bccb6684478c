"""The worker: claims jobs, shows that it is alive, and ends each of them well or with a reason."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable

import structlog
from sqlalchemy import Engine

from firnline.cache import drafts, eviction, jobs
from firnline.cache.jobs import Job
from firnline.cache.materialise import materialise
from firnline.cache.memory import settle
from firnline.errors import (
    ConflictError,
    DatabaseError,
    FirnlineError,
    JobDismissedError,
    JobLostError,
    SourceRefusedError,
    SourceUnreachableError,
    StoreError,
    StoreUnreachableError,
)
from firnline.settings import Settings

log = structlog.get_logger(__name__)

Progress = Callable[[int, str], None]
_TIDY = 3600.0  # seconds


class Stopped(Exception):
    """The worker was told to stop: its job goes back to the queue."""


class Heartbeat:
    """Renews a job's lease from a thread of its own until it's closed.

    The job's thread only leaves its progress here; what the database answers (lost, dismissed) is
    kept and raised by :meth:`check`. A database that is away for a moment is tried again until
    the lease has run out.
    """

    def __init__(
        self, engine: Engine, job: Job, lease: float, stop: threading.Event, shown: Progress | None
    ) -> None:
        self._engine, self._job, self._lease, self._stop = engine, job, lease, stop
        self._shown = shown
        self._state: tuple[int, str] = (0, "starting")
        self._ended: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()

    def say(self, progress: int, message: str) -> None:
        """Leave the progress for the next beat."""
        self._state = (progress, message)
        if self._shown is not None:
            self._shown(progress, message)

    def check(self) -> None:
        """Raise what ended the job, if something has."""
        if self._ended is not None:
            raise self._ended
        if self._stop.is_set():
            raise Stopped

    def _run(self) -> None:
        last = time.monotonic()
        interval = min(self._lease / 4, 2.0)
        while not self._closed.wait(interval):
            progress, message = self._state
            try:
                jobs.beat(self._engine, self._job, self._lease, progress=progress, message=message)
                last = time.monotonic()
            except (JobDismissedError, JobLostError) as error:
                self._ended = error
                return
            except DatabaseError as error:
                log.warning("heartbeat failed", job=self._job.id, reason=str(error))
                if time.monotonic() - last > self._lease:
                    self._ended = JobLostError(f"job {self._job.id}: the lease ran out")
                    return
            except Exception as error:  # noqa: BLE001  raised where the job can end with it
                self._ended = error
                return


def worker_name() -> str:
    """Unique among all workers of a database."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def run_next(
    engine: Engine,
    settings: Settings,
    owner: str,
    *,
    only: str | None = None,
    stop: threading.Event | None = None,
    shown: Progress | None = None,
) -> bool:
    """Claim one job, or `only` the one with this id, and do it; False when there was none.

    Nothing is raised for a job that fails: its reason is recorded. DatabaseError is raised, since
    then nothing can be recorded.
    """
    job = jobs.claim(engine, owner, settings.lease_seconds, only=only)
    if job is None:
        return False
    stop = stop or threading.Event()
    settle()
    say = log.bind(job=job.id, attempt=job.attempt)
    say.info("job claimed")
    try:
        try:
            with Heartbeat(engine, job, settings.lease_seconds, stop, shown) as pulse:
                subset = materialise(engine, settings, job, pulse)
            say.info("job done", subset=subset)
            tidy(engine, settings)
        except Stopped:
            jobs.release(engine, job)
            say.info("job handed back")
        except (DatabaseError, JobLostError, JobDismissedError):
            raise
        except SourceRefusedError as error:
            jobs.fail(engine, job, str(error))
            drafts.discard(settings, job)
            say.warning("job failed", reason=str(error))
        except (SourceUnreachableError, StoreUnreachableError) as error:
            # what is finished stays, for the next try
            again = jobs.retry(engine, job, str(error), settings.retry_seconds)
            if not again:
                drafts.discard(settings, job)
            say.warning("job put back" if again else "job failed", reason=str(error))
        except FirnlineError as error:
            jobs.fail(engine, job, str(error))
            drafts.discard(settings, job)  # after that: only who holds the job may touch its folder
            say.warning("job failed", reason=str(error))
        except OSError as error:
            jobs.fail(engine, job, f"the store can't be written: {error.strerror or error}")
            drafts.discard(settings, job)
            say.exception("job failed")
        except Exception as error:  # noqa: BLE001  whatever it is, the job must end with a reason
            say.exception("job failed")
            jobs.fail(engine, job, f"internal error: {type(error).__name__}")
            drafts.discard(settings, job)
    except JobLostError:
        say.warning("job lost to another worker")  # who has it now has renamed its folder
    except JobDismissedError:
        drafts.discard(settings, job)
        say.info("job dismissed")
    return True


def tidy(engine: Engine, settings: Settings) -> None:
    """Keep the store within its quota and free of orphans; what goes wrong waits for the next."""
    try:
        for gone in eviction.evict(engine, settings):
            log.info("subset evicted", subset=gone.id, bytes=gone.size)
    except ConflictError:
        log.debug("another process evicts")
    except (DatabaseError, StoreError, OSError) as error:
        log.warning("the store can't be tidied now", reason=str(error))


def run(
    engine: Engine, settings: Settings, stop: threading.Event, *, interval: float = 1.0
) -> None:
    """Work until told to stop; a database that is away is tried again."""
    owner = worker_name()
    tidied = float("-inf")
    while not stop.is_set():
        try:
            if time.monotonic() - tidied > _TIDY:
                tidied = time.monotonic()
                tidy(engine, settings)
            busy = run_next(engine, settings, owner, stop=stop)
        except DatabaseError as error:
            log.error("database away", reason=str(error))
            busy = False
            stop.wait(5 * interval)
        except Exception:
            # whatever it was, the queue must not be left without a worker
            log.exception("worker failed, going on")
            busy = False
            stop.wait(5 * interval)
        if not busy:
            stop.wait(interval)


def finish(
    engine: Engine,
    settings: Settings,
    job: Job,
    *,
    stop: threading.Event | None = None,
    shown: Progress | None = None,
) -> Job:
    """See a job to its end: do it here, or wait for the worker that has it already."""
    owner = worker_name()
    stop = stop or threading.Event()
    while job.living and not stop.is_set():
        if not run_next(engine, settings, owner, only=job.id, stop=stop, shown=shown):
            stop.wait(0.5)
        job = jobs.get(engine, job.id)
        if job.living and shown is not None:
            shown(job.progress, job.message)
    return job
