"""One materialisation, from request to published subset.

The walk: cubes of the catalog -> plan -> for each tile fetch, stitch, write, composite, checkpoint
-> strain -> products -> verify, publish. Of mosaics: their headers -> plan -> windows, trend ->
strain and so on. A tile, or a block of mosaics, is written by whole shards and recorded when it is
on disk, so that a job taken over by another worker goes on at the first that is unfinished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Protocol, TypeAlias

from sqlalchemy import Engine

from firnline.cache import drafts, jobs, mosaic_products, products, store
from firnline.cache.chunk_cache import chunk_folder, open_chunk_cache
from firnline.cache.chunk_requests import ChunkRequests
from firnline.cache.composite_store import check_periods, planned_periods, write_composites
from firnline.cache.containment import Container, StoredTiles, find_container
from firnline.cache.counts import Counts
from firnline.cache.drafts import Draft, Manifest
from firnline.cache.eviction import touch
from firnline.cache.executors import tile_executor
from firnline.cache.fetch import Fetcher
from firnline.cache.former import Former, dated, find_former
from firnline.cache.head_start import HeadStart
from firnline.cache.jobs import Job
from firnline.cache.kept_cubes import keep_cubes
from firnline.cache.memory import give_back, is_short, shares
from firnline.cache.mosaic_store import write_mosaics
from firnline.cache.mosaics import MosaicPlan, plan_mosaics
from firnline.cache.new_store import create_pairs
from firnline.cache.places import Stored
from firnline.cache.plan import Plan, Tile
from firnline.cache.planning import by_coverage, choose_crs, make_plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube, Opening, find_cubes, indexed_cubes
from firnline.cache.strain_store import write_strain
from firnline.cache.tiles import TileTask, TileWriter, do_tile, in_order
from firnline.errors import (
    InputError,
    JobDismissedError,
    JobLostError,
    SourceChangedError,
    SourceError,
)
from firnline.items import MOSAICS
from firnline.pairs import EVERY_PAIR
from firnline.settings import Settings
from firnline.source import Source

_BEGINNINGS = 3
_OPENERS = 4  # cubes whose metadata and image pairs are read side by side

Finished: TypeAlias = tuple[Tile, dict[str, int], dict[str, Stored], float]
"""A tile, what was counted for it, the files that it put outside of this disk, and how many bytes
are left to download for other tiles."""


class Pulse(Protocol):
    """How a running job shows that it is alive and learns that it must stop."""

    def say(self, progress: int, message: str) -> None:
        """Tell how far the job is, in percent."""

    def check(self) -> None:
        """Raise JobDismissedError or JobLostError when the job is no longer this worker's."""


def plan_request(
    engine: Engine, settings: Settings, request: Request, *, only_plan: bool = False
) -> Plan | MosaicPlan:
    """Plan a request: reads the sources' metadata, fetches no velocity; raises as the planners."""
    if request.collection == MOSAICS:
        return plan_mosaics(engine, settings, request)
    return plan_cubes(engine, settings, request, only_plan=only_plan)


def plan_cubes(
    engine: Engine,
    settings: Settings,
    request: Request,
    *,
    only_plan: bool = False,
    begin: Callable[[Plan], None] | None = None,
) -> Plan:
    """Plan a request of image pairs: reads the cubes' metadata and 1-D arrays.

    Parameters
    ----------
    only_plan
        It will not be carried out: then it comes from the index of pairs, without the network,
        where all of its cubes are in it.
    begin
        Is given what the index of pairs makes of it, where all of its cubes are in it, before the
        network is asked: its chunks are the plan's unless a cube has changed since.

    Raises
    ------
    NoCoverageError, TooLargeError, SourceError
    """
    crs = choose_crs(request, find_cubes(engine, request))
    chosen = by_coverage(request, crs, find_cubes(engine, request, window=crs))

    def plan_of(cubes: Sequence[OpenCube]) -> Plan:
        return make_plan(
            request,
            crs,
            cubes,
            memory_limit=settings.memory_limit,
            max_bytes=settings.max_job_bytes,
        )

    def sketch() -> None:
        if begin is not None and enough is not None:
            with suppress(InputError, SourceError):  # the index may be behind: the cubes decide
                begin(plan_of(enough))

    where = request.pair_filter if only_plan else EVERY_PAIR
    known = indexed_cubes(engine, chosen, settings.allowed_sources, where)
    # errors of pairs are not in the index
    enough = known if request.max_error is None else None
    if only_plan and enough is not None:
        plan = plan_of(enough)
    else:
        plan = plan_of(
            _read_cubes(settings, request, chosen, known, only_plan=only_plan, meanwhile=sketch)
        )
    check_periods(plan, settings.max_job_bytes)
    return plan


