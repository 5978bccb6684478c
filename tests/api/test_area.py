import json
import time
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from shapely.geometry import mapping

from firnline.api.area import MAX_VERTICES, Area, from_bbox, from_geojson
from firnline.errors import BBoxError, GeometryError, InputError, TooLargeError
from firnline.footprint import footprint


def polygon(*ring: tuple[float, float]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[list(position) for position in ring]]}


def same(area: Area | None, expected: Any) -> bool:
    assert area is not None
    return bool(shapely.equals(area.shape, expected))


DATELINE = shapely.union_all([shapely.box(170, 60, 180, 80), shapely.box(-180, 60, -170, 80)])


class TestBBox:
    def test_plain(self) -> None:
        area = from_bbox([-50, 69, -49, 70])
        assert same(area, shapely.box(-50, 69, -49, 70))
        assert area is not None
        assert area.boxes == ((-50, 69, -49, 70),)

    def test_heights_are_no_part_of_its_shape(self) -> None:
        assert same(from_bbox([-50, 69, -100, -49, 70, 3000]), shapely.box(-50, 69, -49, 70))

    @pytest.mark.parametrize(
        "values", [[170, 60, -170, 80], [170, 60, 190, 80], [-190, 60, -170, 80]]
    )
    def test_across_the_antimeridian(self, values: list[float]) -> None:
        area = from_bbox(values)
        assert same(area, DATELINE)
        assert area is not None
        assert area.boxes == ((170, 60, 180, 80), (-180, 60, -170, 80))

    @pytest.mark.parametrize("values", [[-180, -90, 180, 90], [0, -90, 360, 90]])
    def test_the_world_excludes_nothing(self, values: list[float]) -> None:
        assert from_bbox(values) is None

    def test_a_point_and_a_line(self) -> None:
        assert same(from_bbox([10, 70, 10, 70]), shapely.Point(10, 70))
        assert same(from_bbox([10, 70, 20, 70]), shapely.LineString([(10, 70), (20, 70)]))

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            [0, 10, 5, 0],
            [0, 0, 10, 5, 5, 0],
            [0, -91, 1, 0],
            [0, 0, 1, 90.5],
            [-400, 0, 1, 1],
            [200, 0, 190, 1],
            [float("nan"), 0, 1, 1],
            [0, 0, float("inf"), 1],
        ],
    )
    def test_refused(self, values: list[float]) -> None:
        with pytest.raises(BBoxError, match="bbox"):
            from_bbox(values)


