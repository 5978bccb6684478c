"""What comes of cubes on other lattices, put into the tiles of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from firnline.cache.plan import SPEEDS, Part, Plan, Tile
from firnline.cache.stitch import fill

Raw = np.ndarray[Any, np.dtype[Any]]

_LAYERS = 512  # at once on a processor: what it needs beside them is small


class Crossing:
    """Resamples windows of cubes into tiles, one part of a (tile, variable) after the other.

    The variables of a tile come in the order of the request: what the first of the speeds leaves
    is kept for the others, until the last of them has it.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._turned: dict[tuple[int, int | None], list[Raw]] = {}  # by cube and time chunk
        speeds = [name for name in plan.request.variables if name in SPEEDS]
        self._last = speeds[-1] if speeds else None

    def windows(self, tile: Tile, part: Part, variable: str) -> dict[str, Raw]:
        """Arrays ``(pair, y, x)`` for the part's chunks to be put into, by variable of the cube.

        They hold the wanted pairs of a time chunk over the cube's window; empty where nothing is
        read since an earlier variable has left what it takes.
        """
        meeting = self._plan.meeting(tile, part.cube, variable)
        assert meeting is not None
        assert part.time is not None
        layout = self._plan.cubes[part.cube].layout
        windows = {}
        for name in self._plan.read_for(variable):
            array = layout.variable(name)
            pairs, _ = self._plan.moves(part.cube, part.time, array.chunks[0])
            shape = (len(pairs), *(side.stop - side.start for side in meeting[1]))
            windows[name] = np.full(shape, array.missing, array.dtype)
        return windows

    def put(
        self,
        target: Raw,
        tile: Tile,
        variable: str,
        part: Part,
        windows: Mapping[str, Raw],
        processors: Executor,
    ) -> int:
        """Put a part into a tile ``(layer, y, x)``, where that has nothing yet.

        Returns
        -------
        int
            How many values were there already, and others.
        """
        plan = self._plan
        found = plan.resampling(tile, part.cube, variable)
        assert found is not None
        assert part.time is not None
        (rows, columns), resampling = found
        array = plan.cubes[part.cube].layout.variable("vx" if variable in SPEEDS else variable)
        _, layers = plan.moves(part.cube, part.time, array.chunks[0])
        height, width = resampling.inside.shape
        turned: list[Raw] = []
        if variable in SPEEDS:
            if windows:
                empty = [np.empty((len(layers), height, width), array.dtype) for _ in "xy"]
                self._turned[part.cube, part.time] = empty
            turned = self._turned[part.cube, part.time]
            if variable == self._last:
                del self._turned[part.cube, part.time]
        gone = plan.array(variable).missing
        top, left = rows.start - tile.rows.start, columns.start - tile.columns.start
        in_rows = slice(top, top + height), slice(0, height)
        in_columns = slice(left, left + width), slice(0, width)

        def some(which: slice) -> int:
            if variable not in SPEEDS:
                values = resampling.scalars(windows[variable][which], array.missing)
            else:
                if windows:
                    both = resampling.vectors(
                        windows["vx"][which], windows["vy"][which], array.missing
                    )
                    for kept, new in zip(turned, both, strict=True):
                        kept[which] = new
                parts = [kept[which] for kept in turned]
                if variable == "v":
                    values = _speed(parts, array.missing, target.dtype, gone)
                else:
                    values = parts[variable == "vy"]
            moves = np.arange(len(values)), layers[which]
            return fill(target, values, moves, in_rows, in_columns, gone)

        firsts = range(0, len(layers), _LAYERS)
        return sum(processors.map(some, (slice(n, n + _LAYERS) for n in firsts)))


def _speed(components: Sequence[Raw], missing: Any, dtype: np.dtype[Any], gone: Any) -> Raw:
    """Speed from both components, in a type that may be too narrow for it: then its largest."""
    there = np.logical_and.reduce([part != missing for part in components])
    speed = np.hypot(*(part.astype(np.float32) for part in components))
    speed = np.minimum(np.rint(speed, out=speed), np.iinfo(dtype).max)
    return np.where(there, speed, gone).astype(dtype)
