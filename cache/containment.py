"""Requests that lie inside a subset which is there already, answered from it.

What was read of the cubes is kept beside each subset, so that the plan is the one that the cubes
themselves would give; only the velocity comes from the subset's own store, layer by layer, in the
place of the source chunks. The answer is the same to the bit, without the network.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
import structlog
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Boolean, Engine, func, literal, select

from firnline.cache import store
from firnline.cache.counts import Counts
from firnline.cache.drafts import RECORD
from firnline.cache.kept_cubes import load_cube
from firnline.cache.places import Place, generation_place
from firnline.cache.plan import SHARD_TIME, Plan, Tile
from firnline.cache.planning import by_coverage, choose_crs, make_plan
from firnline.cache.refresh import has_changed, known_cubes
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube, find_cubes
from firnline.crs import parse_crs
from firnline.database import reading
from firnline.errors import (
    SourceChangedError,
    SourceCorruptError,
    SourceNotAllowedError,
    StoreError,
    StoreUnreachableError,
)
from firnline.footprint import footprint
from firnline.items import SUBSETS
from firnline.settings import Settings
from firnline.source import Source
from firnline.tables import Footprint, items, subsets

log = structlog.get_logger(__name__)

Raw = np.ndarray[Any, np.dtype[Any]]


def contains(outer: Request, inner: Request) -> bool:
    """Whether the image pairs and variables that `inner` asks for are all among those of `outer`.

    Areas are not looked at.
    """
    return (
        outer.pairs
        and outer.collection == inner.collection
        and set(inner.variables) <= set(outer.variables)
        and ("v" not in inner.variables or inner.recompute_speed == outer.recompute_speed)
        and _within(outer.interval, inner.interval)
        and (outer.dt_days is None or _within(outer.dt_days, inner.dt_days or (None, None)))
        and _within((None, outer.max_error), (None, inner.max_error))
        and _within((outer.min_valid, None), (inner.min_valid, None))
        # a name stands for all that begin with it, as S2 for S2A and S2B
        and (not outer.satellites or bool(inner.satellites))
        and (not outer.satellites or all(n.startswith(outer.satellites) for n in inner.satellites))
    )


def _within(outer: tuple[Any, Any], inner: tuple[Any, Any]) -> bool:
    """Whether an interval, with None where it is open, lies in another."""
    return (outer[0] is None or (inner[0] is not None and inner[0] >= outer[0])) and (
        outer[1] is None or (inner[1] is not None and inner[1] <= outer[1])
    )


@dataclass(frozen=True)
class Container:
    """A subset that a request lies in: what answers it is in its folder."""

    id: str
    generation: str
    folder: Place
    plan: Plan
    """By which it was made."""
    cubes: Sequence[OpenCube]
    """As they were read for it."""

    def offset(self, inner: Plan) -> tuple[int, int]:
        """Rows and columns from the subset's first pixel to that of a plan on its lattice."""
        mine, other = self.plan.geobox.affine, inner.geobox.affine
        return round((other.f - mine.f) / mine.e), round((other.c - mine.c) / mine.a)

    def is_whole(self) -> bool:
        """Whether it stays, and its store has the layers that its plan says."""
        if not (self.folder / RECORD).exists():
            return False
        stored = np.asarray(store.opened(self.folder / store.PAIRS, "granule")[...])
        # strings of variable length in Zarr v3, of a fixed one in v2
        return bool(
            stored.tolist() == [name.decode() for name in self.plan.layers.granule.tolist()]
        )

    def holds(self, inner: Plan) -> bool:
        """Whether its store is what its plan says, and has each pixel of `inner` of the same cube.

        Where cubes overlap, only if what goes before the other, which depends on the area, is the
        same. Not where one is resampled.
        """
        resampled = set(self.plan.resampled) | set(inner.resampled)
        if not resampled.isdisjoint(cube.id for cube in inner.cubes):
            return False
        if not self.is_whole():
            return False
        down, right = self.offset(inner)
        height, width = inner.geobox.shape
        high, wide = self.plan.geobox.shape
        if min(down, right) < 0 or down + height > high or right + width > wide:
            return False
        window = self.plan.source_cube[down : down + height, right : right + width]
        mine, others = (
            np.array([*(cube.id for cube in plan.cubes), ""]) for plan in (self.plan, inner)
        )
        if not np.array_equal(mine[window], others[inner.source_cube]):
            return False
        alone = all(inner.alone(n) for n in range(len(inner.cubes)))
        return alone or self._merges_as(inner)

    def _merges_as(self, inner: Plan) -> bool:
        """Whether, where cubes overlap, `inner` would take each value from the same one.

        They go in the same order, none is left out, and whichever of them have a pair that both
        want in the subset have it in `inner`.
        """
        ids = [cube.id for cube in inner.cubes]
        down, right = self.offset(inner)
        rows, columns = (
            slice(first, first + size)
            for first, size in zip((down, right), inner.geobox.shape, strict=True)
        )
        here = [
            n
            for n, place in enumerate(self.plan.placements)
            if _meet(place.rows, rows) and _meet(place.columns, columns)
        ]
        if [self.plan.cubes[n].id for n in here] != ids:
            return False
        layer_of = np.full(len(inner.layers), -1)
        pairs = [(self.plan.layers.of_pair[n], inner.layers.of_pair[k]) for k, n in enumerate(here)]
        for there, mine in pairs:
            layer_of[mine[mine >= 0]] = there[mine >= 0]
        used = np.zeros(len(self.plan.layers), bool)
        used[layer_of] = True
        return all(
            np.array_equal(layer_of[mine[mine >= 0]], there[mine >= 0])
            and not used[there[(mine < 0) & (there >= 0)]].any()
            for there, mine in pairs
        )


