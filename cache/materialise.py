"""One materialisation, from request to published subset.

The walk: cubes of the catalog -> plan -> for each tile fetch, stitch, write, composite, checkpoint
-> strain -> products -> verify, publish. A tile is written by whole shards and recorded when it is
on disk, so that a job taken over by another worker goes on at its first unfinished tile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sqlalchemy import Engine

from firnline.cache import jobs, products, store
from firnline.cache.chunk_cache import open_chunk_cache
from firnline.cache.composite_store import (
    check_periods,
    composite_tile,
    keep_tile,
    planned_periods,
    write_composites,
)
from firnline.cache.containment import Container, StoredTiles, find_container
from firnline.cache.fetch import Counts, Fetcher
from firnline.cache.jobs import Job
from firnline.cache.kept_cubes import keep_cubes
from firnline.cache.memory import give_back, shares
from firnline.cache.periods import Period
from firnline.cache.plan import Plan, by_coverage, choose_crs, make_plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube, find_cubes, indexed_cubes, open_cube
from firnline.cache.strain_store import write_strain
from firnline.errors import JobDismissedError, JobLostError, SourceChangedError
from firnline.settings import Settings
from firnline.source import Source

Raw = np.ndarray[Any, np.dtype[Any]]

# Beside the subset in an attempt's folder, which goes when the subset is published: whatever
# moment an attempt dies at, the next one finds what it needs.
_PLAN, _SUBSET = "plan.json", "subset"
_BEGINNINGS = 3


class Pulse(Protocol):
    """How a running job shows that it is alive and learns that it must stop."""

    def say(self, progress: int, message: str) -> None:
        """Tell how far the job is, in percent."""

    def check(self) -> None:
        """Raise JobDismissedError or JobLostError when the job is no longer this worker's."""


def plan_request(
    engine: Engine, settings: Settings, request: Request, *, only_plan: bool = False
) -> Plan:
    """Plan a request: reads the cubes' metadata and 1-D arrays, fetches no velocity.

    A plan that is not carried out (`only_plan`) comes from the index of pairs, without the
    network, where all of its cubes are in it.

    Raises
    ------
    NoCoverageError, TooLargeError, SourceError
    """
    crs = choose_crs(request, find_cubes(engine, request))
    chosen = by_coverage(request, find_cubes(engine, request, window=crs))
    cubes = None
    if only_plan:
        cubes = indexed_cubes(engine, request, chosen, settings.allowed_sources)
    if cubes is None:
        cubes = _open_cubes(settings, chosen)
    plan = make_plan(
        request,
        crs,
        cubes,
        memory_limit=settings.memory_limit,
        max_bytes=settings.max_job_bytes,
    )
    check_periods(plan, settings.max_job_bytes)
    return plan


def _open_cubes(settings: Settings, chosen: Sequence[CubeItem]) -> list[OpenCube]:
    requests = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="open")
    roots = {"allowed": settings.allowed_sources, "signed": settings.signed_sources}
    keeper = open_chunk_cache(settings)
    with requests, ThreadPoolExecutor(4, thread_name_prefix="cube") as openers:
        return list(
            openers.map(
                lambda cube: open_cube(cube, Source(cube.href, **roots), requests, keeper), chosen
            )
        )


def materialise(engine: Engine, settings: Settings, job: Job, pulse: Pulse) -> str:
    """Do a claimed job to its end; returns the id of the published subset.

    A cube that changes while it is read makes it begin anew, a few times.

    Raises
    ------
    InputError
        The request can't be answered (no coverage, beyond a limit).
    SourceError, StoreError
    JobDismissedError, JobLostError
        Whatever was written is left for the caller to remove.
    """
    for _ in range(_BEGINNINGS - 1):
        try:
            return _materialise(engine, settings, job, pulse)
        except SourceChangedError as error:
            pulse.say(0, f"{error}: once more from the beginning")
    return _materialise(engine, settings, job, pulse)