def _read_cubes(
    settings: Settings,
    request: Request,
    chosen: Sequence[CubeItem],
    known: Sequence[OpenCube] | None,
    *,
    only_plan: bool,
    meanwhile: Callable[[], None],
) -> list[OpenCube]:
    # some fifty small arrays a cube, of which latency is all that they cost
    at_once = settings.concurrency * min(len(chosen), _OPENERS)
    requests = ThreadPoolExecutor(at_once, thread_name_prefix="open")
    roots = {"allowed": settings.allowed_sources, "signed": settings.signed_sources}
    keeper = open_chunk_cache(settings)

    def open_cube(cube: CubeItem, known: OpenCube | None) -> Opening:
        source = Source(cube.href, **roots)
        return Opening(
            cube, source, requests, keeper, request=request, only_plan=only_plan, known=known
        )

    try:
        with ThreadPoolExecutor(_OPENERS, thread_name_prefix="cube") as openers:
            opening = openers.map(open_cube, chosen, known or [None] * len(chosen))
            meanwhile()
            opened = list(opening)
        read = [cube.result() for cube in opened]
        for cube in opened:
            cube.go_on()
    except BaseException:
        requests.shutdown(wait=False, cancel_futures=True)
        raise
    requests.shutdown(wait=False)  # what is under way comes to those who look at it
    return read


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
    pulse.say(0, "reading the sources' metadata")
    with HeadStart(settings, job) as start:
        _carry_out(engine, settings, job, request, pulse, start)
    return request.subset_id


def _carry_out(
    engine: Engine, settings: Settings, job: Job, request: Request, pulse: Pulse, start: HeadStart
) -> None:
    began = time.monotonic()
    plan: Plan | MosaicPlan
    if request.collection == MOSAICS:
        plan, container = plan_mosaics(engine, settings, request), None
    else:
        plan, container = find_container(engine, settings, request) or (
            plan_cubes(engine, settings, request, begin=start.begin),
            None,
        )
    if container is not None:
        touch(engine, container.id)
    pulse.check()
    composited = isinstance(plan, Plan) and bool(planned_periods(plan))
    with drafts.begin(engine, settings, job, plan, composited=composited) as draft:
        if isinstance(plan, MosaicPlan):
            elsewhere: Mapping[str, Stored] = {}
            made = _from_mosaics(engine, settings, job, plan, draft, pulse, began)
        else:
            before = None if container else find_former(engine, settings, plan)
            plan = dated(plan, before, asked=not (draft.done or settings.chunk_cache_quota))
            if is_short(settings.memory_limit) and not (container or before):
                if draft.new:
                    _create(plan, draft.work)
                    draft.new = False
                plan = plan.lean()
            give_back()  # what reading the cubes took
            manifests = _run_tiles(
                engine, settings, job, plan, draft, pulse, container, before, start
            )
            elsewhere = _put_elsewhere(manifests)
            made = _from_pairs(settings, plan, draft, manifests, elsewhere, pulse, began, container)
        pulse.check()
        generation, size = draft.publish(elsewhere, pulse.check)
        made = products.with_record(made, size)
        try:
            products.register(engine, job, request, made, generation)
        except (JobDismissedError, JobLostError):
            draft.withdraw()
            raise
        draft.clear()


def _from_pairs(
    settings: Settings,
    plan: Plan,
    draft: Draft,
    manifests: Sequence[Manifest],
    elsewhere: Mapping[str, Stored],
    pulse: Pulse,
    began: float,
    container: Container | None,
) -> products.Made:
    spans, work = planned_periods(plan), draft.work
    give_back()
    if spans:
        pulse.say(90, "composites and strain rates")
        draft.gather(pulse.check)
        write_composites(plan, work, work.parent / drafts.TILES, spans)
        if plan.request.strain:
            write_strain(plan, work, spans)
    _verify_stores(work, elsewhere)
    pulse.say(95, "maps and provenance")
    return products.make(
        plan,
        work,
        spans,
        _counts(manifests),
        seconds=time.monotonic() - began,
        memory_limit=settings.memory_limit,
        container=container,
        elsewhere=elsewhere,
    )


def _counts(manifests: Sequence[Manifest]) -> Counts:
    return Counts.total(
        {name: n for name, n in manifest.items() if type(n) is int} for manifest in manifests
    )


def _put_elsewhere(manifests: Sequence[Manifest]) -> dict[str, Stored]:
    """The files that tiles have put where they stay, not on this disk."""
    files = (file for manifest in manifests for file in manifest.get("files", ()))
    return {path: Stored(size, sha256) for path, size, sha256 in files}


def _from_mosaics(
    engine: Engine,
    settings: Settings,
    job: Job,
    plan: MosaicPlan,
    draft: Draft,
    pulse: Pulse,
    began: float,
) -> products.Made:
    counts, work = Counts(), draft.work
    # in a bucket blocks are put down with all else at the end, and the next attempt begins anew
    finished = {} if draft.new else draft.done

    def checkpoint(block: int, counted: Mapping[str, int], sources: Manifest) -> None:
        manifest = {**draft.manifest(counted, {}), "sources": sources}
        jobs.checkpoint(engine, job, block, manifest)

    try:
        sources = write_mosaics(plan, work, settings, pulse, counts, finished, checkpoint)
    except SourceChangedError:
        jobs.forget_tiles(engine, job)  # they are of what the source was
        raise
    if plan.request.strain:
        pulse.say(90, "strain rates")
        write_strain(plan, work, plan.periods)
    _verify_stores(work)
    pulse.say(95, "maps and provenance")
    seconds = time.monotonic() - began
    return mosaic_products.make(
        plan, work, counts, sources, seconds=seconds, memory_limit=settings.memory_limit
    )


