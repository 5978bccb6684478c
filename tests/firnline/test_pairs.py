"""The index of image pairs against plain numpy, on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, insert, select

from firnline.database import reading, writing
from firnline.errors import SourceCorruptError
from firnline.pairs import (
    BLOCK,
    EVERY_PAIR,
    PairColumns,
    PairFilter,
    count_pairs,
    index_size,
    indexed,
    read_pairs,
    write_pairs,
)
from firnline.tables import cube_pairs, cubes

SATELLITES = ["L8", "S1A", "S1B", "S2A", "S2B"]


def made(count: int, seed: int = 0) -> PairColumns:
    """Pairs in no order, some at the same instant, some with unknown interval or percentage."""
    rng = np.random.default_rng(seed)
    mid_date = np.datetime64("2014-01-01", "us") + rng.integers(0, 10**15 // 4, count).astype(
        "m8[us]"
    )
    mid_date[: count // 5] = mid_date[count // 5 : 2 * (count // 5)]
    dt = rng.choice([6.0, 12.0, 16.000046, 31.999954, 400.0], count).astype("f4")
    dt[::17] = np.nan
    valid = np.rint(rng.random(count) * 10_000).astype("f4") / np.float32(100)
    valid[::19] = np.nan
    one = rng.choice(SATELLITES, count)
    two = np.where(rng.random(count) < 0.3, np.roll(one, 1), one)
    names = [
        f"{a}_{'' if n % 3 else 'X_'}{n:06d}_P{n % 100:03d}.nc".encode() for n, a in enumerate(one)
    ]
    return PairColumns(np.arange(count, dtype="i4"), mid_date, dt, one, two, valid, np.array(names))


def store(connection: Connection, id: str, pairs: PairColumns) -> int:
    connection.execute(
        insert(cubes).values(
            id=id, url="https://example.org", etag=None, version=1, facts=b"{}",
            pairs=len(pairs), read_at=datetime.now(UTC), layout=b"",
        )
    )  # fmt: skip
    return write_pairs(connection, id, pairs)


FILTERS = [
    EVERY_PAIR,
    PairFilter(start=datetime(2016, 5, 1, tzinfo=UTC)),
    PairFilter(end=datetime(2016, 5, 1, tzinfo=UTC)),
    PairFilter(datetime(2015, 2, 3, 4, 5, 6, 7, tzinfo=UTC), datetime(2018, 3, 4, 5, tzinfo=UTC)),
    PairFilter(start=datetime(2040, 1, 1, tzinfo=UTC)),
    PairFilter(satellites=("S2",)),
    PairFilter(satellites=("S2B", "L")),
    PairFilter(satellites=("X",)),
    PairFilter(dt_days=(6.0, 16.0)),
    PairFilter(dt_days=(16.000046, 31.999954)),
    PairFilter(dt_days=(500.0, 600.0)),
    PairFilter(min_valid=33.33),
    PairFilter(start=datetime(2016, 5, 1, tzinfo=UTC), min_valid=100.0),
    PairFilter(
        datetime(2015, 1, 1, tzinfo=UTC), datetime(2017, 1, 1, tzinfo=UTC), ("S1",), (0.0, 300.0)
    ),
]


def brute_force(pairs: PairColumns, where: PairFilter) -> np.ndarray[Any, Any]:
    """Positions of the wanted pairs by mid-date and name, one pair after the other."""
    found = []
    for n in range(len(pairs)):
        when = pairs.mid_date[n].item().replace(tzinfo=UTC)
        if where.start is not None and when < where.start:
            continue
        if where.end is not None and when > where.end:
            continue
        if where.dt_days is not None:
            least, most = (np.float32(bound) for bound in where.dt_days)
            if not least <= pairs.dt_days[n] <= most:
                continue
        if where.min_valid is not None and not round(pairs.valid[n], 2) >= where.min_valid:
            continue
        if where.satellites and not all(
            any(str(name).startswith(prefix) for prefix in where.satellites)
            for name in (pairs.satellite_1[n], pairs.satellite_2[n])
        ):
            continue
        assert pairs.granule is not None
        found.append((when, bytes(pairs.granule[n]), n))
    return np.array([n for _, _, n in sorted(found)], int)


@pytest.mark.parametrize("count", [1, 3_000, 2 * BLOCK + 77])
def test_what_is_written_is_read_and_counted(database: Engine, count: int) -> None:
    pairs = made(count)
    assert pairs.granule is not None
    with writing(database) as connection:
        size = store(connection, "one", pairs)
        store(connection, "other", made(50, seed=1))
    with reading(database) as connection:
        assert indexed(connection, ["one", "none"]) == {"one": count}
        for where in FILTERS:
            order = brute_force(pairs, where)
            blocks = list(read_pairs(connection, "one", where))
            assert count_pairs(connection, ["one", "none"], where) == {"one": len(order)}
            if not len(order):
                assert blocks == []
                continue
            for name in ("position", "mid_date", "satellite_1", "satellite_2", "granule"):
                got = np.concatenate([getattr(block.pairs, name) for block in blocks])
                np.testing.assert_array_equal(got, getattr(pairs, name)[order], err_msg=name)
            got = np.concatenate([block.pairs.dt_days for block in blocks])
            np.testing.assert_array_equal(got.view("u4"), pairs.dt_days[order].view("u4"))
            got = np.concatenate([block.pairs.valid for block in blocks])
            np.testing.assert_allclose(got, pairs.valid[order], atol=1e-5)
            ranks = np.concatenate([block.rank for block in blocks])
            assert (np.diff(ranks) > 0).all()
            rest = [*read_pairs(connection, "one", where, after=int(ranks[0]), granules=False)]
            assert sum(len(block.pairs) for block in rest) == len(order) - 1
            assert all(block.pairs.granule is None for block in rest)
        whole = index_size(connection)
        assert (whole.cubes, whole.pairs) == (2, count + 50)
        assert whole.bytes > size > 0


def test_writing_again_replaces_and_a_pair_without_date_is_left_out(database: Engine) -> None:
    first, second = made(100), made(40, seed=2)
    second.mid_date[3] = np.datetime64("NaT")
    with writing(database) as connection:
        store(connection, "one", first)
        write_pairs(connection, "one", second)
    with reading(database) as connection:
        (block,) = read_pairs(connection, "one")
        assert sorted(block.pairs.position.tolist()) == [n for n in range(40) if n != 3]


def test_no_pairs_and_pairs_without_intervals(database: Engine) -> None:
    few = made(3)
    few.dt_days[:] = np.nan
    with writing(database) as connection:
        store(connection, "empty", made(3).take(slice(0, 0)))
        store(connection, "few", few)
    with reading(database) as connection:
        assert count_pairs(connection, ["empty", "few"]) == {"empty": 0, "few": 3}
        anything = PairFilter(dt_days=(0.0, 1e6))
        assert count_pairs(connection, ["empty", "few"], anything) == {"empty": 0, "few": 0}
        assert list(read_pairs(connection, "empty")) == []


def test_a_name_that_can_not_be_stored_is_refused(database: Engine) -> None:
    pairs = made(3)
    assert pairs.granule is not None
    pairs.granule[1] = b"a\nb"
    with writing(database) as connection, pytest.raises(SourceCorruptError, match="line's end"):
        store(connection, "one", pairs)


def test_removing_a_cube_removes_its_pairs(database: Engine) -> None:
    with writing(database) as connection:
        store(connection, "one", made(10))
        connection.execute(cubes.delete())
        assert connection.execute(select(cube_pairs.c.block)).all() == []
