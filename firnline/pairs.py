"""The index of image pairs: what SQL knows of the pairs of each cube, without the network.

A cube has up to 80,000 pairs, the catalog 248 million: a row a pair would take some 40 GB. Here a
row is a block of :data:`BLOCK` pairs of one cube, its columns compressed arrays, sorted by mid-date
and then granule, so that a period touches few blocks. Beside the blobs stand the block's extremes,
by which whole blocks are left out, or counted without being decoded. Sizes and times are in
docs/decisions/0015-pairs-index.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
from numcodecs import Blosc, Zstd
from sqlalchemy import Connection, Select, func, insert, select

from firnline.errors import SourceCorruptError
from firnline.tables import cube_pairs
from firnline.tables import cubes as read

Raw = np.ndarray[Any, np.dtype[Any]]

BLOCK = 8192
"""Pairs in a block."""
_NUMBERS = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
_NAMES = Zstd(level=6)
_UNKNOWN = 65_535  # of the valid percentage, which is kept in hundredths
_BATCH = 500  # cubes in one statement


@dataclass(frozen=True)
class PairColumns:
    """Image pairs of one cube, one entry a pair in every column.

    ``position`` (int32) is the pair's place in the cube, from 0; ``mid_date`` is
    ``datetime64[us]``; ``dt_days`` float32, NaN where unknown; ``satellite_1`` and ``satellite_2``
    are mission and number as in the cubes (``L8``, ``S2A``); ``valid`` is the share of the cube's
    ground with data, float32 per cent, NaN where unknown, in steps of 0.01; ``granule`` the
    basename (bytes) that identifies the pair, None where it was not asked for.
    """

    position: Raw
    mid_date: Raw
    dt_days: Raw
    satellite_1: Raw
    satellite_2: Raw
    valid: Raw
    granule: Raw | None

    def __len__(self) -> int:
        return len(self.position)

    def take(self, chosen: Raw | slice) -> PairColumns:
        """Some of the pairs, by a mask, indices or a slice."""
        return PairColumns(
            *(
                None if column is None else column[chosen]
                for column in (getattr(self, name) for name in self.__dataclass_fields__)
            )  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class PairFilter:
    """Which pairs are wanted: the filters of a request, with the same meaning.

    ``start`` and ``end`` bound the mid-date, both included. ``satellites`` are prefixes (``S2``
    stands for S2A and S2B) that both images have to fit; empty is all. ``dt_days`` is [least, most]
    days between the images, both included; ``min_valid`` per cent as in :func:`enough`.
    """

    start: datetime | None = None
    end: datetime | None = None
    satellites: tuple[str, ...] = ()
    dt_days: tuple[float, float] | None = None
    min_valid: float | None = None

    def mask(self, pairs: PairColumns) -> Raw:
        """Boolean ``(pair,)``."""
        wanted = self._in_time(pairs.mid_date)
        if self.dt_days is not None:
            wanted &= (pairs.dt_days >= self.dt_days[0]) & (pairs.dt_days <= self.dt_days[1])
        if self.satellites:
            for names in (pairs.satellite_1, pairs.satellite_2):
                fits = [np.char.startswith(names.astype("U"), s) for s in self.satellites]
                wanted &= np.logical_or.reduce(fits)
        if self.min_valid is not None:
            wanted &= enough(pairs.valid, self.min_valid)
        return wanted

    def _in_time(self, mid_date: Raw) -> Raw:
        wanted = ~np.isnat(mid_date)
        if self.start is not None:
            wanted &= mid_date >= _instant(self.start)
        if self.end is not None:
            wanted &= mid_date <= _instant(self.end)
        return wanted

    def codes(self, legend: Sequence[Sequence[str]]) -> Raw:
        """Which codes of a block's legend are wanted, boolean ``(code,)``."""
        return np.array(
            [not self.satellites or all(n.startswith(self.satellites) for n in p) for p in legend],
            bool,
        )

    def restrict(self, statement: Select[Any]) -> Select[Any]:
        """Leave out the blocks that can't hold a wanted pair."""
        if self.start is not None:
            statement = statement.where(cube_pairs.c.last >= self.start)
        if self.end is not None:
            statement = statement.where(cube_pairs.c.first <= self.end)
        if self.dt_days is not None:
            least, most = self.dt_days
            # the column holds float32 as they are; the bounds are compared as float32 in `mask`
            statement = statement.where(
                cube_pairs.c.most_dt >= float(np.float32(least)),
                cube_pairs.c.least_dt <= float(np.float32(most)),
            )
        return statement


EVERY_PAIR = PairFilter()


def enough(valid: Raw, least: float) -> Raw:
    """Which valid percentages (float32, NaN for unknown) are at least so many, both to 0.01.

    The index has them in such steps: it and a cube's own numbers let the same pairs through.
    """
    return np.asarray(np.rint(valid.astype("f4") * 100.0) >= np.rint(least * 100.0))


