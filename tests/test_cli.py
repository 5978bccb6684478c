"""The command line: exit codes, one clear line for what is wrong, one JSON document where asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import pytest
import structlog
import xarray as xr
from shapely.geometry import Point, box, mapping

import firnline
from firnline.cache import jobs
from firnline.cli import main
from firnline.database import connect
from firnline.indexer.mirror import Fault, Faults
from firnline.settings import Settings

AREA = ["--bbox", "465000", "-2300000", "496000", "-2258000", "--crs", "EPSG:3413"]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.out == ""
        assert "Traceback" not in self.err
        return line

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture
def firn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs a command in this process, in an empty installation unless told otherwise."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRNLINE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "250")
    # structlog keeps the stream that it is first given, which here ends with the test
    monkeypatch.setattr("firnline.logs.configure", lambda settings: None)
    capsys.readouterr()

    def run(*arguments: object, settings: Settings | None = None) -> Answer:
        if settings is not None:
            monkeypatch.setenv("FIRNLINE_DATA_DIR", str(settings.data_dir))
            monkeypatch.setenv("FIRNLINE_ALLOWED_SOURCES", ",".join(settings.allowed_sources))
            monkeypatch.setenv("FIRNLINE_CATALOG_URLS", ",".join(settings.catalog_urls))
            monkeypatch.setenv("FIRNLINE_MOSAIC_ROOTS", ",".join(settings.mosaic_roots))
        monkeypatch.setattr(sys, "argv", ["firnline", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        return Answer(int(caught.value.code or 0), out, err)

    with structlog.testing.capture_logs() as events:
        yield run
    sys.stderr.write("\n".join(map(str, events)))  # seen when the test fails


# --- what is wrong is said in one line ------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*AREA[:5], "--crs", "EPSG:999999"], "EPSG:999999"),
        ([*AREA[:5], "--crs", "polar"], "EPSG:3413"),
        (["--bbox", "-50", "70", "-50", "71"], "empty or inverted"),
        (["--bbox", "-50", "71", "-49", "70"], "empty or inverted"),
        (["--bbox", "nan", "70", "-49", "71"], "finite"),
        (["--bbox", "-500", "70", "-49", "71"], "degrees"),
        (AREA[:5], "degrees"),  # metres without --crs
        ([], "--bbox"),
        ([*AREA, "--aoi", "area.geojson"], "one of --bbox"),
        ([*AREA, "--datetime", "yesterday"], "datetime 'yesterday'"),
        ([*AREA, "--datetime", "2020-01-01/2018-01-01"], "ends before it starts"),
        ([*AREA, "--variables", "vx,speed"], "variables"),
        ([*AREA, "--variables", ""], "variables"),
        ([*AREA, "--composite", "weekly"], "P1Y"),
        ([*AREA, "--satellites", "landsat 8"], "satellites"),
        ([*AREA, "--min-dt", "60", "--max-dt", "10"], "least"),
        ([*AREA, "--format", "netcdf"], "v3"),
        ([*AREA, "--out-crs", "EPSG:4326"], "not projected"),
        ([*AREA, "--length-scale", "-5"], "length_scale"),
        ([*AREA, "--collection", "sentinel-2"], "itslive-cubes"),
        ([*AREA, "--no-pairs", "--composite", "none"], "nothing to store"),
        (["--bbox", "-3000000", "-3000000", "3000000", "3000000", "--crs", "EPSG:3413"], "MAX_AOI"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("flag", [[], ["--json"], ["--dry-run"]])
def test_bad_requests(firn: Run, arguments: list[str], says: str, flag: list[str]) -> None:
    answer = firn("materialise", *arguments, *flag)
    assert answer.code == 2
    assert says in answer.error


def test_an_area_without_cubes_is_bad_input(firn: Run, settings: Settings) -> None:
    bbox = ["--bbox", "10", "-80", "10.2", "-79.9"]
    for flag in ([], ["--dry-run"], ["--json"]):
        answer = firn("materialise", *bbox, *flag, settings=settings)
        assert answer.code == 2
        assert "no cube of the catalog covers this area" in answer.error


@pytest.mark.parametrize("arguments", [["--nonsense"], ["no-such-command"], ["harvest", "--deeep"]])
def test_bad_usage(firn: Run, arguments: list[str]) -> None:
    answer = firn(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert arguments[-1] in answer.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "catalog.json"),
        (b"{", "catalog.json"),
        (b"<html>gone</html>", "catalog.json"),
        (b'{"type": "Feature"}', "FeatureCollection"),
        (b'{"features": 5}', "FeatureCollection"),
        (b"\xff\xfe\x00", "catalog.json"),
    ],
)
def test_an_unreadable_catalog(firn: Run, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "catalog.json"
    path.write_bytes(content)
    answer = firn("harvest", path, "--no-mosaics")
    assert answer.code == 1
    assert says in answer.error


def test_a_catalog_that_is_not_there(firn: Run, tmp_path: Path) -> None:
    assert firn("harvest", tmp_path / "none.json").code == 1
    assert "does not exist" in firn("harvest", tmp_path / "none.json").error
    assert "is not an allowed source" in firn("harvest", "https://evil.example/c.json").error
    assert firn("harvest", "https://evil.example/c.json").code == 2


def test_an_unreachable_source_is_never_no_data(
    firn: Run, sample: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.source._RETRIES", 1)
    monkeypatch.setattr("firnline.document._ATTEMPTS", 1)
    sample.server.faults = Faults(Fault("status", status=503))
    try:
        answer = firn("harvest", settings=settings)
        assert answer.code == 1
        assert "503" in answer.error
        answer = firn(
            "materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--dry-run"
        )
        assert answer.code == 1
        assert "503" in answer.error
        answer = firn("materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413")
        assert answer.code == 1
        assert "503" in answer.error
    finally:
        sample.server.faults = None


@pytest.mark.parametrize(
    "command",
    [["status"], ["cache", "list"], ["migrate"], ["harvest"], ["worker", "--once"],
     ["materialise", *AREA]],
)  # fmt: skip
def test_a_database_that_is_away(
    firn: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    url = "postgresql://someone:hunter2@127.0.0.1:1/catalog"
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", url)
    answer = firn(*command)
    assert answer.code == 1
    assert "did not answer" in answer.error
    assert "hunter2" not in answer.err


def test_a_database_that_is_not_migrated(firn: Run) -> None:
    answer = firn("status")
    assert answer.code == 1
    assert "firnline migrate" in answer.error
    assert firn("migrate").code == 0
    assert firn("status").code == 0


def test_no_such_subset(firn: Run) -> None:
    answer = firn("cache", "show", "subset-none")
    assert answer.code == 1
    assert "there is no subset 'subset-none'" in answer.error


# --- areas from files -----------------------------------------------------------------------


def write(path: Path, geometry: Any, crs: str) -> Path:
    geopandas.GeoDataFrame(geometry=geometry, crs=crs).to_file(path)
    return path


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp"])
def test_an_area_from_a_file_is_that_of_its_bbox(
    firn: Run, sample: Any, settings: Settings, tmp_path: Path, suffix: str
) -> None:
    left, bottom, right, top = sample.mirror.aoi
    middle = (left + right) / 2
    halves = [box(left, bottom, middle, top), box(middle, bottom, right, top)]
    path = write(tmp_path / f"area{suffix}", halves, "EPSG:3413")
    if suffix == ".geojson":  # RFC 7946 knows no CRS; GDAL writes and reads the older member
        assert "3413" in path.read_text()
    by_file = firn("materialise", "--aoi", path, "--dry-run", "--json", settings=settings)
    by_bbox = firn(
        "materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--dry-run", "--json"
    )
    assert by_file.code == by_bbox.code == 0
    assert by_file.document == by_bbox.document


def test_a_geojson_without_crs_is_in_degrees(
    firn: Run, sample: Any, settings: Settings, tmp_path: Path
) -> None:
    import pyproj

    left, bottom, right, top = sample.mirror.aoi
    to = pyproj.Transformer.from_crs("EPSG:3413", "OGC:CRS84", always_xy=True)
    x, y = (left + right) / 2, (bottom + top) / 2
    west, south, east, north = to.transform_bounds(x - 500, y - 500, x + 500, y + 500)
    path = tmp_path / "area.geojson"
    path.write_text(json.dumps(mapping(box(west, south, east, north))))
    by_file = firn("materialise", "--aoi", path, "--dry-run", "--json", settings=settings)
    by_bbox = firn("materialise", "--bbox", west, south, east, north, "--dry-run", "--json")
    assert by_file.code == 0
    assert by_file.document == by_bbox.document


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none.geojson", "none.geojson"),
        ("bad.geojson", "bad.geojson"),
        ("table.csv", "table.csv"),
        ("empty.geojson", "empty.geojson"),
        ("points.gpkg", "Point"),
        ("nowhere.shp", "--crs"),
    ],
)  # fmt: skip
def test_files_that_hold_no_area(firn: Run, tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "bad.geojson").write_text("{")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    write(tmp_path / "points.gpkg", [Point(0, 0)], "EPSG:3413")
    write(tmp_path / "nowhere.shp", [box(0, 0, 1, 1)], "EPSG:3413")
    (tmp_path / "nowhere.prj").unlink()
    answer = firn("materialise", "--aoi", tmp_path / name, "--dry-run")
    assert answer.code == 2
    assert says in answer.error


# --- what is good ---------------------------------------------------------------------------


def test_help_and_no_arguments(firn: Run) -> None:
    answer = firn("--help")
    assert answer.code == 0
    commands = {"harvest", "materialise", "migrate", "serve", "worker", "status", "demo", "cache"}
    assert commands <= set(re.findall(r"^\s+│?\s*([a-z]+)\s", answer.out, re.MULTILINE))
    for command in sorted(commands):
        assert firn(command, "--help").code == 0
    assert "harvest" in firn().out + firn().err


def test_a_dry_run_plans_and_fetches_no_velocity(
    firn: Run, sample: Any, settings: Settings
) -> None:
    bbox = ["--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413"]
    answer = firn("materialise", *bbox, "--dry-run", "--json", settings=settings)
    assert answer.code == 0
    assert isinstance(answer.document, dict)
    asked = [request.path for request in sample.server.requests]
    assert any(path.endswith(".zmetadata") for path in asked)
    assert not [path for path in asked if "/vx/" in path or "/vy/" in path]
    assert not (settings.data_dir / "cache").exists()
    text = firn("materialise", *bbox, "--dry-run")
    assert text.code == 0
    for key in answer.document:
        assert key in text.out


def test_materialise_prints_the_item_and_the_folder(
    firn: Run, sample: Any, settings: Settings
) -> None:
    command = [
        "materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--datetime",
        "2018-01-01/2018-12-31", "--variables", "vx,vy", "--no-strain", "--json",
    ]  # fmt: skip
    answer = firn(*command, settings=settings)
    assert answer.code == 0, answer.err
    document = answer.document
    assert document["status"] == "successful"
    assert re.fullmatch(r"subset-[0-9a-f]{16}", document["item"])
    stored = xr.open_zarr(Path(document["folder"]) / "pairs.zarr")
    assert set(stored.mid_date.dt.year.values.tolist()) == {2018}
    assert {"vx", "vy"} <= set(stored.data_vars)
    assert "v_error" not in stored.data_vars
    # asked again: the same item, another job
    again = firn(*command).document
    assert (again["item"], again["folder"]) == (document["item"], document["folder"])
    assert again["message"] == "answered from the cache"
    listed = firn("cache", "list", "--json").document
    assert [row["id"] for row in listed] == [document["item"]]
    shown = firn("cache", "show", document["item"])
    assert json.loads(shown.out)["item"]["id"] == document["item"]
    status = firn("status", "--json").document
    assert status["jobs"] == {"successful": 2}
    assert status["subsets"]["count"] == 1
    assert document["item"] in firn("cache", "list").out


def test_materialise_takes_how_strain_is_computed(
    firn: Run, sample: Any, settings: Settings
) -> None:
    area = ["materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413"]
    how = ["--strain-method", "nominal", "--strain-gaps", "strict", "--ice-temperature", "260"]
    command = [*area, *how, "--length-scale", "240", "--no-wait", "--json"]
    answer = firn(*command, settings=settings)
    assert answer.code == 0, answer.err
    engine = connect(settings.database)
    job = jobs.get(engine, answer.document["job"])
    engine.dispose()
    assert job.request["strain"] == {
        "method": "nominal", "length_scale": 240.0, "gaps": "strict", "ice_temperature": 260.0,
    }  # fmt: skip
    wrong = firn(*area, "--ice-temperature", "-10")
    assert wrong.code == 2
    assert "kelvin" in wrong.err


def test_no_wait_leaves_the_job_to_a_worker(firn: Run, sample: Any, settings: Settings) -> None:
    command = ["materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--variables",
               "vx", "--composite", "none", "--json"]  # fmt: skip
    first = firn(*command, "--no-wait", settings=settings).document
    assert (first["status"], first["item"]) == ("accepted", None)
    assert firn(*command, "--no-wait").document["job"] == first["job"]
    assert firn("worker", "--once").code == 0
    assert firn(*command).document["status"] == "successful"
    idle = firn("worker", "--once")
    assert (idle.code, idle.err.strip()) == (0, "no job waits")


def test_harvest_counts(firn: Run, sample: Any, tmp_path: Path) -> None:
    settings = sample.settings(tmp_path / "new")
    (settings.data_dir / "firnline.db").unlink()
    cubes = len(sample.mirror.cubes)
    dry = firn("harvest", "--no-mosaics", "--dry-run", "--json", settings=settings).document
    assert dry["added"] == cubes
    first = firn("harvest", "--no-mosaics", "--json").document
    assert (first["added"], first["unchanged"]) == (cubes, 0)
    second = firn("harvest", "--no-mosaics", "--json").document
    assert (second["added"], second["changed"], second["unchanged"]) == (0, 0, cubes)
    engine = connect(settings.database)
    assert firn("status", "--json").document["items"] == {"itslive-cubes": cubes}
    engine.dispose()
    text = firn("harvest", "--no-mosaics")
    assert (text.code, str(cubes) in text.out) == (0, True)


def test_settings_are_listed_with_their_variables(firn: Run) -> None:
    rows = firn("status", "--settings", "--json").document
    assert [row["name"] for row in rows] == [
        f"FIRNLINE_{name.upper()}" for name in Settings.model_fields
    ]
    assert all(row["description"] for row in rows)
    text = firn("status", "--settings").out
    assert all(row["name"] in text for row in rows)


def test_the_listed_database_url_has_no_password(
    firn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", "postgresql://someone:hunter2@db.example/catalog")
    for flag in ([], ["--json"]):
        answer = firn("status", "--settings", *flag)
        assert "someone:***@db.example" in answer.out
        assert "hunter2" not in answer.out + answer.err


# --- as a process of its own ----------------------------------------------------------------


def test_streams_and_exit_codes_of_a_process(sample: Any, tmp_path: Path) -> None:
    """With real logs: stdout has one JSON document, everything else is on stderr."""
    settings = sample.settings(tmp_path / "data")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("FIRN")},
        "FIRNLINE_DATA_DIR": str(settings.data_dir),
        "FIRNLINE_ALLOWED_SOURCES": ",".join(settings.allowed_sources),
        "FIRNLINE_LOG_LEVEL": "DEBUG",
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "firnline.cli", *map(str, arguments)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    area = ["--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--composite", "none"]
    done = run("materialise", *area, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "successful"
    assert done.stdout.count("\n") == 1
    assert "job claimed" in done.stderr
    bad = run("materialise", *area, "--datetime", "yesterday", "--json")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: datetime 'yesterday'")
    failed = run("cache", "show", "none")
    assert (failed.returncode, failed.stdout) == (1, "")


def test_the_version_is_said_once() -> None:
    from importlib.metadata import version

    assert version("firnline") == firnline.__version__


def test_the_public_face() -> None:
    assert set(firnline.__all__) <= set(dir(firnline)) | {"open", "strain"}
    assert callable(firnline.open)
    assert callable(firnline.strain)
    with pytest.raises(AttributeError, match="nothing"):
        _ = firnline.nothing  # type: ignore[attr-defined]
