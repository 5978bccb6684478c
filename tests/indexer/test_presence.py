"""Which files there are: what is asked, what is remembered, what is advertised."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import Affine
from shapely.geometry import box
from sqlalchemy import Engine, select

from firnline import items as stac
from firnline.database import connect, reading, writing
from firnline.errors import SourceNotAllowedError, SourceUnreachableError
from firnline.indexer import mosaics, presence
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.presence import CYCLE, is_due, present
from firnline.indexer.report import Counts
from firnline.items import MosaicRecord, mosaic_item
from firnline.settings import Settings
from firnline.source_files import Grid, SourceFile, known_files, put_files
from firnline.tables import LIVING, items

NOW = datetime(2026, 3, 5, 4, 30, tzinfo=UTC)
ROOT = "https://its-live-data.s3.amazonaws.com/velocity_mosaic"


# --- what is known, applied to an item ------------------------------------------------------


def mosaic() -> dict[str, Any]:
    record = MosaicRecord(5, "2.1", 2018, 2024, ROOT, "EPSG:3413", box(-50, 60, -40, 70))
    return mosaic_item(record)


def known(item: dict[str, Any], **found: bool) -> dict[str, SourceFile]:
    """Answers for some assets of an item."""
    return {
        (url := item["assets"][key]["href"]): SourceFile(
            url, there, NOW, f'"{key}"' if there else None, 100 if there else None
        )
        for key, there in found.items()
    }


class TestPresent:
    def test_what_no_one_asked_for_is_believed(self) -> None:
        item = mosaic()
        assert present(item, {}) == item

    def test_missing_assets_are_left_out_and_the_others_told(self) -> None:
        item = mosaic()
        there = present(item, known(item, cog_v=True, cog_count=False, data_netcdf=False))
        assert there is not None
        assert item["assets"].keys() - there["assets"].keys() == {"cog_count", "data_netcdf"}
        assert there["assets"]["cog_v"] == item["assets"]["cog_v"] | {
            "file:size": 100,
            "itslive:etag": '"cog_v"',
        }
        assert there["assets"]["cog_vx"] == item["assets"]["cog_vx"]
        assert there["stac_extensions"] == [*item["stac_extensions"], stac.FILE]
        assert "proj:shape" not in there["properties"]

    def test_without_velocities_there_is_no_mosaic(self) -> None:
        item = mosaic()
        gone = known(item, cog_v=False, cog_vx=False, cog_vy=False, cog_count=True)
        assert present(item, gone) is None
        gone |= known(item, cog_vy=True)
        assert present(item, gone) is not None

    def test_the_grid_is_that_of_the_first_velocity(self) -> None:
        item = mosaic()
        files = known(item, cog_v=False, cog_vx=True)
        url = item["assets"]["cog_vx"]["href"]
        grid = Grid((3, 2), (120.0, 0.0, 7.5, 0.0, -120.0, 1000.0))
        files[url] = SourceFile(url, True, NOW, '"a"', 1, grid)
        there = present(item, files)
        assert there is not None
        assert {k: v for k, v in there["properties"].items() if k not in item["properties"]} == {
            "proj:shape": [3, 2],
            "proj:transform": [120.0, 0.0, 7.5, 0.0, -120.0, 1000.0],
            "proj:bbox": [7.5, 640.0, 247.5, 1000.0],
        }
        assert there["properties"]["proj:code"] == "EPSG:3413"

    def test_it_is_valid(self) -> None:
        """By the schemas of STAC and its extensions."""
        spec = importlib.util.spec_from_file_location(
            "firnline_test_schemas", Path(__file__).parents[1] / "schemas.py"
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not (module.SCHEMAS / "index.json").exists():
            pytest.skip(f"{module.SCHEMAS} is not here")
        item = mosaic()
        files = known(item, **dict.fromkeys(item["assets"], True))
        url = item["assets"]["cog_v"]["href"]
        grid = Grid((3, 2), (120.0, 0.0, 7.5, 0.0, -120.0, 1000.0))
        files[url] = replace(files[url], grid=grid)
        there = present(item, files)
        assert there is not None
        assert {"proj:shape", "proj:transform", "proj:bbox"} < there["properties"].keys()
        assert module.StacSchemas().problems(there) == []


class TestDue:
    def test_missing_and_unknown_are_always_asked_for(self) -> None:
        assert is_due(None, NOW)
        assert is_due(SourceFile("a", False, NOW), NOW)

    @given(st.text(), st.integers(0, 10_000), st.integers(0, 3 * CYCLE))
    def test_found_is_asked_for_again_within_a_cycle(self, url: str, day: int, later: int) -> None:
        asked = NOW + timedelta(days=day)
        file = SourceFile(url, True, asked)
        assert not is_due(file, asked)
        due = [is_due(file, asked + timedelta(days=n)) for n in range(later + 1)]
        assert sorted(due) == due, "once it is due it stays so until it is asked for"
        assert any(due) or later < CYCLE

    def test_every_day_has_its_share(self) -> None:
        """All found on one day, and then a run every day: a thirtieth of them, each once."""
        files = [SourceFile(f"{ROOT}/{n}.tif", True, NOW) for n in range(9_000)]
        counts = []
        for day in range(1, 2 * CYCLE + 1):
            today = NOW + timedelta(days=day)
            due = [n for n, file in enumerate(files) if is_due(file, today)]
            counts.append(len(due))
            for n in due:
                files[n] = SourceFile(files[n].url, True, today)
        assert sum(counts[:CYCLE]) == sum(counts[CYCLE:]) == 9_000
        assert max(counts) < 2 * 9_000 / CYCLE


def test_answers_are_kept(database: Engine) -> None:
    grid = Grid((3, 2), (120.0, 0.0, 7.5, 0.0, -120.0, 1000.25))
    first = [
        SourceFile("a", True, NOW, '"a"', 2**40, grid),
        SourceFile("b", False, NOW),
        *(SourceFile(f"c{n}", True, NOW) for n in range(1_200)),
    ]
    changed = [SourceFile("b", True, NOW + timedelta(microseconds=1), None, 0)]
    for batch in (first, changed):
        with writing(database) as connection:
            put_files(connection, batch)
    with reading(database) as connection:
        assert known_files(connection) == {file.url: file for file in first + changed}


# --- harvests -------------------------------------------------------------------------------


def write_cog(path: Path, shape: tuple[int, int] = (30, 20), epsg: int = 3413) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="COG", height=shape[0], width=shape[1], count=1, dtype="float32",
        crs=epsg, transform=Affine(120, 0, -7.5, 0, -120, 4567.5),
    ) as raster:  # fmt: skip
        raster.write(np.ones(shape, "f4"), 1)


def name_of(year: int | None, what: str, version: str = "2.1") -> str:
    """Path of a file of a mosaic below its root."""
    record = MosaicRecord(5, version, year, 2024, "", "EPSG:3413", box(0, 0, 1, 1))
    return stac.mosaic_url(record, what).lstrip("/")


class Place:
    """A mirror with files of the mosaics of Greenland in 2018, and an installation that reads it.

    Only four mosaics are possible: two versions, static and of 2018.
    """

    CANDIDATES = 2 * (24 + 9) - 2  # both versions have the same browse images

    def __init__(self, server: MirrorServer, folder: Path, url: str) -> None:
        self.server, self.folder = server, folder
        self.settings = Settings(
            data_dir=folder,
            database_url=url,
            allowed_sources=(f"{server.url}/",),
            mosaic_roots=(f"{server.url}/mosaics",),
            _env_file=None,
        )  # type: ignore[call-arg]
        self.engine = connect(url)
        write_cog(self.path(2018, "v"))
        write_cog(self.path(2018, "vx"))
        self.path(2018, "netcdf").write_bytes(b"CDF" * 11)
        self.cubes: list[dict[str, Any]] = [{}]

    def path(self, year: int | None, what: str, version: str = "2.1") -> Path:
        return self.server.root / "mosaics" / name_of(year, what, version)

    def harvest(self, *, deep: bool = True, **more: Any) -> Any:
        features = []
        for n, extra in enumerate(self.cubes):
            name = f"ITS_LIVE_vel_EPSG3413_G0120_X{50_000 + 100_000 * n}_Y-2250000.zarr"
            url = f"{self.server.url}/datacubes/v2/{name}"
            properties = {"zarr_url": url, "epsg": 3413, "RGI_CODE": 5} | extra
            features.append({"type": "Feature", "properties": properties})
        path = self.folder / "catalog.json"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return harvest(self.engine, self.settings, [str(path)], deep=deep, **more)

    def items(self, collection: str = stac.MOSAICS) -> dict[str, dict[str, Any]]:
        chosen = select(items.c.id, items.c.content).where(items.c.collection == collection, LIVING)
        with reading(self.engine) as connection:
            return {id: json.loads(content) for id, content in connection.execute(chosen)}

    def age(self, days: int) -> None:
        """Let all answers be so many days old."""
        with reading(self.engine) as connection:
            files = known_files(connection)
        with writing(self.engine) as connection:
            older = [replace(f, asked=f.asked - timedelta(days=days)) for f in files.values()]
            put_files(connection, older)


@pytest.fixture
def place(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    greenland = next(region for region in mosaics.REGIONS if region.number == 5)
    short = mosaics.Region(5, greenland.crs, 2018, greenland.box, greenland.rgi)
    monkeypatch.setattr(mosaics, "REGIONS", (short,))
    monkeypatch.setattr(mosaics, "VERSIONS", {"2": 2018, "2.1": 2018})
    monkeypatch.setattr("firnline.web._sleep", lambda _: None)
    (tmp_path / "mirror").mkdir()
    with MirrorServer(tmp_path / "mirror") as server:
        place = Place(server, tmp_path, database_url)
        yield place
        place.engine.dispose()


ID = "RGI05A_ANNUAL_2018"


def test_only_what_is_there_is_advertised(place: Place) -> None:
    report = place.harvest()
    assert report.counts[stac.MOSAICS] == Counts(added=1)
    assert (report.asked, report.missing, report.failed) == (place.CANDIDATES, 61, 0)
    assert "64 files asked for; 61 don't exist and are left out" in report.lines()
    (item,) = place.items().values()
    assert item["id"] == ID
    assert item["assets"].keys() == {"cog_v", "cog_vx", "data_netcdf"}
    for key, what in (("cog_v", "v"), ("cog_vx", "vx"), ("data_netcdf", "netcdf")):
        stat = place.path(2018, what).stat()
        assert item["assets"][key]["file:size"] == stat.st_size
        etag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'  # what the mirror makes of it
        assert item["assets"][key]["itslive:etag"] == etag
    with rasterio.open(place.path(2018, "v")) as raster:
        assert item["properties"]["proj:shape"] == list(raster.shape) == [30, 20]
        assert item["properties"]["proj:transform"] == list(raster.transform)[:6]
        assert item["properties"]["proj:bbox"] == list(raster.bounds)
    asked = place.server.requests
    assert [(r.method, r.status) for r in asked if r.method != "HEAD"] == [("GET", 206)]
    assert len(asked) == place.CANDIDATES + 1


def test_templates_are_believed_until_someone_looked(place: Place) -> None:
    assert place.harvest(deep=False).counts[stac.MOSAICS] == Counts(added=4)
    assert not place.server.requests
    assert len(place.items()[ID]["assets"]) == 9
    assert place.harvest().counts[stac.MOSAICS] == Counts(changed=1, retired=3)
    before = place.items()
    place.server.clear()
    # what was found is not forgotten by a harvest that does not look
    report = place.harvest(deep=False, force=True)
    assert report.counts[stac.MOSAICS] == Counts(unchanged=1)
    assert (report.asked, report.missing) == (0, 61)
    assert place.items() == before
    assert not place.server.requests


def test_a_second_look_asks_only_for_what_was_missing(place: Place) -> None:
    place.harvest()
    before = place.items()
    place.server.clear()
    report = place.harvest()
    assert report.counts[stac.MOSAICS] == Counts(unchanged=1)
    assert report.asked == len(place.server.requests) == 61
    assert {(r.method, r.status) for r in place.server.requests} == {("HEAD", 404)}
    assert place.items() == before
    # what has come since is found, and the grid is still that of `v`
    write_cog(place.path(2018, "vy"))
    write_cog(place.path(None, "vy"), (5, 6))
    report = place.harvest()
    assert report.counts[stac.MOSAICS] == Counts(added=1, changed=1)
    found = place.items()
    assert found[ID]["properties"] == before[ID]["properties"]
    assert found["RGI05A_STATIC"]["properties"]["proj:shape"] == [5, 6]
    assert found["RGI05A_STATIC"]["assets"].keys() == {"cog_vy"}


def test_everything_is_asked_for_in_a_while_or_by_force(place: Place) -> None:
    place.harvest()
    before = place.items()
    for prepare, more in ((lambda: place.age(CYCLE), {}), (lambda: None, {"force": True})):
        prepare()
        place.server.clear()
        report = place.harvest(**more)
        assert report.asked == place.CANDIDATES
        # a header is not read again where the ETag is the same
        assert {r.method for r in place.server.requests} == {"HEAD"}
        assert place.items() == before
    write_cog(place.path(2018, "v"), (31, 21))
    place.path(2018, "vx").unlink()
    report = place.harvest(force=True)
    assert report.counts[stac.MOSAICS] == Counts(changed=1)
    item = place.items()[ID]
    assert item["properties"]["proj:shape"] == [31, 21]
    assert "cog_vx" not in item["assets"]


def test_a_mosaic_without_velocities_goes_and_comes_back(place: Place) -> None:
    place.harvest()
    before = place.items()
    kept = place.path(2018, "v").rename(place.folder / "kept")
    place.path(2018, "vx").unlink()
    assert place.harvest(force=True).counts[stac.MOSAICS] == Counts(retired=1)
    assert place.items() == {}
    kept.rename(place.path(2018, "v"))
    assert place.harvest().counts[stac.MOSAICS] == Counts(revived=1)
    assert place.items()[ID]["assets"]["cog_v"] == before[ID]["assets"]["cog_v"]


@pytest.mark.parametrize("fault", [Fault("status", 503), Fault("status", 403), Fault("cut")])
def test_no_answer_is_a_failure_and_hides_nothing(place: Place, fault: Fault) -> None:
    name = name_of(2018, "vx")
    # `cut` breaks no HEAD, but the header that is read
    if fault.kind == "cut":
        name = name_of(2018, "v")
    place.server.faults = Faults(fault, match=f"*/{name}")
    report = place.harvest()
    (failure,) = report.failures
    assert failure.id == f"{ID} {'cog_v' if fault.kind == 'cut' else 'cog_vx'}"
    assert name in failure.reason
    assert fault.kind == "cut" or f"answered {fault.status}" in failure.reason
    assert failure.source == place.settings.mosaic_roots[0]
    assert (report.failed, report.counts[stac.MOSAICS]) == (1, Counts(added=1))
    item = place.items()[ID]
    assert item["assets"].keys() == {"cog_v", "cog_vx", "data_netcdf"}
    if fault.kind == "cut":
        assert "proj:shape" not in item["properties"]
    else:
        assert "file:size" not in item["assets"]["cog_vx"], "believed, not known"
    # known before, it is still known
    place.server.faults = None
    assert place.harvest().failed == 0
    before = place.items()
    place.server.faults = Faults(fault, match=f"*/{name}")
    place.age(CYCLE)
    place.harvest()
    assert place.items() == before


def test_a_host_that_is_down_changes_nothing(place: Place) -> None:
    place.harvest()
    before = place.items()
    place.server.faults = Faults(Fault("status", 500), match="*/mosaics/*")
    with pytest.raises(SourceUnreachableError, match="8 files in a row gave no answer"):
        place.harvest()
    assert place.items() == before
    with MirrorServer(place.folder) as server:
        url = server.url
    place.settings = place.settings.model_copy(
        update={"allowed_sources": (f"{url}/",), "mosaic_roots": (f"{url}/mosaics",)}
    )
    with pytest.raises(SourceUnreachableError, match="refused"):
        place.harvest()
    assert place.items() == before


def test_a_host_that_goes_down_between(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that was asked for is known; the headers are an outage, and not tried one by one."""
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    monkeypatch.setattr(presence, "_OUTAGE", 1)
    place.server.faults = lambda method, path, attempt: (
        Fault("status", 503) if method == "GET" else None
    )
    with pytest.raises(SourceUnreachableError, match="1 files in a row gave no answer"):
        place.harvest()
    assert place.items() == {}
    place.server.faults = None
    assert place.harvest().asked == 61
    assert place.items()[ID]["properties"]["proj:shape"] == [30, 20]


