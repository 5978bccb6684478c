"""What a dry run says a download takes, beside what the server was then asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.materialise import plan_request
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect, migrate
from firnline.indexer.cubes import deepen
from firnline.indexer.flow import FlowField
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import write_tiles
from firnline.settings import Settings

X, Y = -170_000.0, -2_280_000.0
TEXTS = ("mission_img", "satellite_img", "sensor_img", "autoRIFT_software_version")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorServer]:
    """A cube of Zarr v2 and beside it one in shards, with three chunks along time each."""
    root = tmp_path_factory.mktemp("bucket")
    tiles = [
        (3413, (X - 6_000.0, Y - 5_000.0, X, Y + 5_000.0)),
        (3413, (X, Y - 5_000.0, X + 6_000.0, Y + 5_000.0)),
    ]
    with MirrorServer(root) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("firnline.indexer.sample_cube.TIME_CHUNK", 100)
        flow = FlowField(origin=(X, Y))
        write_tiles(root, server.url, tiles, flow=flow, pairs=300, missing=0.66, sharded=(1,))
        yield server


@pytest.fixture
def settings(server: MirrorServer, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path, allowed_sources=(f"{server.url}/",), chunk_cache_quota=0, _env_file=None
    )  # type: ignore[call-arg]


@pytest.fixture
def engine(server: MirrorServer, settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
    catalog = server.root / "datacubes" / "catalog_v02.json"
    harvest(engine, settings, [str(catalog)], mosaics=False)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
    "more",
    [
        {"composite": None},
        {"composite": None, "variables": ["vx"], "datetime": "2018-01-01/2018-12-31"},
        {"pairs": False},
        {"pairs": False, "satellites": ["L8"], "max_error": 40, "dt_days": [5, 90]},
        {"composite": None, "memory_limit": 16_000_000},
    ],
)
def test_requests_and_bytes_are_those_that_follow(
    server: MirrorServer, engine: Engine, settings: Settings, more: dict[str, Any], indexed: bool
) -> None:
    more = dict(more)
    limit = more.pop("memory_limit", settings.memory_limit)
    settings = settings.model_copy(update={"memory_limit": limit})
    if indexed:
        assert deepen(engine, settings).failed == 0
    bbox = [X - 4_000, Y - 3_000, X + 4_000, Y + 3_000]
    area = {"bbox": bbox, "crs": "EPSG:3413", "strain": False}
    request = Request.parse({**area, **more}, settings)
    server.clear()
    plan = plan_request(engine, settings, request, only_plan=True)
    assert bool(server.requests) == (not indexed or "max_error" in more)
    texts = [r.path for r in server.requests if any(f"/{text}" in r.path for text in TEXTS)]
    assert all("/mission" in path or "/satellite" in path for path in texts)
    assert bool(texts) == ("satellites" in more)
    server.clear()
    done = worker.finish(engine, settings, jobs.submit(engine, request))
    assert done.status == "successful", done.message
    came = [r for r in server.requests if r.status in (200, 206)]
    told = plan.summary()
    assert told["requests_expected"] == len(server.requests)
    same = len(server.requests) - len(came)  # asked whether each cube is still the same
    assert same == (4 if request.pairs else 2)
    assert done.subset is not None
    folder = subset_place(engine, settings, done.subset)
    fetched = json.loads((folder / "provenance.json").read_text())["fetched"]
    columns = {
        r.path for r in came
        if not any(f"/{name}/" in r.path for name in request.variables)
        and not r.path.endswith((".zmetadata", "zarr.json"))
    }  # fmt: skip
    size = fetched["bytes"] + sum((server.root / path[1:]).stat().st_size for path in columns)
    assert 0.5 < told["bytes_expected"] / size < 1.6
    asked = [r.path for r in server.requests if any(f"/{text}" in r.path for text in TEXTS)]
    if not request.pairs and not request.satellites:
        assert asked == []
    elif request.pairs:
        assert len(asked) > 10
