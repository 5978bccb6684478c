"""What a subset's generation before had of the source's chunks, for the one that follows it.

Without a chunk cache a refresh would download every chunk of a cube that has grown. But the old
generation has the values of all that did not change, to the bit: its part of such a chunk is put
together from it, and used where the source says that the chunk has not changed since (304).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from functools import cached_property
from typing import Any

import numpy as np
import structlog
from numcodecs import blosc
from sqlalchemy import Engine, select

from firnline.cache import eviction, store
from firnline.cache.containment import Container, load_container
from firnline.cache.plan import SHARD_TIME, Plan
from firnline.cache.sources import OpenCube
from firnline.chunks import Kept, Turns
from firnline.cube import Array
from firnline.database import get_item, reading
from firnline.errors import SourceCorruptError, SourceNotAllowedError, StoreError
from firnline.items import SUBSETS
from firnline.settings import Settings
from firnline.tables import subsets

log = structlog.get_logger(__name__)

Raw = np.ndarray[Any, np.dtype[Any]]

_ROUNDING = timedelta(seconds=2)
"""Dates of HTTP are of whole seconds: what changed this soon before is asked for again."""


def find_former(engine: Engine, settings: Settings, plan: Plan) -> Container | None:
    """The generation that is there of a plan's subset, where it can be of use.

    Not one that is damaged, nor where no cube has changed: whoever has that made anew means the
    sources. And not with a chunk cache: what that has was asked for at other times than the subset
    was made.
    """
    id = plan.request.subset_id
    if settings.chunk_cache_quota or not plan.request.pairs:
        return None
    with reading(engine) as connection:
        row = connection.execute(select(subsets).where(subsets.c.id == id)).one_or_none()
        content = get_item(connection, SUBSETS, id)
    if row is None or content is None:
        return None
    now = {(cube.source.url, cube.layout.etag) for cube in plan.cubes}
    unchanged = now == {(each["href"], each["etag"]) for each in json.loads(row.sources)}
    if unchanged or json.loads(content)["properties"]["proj:code"] != plan.crs:
        return None
    try:
        found = load_container(row, plan.crs, settings)
        (checked,) = eviction.verify(engine, settings, [id])
        return found if found.is_whole() and not checked.damage else None
    except (StoreError, SourceCorruptError, SourceNotAllowedError, FileNotFoundError) as error:
        log.info("the generation before is of no use", subset=id, reason=str(error))
        return None


def dated(plan: Plan, before: Container | None, *, asked: bool) -> Plan:
    """A plan whose cubes say since when what is made of them is known to be what they have.

    Parameters
    ----------
    before
        What some of it is taken from: a cube that is the same since is not asked for anything.
    asked
        Whether all of the rest is asked for after the plan was made.
    """
    known = {} if before is None else {c.layout.etag: c.layout.date for c in before.cubes}

    def of(cube: OpenCube) -> OpenCube:
        date = known.get(cube.layout.etag, cube.layout.date) if asked else None
        return replace(cube, layout=replace(cube.layout, date=date))

    return replace(plan, cubes=tuple(map(of, plan.cubes)))


class Former:
    """A :class:`firnline.chunks.Keeper` of what the generation before of a subset was made of.

    It has a chunk where the chunk's cube alone has its pixels, now and then, and all pairs of it
    that are wanted were there by the same names.

    Parameters
    ----------
    plan
        What is made.
    before
        The generation that is there.
    """

    def __init__(self, plan: Plan, before: Container) -> None:
        self._plan, self._before = plan, before
        self._turns = Turns()

    def alone(self, key: str) -> AbstractContextManager[None]:
        """Wait until no other thread of this process is at the same key."""
        return self._turns.alone(key)

    def write(self, key: str, kept: Kept) -> None:
        """Keep nothing."""

    def read(self, key: str) -> Kept | None:
        """What the old generation has of a chunk."""
        for cube, old in self._cubes.items():
            url = self._plan.cubes[cube].source.url
            name, _, rest = key.removeprefix(f"{url}/").partition("/")
            if key.startswith(f"{url}/") and name in self._plan.request.variables:
                return self._chunk(cube, old, name, rest)
        return None

    @cached_property
    def _cubes(self) -> Mapping[int, int]:
        """Those cubes that alone have their pixels now and had them then: places in both plans."""
        then = {(cube.id, cube.source.url): n for n, cube in enumerate(self._before.plan.cubes)}
        places = {
            n: then[cube.id, cube.source.url]
            for n, cube in enumerate(self._plan.cubes)
            if (cube.id, cube.source.url) in then and self._plan.alone(n)
        }
        return {n: old for n, old in places.items() if self._before.plan.alone(old)}

    def _chunk(self, cube: int, old: int, name: str, rest: str) -> Kept | None:
        now, then = self._plan.cubes[cube].layout, self._before.plan.cubes[old].layout
        array, before = now.variable(name), then.arrays.get(name)
        numbers = rest.split(array.separator)
        if (
            before is None
            or not _alike(array, before)
            or self._plan.array(name).dtype != array.dtype  # speeds may be recomputed
            or len(numbers) != 3
            or not all(number.isdecimal() for number in numbers)
        ):
            return None
        same = now.etag is not None and now.etag == then.etag
        time, *at = map(int, numbers)
        layers = self._layers(cube, old, time, array.chunks[0])
        if layers is None or not (same or then.date):
            return None
        since = None
        if then.date:
            since = format_datetime(parsedate_to_datetime(then.date) - _ROUNDING, usegmt=True)
        values = self._values(cube, name, array, at, *layers)
        data = blosc.compress(values, b"lz4", 1, blosc.SHUFFLE)
        return Kept(data, None, now.etag if same else None, since)

    def _layers(self, cube: int, old: int, time: int, size: int) -> tuple[Raw, Raw] | None:
        """The wanted pairs of a time chunk, and their layers in the old generation."""
        now, then = self._plan.cubes[cube], self._before.plan.cubes[old]
        inside, _ = self._plan.moves(cube, time, size)
        pairs = inside + time * size
        if pairs.size and pairs[-1] >= then.pairs:
            return None
        named = np.array_equal(now.granule[pairs], then.granule[pairs])
        dated = np.array_equal(now.mid_date[pairs], then.mid_date[pairs])
        layers = self._before.plan.layers.of_pair[old][pairs]
        return (inside, layers) if named and dated and (layers >= 0).all() else None

    def _values(
        self, cube: int, name: str, array: Array, at: list[int], pairs: Raw, layers: Raw
    ) -> Raw:
        """A chunk ``(pair, y, x)``, missing but for what the plan needs of it."""
        values = np.full(array.chunks, array.missing, array.dtype)
        place, offset = self._plan.placements[cube], self._before.offset(self._plan)
        there, here = [], []
        for n, size, corner, side, off in zip(
            at, array.chunks[1:], place.corner, (place.rows, place.columns), offset, strict=True
        ):
            start = corner + n * size
            low, high = max(side.start, start), min(side.stop, start + size)
            there.append(slice(off + low, off + high))
            here.append(slice(low - start, high - start))
        stored = store.opened(self._before.folder / store.PAIRS, name)
        order = np.argsort(layers)
        pairs, layers = pairs[order], layers[order]
        for first in range(0, stored.shape[0], SHARD_TIME):
            some = slice(*np.searchsorted(layers, (first, first + SHARD_TIME)))
            if some.start < some.stop:
                block = np.asarray(stored[(slice(first, first + SHARD_TIME), *there)])
                values[pairs[some], here[0], here[1]] = block[layers[some] - first]
        return values


def _alike(array: Array, before: Array) -> bool:
    """Whether a variable's chunks are the same ones, of a kind that can be encoded again."""
    return (
        array.shards is None
        and not (array.checked or array.prefix)
        and (array.compressor or {}).get("id") == "blosc"
        and (array.dtype, array.chunks, array.separator, array.missing, array.compressor)
        == (before.dtype, before.chunks, before.separator, before.missing, before.compressor)
    )