def _instant(moment: datetime) -> np.datetime64:
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def write_pairs(connection: Connection, cube: str, pairs: PairColumns) -> int:
    """Replace a cube's pairs in the index; returns the bytes of their columns.

    The cube's row in ``cubes`` has to be there. A pair without a mid-date is left out: no period
    can ask for it.

    Raises
    ------
    SourceCorruptError
        More than 256 combinations of satellites, or a granule's name of several lines.
    """
    return put_blocks(connection, cube, encode_blocks(pairs))


def encode_blocks(pairs: PairColumns) -> list[dict[str, Any]]:
    """The rows of :func:`write_pairs`: what takes time, and needs no database."""
    assert pairs.granule is not None
    known = pairs.take(~np.isnat(pairs.mid_date))
    assert known.granule is not None
    ordered = known.take(np.lexsort((known.granule, known.mid_date)))
    return [
        _encoded(number, ordered.take(slice(first, first + BLOCK)))
        for number, first in enumerate(range(0, len(ordered), BLOCK))
    ]


def put_blocks(connection: Connection, cube: str, blocks: Sequence[Mapping[str, Any]]) -> int:
    """Replace a cube's blocks; returns the bytes of their columns."""
    connection.execute(cube_pairs.delete().where(cube_pairs.c.cube == cube))
    if blocks:
        connection.execute(insert(cube_pairs), [{"cube": cube, **block} for block in blocks])
    return sum(len(v) for block in blocks for v in block.values() if isinstance(v, bytes))


def count_pairs(
    connection: Connection, cubes: Sequence[str], where: PairFilter = EVERY_PAIR
) -> dict[str, int]:
    """How many wanted pairs each indexed cube has; a cube that is not indexed is not in the answer.

    A pair that lies in several cubes counts in each of them.
    """
    counts: dict[str, int] = {}
    for first in range(0, len(cubes), _BATCH):
        counts |= dict.fromkeys(indexed(connection, cubes[first : first + _BATCH]), 0)
    for first in range(0, len(cubes), _BATCH):
        chosen = select(
            cube_pairs.c.cube, cube_pairs.c.block, cube_pairs.c.count, cube_pairs.c.first,
            cube_pairs.c.last, cube_pairs.c.satellites,
        ).where(cube_pairs.c.cube.in_(cubes[first : first + _BATCH]))  # fmt: skip
        for cube, block, count, *extremes in connection.execute(where.restrict(chosen)).all():
            counts[cube] += _count(connection, where, (cube, block, count), extremes)
    return counts


def _count(
    connection: Connection, where: PairFilter, key: tuple[str, int, int], extremes: Sequence[Any]
) -> int:
    """Wanted pairs of one block, decoding no more columns than it takes."""
    cube, block, count = key
    first, last, legend = extremes
    codes = where.codes(json.loads(legend))
    if not codes.any():
        return 0
    needed = []
    if (where.start or first) > first or (where.end or last) < last:
        needed.append(cube_pairs.c.mid_date)
    if not codes.all():
        needed.append(cube_pairs.c.code)
    if where.dt_days is not None:
        needed.append(cube_pairs.c.dt)
    if where.min_valid is not None:
        needed.append(cube_pairs.c.valid)
    if not needed:
        return count
    chosen = select(*needed).where(cube_pairs.c.cube == cube, cube_pairs.c.block == block)
    row = connection.execute(chosen).mappings().one()
    wanted = np.ones(count, bool)
    if "mid_date" in row:
        wanted &= where._in_time(_mid_dates(first, row["mid_date"], count))
    if "code" in row:
        wanted &= codes[_unpacked(row["code"], count)]
    if "dt" in row and where.dt_days is not None:
        dt = _unpacked(row["dt"], count).view("f4")
        wanted &= (dt >= where.dt_days[0]) & (dt <= where.dt_days[1])
    if "valid" in row and where.min_valid is not None:
        wanted &= enough(_valid(row["valid"], count), where.min_valid)
    return int(wanted.sum())


def indexed(connection: Connection, cubes: Sequence[str]) -> dict[str, int]:
    """Those of the cubes whose pairs are in the index, with their number."""
    chosen = select(read.c.id, read.c.pairs).where(read.c.id.in_(cubes))
    return {row.id: row.pairs for row in connection.execute(chosen)}


@dataclass(frozen=True)
class Block:
    """The wanted pairs of one block; ``rank`` is each one's place in the cube's sorted pairs."""

    rank: Raw
    pairs: PairColumns


def read_pairs(
    connection: Connection,
    cube: str,
    where: PairFilter = EVERY_PAIR,
    *,
    after: int = -1,
    granules: bool = True,
) -> Iterator[Block]:
    """The wanted pairs of a cube by mid-date, a block at a time; blocks without any are left out.

    Parameters
    ----------
    after
        Only pairs whose rank is greater: where an earlier reading ended.
    granules
        Whether their names are wanted too, which are most of the bytes.
    """
    columns = [c for c in cube_pairs.c if granules or c.name != "granule"]
    chosen = where.restrict(
        select(cube_pairs.c.block).where(
            cube_pairs.c.cube == cube, cube_pairs.c.block >= (after + 1) // BLOCK
        )
    ).order_by(cube_pairs.c.block)
    # their numbers first: not all blobs of a cube need be in memory at once
    for number in connection.scalars(chosen).all():
        row = (
            connection.execute(
                select(*columns).where(cube_pairs.c.cube == cube, cube_pairs.c.block == number)
            )
            .mappings()
            .one()
        )
        legend = json.loads(row["satellites"])
        if not where.codes(legend).any():
            continue
        pairs = _decoded(row, legend)
        rank = number * BLOCK + np.arange(len(pairs))
        wanted = where.mask(pairs) & (rank > after)
        if not wanted.any():
            continue
        pairs = pairs.take(wanted)
        if granules:
            names = _unpacked_names(row["granule"])
            pairs = replace(pairs, granule=names[wanted])
        yield Block(rank[wanted], pairs)


