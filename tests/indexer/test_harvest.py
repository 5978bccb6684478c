from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely
from sqlalchemy import Engine, func, select

from firnline.database import connect, migrate, reading
from firnline.errors import (
    CatalogError,
    DatabaseError,
    InputError,
    SourceMissingError,
    SourceNotAllowedError,
    SourceUnreachableError,
)
from firnline.indexer import harvest as module
from firnline.indexer.harvest import Counts, Report, harvest
from firnline.settings import Settings
from firnline.tables import collections, harvests, items, items_rtree

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", _env_file=None)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    migrate(engine)
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
        stored = select(items.c.collection, items.c.id, items.c.digest, items.c.source)
        return {
            "items": sorted(map(tuple, connection.execute(stored))),
            "collections": sorted(map(tuple, connection.execute(select(collections)))),
            "boxes": sorted(map(tuple, connection.execute(select(items_rtree)))),
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
    again = harvest(engine, settings, [one, two], mosaics=False)
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


def test_only_mosaics_that_exist(engine: Engine, settings: Settings, tmp_path: Path) -> None:
    source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
    report = harvest(
        engine, settings, [source], exists=lambda urls: ["_2018_" in url for url in urls]
    )
    assert report.counts["velocity-mosaics"] == Counts(added=2)
    assert report.missing == 80
    # once believed, once looked for: what does not exist is retired
    assert harvest(engine, settings, [source]).counts["velocity-mosaics"].added == 80
    report = harvest(engine, settings, [source], exists=lambda urls: [False] * len(urls))
    assert report.counts["velocity-mosaics"] == Counts(retired=82)


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

        def down(location: str, *, allowed: Any) -> bytes:
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

        monkeypatch.setattr(module, "delete_items", broken)
        with pytest.raises(DatabaseError):
            harvest(engine, settings, [source])
        assert everything(engine) == before
        assert log_of(engine)[-1][2] == "the disk is full"

    def test_no_locations(self, engine: Engine, settings: Settings) -> None:
        with pytest.raises(InputError, match="no catalog"):
            harvest(engine, settings, [])

    def test_database_without_schema(self, settings: Settings, tmp_path: Path) -> None:
        source = catalog(tmp_path / "catalog.json", *row_of_cubes(1))
        bare = connect(settings.database)
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
    assert "nothing changed" in harvest(engine, settings, [source]).lines()


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
