from __future__ import annotations

import gzip
import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import shapely
from sqlalchemy import Engine, func, select

from firnline import runs
from firnline.database import connect, reading
from firnline.errors import (
    CatalogError,
    DatabaseError,
    InputError,
    SourceError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)
from firnline.indexer import harvest as module
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.report import Counts, Report
from firnline.settings import Settings
from firnline.tables import LIVING, collections, harvests, items, items_rtree

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """An installation with a database of each kind in turn."""
    return Settings(data_dir=tmp_path / "data", database_url=database_url, _env_file=None)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    yield engine
    engine.dispose()


def feature(x: int, y: int, epsg: int = 3413, **more: Any) -> dict[str, Any]:
    name = f"ITS_LIVE_vel_EPSG{epsg}_G0120_X{x}_Y{y}.zarr"
    url = f"http://its-live-data.s3.amazonaws.com/datacubes/v2/N60W030/{name}"
    properties = {"zarr_url": url, "epsg": epsg, "RGI_CODE": 5, "granule_count": 10} | more
    return {"type": "Feature", "properties": properties, "geometry": None}


def catalog(path: Path, *features: dict[str, Any]) -> str:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def row_of_cubes(count: int, **more: Any) -> list[dict[str, Any]]:
    return [feature(50_000 + 100_000 * n, -2_250_000, **more) for n in range(count)]


def everything(engine: Engine) -> dict[str, list[Any]]:
    """All rows that a reader sees, without the instants of writing."""
    with reading(engine) as connection:
        stored = select(items.c.collection, items.c.id, items.c.digest, items.c.source).where(
            LIVING
        )
        # PostGIS keeps the boxes itself
        boxes = select(items_rtree)
        if engine.dialect.name != "sqlite":
            boxes = select(items.c.footprint).where(LIVING)
        return {
            "items": sorted(map(tuple, connection.execute(stored))),
            "collections": sorted(map(tuple, connection.execute(select(collections)))),
            "boxes": sorted(map(tuple, connection.execute(boxes))),
        }


def log_of(engine: Engine) -> list[tuple[str, str | None, str | None]]:
    with reading(engine) as connection:
        chosen = select(harvests.c.source, harvests.c.report, harvests.c.error)
        return list(map(tuple, connection.execute(chosen.order_by(harvests.c.id))))


@pytest.mark.parametrize(
    ("name", "features", "mosaics", "without"),
    [
        ("catalog_v02_2024.json", 3086, 1132, 0),
        ("catalog_v02_truncated_keys.geojson", 3008, 1132, 0),
        ("catalog_v02_older.json", 2471, 246, 13),
    ],
)
def test_real_catalogs(
    engine: Engine, settings: Settings, name: str, features: int, mosaics: int, without: int
) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    first = harvest(engine, settings, [str(path)])
    assert first.counts == {
        "itslive-cubes": Counts(added=features),
        "velocity-mosaics": Counts(added=mosaics),
    }
    assert len(first.failures) == without
    before = everything(engine)
    second = harvest(engine, settings, [str(path)])
    assert second.counts == {
        "itslive-cubes": Counts(unchanged=features),
        "velocity-mosaics": Counts(unchanged=mosaics),
    }
    assert everything(engine) == before
    assert [error for _, _, error in log_of(engine)] == [None, None]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_stored_items_are_valid(engine: Engine, settings: Settings) -> None:
    """One cube of every CRS of the real catalog, and the collections."""
    path = DATA / "catalog_v02_2024.json"
    spec = importlib.util.spec_from_file_location(
        "firnline_test_schemas", Path(__file__).parents[1] / "schemas.py"
    )
    assert spec is not None
    assert spec.loader is not None
    helper = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helper)
    if not path.exists() or not (helper.SCHEMAS / "index.json").exists():
        pytest.skip("the shared folder is not here")
    schemas = helper.StacSchemas()
    harvest(engine, settings, [str(path)], mosaics=False)
    with reading(engine) as connection:
        stored = [json.loads(content) for content in connection.scalars(select(items.c.content))]
        described = [
            json.loads(content) for content in connection.scalars(select(collections.c.content))
        ]
    by_code = {item["properties"]["proj:code"]: item for item in stored}
    assert len(by_code) == 39
    for document in (*by_code.values(), *described):
        assert schemas.problems(document) == []
    cubes = next(each for each in described if each["id"] == "itslive-cubes")
    assert cubes["summaries"]["proj:code"] == sorted(by_code)
    assert cubes["extent"]["temporal"]["interval"][0][0] == "1982-01-01T00:00:00Z"