def test_a_root_that_is_not_allowed(place: Place) -> None:
    place.settings = place.settings.model_copy(
        update={"allowed_sources": ("https://example.org/",)}
    )
    with pytest.raises(SourceNotAllowedError):
        place.harvest()
    assert not place.server.requests


def test_a_folder_of_one_s_own(place: Place) -> None:
    root = f"{place.server.root.as_uri()}/mosaics"
    place.settings = place.settings.model_copy(
        update={"allowed_sources": (root,), "mosaic_roots": (root,)}
    )
    for _ in range(2):
        assert place.harvest().failed == 0
        item = place.items()[ID]
        assert item["assets"].keys() == {"cog_v", "cog_vx", "data_netcdf"}
        assert item["assets"]["data_netcdf"]["file:size"] == 33
        assert item["properties"]["proj:shape"] == [30, 20]


def test_a_mosaic_in_another_crs_than_its_region_is_told(place: Place) -> None:
    write_cog(place.path(2018, "v"), epsg=3031)
    report = place.harvest()
    (failure,) = report.failures
    assert "in EPSG:3031, not in EPSG:3413" in failure.reason
    assert "proj:shape" not in place.items()[ID]["properties"]


def test_an_interrupted_look_goes_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_BATCH", 10)

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "grids":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.harvest(progress=stop)
    assert place.items() == {}
    assert place.harvest().asked == 61
    assert place.items()[ID]["properties"]["proj:shape"] == [30, 20]


