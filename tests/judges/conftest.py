"""What others' tools judge: the API over a catalog with an item of every kind, on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import Engine

from firnline.api.app import create_app
from firnline.cache import jobs, worker
from firnline.cache.request import Request
from firnline.database import connect, migrate
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import Mirror, write_mirror
from firnline.settings import Settings
from tests.api.conftest import serving
from tests.schemas import SCHEMAS, mapped_schemas


@dataclass(frozen=True)
class Judged:
    """An API that can be asked."""

    url: str
    engine: Engine
    settings: Settings
    mirror: Mirror


@pytest.fixture(scope="session")
def _mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    """The sample, mosaics included."""
    root = tmp_path_factory.mktemp("judged") / "mirror"
    with MirrorServer(root) as server:
        yield write_mirror(root, server.url, pairs=40, generation_22=True)


def _settings(mirror: Mirror, folder: Path) -> Settings:
    return Settings(
        data_dir=folder,
        allowed_sources=(f"{mirror.base_url}/",),
        catalog_urls=(mirror.catalog_url,),
        mosaic_roots=(mirror.mosaic_root,),
        _env_file=None,
    )


@pytest.fixture(scope="session")
def quick(_mirror: Mirror, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """What the first harvest leaves: cubes and mosaics of which no file has been read."""
    settings = _settings(_mirror, tmp_path_factory.mktemp("quick"))
    engine = connect(settings.database)
    migrate(engine)
    assert harvest(engine, settings, [_mirror.catalog_url]).failed == 0
    with serving(create_app(settings, engine)) as url:
        yield Judged(url, engine, settings, _mirror)
    engine.dispose()


@pytest.fixture(scope="session")
def deep(
    quick: Judged, _mirror: Mirror, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Judged]:
    """Cubes that were read, mosaics whose files were looked for, and a subset."""
    settings = _settings(_mirror, tmp_path_factory.mktemp("deep"))
    with quick.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(quick.settings.data_dir / "firnline.db", settings.data_dir / "firnline.db")
    engine = connect(settings.database)
    report = harvest(engine, settings, [_mirror.catalog_url], deep=True)
    assert report.failed == 0
    assert deepen(engine, settings, run=report.run).failed == 0
    inputs = {"bbox": list(_mirror.aoi), "crs": "EPSG:3413", "strain": True}
    done = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    assert done.status == "successful"
    with serving(create_app(settings, engine)) as url:
        yield Judged(url, engine, settings, _mirror)
    engine.dispose()


@pytest.fixture(scope="session")
def schemas() -> Iterator[None]:
    """The schemas that validators fetch from the web, from the shared folder."""
    if not (SCHEMAS / "index.json").is_file():
        pytest.skip("the STAC schemas are not here")
    with mapped_schemas():
        yield
