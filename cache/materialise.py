"""One materialisation, from request to published subset.

The walk: cubes of the catalog -> plan -> for each tile fetch, stitch, write, composite, checkpoint
-> strain -> products -> verify, publish. A tile is written by whole shards and recorded when it is
on disk, so that a job taken over by another worker goes on at its first unfinished tile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sqlalchemy import Engine

from firnline.arrays import instants
from firnline.cache import jobs, products, store
from firnline.cache.composite import Composite, Period, composite, overlap, periods, speed
from firnline.cache.fetch import Counts, Fetcher
from firnline.cache.jobs import Job
from firnline.cache.plan import Plan, Tile, by_coverage, choose_crs, make_plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube, find_cubes, indexed_cubes, open_cube
from firnline.cache.strain import FIELDS, STRESS_FIELDS, describe, radius_for, strain_rates
from firnline.errors import JobDismissedError, JobLostError, SourceMissingError
from firnline.settings import Settings
from firnline.source import Source

Raw = np.ndarray[Any, np.dtype[Any]]

# Beside the subset in an attempt's folder, which goes when the subset is published: whatever
# moment an attempt dies at, the next one finds what it needs.
_PLAN, _TILES, _SUBSET = "plan.json", "tiles", "subset"

_COMPOSITE_FIELDS: dict[str, tuple[str, dict[str, Any]]] = {
    "v": ("f4", {"long_name": "speed, from the composited components", "units": "meter/year"}),
    "vx": (
        "f4",
        {
            "standard_name": "land_ice_surface_x_velocity",
            "long_name": "velocity along x of the grid",
            "units": "meter/year",
        },
    ),
    "vy": (
        "f4",
        {
            "standard_name": "land_ice_surface_y_velocity",
            "long_name": "velocity along y of the grid",
            "units": "meter/year",
        },
    ),
    "v_error": ("f4", {"long_name": "standard error of v, formal", "units": "meter/year"}),
    "vx_error": ("f4", {"long_name": "standard error of vx, formal", "units": "meter/year"}),
    "vy_error": ("f4", {"long_name": "standard error of vy, formal", "units": "meter/year"}),
    "dispersion": (
        "f4",
        {"long_name": "weighted scatter of the pairs about the composite", "units": "meter/year"},
    ),
    "count": ("u4", {"long_name": "image pairs used", "units": "1"}),
    "rejected": ("u4", {"long_name": "image pairs left out as outliers", "units": "1"}),
}


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
    return make_plan(
        request,
        crs,
        cubes,
        memory_limit=settings.memory_limit,
        max_bytes=settings.max_job_bytes,
    )


def _open_cubes(settings: Settings, chosen: Sequence[CubeItem]) -> list[OpenCube]:
    requests = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="open")
    with requests, ThreadPoolExecutor(4, thread_name_prefix="cube") as openers:
        sources = [Source(cube.href, allowed=settings.allowed_sources) for cube in chosen]
        return list(
            openers.map(lambda cube, source: open_cube(cube, source, requests), chosen, sources)
        )


def materialise(engine: Engine, settings: Settings, job: Job, pulse: Pulse) -> str:
    """Do a claimed job to its end; returns the id of the published subset.

    Raises
    ------
    InputError
        The request can't be answered (no coverage, beyond a limit).
    SourceError, StoreError
    JobDismissedError, JobLostError
        Whatever was written is left for the caller to remove.
    """
    request = Request.parse(job.request, settings)
    pulse.say(0, "reading the cubes' metadata")
    began = time.monotonic()
    plan = plan_request(engine, settings, request)
    pulse.check()
    work, done = _resume(engine, settings, job, plan)
    spans = _periods(plan)
    counts = _run_tiles(engine, settings, job, plan, work, spans, done, pulse)
    if spans:
        pulse.say(90, "composites and strain rates")
        _write_fields(plan, work, spans)
    for name in (store.PAIRS, store.COMPOSITE, store.STRAIN):
        if (work / name).exists():
            store.consolidate(work / name)
            store.verify(work / name)
    pulse.say(95, "maps and provenance")
    made = products.make(plan, work, spans, counts, seconds=time.monotonic() - began)
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


def _periods(plan: Plan) -> tuple[Period, ...]:
    """The calendar periods in which mid-dates lie."""
    if plan.request.composite is None:
        return ()
    first, last = plan.layers.mid_date[0], plan.layers.mid_date[-1]
    return periods(plan.request.composite, first, last + np.timedelta64(1, "us"))


def _period_arrays(spans: tuple[Period, ...]) -> dict[str, Raw]:
    return {
        name: np.array([getattr(span, name) for span in spans]) for name in ("start", "end", "mid")
    }


def _run_tiles(
    engine: Engine,
    settings: Settings,
    job: Job,
    plan: Plan,
    work: Path,
    spans: tuple[Period, ...],
    done: dict[int, dict[str, Any]],
    pulse: Pulse,
) -> Counts:
    """Fetch, stitch, write and composite every tile that is not done."""
    variables = plan.request.variables
    todo = [tile for tile in plan.tiles if tile.index not in done]
    order = [(tile, variable) for tile in todo for variable in variables]
    weights = _weights(plan, spans) if spans else None
    parts: dict[str, Composite] = {}
    fetcher = Fetcher(
        plan, todo, concurrency=settings.concurrency, keep_bytes=settings.memory_limit // 8
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
            if weights is not None and variable in ("vx", "vy"):
                parts[variable] = _composite(plan, variable, values, weights, fetcher.processors)
            if variable == variables[-1]:
                if spans:
                    _keep_composite(work, tile, parts.pop("vx"), parts.pop("vy"))
                jobs.checkpoint(engine, job, tile.index, fetcher.counts.since_last())
            tiles = len(done) + (n + 1) / len(variables)
            pulse.say(
                round(90 * tiles / len(plan.tiles)), f"{int(tiles)} of {len(plan.tiles)} tiles"
            )
    return Counts.total([*done.values(), fetcher.counts.as_dict()])


def _composite(
    plan: Plan, variable: str, values: Raw, weights: Raw, processors: Executor
) -> Composite:
    """`composite` of the rows of a tile, in parallel: pixels know nothing of each other."""
    missing = int(plan.array(variable).missing)
    sigma = _sigma(plan, variable)
    rows = np.array_split(np.arange(values.shape[1]), min(4, values.shape[1]))
    parts = list(
        processors.map(
            lambda r: composite(values[:, r[0] : r[-1] + 1], sigma, weights, missing=missing), rows
        )
    )
    return Composite(
        *(np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in fields(Composite))
    )


def _weights(plan: Plan, spans: tuple[Period, ...]) -> Raw:
    """(period, layer): how much of each pair's span lies in each period."""
    per_pair = plan.layers.per_pair
    try:
        dates = [
            _dates(per_pair[f"acquisition_date_{image}"], plan, f"acquisition_date_{image}")
            for image in ("img1", "img2")
        ]
    except KeyError as error:
        raise SourceMissingError(
            f"{plan.cubes[0].source.url} has no {error}, which composites need"
        ) from None
    return overlap(spans, *dates)


