"""The plan: which chunks of which cubes make which tiles of one store. Pure.

A plan, which :mod:`firnline.cache.planning` makes, has the target grid, the layers in time, and
tiles that are multiples of the store's chunks. A tile names exactly the source chunks that it
needs: none without a wanted image pair, none outside the area; of a cube that is resampled, those
that the tile's pixels lie in, and for bilinear weights their neighbours.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from odc.geo.geobox import GeoBox

from firnline.cache.expected import expected_bytes, expected_requests
from firnline.cache.lattice import Placement, bounds_of, cut, overlap
from firnline.cache.request import Request
from firnline.cache.sources import OpenCube
from firnline.cache.stitch import Layers
from firnline.cache.target import OnGrid
from firnline.cache.vectors import Resampling, plan_resampling
from firnline.cube import Array

Raw = np.ndarray[Any, np.dtype[Any]]
Window = tuple[slice, slice]
"""Rows and columns."""

# Layout of the store, measured in docs/decisions/0005-store-layout.md.
CHUNK_TIME, SHARD_TIME, CHUNK_SIDE = 256, 2048, 20

_TOGETHER = 16  # chunks of one shard that are asked for as one, at most

SPEEDS = ("v", "vx", "vy")
"""Of a cube that is resampled, made together from vx and vy."""
_OF_THEIR_AXES = ("M11", "M12")
"""From velocity along a grid's axes to radar range, pair by pair scaled: can't be turned."""
_FLAGS = ("interp_mask", "chip_size_height", "chip_size_width")  # nothing lies between two


@dataclass(frozen=True)
class Tile:
    """A part of the target that is fetched, stitched and written at one go; half-open ranges."""

    index: int
    rows: slice
    columns: slice

    @property
    def shape(self) -> tuple[int, int]:
        """(y, x) in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@dataclass(frozen=True)
class Chunk:
    """One source chunk of one variable, and where it meets a tile: (in the tile, in the chunk).

    Of a cube that is resampled, where it meets the window of that cube which the tile needs.
    """

    cube: int
    variable: str
    key: str
    index: tuple[int, int, int]
    rows: tuple[slice, slice]
    columns: tuple[slice, slice]


@dataclass(frozen=True)
class Part:
    """What one cube gives to one variable of a tile."""

    cube: int
    chunks: tuple[Chunk, ...]
    fills: bool = False
    """Cubes before it have some of its pixels: it gives what is missing there."""
    time: int | None = None
    """Resampled, it's one time chunk of the cube; None: chunks are moved as they are."""


