"""From a question to an xarray.Dataset: materialised first when it's not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, select

from firnline.cache import jobs, store, worker
from firnline.cache.containment import find_container
from firnline.cache.eviction import hold, keep_used, touch
from firnline.cache.jobs import Job
from firnline.cache.materialise import plan_request
from firnline.cache.mosaics import find_mosaics
from firnline.cache.places import Place, for_zarr, generation_place
from firnline.cache.planning import choose_crs
from firnline.cache.request import Request
from firnline.cache.sources import find_cubes
from firnline.cache.strain import radius_for
from firnline.crs import parse_crs
from firnline.database import connect, migrate, reading
from firnline.errors import JobError, NotFoundError
from firnline.items import MOSAICS
from firnline.keys import ApiKey
from firnline.settings import Settings
from firnline.tables import subsets

if TYPE_CHECKING:
    import xarray as xr


def subset_place(engine: Engine, settings: Settings, id: str) -> Place:
    """The folder of a subset's current generation, on a disk or in a bucket.

    Raises
    ------
    NotFoundError
    """
    with reading(engine) as connection:
        generation = connection.scalar(select(subsets.c.generation).where(subsets.c.id == id))
    if generation is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    return generation_place(settings, id, str(generation))


_DATASETS = {
    "pairs": store.PAIRS,
    "composite": store.COMPOSITE,
    "strain": store.STRAIN,
    "trend": store.TREND,
}


def open_stored(engine: Engine, settings: Settings, id: str, dataset: str) -> xr.Dataset:
    """Open a store of a subset that is there: ``pairs``, ``composite``, ``strain`` or ``trend``.

    Lazy without dask: what is read of it is read at once.

    Raises
    ------
    NotFoundError
        There is no such subset, or it was made without this store.
    """
    import xarray as xr

    if dataset not in _DATASETS:
        raise NotFoundError(f"dataset {dataset[:40]!r} is not one of {', '.join(_DATASETS)}")
    path = subset_place(engine, settings, id) / _DATASETS[dataset]
    touch(engine, id)
    if not path.exists():
        raise NotFoundError(f"subset {id} was made without its {dataset}")
    opened: xr.Dataset = xr.open_zarr(
        for_zarr(path), chunks=None, consolidated=True, decode_coords="all", decode_timedelta=False
    )
    return opened


def opened(source: xr.Dataset | str, dataset: str) -> xr.Dataset:
    """A Dataset as it is; of a subset's id, its store of that name in this installation.

    Raises
    ------
    NotFoundError
    """
    if not isinstance(source, str):
        return source
    settings = Settings()
    engine = connect(settings.database)
    try:
        return open_stored(engine, settings, source, dataset)
    finally:
        engine.dispose()


def ask(
    engine: Engine,
    settings: Settings,
    request: Request,
    *,
    key: ApiKey | None = None,
    priority: int = 0,
) -> Job:
    """Ask for a request: its job, new or the one that there is already.

    What the catalog can't answer is refused here, before anything is queued: this reads the
    database, not the sources.

    Raises
    ------
    NoCoverageError
        No cube covers the area.
    InputError
        The strain's length scale is under a pixel, or the area outside the CRS asked for.
    QuotaError
        The key has as many jobs under way as it may have.
    """
    check(engine, request)
    job = jobs.submit(engine, request, key=key, priority=priority)
    if job.subset is not None and not subset_place(engine, settings, job.subset).is_dir():
        # its files were removed: made anew
        return jobs.submit(engine, request, refresh=True, key=key, priority=priority)
    return job


def check(engine: Engine, request: Request) -> None:
    """Refuse what the catalog alone shows to be impossible; raises as :func:`ask`."""
    if request.collection == MOSAICS:
        told = [mosaic.spacing for mosaic in find_mosaics(engine, request)]
    else:
        cubes = find_cubes(engine, request)
        crs = choose_crs(request, cubes)
        request.area_in(parse_crs(crs))
        told = [cube.spacing for cube in [c for c in cubes if c.crs == crs] or cubes]
    spacings = [spacing for spacing in told if spacing is not None]
    if request.strain and spacings:
        radius_for(request.strain.length_scale, max(spacings))


def preview(engine: Engine, settings: Settings, request: Request) -> dict[str, Any]:
    """What a request would take, as :meth:`firnline.cache.plan.Plan.summary` tells.

    Where a subset answers it, ``answered_from`` is its id, and requests and bytes expected are 0.
    Raises as :func:`ask` and :func:`firnline.cache.materialise.plan_request`.
    """
    check(engine, request)
    answered_from = _stored(engine, settings, request)
    found = None
    if answered_from is None and request.collection != MOSAICS:
        found = find_container(engine, settings, request)
    if found is not None:
        plan, container = found
        summary, answered_from = plan.summary(), container.id
    else:
        summary = plan_request(engine, settings, request, only_plan=True).summary()
    if answered_from is not None:
        summary |= {name: 0 for name in summary if name.endswith("_expected")}
        summary["answered_from"] = answered_from
    return summary


def _stored(engine: Engine, settings: Settings, request: Request) -> str | None:
    """The subset of a request, where it's there and fresh."""
    fresh = (subsets.c.request_key == request.key) & ~subsets.c.stale
    with reading(engine) as connection:
        id = connection.scalar(select(subsets.c.id).where(fresh))
    there = id is not None and subset_place(engine, settings, id).is_dir()
    return id if there else None