@dataclass(frozen=True)
class IndexSize:
    """What the index takes."""

    cubes: int
    pairs: int
    columns: Mapping[str, int]

    @cached_property
    def bytes(self) -> int:
        """Of all columns."""
        return sum(self.columns.values())


def index_size(connection: Connection) -> IndexSize:
    """Bytes of each column over all cubes."""
    blobs = ("mid_date", "code", "dt", "position", "valid", "granule")
    sums = [func.coalesce(func.sum(func.length(cube_pairs.c[name])), 0) for name in blobs]
    counts = [
        func.count(func.distinct(cube_pairs.c.cube)),
        func.coalesce(func.sum(cube_pairs.c.count), 0),
    ]
    cubes, pairs, *sizes = connection.execute(select(*counts, *sums)).one()
    return IndexSize(int(cubes), int(pairs), dict(zip(blobs, map(int, sizes), strict=True)))


def _encoded(number: int, pairs: PairColumns) -> dict[str, Any]:
    assert pairs.granule is not None
    microseconds = pairs.mid_date.astype("M8[us]").astype("i8")
    names = np.stack([pairs.satellite_1.astype("U"), pairs.satellite_2.astype("U")], axis=1)
    legend, code = np.unique(names, axis=0, return_inverse=True)
    if len(legend) > 256:
        raise SourceCorruptError(f"{len(legend)} combinations of satellites are not plausible")
    dt = pairs.dt_days.astype("f4")
    known = dt[np.isfinite(dt)]
    percent = np.rint(np.clip(np.nan_to_num(pairs.valid, nan=-1.0), -1.0, 600.0) * 100.0)
    percent[percent < 0] = _UNKNOWN
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    first, last = (epoch + np.timedelta64(int(microseconds[at]), "us").item() for at in (0, -1))
    return {
        "block": number,
        "count": len(pairs),
        "first": first,
        "last": last,
        # no known interval: no bounds can meet it
        "least_dt": float(known.min()) if len(known) else math.inf,
        "most_dt": float(known.max()) if len(known) else -math.inf,
        "satellites": json.dumps(legend.tolist()),
        "mid_date": _packed(np.diff(microseconds, prepend=microseconds[0])),
        "code": _packed(code.reshape(-1)),
        "dt": _packed(dt.view("u4"), narrow=False),
        "position": _packed(pairs.position),
        "valid": _packed(percent),
        "granule": _packed_names(pairs.granule),
    }


def _decoded(row: Mapping[Any, Any], legend: Sequence[Sequence[str]]) -> PairColumns:
    """All columns but the granules' names."""
    count = row["count"]
    names = np.array(legend, "U")[_unpacked(row["code"], count)]
    return PairColumns(
        position=_unpacked(row["position"], count).astype("i4"),
        mid_date=_mid_dates(row["first"], row["mid_date"], count),
        dt_days=_unpacked(row["dt"], count).view("f4"),
        satellite_1=names[:, 0],
        satellite_2=names[:, 1],
        valid=_valid(row["valid"], count),
        granule=None,
    )


def _valid(blob: bytes, count: int) -> Raw:
    percent = _unpacked(blob, count)
    return np.where(percent == _UNKNOWN, np.nan, percent / 100.0).astype("f4")


def _mid_dates(first: datetime, steps: bytes, count: int) -> Raw:
    return _instant(first) + np.cumsum(_unpacked(steps, count).astype("i8")).astype("m8[us]")


def _packed(values: Raw, *, narrow: bool = True) -> bytes:
    """Whole numbers, none negative, in the narrowest type that holds them, compressed."""
    dtype = np.min_scalar_type(int(values.max())) if narrow else values.dtype
    return bytes(_NUMBERS.encode(np.ascontiguousarray(values.astype(dtype.newbyteorder("<")))))


def _unpacked(blob: bytes, count: int) -> Raw:
    data = _NUMBERS.decode(blob)
    return np.frombuffer(data, f"<u{len(data) // count}")


def _packed_names(names: Raw) -> bytes:
    text = b"\n".join(names.tolist())
    if text.count(b"\n") != len(names) - 1:
        raise SourceCorruptError("the name of a granule holds a line's end")
    return bytes(_NAMES.encode(text))


def _unpacked_names(blob: bytes) -> Raw:
    return np.array(bytes(_NAMES.decode(blob)).split(b"\n"))
