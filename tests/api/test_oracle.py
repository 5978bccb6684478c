"""Searches against brute force over random polar items, an answer made without the database."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from sqlalchemy import Engine

from firnline.database import ItemRow
from firnline.footprint import footprints
from tests.api.conftest import Client, make_item, put

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
POLAR = ["EPSG:3413", "EPSG:3031"]


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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20180212)


@pytest.fixture
def items(engine: Engine, rng: np.random.Generator) -> tuple[list[ItemRow], dict[str, Any]]:
    rows, squares = random_items(rng, 1_000)
    put(engine, rows)
    return rows, squares


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


def test_bbox(client: Client, items: Any, rng: np.random.Generator) -> None:
    rows, _ = items
    outlines = np.array([row.footprint for row in rows])
    crossing = matches = 0
    for bbox in random_boxes(rng, 120):
        west, south, east, north = bbox
        parts = [(west, east)] if west <= east else [(west, 180), (-180, east)]
        hit = np.zeros(len(rows), bool)
        for left, right in parts:
            hit |= shapely.intersects(outlines, shapely.box(left, south, right, north))
        expected = {row.id for row, found in zip(rows, hit, strict=True) if found}
        assert set(client.posted_ids(bbox=bbox)) == expected
        assert set(client.posted_ids(bbox=[west, south, -10, east, north, 9000])) == expected
        crossing += west > east
        matches += len(expected)
    assert crossing > 30
    assert matches > 1000


@pytest.mark.parametrize("crs", POLAR)
@pytest.mark.parametrize("clockwise", [False, True])
def test_intersects_in_the_plane_of_the_pole(
    client: Client, items: Any, rng: np.random.Generator, crs: str, clockwise: bool
) -> None:
    """Circles on, around and beside the pole, decided in the projection where nothing is cut."""
    rows, squares = items
    to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    angle = np.linspace(0, 2 * np.pi, 721)[:-1]
    angle = angle[::-1] if clockwise else angle
    matches = 0
    for _ in range(25):
        x, y = rng.normal(0, 8e5, 2)
        radius = rng.uniform(5e4, 1.5e6)
        ring = np.column_stack([x + radius * np.cos(angle), y + radius * np.sin(angle)])
        lonlat = np.column_stack(to_lonlat.transform(*ring.T)).tolist()
        geometry = {"type": "Polygon", "coordinates": [[*lonlat, lonlat[0]]]}
        found = set(client.posted_ids(intersects=geometry))
        circle = shapely.Point(x, y)
        for row in rows:
            if row.id.startswith(crs[5:]):
                square = squares[row.id]
                gap = circle.distance(square) - radius
                # Chords of the ring, in lon/lat, leave the circle by less than a kilometre.
                if abs(gap) > 1_000:
                    assert (row.id in found) == (gap < 0), (row.id, gap)
                    matches += gap < 0
    assert matches > 300


def test_lines_and_points(client: Client, items: Any, rng: np.random.Generator) -> None:
    rows, _ = items
    outlines = np.array([row.footprint for row in rows])
    for _ in range(40):
        lon, lat = rng.uniform(-180, 180, 5), rng.choice([-1, 1]) * rng.uniform(60, 90, 5)
        lon = np.clip(lon[0] + (lon - lon[0]) / 3, -180, 180)  # no step beyond 180 degrees
        positions = np.column_stack([lon, lat])
        for shape in (shapely.LineString(positions), shapely.MultiPoint(positions)):
            geometry = {"type": shape.geom_type, "coordinates": positions.tolist()}
            expected = {
                row.id
                for row, hit in zip(rows, shapely.intersects(outlines, shape), strict=True)
                if hit
            }
            assert set(client.posted_ids(intersects=geometry)) == expected


def stamp(instant: datetime | None) -> str:
    return ".." if instant is None else instant.isoformat().replace("+00:00", "Z")


def test_datetime_overlap(client: Client, items: Any, rng: np.random.Generator) -> None:
    rows, _ = items
    southern = {row.id for row in rows if row.footprint.bounds[1] <= -60}
    for n in range(80):
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
        assert set(client.posted_ids(datetime=text)) == expected, text
        south = client.posted_ids(datetime=text, bbox=[-180, -90, 180, -60])
        assert set(south) == expected & southern


def test_all_filters_together_and_get_equals_post(
    client: Client, items: Any, rng: np.random.Generator
) -> None:
    rows, _ = items
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
