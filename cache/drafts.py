"""What a job writes before it is published: taken over, published, removed.

In a directory, attempts write into a folder of their own, which the next one renames to its own;
publishing renames it to a generation. In a bucket nothing can be renamed. There the files of
finished tiles go to the generation at once, the composites of tiles beside, and all that is made of
tiles when the last one is there: until the database names the generation, no one looks at it. A
job's attempts write to the same generation as long as its plan is the same. What they write is the
same to the byte, so that a worker which lost its job, and does not know it yet, does no harm. Only
the provenance says when it was made: of several the first stays.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import structlog
from sqlalchemy import Engine

from firnline.cache import jobs, places, store
from firnline.cache.bucket import BucketPath
from firnline.cache.jobs import Job
from firnline.cache.places import Place, Stored
from firnline.cache.request import Request
from firnline.errors import StoreError
from firnline.settings import Settings

log = structlog.get_logger(__name__)

# Beside the subset in an attempt's folder, which goes when the subset is published: whatever
# moment an attempt dies at, the next one finds what it needs.
_PLAN, _SUBSET, TILES = "plan.json", "subset", "tiles"
RECORD = "provenance.json"
"""Put last: a generation that has it is whole."""

Manifest = dict[str, Any]


class Planned(Protocol):
    """A plan, as far as it matters here."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever what was written under another plan would not fit this one."""


class Draft(Protocol):
    """What an attempt at a job writes."""

    work: Path
    """The subset's folder on this machine; its composites of tiles are in ``tiles`` beside."""
    subset: Place
    """Where tiles put their shards."""
    tiles: Place
    """Where tiles put their composites."""
    done: dict[int, Manifest]
    """The tiles that earlier attempts have finished."""
    new: bool
    """Whether `work` is empty."""

    def manifest(self, counts: Mapping[str, int], stored: Mapping[str, Stored]) -> Manifest:
        """What the checkpoint of a tile says."""

    def gather(self, check: Callable[[], None]) -> None:
        """Have the composites of all tiles on this machine; `check` may end it by raising."""

    def keep(self, plan: Planned) -> tuple[Place, str]:
        """Put a plan where those who do its tiles find it; the file and its SHA-256."""

    def publish(
        self, elsewhere: Mapping[str, Stored], check: Callable[[], None]
    ) -> tuple[str, int]:
        """Have it where readers look once the database says so, and whole.

        `elsewhere` is what tiles have put outside of `work`; `check` may end it by raising.

        Returns
        -------
        tuple of str and int
            The generation's name, and the bytes of its provenance.

        Raises
        ------
        StoreError, StoreUnreachableError
        """

    def withdraw(self) -> None:
        """The job is no longer this worker's: what it published won't be named."""

    def clear(self) -> None:
        """The subset is registered: remove what it no longer needs."""

    def __enter__(self) -> Draft: ...

    def __exit__(self, *exc: object) -> None: ...


def begin(
    engine: Engine, settings: Settings, job: Job, plan: Planned, *, composited: bool
) -> Draft:
    """The draft of an attempt, with what an earlier one finished under the same plan.

    `composited` says whether tiles have composites. Use as a context manager.

    Raises
    ------
    JobDismissedError, JobLostError, StoreError
    """
    place = places.root(settings)
    if isinstance(place, Path):
        return _DiskDraft(engine, settings, job, plan)
    return _BucketDraft(engine, settings, job, plan, place, composited)


def discard(settings: Settings, job: Job) -> None:
    """Remove what attempts at a job have written; what can't be now is left to the sweeper."""
    places.discard(_work_folder(settings, job))
    place = places.root(settings)
    if isinstance(place, Path):
        return
    try:
        places.discard(place / "work" / job.id)
        for generation in (place / "subsets" / _subset_id(job)).folders():
            if made_by(generation.name, job.id):
                places.discard(generation)
    except StoreError as error:
        log.warning("what a job left is not removed yet", job=job.id, reason=str(error))


def made_by(generation: str, job: str) -> bool:
    """Whether a generation of a bucket was begun by the job of this id."""
    return generation.endswith(f"-{job[:8]}")


def _subset_id(job: Job) -> str:
    return Request.model_validate(job.request).subset_id


def _work_folder(settings: Settings, job: Job) -> Path:
    return settings.cache_dir / "work" / job.id


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")