class TestGeoJSON:
    @pytest.mark.parametrize(
        "shape",
        [
            shapely.Point(1, 2),
            shapely.MultiPoint([(1, 2), (3, 4)]),
            shapely.LineString([(1, 2), (3, 4)]),
            shapely.MultiLineString([[(1, 2), (3, 4)], [(5, 6), (7, 8)]]),
            shapely.box(1, 2, 3, 4),
            shapely.box(0, 0, 9, 9).difference(shapely.box(1, 1, 2, 2)),
            shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(2, 2, 3, 3)]),
        ],
        ids=lambda shape: shape.geom_type,
    )
    def test_every_type(self, shape: Any) -> None:
        geometry = {"type": shape.geom_type, "coordinates": _lists(mapping(shape)["coordinates"])}
        assert same(from_geojson(geometry), shape)
        collection = {"type": "GeometryCollection", "geometries": [geometry]}
        assert same(from_geojson({"type": "GeometryCollection", "geometries": [collection]}), shape)

    def test_a_mixed_collection(self) -> None:
        area = from_geojson(
            {
                "type": "GeometryCollection",
                "geometries": [
                    {"type": "Point", "coordinates": [50, 50]},
                    polygon((0, 0), (2, 0), (2, 2), (0, 2), (0, 0)),
                ],
            }
        )
        assert area.shape.intersects(shapely.Point(1, 1))
        assert area.shape.intersects(shapely.Point(50, 50))
        assert not area.shape.intersects(shapely.Point(25, 25))

    def test_polygons_that_overlap_include_their_overlap(self) -> None:
        boxes = [shapely.box(0, 0, 10, 10), shapely.box(5, 0, 15, 10)]
        coordinates = [_lists(mapping(each)["coordinates"]) for each in boxes]
        area = from_geojson({"type": "MultiPolygon", "coordinates": coordinates})
        assert area.shape.intersects(shapely.Point(7, 5))
        assert area.shape.intersects(shapely.box(6, 4, 8, 6))

    @pytest.mark.parametrize(
        "ring",
        [
            [(170, 60), (-170, 60), (-170, 80), (170, 80), (170, 60)],
            [(170, 60), (190, 60), (190, 80), (170, 80), (170, 60)],
            [(170, 60), (170, 80), (190, 80), (190, 60), (170, 60)],
            [(170, 60), (179, 60), (-170, 60), (-170, 80), (170, 80), (170, 60)],
            [(170, 60), (170, 80), (179, 80), (-170, 80), (-170, 60), (170, 60)],
        ],
    )
    def test_across_the_antimeridian(self, ring: list[tuple[float, float]]) -> None:
        area = from_geojson(polygon(*ring))
        assert same(area, DATELINE)
        assert sorted(area.boxes) == [(-180, 60, -170, 80), (170, 60, 180, 80)]

    @pytest.mark.parametrize("half", [170, 180, 100])
    def test_a_wide_box_is_what_it_looks_like(self, half: float) -> None:
        wide = shapely.box(-half, -90, half, -60)
        geometry = {"type": "Polygon", "coordinates": _lists(mapping(wide)["coordinates"])}
        assert same(from_geojson(geometry), wide)

    @pytest.mark.parametrize(("lat", "pole"), [(-70.0, -90.0), (70.0, 90.0)])
    @pytest.mark.parametrize("east", [True, False])
    def test_round_a_pole(self, lat: float, pole: float, east: bool) -> None:
        lons = np.r_[np.arange(5, 180, 10), np.arange(-175, 5, 10), 5].tolist()
        ring = [(lon, lat) for lon in (lons if east else lons[::-1])]
        area = from_geojson(polygon(*ring))
        south, north = sorted([lat, pole])
        assert same(area, shapely.box(-180, south, 180, north))
        hole = [[lon, lat + (pole - lat) / 2] for lon, _ in ring]
        outer = [list(position) for position in ring]
        annulus = from_geojson({"type": "Polygon", "coordinates": [outer, hole]})
        assert not annulus.shape.intersects(shapely.Point(33, pole * 0.99))
        assert annulus.shape.intersects(shapely.Point(180, lat + (pole - lat) / 4))

    def test_a_hole_across_the_antimeridian(self) -> None:
        outer = [[160, 50], [-160, 50], [-160, 85], [160, 85], [160, 50]]
        hole = [[170, 60], [-170, 60], [-170, 80], [170, 80], [170, 60]]
        area = from_geojson({"type": "Polygon", "coordinates": [outer, hole]})
        assert not area.shape.intersects(shapely.box(175, 65, 180, 75))
        assert area.shape.intersects(shapely.Point(-165, 70))

    def test_a_line_and_points_across_the_antimeridian(self) -> None:
        line = from_geojson({"type": "LineString", "coordinates": [[170, 60], [-170, 70]]})
        assert same(
            line,
            shapely.MultiLineString([[(170, 60), (180, 65)], [(-180, 65), (-170, 70)]]),
        )
        points = from_geojson(
            {"type": "MultiPoint", "coordinates": [[190, 1], [-190, 1], [360, 1]]}
        )
        assert same(points, shapely.MultiPoint([(-170, 1), (170, 1), (0, 1)]))

    @pytest.mark.parametrize(
        "geometry",
        [
            None,
            [],
            "POINT (1 2)",
            {},
            {"type": None},
            {"type": ["Point"]},
            {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}},
            {"type": "Circle", "coordinates": [1, 2]},
            {"type": "Point"},
            {"type": "Point", "coordinates": None},
            {"type": "Point", "coordinates": []},
            {"type": "Point", "coordinates": [1]},
            {"type": "Point", "coordinates": [1, 2, 3, 4, 5]},
            {"type": "Point", "coordinates": ["1", "2"]},
            {"type": "Point", "coordinates": [True, False]},
            {"type": "Point", "coordinates": [[1, 2]]},
            {"type": "Point", "coordinates": [float("nan"), 2]},
            {"type": "Point", "coordinates": [1, float("inf")]},
            {"type": "Point", "coordinates": [1, 2, float("nan")]},
            {"type": "Point", "coordinates": [10**400, 2]},
            {"type": "Point", "coordinates": [1, 91]},
            {"type": "Point", "coordinates": [361, 0]},
            {"type": "MultiPoint", "coordinates": []},
            {"type": "LineString", "coordinates": [[1, 2]]},
            {"type": "Polygon", "coordinates": []},
            {"type": "Polygon", "coordinates": [[]]},
            polygon((0, 0), (1, 0), (0, 0)),
            polygon((0, 0), (1, 0), (1, 1), (0, 1)),
            polygon((0, 0), (1, 1), (1, 0), (0, 1), (0, 0)),
            polygon((0, 0), (1, 1), (2, 2), (0, 0)),
            polygon((179, 0), (-179, 1), (-179, 0), (179, 1), (179, 0)),
            {"type": "GeometryCollection"},
            {"type": "GeometryCollection", "geometries": []},
            {"type": "GeometryCollection", "geometries": [None]},
            # metres, as given without a CRS
            polygon((465e3, -23e5), (496e3, -23e5), (496e3, -22e5), (465e3, -23e5)),
        ],
    )
    def test_refused(self, geometry: Any) -> None:
        with pytest.raises(GeometryError, match="intersects"):
            from_geojson(geometry)

    def test_nesting_is_limited(self) -> None:
        geometry: dict[str, Any] = {"type": "Point", "coordinates": [0, 0]}
        for _ in range(50):
            geometry = {"type": "GeometryCollection", "geometries": [geometry]}
        with pytest.raises(GeometryError, match="deep"):
            from_geojson(geometry)

    def test_vertices_are_limited(self) -> None:
        ring = np.linspace(0, 2 * np.pi, MAX_VERTICES, endpoint=False)
        circle = np.column_stack([np.cos(ring), np.sin(ring)]).tolist()
        assert from_geojson({"type": "Polygon", "coordinates": [[*circle[1:], circle[1]]]})
        with pytest.raises(TooLargeError, match="intersects"):
            from_geojson({"type": "Polygon", "coordinates": [[*circle, circle[0]]]})

    @pytest.mark.parametrize("kind", ["Polygon", "LineString", "MultiPolygon"])
    @pytest.mark.parametrize("west", [0, 170])
    def test_hostile_shapes_are_answered_soon(self, kind: str, west: float) -> None:
        """What crosses itself 25 million times is refused or taken, not worked out."""
        zigzag = [[west + (n % 2) * 30, n * 0.001] for n in range(4990)]
        zigzag += [[west + n * 0.006, (n % 2) * 5] for n in range(4990)]
        slivers = [
            [
                [
                    [west + n / 100, 0],
                    [west + n / 100 + 0.001, 0],
                    [west + n / 100, 30],
                    [west + n / 100, 0],
                ]
            ]
            if n % 2
            else [[[west, n / 100], [west + 30, n / 100], [west, n / 100 + 0.001], [west, n / 100]]]
            for n in range(2490)
        ]
        coordinates: Any = {
            "Polygon": [[*zigzag, zigzag[0]]],
            "LineString": zigzag,
            "MultiPolygon": slivers,
        }[kind]
        began = time.process_time()
        try:
            from_geojson({"type": kind, "coordinates": coordinates})
        except InputError:
            assert kind == "Polygon"
        assert time.process_time() - began < 3


