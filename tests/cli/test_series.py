"""``firnline series`` and ``firnline flowlines`` of a subset that the command line made."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import Transformer
from shapely.geometry import LineString, Point

import firnline
from firnline.settings import Settings

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


@pytest.fixture
def made(firn: Run, sample: Any, settings: Settings) -> tuple[str, Path]:
    """Id and folder of a subset."""
    answer = firn(
        "materialise", "--bbox", *sample.mirror.aoi, "--crs", "EPSG:3413", "--no-strain",
        "--composite", "all", "--composite-method", "mean", "--max-displacement", 2000, "--json",
        settings=settings,
    )  # fmt: skip
    assert answer.document["status"] == "successful"
    return answer.document["item"], Path(answer.document["folder"])


def test_series(firn: Run, made: tuple[str, Path], tmp_path: Path) -> None:
    id, folder = made
    ds = xr.open_zarr(folder / "pairs.zarr").load().isel(x=20, y=30)
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(ds.x, ds.y)
    there = np.isfinite(ds.vx.values)
    printed = firn("series", id, "--lon", lon, "--lat", lat)
    table = pd.read_csv(io.StringIO(printed.out))
    assert table["granule"].tolist() == ds.granule.values[there].tolist()
    np.testing.assert_array_equal(table["vx"], ds.vx.values[there])
    document = firn("series", id, "--lon", lon, "--lat", lat, "--json").document
    assert [row["vx"] for row in document["series"]] == table["vx"].tolist()
    assert document["units"]["vx"] == "meter/year"
    geopandas.GeoSeries([Point(lon, lat)], crs=4326).to_file(tmp_path / "points.gpkg")
    for ending in ("csv", "json", "parquet"):
        file = tmp_path / f"out.{ending}"
        answer = firn("series", id, "--points", tmp_path / "points.gpkg", "-o", file)
        assert (answer.code, answer.out) == (0, "")
        again = getattr(pd, f"read_{ending}")(file)
        np.testing.assert_array_equal(again["vx"], table["vx"])
    # the same in Python, from the id
    frame = firnline.series(id, lon=lon, lat=lat)
    np.testing.assert_array_equal(frame["vx"], table["vx"])


def test_flowlines_and_a_series_along_them(
    firn: Run, made: tuple[str, Path], sample: Any, tmp_path: Path
) -> None:
    id, folder = made
    left, bottom, right, top = sample.mirror.aoi
    x, y = (left + right) / 2, (bottom + top) / 2
    printed = firn("flowlines", id, "--x", x, "--y", y, "--max-length", 2000)
    (feature,) = json.loads(printed.out)["features"]
    (line,) = firnline.flowlines(id, x=x, y=y, max_length=2000).itertuples()
    assert feature["properties"]["travel_time"] == pytest.approx(line.travel_time)
    file = tmp_path / "lines.geojson"
    box = ["--bbox", x - 900, y - 900, x + 900, y + 900, "--crs", "EPSG:3413"]
    assert firn("flowlines", id, *box, "--spacing", 600, "-o", file).code == 0
    lines = geopandas.read_file(file)
    assert 6 <= len(lines) <= 9  # multiples of 600 m in 1,800 m each way, where there is data
    along = firn("series", folder / "composite.zarr", "--along", file, "--variables", "vx,vy")
    table = pd.read_csv(io.StringIO(along.out))
    assert set(table["line"]) == set(range(len(lines)))
    first = table[table["line"] == 0]
    assert first["distance"].iloc[0] == 0
    assert first["distance"].iloc[-1] == pytest.approx(lines["length"][0], rel=1e-4)
    assert {"vx", "vy", "v", "start", "end"} <= set(table.columns)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["series", "none", "--lon", "0", "--lat", "0"], 1, "no subset 'none'"),
        (["flowlines", "none", "--lon", "0", "--lat", "0"], 1, "no subset 'none'"),
        (["series", "none", "-o", "table.xlsx"], 2, ".csv, .json, .parquet"),
        (["series", "none", "--points", "no.gpkg"], 2, "no.gpkg"),
        (["series", "none", "--points", "lines.geojson"], 2, "holds LineString, not Points"),
        (
            ["series", "none", "--points", "lines.geojson", "--lon", "0", "--lat", "0"],
            2,
            "either by their coordinates",
        ),
        (["series", ".", "--lon", "0", "--lat", "0"], 2, "not a Zarr store"),
        (["flowlines", "none", "--bbox", "0", "0", "1", "1", "--aoi", "a.gpkg"], 2, "one of"),
    ],
)
def test_refusals(firn: Run, tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    geopandas.GeoSeries([LineString([(0, 0), (1, 1)])], crs=4326).to_file(
        tmp_path / "lines.geojson"
    )
    answer = firn(*arguments)
    assert answer.code == code
    assert says in answer.error


def test_a_place_outside_is_bad_input(firn: Run, made: tuple[str, Path]) -> None:
    id, _ = made
    for command in ("series", "flowlines"):
        assert firn(command, id).code == 2
    answer = firn("series", id, "--lon", "0", "--lat", "0")
    assert answer.code == 2
    assert "outside of the grid" in answer.error
