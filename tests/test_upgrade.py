"""Installations live on: from the databases of earlier versions, and from backups.

An earlier database is made by the migrations up to its revision, and holds what a version of then
had written: rows with the columns of then, requests with the inputs of then.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy import Engine
from starlette.testclient import TestClient

from firnline.api.app import create_app
from firnline.cache import jobs, worker
from firnline.cache.opening import ask, subset_place
from firnline.cache.request import Request
from firnline.contents import unpack
from firnline.database import connect, reading, writing
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.settings import Settings
from firnline.tables import metadata

REPO = Path(__file__).parents[1]
LATER = ("resampling", "recompute_speed", "composite_method", "max_displacement")
QUERIES: list[dict[str, Any]] = [
    {},
    {"collections": "itslive-cubes", "filter": "itslive:granule_count > 10"},
    {"filter": "proj:code = 'EPSG:3413'"},
    {"collections": "subsets"},
    {"bbox": "-60,60,-30,80"},
]


@pytest.fixture(scope="module")
def installed(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An installation with a subset, and a job that waits."""
    settings = sample.settings(tmp_path_factory.mktemp("installed") / "data")
    engine = connect(settings.database)
    assert deepen(engine, settings).failed == 0
    done = worker.finish(engine, settings, ask(engine, settings, request(sample, settings)))
    assert done.status == "successful"
    jobs.submit(engine, request(sample, settings, format="v2"))
    engine.dispose()
    return settings


def request(sample: Any, settings: Settings, **more: Any) -> Request:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {"bbox": [left, bottom, left + 2400, top], "crs": "EPSG:3413", "variables": ["vx"]}
    return Request.parse({**inputs, "composite": None, "strain": False, **more}, settings)


def found(engine: Engine, settings: Settings) -> list[Any]:
    """What the catalog answers, whatever its database."""
    with TestClient(create_app(settings, engine)) as client:
        pages = [client.get("/search", params={**query, "limit": 1000}) for query in QUERIES]
    assert [page.status_code for page in pages] == [200] * len(QUERIES)
    answers = [page.json()["features"] for page in pages]
    assert all(answers)
    return [sorted(page, key=lambda item: str(item["id"])) for page in answers]


