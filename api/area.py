"""The ``bbox`` and ``intersects`` parameters: what a caller draws, as an area on the globe.

Coordinates are longitude, latitude in degrees; lines between them are straight in them (RFC 7946,
3.1.1), and what crosses the antimeridian is cut there (3.1.9), since databases know a plane only.
Nothing is repaired by guessing, and no step takes longer than its input is long: an area comes
from anybody.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import shapely
from shapely import GeometryCollection, LineString, MultiPolygon, Point, Polygon, affinity
from shapely.geometry.base import BaseGeometry

from firnline.crs import LONLAT, parse_crs, transformer
from firnline.errors import BBoxError, GeometryError, InputError, TooLargeError
from firnline.footprint import footprint

MAX_VERTICES = 10_000
_MAX_DEPTH = 8  # of collections in collections, which RFC 7946, 3.1.8 advises against
_STEP = 1000.0  # metres: a line in a CRS is followed by positions so far apart
_FARTHEST = 1e8  # metres: beyond any projected coordinate of the Earth
_WORLD = shapely.box(-180, -90, 180, 90)

Box = tuple[float, float, float, float]
"""West, south, east, north, with west <= east."""
Position = tuple[float, float]


@dataclass(frozen=True)
class Area:
    """A part of the globe, within -180 to 180 and -90 to 90 degrees."""

    shape: BaseGeometry
    boxes: tuple[Box, ...]
    """One box around it, or two on both sides of the antimeridian."""

    @cached_property
    def wkb(self) -> bytes:
        """The shape as well-known binary."""
        return bytes(shapely.to_wkb(self.shape))


def from_bbox(values: Sequence[float]) -> Area | None:
    """The area of a bounding box; None for the whole world, which excludes nothing.

    Four values, or six with heights, of which :func:`is_on_the_ground` tells what they exclude.
    West greater than east crosses the antimeridian (RFC 7946, 5.2; OGC API - Features, 7.15.3).
    A box may be a line or a point.

    Raises
    ------
    BBoxError
    """
    if len(values) not in (4, 6):
        raise BBoxError(
            "bbox takes 4 numbers (west, south, east, north) or 6 (west, south, lowest, east, "
            f"north, highest); {len(values)} were given"
        )
    given = ",".join(f"{value:g}" for value in values)
    if not all(math.isfinite(value) for value in values):
        raise BBoxError(f"bbox takes finite numbers, not {given}")
    numbers = [float(value) for value in values]
    if len(numbers) == 6:
        west, south, lowest, east, north, highest = numbers
        if lowest > highest:
            raise BBoxError(f"bbox {given}: the lowest height is above the highest")
    else:
        west, south, east, north = numbers
    if not (-90 <= south <= 90 and -90 <= north <= 90):
        raise BBoxError(f"bbox {given}: latitudes lie between -90 and 90 degrees")
    if south > north:
        raise BBoxError(f"bbox {given}: south is greater than north")
    if not (-360 <= west <= 360 and -360 <= east <= 360):
        raise BBoxError(f"bbox {given}: longitudes lie between -180 and 180 degrees")
    boxes = tuple((left, south, right, north) for left, right in _spans(west, east))
    if boxes == ((-180.0, -90.0, 180.0, 90.0),):
        return None
    parts = [_rectangle(box) for box in boxes]
    return Area(parts[0] if len(parts) == 1 else _collected(parts), boxes)


def is_on_the_ground(values: Sequence[float]) -> bool:
    """Whether a box has height 0 in it, or no heights: that is where items are.

    STAC API - Item Search, bbox: items without heights count as those at 0.
    """
    return len(values) != 6 or values[2] <= 0 <= values[5]


def from_bounds(values: Sequence[float], crs: str) -> Area:
    """The area of a box in a projected CRS: left, bottom, right, top in its units.

    Raises
    ------
    BBoxError
        Not such a box, or beyond what the CRS can describe.
    """
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise BBoxError(f"bbox in {crs} takes 4 finite numbers: left, bottom, right, top")
    left, bottom, right, top = map(float, values)
    if not (left < right and bottom < top):
        raise BBoxError(
            f"bbox {left:g},{bottom:g},{right:g},{top:g} in {crs}: left has to be less than right, "
            "and bottom less than top"
        )
    return _outlined([_footprint((left, bottom, right, top), crs, "bbox")])


def from_geojson(geometry: object, crs: str | None = None) -> Area:
    """The area of a GeoJSON geometry of any type, in degrees or in a projected CRS.

    The edges of a polygon, and lines, are straight in the CRS in which they are given.


    A polygon or line that crosses the antimeridian should come cut (RFC 7946, 3.1.9), but mostly
    does not: an edge longer than 180 degrees is taken the short way round, and longitudes up to
    +-360 are turned back. Only a counter-clockwise rectangle, which is what a wide bounding box
    looks like, keeps its long edges. A ring that goes once round the globe encloses the pole on
    whose side it lies.

    Raises
    ------
    GeometryError
        Not a GeoJSON geometry, not finite, not in degrees (or beyond what `crs` can describe), or
        a polygon that crosses itself.
    TooLargeError
        It has more than :data:`MAX_VERTICES` positions.
    """
    if crs is not None:
        return _outlined(list(_projected(geometry, crs)))
    shapes = [part for kind, coordinates in _parts(geometry) for part in _shapes(kind, coordinates)]
    if not shapes:
        raise GeometryError("intersects has no coordinates")
    shape = shapes[0] if len(shapes) == 1 else _collected(shapes)
    return Area(shape, _boxes(shapes))


def _projected(geometry: object, crs: str) -> Iterator[BaseGeometry]:
    """The parts of a geometry in a CRS, in lon/lat."""
    to_lonlat = transformer(parse_crs(crs), LONLAT)
    for kind, coordinates in _parts(geometry, projected=True):
        if kind == "Polygon":
            polygon = _valid(_rings(cast("Sequence[Sequence[Position]]", coordinates)))
            yield _footprint(polygon, crs, "intersects")
            continue
        if kind == "Point":
            positions = np.array([cast("Position", coordinates)])
        else:
            line = LineString(cast("Sequence[Position]", coordinates))
            step = max(_STEP, line.length / MAX_VERTICES)
            positions = shapely.get_coordinates(shapely.segmentize(line, step))
        lon, lat = to_lonlat.transform(*positions.T)
        lonlat = list(zip(lon.tolist(), lat.tolist(), strict=True))
        if not all(map(math.isfinite, itertools.chain(*lonlat))):
            raise GeometryError(f"intersects lies outside the domain of {crs}")
        yield from _shapes(kind, lonlat[0] if kind == "Point" else lonlat)


def _footprint(of: Polygon | Box, crs: str, parameter: str) -> BaseGeometry:
    try:
        return footprint(of, crs)
    except InputError as error:
        raise type(error)(f"{parameter}: {error}") from None


def _rings(rings: Sequence[Sequence[Position]]) -> Polygon:
    if not rings or any(len(ring) < 4 or ring[0] != ring[-1] for ring in rings):
        raise GeometryError(
            "intersects: a ring has four positions at least, and the first is also the last"
        )
    return Polygon(rings[0], rings[1:])


def _outlined(outlines: Sequence[BaseGeometry]) -> Area:
    shapes = [part for outline in outlines for part in shapely.get_parts(outline)]
    if not shapes:
        raise GeometryError("intersects has no coordinates")
    return Area(shapes[0] if len(shapes) == 1 else _collected(shapes), _boxes(shapes))


def _spans(west: float, east: float) -> list[tuple[float, float]]:
    """West to east within -180 to 180."""
    if west > east:
        if not (west <= 180 and east >= -180):
            raise BBoxError(f"bbox: west {west:g} is greater than east {east:g}")
        return [(west, 180.0), (-180.0, east)]
    if west >= -180 and east <= 180:
        return [(west, east)]
    if east - west >= 360:
        return [(-180.0, 180.0)]
    turn = 360 * math.floor((west + 180) / 360)
    west, east = west - turn, east - turn
    return [(west, east)] if east <= 180 else [(west, 180.0), (-180.0, east - 360)]


def _rectangle(box: Box) -> BaseGeometry:
    west, south, east, north = box
    if west < east and south < north:
        return shapely.box(west, south, east, north)
    if (west, south) == (east, north):  # PostGIS takes no polygon without area
        return Point(west, south)
    return LineString([(west, south), (east, north)])


def _collected(parts: Sequence[BaseGeometry]) -> BaseGeometry:
    """The parts as one. No union is made: that of a few thousand slivers would take minutes."""
    polygons = [part for part in parts if isinstance(part, Polygon)]
    if len(polygons) == len(parts):
        whole = MultiPolygon(polygons)
        if whole.is_valid:  # parts that overlap count twice where GEOS asks 'inside?'
            return whole
    return GeometryCollection(parts)


def _boxes(parts: Sequence[BaseGeometry]) -> tuple[Box, ...]:
    bounds = [part.bounds for part in parts]
    whole = _around(bounds)
    west = [box for box in bounds if box[2] <= 0]
    east = [box for box in bounds if box[2] > 0]
    if whole[0] > -180 or whole[2] < 180 or not west or any(box[0] < 0 for box in east):
        return (whole,)
    return _around(west), _around(east)


def _around(boxes: Sequence[Box]) -> Box:
    west, south, east, north = zip(*boxes, strict=True)
    return min(west), min(south), max(east), max(north)


_DEPTH = {
    "Point": 0,
    "MultiPoint": 1,
    "LineString": 1,
    "MultiLineString": 2,
    "Polygon": 2,
    "MultiPolygon": 3,
}


def _parts(geometry: object, *, projected: bool = False) -> Iterator[tuple[str, object]]:
    """Points, lines and polygons of a geometry, as their type and checked coordinates."""
    left = [MAX_VERTICES]
    stack: list[tuple[object, int]] = [(geometry, 0)]
    while stack:
        value, depth = stack.pop()
        if not isinstance(value, Mapping):
            raise GeometryError("intersects takes a GeoJSON geometry object")
        kind = value.get("type")
        if kind == "GeometryCollection":
            members = value.get("geometries")
            if not isinstance(members, list) or depth == _MAX_DEPTH:
                raise GeometryError(
                    "intersects: a GeometryCollection has an array `geometries`, "
                    f"nested at most {_MAX_DEPTH} deep"
                )
            stack += [(member, depth + 1) for member in reversed(members)]
        elif isinstance(kind, str) and kind in _DEPTH:
            coordinates = _coordinates(value.get("coordinates"), _DEPTH[kind], left, projected)
            if kind.startswith("Multi"):
                for part in coordinates:
                    yield kind.removeprefix("Multi"), part
            else:
                yield kind, coordinates
        else:
            hint = "; give the geometry of the Feature" if kind == "Feature" else ""
            raise GeometryError(
                f"intersects: {str(kind)[:40]!r} is not a type of GeoJSON geometry{hint}"
            )


def _coordinates(value: object, depth: int, left: list[int], projected: bool) -> tuple[object, ...]:
    if not isinstance(value, list):
        raise GeometryError("intersects: coordinates are not nested as the geometry's type asks")
    if depth:
        return tuple(_coordinates(each, depth - 1, left, projected) for each in value)
    left[0] -= 1
    if left[0] < 0:
        raise TooLargeError(f"intersects has more than {MAX_VERTICES:,} positions")
    if not 2 <= len(value) <= 4 or any(type(number) not in (int, float) for number in value):
        raise GeometryError("intersects: a position is two or three numbers: longitude, latitude")
    # Compared before they are made floats, which integers of 400 digits can't be; NaN fails too.
    lon, lat, *rest = value
    if projected:
        if not all(abs(each) < _FARTHEST for each in value):
            raise GeometryError("intersects: a position is not finite, or too far away to be real")
        return float(lon), float(lat)
    if not (-360 <= lon <= 360 and -90 <= lat <= 90 and all(abs(each) < 1e300 for each in rest)):
        raise GeometryError(
            "intersects: a position is not finite, or not within -180 to 180 degrees of longitude "
            "and -90 to 90 of latitude"
        )
    return float(lon), float(lat)


def _shapes(kind: str, coordinates: object) -> list[BaseGeometry]:
    if kind == "Point":
        lon, lat = cast("Position", coordinates)
        return [Point(lon - 360 * math.ceil((lon - 180) / 360) if abs(lon) > 180 else lon, lat)]
    if kind == "LineString":
        return _line(cast("Sequence[Position]", coordinates))
    return _polygon(cast("Sequence[Sequence[Position]]", coordinates))


def _line(positions: Sequence[Position]) -> list[BaseGeometry]:
    if len(positions) < 2:
        raise GeometryError("intersects: a line has two positions at least")
    line = LineString(_unwrapped(positions))
    # clip_by_rect, not intersection: that would look for where the line crosses itself
    return [
        part
        for moved in _turns(line)
        for part in shapely.get_parts(shapely.clip_by_rect(moved, -180, -90, 180, 90))
        if not part.is_empty
    ]


def _polygon(rings: Sequence[Sequence[Position]]) -> list[BaseGeometry]:
    if not rings:
        raise GeometryError("intersects: a polygon has an outer ring")
    for ring in rings:
        if len(ring) < 4 or ring[0] != ring[-1]:
            raise GeometryError(
                "intersects: a ring has four positions at least, and the first is also the last"
            )
    loops = [_loop(ring) for ring in rings]
    if all(loop is ring for loop, ring in zip(loops, rings, strict=True)):
        return [_valid(Polygon(rings[0], rings[1:]))]
    region = _cut(_valid(Polygon(loops[0])))
    for loop in loops[1:]:
        hole = _cut(_valid(Polygon(loop)))
        shapely.prepare(region)
        if not region.covers(hole):
            raise GeometryError("intersects: a polygon's hole is not inside its outer ring")
        region = region.difference(hole)
    return [part for part in shapely.get_parts(region) if part.geom_type == "Polygon"]


def _valid(polygon: Polygon) -> Polygon:
    if not polygon.is_valid:
        reason = shapely.is_valid_reason(polygon)
        raise GeometryError(f"intersects: the polygon is not valid: {reason}")
    return polygon


def _loop(ring: Sequence[Position]) -> Sequence[Position]:
    """The ring with continuous longitudes, closed over the pole if it goes round it."""
    if _is_wide_box(ring):
        return ring
    lonlat = _unwrapped(ring)
    if lonlat is ring:
        return ring if all(-180 <= lon <= 180 for lon, _ in ring) else list(ring)
    turned = lonlat[-1][0] - lonlat[0][0]
    width = max(lon for lon, _ in lonlat) - min(lon for lon, _ in lonlat)
    if abs(turned) > 540 or width > (360 if abs(turned) < 180 else 540):
        raise GeometryError("intersects: a ring goes round the globe more than once")
    if abs(turned) < 180:
        return lonlat
    middle = math.fsum(lat for _, lat in ring)
    pole = math.copysign(90.0, middle)
    return [*lonlat, (lonlat[-1][0], pole), (lonlat[0][0], pole), lonlat[0]]


def _is_wide_box(ring: Sequence[Position]) -> bool:
    """Whether it is a counter-clockwise rectangle: its long edges are meant as drawn.

    The same corners clockwise are a counter-clockwise rectangle across the antimeridian, which
    is how RFC 7946, 3.1.6 winds an outer ring.
    """
    lons, lats = {lon for lon, _ in ring}, {lat for _, lat in ring}
    straight = all(a[0] == b[0] or a[1] == b[1] for a, b in itertools.pairwise(ring))
    if not (len(ring) == 5 and len(lons) == len(lats) == 2 and straight):
        return False
    if max(lons) > 180 or min(lons) < -180:
        return False
    return bool(shapely.is_ccw(shapely.LinearRing(ring)))


def _unwrapped(positions: Sequence[Position]) -> Sequence[Position]:
    """The positions with longitudes that run on beyond +-180 instead of jumping.

    An edge along a pole has no length on the globe, so none is too long there: if no other edge
    jumps, it belongs to a shape that comes cut and closed over the pole, as footprints do.
    """
    out = list(positions)
    offset = 0.0
    beside_poles = False
    for n, ((last, behind), (lon, lat)) in enumerate(itertools.pairwise(positions), 1):
        step = lon - last
        # An edge of exactly 360 degrees follows a parallel from one side of the map to the other.
        if abs(step) > 180 and abs(step) != 360:
            offset -= 360.0 * round(step / 360.0)
            beside_poles |= not lat == behind in (-90, 90)
        out[n] = (lon + offset, lat)
    return out if beside_poles else positions


def _turns(shape: BaseGeometry) -> Iterator[BaseGeometry]:
    """The shape moved by as many whole turns as bring each of its parts within -180 to 180."""
    west, _, east, _ = shape.bounds
    first, last = math.ceil((west - 180) / 360), math.floor((east + 180) / 360)
    for turn in range(first, last + 1):
        yield affinity.translate(shape, xoff=-360.0 * turn) if turn else shape


def _cut(polygon: Polygon) -> BaseGeometry:
    parts = [
        part
        for moved in _turns(polygon)
        for part in shapely.get_parts(moved.intersection(_WORLD))
        if part.geom_type == "Polygon"
    ]
    if not parts:
        raise GeometryError("intersects: the polygon has no area")
    # Its copies meet at most in the antimeridian or, around a pole, cover each other's ends.
    return shapely.union_all(parts) if len(parts) > 1 else parts[0]
