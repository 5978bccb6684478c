"""The queue of jobs: a leased table in the project's own database.

A worker claims the oldest job that waits, or one whose lease ran out because its worker died, and
proves that it is alive by :func:`beat`. What fails in passing waits and is tried again
(:func:`retry`). Every write of a worker is fenced by its name and attempt:
one that lost its lease can't touch the job any more. A finished tile is a checkpoint, so that
whoever takes over repeats only the tile that was under way. The status words are those of OGC
API - Processes 1.0 (statusCode).
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, and_, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from firnline.cache.request import Request
from firnline.database import reading, writing
from firnline.errors import (
    ConflictError,
    ForbiddenError,
    JobDismissedError,
    JobLostError,
    NotFoundError,
    QuotaError,
)
from firnline.keys import ApiKey
from firnline.tables import api_keys, counters, job_tiles, jobs, subsets

LIVING = ("accepted", "running")
MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Job:
    """One job; ``attempt`` counts how often it was claimed."""

    id: str
    status: str
    message: str
    progress: int
    request: Mapping[str, Any]
    subset: str | None
    created: datetime
    started: datetime | None
    finished: datetime | None
    updated: datetime
    attempt: int = 0
    owner: str | None = None
    api_key: str | None = None

    @property
    def living(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVING


_COLUMNS = [jobs.c[name] for name in Job.__dataclass_fields__]


def _job(row: Any) -> Job:
    values = dict(row._mapping)
    return Job(**{**values, "request": json.loads(values["request"])})


def _now() -> datetime:
    return datetime.now(UTC)


def submit(
    engine: Engine,
    request: Request,
    *,
    refresh: bool = False,
    key: ApiKey | None = None,
    priority: int = 0,
) -> Job:
    """Ask for a request to be materialised.

    The same request while a job for it lives gives that job; when its subset is there and fresh,
    a job that is successful already. `refresh` asks for a new generation all the same.

    Parameters
    ----------
    key
        Who asks, over HTTP.
    priority
        Jobs of a higher one are taken first.

    Raises
    ------
    QuotaError
        The key has as many jobs under way as it may have.
    """
    with writing(engine) as connection:
        now = _now()
        same = jobs.c.request_key == request.key
        fresh = (subsets.c.request_key == request.key) & ~subsets.c.stale
        while True:
            living = connection.execute(
                select(*_COLUMNS).where(same, jobs.c.status.in_(LIVING))
            ).one_or_none()
            if living is not None:
                return _job(living)
            subset = None if refresh else connection.scalar(select(subsets.c.id).where(fresh))
            values: dict[str, Any] = {
                "id": str(uuid.uuid4()),
                "request_key": request.key,
                "request": json.dumps(request.to_inputs()),
                "status": "accepted",
                "message": "waiting for a worker",
                "progress": 0,
                "attempt": 0,
                "api_key": key.id if key else None,
                "priority": priority,
                "created": now,
                "updated": now,
            }
            if subset is not None:
                connection.execute(update(subsets).where(fresh).values(last_used=now))
                values |= {
                    "status": "successful",
                    "message": "answered from the cache",
                    "progress": 100,
                    "subset": subset,
                    "started": now,
                    "finished": now,
                }
            elif key is not None and key.most_jobs is not None:
                _check_quota(connection, key, key.most_jobs)
            dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
            inserted = connection.scalar(
                dialect.insert(jobs).values(values).on_conflict_do_nothing().returning(jobs.c.id)
            )
            if inserted is not None:
                if subset is not None:
                    _count(connection, {"answered_from_cache": 1})
                return _get(connection, inserted)
            # the same was asked for at this moment: take that job


def _check_quota(connection: Connection, key: ApiKey, most: int) -> None:
    # one by one, so that two at the same moment are not both the last that may come
    connection.execute(select(api_keys.c.id).where(api_keys.c.id == key.id).with_for_update())
    living = (jobs.c.api_key == key.id) & jobs.c.status.in_(LIVING)
    count = connection.scalar(select(func.count()).select_from(jobs).where(living)) or 0
    if count >= most:
        raise QuotaError(
            f"this API key may have {most} jobs that wait or run, and has {count}: wait for one to "
            "end, or dismiss one"
        )


def get(engine: Engine, id: str) -> Job:
    """One job.

    Raises
    ------
    NotFoundError
    """
    with reading(engine) as connection:
        return _get(connection, id)


def _get(connection: Connection, id: str) -> Job:
    row = connection.execute(select(*_COLUMNS).where(jobs.c.id == id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {id[:80]!r}")
    return _job(row)


def recent(engine: Engine, limit: int = 100) -> list[Job]:
    """The newest jobs, newest first."""
    with reading(engine) as connection:
        newest = select(*_COLUMNS).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
        return [_job(row) for row in connection.execute(newest)]


def dismiss(engine: Engine, id: str, *, key: ApiKey | None = None) -> Job:
    """Stop a job; its worker notices at its next heartbeat and removes what it has written.

    Parameters
    ----------
    key
        Who says so, over HTTP: its own jobs only, unless its scope is admin.

    Raises
    ------
    NotFoundError
    ForbiddenError
        It is someone else's.
    ConflictError
        The job has ended already.
    """
    with writing(engine) as connection:
        # a worker that is about to end it well goes first, or comes too late
        connection.execute(select(jobs.c.id).where(jobs.c.id == id).with_for_update())
        job = _get(connection, id)
        if key is not None and job.api_key != key.id and not key.may("admin"):
            raise ForbiddenError(f"job {id} is not this API key's: only the scope admin stops it")
        if not job.living:
            raise ConflictError(f"job {id} has ended already: {job.status}")
        _end(connection, id, "dismissed", "dismissed")
        return _get(connection, id)


def claim(engine: Engine, owner: str, lease: float, *, only: str | None = None) -> Job | None:
    """Take the next job, the oldest of the most urgent: one that waits, or whose lease ran out.

    None when there is none. A job whose workers died :data:`MAX_ATTEMPTS` times is failed
    instead of tried again.

    Parameters
    ----------
    owner
        Name of this worker, unique among all workers.
    lease
        Seconds until the claim runs out unless :func:`beat` renews it.
    only
        Id of the one job that is taken, if it can be.
    """
    with writing(engine) as connection:
        now = _now()  # once the lock is there, for which this may have waited
        claimable = or_(
            and_(
                jobs.c.status == "accepted",
                or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now),
            ),
            and_(jobs.c.status == "running", jobs.c.lease_expires < now),
        )
        if only is not None:
            claimable = and_(claimable, jobs.c.id == only)
        while True:
            # SKIP LOCKED is PostgreSQL's; SQLite leaves it out and has the whole lock already.
            row = connection.execute(
                select(*_COLUMNS)
                .where(claimable)
                .order_by(jobs.c.priority.desc(), jobs.c.created, jobs.c.id)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).one_or_none()
            if row is None:
                return None
            job = _job(row)
            if job.attempt >= MAX_ATTEMPTS:
                message = f"given up after {job.attempt} tries: the last worker stopped answering"
                _end(connection, job.id, "failed", message)
                continue
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job.id)
                .values(
                    status="running",
                    owner=owner,
                    attempt=job.attempt + 1,
                    started=job.started or now,
                    updated=now,
                    lease_expires=now + timedelta(seconds=lease),
                )
            )
            return _get(connection, job.id)


def beat(
    engine: Engine,
    job: Job,
    lease: float,
    *,
    progress: int | None = None,
    message: str | None = None,
) -> None:
    """Renew the lease and say how far the job is.

    Raises
    ------
    JobDismissedError, JobLostError
        The worker has to stop: nothing more that it does counts.
    """
    with writing(engine) as connection:
        now = _now()
        values: dict[str, Any] = {"lease_expires": now + timedelta(seconds=lease), "updated": now}
        if progress is not None:
            values["progress"] = progress
        if message is not None:
            values["message"] = message
        _fenced(connection, job, values)


def checkpoint(engine: Engine, job: Job, tile: int, manifest: Mapping[str, Any]) -> None:
    """Record that a tile is finished and on disk."""
    with writing(engine) as connection:
        _fenced(connection, job, {"updated": _now()})
        row = {"job": job.id, "tile": tile}
        connection.execute(
            delete(job_tiles).where(job_tiles.c.job == job.id, job_tiles.c.tile == tile)
        )
        connection.execute(insert(job_tiles).values(**row, manifest=json.dumps(manifest)))
        numbers = {name: n for name, n in manifest.items() if type(n) is int and n}
        _count(connection, {"tiles": 1, **numbers})


def finished_tiles(engine: Engine, job: Job) -> dict[int, dict[str, Any]]:
    """Manifests of the tiles that are finished, by tile."""
    with reading(engine) as connection:
        rows = connection.execute(
            select(job_tiles.c.tile, job_tiles.c.manifest).where(job_tiles.c.job == job.id)
        )
        return {tile: json.loads(manifest) for tile, manifest in rows}


def forget_tiles(engine: Engine, job: Job) -> None:
    """Start over: the checkpoints no longer fit what the job would write."""
    with writing(engine) as connection:
        _fenced(connection, job, {"updated": _now()})
        connection.execute(delete(job_tiles).where(job_tiles.c.job == job.id))


def succeed(connection: Connection, job: Job, subset: str) -> None:
    """End a job well, in the transaction that publishes its subset.

    What was done at one go is timed: estimates go by it.
    """
    _fenced(connection, job, {"subset": subset, "progress": 100})
    told = connection.scalars(select(job_tiles.c.manifest).where(job_tiles.c.job == job.id))
    chunks = sum(json.loads(manifest).get("chunks", 0) for manifest in told)
    if chunks and job.attempt == 1 and job.started is not None:
        taken = round((_now() - job.started) / timedelta(milliseconds=1))
        _count(connection, {"timed_jobs": 1, "timed_chunks": chunks, "timed_milliseconds": taken})
    _end(connection, job.id, "successful", "done")


def fail(engine: Engine, job: Job, reason: str) -> None:
    """End a job with the reason why it can't be done."""
    with writing(engine) as connection:
        _fenced(connection, job, {})
        _end(connection, job.id, "failed", reason)