def find_container(
    engine: Engine, settings: Settings, request: Request
) -> tuple[Plan, Container] | None:
    """A fresh subset that a request lies in, and the plan of the request; None without any.

    Fresh is what is not known to be stale: no cube that it was made from has changed since, by
    what the catalog knows. Of several, the one used last.

    Raises
    ------
    NoCoverageError, TooLargeError
        As :func:`firnline.cache.planning.make_plan`.
    """
    crs = choose_crs(request, find_cubes(engine, request))
    chosen = by_coverage(request, crs, find_cubes(engine, request, window=crs))
    if any(cube.crs != crs for cube in chosen):
        return None  # resampled for each area anew
    for row, area in _candidates(engine, request, crs):
        sources = {source["id"]: source for source in json.loads(row.sources)}
        if any(sources.get(cube.id, {}).get("href") != cube.href for cube in chosen):
            continue
        if not area.covers(_asked(request, crs, chosen)):
            continue
        try:
            found = _plans(request, crs, chosen, row, settings)
        except StoreUnreachableError:
            raise
        except (StoreError, SourceCorruptError, SourceNotAllowedError) as error:
            log.info("a subset can't answer for another", subset=row.id, reason=str(error))
            continue
        if found is not None:
            return found
    return None


def _candidates(engine: Engine, request: Request, crs: str) -> list[tuple[Any, BaseGeometry]]:
    """Fresh subsets whose filters let all through that is wanted, and the area of each."""
    asked = footprint(request.area, parse_crs(request.crs))
    meets = func.ST_Intersects(
        items.c.footprint, literal(shapely.to_wkb(asked), Footprint()), type_=Boolean()
    )
    with reading(engine) as connection:
        known = known_cubes(connection)
        rows = connection.execute(
            select(subsets, items.c.content)
            .join(items, (items.c.collection == SUBSETS) & (items.c.id == subsets.c.id))
            .where(meets, ~subsets.c.stale, subsets.c.id != request.subset_id)
            .order_by(subsets.c.last_used.desc(), subsets.c.id)
        ).all()
    found: list[tuple[Any, BaseGeometry]] = []
    for row in rows:
        properties = json.loads(row.content)["properties"]
        outer = Request.model_validate(json.loads(row.request))
        if (
            properties["proj:code"] == crs
            and contains(outer, request)
            and not has_changed(row, known)
        ):
            area = box(*properties["proj:bbox"]).buffer(1e-3, join_style="mitre")
            found.append((row, area))
    return found


def _asked(request: Request, crs: str, chosen: Sequence[CubeItem]) -> BaseGeometry:
    """The window that is stored, but for whole pixels: as far as the cubes reach."""
    whole = box(*shapely.total_bounds([cube.area for cube in chosen]))
    return box(*request.area_in(parse_crs(crs)).bounds).intersection(whole)


def _plans(
    request: Request,
    crs: str,
    chosen: Sequence[CubeItem],
    row: Any,
    settings: Settings,
) -> tuple[Plan, Container] | None:
    container = load_container(row, crs, settings)
    cubes = {cube.id: cube for cube in container.cubes}
    limits = {"memory_limit": settings.memory_limit, "max_bytes": settings.max_job_bytes}
    plan = make_plan(request, crs, [cubes[cube.id] for cube in chosen], **limits)
    return (plan, container) if container.holds(plan) else None