def _lists(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))


@given(
    crs=st.sampled_from(["EPSG:3031", "EPSG:3413", "EPSG:32601", "EPSG:32660", "EPSG:32701"]),
    corner=st.tuples(*[st.sampled_from([-100e3, -50e3, 0.0]) | st.floats(-2e6, 2e6)] * 2),
    size=st.tuples(*[st.sampled_from([50e3, 100e3]) | st.floats(1e3, 1e6)] * 2),
    angle=st.just(0.0) | st.floats(0, 90),
)
def test_every_footprint_is_an_area(
    crs: str, corner: tuple[float, float], size: tuple[float, float], angle: float
) -> None:
    """Also with an edge along the pole, and parts on both sides of the antimeridian."""
    x, y = corner
    if not crs.endswith(("3031", "3413")):  # UTM zones beside the antimeridian
        x, y = 300_000 + x / 10, 6e6 + y
    square = shapely.affinity.rotate(shapely.box(x, y, x + size[0], y + size[1]), angle)
    try:
        outline = footprint(square, crs)
    except GeometryError:
        assume(False)
    area = from_geojson(json.loads(json.dumps(mapping(outline))))
    assert area.shape.is_valid
    assert area.shape.symmetric_difference(outline).area <= 1e-12


def test_an_edge_along_the_pole_does_not_stop_another_from_jumping() -> None:
    beside = polygon((170, 80), (-170, 80), (-170, 90), (170, 90), (170, 80))
    assert same(
        from_geojson(beside),
        shapely.union_all([shapely.box(170, 80, 180, 90), shapely.box(-180, 80, -170, 90)]),
    )
