"""What is stored, kept within its quota and in good order: eviction, orphans, damage.

A subset leaves in two steps: its row and its item go in one transaction, so that no one is sent to
it any more; then its files. A process that dies in between leaves a folder without a row, which the
next sweep removes. What is pinned, made at this moment, in use by a process of this machine
(:func:`hold`; of a bucket, by any: :func:`keep_used`), or was used within the last hour never goes
by itself.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
from sqlalchemy import ColumnElement, Connection, Engine, delete, exists, func, select, update

from firnline.cache.bucket import BucketPath
from firnline.cache.drafts import RECORD, made_by
from firnline.cache.jobs import LIVING, Job, submit
from firnline.cache.places import Place, digest, discard, generation_place, root
from firnline.cache.request import Request
from firnline.database import delete_items, reading, writing
from firnline.errors import ConflictError, DatabaseError, NotFoundError, StoreError
from firnline.locks import alone
from firnline.settings import Settings
from firnline.tables import jobs, subsets

log = structlog.get_logger(__name__)

GRACE = timedelta(hours=1)
"""Since its last use; also of folders that no row names, since their row may be about to come."""
_LONGEST = timedelta(days=1)  # that a superseded generation stays in a bucket
_TOUCH = 300.0  # seconds in which more than one use is one

_held: dict[Path, int] = {}
_kept: set[str] = set()
_touching = threading.Lock()
_touched: dict[str, float] = {}


@dataclass(frozen=True)
class Removed:
    """A subset that was removed, and its bytes."""

    id: str
    size: int


# --- use ------------------------------------------------------------------------------------


def hold(folder: Path) -> None:
    """Keep a generation from being removed until this process ends."""
    if folder not in _held:
        descriptor = os.open(folder / RECORD, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[folder] = descriptor


def keep_used(engine: Engine, id: str) -> None:
    """Have a subset in a bucket, where nothing is locked, count as used until this process ends."""
    with _touching:
        if id in _kept:
            return
        _kept.add(id)

    def run() -> None:
        while True:
            try:
                touch(engine, id)
            except DatabaseError as error:
                log.warning("a subset in use can't be marked", subset=id, reason=str(error))
            time.sleep(2 * _TOUCH)

    threading.Thread(target=run, name="keep-used", daemon=True).start()


def touch(engine: Engine, id: str) -> None:
    """Note that a subset is used, now and then."""
    now = time.monotonic()
    if now - _touched.get(id, float("-inf")) > _TOUCH:
        _touched[id] = now
        with writing(engine) as connection:
            used = update(subsets).where(subsets.c.id == id)
            connection.execute(used.values(last_used=datetime.now(UTC)))


def pin(engine: Engine, id: str, pinned: bool) -> None:
    """Keep a subset from eviction, or no longer.

    Raises
    ------
    NotFoundError
    """
    with writing(engine) as connection:
        here = update(subsets).where(subsets.c.id == id).values(pinned=pinned)
        if connection.execute(here).rowcount == 0:
            raise NotFoundError(f"there is no subset {id[:80]!r}")


# --- room -----------------------------------------------------------------------------------


def evict(engine: Engine, settings: Settings, *, quota: int | None = None) -> list[Removed]:
    """Remove the least recently used subsets until the others fit, and what no row names.

    Parameters
    ----------
    quota
        Bytes; default: that of the settings, of which 0 is no limit.

    Returns
    -------
    list of Removed
        In the order in which they went. Less than what was needed if the rest may not go.

    Raises
    ------
    ConflictError
        Another process is at it.
    """
    limit = settings.cache_quota if quota is None else quota
    with alone(engine, "eviction"):
        removed = []
        if limit or quota is not None:
            excess = _stored(engine) - limit
            for id, size in _oldest(engine) if excess > 0 else ():
                if excess <= 0:
                    break
                if _remove(engine, settings, id, _idle(datetime.now(UTC) - GRACE)):
                    removed.append(Removed(id, size))
                    excess -= size
            if excess > 0:
                log.warning("over the quota of the cache: the rest is in use", bytes=int(excess))
        _sweep(engine, settings)
    return removed


def remove(engine: Engine, settings: Settings, id: str) -> Removed:
    """Remove one subset, however recently it was used.

    Raises
    ------
    NotFoundError
    ConflictError
        It is pinned, being made, or in use.
    """
    with reading(engine) as connection:
        row = connection.execute(
            select(subsets.c.size, subsets.c.pinned).where(subsets.c.id == id)
        ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    if row.pinned:
        raise ConflictError(f"{id} is pinned: `firnline cache unpin {id}` first")
    if not _remove(engine, settings, id, _idle(datetime.max.replace(tzinfo=UTC))):
        raise ConflictError(f"{id} is in use, or being made anew: try again later")
    return Removed(id, row.size)


def _stored(engine: Engine) -> int:
    with reading(engine) as connection:
        return int(connection.scalar(select(func.sum(subsets.c.size))) or 0)


def _oldest(engine: Engine) -> Sequence[tuple[str, int]]:
    with reading(engine) as connection:
        rows = connection.execute(
            select(subsets.c.id, subsets.c.size)
            .where(_idle(datetime.now(UTC) - GRACE))
            .order_by(subsets.c.last_used, subsets.c.id)
        )
        return [(row.id, row.size) for row in rows]


def _idle(before: datetime) -> ColumnElement[bool]:
    """Neither pinned, nor used since, nor being made."""
    made = exists().where(jobs.c.request_key == subsets.c.request_key, jobs.c.status.in_(LIVING))
    return ~subsets.c.pinned & (subsets.c.last_used <= before) & ~made


def _remove(engine: Engine, settings: Settings, id: str, idle: ColumnElement[bool]) -> bool:
    """Remove a subset if it's idle still; whether it was."""
    with reading(engine) as connection:
        here = select(subsets.c.generation).where(subsets.c.id == id)
        generation = connection.scalar(here)
    if generation is None:
        return False
    folder = generation_place(settings, id, generation)
    lock = _lock(folder) if isinstance(folder, Path) else -1
    if lock is None:
        return False
    try:
        with writing(engine) as connection:
            chosen = (subsets.c.id == id) & (subsets.c.generation == generation)
            if connection.execute(delete(subsets).where(chosen, idle)).rowcount == 0:
                return False
            delete_items(connection, "subsets", [id])
        _discard(settings, folder)
    finally:
        if lock >= 0:
            os.close(lock)
    return True


