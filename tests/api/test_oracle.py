"""Searches against brute force, an answer made without the database.

Over 10,000 random polar items, which are so many that pages are gathered, walked to, or looked for
among the newest boxes; and over the cubes of ITS_LIVE's own catalog.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from shapely.geometry import mapping
from sqlalchemy import Connection, Engine

from firnline.api.app import create_app
from firnline.api.area import from_geojson
from firnline.database import ItemRow
from firnline.footprint import footprints
from firnline.indexer.catalog import read_catalog
from firnline.settings import Settings
from tests.api.conftest import ENGINES, Client, make_item

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
POLAR = ["EPSG:3413", "EPSG:3031"]
REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))
Catalogs = Callable[[Iterable[ItemRow]], dict[str, Connection]]


@dataclass(frozen=True)
class Catalog:
    """The same items in memory and in both databases."""

    rows: list[ItemRow]
    engines: dict[str, Engine]
    squares: dict[str, Any]
    """The tiles in their own CRS, by id."""

    @property
    def outlines(self) -> Any:
        return np.array([row.footprint for row in self.rows])

    def ids(self, hit: Any) -> set[str]:
        """Of the rows that a mask chooses."""
        return {self.rows[n].id for n in np.flatnonzero(hit)}


def found(client: Client, **body: Any) -> set[str]:
    """Ids of all that match, in one page; no more is sent of the items."""
    return set(client.posted_ids(fields={"include": ["id"]}, **body))


def random_items(rng: np.random.Generator, count: int) -> tuple[list[ItemRow], dict[str, Any]]:
    """Squares anywhere around both poles, as rows, and as squares in their own CRS by id."""
    rows: list[ItemRow] = []
    squares: dict[str, Any] = {}
    for crs in POLAR:
        corner = rng.uniform(-3.3e6, 3.3e6, (count // 2, 2))
        # a few on the pole itself, and with an edge or a corner on it
        corner[:4] = [(-50e3, -50e3), (0, 0), (-100e3, -50e3), (-50e3, 0)]
        side = rng.choice([30e3, 100e3, 400e3], len(corner))
        side[:4] = 100e3
        boxes = [shapely.box(x, y, x + s, y + s) for (x, y), s in zip(corner, side, strict=True)]
        for n, (square, outline) in enumerate(zip(boxes, footprints(boxes, crs), strict=True)):
            start = EPOCH + timedelta(microseconds=int(rng.integers(0, 10**15)))
            end = start + timedelta(microseconds=int(rng.choice([0, 1, 10**12, 10**14])))
            row = make_item(f"{crs[5:]}-{n:04d}", outline, start, end)
            rows.append(row)
            squares[row.id] = square
    return rows, squares


def in_both(catalogs: Catalogs, rows: list[ItemRow], squares: dict[str, Any]) -> Catalog:
    connections = catalogs(rows)
    return Catalog(rows, {name: each.engine for name, each in connections.items()}, squares)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20180212)


@pytest.fixture(scope="module")
def items(catalogs: Catalogs) -> Catalog:
    return in_both(catalogs, *random_items(np.random.default_rng(1), 10_000))


@pytest.fixture(scope="module")
def cubes(catalogs: Catalogs) -> Catalog:
    path = DATA / "catalog_v02_2024.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    records, _ = read_catalog(path.read_bytes())
    rows = [make_item(record.id, record.footprint) for record in records]
    return in_both(catalogs, rows, {})


@pytest.fixture(params=ENGINES)
def client(request: pytest.FixtureRequest, items: Catalog, settings: Settings) -> Client:
    return Client(create_app(settings, items.engines[request.param]))


@pytest.fixture(params=ENGINES)
def cubes_client(request: pytest.FixtureRequest, cubes: Catalog, settings: Settings) -> Client:
    return Client(create_app(settings, cubes.engines[request.param]))


def random_boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    boxes = []
    for _ in range(count):
        south, north = np.sort(rng.choice([-1, 1]) * rng.uniform(55, 90, 2))
        west, east = rng.uniform(-180, 180, 2)
        if rng.random() < 0.3:  # narrow, across the antimeridian
            west, east = 180 - rng.exponential(3), -180 + rng.exponential(3)
        if rng.random() < 0.2:
            south, north = (-90.0, north) if south < 0 else (south, 90.0)
        boxes.append([float(west), float(south), float(east), float(north)])
    return boxes


def in_box(catalog: Catalog, bbox: list[float]) -> set[str]:
    west, south, east, north = bbox
    parts = [(west, east)] if west <= east else [(west, 180), (-180, east)]
    boxes = [shapely.box(left, south, right, north) for left, right in parts]
    hits = [shapely.intersects(catalog.outlines, box) for box in boxes]
    return catalog.ids(np.logical_or.reduce(hits))


def test_bbox(client: Client, items: Catalog, rng: np.random.Generator) -> None:
    crossing = matches = 0
    for bbox in random_boxes(rng, 50):
        west, south, east, north = bbox
        expected = in_box(items, bbox)
        assert found(client, bbox=bbox) == expected
        assert found(client, bbox=[west, south, -10, east, north, 9000]) == expected
        crossing += west > east
        matches += len(expected)
    assert crossing > 15
    assert matches > 10_000


def test_pages_of_a_place_and_a_time(
    client: Client, items: Catalog, rng: np.random.Generator
) -> None:
    """Page by page all matches, the newest first, whichever way the pages are found."""
    newest = sorted(items.rows, key=lambda row: (-row.end.timestamp(), row.id))
    for bbox in random_boxes(rng, 12):
        since = EPOCH + timedelta(microseconds=int(rng.integers(0, 10**15)))
        inside = in_box(items, bbox)
        expected = [row.id for row in newest if row.id in inside and row.end >= since]
        text = ",".join(map(repr, bbox))
        limit = 1 + len(expected) // 4
        pages = client.pages("/search", bbox=text, datetime=f"{stamp(since)}/..", limit=limit)
        assert [item["id"] for page in pages for item in page["features"]] == expected


@pytest.mark.parametrize("crs", POLAR)
@pytest.mark.parametrize("clockwise", [False, True])
def test_intersects_in_the_plane_of_the_pole(
    client: Client, items: Catalog, rng: np.random.Generator, crs: str, clockwise: bool
) -> None:
    """Circles on, around and beside the pole, decided in the projection where nothing is cut."""
    names = [row.id for row in items.rows if row.id.startswith(crs[5:])]
    squares = np.array([items.squares[name] for name in names])
    to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    angle = np.linspace(0, 2 * np.pi, 721)[:-1]
    angle = angle[::-1] if clockwise else angle
    matches = 0
    for _ in range(12):
        x, y = rng.normal(0, 8e5, 2)
        radius = rng.uniform(5e4, 1.5e6)
        ring = np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])
        lonlat = np.column_stack(to_lonlat.transform(*ring.T)).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*lonlat, lonlat[0]]]}
        ids = found(client, intersects=geometry)
        gap = shapely.distance(shapely.Point(x, y), squares) - radius
        # Chords of the ring, in lon/lat, leave the circle by less than a kilometre.
        sure = np.abs(gap) > 1_000
        inside = {names[n] for n in np.flatnonzero(sure & (gap < 0))}
        beyond = {names[n] for n in np.flatnonzero(sure & (gap > 0))}
        assert inside <= ids
        assert not beyond & ids
        matches += len(inside)
    assert matches > 3_000


def test_lines_and_points(client: Client, items: Catalog, rng: np.random.Generator) -> None:
    for _ in range(40):
        lon, lat = rng.uniform(-180, 180, 5), rng.choice([-1, 1]) * rng.uniform(60, 90, 5)
        lon = np.clip(lon[0] + (lon - lon[0]) / 3, -180, 180)  # no step beyond 180 degrees
        positions = np.column_stack([lon, lat])
        for shape in (shapely.LineString(positions), shapely.MultiPoint(positions)):
            geometry = {"type": shape.geom_type, "coordinates": positions.tolist()}
            expected = items.ids(shapely.intersects(items.outlines, shape))
            assert found(client, intersects=geometry) == expected


def stamp(instant: datetime | None) -> str:
    return ".." if instant is None else instant.isoformat().replace("+00:00", "Z")


def test_datetime_overlap(client: Client, items: Catalog, rng: np.random.Generator) -> None:
    rows = items.rows
    southern = {row.id for row in rows if row.footprint.bounds[1] <= -60}
    for n in range(15):
        row = rows[int(rng.integers(len(rows)))]
        # exactly at an item's own ends, and a microsecond off
        off = timedelta(microseconds=int(rng.integers(-1, 2)))
        first = (row.start, row.end)[n % 2] + off
        second = first + timedelta(microseconds=int(rng.choice([0, 1, 10**13])))
        start, end = [(first, second), (None, first), (first, None)][n % 3]
        expected = {
            row.id
            for row in rows
            if (start is None or row.end >= start) and (end is None or row.start <= end)
        }
        text = f"{stamp(start)}/{stamp(end)}"
        assert found(client, datetime=text) == expected, text
        south = found(client, datetime=text, bbox=[-180, -90, 180, -60])
        assert south == expected & southern


def test_all_filters_together_and_get_equals_post(
    client: Client, items: Catalog, rng: np.random.Generator
) -> None:
    rows = items.rows
    by_id = {row.id: row for row in rows}
    for bbox in random_boxes(rng, 30):
        west, south, east, north = bbox
        if west > east:
            continue
        chosen = [rows[n].id for n in rng.integers(len(rows), size=400)]
        start = EPOCH + timedelta(microseconds=int(rng.integers(0, 10**15)))
        query = shapely.box(west, south, east, north)
        expected = [
            id
            for id in dict.fromkeys(chosen)
            if by_id[id].end >= start and by_id[id].footprint.intersects(query)
        ]
        expected.sort(key=lambda id: (-by_id[id].end.timestamp(), id))
        filters = {"datetime": f"{stamp(start)}/..", "limit": 7}
        got = client.ids(bbox=",".join(map(repr, bbox)), ids=",".join(chosen), **filters)
        assert got == expected
        geometry = {"type": "Polygon", "coordinates": [list(map(list, query.exterior.coords))]}
        if east - west < 180:
            assert (
                client.posted_ids(
                    intersects=json.loads(json.dumps(geometry)),
                    ids=chosen,
                    datetime=f"{stamp(start)}/",
                )
                == expected
            )


def test_real_cubes(cubes_client: Client, cubes: Catalog, rng: np.random.Generator) -> None:
    for bbox in random_boxes(rng, 60):
        assert found(cubes_client, bbox=bbox) == in_box(cubes, bbox)


def test_geometries_of_real_cubes_are_areas(cubes_client: Client, cubes: Catalog) -> None:
    """What an item has as its geometry, a search takes as the same area."""
    outlines = cubes.outlines
    geometries = [json.loads(json.dumps(mapping(outline))) for outline in outlines]
    for geometry, outline in zip(geometries, outlines, strict=True):
        assert shapely.equals(from_geojson(geometry).shape, outline)
    bounds = shapely.bounds(outlines)
    special = np.flatnonzero((np.abs(bounds[:, [1, 3]]) > 89).any(axis=1) | (bounds[:, 0] == -180))
    assert len(special) >= 10
    for n in {*special.tolist(), *range(0, len(outlines), 25)}:
        expected = cubes.ids(shapely.intersects(outlines, outlines[n]))
        assert cubes.rows[n].id in expected
        assert found(cubes_client, intersects=geometries[n]) == expected
