"""The queue, on SQLite and PostgreSQL: one job a request, one worker a job, nothing lost."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, insert, select, update

from firnline.cache import jobs
from firnline.cache.jobs import MAX_ATTEMPTS, Job
from firnline.cache.request import Request
from firnline.database import put_subset, reading, writing
from firnline.errors import ConflictError, JobDismissedError, JobLostError, NotFoundError
from firnline.settings import Settings
from firnline.tables import counters, job_tiles, subsets
from firnline.tables import jobs as table

LEASE = 60.0
SETTINGS = Settings(data_dir=Path("/nowhere"), _env_file=None)  # type: ignore[call-arg]


def request(n: int = 0) -> Request:
    west = 450_000 + 1000 * n
    return Request.parse(
        {"bbox": [west, -2_250_000, west + 1000, -2_249_000], "crs": "EPSG:3413"}, SETTINGS
    )


def claimed(engine: Engine, owner: str = "worker", **options: Any) -> Job:
    job = jobs.claim(engine, owner, LEASE, **options)
    assert job is not None
    return job


def expire(engine: Engine, job: Job) -> None:
    """Let the lease have run out a second ago."""
    with writing(engine) as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(table).where(table.c.id == job.id).values(lease_expires=past))


def tiles_stored(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.scalar(select(func.count()).select_from(job_tiles)) or 0


def at_once(number: int, task: Callable[[int], Any]) -> list[Any]:
    """Results of `task` run in so many threads that start at the same moment."""
    barrier = threading.Barrier(number)

    def run(n: int) -> Any:
        barrier.wait(60)
        return task(n)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(run, range(number)))


@pytest.fixture(params=["lost", "dismissed", "ended"])
def held_no_longer(
    request: pytest.FixtureRequest, database: Engine
) -> Iterator[tuple[Job, type[Exception]]]:
    """A job that this worker had, and what each of its writes must raise now."""
    jobs.submit(database, _REQUEST)
    job = claimed(database, "old")
    jobs.checkpoint(database, job, 0, {"n": 0})
    if request.param == "dismissed":
        jobs.dismiss(database, job.id)
        yield job, JobDismissedError
        return
    expire(database, job)
    new = claimed(database, "new")
    if request.param == "ended":
        jobs.fail(database, new, "no good")
    yield job, JobLostError


_REQUEST = request()


# --- asking ---------------------------------------------------------------------------------


def test_the_same_request_gives_the_job_that_lives(database: Engine) -> None:
    first = jobs.submit(database, request())
    assert (first.status, first.progress, first.attempt, first.owner) == ("accepted", 0, 0, None)
    assert Request.parse(first.request, SETTINGS) == request()
    assert jobs.submit(database, request()) == first
    assert jobs.submit(database, request(1)).id != first.id
    running = claimed(database, only=first.id)
    assert jobs.submit(database, request()) == running
    jobs.fail(database, running, "no good")
    assert jobs.submit(database, request()).id != first.id, "a failed job is not in the way"


def test_eight_at_once_give_one_job(database: Engine) -> None:
    for n in range(12):
        asked = request(n)
        found = at_once(8, lambda _, asked=asked: jobs.submit(database, asked).id)
        assert len(set(found)) == 1
        with reading(database) as connection:
            living = connection.scalar(
                select(func.count())
                .select_from(table)
                .where(table.c.request_key == asked.key, table.c.status.in_(jobs.LIVING))
            )
        assert living == 1


def test_what_is_stored_is_answered_at_once_unless_stale_or_refreshed(database: Engine) -> None:
    asked = request()
    old = datetime(2020, 1, 1, tzinfo=UTC)
    stored = {
        "id": asked.subset_id, "request_key": asked.key, "request": "{}", "generation": "g",
        "sources": "[]", "size": 1, "last_used": old,
    }  # fmt: skip
    with writing(database) as connection:
        put_subset(connection, **stored)
    job = jobs.submit(database, asked)
    assert (job.status, job.progress, job.subset) == ("successful", 100, asked.subset_id)
    assert job.finished is not None
    with reading(database) as connection:
        used = connection.execute(select(subsets.c.last_used)).scalar_one()
    assert used > datetime.now(UTC) - timedelta(minutes=1)
    again = jobs.submit(database, asked)
    assert again.id != job.id  # each of them is a job that has ended
    fresh = jobs.submit(database, asked, refresh=True)
    assert fresh.status == "accepted"
    jobs.dismiss(database, fresh.id)
    with writing(database) as connection:
        put_subset(connection, **stored, stale=True)
    assert jobs.submit(database, asked).status == "accepted"


def test_jobs_are_found(database: Engine) -> None:
    made = [jobs.submit(database, request(n)) for n in range(4)]
    assert [job.id for job in jobs.recent(database, 3)] == [job.id for job in made[:0:-1]]
    assert jobs.get(database, made[2].id) == made[2]
    with pytest.raises(NotFoundError, match="no job"):
        jobs.get(database, "none such")
    with pytest.raises(NotFoundError):
        jobs.dismiss(database, "none such")


# --- claiming -------------------------------------------------------------------------------


def test_the_oldest_is_claimed_first(database: Engine) -> None:
    made = [jobs.submit(database, request(n)).id for n in range(5)]
    assert jobs.claim(database, "w", LEASE, only="none such") is None
    third = claimed(database, "other", only=made[2])
    assert (third.id, third.status, third.owner, third.attempt) == (made[2], "running", "other", 1)
    assert third.started is not None
    assert [claimed(database).id for _ in range(4)] == [made[0], made[1], made[3], made[4]]
    assert jobs.claim(database, "w", LEASE) is None


def test_the_most_urgent_is_claimed_first(database: Engine) -> None:
    urgency = [0, 5, -1, 5, 0]
    made = [jobs.submit(database, request(n), priority=p).id for n, p in enumerate(urgency)]
    order = [claimed(database).id for _ in made]
    assert order == [made[n] for n in (1, 3, 0, 4, 2)]


def test_what_fails_in_passing_comes_back_later_and_at_last_fails(database: Engine) -> None:
    made = jobs.submit(database, request(0))
    other = jobs.submit(database, request(1))
    job = claimed(database)
    jobs.checkpoint(database, job, 0, {"bytes": 7})
    before = datetime.now(UTC)
    assert jobs.retry(database, job, "the source is away", 100.0)
    after = datetime.now(UTC)
    seen = jobs.get(database, made.id)
    assert (seen.status, seen.owner, seen.attempt) == ("accepted", None, 1)
    assert re.fullmatch(r"tried again in 1\d\d seconds: the source is away", seen.message)
    assert claimed(database).id == other.id, "it waits, others don't"
    assert jobs.claim(database, "w", LEASE) is None
    with reading(database) as connection:
        at = connection.scalar(select(table.c.not_before).where(table.c.id == made.id))
    assert before + timedelta(seconds=100) <= at <= after + timedelta(seconds=125)
    with pytest.raises(JobLostError):
        jobs.retry(database, job, "once more", 0.0)
    for attempt in (2, 3):
        with writing(database) as connection:
            past = datetime.now(UTC) - timedelta(seconds=1)
            connection.execute(update(table).where(table.c.id == made.id).values(not_before=past))
        job = claimed(database)
        assert (job.id, job.attempt) == (made.id, attempt)
        assert jobs.finished_tiles(database, job) == {0: {"bytes": 7}}, "what is finished stays"
        assert jobs.retry(database, job, "the source is away", 100.0) is (attempt < 3)
    ended = jobs.get(database, made.id)
    assert (ended.status, ended.message) == (
        "failed",
        "given up after 3 tries: the source is away",
    )


def test_what_was_done_is_counted_by_all_at_once(database: Engine) -> None:
    made = [jobs.submit(database, request(n)) for n in range(4)]
    mine = [claimed(database) for _ in made]

    def work(n: int) -> None:
        for tile in range(5):
            counts = {"bytes": 10, "requests": n, "name": "no number"}
            jobs.checkpoint(database, mine[n], tile, counts)
        jobs.fail(database, mine[n], "enough")

    at_once(4, work)
    with reading(database) as connection:
        rows = connection.execute(select(counters.c.name, counters.c.value)).all()
    found = dict(map(tuple, rows))
    assert found == {"tiles": 20, "bytes": 200, "requests": 30, "jobs_failed": 4}


def test_two_workers_never_get_the_same_job(database: Engine) -> None:
    made = {jobs.submit(database, request(n)).id for n in range(40)}

    def work(n: int) -> list[str]:
        mine = []
        while (job := jobs.claim(database, f"worker-{n}", LEASE)) is not None:
            assert job.owner == f"worker-{n}"
            mine.append(job.id)
            jobs.beat(database, job, LEASE, progress=50)
            if len(mine) % 3 == 0:
                jobs.fail(database, job, "every third")
        return mine

    shares = at_once(8, work)
    counts = Counter(id for share in shares for id in share)
    assert set(counts) == made
    assert set(counts.values()) == {1}
    assert {job.attempt for job in jobs.recent(database)} == {1}


def test_a_lease_that_ran_out_is_taken_over_by_one(database: Engine) -> None:
    jobs.submit(database, request())
    first = claimed(database, "first")
    assert jobs.claim(database, "second", LEASE) is None, "it is held"
    expire(database, first)
    taken = [job for job in at_once(8, lambda n: jobs.claim(database, f"w{n}", LEASE)) if job]
    assert len(taken) == 1
    assert taken[0].id == first.id
    assert taken[0].attempt == 2
    assert taken[0].started == first.started


def test_a_beat_renews_the_lease(database: Engine) -> None:
    jobs.submit(database, request())
    job = claimed(database, "first")
    expire(database, job)
    jobs.beat(database, job, LEASE, progress=42, message="4 of 9 tiles")
    assert jobs.claim(database, "second", LEASE) is None
    seen = jobs.get(database, job.id)
    assert (seen.progress, seen.message, seen.owner) == (42, "4 of 9 tiles", "first")
    jobs.beat(database, job, LEASE)
    assert jobs.get(database, job.id).message == "4 of 9 tiles"


def test_a_lease_of_no_time_is_for_anyone(database: Engine) -> None:
    jobs.submit(database, request())
    job = jobs.claim(database, "first", -1.0)
    assert job is not None
    assert claimed(database, "second").attempt == 2


def test_a_job_that_kills_its_workers_is_given_up(database: Engine) -> None:
    doomed = jobs.submit(database, request(0))
    other = jobs.submit(database, request(1))
    for attempt in range(1, MAX_ATTEMPTS + 1):
        job = claimed(database, f"w{attempt}")
        assert (job.id, job.attempt) == (doomed.id, attempt)
        jobs.checkpoint(database, job, attempt, {})
        expire(database, job)
    # the next claim fails it and goes on to the next job
    assert claimed(database, "last").id == other.id
    ended = jobs.get(database, doomed.id)
    assert ended.status == "failed"
    assert ended.message == "given up after 3 tries: the last worker stopped answering"
    assert ended.finished is not None
    assert tiles_stored(database) == 0
    with pytest.raises(JobLostError):
        jobs.beat(database, job, LEASE)


def test_release_gives_the_attempt_back(database: Engine) -> None:
    made = jobs.submit(database, request())
    for _ in range(MAX_ATTEMPTS + 2):
        job = claimed(database)
        assert job.attempt == 1
        jobs.checkpoint(database, job, 0, {"kept": True})
        jobs.release(database, job)
        seen = jobs.get(database, made.id)
        assert (seen.status, seen.attempt, seen.owner) == ("accepted", 0, None)
        assert seen.message == "waiting for a worker"
    assert jobs.finished_tiles(database, seen) == {0: {"kept": True}}
    with pytest.raises(JobLostError):
        jobs.beat(database, job, LEASE)


# --- what a worker writes -------------------------------------------------------------------


def test_an_old_owner_can_write_nothing(
    database: Engine, held_no_longer: tuple[Job, type[Exception]]
) -> None:
    job, error = held_no_longer
    before, tiles = jobs.get(database, job.id), tiles_stored(database)

    def succeed() -> None:
        with writing(database) as connection:
            jobs.succeed(connection, job, "subset")

    for write in (
        lambda: jobs.beat(database, job, LEASE, progress=99),
        lambda: jobs.checkpoint(database, job, 1, {}),
        lambda: jobs.checkpoint(database, job, 0, {"n": "overwritten"}),
        lambda: jobs.forget_tiles(database, job),
        succeed,
        lambda: jobs.fail(database, job, "old worker's opinion"),
        lambda: jobs.release(database, job),
    ):
        with pytest.raises(error, match=job.id):
            write()
    assert jobs.get(database, job.id) == before
    assert tiles_stored(database) == tiles


def test_the_same_worker_that_takes_its_own_job_again_is_another_attempt(database: Engine) -> None:
    jobs.submit(database, request())
    first = claimed(database, "same")
    expire(database, first)
    second = claimed(database, "same")
    with pytest.raises(JobLostError):
        jobs.beat(database, first, LEASE)
    jobs.beat(database, second, LEASE)


def test_what_publishes_is_undone_with_the_job_s_end(database: Engine) -> None:
    """The subset's row and the job's end are one transaction: a lost worker publishes nothing."""
    jobs.submit(database, request())
    old = claimed(database, "old")
    expire(database, old)
    new = claimed(database, "new")
    row = {
        "id": "subset-1", "request_key": "k", "request": "{}", "generation": "old",
        "sources": "[]", "size": 1,
    }  # fmt: skip

    def publish() -> None:
        with writing(database) as connection:
            put_subset(connection, **row)
            jobs.succeed(connection, old, "subset-1")

    with pytest.raises(JobLostError):
        publish()
    with reading(database) as connection:
        assert connection.scalar(select(func.count()).select_from(subsets)) == 0
    with writing(database) as connection:
        put_subset(connection, **row | {"generation": "new"})
        jobs.succeed(connection, new, "subset-1")
    with reading(database) as connection:
        assert connection.scalars(select(subsets.c.generation)).all() == ["new"]
    ended = jobs.get(database, new.id)
    assert (ended.status, ended.progress, ended.subset) == ("successful", 100, "subset-1")
    assert (ended.message, ended.owner) == ("done", None)


def test_checkpoints_survive_a_takeover(database: Engine) -> None:
    jobs.submit(database, request())
    first = claimed(database, "first")
    jobs.checkpoint(database, first, 0, {"absent": 3})
    jobs.checkpoint(database, first, 7, {"absent": 4})
    jobs.checkpoint(database, first, 7, {"absent": 5})  # written again: the last one counts
    expire(database, first)
    second = claimed(database, "second")
    assert jobs.finished_tiles(database, second) == {0: {"absent": 3}, 7: {"absent": 5}}
    jobs.checkpoint(database, second, 1, {})
    other = jobs.submit(database, request(1))
    third = claimed(database, "third", only=other.id)
    jobs.checkpoint(database, third, 0, {"other": True})
    jobs.forget_tiles(database, second)
    assert jobs.finished_tiles(database, second) == {}
    assert jobs.finished_tiles(database, third) == {0: {"other": True}}


@pytest.mark.parametrize("end", ["succeed", "fail", "dismiss"])
def test_the_tiles_of_a_job_that_ended_are_removed(database: Engine, end: str) -> None:
    jobs.submit(database, request())
    job = claimed(database)
    jobs.checkpoint(database, job, 0, {})
    assert tiles_stored(database) == 1
    if end == "succeed":
        with writing(database) as connection:
            jobs.succeed(connection, job, "subset-1")
    elif end == "fail":
        jobs.fail(database, job, "no good")
    else:
        jobs.dismiss(database, job.id)
    assert tiles_stored(database) == 0


@pytest.mark.parametrize("end", ["succeed", "fail", "dismiss"])
def test_what_has_ended_can_t_be_dismissed(database: Engine, end: str) -> None:
    jobs.submit(database, request())
    job = claimed(database)
    if end == "succeed":
        with writing(database) as connection:
            jobs.succeed(connection, job, "subset-1")
    elif end == "fail":
        jobs.fail(database, job, "no good")
    else:
        assert jobs.dismiss(database, job.id).status == "dismissed"
    before = jobs.get(database, job.id)
    assert before.finished is not None
    with pytest.raises(ConflictError, match="ended already"):
        jobs.dismiss(database, job.id)
    assert jobs.get(database, job.id) == before


def test_a_job_ends_in_one_way_only(database: Engine) -> None:
    """Its worker ends it and a user dismisses it at the same moment, many times."""
    for n in range(12):
        job = jobs.submit(database, request(n))
        held = claimed(database)

        def end(who: int, job: Job = job, held: Job = held) -> str:
            try:
                if who:
                    return jobs.dismiss(database, job.id).status
                with writing(database) as connection:
                    jobs.succeed(connection, held, "subset-1")
            except (ConflictError, JobDismissedError):
                return "came too late"
            return "successful"

        ended = at_once(2, end)
        assert sorted(ended)[0] == "came too late"
        assert len(set(ended)) == 2
        assert jobs.get(database, job.id).status in ended


def test_the_database_itself_refuses_a_second_living_job(database: Engine) -> None:
    """The rule is an index, not only the code that looks first."""
    from sqlalchemy.exc import IntegrityError

    job = jobs.submit(database, request())
    now = datetime.now(UTC)
    row = {
        "request_key": request().key, "request": json.dumps({}), "message": "", "progress": 0,
        "attempt": 0, "created": now, "updated": now,
    }  # fmt: skip
    for status in ("accepted", "running"):
        with pytest.raises(IntegrityError), writing(database) as connection:
            connection.execute(insert(table).values(id=status, status=status, **row))
    for status in ("successful", "failed", "dismissed"):
        with writing(database) as connection:
            connection.execute(insert(table).values(id=status, status=status, **row))
    assert jobs.submit(database, request()) == job