@dataclass(frozen=True)
class Plan(OnGrid):
    """All that is known before the first velocity chunk is fetched.

    ``source_cube`` is ``int16 (y, x)``, the position in ``cubes`` of the first cube that has a
    pixel, -1 where there is none. ``tile_shape`` is in pixels (y, x).
    """

    request: Request
    crs: str
    geobox: GeoBox
    cubes: tuple[OpenCube, ...]
    placements: tuple[Placement, ...]
    source_cube: Raw
    layers: Layers
    tile_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(mid_date, y, x) of the store."""
        return (len(self.layers), *self.geobox.shape)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """In row-major order."""
        (_, height, width), (high, wide) = self.shape, self.tile_shape
        corners = [(r, c) for r in range(0, height, high) for c in range(0, width, wide)]
        return tuple(
            Tile(n, slice(r, min(r + high, height)), slice(c, min(c + wide, width)))
            for n, (r, c) in enumerate(corners)
        )

    def lean(self) -> Plan:
        """Without what its cubes keep for each pair, which its layers have: for doing tiles."""
        cubes = (replace(cube, granule=cube.granule[:0].copy(), per_pair={}) for cube in self.cubes)
        layers = replace(self.layers, per_pair=dict(self.layers.per_pair))
        return replace(self, cubes=tuple(cubes), layers=layers)

    def alone(self, cube: int) -> bool:
        """Whether a cube's pixels are moved as they are, and no other cube has any of them."""
        mine = self.placements[cube]
        others = (p for n, p in enumerate(self.placements) if n != cube and not p.resampled)
        return not (mine.resampled or any(_meet(p, mine.rows, mine.columns) for p in others))

    def array(self, variable: str) -> Array:
        """The variable as it is stored: as the first cube has it, but for recomputed speeds."""
        array = self.cubes[0].layout.variable(variable)
        if variable == "v" and self.request.recompute_speed:
            return replace(array, dtype=np.dtype(np.int32))  # int16 is what it was too fast for
        return array

    def parts(self, tile: Tile, variable: str) -> Iterator[Part]:
        """What a tile has of each cube, in order of precedence: those resampled come last."""
        for n, lies in enumerate(self.placements):
            if lies.resampled:
                yield from self._resampled_parts(n, tile, variable)
                continue
            window = _shared(tile, lies)
            if window is None:
                continue
            rows, columns = window
            chunks = self._chunks(
                n, variable, None, rows, columns, tile.rows.start, tile.columns.start, lies.corner
            )
            yield Part(n, tuple(chunks), any(_meet(p, rows, columns) for p in self.placements[:n]))

    def chunks(self, tile: Tile, variable: str) -> Iterator[Chunk]:
        """The source chunks that hold something of a tile, cube after cube."""
        for part in self.parts(tile, variable):
            yield from part.chunks

    def groups(self, tile: Tile, variable: str) -> Iterator[list[Chunk]]:
        """The same, those of one shard together: what is asked for as one."""
        for part in self.parts(tile, variable):
            groups: dict[str, list[Chunk]] = {}
            for chunk in part.chunks:
                groups.setdefault(chunk.key.partition("#")[0], []).append(chunk)
            for group in groups.values():
                for first in range(0, len(group), _TOGETHER):
                    yield group[first : first + _TOGETHER]

    def _chunks(
        self,
        cube: int,
        variable: str,
        time: int | None,
        rows: slice,
        columns: slice,
        top: int,
        left: int,
        corner: tuple[int, int],
    ) -> Iterator[Chunk]:
        """Chunks that meet a window; `top` and `left` are what its slices are counted from."""
        array = self.cubes[cube].layout.variable(variable)
        for t in self.wanted_times(cube, array.chunks[0]) if time is None else (time,):
            for i, row in _meetings(rows, top, corner[0], array.chunks[1]):
                for j, column in _meetings(columns, left, corner[1], array.chunks[2]):
                    index = (t, i, j)
                    yield Chunk(cube, variable, array.key(index), index, row, column)

    def _resampled_parts(self, cube: int, tile: Tile, variable: str) -> Iterator[Part]:
        meeting = self.meeting(tile, cube, variable)
        if meeting is None or variable in _OF_THEIR_AXES:
            return
        _, (rows, columns) = meeting
        names = self.read_for(variable)
        size = self.cubes[cube].layout.variable("vx" if variable in SPEEDS else variable).chunks[0]
        for time in self.wanted_times(cube, size):
            chunks = [
                chunk
                for name in names
                for chunk in self._chunks(
                    cube, name, time, rows, columns, rows.start, columns.start, (0, 0)
                )
            ]
            yield Part(cube, tuple(chunks), fills=True, time=time)

    def read_for(self, variable: str) -> tuple[str, ...]:
        """What is read of a cube that is resampled: both components for the first of the speeds.

        The others are made of what that left.
        """
        if variable not in SPEEDS:
            return (variable,)
        first = next(name for name in self.request.variables if name in SPEEDS)
        return ("vx", "vy") if variable == first else ()

    def meeting(self, tile: Tile, cube: int, variable: str) -> tuple[Window, Window] | None:
        """Rows and columns of the store, and of a cube that is resampled to them; None for none."""
        key = tile.index, cube, self._method(variable)
        if key not in self._met:
            found = self.resampling(tile, cube, variable)
            self._met[key] = None if found is None else (found[0], found[1].window)
        return self._met[key]

    @cached_property
    def _met(self) -> dict[tuple[int, int, str], tuple[Window, Window] | None]:
        return {}

    def resampling(self, tile: Tile, cube: int, variable: str) -> tuple[Window, Resampling] | None:
        """How pixels of a tile are made of a cube's, and which: rows and columns of the store."""
        place = self.placements[cube]
        shared = _shared(tile, place)
        if shared is None:
            return None
        mine = self._lattice[self.source_cube[shared]] == place.lattice
        if not mine.any():
            return None
        inner = bounds_of(mine)
        rows, columns = (
            slice(side.start + part.start, side.start + part.stop)
            for side, part in zip(shared, inner, strict=True)
        )
        target = cut(self.geobox, rows, columns)
        made = plan_resampling(place.grid, target, self._method(variable), where=mine[inner])
        return ((rows, columns), made) if made.inside.any() else None

    def _method(self, variable: str) -> Literal["nearest", "bilinear"]:
        return "nearest" if variable in _FLAGS else self.request.resampling

    @cached_property
    def _lattice(self) -> Raw:
        """Lattice of each cube, and at the end, for no cube, -1."""
        return np.array([*(place.lattice for place in self.placements), -1])

    def wanted_times(self, cube: int, size: int) -> list[int]:
        """Chunks along time, of `size`, that hold a wanted pair."""
        if (cube, size) not in self._times:
            pairs = np.flatnonzero(self.layers.of_pair[cube] >= 0)
            self._times[cube, size] = [int(t) for t in np.unique(pairs // size)]
        return self._times[cube, size]

    @cached_property
    def _times(self) -> dict[tuple[int, int], list[int]]:
        return {}

    def moves(self, cube: int, time: int, size: int) -> tuple[Raw, Raw]:
        """Wanted pairs of a time chunk of `size`, and their layers, in the order of the pairs."""
        key = cube, time, size
        if key not in self._moves:
            layers = self.layers.of_pair[cube][time * size : (time + 1) * size]
            pairs = np.flatnonzero(layers >= 0)
            self._moves[key] = pairs, layers[pairs].astype(np.intp)
        return self._moves[key]

    @cached_property
    def _moves(self) -> dict[tuple[int, int, int], tuple[Raw, Raw]]:
        return {}

    @cached_property
    def uses(self) -> Mapping[tuple[int, str], int]:
        """How many tiles need each source chunk, by (cube, key)."""
        return self.uses_of(self.tiles)

    def uses_of(self, tiles: Iterable[Tile]) -> dict[tuple[int, str], int]:
        """How many of some tiles need each source chunk, by (cube, key)."""
        counted: dict[tuple[int, str], int] = {}
        for tile in tiles:
            for variable in self.request.variables:
                for chunk in self.chunks(tile, variable):
                    name = (chunk.cube, chunk.key)
                    counted[name] = counted.get(name, 0) + 1
        return counted

    @cached_property
    def fingerprint(self) -> str:
        """Changes whenever a tile written under another plan would not fit this one."""
        parts = [
            self.request.key,
            self.crs,
            list(self.geobox.affine)[:6],
            self.shape,
            self.tile_shape,
            [[cube.id, cube.source.url, cube.layout.etag] for cube in self.cubes],
            hashlib.sha256(self.source_cube.tobytes()).hexdigest(),
            hashlib.sha256(self.layers.granule.tobytes()).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @cached_property
    def attribution(self) -> str:
        """Whose data this is; synthetic cubes say so in their attributes."""
        for cube in self.cubes:
            if "SYNTHETIC" in str(cube.layout.attributes.get("title", "")):
                return "SYNTHETIC sample data, not a measurement"
        return "Data: NASA MEaSUREs ITS_LIVE, CC-BY-4.0"

    @property
    def resampled(self) -> dict[str, str]:
        """CRS of each cube that is not on the store's lattice, by id."""
        return {
            cube.id: cube.crs
            for cube, place in zip(self.cubes, self.placements, strict=True)
            if place.resampled
        }

    @property
    def output_bytes(self) -> int:
        """Size of the pairs' variables, uncompressed."""
        pixels = math.prod(self.shape)
        return sum(pixels * self.array(v).dtype.itemsize for v in self.request.variables)

    def summary(self) -> dict[str, Any]:
        """What the materialisation would take: for people and for ``--dry-run``."""
        indexed = [cube.read_at for cube in self.cubes if cube.read_at is not None]
        decoded = sum(
            math.prod(array.chunks) * array.dtype.itemsize
            for cube, key in self.uses
            for array in [self.cubes[cube].layout.variable(key.split("/", 1)[0])]
        )
        return {
            "crs": self.crs,
            "shape": dict(zip(("mid_date", "y", "x"), self.shape, strict=True)),
            "bounds": list(self.geobox.boundingbox.bbox),
            "cubes": [cube.id for cube in self.cubes],
            **({"resampled": self.resampled} if self.resampled else {}),
            "pairs": {
                "read": self.layers.read,
                "kept": self.layers.kept,
                "merged": self.layers.merged,
            },
            "variables": list(self.request.variables),
            "tiles": len(self.tiles),
            "source_chunks": len(self.uses),
            "source_bytes_decoded": decoded,
            "requests_expected": expected_requests(self),
            "bytes_expected": expected_bytes(self),
            "output_bytes_uncompressed": self.output_bytes,
            **({"index_of": min(indexed).isoformat()} if indexed else {}),
        }


def _shared(tile: Tile, place: Placement) -> tuple[slice, slice] | None:
    """Rows and columns that a tile and a cube's window share; None for nothing."""
    rows, columns = overlap(tile.rows, place.rows), overlap(tile.columns, place.columns)
    return None if rows is None or columns is None else (rows, columns)


def _meet(place: Placement, rows: slice, columns: slice) -> bool:
    return None not in (overlap(place.rows, rows), overlap(place.columns, columns))


def _meetings(
    window: slice, tile_start: int, origin: int, size: int
) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Chunks along one axis that meet a window: index, (slice in the tile, slice in the chunk)."""
    for index in range((window.start - origin) // size, (window.stop - 1 - origin) // size + 1):
        chunk_start = origin + index * size
        meeting = overlap(window, slice(chunk_start, chunk_start + size))
        if meeting is not None:
            yield (
                index,
                (
                    slice(meeting.start - tile_start, meeting.stop - tile_start),
                    slice(meeting.start - chunk_start, meeting.stop - chunk_start),
                ),
            )