def load_container(row: Any, crs: str, settings: Settings) -> Container:
    """A subset (a row of the table, in this CRS), with the plan that it was made by.

    Raises
    ------
    StoreError, SourceCorruptError, SourceNotAllowedError
        It can't be told.
    """
    folder = generation_place(settings, row.id, row.generation)
    roots = {"allowed": settings.allowed_sources, "signed": settings.signed_sources}
    cubes = [
        _dated(
            load_cube(folder, source["id"], Source(source["href"], **roots), source["etag"]),
            source.get("read"),
        )
        for source in json.loads(row.sources)
    ]
    plan = make_plan(
        Request.model_validate(json.loads(row.request)),
        crs,
        cubes,
        memory_limit=settings.memory_limit,
        max_bytes=sys.maxsize,
    )
    return Container(row.id, row.generation, folder, plan, cubes)


def _dated(cube: OpenCube, date: str | None) -> OpenCube:
    return replace(cube, layout=replace(cube.layout, date=date))


class StoredTiles:
    """The tiles of a plan, read from the subset that contains it: stands in for a `Fetcher`.

    Use as a context manager.
    """

    bytes_left = 0  # to be downloaded

    def __init__(self, plan: Plan, container: Container) -> None:
        self.counts = Counts()
        self._plan, self._container = plan, container
        self._layers: dict[int, tuple[Raw, Raw]] = {}
        self.processors = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="stored")

    def __enter__(self) -> StoredTiles:
        return self

    def __exit__(self, *exc: object) -> None:
        self.processors.shutdown(wait=True, cancel_futures=True)

    def tiles(
        self, work: Iterable[tuple[Tile, str]], check: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Tile, str, Raw]]:
        """As :meth:`firnline.cache.fetch.Fetcher.tiles`.

        Raises
        ------
        SourceChangedError
            The subset was removed while it was read.
        """
        for tile, variable in work:
            check()
            array = self._plan.array(variable)
            target = np.full((self._plan.shape[0], *tile.shape), array.missing, array.dtype)
            for n, place in enumerate(self._plan.placements):
                rows, columns = _meet(tile.rows, place.rows), _meet(tile.columns, place.columns)
                if rows and columns:
                    try:
                        self._copy(target, n, variable, tile, rows, columns)
                    except (FileNotFoundError, StoreError):
                        self._check_that_it_stays()
                        raise
            self._check_that_it_stays()  # Zarr may have given missing values for what has gone
            yield tile, variable, target

    def _check_that_it_stays(self) -> None:
        # what goes first
        if not (self._container.folder / RECORD).exists():
            raise SourceChangedError(f"subset {self._container.id} was removed")

    def _copy(
        self, target: Raw, cube: int, variable: str, tile: Tile, rows: range, columns: range
    ) -> None:
        """Put what a cube gave to the subset into its place in a tile."""
        down, right = self._container.offset(self._plan)
        stored = store.opened(self._container.folder / store.PAIRS, variable)
        there, here = self._layers_of(cube)
        for first in range(0, stored.shape[0], SHARD_TIME):
            some = slice(*np.searchsorted(there, (first, first + SHARD_TIME)))
            if some.start == some.stop:
                continue
            block = stored[
                first : first + SHARD_TIME,
                down + rows.start : down + rows.stop,
                right + columns.start : right + columns.stop,
            ]
            target[
                here[some],
                rows.start - tile.rows.start : rows.stop - tile.rows.start,
                columns.start - tile.columns.start : columns.stop - tile.columns.start,
            ] = np.asarray(block)[there[some] - first]

    def _layers_of(self, cube: int) -> tuple[Raw, Raw]:
        """Layers of the subset that a cube has pairs in, ascending, and of the plan."""
        if cube not in self._layers:
            outer = self._container.plan
            ids = [each.id for each in outer.cubes]
            here = self._plan.layers.of_pair[cube]
            there = outer.layers.of_pair[ids.index(self._plan.cubes[cube].id)]
            wanted = np.flatnonzero(here >= 0)
            order = wanted[np.argsort(there[wanted])]
            self._layers[cube] = there[order], here[order]
        return self._layers[cube]


def _meet(one: slice, other: slice) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))