def open_subset(
    *, settings: Settings | None = None, dataset: str | None = None, **inputs: Any
) -> xr.Dataset:
    """Open an area and period of ITS_LIVE as an xarray.Dataset from the local store.

    What is not in the store yet is materialised first, in this process; the same question is
    answered from the store at once the next time, whoever asks it.

    Parameters
    ----------
    settings
        Where the catalog and the store are; default: from the environment.
    dataset
        ``pairs`` (mid_date, y, x), ``composite``, ``strain`` or, of annual mosaics, ``trend``
        (time, y, x). Default: the pairs, or the composite where none are stored.
    **inputs
        As for ``firnline materialise``: bbox or geometry, crs, datetime, variables, composite,
        strain and so on; see :class:`firnline.cache.request.Request`.

    Returns
    -------
    xarray.Dataset
        Lazy (dask); the CRS is read by rioxarray (``ds.rio.crs``).

    Raises
    ------
    InputError
        The request can't be answered; says what is accepted.
    JobError
        It was tried and failed; says why.
    """
    import xarray as xr

    if dataset is not None and dataset not in _DATASETS:
        raise NotFoundError(f"dataset {dataset!r} is not one of {', '.join(_DATASETS)}")
    settings = settings or Settings()
    request = Request.parse(inputs, settings)
    dataset = dataset or ("pairs" if request.pairs else "composite")
    engine = connect(settings.database)
    migrate(engine)
    job = worker.finish(engine, settings, ask(engine, settings, request))
    if job.status != "successful" or job.subset is None:
        raise JobError(f"job {job.id} {job.status}: {job.message}")
    folder = subset_place(engine, settings, job.subset)
    hold(folder) if isinstance(folder, Path) else keep_used(engine, job.subset)
    path = folder / _DATASETS[dataset]
    if not path.exists():
        raise NotFoundError(f"the request asked for no {dataset}")
    opened: xr.Dataset = xr.open_zarr(
        for_zarr(path), chunks={}, consolidated=True, decode_coords="all"
    )
    return opened


def list_subsets(engine: Engine) -> list[dict[str, Any]]:
    """Each subset's id, generation, bytes and dates (ISO 8601), last used first."""
    names = ("id", "generation", "size", "stale", "pinned", "created", "last_used")
    with reading(engine) as connection:
        rows = connection.execute(
            select(*[subsets.c[name] for name in names]).order_by(subsets.c.last_used.desc())
        ).mappings()
        return [
            {k: v.isoformat() if k in ("created", "last_used") else v for k, v in row.items()}
            for row in rows
        ]
