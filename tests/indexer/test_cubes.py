"""The deep read of the sample's cubes: what it finds, what it costs, what it survives."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import xarray as xr
from sqlalchemy import select

from firnline import runs
from firnline.cli import app
from firnline.database import connect, get_item, put_items, reading, writing
from firnline.deep import platforms, stored_facts, with_facts
from firnline.errors import ConflictError, SourceUnreachableError
from firnline.footprint import bbox, footprint
from firnline.indexer.cubes import DeepReport, deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.sample import CubeRecord, Mirror, write_mirror
from firnline.items import CUBES, DT_EDGES, grid_of_tile, item_row
from firnline.locks import alone
from firnline.pairs import count_pairs, read_pairs
from firnline.settings import Settings
from firnline.tables import LIVING, collections, items

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[MirrorServer, Mirror]]:
    """A mirror of its own: some tests change its files."""
    root = tmp_path_factory.mktemp("bucket")
    with MirrorServer(root) as server:
        yield server, write_mirror(root, server.url, pairs=48, mosaics=False)


class Place:
    """An installation that has harvested the mirror, and ways to ask it."""

    def __init__(self, server: MirrorServer, mirror: Mirror, folder: Path, url: str) -> None:
        self.server, self.mirror = server, mirror
        self.settings = Settings(
            data_dir=folder, database_url=url, allowed_sources=(f"{server.url}/",), _env_file=None
        )  # type: ignore[call-arg]
        self.engine = connect(url)
        self.harvest()

    def harvest(self) -> Any:
        """Forced: the catalog itself has not changed since the last one."""
        return harvest(
            self.engine, self.settings, [self.mirror.catalog_url], mosaics=False, force=True
        )

    def deepen(self) -> DeepReport:
        return deepen(self.engine, self.settings)

    def item(self, cube: CubeRecord) -> dict[str, Any]:
        with reading(self.engine) as connection:
            content = get_item(connection, CUBES, cube.name)
        assert content is not None
        return dict(json.loads(content))

    def contents(self) -> dict[str, bytes]:
        with reading(self.engine) as connection:
            rows = connection.execute(select(items.c.id, items.c.content, items.c.digest))
            return {row.id: row.content + row.digest.encode() for row in rows}


@pytest.fixture
def place(
    bucket: tuple[MirrorServer, Mirror], tmp_path: Path, database_url: str
) -> Iterator[Place]:
    """On a database of each kind in turn."""
    server, mirror = bucket
    server.faults = None
    made = Place(server, mirror, tmp_path, database_url)
    server.clear()
    yield made
    server.faults = None
    made.engine.dispose()


def raw(place: Place, cube: CubeRecord) -> xr.Dataset:
    """The cube's 1-D arrays by xarray, not decoded."""
    ds = xr.open_zarr(place.mirror.root / cube.path, decode_cf=False, chunks=None)
    return ds[[name for name in ds if ds[name].ndim < 2]].load()


@pytest.fixture
def schemas() -> Any:
    spec = importlib.util.spec_from_file_location("schemas_", HERE.parent / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    schemas = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schemas)
    if not (schemas.SCHEMAS / "index.json").exists():
        pytest.skip(f"{schemas.SCHEMAS} is not here")
    return schemas.StacSchemas()