def _dates(values: Raw, plan: Plan, name: str) -> Raw:
    array = next(c.layout.arrays[name] for c in plan.cubes if name in c.layout.arrays)
    return instants(values, array)


def _sigma(plan: Plan, variable: str) -> Raw:
    """Standard error of each layer; NaN, for `composite` to deal with, where there is none."""
    values = plan.layers.per_pair.get(f"{variable}_error")
    return np.full(len(plan.layers), np.nan, np.float32) if values is None else values


def _keep_composite(work: Path, tile: Tile, x: Composite, y: Composite) -> None:
    """One file of all composites of a tile: its checkpoint, until all tiles are there."""
    v, v_error = speed(x.value, y.value, x.error, y.error)
    folder = work.parent / _TILES
    folder.mkdir(exist_ok=True)
    aside = folder / f"{tile.index}.partial"
    with aside.open("wb") as out:
        np.savez(
            out,
            allow_pickle=False,
            v=v,
            vx=x.value,
            vy=y.value,
            v_error=v_error,
            vx_error=x.error,
            vy_error=y.error,
            dispersion=np.hypot(x.dispersion, y.dispersion),
            count=np.minimum(x.count, y.count),
            rejected=np.maximum(x.rejected, y.rejected),
        )
    aside.rename(folder / f"{tile.index}.npz")


def _write_fields(plan: Plan, work: Path, spans: tuple[Period, ...]) -> None:
    """The stores of composites and strain rates, whose windows reach across tiles."""
    common: dict[str, Any] = {
        "format": plan.request.format,
        "geobox": plan.geobox,
        "axes": (plan.x, plan.y),
        "periods": _period_arrays(spans),
    }
    store.create_fields(
        work / store.COMPOSITE,
        _COMPOSITE_FIELDS,
        attributes={
            "title": "Velocity composites of ITS_LIVE image pairs, by firnline",
            "source": plan.attribution,
            "comment": "mean of the pairs weighted by their overlap with the period and by "
            "1/error^2, after one robust rejection of outliers, component by component",
        },
        **common,
    )
    velocity = {}
    for name in _COMPOSITE_FIELDS:
        whole = _gather_tiles(plan, work, name, len(spans))
        store.write_field(work / store.COMPOSITE, name, whole)
        if name in ("vx", "vy", "vx_error", "vy_error"):
            velocity[name] = whole
    if not plan.request.strain:
        return
    how = plan.request.strain
    radius, length = radius_for(how.length_scale, plan.geobox.affine.a)
    about = {**FIELDS, **(STRESS_FIELDS if how.flow_law else {})}
    store.create_fields(
        work / store.STRAIN,
        {name: ("f4", dict(attributes)) for name, attributes in about.items()},
        attributes={
            "title": "Strain rates of the velocity composites, by firnline",
            "source": plan.attribution,
            "window_radius_pixels": radius,
            "half_length_m": length,
            "half_length_asked_m": how.length_scale,
            **describe(how.method, how.gaps, how.flow_law),
        },
        **common,
    )
    rates = [
        strain_rates(
            velocity["vx"][n],
            velocity["vy"][n],
            dx=plan.geobox.affine.a,
            dy=plan.geobox.affine.e,
            radius=radius,
            method=how.method,
            gaps=how.gaps,
            vx_error=velocity["vx_error"][n],
            vy_error=velocity["vy_error"][n],
            flow_law=how.flow_law,
        )
        for n in range(len(spans))
    ]
    for name in about:
        store.write_field(work / store.STRAIN, name, np.stack([period[name] for period in rates]))


def _gather_tiles(plan: Plan, work: Path, name: str, periods: int) -> Raw:
    """A field ``(time, y, x)`` put together from the tiles' files."""
    whole = np.empty((periods, *plan.shape[1:]), _COMPOSITE_FIELDS[name][0])
    for tile in plan.tiles:
        with np.load(work.parent / _TILES / f"{tile.index}.npz", allow_pickle=False) as part:
            whole[:, tile.rows, tile.columns] = part[name]
    return whole
