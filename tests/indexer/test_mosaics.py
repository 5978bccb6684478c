from __future__ import annotations

import importlib.util
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Geod, Transformer
from shapely.geometry import box

from firnline import items
from firnline.footprint import TOLERANCE, bbox, footprint
from firnline.indexer.catalog import read_catalog
from firnline.indexer.mosaics import REGIONS, Cube, Region, mosaic_records, region_outlines
from firnline.items import CubeRecord

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))
GEOD = Geod(ellps="WGS84")
ROOT = "https://its-live-data.s3.amazonaws.com/velocity_mosaic"


def greenland() -> Cube:
    return Cube(5, footprint((400_000, -2_300_000, 500_000, -2_200_000), "EPSG:3413"))


def one_cube_a_region() -> list[Cube]:
    middles = [((r.box[0] + r.box[2]) / 2, (r.box[1] + r.box[3]) / 2, r.rgi[0]) for r in REGIONS]
    return [Cube(rgi, box(x - 0.1, y - 0.1, x + 0.1, y + 0.1)) for x, y, rgi in middles]


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, Any]]:
    path = DATA / "itslive_mosaic_items.ndjson"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return {item["id"]: item for item in map(json.loads, path.read_text().splitlines())}


@pytest.fixture(scope="module")
def real_records() -> list[CubeRecord]:
    path = DATA / "catalog_v02_2024.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return read_catalog(path.read_bytes())[0]


@pytest.fixture(scope="module")
def real_cubes(real_records: list[CubeRecord]) -> list[Cube]:
    return [Cube(r.rgi, r.footprint) for r in real_records]