def test_items_say_what_the_cubes_hold(place: Place, schemas: Any) -> None:
    before = {cube.name: place.item(cube) for cube in place.mirror.cubes}
    report = place.deepen()
    assert (report.read, report.unchanged, report.failures) == (5, 0, ())
    assert report.pairs == 5 * 48
    for cube in place.mirror.cubes:
        item, ds = place.item(cube), raw(place, cube)
        properties = item["properties"]
        # stale in the catalog, as in the real one
        assert before[cube.name]["properties"]["itslive:granule_count"] == 47
        assert properties["itslive:granule_count"] == 48
        assert properties["itslive:temporal_extent"] == "true"
        micro = np.rint(ds.mid_date.values * 86_400e6).astype("i8").astype("M8[us]")
        for key, value in (("start", micro.min()), ("end", micro.max())):
            stamp = properties[f"{key}_datetime"]
            assert stamp.endswith("Z")
            assert datetime.fromisoformat(stamp) == value.item().replace(tzinfo=UTC)
        extent = properties["cube:dimensions"]["mid_date"]["extent"]
        assert extent == [properties["start_datetime"], properties["end_datetime"]]
        both = [
            np.char.add(ds[f"mission_{i}"].values, ds[f"satellite_{i}"].values)
            for i in ("img1", "img2")
        ]
        assert properties["itslive:satellites"] == sorted(set(np.concatenate(both).tolist()))
        assert properties.get("platform") is None, "there are several"
        assert properties["instruments"] == ["c-sar", "msi", "oli"]
        assert "constellation" not in properties
        assert properties["itslive:sensors"] == sorted(set(ds.sensor_img1.values.tolist()))
        bins = properties["itslive:dt_histogram"]
        assert bins["edges"] == list(DT_EDGES)
        edges = [*DT_EDGES, 1e9]
        assert bins["counts"] == [
            int(((ds.date_dt.values >= low) & (ds.date_dt.values < high)).sum())
            for low, high in pairwise(edges)
        ]
        assert sum(bins["counts"]) == 48
        shape, transform = grid_of_tile(cube.bounds)
        assert properties["proj:shape"] == list(cube.shape[1:]) == shape
        assert properties["proj:transform"] == transform
        assert properties["updated"] == properties["created"] == "2025-06-20T00:14:51Z"
        variables = properties["cube:variables"]
        assert variables["vx"] == {
            "dimensions": ["mid_date", "y", "x"], "variable_type": "data", "data_type": "int16",
            "nodata": -32767, "unit": "m/yr", "chunks": [48, 10, 10],
        }  # fmt: skip
        assert variables["granule_url"]["data_type"] == "other"
        whole = xr.open_zarr(place.mirror.root / cube.path, decode_cf=False, chunks=None)
        assert {name: about["dimensions"] for name, about in variables.items()} == {
            str(name): list(array.dims) for name, array in whole.data_vars.items() if array.dims
        }
        assert item["assets"]["zarr"]["xarray:open_kwargs"]["zarr_format"] == 2
        assert item["geometry"] == before[cube.name]["geometry"]
        del item["links"]  # the schemas helper adds what is made at reply
        assert schemas.problems(item) == []
    # and a search by time sees it
    with reading(place.engine) as connection:
        first = connection.scalar(
            select(items.c.start_datetime).where(items.c.id == place.mirror.cubes[0].name)
        )
    assert first is not None
    assert first.year >= 2017


def test_the_collection_begins_with_the_first_pair(place: Place) -> None:
    place.deepen()
    starts = [place.item(cube)["properties"]["start_datetime"] for cube in place.mirror.cubes]
    with reading(place.engine) as connection:
        content = connection.scalar(select(collections.c.content).where(collections.c.id == CUBES))
    assert content is not None
    first = json.loads(content)["extent"]["temporal"]["interval"][0][0]
    assert abs(datetime.fromisoformat(first) - datetime.fromisoformat(min(starts))).seconds < 1


