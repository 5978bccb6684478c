"""What a job asks for before its plan is made, and what only when it is."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyproj import Transformer
from sqlalchemy import Engine

from firnline.cache import jobs, sources, worker
from firnline.cache.chunk_requests import ChunkRequests
from firnline.cache.head_start import HeadStart
from firnline.cache.materialise import plan_cubes
from firnline.cache.memory import Shares
from firnline.cache.opening import subset_place
from firnline.cache.plan import Plan
from firnline.cache.request import Request
from firnline.cache.tiles import TileWriter, in_order
from firnline.chunks import ChunkReader
from firnline.cube import Array, read_cube
from firnline.database import connect, migrate
from firnline.errors import NoCoverageError, SourceChangedError
from firnline.indexer.cubes import deepen
from firnline.indexer.flow import FlowField
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.sample import Mirror, write_tiles
from firnline.settings import Settings

X, Y = -170_000.0, -2_280_000.0
AOI = [X - 3_000.0, Y - 2_000.0, X + 3_500.0, Y + 1_500.0]
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "period": {"datetime": "2018-02-01/2018-09-30"},
    "satellites": {"satellites": ["S2"]},
    "dt_days": {"dt_days": [10, 40]},
    "min_valid": {"min_valid": 30},
    "max_error": {"max_error": 12},
    "bilinear": {"resampling": "bilinear"},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    """Cubes that lie over each other, and one of UTM beyond; one of each is in shards."""
    root = tmp_path_factory.mktemp("served")
    x, y = Transformer.from_crs(3413, 32622, always_xy=True).transform(X + 2_000, Y)
    tiles = [
        (3413, (X - 4_000.0, Y - 3_000.0, X + 1_000.0, Y + 3_000.0)),
        (3413, (X - 1_500.0, Y - 2_500.0, X + 2_000.0, Y + 2_500.0)),
        (32622, (x - 2_500.0, y - 2_500.0, x + 2_500.0, y + 2_500.0)),
    ]
    flow = FlowField(origin=(X, Y))
    with MirrorServer(root) as server:
        yield server, write_tiles(root, server.url, tiles, flow=flow, sharded=(1,))


class Place:
    """An installation that has harvested the mirror, deep or not."""

    def __init__(
        self, served: tuple[MirrorServer, Mirror], folder: Path, *, deep: bool, **more: Any
    ) -> None:
        self.server, mirror = served
        self.settings = Settings(
            **{
                "data_dir": folder,
                "allowed_sources": (f"{self.server.url}/",),
                "_env_file": None,
                **more,
            }
        )
        self.engine: Engine = connect(self.settings.database)
        migrate(self.engine)
        harvest(self.engine, self.settings, [mirror.catalog_url], mosaics=False, deep=deep)
        if deep:
            deepen(self.engine, self.settings)
        self.server.clear()

    def request(self, **more: Any) -> Request:
        asked = {
            "bbox": AOI, "crs": "EPSG:3413", "out_crs": "EPSG:3413", "variables": ["vx", "vy"],
            "composite": None, "strain": False,
        }  # fmt: skip
        return Request.parse({**asked, **more}, self.settings)

    def finish(self, request: Request) -> dict[str, bytes]:
        """Do the job; every file of the subset but the provenance."""
        job = worker.finish(self.engine, self.settings, jobs.submit(self.engine, request))
        assert (job.status, job.message) == ("successful", "done")
        folder: Any = subset_place(self.engine, self.settings, request.subset_id)
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "provenance.json"
        }


@pytest.fixture
def install(served: tuple[MirrorServer, Mirror], tmp_path: Path) -> Iterator[Callable[..., Place]]:
    made: list[Place] = []

    def install(*, deep: bool, **more: Any) -> Place:
        made.append(Place(served, tmp_path / str(len(made)), deep=deep, **more))
        return made[-1]

    yield install
    for place in made:
        place.engine.dispose()


def chunks(plan: Plan) -> set[tuple[str, str]]:
    return {(plan.cubes[cube].source.url, key) for cube, key in plan.uses}


@pytest.mark.parametrize("which", FILTERS)
def test_the_chunks_are_those_of_the_plan(install: Callable[..., Place], which: str) -> None:
    place = install(deep=True)
    begun: list[Plan] = []
    request = place.request(**FILTERS[which])
    plan = plan_cubes(place.engine, place.settings, request, begin=begun.append)
    assert chunks(plan)
    known = which != "max_error"  # errors are not in the index
    assert [chunks(sketch) for sketch in begun] == [chunks(plan)] * known
    if which != "none":
        assert plan.layers.kept < plan.layers.read or which == "bilinear"


def test_they_are_asked_for_before_the_cubes_are(
    install: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata is held back until chunks are asked for: with none, all would fail."""
    place = install(deep=True)
    begun = threading.Event()

    def after(*given: Any) -> Any:
        assert begun.wait(120)
        return read_cube(*given)

    class Seen(HeadStart):
        def _begin(self, plan: Plan) -> None:
            super()._begin(plan)
            assert self.requests is not None
            begun.set()

    monkeypatch.setattr(sources, "read_cube", after)
    monkeypatch.setattr("firnline.cache.materialise.HeadStart", Seen)
    assert place.finish(place.request())