@pytest.fixture(scope="module")
def schemas() -> Any:
    spec = importlib.util.spec_from_file_location(
        "firnline_test_schemas", Path(__file__).parents[1] / "schemas.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not (module.SCHEMAS / "index.json").exists():
        pytest.skip(f"{module.SCHEMAS} is not here")
    return module.StacSchemas()


def test_same_as_the_items_of_itslive(published: dict[str, dict[str, Any]]) -> None:
    """Ids, asset keys, addresses, roles, titles, times and projections of all 582."""
    records, failures = mosaic_records([ROOT], one_cube_a_region())
    assert not failures
    ours = {
        item["id"]: item for item in map(items.mosaic_item, records) if "_V02" not in item["id"]
    }
    assert len(published) == 582
    assert ours.keys() == published.keys()
    for id, theirs in published.items():
        mine = ours[id]
        for name in ("rgi", "version", "temporal_coverage_type"):
            assert mine["properties"][name] == theirs["properties"][name]
        for name in ("datetime", "start_datetime", "end_datetime"):
            assert datetime.fromisoformat(mine["properties"][name]) == datetime.fromisoformat(
                theirs["properties"][name]
            )
        assert mine["properties"]["proj:code"].split(":")[1] == theirs["properties"]["epsg"]
        assert mine["assets"].keys() == theirs["assets"].keys()
        for key, asset in theirs["assets"].items():
            same = {name: mine["assets"][key][name] for name in asset}
            assert same == asset, (id, key)


def test_version_2_ends_in_2022() -> None:
    records, _ = mosaic_records([ROOT], [greenland()])
    years: dict[str, list[int | None]] = {}
    for record in records:
        years.setdefault(record.version, []).append(record.year)
    assert years["2"] == [None, *range(1984, 2023)]
    assert years["2.1"] == [None, *range(1984, 2025)]


def test_a_region_without_cubes_is_told() -> None:
    records, failures = mosaic_records([ROOT], [greenland(), Cube(None, box(0, 0, 1, 1))])
    assert {record.region for record in records} == {5}
    assert len(failures) == 15
    assert {failure.id for failure in failures} >= {"RGI01A", "RGI19A"}
    assert all("no known cube" in failure.reason for failure in failures)


def test_outlines_end_where_those_of_itslive_end(
    published: dict[str, dict[str, Any]], real_cubes: list[Cube]
) -> None:
    outlines, failures = region_outlines(real_cubes)
    assert not failures
    for number, outline in outlines.items():
        assert outline.is_valid
        theirs = published[f"RGI{number:02d}A_STATIC"]["bbox"]
        if number == 19:  # their box is of straight rings, and misses what lies at 180 degrees
            theirs = [-180, theirs[1], 180, theirs[3]]
        assert bbox(outline) == pytest.approx(theirs, abs=0.02), number


def test_the_outline_is_not_a_box(real_cubes: list[Cube]) -> None:
    """At the edge of Greenland's box there is no ice, and no mosaic."""
    outline = region_outlines([cube for cube in real_cubes if cube.rgi == 5])[0][5]
    filled = outline.area / box(*outline.bounds).area
    assert 0.2 < filled < 0.7


def test_the_outline_is_the_union_of_the_cubes(real_records: list[CubeRecord]) -> None:
    """A point is in a mosaic's outline if it is in a cube of the region, in the cube's own CRS."""
    outlines, _ = region_outlines([Cube(r.rgi, r.footprint) for r in real_records])
    rng = np.random.default_rng(0)
    checked = inside = 0
    for region in REGIONS:
        west, south, east, north = region.box
        members = members_of(region, real_records)
        lon = rng.uniform(west, east, 300)
        lat = rng.uniform(south, north, 300)
        for member in rng.choice(np.array(members, object), 10):  # and some about its edges
            corners = shapely.get_coordinates(member.footprint)
            near = corners[rng.integers(0, len(corners), 10)] + rng.normal(0, 0.05, (10, 2))
            lon, lat = np.r_[lon, near[:, 0]], np.r_[lat, np.clip(near[:, 1], -90, 90)]
        lon = (lon + 180) % 360 - 180
        expected = np.zeros(len(lon), bool)
        doubtful = np.zeros(len(lon), bool)
        for epsg in {member.epsg for member in members}:
            to_xy = Transformer.from_crs("OGC:CRS84", epsg, always_xy=True)
            points = shapely.points(*to_xy.transform(lon, lat))
            for member in members:
                if member.epsg == epsg:
                    expected |= shapely.contains(member.tile, points)
                    doubtful |= shapely.dwithin(member.tile.exterior, points, TOLERANCE)
        found = shapely.contains_xy(outlines[region.number], lon, lat)
        assert (found == expected)[~doubtful].all(), region.number
        checked += int((~doubtful).sum())
        inside += int(expected.sum())
    assert checked > 6_000
    assert 1_500 < inside < 4_500


def test_the_outline_has_the_area_of_the_cubes(real_records: list[CubeRecord]) -> None:
    """Greenland and Antarctica: cubes of one CRS abut, so that their areas add up."""
    outlines, _ = region_outlines([Cube(r.rgi, r.footprint) for r in real_records])
    for region in REGIONS:
        members = members_of(region, real_records)
        if region.number in (5, 19):
            assert len({member.epsg for member in members}) == 1
            total = sum(area(member.footprint) for member in members)
            assert area(outlines[region.number]) == pytest.approx(total, rel=1e-6)
        for part in shapely.get_parts(outlines[region.number]):
            assert shapely.is_ccw(part.exterior)
            assert not any(shapely.is_ccw(hole) for hole in part.interiors)


def members_of(region: Region, records: list[CubeRecord]) -> list[CubeRecord]:
    """Cubes with the region's number that lie in its box."""
    west, south, east, north = region.box
    return [
        record
        for record in records
        if record.rgi in region.rgi
        and (bounds := bbox(record.footprint))
        and west - 0.1 <= bounds[0] <= bounds[2] <= east + 0.1
        and south - 0.1 <= bounds[1] <= bounds[3] <= north + 0.1
    ]


def area(outline: Any) -> float:
    """Geodesic area (m2) of what has straight edges in lon/lat."""
    fine = shapely.segmentize(outline, 0.05)
    return float(sum(GEOD.geometry_area_perimeter(part)[0] for part in shapely.get_parts(fine)))


def test_mosaics_are_valid(schemas: Any, real_cubes: list[Cube]) -> None:
    """Of each region and version the static one, the first and the last: others differ in years."""
    records, _ = mosaic_records([ROOT], real_cubes)
    made = [items.mosaic_item(record) for record in records]
    assert len(made) == len({item["id"] for item in made}) == 1132
    first = {region.number: region.first_year for region in REGIONS}
    small = items.to_geojson(box(0, 0, 1, 1))
    seen: set[int] = set()
    for record, item in zip(records, made, strict=True):
        if record.year not in (None, first[record.region], record.last_year):
            continue
        if record.region not in seen:
            assert schemas.problems(item) == []
        else:  # the same geometry again: checking its thousand vertices takes most of the time
            assert schemas.problems(item | {"geometry": small}) == []
        seen.add(record.region)
    assert len(seen) == len(REGIONS)
