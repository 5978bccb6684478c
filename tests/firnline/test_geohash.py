"""Geohashes, against published ones and PostGIS."""

from __future__ import annotations

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from firnline.database import reading
from firnline.geohash import geohash

PLACES = [
    # The examples of Wikipedia's article.
    ((-5.6, 42.6), "ezs42"),
    ((10.40744, 57.64911), "u4pruydqqvj"),
]
EDGES = [-180.0, -90.0, -45.0, 0.0, 11.25, 22.5, 45.0, 90.0, 180.0]


@pytest.mark.parametrize(("place", "cell"), PLACES)
def test_published(place: tuple[float, float], cell: str) -> None:
    for length in range(1, len(cell) + 1):
        assert geohash(*place, length) == cell[:length]


@given(st.floats(-180, 180), st.floats(-90, 90), st.integers(1, 12))
def test_the_cell_holds_the_point(lon: float, lat: float, length: int) -> None:
    bits = [
        "0123456789bcdefghjkmnpqrstuvwxyz".index(letter) >> shift & 1
        for letter in geohash(lon, lat, length)
        for shift in (4, 3, 2, 1, 0)
    ]
    for value, span, own in ((lon, 360.0, bits[::2]), (lat, 180.0, bits[1::2])):
        width = span / 2 ** len(own)
        west = -span / 2 + width * int("".join(map(str, own)), 2)
        assert west <= value <= west + width


def test_as_postgis(database: Engine) -> None:
    """The same cells on both databases, on edges too, of footprints and of their midst."""
    points = [shapely.Point(lon, lat) for lon in EDGES for lat in EDGES if abs(lat) <= 90]
    points += [shapely.Point(*place) for place, _ in PLACES]
    boxes = [shapely.box(p.x - 3, p.y - 1, p.x + 3, p.y + 1) for p in points if abs(p.x) < 100]
    split = shapely.MultiPolygon([shapely.box(177, 70, 180, 72), shapely.box(-180, 70, -178, 72)])
    for shape in (*points, *boxes, split):
        cells = {}
        wkb = shapely.to_wkb(shape)
        with reading(database) as connection:
            stored = (
                "ST_GeomFromWKB(:wkb, 4326)" if database.dialect.name == "postgresql" else ":wkb"
            )
            for length in (1, 3, 12):
                cells[length] = connection.scalar(
                    text(f"SELECT ST_GeoHash(ST_PointOnSurface({stored}), :length)"),
                    {"wkb": wkb, "length": length},
                )
        midst = shapely.point_on_surface(shape)
        assert shape.intersects(midst)
        assert cells == {length: geohash(midst.x, midst.y, length) for length in (1, 3, 12)}