def _lock(folder: Path) -> int | None:
    """A lock that no reader has; None: one has it. -1 if there are no files to be read."""
    try:
        descriptor = os.open(folder / RECORD, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _discard(settings: Settings, folder: Place) -> None:
    """Take a folder from where readers look, on a disk at one go; then remove it."""
    if isinstance(folder, BucketPath):
        try:
            folder.remove([RECORD])  # who reads sees by it that the rest is going
            folder.remove()
        except StoreError as error:  # the rest goes with the next sweep
            log.warning("files are not removed yet", folder=str(folder), reason=str(error))
        return
    trash = settings.cache_dir / "work" / f"trash-{uuid.uuid4().hex}"
    trash.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(trash)
    except FileNotFoundError:
        return
    discard(trash)


# --- orphans --------------------------------------------------------------------------------


def _sweep(engine: Engine, settings: Settings) -> None:
    """Remove superseded generations, and what processes left that died."""
    with reading(engine) as connection:
        current = set(_generations(connection).items())
        now = datetime.now(UTC)
        # someone may still read the generation before; on a disk a lock would say so
        fresh = (subsets.c.last_used > now - GRACE) & (subsets.c.created > now - _LONGEST)
        reread = set(connection.scalars(select(subsets.c.id).where(fresh)))
        living = set(connection.scalars(select(jobs.c.id).where(jobs.c.status.in_(LIVING))))
    place = root(settings)
    if isinstance(place, BucketPath):
        _sweep_bucket(settings, place, current, living, reread)
    else:
        _sweep_disk(settings, place, current)
    for work in _folders(settings.cache_dir / "work"):
        if work.name not in living and _old(work):
            log.info("removing what a job left", folder=str(work))
            discard(work)


def _sweep_disk(settings: Settings, place: Path, current: set[tuple[str, str]]) -> None:
    for folder in _folders(place / "subsets"):
        for generation in _folders(folder):
            if (folder.name, generation.name) not in current and _old(generation):
                lock = _lock(generation)
                if lock is not None:
                    log.info("removing what no one is sent to", folder=str(generation))
                    _discard(settings, generation)
                    if lock >= 0:
                        os.close(lock)
        if _old(folder) and not any(folder.iterdir()):
            folder.rmdir()


def _sweep_bucket(
    settings: Settings,
    place: BucketPath,
    current: set[tuple[str, str]],
    living: set[str],
    reread: set[str],
) -> None:
    """The same of a bucket, where jobs that are not finished have a generation already."""
    for folder in (place / "subsets").folders():
        if folder.name in reread:
            continue
        for generation in folder.folders():
            known = (folder.name, generation.name) in current
            known = known or any(made_by(generation.name, job) for job in living)
            if not known and _unused(generation):
                log.info("removing what no one is sent to", folder=str(generation))
                _discard(settings, generation)
    for work in (place / "work").folders():
        if work.name not in living and _unused(work):
            log.info("removing what a job left", folder=str(work))
            _discard(settings, work)


def _unused(folder: BucketPath) -> bool:
    """Whether something is there, and nothing was put there of late."""
    found = folder.files().values()
    return bool(found) and all(_past(about.modified) for about in found)


def _past(instant: datetime) -> bool:
    return datetime.now(UTC) - instant > GRACE


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.exists() else []


def _old(folder: Path) -> bool:
    return time.time() - folder.stat().st_ctime > GRACE.total_seconds()


# --- damage ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checked:
    """A subset whose files were read, and what is wrong with them."""

    id: str
    files: int
    damage: tuple[str, ...]


def verify(engine: Engine, settings: Settings, ids: Sequence[str] = ()) -> Iterator[Checked]:
    """Read every file of the subsets, by default of all, and compare it with its checksum.

    Raises
    ------
    NotFoundError
        There is no subset of one of these ids.
    """
    with reading(engine) as connection:
        stored = _generations(connection)
    if unknown := [id for id in ids if id not in stored]:
        raise NotFoundError(f"there is no subset {unknown[0][:80]!r}")
    for id in ids or sorted(stored):
        folder = generation_place(settings, id, stored[id])
        try:
            expected = json.loads((folder / RECORD).read_bytes())["files"]
            damage = [f"{path}: {wrong}" for path, wrong in _differences(folder, expected)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            expected, damage = {}, [f"{RECORD}: {getattr(error, 'strerror', None) or error}"]
        yield Checked(id, len(expected), tuple(damage))


def _generations(connection: Connection) -> dict[str, str]:
    rows = connection.execute(select(subsets.c.id, subsets.c.generation))
    return {row.id: row.generation for row in rows}


def _differences(
    folder: Place, expected: dict[str, dict[str, object]]
) -> Iterator[tuple[str, str]]:
    for path, known in expected.items():
        try:
            found = digest(folder / path)
        except OSError as error:
            yield path, str(error.strerror or "No such file or directory")
            continue
        if found.size != known["size"]:
            yield path, f"has {found.size:,} bytes, of {known['size']:,}"
        elif found.sha256 != known["sha256"]:
            yield path, "its content is not what was written"


def mend(engine: Engine, settings: Settings, id: str) -> Job:
    """Have a subset made anew; until then no one gets it for an answer.

    Raises
    ------
    NotFoundError
    """
    with writing(engine) as connection:
        here = subsets.c.id == id
        request = connection.scalar(select(subsets.c.request).where(here))
        if request is None:
            raise NotFoundError(f"there is no subset {id[:80]!r}")
        connection.execute(update(subsets).where(here).values(stale=True))
    return submit(engine, Request.parse(json.loads(request), settings), refresh=True)
