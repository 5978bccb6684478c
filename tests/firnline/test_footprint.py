from __future__ import annotations

import functools
import os
from pathlib import Path

import antimeridian
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import CRS, Geod, Transformer
from shapely import MultiPolygon, Point, Polygon
from shapely.geometry import box

from firnline.errors import BBoxError, CRSError, GeometryError
from firnline.footprint import TOLERANCE, bbox, footprint
from firnline.indexer.catalog import read_catalog

REPO = Path(__file__).parents[2]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))
CATALOGS = [
    DATA / name
    for name in (
        "catalog_v02_2024.json",
        "catalog_v02_truncated_keys.geojson",
        "catalog_v02_older.json",
    )
]
GEOD = Geod(ellps="WGS84")


@functools.cache
def to_lonlat(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)


def assert_well_formed(outline: Polygon | MultiPolygon) -> None:
    assert outline.is_valid
    west, south, east, north = outline.bounds
    assert -180 <= west < east <= 180
    assert -90 <= south < north <= 90
    for part in shapely.get_parts(outline):
        assert shapely.is_ccw(part.exterior)
        assert not any(shapely.is_ccw(hole) for hole in part.interiors)


def lonlat_area(outline: Polygon | MultiPolygon) -> float:
    """Geodesic area (m2) of an outline whose edges are straight in lon/lat."""
    fine = shapely.segmentize(outline, 0.01)
    return sum(GEOD.geometry_area_perimeter(part)[0] for part in shapely.get_parts(fine))


def tile_area(tile: Polygon, crs: str, step: float = 500.0) -> float:
    """Geodesic area (m2) of a polygon whose edges are straight in its CRS, not round a pole."""
    ring = shapely.get_coordinates(shapely.segmentize(tile.exterior, step))
    lon, lat = to_lonlat(crs).transform(ring[:, 0], ring[:, 1])
    return abs(GEOD.polygon_area_perimeter(lon, lat)[0])


