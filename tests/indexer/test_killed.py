"""Harvests in processes of their own: killed at any instant, and two at once.

Seeds are printed; ``FIRNLINE_TEST_KILLS`` sets how many processes are killed a database.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select

from firnline import runs
from firnline.database import connect, reading
from firnline.errors import ConflictError
from firnline.indexer.harvest import harvest
from firnline.locks import alone
from firnline.settings import Settings
from firnline.tables import collections, items, items_rtree

KILLS = int(os.environ.get("FIRNLINE_TEST_KILLS", "6"))

_HARVEST = """
import sys
from pathlib import Path
from firnline.database import connect
from firnline.errors import FirnlineError
from firnline.indexer.harvest import harvest
from firnline.settings import Settings

url, by_steps, *sources = sys.argv[1:]
settings = Settings(data_dir=Path("."), _env_file=None)
engine = connect(url)
def shown(*phase):
    print(*phase, flush=True)
    if by_steps:
        sys.stdin.readline()
print("ready", flush=True)
sys.stdin.readline()
try:
    report = harvest(engine, settings, sources, mosaics=False, progress=shown)
except FirnlineError as error:
    print(type(error).__name__, error)
else:
    print("done", report.added, report.total.unchanged)
"""


def start(url: str, *sources: str, by_steps: bool = False) -> subprocess.Popen[str]:
    """A process that harvests after a line on its standard input; by steps, one for each phase."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HARVEST, url, "by steps" if by_steps else "", *sources],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def catalog(path: Path, first: int, count: int, granules: int) -> str:
    """`count` cubes in UTM zones, 450 in each, from number `first` on."""
    features = []
    for n in range(first, first + count):
        zone, place = divmod(n, 450)
        epsg = 32601 + zone
        x, y = 250_000 + 100_000 * (place % 6), 50_000 + 100_000 * (place // 6)
        name = f"ITS_LIVE_vel_EPSG{epsg}_G0120_X{x}_Y{y}.zarr"
        url = f"https://its-live-data.s3.amazonaws.com/datacubes/v2/N00W050/{name}"
        properties = {"zarr_url": url, "epsg": epsg, "granule_count": granules}
        features.append({"type": "Feature", "properties": properties, "geometry": None})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def everything(engine: Engine) -> dict[str, Any]:
    """All that a harvest writes but its log, without the instants."""
    with reading(engine) as connection:
        stored = select(items.c.id, items.c.digest, items.c.retired.is_(None), items.c.footprint)
        boxes: list[Any] = []
        if engine.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            rows = select(items.c.id, items_rtree).join(
                items, items.c.key == items_rtree.c.id.op(">>")(1)
            )
            boxes = sorted((row[0], *row[2:]) for row in connection.execute(rows))
        return {
            "items": sorted(map(tuple, connection.execute(stored))),
            "collections": sorted(map(tuple, connection.execute(select(collections)))),
            "boxes": boxes,
        }


def test_killed_at_any_instant_it_leaves_the_old_or_the_new(
    database: Engine, database_url: str, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    path = tmp_path / "catalog.json"
    # 60 cubes go, 60 come, 340 change
    catalogs = [(0, 400, 1), (60, 400, 2)]
    states = []
    source = ""
    for which in (0, 1, 0):
        source = catalog(path, *catalogs[which])
        harvest(database, settings, [source], mosaics=False, force=True)
        states.append(everything(database))
    old, new, back = states
    # those that were added in between stay as retired rows
    assert len(old["items"]) + 60 == len(new["items"]) == len(back["items"])
    old = back
    seed = random.SystemRandom().randrange(2**32)
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    seen = {"old": 0, "new": 0}
    catalog(path, *catalogs[1])
    process = start(database_url, source)
    begun = time.monotonic()
    go(process)
    out, err = process.communicate(timeout=60)
    whole = time.monotonic() - begun
    assert out.endswith("done 0 0\n"), (out, err)  # 60 are revived, 340 changed
    new = everything(database)
    for _ in range(KILLS):
        catalog(path, *catalogs[0])
        harvest(database, settings, [source], mosaics=False, force=True)
        assert everything(database) == old
        catalog(path, *catalogs[1])
        process = start(database_url, source)
        delay = chance.uniform(0, 1.1 * whole)
        go(process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        after = everything(database)
        assert after in (old, new), f"seed {seed}, killed after {delay:.4f} s"
        seen["old" if after == old else "new"] += 1
    sys.stdout.write(f"{seen}\n")
    # what a killed one leaves behind hinders no later one, nor does its lock
    harvest(database, settings, [source], mosaics=False, force=True)
    assert everything(database) == new
    assert runs.recent(database, 1)[0]["status"] == "successful"


def test_killed_while_it_writes(database: Engine, database_url: str, tmp_path: Path) -> None:
    """Not by chance: each time after it said that it stores."""
    settings = Settings(data_dir=tmp_path, _env_file=None)
    source = catalog(tmp_path / "catalog.json", 0, 400, 1)
    harvest(database, settings, [source], mosaics=False)
    old = everything(database)
    catalog(tmp_path / "catalog.json", 0, 3000, 2)
    for lines in range(1, 6):
        process = start(database_url, source)
        go(process)
        assert process.stdout is not None
        for _ in range(lines):
            while not process.stdout.readline().startswith("store"):
                assert process.poll() is None
        process.kill()
        process.communicate()
        assert everything(database) == old


def test_two_at_once(database: Engine, database_url: str, tmp_path: Path) -> None:
    """One harvests, the other leaves with one clear message; whoever comes later finds it done."""
    source = catalog(tmp_path / "catalog.json", 0, 1000, 1)
    first, second = start(database_url, source, by_steps=True), start(database_url, source)
    go(first)
    assert first.stdout is not None
    assert first.stdout.readline()  # it's at it, and goes on when the other has left
    said = second.communicate("go\n", timeout=120)[0].splitlines()[-1]
    assert said == "ConflictError another harvest of this database is under way; nothing was done"
    assert first.communicate(timeout=120)[0].splitlines()[-1] == "done 1000 0"
    assert [run["status"] for run in runs.recent(database, 5)] == ["successful"]
    process = start(database_url, source)
    go(process)
    assert process.communicate(timeout=60)[0].splitlines()[-1] == "done 0 1000"


def test_a_dry_run_waits_for_no_one(database: Engine, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", 0, 3, 1)
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with alone(database, "harvest"):
        assert harvest(database, settings, [source], mosaics=False, dry_run=True).added == 3
        with pytest.raises(ConflictError, match="another harvest"):
            harvest(database, settings, [source], mosaics=False)
        with alone(database, "export"):
            pass
    assert harvest(database, settings, [source], mosaics=False).added == 3


def test_a_lock_ends_with_an_error(database_url: str) -> None:
    engine = connect(database_url)
    for _ in range(2):
        with pytest.raises(KeyError), alone(engine, "harvest"):
            raise KeyError("anything")
    with alone(engine, "harvest"):
        pass
    engine.dispose()


def test_a_database_in_memory_is_no_one_elses() -> None:
    with alone(connect("sqlite://"), "harvest"):
        pass