def test_what_only_a_store_keeps_holds_no_tile_up(
    install: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that make no plan are held back until a tile's chunks have come and are written."""
    place = install(deep=False)
    expected = place.finish(place.request())
    late, written = install(deep=False), threading.Event()
    get, write = ChunkReader.get, TileWriter.write

    def held(self: ChunkReader, array: Array, *given: Any, **more: Any) -> Any:
        assert array.name != "date_center" or written.wait(120)
        return get(self, array, *given, **more)

    def seen(self: TileWriter, *given: Any) -> Any:
        stored = write(self, *given)
        written.set()
        return stored

    monkeypatch.setattr(ChunkReader, "get", held)
    monkeypatch.setattr(TileWriter, "write", seen)
    assert late.finish(late.request()) == expected


def test_damage_in_what_only_a_store_keeps_fails_the_job(install: Callable[..., Place]) -> None:
    place = install(deep=False)
    place.server.faults = Faults(Fault("corrupt"), match="*/date_center/0")
    job = worker.finish(place.engine, place.settings, jobs.submit(place.engine, place.request()))
    place.server.faults = None
    assert job.status == "failed"
    assert "date_center" in job.message


def test_a_cube_that_changes_before_its_last_columns_come_is_read_again(
    install: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be of another state of it than what the plan was made from."""
    place = install(deep=False)
    expected = place.finish(place.request())
    late = install(deep=False)
    confirm, changed = ChunkReader.confirm, []

    def once(self: ChunkReader) -> None:
        if threading.current_thread().name.startswith("create") and not changed:
            changed.append(self.source.url)
            raise SourceChangedError(f"{self.source.url} has changed while it was read")
        confirm(self)

    monkeypatch.setattr(ChunkReader, "confirm", once)
    assert late.finish(late.request()) == expected
    assert changed


def test_nothing_is_asked_for_twice_and_the_store_is_the_same(
    install: Callable[..., Place],
) -> None:
    slow = install(deep=False, chunk_cache_quota=0)
    expected = slow.finish(slow.request())
    assert any(name.startswith("pairs.zarr/vx/c/") for name in expected)
    for deep in (False, True):
        place = install(deep=deep)
        assert place.finish(place.request()) == expected
        asked = [request.path for request in place.server.requests]
        objects = Counter(path for path in asked if re.search(r"/v[xy]/\d+\.\d+\.\d+$", path))
        assert set(objects.values()) == {1}
        granules = [path for path in asked if "/granule_url/" in path]
        assert bool(granules) != deep, "those of cubes in the index are known"


def test_a_plan_that_fails_leaves_nothing_under_way(install: Callable[..., Place]) -> None:
    place = install(deep=False)
    request = place.request(datetime="1999-01-01/1999-12-31")
    begun: list[Plan] = []
    before = threading.enumerate()  # what other tests have not waited for
    with pytest.raises(NoCoverageError, match="passes the filters"):
        plan_cubes(place.engine, place.settings, request, begin=begun.append)
    job = worker.finish(place.engine, place.settings, jobs.submit(place.engine, request))
    assert job.status == "failed"
    assert "passes the filters" in job.message
    assert not begun
    new = set(threading.enumerate()).difference(before)
    assert not any(thread.name.startswith("fetch") for thread in new)


@pytest.mark.parametrize(
    ("attempt", "more"),
    [
        (2, {}),
        (1, {"chunk_cache_quota": 0}),
        (1, {"dask_scheduler": "tcp://127.0.0.1:1"}),
        (1, {"memory_limit": "256MB"}),
    ],
    ids=["finished tiles", "no chunk cache", "tiles elsewhere", "no memory"],
)
def test_not_where_it_could_fetch_what_need_not_be(
    install: Callable[..., Place], attempt: int, more: dict[str, Any]
) -> None:
    place = install(deep=False)
    plan = plan_cubes(place.engine, place.settings, place.request())
    job = jobs.submit(place.engine, place.request())
    settings = Settings(**{**place.settings.model_dump(), **more, "_env_file": None})
    with HeadStart(settings, replace(job, attempt=attempt)) as start:
        assert start.begin is None
    with HeadStart(place.settings, replace(job, attempt=1)) as start:
        assert start.begin is not None
        start.begin(plan)
        assert start.requests is not None


def test_no_more_wait_than_there_is_memory_for(install: Callable[..., Place]) -> None:
    """Beside what is taken, two wait until the size of one is known, then none."""
    place = install(deep=False)
    alone = [X - 3_900.0, Y - 2_900.0, X - 1_600.0, Y + 2_900.0]
    plan = plan_cubes(place.engine, place.settings, place.request(bbox=alone))
    assert len(plan.cubes) == 1
    assert len(plan.uses) > 20
    few = Shares(buffer=0, held=0, ahead=1, kept=0)
    requests = ChunkRequests(plan, plan.tiles, concurrency=2, memory=few)
    requests.begin(in_order(plan, plan.tiles))
    for taken in range(1, 11):
        _, request = requests.take()
        assert request.result(120) is not None
        assert requests.counts.requests <= taken + 2
    assert requests.bytes_left > 0
    requests.close()