def retry(engine: Engine, job: Job, reason: str, wait: float) -> bool:
    """Put a job back that failed in passing, for later; after its last try, fail it.

    Parameters
    ----------
    wait
        Seconds until the second try; the third comes after four times as long. Some chance is
        added, so that jobs which failed together don't come together.

    Returns
    -------
    bool
        Whether it's tried again.
    """
    if job.attempt >= MAX_ATTEMPTS:
        fail(engine, job, f"given up after {job.attempt} tries: {reason}")
        return False
    wait *= 4 ** (job.attempt - 1) * random.uniform(1, 1.25)
    with writing(engine) as connection:
        now = _now()
        values = {
            "status": "accepted",
            "message": f"tried again in {wait:.0f} seconds: {reason}",
            "owner": None,
            "not_before": now + timedelta(seconds=wait),
            "updated": now,
        }
        _fenced(connection, job, values)
        _count(connection, {"retries": 1})
    return True


def release(engine: Engine, job: Job) -> None:
    """Hand a job back to the queue: this worker is being stopped."""
    with writing(engine) as connection:
        values = {
            "status": "accepted",
            "message": "waiting for a worker",
            "owner": None,
            "attempt": job.attempt - 1,
            "updated": _now(),
        }
        _fenced(connection, job, values)


def _end(connection: Connection, id: str, status: str, message: str) -> None:
    now = _now()
    connection.execute(
        update(jobs)
        .where(jobs.c.id == id)
        .values(status=status, message=message, finished=now, updated=now, owner=None)
    )
    connection.execute(delete(job_tiles).where(job_tiles.c.job == id))
    _count(connection, {f"jobs_{status}": 1})


def _count(connection: Connection, more: Mapping[str, int]) -> None:
    """Add to the counters, in one order so that no two workers wait for each other."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    for name in sorted(more):
        added = dialect.insert(counters).values(name=name, value=more[name])
        connection.execute(
            added.on_conflict_do_update(
                index_elements=["name"], set_={"value": counters.c.value + added.excluded.value}
            )
        )


def _fenced(connection: Connection, job: Job, values: Mapping[str, Any]) -> None:
    """Update the job only while this owner and attempt hold it."""
    held = (
        (jobs.c.id == job.id)
        & (jobs.c.status == "running")
        & (jobs.c.owner == job.owner)
        & (jobs.c.attempt == job.attempt)
    )
    values = dict(values) or {"owner": job.owner}
    if connection.execute(update(jobs).where(held).values(values)).rowcount == 0:
        status = connection.scalar(select(jobs.c.status).where(jobs.c.id == job.id))
        if status == "dismissed":
            raise JobDismissedError(f"job {job.id} was dismissed")
        raise JobLostError(f"job {job.id} is no longer this worker's")