# a command leaves its connections to the end of the process, which psycopg warns of
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_command_reads_deep_when_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIRNLINE_DATA_DIR", str(place.settings.data_dir))
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", place.settings.database_url)
    monkeypatch.setenv("FIRNLINE_ALLOWED_SOURCES", f"{place.server.url}/")
    command = ["harvest", place.mirror.catalog_url, "--no-mosaics", "--json"]
    for options, expected in (([], None), (["--deep"], 5)):
        app([*command, *options], standalone_mode=False)
        document = json.loads(capsys.readouterr().out)
        assert document.get("deep_read", {}).get("read") == expected
    app(["status"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    (last, *_) = [line for line in lines if line.startswith("harvest ")]
    assert "5 unchanged; deep read: 5 cubes read, 0 unchanged, 0 failed" in last


def test_pairs_are_those_of_the_cube(place: Place) -> None:
    place.deepen()
    with reading(place.engine) as connection:
        assert count_pairs(connection, [c.name for c in place.mirror.cubes]) == {
            c.name: 48 for c in place.mirror.cubes
        }
        for cube in place.mirror.cubes:
            ds = raw(place, cube)
            (block,) = read_pairs(connection, cube.name)
            pairs = block.pairs
            assert pairs.granule is not None
            at = pairs.position
            assert [name.decode() for name in pairs.granule.tolist()] == [
                cube.granules[n] for n in at
            ]
            np.testing.assert_array_equal(pairs.dt_days, ds.date_dt.values[at])
            np.testing.assert_allclose(
                pairs.valid, ds.roi_valid_percentage.values[at], atol=0.00501
            )
            assert (np.diff(pairs.mid_date) >= np.timedelta64(0, "us")).all()


def test_a_second_run_asks_one_question_a_cube_and_changes_nothing(place: Place) -> None:
    place.deepen()
    first = [r for r in place.server.requests if r.path.endswith(".zmetadata")]
    assert len(first) == 5
    before = place.contents()
    place.server.clear()
    report = place.deepen()
    assert (report.read, report.unchanged, report.failed) == (0, 5, 0)
    assert {(r.path.rsplit("/", 1)[-1], r.status) for r in place.server.requests} == {
        (".zmetadata", 304)
    }
    assert len(place.server.requests) == 5
    assert place.contents() == before


def test_a_harvest_of_the_catalog_keeps_what_was_read(place: Place) -> None:
    place.deepen()
    before = place.contents()
    report = place.harvest()
    assert report.counts[CUBES].unchanged == 5
    assert place.contents() == before


def test_facts_of_another_place_are_not_used(place: Place) -> None:
    place.deepen()
    with place.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE cubes SET url = 'https://example.org/other.zarr'")
    report = place.harvest()
    assert report.counts[CUBES].changed == 5
    assert place.item(place.mirror.cubes[0])["properties"]["itslive:temporal_extent"] == "nominal"
    assert place.deepen().read == 5


def test_an_item_that_lost_its_facts_gets_them_back(place: Place) -> None:
    """A harvest that began before a deep read and ended after it writes what it knew."""
    cube = place.mirror.cubes[0]
    shallow = place.item(cube)
    place.deepen()
    before = place.contents()
    with reading(place.engine) as connection:
        outline = connection.scalar(select(items.c.footprint).where(items.c.id == cube.name))
        source = connection.scalar(select(items.c.source).where(items.c.id == cube.name))
    assert source is not None
    with writing(place.engine) as connection:
        put_items(connection, [item_row(shallow, shapely.from_wkb(outline), source)])
    report = place.deepen()
    assert (report.read, report.unchanged) == (1, 4)
    assert place.contents() == before


def test_only_a_cube_that_changed_is_read_again(place: Place, tmp_path: Path) -> None:
    place.deepen()
    cube = place.mirror.cubes[1]
    path = place.mirror.root / cube.path / ".zmetadata"
    kept = path.read_text()
    try:
        path.write_text(kept.replace("20-Jun-2025 00:14:51", "03-Jul-2026 01:02:03"))
        place.server.clear()
        report = place.deepen()
        assert (report.read, report.unchanged) == (1, 4)
        assert place.item(cube)["properties"]["updated"] == "2026-07-03T01:02:03Z"
        asked = [r.path for r in place.server.requests if r.status == 200]
        assert asked
        assert all(path.startswith(f"/{cube.path}/") for path in asked)
        # no pixel is read
        assert not [path for path in asked if path.count(".") > 3]
    finally:
        path.write_text(kept)
    # a harvest makes the same item out of the new facts
    before = place.contents()
    assert place.harvest().counts[CUBES].unchanged == 5
    assert place.contents() == before


def test_what_can_not_be_read_is_told_and_stops_nothing(place: Place) -> None:
    cubes = place.mirror.cubes
    place.server.faults = lambda method, path, attempt: (
        Fault("status", status=404)
        if path == f"/{cubes[0].path}/.zmetadata"
        else Fault("corrupt")
        if path == f"/{cubes[2].path}/date_dt/0"
        else None
    )
    before = place.item(cubes[0])
    report = place.deepen()
    assert (report.read, report.failed) == (3, 2)
    reasons = {failure.id: failure.reason for failure in report.failures}
    assert "does not exist" in reasons[cubes[0].name]
    assert "date_dt" in reasons[cubes[2].name]
    assert place.item(cubes[0]) == before
    place.server.faults = None
    again = place.deepen()
    assert (again.read, again.unchanged, again.failed) == (2, 3, 0)
    document = json.loads(report.to_json())
    assert (document["read"], len(document["failures"])) == (3, 2)
    assert "2 failed" in report.lines()[0]


def test_a_cube_of_another_crs_than_its_catalog_says(place: Place) -> None:
    cube = place.mirror.cubes[0]
    path = place.mirror.root / cube.path / ".zmetadata"
    kept = path.read_text()
    try:
        path.write_text(kept.replace('"spatial_epsg": 3413', '"spatial_epsg": 3031'))
        (failure,) = place.deepen().failures
        assert "EPSG:3031" in failure.reason
    finally:
        path.write_text(kept)


def test_an_outage_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    place.server.faults = Faults(Fault("status", status=500))
    with pytest.raises(SourceUnreachableError, match="5 cubes in a row"):
        place.deepen()


def test_one_cube_that_does_not_answer_is_a_failure(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    cube = place.mirror.cubes[3]
    place.server.faults = Faults(Fault("status", status=500), match=f"/{cube.path}/*")
    report = place.deepen()
    assert (report.read, [f.id for f in report.failures]) == (4, [cube.name])


def test_what_was_read_before_an_interruption_is_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deepen(place.engine, place.settings, stop)
    place.server.clear()
    report = place.deepen()
    assert (report.read, report.unchanged) == (3, 2)


@pytest.mark.parametrize(
    ("satellites", "platform", "instruments", "constellation"),
    [
        (["L8"], "landsat-8", ["oli"], "landsat"),
        (["L7"], "landsat-7", ["etm+"], "landsat"),
        (["S1A"], "sentinel-1a", ["c-sar"], "sentinel-1"),
        (["S2A", "S2B", "S2C"], None, ["msi"], "sentinel-2"),
        (["L4", "L5", "L7", "L9"], None, ["etm+", "oli", "tm"], "landsat"),
        (["S1A", "S2A"], None, ["c-sar", "msi"], None),
        (["N1", "S1A"], None, ["c-sar"], None),  # one that no one knows yet
        (["N1"], None, None, None),
        ([], None, None, None),
    ],
)
def test_platforms(
    satellites: list[str],
    platform: str | None,
    instruments: list[str] | None,
    constellation: str | None,
) -> None:
    assert platforms(satellites) == {
        "platform": platform,
        "instruments": instruments,
        "constellation": constellation,
    }


def test_a_cube_of_one_satellite_has_a_platform(place: Place, schemas: Any) -> None:
    """The facts of a cube, with other satellites: what is left out is not null."""
    cube = place.mirror.cubes[0]
    place.deepen()
    with reading(place.engine) as connection:
        facts = json.loads(stored_facts(connection)[cube.name][1])
    before = place.item(cube)
    facts["properties"] |= platforms(["S2B"])
    item = with_facts(before, facts)
    assert item["properties"]["platform"] == "sentinel-2b"
    assert item["properties"]["constellation"] == "sentinel-2"
    del item["links"]
    assert schemas.problems(item) == []
    facts["properties"] |= platforms(["S2B", "N1"])
    item = with_facts(item, facts)
    assert item["properties"].keys() & {"platform", "instruments", "constellation"} == {
        "instruments"
    }


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestFootprints:
    """Where the catalog tells no polygon, the cube's own tile is better than its file's name."""

    @pytest.fixture
    def place(
        self, tmp_path: Path, database_url: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Place]:
        root = tmp_path_factory.mktemp("bucket")
        with MirrorServer(root) as server:
            mirror = write_mirror(
                root, server.url, pairs=16, mosaics=False, cubes=["nw"], generation_22=True
            )
            place = Place(server, mirror, tmp_path, database_url)
            yield place
            place.engine.dispose()

    def tell(self, place: Place, **told: Any) -> None:
        """Harvest a catalog whose features tell this of their tiles."""
        document = json.loads(place.mirror.catalog.read_text())
        for feature in document["features"]:
            feature["properties"] |= {"geometry_epsg": None} | told
        place.mirror.catalog.write_text(json.dumps(document))
        place.harvest()

    def outlines(self, place: Place) -> dict[str, Any]:
        """By cube: the stored footprint; item and search agree on it."""
        with reading(place.engine) as connection:
            rows = connection.execute(
                select(items.c.id, items.c.footprint, items.c.content).where(LIVING)
            ).all()
        outlines = {}
        for id, stored, content in rows:
            outlines[id] = shapely.from_wkb(stored)
            item = json.loads(content)
            assert outlines[id].equals(shapely.geometry.shape(item["geometry"]))
            assert item["bbox"] == bbox(outlines[id])
        return outlines

    @pytest.mark.parametrize("attribute", ["as it is", "missing", "elsewhere"])
    def test_only_a_file_name(self, place: Place, attribute: str) -> None:
        for cube in place.mirror.cubes:
            name = "zarr.json" if cube.version == "2.2" else ".zmetadata"
            path = place.mirror.root / cube.path / name
            metadata = path.read_text()
            assert '"proj_polygon": "[[' in metadata
            if attribute == "missing":
                metadata = metadata.replace('"proj_polygon"', '"another"')
            elif attribute == "elsewhere":
                metadata = metadata.replace('"proj_polygon": "[[-', '"proj_polygon": "[[-9')
            path.write_text(metadata)
        self.tell(place)
        for cube in place.mirror.cubes:
            assert place.item(cube)["properties"]["itslive:footprint_from"] == "file name"
        # from a name's centre comes a tile of 100 km, which the sample's are not
        for cube in place.mirror.cubes:
            left, bottom, right, top = cube.bounds
            x, y = (left + right) / 2, (bottom + top) / 2
            wrong = footprint((x - 50_000, y - 50_000, x + 50_000, y + 50_000), "EPSG:3413")
            assert self.outlines(place)[cube.name].equals(wrong)
        assert place.deepen().failures == ()
        before = self.outlines(place)
        for cube in place.mirror.cubes:
            item = place.item(cube)
            assert item["properties"]["itslive:footprint_from"] == "cube"
            tile = cube.bounds
            if attribute != "as it is":
                left, bottom, right, top = item["properties"]["proj:bbox"]
                tile = (left, bottom, right, top)
            assert before[cube.name].equals(footprint(tile, "EPSG:3413"))
        # and a harvest of the catalog makes the same of it
        assert place.harvest().counts[CUBES].unchanged == len(place.mirror.cubes)
        assert place.deepen().unchanged == len(place.mirror.cubes)

    @pytest.mark.parametrize("name", ["geometry_epsg", "proj_polygon"])
    def test_what_the_catalog_tells_goes_first(self, place: Place, name: str) -> None:
        left, bottom, right, top = place.mirror.cubes[0].bounds
        tile = (left - 500, bottom, right + 30_000, top)
        ring = shapely.get_coordinates(shapely.box(*tile)).tolist()
        self.tell(place, **{name: {"type": "Polygon", "coordinates": [ring]}})
        before = self.outlines(place)
        for cube in place.mirror.cubes:
            assert before[cube.name].equals(footprint(tile, "EPSG:3413"))
        assert place.deepen().failures == ()
        assert self.outlines(place) == before
        told = place.item(place.mirror.cubes[0])["properties"].get("itslive:footprint_from")
        assert told == (None if name == "geometry_epsg" else "proj_polygon")


class TestRunLog:
    """The row of a harvest tells what came of its deep read."""

    def run(self, place: Place) -> DeepReport:
        report = place.harvest()
        return deepen(place.engine, place.settings, run=report.run)

    def test_what_was_read(self, place: Place) -> None:
        cube = place.mirror.cubes[0]
        place.server.faults = Faults(Fault("status", 404), match=f"/{cube.path}/.z*")
        report = self.run(place)
        (row, _) = runs.recent(place.engine, 5)
        assert (row["status"], row["error"], row["unchanged"]) == ("successful", None, 5)
        read = row["deep_read"]
        assert (read["status"], read["read"], read["unchanged"], read["failed"]) == (
            "successful", 4, 0, 1,
        )  # fmt: skip
        assert read["pairs"] == 4 * 48
        (failure,) = read["failures"]
        assert failure == {
            "index": None, "id": cube.name, "reason": report.failures[0].reason,
        }  # fmt: skip
        assert runs.deep_read_line(row) == "deep read: 4 cubes read, 0 unchanged, 1 failed"
        place.server.faults = None
        self.run(place)
        line = runs.deep_read_line(runs.recent(place.engine, 1)[0])
        assert line == "deep read: 1 cubes read, 4 unchanged, 0 failed"
        # the harvest without one has none, and the log is as good as before for what comes next
        place.harvest()
        assert runs.deep_read_line(runs.recent(place.engine, 1)[0]) is None
        again = harvest(place.engine, place.settings, [place.mirror.catalog_url], mosaics=False)
        assert again.not_modified_since is not None

    def test_an_outage(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("firnline.web._RETRIES", 0)
        place.server.faults = Faults(Fault("status", 500), match="*/.z*")
        with pytest.raises(SourceUnreachableError):
            self.run(place)
        (row, _) = runs.recent(place.engine, 5)
        assert row["status"] == "successful", "the catalog was harvested"
        assert row["deep_read"]["status"] == "failed"
        assert "5 cubes in a row could not be reached" in row["deep_read"]["error"]
        assert (runs.deep_read_line(row) or "").startswith("deep read failed: 5 cubes in a row")

    def test_interrupted(self, place: Place) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        report = place.harvest()
        with pytest.raises(KeyboardInterrupt):
            deepen(place.engine, place.settings, stop, run=report.run)
        row = runs.recent(place.engine, 1)[0]
        assert row["deep_read"]["status"] == "unfinished"
        assert runs.deep_read_line(row) == "deep read unfinished"

    def test_two_at_once(self, place: Place) -> None:
        report = place.harvest()
        with alone(place.engine, "deep-read"), pytest.raises(ConflictError, match="deep-read"):
            deepen(place.engine, place.settings, run=report.run)
        row = runs.recent(place.engine, 1)[0]
        assert (row["status"], row["deep_read"]["status"]) == ("successful", "failed")

    def test_only_some_of_many_failures_are_told(self, place: Place) -> None:
        many = [
            {"index": n, "id": "a", "reason": "b", "skipped": n % 2 == 0, "source": "/private"}
            for n in range(100)
        ]
        report = {"failures": many, "deep_read": {"status": "successful", "failures": many}}
        run = place.harvest().run
        with writing(place.engine) as connection:
            runs.finish(connection, run, report=json.dumps(report))
        row = runs.recent(place.engine, 1)[0]
        for failures in (row["failures"], row["deep_read"]["failures"]):
            assert [failure["index"] for failure in failures] == list(range(1, 41, 2))
            assert all(failure.keys() == {"index", "id", "reason"} for failure in failures)
