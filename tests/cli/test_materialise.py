"""``firnline materialise``: bad requests, areas from files, jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import geopandas
import pytest
import xarray as xr
from shapely.geometry import Point, box, mapping

from firnline.cache import jobs
from firnline.database import connect
from firnline.indexer.mirror import Fault
from firnline.settings import Settings

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document

AREA = ["--bbox", "465000", "-2300000", "496000", "-2258000", "--crs", "EPSG:3413"]


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
        ([*AREA, "--max-error", "0"], "max_error"),
        ([*AREA, "--min-valid", "120"], "min_valid"),
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


def test_a_catalog_that_is_not_harvested_yet_says_so(firn: Run, tmp_path: Path) -> None:
    answer = firn(
        "materialise", "--bbox", "10", "-80", "10.2", "-79.9", settings=Settings(data_dir=tmp_path)
    )
    assert answer.code == 2
    assert "it has not been harvested" in answer.error
    assert "`firnline harvest`" in answer.err


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


def test_a_dry_run_tells_which_subset_answers(firn: Run, sample: Any, settings: Settings) -> None:
    west, south, east, north = sample.mirror.aoi
    inner = (west + 1000, south + 1000, east - 1000, north - 1000)
    ask = ["materialise", "--crs", "EPSG:3413", "--no-strain", "--json", "--bbox"]
    made = firn(*ask, *sample.mirror.aoi, settings=settings).document["item"]
    used = firn("cache", "list", "--json").document[0]["last_used"]
    sample.server.clear()
    for bbox, answers in [
        (sample.mirror.aoi, made),
        (inner, made),
        ((west - 500, *inner[1:]), None),
    ]:
        told = firn(*ask, *bbox, "--dry-run").document
        assert told.get("answered_from") == answers
        assert (told["requests_expected"] == 0) == (told["bytes_expected"] == 0) == bool(answers)
        assert told["source_chunks"] > 0
    sample.server.clear()
    assert firn(*ask, *inner, "--dry-run").document["answered_from"] == made
    assert sample.server.requests == []
    assert firn("cache", "list", "--json").document[0]["last_used"] == used


def test_an_interrupt_waits_for_no_source(sample: Any, settings: Settings) -> None:
    """One that never answers: its threads are not waited for."""
    held = threading.Event()

    def hang(method: str, path: str, nth: int) -> Fault | None:
        if "/granule_url/" not in path:
            return None
        held.set()
        return Fault("hang", seconds=600)

    sample.server.faults = hang
    bbox = [str(number) for number in sample.mirror.aoi]
    process = subprocess.Popen(
        [sys.executable, "-m", "firnline", "materialise", "--dry-run", "--crs", "EPSG:3413",
         "--bbox", *bbox],
        env={**os.environ, **settings.environment()}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert held.wait(120)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said


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
    fresh = firn("cache", "refresh", document["item"], "--json").document
    assert (fresh["item"], fresh["status"]) == (document["item"], "unchanged")
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