def make_old(url: str, revision: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    """A database of a revision, with what there was then of some rows."""
    engine = connect(url)
    with writing(engine) as connection:
        config = Config()
        config.set_main_option("script_location", "firnline:migrations")
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        on_sqlite = connection.dialect.name == "sqlite"
        for name, those in rows.items():
            if not sa.inspect(connection).has_table(name):
                continue
            columns = set(connection.exec_driver_sql(f"SELECT * FROM {name} LIMIT 0").keys())  # noqa: S608
            for row in those:
                kept = {
                    key: bool(value) if key in ("stale", "pinned", "found") else value
                    for key, value in row.items()
                    if key in columns
                }
                if name in ("jobs", "subsets") and revision == "0001":
                    asked = json.loads(kept["request"])
                    kept["request"] = json.dumps(
                        {key: value for key, value in asked.items() if key not in LATER}
                    )
                holders = {
                    key: f"ST_GeomFromWKB(:{key}, 4326)"
                    if key == "footprint" and not on_sqlite
                    else f"CAST(:{key} AS JSONB)"
                    if key == "properties" and not on_sqlite
                    else f":{key}"
                    for key in kept
                }
                names = ", ".join(f'"{key}"' for key in kept)
                values = ", ".join(holders.values())
                statement = f"INSERT INTO {name} ({names}) VALUES ({values})"  # noqa: S608
                connection.execute(sa.text(statement), kept)
        for name, key in () if on_sqlite else (("items", "key"), ("harvests", "id")):
            last = (
                f"SELECT setval(pg_get_serial_sequence('{name}', '{key}'), max({key})) FROM {name}"  # noqa: S608
            )
            connection.exec_driver_sql(last)
    engine.dispose()


def rows_of(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """All rows of an SQLite database, as versions before 0010 stored them."""
    engine = connect(settings.database)
    with reading(engine) as connection:
        names = [table.name for table in metadata.sorted_tables if table.name != "items_rtree"]
        rows = {
            name: [
                dict(row)
                for row in connection.exec_driver_sql(f"SELECT * FROM {name}").mappings()  # noqa: S608
            ]
            for name in names
        }
        boxes = connection.exec_driver_sql("SELECT * FROM items_rtree").mappings()
        rows["items_rtree"] = [dict(row) for row in boxes]
    for row in rows["items"]:
        row["content"] = unpack(row["content"])
    engine.dispose()
    return rows


def firnline(settings: Settings, *arguments: str) -> str:
    environment = {**os.environ, **settings.environment(), "PYTHONPATH": str(REPO)}
    run = subprocess.run(
        [sys.executable, "-m", "firnline.cli", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def moved(installed: Settings, bare_url: str, tmp_path: Path) -> Settings:
    """An installation of its own with the same files, and a database that is not there yet."""
    shutil.copytree(installed.cache_dir, tmp_path / "new" / "cache")
    return installed.model_copy(update={"data_dir": tmp_path / "new", "database_url": bare_url})


@pytest.mark.parametrize("revision", ["0001", "0007"])
def test_upgrade_from_an_earlier_release(
    sample: Any, installed: Settings, moved: Settings, revision: str
) -> None:
    """Catalog, subsets, jobs and the cache go on as if they had been this version's."""
    rows = rows_of(installed)
    make_old(moved.database, revision, {**rows, "counters": [], "api_keys": []})
    firnline(moved, "migrate")
    engine, before = connect(moved.database), connect(installed.database)
    assert found(engine, moved) == found(before, installed)

    # what was materialised is the answer, and its files are read
    job = ask(engine, moved, request(sample, moved))
    assert (job.status, job.message) == ("successful", "answered from the cache")
    assert subset_place(engine, moved, str(job.subset)).is_dir()
    # what waited is done, by the request of then
    (waiting,) = [job for job in jobs.recent(engine) if job.status == "accepted"]
    done = worker.finish(engine, moved, waiting)
    assert done.status == "successful"
    assert done.subset is not None
    assert subset_place(engine, moved, done.subset).is_dir()
    # and the next harvest finds nothing new, the next deep read everything
    report = harvest(engine, moved, [sample.mirror.catalog_url], mosaics=False, force=True)
    counts = report.counts["itslive-cubes"]
    assert (counts.added, counts.retired) == (0, 0)
    # the first release knew nothing of the cubes' own metadata, which items are made of too
    assert counts.changed == (len(sample.mirror.cubes) if revision == "0001" else 0)
    assert deepen(engine, moved).failed == 0
    engine.dispose()
    before.dispose()


def blocks(title: str) -> list[str]:
    """The shell commands of a section of docs/operating.md."""
    text = (REPO / "docs" / "operating.md").read_text()
    section = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```sh\n(.*?)```", section, re.S)


def shell(script: str, **variables: str) -> None:
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = ":".join([str(Path(sys.executable).parent), *map(str, binaries), os.environ["PATH"]])
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, **variables, "PATH": path, "PYTHONPATH": str(REPO)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"{script}\n{run.stderr}"


def test_backup_and_restore(
    sample: Any, installed: Settings, moved: Settings, postgres_server: Any, tmp_path: Path
) -> None:
    """As the documentation says, word for word, while the database is written to."""
    scripts = blocks("Backup and restore")
    on_sqlite = moved.database.startswith("sqlite")
    back_up, restore = scripts[:2] if on_sqlite else scripts[2:]
    if on_sqlite:
        moved = moved.model_copy(update={"database_url": ""})
        shutil.copy(installed.data_dir / "firnline.db", moved.data_dir / "firnline.db")
    else:
        firnline(installed, "migrate", "--to", moved.database)
    variables = {
        "FIRNLINE_DATA_DIR": str(moved.data_dir),
        "FIRNLINE_ALLOWED_SOURCES": ",".join(moved.allowed_sources),
        "BACKUP": str(tmp_path / "backup"),
    }
    if not on_sqlite:
        variables["FIRNLINE_DATABASE_URL"] = moved.database.replace("+psycopg", "")
    engine = connect(moved.database)
    expected = found(engine, moved)
    with writing(engine) as connection:
        connection.execute(sa.text("DELETE FROM subsets"))  # never committed: not in the backup
        shell(back_up, **variables)
        connection.rollback()
    engine.dispose()

    shutil.rmtree(moved.data_dir)
    moved.data_dir.mkdir()
    with ExitStack() as stack:
        if not on_sqlite:
            url = postgres_server.url(stack.enter_context(postgres_server.database()))
            variables["FIRNLINE_DATABASE_URL"] = url.replace("+psycopg", "")
            moved = moved.model_copy(update={"database_url": url})
        shell(restore, **variables)
        check_restored(sample, moved, expected)


def check_restored(sample: Any, settings: Settings, expected: list[Any]) -> None:
    engine = connect(settings.database)
    assert found(engine, settings) == expected
    assert [job.status for job in jobs.recent(engine)].count("accepted") == 1
    job = ask(engine, settings, request(sample, settings))
    assert job.message == "answered from the cache"
    engine.dispose()