def _verify_stores(work: Path, elsewhere: Collection[str] = ()) -> None:
    """Nothing more is written to the stores: see that they are whole."""
    for name in (store.PAIRS, store.COMPOSITE, store.STRAIN, store.TREND):
        if (work / name).exists():
            store.verify(work / name, elsewhere)


def _run_tiles(
    engine: Engine,
    settings: Settings,
    job: Job,
    plan: Plan,
    draft: Draft,
    pulse: Pulse,
    container: Container | None,
    before: Container | None,
    start: HeadStart,
) -> list[Manifest]:
    """Do every tile that is not done, and note each that is; what is noted of all."""
    todo = [tile for tile in plan.tiles if tile.index not in draft.done]
    manifests = list(draft.done.values())

    def tell(tiles: float, bytes_left: float) -> None:
        share = tiles / len(plan.tiles)
        left = f", about {bytes_left / 1e6:,.1f} MB left to download" if bytes_left else ""
        pulse.say(round(90 * share), f"{int(tiles)} of {len(plan.tiles)} tiles{left}")

    # what is read from another subset is on this machine already
    elsewhere = tile_executor(settings) if container is None else nullcontext()
    with elsewhere as executor:
        run = (
            _here(settings, plan, todo, draft, pulse, container, before, start, tell)
            if executor is None
            else _by(executor, settings, plan, todo, draft, pulse)
        )
        with closing(run):
            for tile, counts, stored, left in run:
                manifest = draft.manifest(counts, stored)
                jobs.checkpoint(engine, job, tile.index, manifest)
                manifests.append(manifest)
                tell(len(manifests), left)
    return manifests


def _here(
    settings: Settings,
    plan: Plan,
    todo: Sequence[Tile],
    draft: Draft,
    pulse: Pulse,
    container: Container | None,
    before: Container | None,
    start: HeadStart,
    tell: Callable[[float, float], None],
) -> Generator[Finished, None, None]:
    """Do tiles in this process, by one pipeline."""
    variables = plan.request.variables
    fetcher = (
        StoredTiles(plan, container)
        if container is not None
        else Fetcher(
            plan,
            ChunkRequests(
                plan,
                todo,
                concurrency=settings.concurrency,
                memory=shares(settings.memory_limit),
                keeper=open_chunk_cache(settings) or (Former(plan, before) if before else None),
                earlier=start.requests,
            ),
        )
    )
    out = TileWriter(plan, draft.subset, draft.tiles, fetcher.processors)
    with fetcher, out, ThreadPoolExecutor(1, thread_name_prefix="create") as creator:
        # the rest of the store is made while the first chunks come
        created = creator.submit(_create, plan, draft.work) if draft.new else None
        order = list(in_order(plan, todo))
        for n, (tile, variable, values) in enumerate(fetcher.tiles(order, pulse.check)):
            if created is not None and created.done():
                created.result()  # what is wrong with the cubes' small arrays ends it soon
            stored = out.write(tile, variable, values)
            if stored is not None:
                if created is not None:
                    created.result()  # a tile that is finished is one of a store that is there
                yield tile, fetcher.counts.since_last(), stored, fetcher.bytes_left
            else:
                tell(len(draft.done) + (n + 1) / len(variables), fetcher.bytes_left)
        if created is not None:
            created.result()


def _by(
    executor: Executor,
    settings: Settings,
    plan: Plan,
    todo: Sequence[Tile],
    draft: Draft,
    pulse: Pulse,
) -> Generator[Finished, None, None]:
    """Have an executor do tiles, each by itself; as they are finished."""
    if draft.new:
        _create(plan, draft.work)
    file, digest = draft.keep(plan)
    pending = {
        executor.submit(
            do_tile,
            TileTask(
                plan=file,
                digest=digest,
                subset=draft.subset,
                tiles=draft.tiles,
                tile=tile.index,
                concurrency=settings.concurrency,
                memory_limit=settings.memory_limit,
                chunks=chunk_folder(settings),
                chunk_quota=settings.chunk_cache_quota,
            ),
        ): tile
        for tile in todo
    }
    read = 0
    try:
        while pending:
            ended, _ = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            pulse.check()
            for future in ended:
                tile, (counts, stored) = pending.pop(future), future.result()
                read += counts["bytes"]
                yield tile, counts, stored, read / (len(todo) - len(pending)) * len(pending)
    finally:
        for future in pending:
            future.cancel()


def _create(plan: Plan, work: Path) -> None:
    if plan.request.pairs:
        create_pairs(work / store.PAIRS, plan)
        keep_cubes(work, plan.cubes)