def _materialise(engine: Engine, settings: Settings, job: Job, pulse: Pulse) -> str:
    request = Request.parse(job.request, settings)
    pulse.say(0, "reading the cubes' metadata")
    began = time.monotonic()
    inside = find_container(engine, settings, request)
    plan, container = inside or (plan_request(engine, settings, request), None)
    pulse.check()
    work, done = _resume(engine, settings, job, plan)
    spans = planned_periods(plan)
    counts = _run_tiles(engine, settings, job, plan, work, spans, done, pulse, container)
    give_back()
    if spans:
        pulse.say(90, "composites and strain rates")
        write_composites(plan, work, spans)
        if plan.request.strain:
            write_strain(plan, work, spans)
    for name in (store.PAIRS, store.COMPOSITE, store.STRAIN):
        if (work / name).exists():
            store.consolidate(work / name)
            store.verify(work / name)
    pulse.say(95, "maps and provenance")
    if request.pairs:
        keep_cubes(work, plan.cubes)
    taken = time.monotonic() - began
    made = products.make(plan, work, spans, counts, seconds=taken, container=container)
    pulse.check()
    generation = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    published = settings.cache_dir / "subsets" / request.subset_id / generation
    store.publish(work, published)
    try:
        products.register(engine, job, plan, made, generation)
    except (JobDismissedError, JobLostError):
        store.discard(published)
        raise
    store.discard(work_folder(settings, job))
    return request.subset_id


def work_folder(settings: Settings, job: Job) -> Path:
    """Where the attempts at a job write before one publishes."""
    return settings.cache_dir / "work" / job.id


def _resume(
    engine: Engine, settings: Settings, job: Job, plan: Plan
) -> tuple[Path, dict[int, dict[str, Any]]]:
    """The folder of this attempt, and the tiles that are finished in it.

    What an earlier attempt finished under the same plan is taken over; else it's begun anew.
    """
    folder = work_folder(settings, job)
    adopted = store.adopt(folder, job.attempt)
    if adopted is not None:
        mark, work = adopted / _PLAN, adopted / _SUBSET
        fits = mark.exists() and json.loads(mark.read_text())["fingerprint"] == plan.fingerprint
        # without the subset it was moved to be published, and not registered
        if fits and work.exists() and (done := jobs.finished_tiles(engine, job)):
            return work, done
        store.discard(adopted)
    jobs.forget_tiles(engine, job)
    work = folder / str(job.attempt) / _SUBSET
    work.mkdir(parents=True)
    (work.parent / _PLAN).write_text(json.dumps({"fingerprint": plan.fingerprint}))
    return work, {}


def _run_tiles(
    engine: Engine,
    settings: Settings,
    job: Job,
    plan: Plan,
    work: Path,
    spans: tuple[Period, ...],
    done: dict[int, dict[str, Any]],
    pulse: Pulse,
    container: Container | None,
) -> Counts:
    """Fetch, stitch, write and composite every tile that is not done."""
    variables = plan.request.variables
    todo = [tile for tile in plan.tiles if tile.index not in done]
    order = [(tile, variable) for tile in todo for variable in variables]
    vx: Raw | None = None
    fetcher = (
        StoredTiles(plan, container)
        if container is not None
        else Fetcher(
            plan,
            todo,
            concurrency=settings.concurrency,
            memory=shares(settings.memory_limit),
            keeper=open_chunk_cache(settings),
        )
    )
    with fetcher, ThreadPoolExecutor(1, thread_name_prefix="create") as creator:
        # the empty store is made while the first chunks come
        new = plan.request.pairs and not done
        created = creator.submit(store.create_pairs, work / store.PAIRS, plan) if new else None
        for n, (tile, variable, values) in enumerate(fetcher.tiles(order, pulse.check)):
            if plan.request.pairs:
                if created is not None:
                    created.result()
                store.write(work / store.PAIRS, variable, tile, values, fetcher.processors)
            if spans and variable == "vx":
                vx = values.copy()  # the buffer is the next variable's
            if vx is not None and variable == "vy":
                found = composite_tile(plan, vx, values, spans, fetcher.processors)
                keep_tile(work, tile, found)
                vx = None
            give_back()
            if variable == variables[-1]:
                jobs.checkpoint(engine, job, tile.index, fetcher.counts.since_last())
            tiles = len(done) + (n + 1) / len(variables)
            pulse.say(
                round(90 * tiles / len(plan.tiles)), f"{int(tiles)} of {len(plan.tiles)} tiles"
            )
    return Counts.total([*done.values(), fetcher.counts.as_dict()])
