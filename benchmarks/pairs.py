"""The index of image pairs: bytes a pair, time to build, time to count and to read.

10 million invented pairs, 125 cubes of 80,000 (the catalog has 248 million), whose names, dates
and intervals are made like the real ones: three missions, 40 years, half a cube's pairs also in
its neighbour. Reference, measured in the same run on fewer pairs: one row a pair.

    python benchmarks/pairs.py [--json] [--quick] [--postgres URL]

PostgreSQL is measured where FIRNLINE_TEST_POSTGRES or --postgres gives a database that may be
written to and emptied, or where its binaries are on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from _measure import postgresql
from sqlalchemy import Engine, insert, text

from firnline.database import connect, migrate, reading, writing
from firnline.pairs import (
    PairColumns,
    PairFilter,
    count_pairs,
    encode_blocks,
    index_size,
    put_blocks,
    read_pairs,
)
from firnline.tables import cubes

CATALOG_PAIRS = 3_100 * 80_000
FULL, QUICK = (125, 80_000), (5, 80_000)
REFERENCE_PAIRS = 100_000
PERIOD = PairFilter(datetime(2018, 1, 1, tzinfo=UTC), datetime(2019, 12, 31, tzinfo=UTC))
NARROW = PairFilter(PERIOD.start, PERIOD.end, ("S1", "L8"), (6.0, 60.0))


def made(count: int, seed: int) -> PairColumns:
    """A cube's pairs in no order."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, count, p=[0.45, 0.35, 0.2])
    dt = np.select(
        [kind == 0, kind == 1],
        [16 * rng.integers(1, 35, count), 5 * rng.integers(1, 100, count)],
        6 * rng.integers(1, 9, count),
    )
    start = np.select([kind == 0, kind == 1], [1985, 2016], 2014)
    span = (2025 - start) * 365.25
    # most pairs are recent, as in the real cubes
    day = np.datetime64("2025-01-01", "D").astype(int) - (span * rng.random(count) ** 2).astype(int)
    clock = np.select([kind == 0, kind == 1], [53_460, 55_150], 74_820)
    first = (day - dt) * 86_400 + clock + rng.integers(-400, 400, count)
    second = day * 86_400 + clock + rng.integers(-400, 400, count)
    a, b = (t.astype("M8[s]") for t in (first, second))
    texts = [np.datetime_as_string(t, "s") for t in (a, b)]
    stamps = [[s.replace("-", "").replace(":", "") for s in t.tolist()] for t in texts]
    draw = rng.integers(0, 65_536, (count, 4)).tolist()
    which = rng.integers(0, 4, (2, count))
    landsat = np.array(["L4", "L5", "L7", "L8"])
    one, two = (
        np.select(
            [kind == 0, kind == 1],
            [landsat[w], np.array(["S2A", "S2B"])[w % 2]],
            np.array(["S1A", "S1B"])[w % 2],
        )
        for w in (which[0], np.where(rng.random(count) < 0.6, which[0], which[1]))
    )
    percent = rng.integers(3, 96, count).tolist()
    names = []
    for k, s, t, d, w, v, p in zip(
        kind.tolist(), *stamps, draw, one.tolist(), two.tolist(), percent, strict=True
    ):
        if k == 0:
            scene = f"{8 + d[0] % 4:03d}{10 + d[1] % 4:03d}"
            # processed some days after it was taken
            e, f = (f"{int(x[:8]) + n % 12}" for x, n in ((s, d[2]), (t, d[3])))
            name = (
                f"L{'CET'[d[0] % 3]}0{w[1]}_L1TP_{scene}_{s[:8]}_{e}_02_T1_X_"
                f"L{'CET'[d[1] % 3]}0{v[1]}_L1TP_{scene}_{t[:8]}_{f}_02_T1"
            )
        elif k == 1:
            square = f"T22W{'EDCBA'[d[0] % 5]}{chr(65 + d[1] % 22)}"
            orbit = f"R{d[2] % 144:03d}"
            name = (
                f"{w}_MSIL1C_{s}_N0{200 + d[3] % 300}_{orbit}_{square}_{s[:9]}{d[0]:06d}_X_"
                f"{v}_MSIL1C_{t}_N0{200 + d[2] % 300}_{orbit}_{square}_{t[:9]}{d[1]:06d}"
            )
        else:
            name = (
                f"{w}_IW_SLC__1SDH_{s}_{s[:9]}{d[0]:06d}_{d[0] % 60000:06d}_{d[1]:06X}_{d[2]:04X}"
                f"_X_{v}_IW_SLC__1SDH_{t}_{t[:9]}{d[1]:06d}_"
                f"{d[1] % 60000:06d}_{d[2]:06X}_{d[3]:04X}"
            )
        names.append(f"{name}_G0120V02_P{p:03d}.nc".encode())
    label = np.array([int(s[2:8]) for s in stamps[0]])
    middle = (first + second) // 2 * 1_000_000 + label
    return PairColumns(
        position=np.arange(count, dtype="i4"),
        mid_date=middle.astype("M8[us]"),
        dt_days=((second - first) / 86_400).astype("f4"),
        satellite_1=one,
        satellite_2=two,
        valid=(100 * rng.beta(0.7, 6, count)).astype("f4"),
        granule=np.array(names),
    )


def timed(action: Callable[..., Any], *arguments: Any, rounds: int = 1) -> tuple[float, Any]:
    """Least seconds of some rounds, and the result."""
    least = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        result = action(*arguments)
        least = min(least, time.perf_counter() - start)
    return least, result