def test_diff(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    source = catalog(path, *row_of_cubes(10))
    assert harvest(engine, settings, [source], mosaics=False).total == Counts(added=10)

    rows = row_of_cubes(10)
    rows[3]["properties"]["granule_count"] = 11
    del rows[5]
    rows.append(feature(50_000, -2_350_000))
    rows.append(feature(50_000, -2_450_000, datacube_exist=0))
    rows.append(feature(50_000, -2_550_000, epsg=3413, zarr_url=None))
    catalog(path, *rows)
    expected = Counts(added=1, changed=1, unchanged=8, retired=1)

    before = everything(engine)
    dry = harvest(engine, settings, [source], mosaics=False, dry_run=True)
    assert dry.total == expected
    assert everything(engine) == before

    report = harvest(engine, settings, [source], mosaics=False)
    assert report.total == expected
    assert (report.failed, report.skipped) == (1, 1)
    assert {failure.source for failure in report.failures} == {source}
    after = everything(engine)
    assert len(after["items"]) == len(after["boxes"]) == 10
    assert harvest(engine, settings, [source], mosaics=False).total == Counts(unchanged=10)


def test_stored_rows_are_what_the_catalog_says(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = catalog(tmp_path / "catalog.json", feature(450_000, -2_250_000))
    harvest(engine, settings, [source])
    with reading(engine) as connection:
        cube = connection.execute(select(items).where(items.c.collection == "itslive-cubes")).one()
        described = {
            id: json.loads(content)
            for id, content in connection.execute(select(collections.c.id, collections.c.content))
        }
    item = json.loads(cube.content)
    assert cube.id == item["id"] == "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
    assert cube.start_datetime == datetime(1982, 1, 1, tzinfo=UTC)
    assert cube.source == source
    footprint = shapely.from_wkb(cube.footprint)
    assert footprint.equals(shapely.geometry.shape(item["geometry"]))
    assert described.keys() == {"itslive-cubes", "velocity-mosaics", "subsets"}
    assert described["itslive-cubes"]["extent"]["spatial"]["bbox"] == [item["bbox"]]
    assert described["velocity-mosaics"]["extent"]["spatial"]["bbox"] == [item["bbox"]]
    assert described["velocity-mosaics"]["extent"]["temporal"]["interval"] == [
        ["1984-01-01T00:00:00Z", "2024-12-31T23:59:59Z"]
    ]
    assert described["velocity-mosaics"]["summaries"]["rgi"] == ["RGI05A"]


def test_later_catalog_wins_and_nothing_flips(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    one = catalog(tmp_path / "one.json", *row_of_cubes(4, granule_count=1))
    two = catalog(tmp_path / "two.json", *row_of_cubes(2, granule_count=2))
    report = harvest(engine, settings, [one, two], mosaics=False)
    assert (report.total, report.repeated) == (Counts(added=4), 2)
    sources = {id: source for _, id, _, source in everything(engine)["items"]}
    assert sorted(sources.values()) == [one, one, two, two]
    again = harvest(engine, settings, [one, two], mosaics=False, force=True)
    assert (again.total, again.repeated) == (Counts(unchanged=4), 2)


def test_the_same_location_twice_is_one(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "one.json", *row_of_cubes(2))
    report = harvest(engine, settings, [source, source], mosaics=False)
    assert (report.total, report.repeated) == (Counts(added=2), 0)


def test_sources_leave_each_other_alone(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    one = catalog(tmp_path / "one.json", *row_of_cubes(3))
    two = catalog(tmp_path / "two.json", feature(50_000, -2_450_000))
    harvest(engine, settings, [one])
    outline = [row for row in everything(engine)["items"] if row[1] == "RGI05A_STATIC"]
    report = harvest(engine, settings, [two])
    assert report.counts["itslive-cubes"] == Counts(added=1)
    # the mosaic's outline is that of both
    assert report.counts["velocity-mosaics"].changed == 82
    assert harvest(engine, settings, [one]).total == Counts(unchanged=3 + 82)
    assert outline != [row for row in everything(engine)["items"] if row[1] == "RGI05A_STATIC"]


def test_a_catalog_that_lost_too_much_is_refused(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "catalog.json"
    source = catalog(path, *row_of_cubes(10))
    harvest(engine, settings, [source])
    before = everything(engine)
    catalog(path, *row_of_cubes(7))
    for dry_run in (True, False):
        with pytest.raises(CatalogError, match="lost 3 of its 10 cubes"):
            harvest(engine, settings, [source], dry_run=dry_run)
    assert everything(engine) == before
    assert "lost 3 of its 10" in (log_of(engine)[-1][2] or "")
    catalog(path, *row_of_cubes(8))
    assert harvest(engine, settings, [source], mosaics=False).total == Counts(
        unchanged=8, retired=2
    )


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[MirrorServer]:
    """A served folder without anything in it."""
    (tmp_path / "mirror").mkdir()
    with MirrorServer(tmp_path / "mirror") as server:
        yield server


@pytest.fixture
def served(settings: Settings, mirror: MirrorServer) -> Settings:
    """Settings that may read the mirror, and take its mosaics."""
    return settings.model_copy(
        update={
            "allowed_sources": (f"{mirror.url}/",),
            "mosaic_roots": (f"{mirror.url}/mosaics",),
        }
    )


def test_mosaics_are_left_alone_when_not_asked_for(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
    harvest(engine, settings, [source])
    assert harvest(engine, settings, [source], mosaics=False).total == Counts(unchanged=1)
    assert len(everything(engine)["items"]) == 83


def test_two_roots_with_the_same_mosaics(engine: Engine, tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data", mosaic_roots="https://a.org/m,https://b.org/m", _env_file=None
    )
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
    assert harvest(engine, settings, [source]).counts["velocity-mosaics"] == Counts(added=82)
    assert harvest(engine, settings, [source]).counts["velocity-mosaics"] == Counts(unchanged=82)


class TestErrors:
    @pytest.mark.parametrize(
        ("location", "error"),
        [
            ("/nowhere/catalog.json", SourceMissingError),
            ("https://example.org/catalog.json", SourceNotAllowedError),
        ],
    )
    def test_unreadable_source(
        self, engine: Engine, settings: Settings, location: str, error: type[Exception]
    ) -> None:
        before = everything(engine)
        with pytest.raises(error):
            harvest(engine, settings, [location])
        assert everything(engine) == before
        ((source, report, reason),) = log_of(engine)
        assert (source, report) == (location, None)
        assert reason

    def test_outage_leaves_the_catalog(
        self,
        engine: Engine,
        settings: Settings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        source = catalog(tmp_path / "catalog.json", *row_of_cubes(2))
        harvest(engine, settings, [source])
        before = everything(engine)

        def down(location: str, **_: Any) -> bytes:
            raise SourceUnreachableError(f"{location}: connection refused")

        monkeypatch.setattr(module, "read_document", down)
        with pytest.raises(SourceUnreachableError):
            harvest(engine, settings, [source])
        assert everything(engine) == before
        assert log_of(engine)[-1][2] == f"{source}: connection refused"

    def test_one_bad_catalog_of_two_changes_nothing(
        self, engine: Engine, settings: Settings, tmp_path: Path
    ) -> None:
        good = catalog(tmp_path / "good.json", *row_of_cubes(2))
        bad = tmp_path / "bad.json"
        bad.write_text("<html>503</html>")
        with pytest.raises(CatalogError, match=r"bad\.json: the catalog is HTML"):
            harvest(engine, settings, [good, str(bad)])
        assert everything(engine)["items"] == []

    def test_failure_while_writing_leaves_nothing_half(
        self,
        engine: Engine,
        settings: Settings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = tmp_path / "catalog.json"
        source = catalog(path, *row_of_cubes(4))
        harvest(engine, settings, [source])
        before = everything(engine)
        catalog(path, *row_of_cubes(5, granule_count=99))

        def broken(*_: Any) -> None:
            raise DatabaseError("the disk is full")

        monkeypatch.setattr("firnline.indexer.changes.retire_items", broken)
        with pytest.raises(DatabaseError):
            harvest(engine, settings, [source])
        assert everything(engine) == before
        assert log_of(engine)[-1][2] == "the disk is full"

    def test_no_locations(self, engine: Engine, settings: Settings) -> None:
        with pytest.raises(InputError, match="no catalog"):
            harvest(engine, settings, [])

    def test_database_without_schema(
        self, settings: Settings, bare_url: str, tmp_path: Path
    ) -> None:
        source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
        bare = connect(bare_url)
        with pytest.raises(DatabaseError, match="firnline migrate"):
            harvest(bare, settings, [source])
        bare.dispose()


def test_report(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(2))
    report = harvest(engine, settings, [source])
    assert isinstance(report, Report)
    document = json.loads(report.to_json())
    assert document["added"] == 2 + 82
    assert document["collections"]["itslive-cubes"]["added"] == 2
    assert document["skipped"] == len(document["failures"]) == 15
    assert document["failed"] == 0
    assert document["sources"] == [source]
    with reading(engine) as connection:
        row = connection.execute(select(harvests)).one()
    assert row.error is None
    assert json.loads(row.report)["added"] == 84
    assert row.started <= row.finished


def test_report_for_people(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(2), feature(0, 0, zarr_url=None))
    lines = harvest(engine, settings, [source], dry_run=True).lines(failures=1)
    assert lines == [
        "itslive-cubes: 2 added, 0 changed, 0 unchanged, 0 retired",
        "velocity-mosaics: 82 added, 0 changed, 0 unchanged, 0 retired",
        "1 failed, 15 skipped",
        "  feature 2 without a name: it has no zarr_url",
        "  and 15 more (--json lists all)",
        "dry run: nothing was written",
    ]
    first = harvest(engine, settings, [source])
    assert (first.added, first.changed) == (84, 0)
    assert "nothing changed" not in first.lines()
    second = harvest(engine, settings, [source])
    assert second.lines() == [
        "itslive-cubes: 0 added, 0 changed, 2 unchanged, 0 retired",
        "velocity-mosaics: 0 added, 0 changed, 82 unchanged, 0 retired",
        f"not modified since {first.started:%Y-%m-%d %H:%M:%S} UTC",
    ]
    assert "nothing changed" in harvest(engine, settings, [source], force=True).lines()


def test_progress(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(3))
    calls: list[tuple[str, int, int]] = []
    harvest(engine, settings, [source], progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(phase for phase, _, _ in calls)) == [
        "read",
        "items",
        "mosaics",
        "store",
    ]
    for phase, total in (("read", 1), ("items", 3), ("mosaics", 82), ("store", 85)):
        done = [(done, of) for name, done, of in calls if name == phase]
        assert done == sorted(done)
        assert done[0][0] == 0
        assert done[-1] == (total, total)


def test_dry_run_logs_nothing(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
    report = harvest(engine, settings, [source], dry_run=True)
    assert report.total == Counts(added=83)
    with reading(engine) as connection:
        assert connection.scalar(select(func.count()).select_from(harvests)) == 0
        assert connection.scalar(select(func.count()).select_from(collections)) == 0


def ids(engine: Engine) -> set[str]:
    return {id for _, id, _, _ in everything(engine)["items"]}


class TestRetired:
    def harvested(self, engine: Engine, settings: Settings, path: Path, *rows: Any) -> Counts:
        return harvest(engine, settings, [catalog(path, *rows)], mosaics=False).total

    def test_kept_hidden_and_revived(
        self, engine: Engine, settings: Settings, tmp_path: Path
    ) -> None:
        path = tmp_path / "catalog.json"
        rows = row_of_cubes(10)
        self.harvested(engine, settings, path, *rows)
        before = everything(engine)
        lost = "ITS_LIVE_vel_EPSG3413_G0120_X550000_Y-2250000"
        less = rows[:5] + rows[6:]
        assert self.harvested(engine, settings, path, *less) == Counts(unchanged=9, retired=1)
        assert len(everything(engine)["items"]) == len(everything(engine)["boxes"]) == 9
        assert lost not in ids(engine)
        with reading(engine) as connection:
            kept = connection.execute(select(items).where(items.c.id == lost)).one()
        assert kept.retired is not None
        assert json.loads(kept.content)["id"] == lost
        # once retired it's neither retired again, nor does it count for what a catalog may lose
        less = less[:4] + less[5:]
        assert self.harvested(engine, settings, path, *less) == Counts(unchanged=8, retired=1)
        assert self.harvested(engine, settings, path, *rows) == Counts(unchanged=8, revived=2)
        assert everything(engine) == before

    def test_revived_with_other_content(
        self, engine: Engine, settings: Settings, tmp_path: Path
    ) -> None:
        path = tmp_path / "catalog.json"
        rows = row_of_cubes(10)
        self.harvested(engine, settings, path, *rows)
        self.harvested(engine, settings, path, *rows[1:])
        rows[0]["properties"]["granule_count"] = 99
        assert self.harvested(engine, settings, path, *rows).revived == 1
        with reading(engine) as connection:
            content = connection.scalar(
                select(items.c.content).where(items.c.id.like("%_X50000_%"))
            )
        assert json.loads(content or b"")["properties"]["itslive:granule_count"] == 99

    def test_the_extent_is_that_of_the_living(
        self, engine: Engine, settings: Settings, tmp_path: Path
    ) -> None:
        path = tmp_path / "catalog.json"
        near, far = row_of_cubes(9), feature(450_000, 2_250_000)
        self.harvested(engine, settings, path, *near)
        alone = everything(engine)["collections"]
        self.harvested(engine, settings, path, *near, far)
        assert everything(engine)["collections"] != alone
        self.harvested(engine, settings, path, *near)
        assert everything(engine)["collections"] == alone

    def test_force_takes_a_catalog_that_lost_much(
        self, engine: Engine, settings: Settings, tmp_path: Path
    ) -> None:
        path = tmp_path / "catalog.json"
        self.harvested(engine, settings, path, *row_of_cubes(10))
        with pytest.raises(CatalogError, match="--force"):
            self.harvested(engine, settings, path, *row_of_cubes(3))
        report = harvest(engine, settings, [str(path)], mosaics=False, force=True)
        assert report.total == Counts(unchanged=3, retired=7)


class TestNotModified:
    """Conditional requests for the catalog itself."""

    @pytest.fixture
    def url(self, mirror: MirrorServer) -> str:
        catalog(mirror.root / "catalog.json", *row_of_cubes(5))
        return f"{mirror.url}/catalog.json"

    def test_nothing_is_read_again(
        self, engine: Engine, served: Settings, mirror: MirrorServer, url: str
    ) -> None:
        first = harvest(engine, served, [url])
        assert first.not_modified_since is None
        before = everything(engine)
        for _ in range(2):  # the second time what the first one noted has to be there still
            report = harvest(engine, served, [url])
            assert report.not_modified_since == first.started
            assert report.counts == {
                "itslive-cubes": Counts(unchanged=5),
                "velocity-mosaics": Counts(unchanged=82),
            }
        assert harvest(engine, served, [url], dry_run=True).not_modified_since == first.started
        assert [request.status for request in mirror.requests] == [200, 304, 304, 304]
        assert everything(engine) == before
        assert len(log_of(engine)) == 3

    def test_a_change_is_read(
        self, engine: Engine, served: Settings, mirror: MirrorServer, url: str
    ) -> None:
        harvest(engine, served, [url], mosaics=False)
        catalog(mirror.root / "catalog.json", *row_of_cubes(6))
        assert harvest(engine, served, [url], mosaics=False).total == Counts(added=1, unchanged=5)
        assert harvest(engine, served, [url], mosaics=False).not_modified_since is not None

    def test_other_reasons_to_read(
        self,
        engine: Engine,
        served: Settings,
        url: str,
        mirror: MirrorServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def is_read(**more: Any) -> bool:
            return harvest(engine, served, [url], **more).not_modified_since is None

        assert is_read(mosaics=False)
        assert is_read(), "the mosaics were not made"
        assert not is_read()
        assert is_read(force=True)
        assert is_read(deep=True), "cubes and mosaics change without the catalog"
        assert not is_read()
        monkeypatch.setattr(module, "__version__", "99")
        assert is_read(), "another version may make other items"
        assert not is_read()
        other = catalog(tmp_path / "other.json", feature(50_000, -2_450_000))
        harvest(engine, served, [other])
        assert is_read(), "another harvest changed the catalog since"
        harvest(engine, served, [other])
        assert not is_read(), "another harvest changed nothing"

    def test_one_of_two_catalogs_changed(
        self, engine: Engine, served: Settings, mirror: MirrorServer, url: str, tmp_path: Path
    ) -> None:
        other = catalog(tmp_path / "other.json", *row_of_cubes(2, granule_count=1))
        harvest(engine, served, [url, other], mosaics=False)
        catalog(Path(other), *row_of_cubes(3, granule_count=2))
        report = harvest(engine, served, [url, other], mosaics=False)
        assert report.total == Counts(changed=3, unchanged=2)
        assert report.repeated == 3

    def test_a_failed_harvest_has_read_nothing(
        self, engine: Engine, served: Settings, mirror: MirrorServer, url: str
    ) -> None:
        harvest(engine, served, [url], mosaics=False)
        catalog(mirror.root / "catalog.json", *row_of_cubes(2))
        for _ in range(2):
            with pytest.raises(CatalogError, match="lost 3 of its 5"):
                harvest(engine, served, [url], mosaics=False)


class TestRunLog:
    def test_runs(self, engine: Engine, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "catalog.json"
        source = catalog(path, *row_of_cubes(3))
        harvest(engine, settings, [source], mosaics=False)
        path.write_text("{")
        with pytest.raises(CatalogError):
            harvest(engine, settings, [source], mosaics=False)
        begun = runs.begin(engine, [source], datetime.now(UTC))
        under_way, failed, good = runs.recent(engine, 5)
        assert (under_way["id"], under_way["status"], under_way["finished"]) == (
            begun,
            "unfinished",
            None,
        )
        assert failed["status"] == "failed"
        assert "cut short" in failed["error"]
        assert (good["status"], good["added"], good["sources"]) == ("successful", 3, [source])
        assert runs.recent(engine, 1) == [under_way]
        runs.begin(engine, [source], datetime.now(UTC))
        killed = runs.recent(engine, 2)[1]
        assert (killed["status"], killed["error"]) == ("failed", runs.INTERRUPTED)


BAD_CATALOGS: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"<!DOCTYPE html><html><body>503 Slow Down</body></html>", "HTML"),
    (b'{"type": "FeatureCollection", "features": [{"type": "Fea', "cut short"),
    (gzip.compress(b'{"type": "FeatureCollection", "features": []}'), "without features"),
    (gzip.compress(b"<html>"), "HTML"),
    (gzip.compress(b"x" * 10_000)[:-9], "cut short"),
    (b'{"type": "' + b"x" * 10_000_000 + b'"}', "not a GeoJSON FeatureCollection"),
]


@contextmanager
def redirecting(goal: str) -> Iterator[str]:
    """A server that sends everyone elsewhere; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(301)
            self.send_header("Location", goal + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class TestBadInput:
    """Whatever comes in place of a catalog, the one that is there stays."""

    @pytest.fixture
    def before(
        self, engine: Engine, served: Settings, mirror: MirrorServer, url: str
    ) -> dict[str, Any]:
        harvest(engine, served, [url])
        return everything(engine)

    @pytest.fixture
    def url(self, mirror: MirrorServer) -> str:
        catalog(mirror.root / "catalog.json", *row_of_cubes(5))
        return f"{mirror.url}/catalog.json"

    @pytest.mark.parametrize(("data", "reason"), BAD_CATALOGS, ids=[r for _, r in BAD_CATALOGS])
    def test_no_catalog(
        self,
        engine: Engine,
        served: Settings,
        mirror: MirrorServer,
        url: str,
        before: dict[str, Any],
        data: bytes,
        reason: str,
    ) -> None:
        (mirror.root / "catalog.json").write_bytes(data)
        for force in (False, True):
            with pytest.raises(SourceError, match=reason) as caught:
                harvest(engine, served, [url], force=force)
            assert everything(engine) == before
            assert len(str(caught.value)) < 400
            assert log_of(engine)[-1][2] == str(caught.value)
        catalog(mirror.root / "catalog.json", *row_of_cubes(6))
        assert harvest(engine, served, [url]).counts["itslive-cubes"].added == 1

    @pytest.mark.parametrize("status", [500, 503, 404, 403])
    def test_no_answer(
        self,
        engine: Engine,
        served: Settings,
        mirror: MirrorServer,
        url: str,
        before: dict[str, Any],
        status: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("firnline.web._sleep", lambda _: None)
        mirror.faults = Faults(Fault("status", status))
        with pytest.raises(SourceError):
            harvest(engine, served, [url])
        assert everything(engine) == before
        mirror.faults = Faults(Fault("cut"))
        with pytest.raises(SourceUnreachableError):
            harvest(engine, served, [url], force=True)
        assert everything(engine) == before

    def test_a_redirect_to_another_host(
        self,
        engine: Engine,
        served: Settings,
        mirror: MirrorServer,
        before: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        """Refused, unless that host is an allowed source as well."""
        (tmp_path / "other").mkdir()
        catalog(tmp_path / "other" / "catalog.json", *row_of_cubes(6))
        with MirrorServer(tmp_path / "other") as other, redirecting(other.url) as moved:
            allowed = (*served.allowed_sources, f"{moved}/")
            careful = served.model_copy(update={"allowed_sources": allowed})
            with pytest.raises(SourceNotAllowedError, match=other.url):
                harvest(engine, careful, [f"{moved}/catalog.json"])
            assert everything(engine) == before
            assert not other.requests
            assert other.url in (log_of(engine)[-1][2] or "")
            trusting = served.model_copy(update={"allowed_sources": (*allowed, f"{other.url}/")})
            report = harvest(engine, trusting, [f"{moved}/catalog.json"], mosaics=False)
            # five cubes are the other catalog's too; the later harvest has them
            assert report.total == Counts(added=1, unchanged=5)

    def test_bad_features_leave_the_rest(
        self,
        engine: Engine,
        served: Settings,
        mirror: MirrorServer,
        url: str,
        before: dict[str, Any],
    ) -> None:
        """Each kind of bad feature beside good ones: one reason each, and the good ones are in."""
        ring = [[1e9, 0], [1.1e9, 0], [1.1e9, 1e8], [1e9, 1e8], [1e9, 0]]
        bad = {
            "it has no zarr_url": feature(1, 1, zarr_url=None),
            "not known to PROJ": feature(0, 0, zarr_url="https://h/a.zarr", epsg=999_999),
            "out of range": feature(
                0, 0, zarr_url="https://h/b.zarr",
                geometry_epsg={"type": "Polygon", "coordinates": [ring]},
            ),
            "not an https": feature(0, 0, zarr_url="https://h/" + "x" * 10_000_000),
            "is no code": feature(0, 0, zarr_url="https://h/c.zarr", epsg="9" * 10_000_000),
            "the same cube as feature 0": row_of_cubes(1, granule_count=7)[0],
        }  # fmt: skip
        good = row_of_cubes(6)
        good[2]["properties"]["FULL_NAME"] = "y" * 10_000_000
        path = mirror.root / "catalog.json"
        packed = json.dumps({"type": "FeatureCollection", "features": [*good, *bad.values()]})
        path.write_bytes(gzip.compress(packed.encode(), 1))
        report = harvest(engine, served, [url], mosaics=False)
        assert report.total.added == 1
        assert report.total.retired == 0
        assert report.failed == len(bad)
        for failure, reason in zip(report.failures, bad, strict=True):
            assert reason in failure.reason
        assert len(report.to_json()) < 10_000
        with reading(engine) as connection:
            sizes = [len(content) for content in connection.scalars(select(items.c.content))]
        assert max(sizes) < 50_000
        now = {row[1]: row for row in everything(engine)["items"]}
        kept = [row for row in before["items"] if "_X250000_" not in row[1]]
        assert [now[row[1]] for row in kept] == kept