def test_a_dry_run_remembers_nothing(place: Place) -> None:
    report = place.harvest(dry_run=True)
    assert report.counts[stac.MOSAICS] == Counts(added=1)
    with reading(place.engine) as connection:
        assert known_files(connection) == {}


class TestComposites:
    """Per-cube annual composites: assets of the cube."""

    @pytest.fixture
    def urls(self, place: Place) -> list[str]:
        """Of four cubes: Zarr v2, Zarr v3, missing; and a cube that has none."""
        folder = place.server.root / "composites/annual"
        names = ("a.zarr", "b.zarr", "c.zarr")
        for name, metadata in (("a.zarr", ".zmetadata"), ("b.zarr", "zarr.json")):
            (folder / name).mkdir(parents=True)
            (folder / name / metadata).write_text("{}")
        urls = [f"{place.server.url}/composites/annual/{name}" for name in names]
        place.cubes = [*({"composite_zarr_url": url} for url in urls), {}]
        return urls

    def composites(self, place: Place) -> list[dict[str, Any] | None]:
        found = sorted(place.items(stac.CUBES).items())
        return [item["assets"].get("composite") for _, item in found]

    def test_missing_ones_are_not_advertised(self, place: Place, urls: list[str]) -> None:
        place.harvest(deep=False, mosaics=False)
        hrefs = [each and each["href"] for each in self.composites(place)]
        assert sorted(filter(None, hrefs)) == urls, "believed"
        assert not place.server.requests
        report = place.harvest(mosaics=False)
        assert (report.asked, report.missing, report.failed) == (3, 1, 0)
        assert report.counts[stac.CUBES] == Counts(changed=3, unchanged=1)
        found = {each["href"]: each for each in self.composites(place) if each is not None}
        assert found.keys() == set(urls[:2])
        for url, metadata in zip(urls, (".zmetadata", "zarr.json"), strict=False):
            path = place.server.root / url.removeprefix(f"{place.server.url}/") / metadata
            stat = path.stat()
            assert "file:size" not in found[url], "that of one of its files"
            assert found[url]["itslive:etag"] == f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
        # neither name was there: two requests; the second: one more
        assert [r.status for r in place.server.requests].count(404) == 3
        place.server.clear()
        again = place.harvest(mosaics=False)
        assert (again.asked, again.counts[stac.CUBES]) == (1, Counts(unchanged=4))
        shallow = place.harvest(deep=False, mosaics=False, force=True)
        assert (shallow.asked, shallow.counts[stac.CUBES]) == (0, Counts(unchanged=4))

    def test_no_answer_hides_none(self, place: Place, urls: list[str]) -> None:
        place.server.faults = Faults(Fault("status", 503), match="*/c.zarr/zarr.json")
        report = place.harvest(mosaics=False)
        (failure,) = report.failures
        assert failure.id is not None
        assert failure.id.endswith(" composite")
        assert "c.zarr/zarr.json: the server answered 503" in failure.reason
        assert len(list(filter(None, self.composites(place)))) == 3

    def test_one_that_is_elsewhere_is_a_failure(self, place: Place, urls: list[str]) -> None:
        place.cubes.append({"composite_zarr_url": "https://example.org/d.zarr"})
        report = place.harvest(mosaics=False)
        assert ["not an allowed source" in each.reason for each in report.failures] == [True]
        assert len(list(filter(None, self.composites(place)))) == 3

    def test_the_deep_read_of_the_cubes_keeps_them(self, place: Place, urls: list[str]) -> None:
        place.harvest(mosaics=False)
        before = place.items(stac.CUBES)
        report = deepen(place.engine, place.settings)
        assert report.failed == 4, "there are no cubes in this mirror"
        assert place.items(stac.CUBES) == before