def near_edges(
    tile: tuple[float, float, float, float], rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points 101 m to 3 km off the edges of a tile, and whether each is inside."""
    left, bottom, right, top = tile
    along = rng.uniform(0, 1, count)
    away = rng.uniform(1.01 * TOLERANCE, 3000, count) * rng.choice([-1, 1], count)
    side = rng.integers(0, 4, count)
    x = np.select(
        [side == 0, side == 1], [left + away, right + away], left + along * (right - left)
    )
    y = np.select(
        [side == 2, side == 3], [bottom + away, top + away], bottom + along * (top - bottom)
    )
    inside = (x > left) & (x < right) & (y > bottom) & (y < top)
    # near a corner a point off one edge may lie on the next
    far = shapely.distance(box(*tile).exterior, shapely.points(x, y)) > TOLERANCE
    return np.column_stack([x, y])[far], inside[far]


@pytest.fixture(scope="module")
def real() -> list[tuple[str, Polygon, Polygon | MultiPolygon]]:
    """Code, tile and footprint of all cubes of the real catalogs, each tile once."""
    tiles = {}
    for path in CATALOGS:
        if not path.exists():
            pytest.skip(f"{path} is not here")
        records, failures = read_catalog(path.read_bytes())
        assert not failures
        tiles |= {(r.epsg, r.tile.bounds): (f"EPSG:{r.epsg}", r.tile, r.footprint) for r in records}
    return list(tiles.values())


def test_real_cubes_are_well_formed_and_of_the_right_area(
    real: list[tuple[str, Polygon, Polygon | MultiPolygon]],
) -> None:
    assert len(real) == 3089
    for crs, tile, outline in real:
        assert_well_formed(outline)
        assert lonlat_area(outline) == pytest.approx(tile_area(tile, crs), rel=1e-3)


def test_real_cubes_contain_what_their_tiles_contain(
    real: list[tuple[str, Polygon, Polygon | MultiPolygon]],
) -> None:
    rng = np.random.default_rng(1)
    checked = 0
    for crs, tile, outline in real:
        points, inside = near_edges(tile.bounds, rng, 40)
        lon, lat = to_lonlat(crs).transform(points[:, 0], points[:, 1])
        assert (shapely.contains_xy(outline, lon, lat) == inside).all(), (crs, tile.bounds)
        checked += len(points)
    assert checked > 110_000


def test_real_cubes_at_the_antimeridian_and_round_the_poles(
    real: list[tuple[str, Polygon, Polygon | MultiPolygon]],
) -> None:
    """The same points for all cubes: most are in one of those that meet there."""
    rng = np.random.default_rng(4)
    count = 1_000
    beside = 180 - rng.exponential(0.2, count) * rng.choice([-1, 1], count)
    lon = np.r_[(beside + 180) % 360 - 180, rng.uniform(-180, 180, count)]
    lat = rng.choice([-1, 1], 2 * count)
    lat = lat * np.r_[rng.uniform(60, 90, count), 90 - rng.exponential(3, count).clip(0, 30)]
    inside = 0
    for code in ("EPSG:3031", "EPSG:3413"):
        x, y = to_lonlat(code).transform(lon, lat, direction="INVERSE")
        for crs, tile, outline in real:
            if crs != code:
                continue
            decided = np.abs(shapely.distance(tile.exterior, shapely.points(x, y))) > TOLERANCE
            expected = shapely.contains_xy(tile, x, y)
            found = shapely.contains_xy(outline, lon, lat)
            assert (found == expected)[decided].all(), tile.bounds
            inside += int(expected.sum())
    assert inside > 200


def test_real_neighbours_leave_no_gap_and_no_overlap(
    real: list[tuple[str, Polygon, Polygon | MultiPolygon]],
) -> None:
    outlines = [outline for crs, _, outline in real if crs == "EPSG:3413"]
    whole = shapely.union_all(outlines)
    assert whole.area == pytest.approx(sum(outline.area for outline in outlines), rel=1e-12)
    # A gap would be a hole much smaller than a tile.
    holes = [hole for part in shapely.get_parts(whole) for hole in part.interiors]
    assert all(abs(GEOD.geometry_area_perimeter(hole)[0]) > 8e9 for hole in holes)


def test_the_edge_of_a_tile_bows_and_is_followed() -> None:
    tile = (400_000.0, -2_300_000.0, 500_000.0, -2_200_000.0)
    outline = footprint(tile, "EPSG:3413")
    corners = Polygon(np.column_stack(to_lonlat("EPSG:3413").transform(*box(*tile).exterior.xy)))
    assert shapely.get_num_coordinates(outline) > 5
    # What joining the corners gets wrong: a good part of a percent of the tile.
    assert corners.symmetric_difference(outline).area / outline.area > 2e-3


@pytest.mark.parametrize("crs", ["EPSG:3031", "EPSG:3413"])
@pytest.mark.parametrize(
    "tile",
    [
        (0, 0, 100, 100),  # the pole is a corner
        (-100, 0, 0, 100),
        (-100, -100, 0, 0),
        (0, -100, 100, 0),
        (-50, 0, 50, 100),  # the pole is the middle of an edge
        (-30, 0, 70, 100),  # ... and not a halving of it
        (0, -70, 100, 30),
        (-100, -70, 0, 30),
        (-50, -50, 50, 50),  # the pole is inside
        (-10, -90, 90, 10),
        (0.2, -50, 100, 50),  # the pole is 200 m outside
        (-0.2, -50, 100, 50),  # ... and 200 m inside
        (0, -200, 100, -100),  # an edge on the antimeridian of EPSG:3031
        (-100, -200, 0, -100),
        (-50, -200, 50, -100),  # across it
        (-200, 100, -100, 200),  # across that of EPSG:3413, corner to corner
        (-300, 100, -200, 200),
    ],
    ids=str,
)
def test_poles_and_antimeridian(crs: str, tile: tuple[float, ...]) -> None:
    left, bottom, right, top = bounds = tuple(1000.0 * km for km in tile)
    outline = footprint(bounds, crs)
    assert_well_formed(outline)

    rng = np.random.default_rng(0)
    edges, inside = near_edges((left, bottom, right, top), rng, 2000)
    anywhere = rng.uniform(-300_000, 300_000, (2000, 2))
    gap = np.abs(shapely.distance(box(*bounds).exterior, shapely.points(anywhere)))
    anywhere = anywhere[gap > TOLERANCE]
    points = np.vstack([edges, anywhere])
    inside = np.r_[inside, shapely.contains_xy(box(*bounds), anywhere)]
    # within the tolerance of the pole itself a direction has no meaning
    lon, lat = to_lonlat(crs).transform(points[:, 0], points[:, 1])
    assert (shapely.contains_xy(outline, lon, lat) == inside).all()

    # a bounding box that says no more and no less
    west, south, east, north = bbox(outline)
    assert (south, north) == (outline.bounds[1], outline.bounds[3])
    within = (lon >= west) & (lon <= east) if west <= east else (lon >= west) | (lon <= east)
    assert within[inside].all()
    if left < 0 < right and bottom < 0 < top:
        assert (west, east) == (-180, 180)
        assert 90.0 in (-south, north)


@pytest.mark.parametrize("tile", [(-50, -200, 50, -100), (-50, -50, 50, 50), (-50, -999, 50, -900)])
def test_the_cut_agrees_with_antimeridian(tile: tuple[float, ...]) -> None:
    """An independent library, on the same vertices."""
    bounds = tuple(1000.0 * km for km in tile)
    ring = shapely.get_coordinates(shapely.segmentize(box(*bounds), 1000.0))
    lonlat = np.column_stack(to_lonlat("EPSG:3031").transform(ring[:, 0], ring[:, 1]))
    expected = antimeridian.fix_polygon(Polygon(lonlat), fix_winding=False)
    outline = footprint(bounds, "EPSG:3031", tolerance=1.0)
    assert outline.symmetric_difference(expected).area < 1e-3 * expected.area


def test_a_hole_round_the_pole_stays_a_hole() -> None:
    ring = Polygon(
        box(-900_000, -900_000, 900_000, 900_000).exterior,
        [box(-500_000, -500_000, 500_000, 500_000).exterior],
    )
    outline = footprint(ring, "EPSG:3031")
    assert_well_formed(outline)
    assert bbox(outline)[::2] == [-180, 180]
    assert not outline.covers(Point(10, -89.9))
    assert outline.covers(Point(10, -83))
    assert -86 < outline.bounds[3] < -78


# Areas whose outline crosses the meridian of its first vertex on its way round the pole, or comes
# back to it from the other side.
@pytest.mark.parametrize("crs", ["EPSG:3031", "EPSG:3413"])
@pytest.mark.parametrize(
    "corners",
    [
        [(200, 100), (100, 0), (0, 100), (-200, -200), (100, -200)],
        [(0, 300), (-300, 300), (-100, 200), (-200, -200), (200, 0), (0, 200)],
        [(300, 300), (0, -100), (-100, 100), (-200, 200), (400, 400)],
        [(500, 300), (200, 500), (-500, 200), (200, -300), (0, 200)],
        [(0, 0), (100, -300), (300, 300), (-300, 300), (-100, -300)],  # reflex at the pole
    ],
    ids=str,
)
def test_any_shape_at_the_pole(crs: str, corners: list[tuple[float, float]]) -> None:
    area = Polygon([(1000.0 * x, 1000.0 * y) for x, y in corners])
    outline = footprint(area, crs)
    assert_well_formed(outline)
    points = np.random.default_rng(2).uniform(-600_000, 600_000, (5000, 2))
    points = points[shapely.distance(area.exterior, shapely.points(points)) > TOLERANCE]
    lon, lat = to_lonlat(crs).transform(points[:, 0], points[:, 1])
    inside = shapely.contains_xy(area, points)
    assert (shapely.contains_xy(outline, lon, lat) == inside).all()


def test_a_multipolygon_keeps_its_parts_apart() -> None:
    parts = MultiPolygon([box(0, 0, 1e5, 1e5), box(3e5, 0, 4e5, 1e5)])
    outline = footprint(parts, "EPSG:32622")
    assert outline.geom_type == "MultiPolygon"
    assert len(outline.geoms) == 2


def test_utm_south_cubes_north_of_the_equator() -> None:
    outline = footprint((200_000, 10_000_000, 300_000, 10_100_000), "EPSG:32737")
    assert outline.bounds[1] == pytest.approx(0, abs=1e-6)
    assert outline.bounds[3] == pytest.approx(0.904, abs=1e-2)


def test_custom_crs_without_a_code() -> None:
    crs = CRS.from_proj4("+proj=laea +lat_0=-75 +lon_0=170 +datum=WGS84")
    outline = footprint((-2e5, -2e5, 6e5, 2e5), crs)
    assert_well_formed(outline)
    west, _, east, _ = bbox(outline)
    assert west > 0 > east


def test_the_whole_of_a_cylindrical_world() -> None:
    edge = 20_037_508.342789244
    outline = footprint((-edge, -1e7, edge, 1e7), "EPSG:3857")
    assert_well_formed(outline)
    assert bbox(outline)[::2] == [-180, 180]
    assert outline.covers(Point(0, 0))
    assert outline.covers(Point(179, 60))


class TestAreaOfInterest:
    def test_lonlat_is_kept_as_it_is(self) -> None:
        area = box(-50.123456789, 68.1, -49, 69)
        assert footprint(area, "OGC:CRS84").equals(area)
        assert footprint((-50.123456789, 68.1, -49, 69), "EPSG:4326").equals(area)

    @pytest.mark.parametrize(
        "area", [(170, -80, -170, -70), (170, -80, 190, -70), (-190, -80, -170, -70)], ids=str
    )
    def test_across_the_antimeridian(self, area: tuple[float, ...]) -> None:
        outline = footprint(area, "OGC:CRS84")
        assert_well_formed(outline)
        assert bbox(outline) == [170, -80, -170, -70]
        assert outline.area == 200

    def test_a_wide_ring_is_taken_at_its_word(self) -> None:
        assert footprint(box(-170, 0, 170, 10), "OGC:CRS84").area == 3400

    def test_the_seed(self) -> None:
        outline = footprint((465_000, -2_300_000, 496_000, -2_258_000), "EPSG:3413")
        assert outline.centroid.distance(Point(-33.14, 68.46)) < 0.5

    @pytest.mark.parametrize(
        "area",
        [
            Point(0, 0),
            Polygon(),
            box(0, 0, 1, 1).exterior,
            Polygon([(0, 0), (1, 1), (1, 0), (0, 1), (0, 0)]),
            Polygon([(0, 0), (1, float("inf")), (1, 1)]),
            box(0, 0, 1, 91),
            box(0, 0, 400, 10),
        ],
    )
    def test_bad_geometry(self, area: shapely.Geometry) -> None:
        with pytest.raises(GeometryError):
            footprint(area, "OGC:CRS84")

    @pytest.mark.parametrize(
        "area",
        [(0, 0, 0, 1), (0, 1, 1, 0), (0, 0, 1), (0, 0, float("inf"), 1), (0, -91, 1, 0)],
        ids=str,
    )
    def test_bad_bounds(self, area: tuple[float, ...]) -> None:
        with pytest.raises(BBoxError):
            footprint(area, "OGC:CRS84")

    @pytest.mark.parametrize("area", [(1, 0, 0, 1), (0, 0, 1e9, 1)], ids=str)
    def test_bad_projected_bounds(self, area: tuple[float, ...]) -> None:
        with pytest.raises(BBoxError):
            footprint(area, "EPSG:3413")

    def test_unknown_crs(self) -> None:
        with pytest.raises(CRSError):
            footprint((0, 0, 1, 1), "EPSG:1")

    def test_beyond_the_projection_ends_soon(self) -> None:
        with pytest.raises(GeometryError):
            footprint((-9e7, -9e7, 9e7, 9e7), "EPSG:32622")


class TestBbox:
    def test_plain(self) -> None:
        assert bbox(box(-10, -20, 30, 40)) == [-10, -20, 30, 40]

    def test_crossing(self) -> None:
        both = MultiPolygon([box(170, 0, 180, 1), box(-180, 0, -175, 1), box(-170, 0, -160, 2)])
        assert bbox(both) == [170, 0, -160, 2]

    def test_touching_one_side_does_not_cross(self) -> None:
        assert bbox(box(177, -80, 180, -79)) == [177, -80, 180, -79]

    def test_all_round(self) -> None:
        assert bbox(box(-180, -90, 180, -80)) == [-180, -90, 180, -80]


@settings(max_examples=150)
@given(
    crs=st.sampled_from(["EPSG:3031", "EPSG:3413", "EPSG:32622", "EPSG:32759", "ESRI:102027"]),
    column=st.integers(-25, 25),
    row=st.integers(-25, 25),
    size=st.sampled_from([61_440.0, 100_000.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_tile(crs: str, column: int, row: int, size: float, seed: int) -> None:
    if crs.startswith("EPSG:32"):  # Transverse Mercator is for the neighbourhood of its meridian
        column, row = column % 9, row * 3 + 75
        if row * size > 9_000_000:
            row = 80
    left, bottom = column * size, row * size
    tile = (left, bottom, left + size, bottom + size)
    outline = footprint(tile, crs)
    assert_well_formed(outline)
    points, inside = near_edges(tile, np.random.default_rng(seed), 60)
    lon, lat = to_lonlat(crs).transform(points[:, 0], points[:, 1])
    assert (shapely.contains_xy(outline, lon, lat) == inside).all()
    # The neighbour to the east has the same vertices on the common edge.
    other = footprint((left + size, bottom, left + 2 * size, bottom + size), crs)
    assert outline.intersection(other).area < 1e-9