class _DiskDraft:
    def __init__(self, engine: Engine, settings: Settings, job: Job, plan: Planned) -> None:
        self._settings, self._job = settings, job
        self._published: Path | None = None
        self.done: dict[int, Manifest] = {}
        self.work = self._resume(engine, plan)
        self.new = not self.done
        self.subset: Place = self.work
        self.tiles: Place = self.work.parent / TILES

    def _resume(self, engine: Engine, plan: Planned) -> Path:
        folder = _work_folder(self._settings, self._job)
        adopted = store.adopt(folder, self._job.attempt)
        if adopted is not None:
            mark, work = adopted / _PLAN, adopted / _SUBSET
            fits = mark.exists() and json.loads(mark.read_text())["fingerprint"] == plan.fingerprint
            # without the subset it was moved to be published, and not registered
            if fits and work.exists() and (done := jobs.finished_tiles(engine, self._job)):
                self.done = done
                return work
            places.discard(adopted)
        jobs.forget_tiles(engine, self._job)
        work = folder / str(self._job.attempt) / _SUBSET
        work.mkdir(parents=True)
        (work.parent / _PLAN).write_text(json.dumps({"fingerprint": plan.fingerprint}))
        return work

    def manifest(self, counts: Mapping[str, int], stored: Mapping[str, Stored]) -> Manifest:
        return dict(counts)

    def gather(self, check: Callable[[], None]) -> None:
        return

    def keep(self, plan: Planned) -> tuple[Place, str]:
        return _keep(self.work.parent, plan)

    def publish(
        self, elsewhere: Mapping[str, Stored], check: Callable[[], None]
    ) -> tuple[str, int]:
        generation = _now()
        published = self._settings.cache_dir / "subsets" / _subset_id(self._job) / generation
        store.publish(self.work, published)
        self._published = published
        return generation, (published / RECORD).stat().st_size

    def withdraw(self) -> None:
        if self._published is not None:
            places.discard(self._published)

    def clear(self) -> None:
        places.discard(_work_folder(self._settings, self._job))

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *exc: object) -> None:
        return


class _BucketDraft:
    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        job: Job,
        plan: Planned,
        place: BucketPath,
        composited: bool,
    ) -> None:
        self._settings, self._job, self._plan = settings, job, plan
        self._composited = composited
        self._beside = place / "work" / job.id
        self._parent = place / "subsets" / _subset_id(job)
        self._parent.is_dir()  # a bucket that can't be read is found out before there is work
        self._generation = self._parent / f"{_now()}-{job.id[:8]}"
        self.done = self._resume(engine)
        self.subset: Place = self._generation
        self.tiles: Place = self._beside / TILES
        self.work = _work_folder(settings, job) / str(job.attempt) / _SUBSET
        places.discard(self.work.parent)  # of a try that was handed back
        self.work.mkdir(parents=True)
        self.new = True

    def _resume(self, engine: Engine) -> dict[int, Manifest]:
        """The tiles that are finished, and still there."""
        done = {
            tile: manifest
            for tile, manifest in jobs.finished_tiles(engine, self._job).items()
            if manifest.get("plan") == self._plan.fingerprint
            and (self._composited or manifest["files"])  # else nothing of it is in the bucket
        }
        if not done:
            jobs.forget_tiles(engine, self._job)
            return {}
        # one plan has one generation: that of the attempt which finished its first tile
        self._generation = self._parent / next(iter(done.values()))["generation"]
        there = {path: about.size for path, about in self._generation.files().items()}
        composites = (self._beside / TILES).files()
        return {
            tile: manifest
            for tile, manifest in done.items()
            if all(there.get(path) == size for path, size, _ in manifest["files"])
            and (not self._composited or f"{tile}.npz" in composites)
        }

    def __exit__(self, *exc: object) -> None:
        places.discard(self.work.parent)

    def manifest(self, counts: Mapping[str, int], stored: Mapping[str, Stored]) -> Manifest:
        return {
            **counts,
            "plan": self._plan.fingerprint,
            "generation": self._generation.name,
            "files": [[path, *about] for path, about in stored.items()],
        }

    def gather(self, check: Callable[[], None]) -> None:
        here = self.work.parent / TILES
        here.mkdir(exist_ok=True)
        there = self._beside / TILES
        places.download(((there / name, here / name) for name in there.files()), check)

    def keep(self, plan: Planned) -> tuple[Place, str]:
        return _keep(self._beside, plan)

    def publish(
        self, elsewhere: Mapping[str, Stored], check: Callable[[], None]
    ) -> tuple[str, int]:
        record = self.work / RECORD
        here = {
            path.relative_to(self.work).as_posix(): path.stat().st_size
            for path in places.below(self.work)
        }
        files = (self.work / name for name in here if name != RECORD)
        places.upload(self.work, files, self._generation, check)
        expected = {path: about.size for path, about in elsewhere.items()} | here
        del expected[RECORD]
        found = self._generation.files()
        wrong = [n for n, size in expected.items() if n not in found or found[n].size != size]
        if wrong:
            raise StoreError(f"{self._generation / wrong[0]} is not what was put there")
        if extra := [name for name in found if name not in expected and name != RECORD]:
            self._generation.remove(extra)
        return self._generation.name, self._put_record(record.read_bytes())

    def _put_record(self, mine: bytes) -> int:
        there = self._generation / RECORD
        try:
            there.write_new(mine)
        except FileExistsError:
            # of a worker that was lost, or will find that it has lost: of the same files it stays
            theirs = there.read_bytes()
            if json.loads(theirs)["files"] == json.loads(mine)["files"]:
                return len(theirs)
            there.write_bytes(mine)
        return len(mine)

    def withdraw(self) -> None:
        return  # who holds the job now goes on with it; one that was dismissed is discarded

    def clear(self) -> None:
        places.discard(_work_folder(self._settings, self._job))
        try:
            places.discard(self._beside)
        except StoreError as error:
            log.warning("what a job left is not removed yet", reason=str(error))

    def __enter__(self) -> Draft:
        return self


def _keep(folder: Place, plan: Planned) -> tuple[Place, str]:
    data = pickle.dumps(plan)
    digest = sha256(data).hexdigest()
    file = folder / f"plan-{digest[:16]}.pickle"
    file.write_bytes(data)
    return file, digest
