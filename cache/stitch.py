"""Stitching: the image pairs of several cubes merged into layers, their chunks put in place.

Pure, but that what is kept per pair is made when it's looked at, and may be waited for then
(:class:`~firnline.cache.columns.Columns`). An image pair usually lies in several neighbouring
cubes, each with its part of the scene: its identity is the basename of its granule, not its
mid-date, which is not unique. Cubes of one CRS lie on one lattice and mostly abut, so that merging
a pair moves no value and loses none; where two have a pixel, the first that has a value for the
pair gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from firnline.cache.columns import Columns

Raw = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class PairTable:
    """The image pairs of one cube and which of them are wanted.

    All arrays are ``(pair,)``; ``mid_date`` is ``datetime64[us]``, ``granule`` bytes and ``wanted``
    boolean.
    ``missing`` gives each variable's value for 'no data'.
    """

    mid_date: Raw
    granule: Raw
    per_pair: Mapping[str, Raw]
    missing: Mapping[str, Any]
    wanted: Raw


@dataclass(frozen=True)
class Layers:
    """The layers of the stitched store, sorted by mid-date, then granule.

    ``mid_date``, ``granule`` and each array of ``per_pair``, merged when it's first looked at, are
    ``(layer,)``. ``of_pair`` has for
    each cube the layer of each of its pairs, ``int32 (pair,)``, -1 where not wanted.
    """

    mid_date: Raw
    granule: Raw
    per_pair: Mapping[str, Raw]
    of_pair: tuple[Raw, ...]
    read: int
    kept: int

    def __len__(self) -> int:
        return len(self.mid_date)

    @property
    def merged(self) -> int:
        """Pairs that were folded into a layer of another cube's same pair."""
        return self.kept - len(self)


def merge_pairs(tables: Sequence[PairTable]) -> Layers:
    """Merge the wanted pairs of several cubes into layers, one for each granule.

    What a layer carries per pair is taken from the first table that has the pair, so the order of
    the tables is that of precedence. A granule that occurs twice in one cube makes two layers:
    nothing is dropped.
    """
    layer_of: dict[tuple[bytes | int, int], int] = {}
    origin: list[tuple[int, int]] = []
    of_pair = []
    for n, table in enumerate(tables):
        layers = np.full(len(table.mid_date), -1, np.int32)
        names: list[bytes] = table.granule.tolist()
        seen: dict[bytes, int] = {}
        for pair in np.flatnonzero(table.wanted).tolist():
            name = names[pair]
            nth = seen.get(name, 0)
            seen[name] = nth + 1
            # a pair without a name can't be recognised elsewhere: it stays a layer of its own
            identity: tuple[bytes | int, int] = (name, nth) if name else (n, pair)
            layer = layer_of.setdefault(identity, len(origin))
            if layer == len(origin):
                origin.append((n, pair))
            layers[pair] = layer
        of_pair.append(layers)
    which = np.array(origin, np.int64).reshape(-1, 2)
    mid_date = _gather([t.mid_date for t in tables], which, np.datetime64("NaT", "us"))
    granule = _gather([t.granule for t in tables], which, b"")
    order = np.lexsort((granule, mid_date))
    rank = np.empty(len(order) + 1, np.int32)
    rank[order] = np.arange(len(order))
    rank[-1] = -1  # so that -1, not wanted, stays -1
    variables = sorted({name for table in tables for name in table.per_pair})
    return Layers(
        mid_date=mid_date[order],
        granule=granule[order],
        per_pair=Columns(
            {name: partial(_column, name, tables, which[order]) for name in variables}
        ),
        of_pair=tuple(rank[layers] for layers in of_pair),
        read=sum(len(table.mid_date) for table in tables),
        kept=sum(int(table.wanted.sum()) for table in tables),
    )


def _column(name: str, tables: Sequence[PairTable], which: Raw) -> Raw:
    missing = next(table.missing[name] for table in tables if name in table.missing)
    return _gather([table.per_pair.get(name) for table in tables], which, missing)


def _gather(columns: Sequence[Raw | None], which: Raw, missing: Any) -> Raw:
    """Values of (table, row) pairs; a table without the column gives `missing`."""
    dtype = np.result_type(*[column.dtype for column in columns if column is not None])
    out = np.full(len(which), missing, dtype)
    for n, column in enumerate(columns):
        if column is not None:
            mine = which[:, 0] == n
            out[mine] = column[which[mine, 1]]
    return out


def scatter(
    target: Raw,
    values: Raw,
    moves: tuple[Raw, Raw],
    rows: tuple[slice, slice],
    columns: tuple[slice, slice],
) -> None:
    """Put one decoded source chunk in its place, in time and in space.

    Parameters
    ----------
    target
        ``(layer, y, x)`` of one tile, C-contiguous, changed in place.
    values
        ``(pair, y, x)`` of the source chunk, C-contiguous.
    moves
        Which pairs of the chunk go to which layers, both ``(n,)``.
    rows, columns
        Where the chunk and the tile meet: (in the tile, in the chunk).
    """
    pairs, layers = moves
    _lines(target, rows[0], columns[0])[layers] = _lines(values, rows[1], columns[1])[pairs]


def fill(
    target: Raw,
    values: Raw,
    moves: tuple[Raw, Raw],
    rows: tuple[slice, slice],
    columns: tuple[slice, slice],
    missing: Any,
) -> int:
    """As :func:`scatter`, but only where the target has nothing yet.

    Returns
    -------
    int
        How many values are there already, and others than those that came.
    """
    pairs, layers = moves
    here = target[:, rows[0], columns[0]]
    old, new = here[layers], values[pairs, rows[1], columns[1]]
    empty = old == missing
    here[layers] = np.where(empty, new, old)
    return int(np.count_nonzero(~empty & (new != missing) & (new != old)))


def _lines(whole: Raw, rows: slice, columns: slice) -> Raw:
    """A window of ``(time, y, x)`` as ``(time, y)`` of opaque items, each a line of pixels.

    Moving lines at a time is five times as fast as moving pixels: 0.44 ms instead of 2.3 ms for
    a chunk of (8000, 10, 10).
    """
    item = whole.itemsize
    return np.ndarray(
        (len(whole), rows.stop - rows.start),
        f"V{(columns.stop - columns.start) * item}",
        buffer=whole,
        offset=rows.start * whole.strides[1] + columns.start * item,
        strides=whole.strides[:2],
    )