def measure(engine: Engine, size: tuple[int, int], on_disk: Callable[[], int]) -> dict[str, Any]:
    """Build the index cube by cube as a deep read does, then ask it."""
    migrate(engine)
    number, per_cube = size
    empty = on_disk()
    encoding = writing_ = 0.0
    ids = [f"ITS_LIVE_vel_EPSG3413_G0120_X{n}50000_Y-2250000" for n in range(number)]
    for n, id in enumerate(ids):
        pairs = made(per_cube, n)
        seconds, blocks = timed(encode_blocks, pairs)
        encoding += seconds

        def write(id: str = id, blocks: Any = blocks) -> None:
            with writing(engine) as connection:
                connection.execute(
                    insert(cubes).values(
                        id=id, url="", etag="", version=1, facts=b"{}", pairs=per_cube,
                        read_at=datetime.now(UTC), layout=b"",
                    )
                )  # fmt: skip
                put_blocks(connection, id, blocks)

        writing_ += timed(write)[0]
    total = number * per_cube
    with reading(engine) as connection:
        columns = index_size(connection).columns
        answers: dict[str, Any] = {}
        for name, where, chosen in (
            ("count_2_cubes_2_years", PERIOD, ids[:2]),
            ("count_2_cubes_filtered", NARROW, ids[:2]),
            ("count_all_2_years", PERIOD, ids),
            ("count_all_filtered", NARROW, ids),
        ):
            seconds, counts = timed(count_pairs, connection, chosen, where, rounds=3)
            answers[name] = {"ms": round(1e3 * seconds, 2), "pairs": sum(counts.values())}
        for name, names in (("read_1_cube_2_years", True), ("read_without_names", False)):
            seconds, blocks = timed(
                lambda names: list(read_pairs(connection, ids[0], PERIOD, granules=names)),
                names,
                rounds=3,
            )
            answers[name] = {
                "ms": round(1e3 * seconds, 2),
                "pairs": sum(len(block.pairs) for block in blocks),
            }
    stored = (on_disk() - empty) / total
    return {
        "pairs": total,
        "bytes_a_pair": {name: round(value / total, 3) for name, value in columns.items()},
        "columns_bytes_a_pair": round(sum(columns.values()) / total, 2),
        "stored_bytes_a_pair": round(stored, 2),
        "catalog_gb": round(stored * CATALOG_PAIRS / 1e9, 2),
        "encode_seconds": round(encoding, 2),
        "write_seconds": round(writing_, 2),
        "pairs_per_second": round(total / (encoding + writing_)),
        "catalog_minutes": round(CATALOG_PAIRS / total * (encoding + writing_) / 60, 1),
        **answers,
    }


def rows(engine: Engine, on_disk: Callable[[], int]) -> dict[str, Any]:
    """The reference: a row a pair, indexed by cube and mid-date."""
    pairs = made(REFERENCE_PAIRS, 0)
    assert pairs.granule is not None
    with writing(engine) as connection:
        connection.execute(
            text(
                "CREATE TABLE plain (cube INTEGER, position INTEGER, mid_date BIGINT, dt REAL, "
                "one TEXT, two TEXT, valid REAL, granule TEXT)"
            )
        )
    before = on_disk()
    values = [
        dict(zip(("cube", "p", "m", "dt", "a", "b", "v", "g"), row, strict=True))
        for row in zip(
            [1] * REFERENCE_PAIRS, pairs.position.tolist(), pairs.mid_date.astype("i8").tolist(),
            pairs.dt_days.tolist(), pairs.satellite_1.tolist(), pairs.satellite_2.tolist(),
            pairs.valid.tolist(), [name.decode() for name in pairs.granule.tolist()], strict=True,
        )
    ]  # fmt: skip

    def build() -> None:
        with writing(engine) as connection:
            connection.execute(
                text("INSERT INTO plain VALUES (:cube, :p, :m, :dt, :a, :b, :v, :g)"), values
            )
            connection.execute(text("CREATE INDEX plain_time ON plain (cube, mid_date)"))

    seconds, _ = timed(build)
    stored = (on_disk() - before) / REFERENCE_PAIRS
    with writing(engine) as connection:
        connection.execute(text("DROP TABLE plain"))
    return {
        "stored_bytes_a_pair": round(stored, 2),
        "catalog_gb": round(stored * CATALOG_PAIRS / 1e9, 2),
        "pairs_per_second": round(REFERENCE_PAIRS / seconds),
    }


def on_sqlite(size: tuple[int, int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "firnline.db"
        engine = connect(f"sqlite:///{path}")

        def on_disk() -> int:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            return path.stat().st_size if path.exists() else 0

        try:
            answer = measure(engine, size, on_disk)
            return answer | {"one_row_a_pair": rows(engine, on_disk)}
        finally:
            engine.dispose()


def on_postgresql(url: str, size: tuple[int, int]) -> dict[str, Any]:
    engine = connect(url)

    def on_disk() -> int:
        with engine.connect() as connection:
            found = connection.scalar(text("SELECT pg_database_size(current_database())"))
        return int(found or 0)

    try:
        answer = measure(engine, size, on_disk)
        return answer | {"one_row_a_pair": rows(engine, on_disk)}
    finally:
        engine.dispose()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="400,000 pairs in place of 10 million")
    parser.add_argument("--postgres", help="URL of a PostgreSQL server on which to make a database")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    result = {"sqlite": on_sqlite(size)}
    given = arguments.postgres or os.environ.get("FIRNLINE_TEST_POSTGRES")
    with postgresql(given) as url:
        if url is not None:
            result["postgresql"] = on_postgresql(url, size)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, found in result.items():
        print(f"{name}: {found['pairs']:,} pairs")
        for key, value in found.items():
            print(f"  {key:24} {value}")


if __name__ == "__main__":
    main()
