"""From a polygon in any CRS to its true outline in longitude and latitude.

A straight edge of a projected tile is a curve in lon/lat: joining its corners there leaves the
true edge by up to 2.5 km on ITS_LIVE's 100 km tiles. So edges are halved *in their own CRS* until
the lon/lat outline is nowhere farther than :data:`TOLERANCE` from them. Halving depends only on
the two ends of an edge, so that neighbouring tiles get the same vertices on their common edge,
and neither a gap nor an overlap. The outline is then cut at the antimeridian and closed over the
pole as RFC 7946 asks (sections 3.1.6 and 3.1.9).

Axes are x, y (longitude, latitude) throughout, whatever order a CRS prescribes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from shapely import MultiPolygon, Polygon
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from firnline.crs import LONLAT, crs_code, parse_crs
from firnline.errors import BBoxError, CRSError, GeometryError

TOLERANCE = 100.0
"""Largest distance, in metres of the CRS, between an edge and its outline in lon/lat."""
DECIMALS = 6
"""Digits kept of a degree: 0.1 m, the accuracy of the published corners."""

Floats: TypeAlias = npt.NDArray[np.float64]
Area: TypeAlias = BaseGeometry | Sequence[float]
"""A Polygon or MultiPolygon, or bounds: left, bottom, right, top."""
Outline: TypeAlias = Polygon | MultiPolygon

_PROBES = np.array([0.25, 0.5, 0.75])
_AT_POLE = 1.0  # metres: an edge that passes the pole closer than this passes through it
_FARTHEST = 1e8  # metres: beyond any projected coordinate of the Earth
_MOST_VERTICES = 20_000  # of one request: real edges need tens, those gone wild would fill memory


def footprint(area: Area, crs: CRS | str, *, tolerance: float = TOLERANCE) -> Outline:
    """Outline of an area in lon/lat: valid, counter-clockwise, cut at the antimeridian.

    Parameters
    ----------
    area
        A Polygon or MultiPolygon, or (left, bottom, right, top), in `crs`. Bounds in a
        geographic CRS may have left > right: they then cross the antimeridian.
    crs
        A CRS, or its code as ``EPSG:3413``. Edges in a geographic CRS are straight in lon/lat
        already (RFC 7946, section 3.1.1) and stay as they are.
    tolerance
        Largest distance between a true edge and the outline, in metres of the CRS.

    Raises
    ------
    CRSError
        The CRS is unknown.
    BBoxError, GeometryError
        The area is empty, not finite, not a polygon, or beyond what the CRS can describe.
    """
    return footprints([area], crs, tolerance=tolerance)[0]


def footprints(
    areas: Sequence[Area], crs: CRS | str, *, tolerance: float = TOLERANCE
) -> list[Outline]:
    """Outlines of many areas of one CRS: as :func:`footprint`, ten times as fast."""
    view = _view(crs if isinstance(crs, str) else _name(crs))
    polygons = [_polygons(area, geographic=view.geographic) for area in areas]
    rings = [
        ring for parts in polygons for part in parts for ring in (part.exterior, *part.interiors)
    ]
    regions = iter(_regions([shapely.get_coordinates(ring) for ring in rings], view, tolerance))
    outlines = []
    for parts in polygons:
        outer = []
        for part in parts:
            region = next(regions)
            for _ in part.interiors:
                region = region.difference(next(regions))
            outer.append(region)
        outlines.append(_outline(outer[0] if len(outer) == 1 else shapely.union_all(outer)))
    return outlines


def bbox(geometry: BaseGeometry) -> list[float]:
    """Bounds [west, south, east, north] by RFC 7946, section 5.2.

    West is greater than east where the geometry crosses the antimeridian, that is, where it
    touches it from both sides. What surrounds a pole spans all longitudes.
    """
    west, south, east, north = geometry.bounds
    if west > -180 or east < 180:
        return [west, south, east, north]
    reach = -180.0
    widest = (0.0, -180.0, 180.0)
    for left, _, right, _ in sorted(part.bounds for part in shapely.get_parts(geometry)):
        if left - reach > widest[0]:
            widest = (left - reach, left, reach)
        reach = max(reach, right)
    return [widest[1], south, widest[2], north]


@dataclass(frozen=True)
class _View:
    """A CRS as seen from lon/lat: both ways, and its poles where they are points (x, y, lat)."""

    forward: Transformer
    inverse: Transformer
    geographic: bool
    poles: tuple[tuple[float, float, float], ...]


@lru_cache(maxsize=256)
def _view(code: str) -> _View:
    crs = parse_crs(code) if len(code) < 64 else CRS.from_wkt(code)
    try:
        forward = Transformer.from_crs(crs, LONLAT, always_xy=True)
        inverse = Transformer.from_crs(LONLAT, crs, always_xy=True)
    except ProjError:
        raise CRSError(f"{crs.name} has no known way to longitude and latitude") from None
    poles = []
    if not crs.is_geographic:
        for lat in (-90.0, 90.0):
            x, y = inverse.transform([0.0, 90.0, -135.0], [lat] * 3)
            # In a cylindrical projection the pole is a line, or infinitely far.
            if np.isfinite([*x, *y]).all() and np.ptp(x) < 1e-3 and np.ptp(y) < 1e-3:
                poles.append((x[0], y[0], lat))
    return _View(forward, inverse, crs.is_geographic, tuple(poles))


def _name(crs: CRS) -> str:
    """A text that stands for the CRS: hashing a CRS itself costs more than the projection."""
    return crs_code(crs) if crs.to_authority() else crs.to_wkt()


def _polygons(area: Area, *, geographic: bool) -> list[Polygon]:
    if not isinstance(area, BaseGeometry):
        return [_box(area, geographic=geographic)]
    if area.geom_type not in ("Polygon", "MultiPolygon"):
        raise GeometryError(f"a {area.geom_type} has no area; accepted: Polygon, MultiPolygon")
    if area.is_empty or not np.isfinite(shapely.get_coordinates(area)).all():
        raise GeometryError("the polygon is empty or has coordinates that are not finite")
    if not area.is_valid:
        raise GeometryError(f"the polygon is not valid: {shapely.is_valid_reason(area)}")
    _check_range(area.bounds, GeometryError, geographic=geographic)
    return [part for part in shapely.get_parts(area) if part.area > 0]


def _box(bounds: Sequence[float], *, geographic: bool) -> Polygon:
    if len(bounds) != 4 or not np.isfinite(np.asarray(bounds, dtype=float)).all():
        raise BBoxError("a bounding box is four finite numbers: left, bottom, right, top")
    _check_range(bounds, BBoxError, geographic=geographic)
    left, bottom, right, top = map(float, bounds)
    if geographic and left > right:
        right += 360.0
    if not (left < right and bottom < top):
        raise BBoxError(
            f"the bounding box {left:g}, {bottom:g}, {right:g}, {top:g} is empty or inverted; "
            "write it as left, bottom, right, top"
        )
    return box(left, bottom, right, top)


def _check_range(
    bounds: Sequence[float], error: type[GeometryError | BBoxError], *, geographic: bool
) -> None:
    west, south, east, north = bounds
    if not geographic:
        if max(map(abs, bounds)) > _FARTHEST:
            raise error("the coordinates are not on Earth")
    elif south < -90 or north > 90:
        raise error(f"latitudes {south:g} to {north:g} are not within -90 and 90")
    elif min(west, east) < -360 or max(west, east) > 360:
        raise error(f"longitudes {west:g} to {east:g} are not within -360 and 360")


def _regions(rings: list[Floats], view: _View, tolerance: float) -> list[BaseGeometry]:
    """What each closed ring encloses, in lon/lat, cut at the antimeridian."""
    if view.geographic:
        outlines = []
        for ring in rings:
            lon, lat = view.forward.transform(ring[:, 0], ring[:, 1])
            lon = lon + 360.0 * np.round((ring[:, 0] - lon) / 360.0)  # PROJ may take turns away
            outlines.append(np.column_stack([lon, lat]))
        return [_cut(outline) for outline in outlines]
    ready = [_through_poles(_counter_clockwise(ring), view.poles) for ring in rings]
    paths = _densify(ready, view, tolerance)
    return [_rounded(_cut(np.round(_unwrap(*path), DECIMALS))) for path in paths]


def _counter_clockwise(ring: Floats) -> Floats:
    moves = np.any(ring[1:] != ring[:-1], axis=1)
    ring = ring[np.r_[True, moves]]  # a repeated vertex makes an edge without direction
    x, y = (ring - ring[0]).T  # shoelace; near the origin, so that digits are not lost
    return ring if np.dot(x[:-1], y[1:]) >= np.dot(x[1:], y[:-1]) else ring[::-1]


def _through_poles(ring: Floats, poles: Iterable[tuple[float, float, float]]) -> Floats:
    """The ring with a vertex exactly at each pole that it passes, not starting there."""
    for x, y, _ in poles:
        pole = np.array([x, y])
        low, high = ring.min(axis=0), ring.max(axis=0)
        if np.any(pole < low - _AT_POLE) or np.any(pole > high + _AT_POLE):
            continue
        ring = ring.copy()
        ring[np.hypot(*(ring - pole).T) <= _AT_POLE] = pole
        ring = ring[np.r_[True, np.any(ring[1:] != ring[:-1], axis=1)]]
        step = np.diff(ring, axis=0)
        along = np.einsum("ij,ij->i", pole - ring[:-1], step) / np.einsum("ij,ij->i", step, step)
        nearest = ring[:-1] + np.clip(along, 0, 1)[:, None] * step
        passes = (np.hypot(*(nearest - pole).T) <= _AT_POLE) & (along > 0) & (along < 1)
        passes &= np.any(ring[:-1] != pole, axis=1) & np.any(ring[1:] != pole, axis=1)
        ring = np.insert(ring, np.flatnonzero(passes) + 1, pole, axis=0)
        if np.array_equal(ring[0], pole):
            ring = np.vstack([ring[1:], ring[1:2]])
    return ring


@dataclass(frozen=True)
class _Edges:
    """Segments in lon/lat; at a pole, longitude is that of the segment's other end."""

    start: Floats
    end: Floats
    turn: Floats
    """Change of longitude along the segment, the short way round."""


def _edges(lonlat: Floats, lat_of_pole: Floats) -> _Edges:
    start, end = lonlat[:-1].copy(), lonlat[1:].copy()
    pole = np.isfinite(lat_of_pole)
    if pole.any():
        start[pole[:-1], 0] = end[pole[:-1], 0]
        end[pole[1:], 0] = start[pole[1:], 0]
    return _Edges(start, end, (end[:, 0] - start[:, 0] + 180.0) % 360.0 - 180.0)


def _densify(rings: list[Floats], view: _View, tolerance: float) -> list[tuple[Floats, Floats]]:
    """Halve edges until they are straight in lon/lat; all rings in the same few transformations.

    Returns, for each ring, its vertices in lon/lat and for each vertex the latitude of the pole
    that it is, or NaN.
    """
    xy = np.vstack(rings)
    last = np.zeros(len(xy), bool)
    last[np.cumsum([len(ring) for ring in rings]) - 1] = True
    lonlat = _project(view.forward, xy)
    poles = _poles_at(xy, view)
    lonlat[np.isfinite(poles), 1] = poles[np.isfinite(poles)]
    untested = ~last[:-1]
    most = _MOST_VERTICES + 100 * len(xy)
    while untested.any():
        edges = _edges(lonlat, poles)
        chosen = np.flatnonzero(untested)
        start, turn = edges.start[chosen], edges.turn[chosen]
        rise = edges.end[chosen, 1] - start[:, 1]
        probe = _project(
            view.inverse,
            np.column_stack(
                [
                    (start[:, :1] + turn[:, None] * _PROBES).ravel(),
                    (start[:, 1:] + rise[:, None] * _PROBES).ravel(),
                ]
            ),
            finite=False,
        ).reshape(-1, 3, 2)
        bent = chosen[_bent(xy[chosen], xy[chosen + 1], probe, tolerance)]
        if len(xy) + len(bent) > most:
            raise GeometryError("the polygon's edges can't be followed in longitude and latitude")
        middle = (xy[bent] + xy[bent + 1]) / 2
        xy = np.insert(xy, bent + 1, middle, axis=0)
        lonlat = np.insert(lonlat, bent + 1, _project(view.forward, middle), axis=0)
        poles = np.insert(poles, bent + 1, np.nan)
        last = np.insert(last, bent + 1, False)
        untested = np.zeros(len(xy) - 1, bool)
        halves = bent + np.arange(len(bent))
        untested[halves] = untested[halves + 1] = True
    ends = np.flatnonzero(last)[:-1] + 1
    return list(zip(np.split(lonlat, ends), np.split(poles, ends), strict=True))


def _bent(start: Floats, end: Floats, probe: Floats, tolerance: float) -> npt.NDArray[np.bool_]:
    """Which segments are left by their lon/lat chord, probed at its quarters.

    Three probes, since a curve that bends both ways meets its chord in the middle. A probe that
    is far from where it should be *along* the segment betrays a chord that went the other way
    round the globe.
    """
    step = end - start
    length = np.hypot(*step.T)
    away = probe - start[:, None]
    with np.errstate(invalid="ignore"):  # what can't be projected is infinite, and not near
        across = np.abs(away[..., 0] * step[:, None, 1] - away[..., 1] * step[:, None, 0])
        along = (away * step[:, None]).sum(axis=2) / length[:, None] ** 2
        near = across.max(axis=1) <= tolerance * length
        near &= np.abs(along - _PROBES).max(axis=1) < 0.2
    bent: npt.NDArray[np.bool_] = ~near & (length > tolerance)
    return bent


def _poles_at(xy: Floats, view: _View) -> Floats:
    found = np.full(len(xy), np.nan)
    for x, y, lat in view.poles:
        found[(xy[:, 0] == x) & (xy[:, 1] == y)] = lat
    return found


def _project(transformer: Transformer, points: Floats, *, finite: bool = True) -> Floats:
    try:
        projected = np.column_stack(transformer.transform(points[:, 0], points[:, 1]))
    except ProjError as error:
        raise GeometryError(f"coordinates can't be projected: {error}") from None
    if finite and not np.isfinite(projected).all():
        raise GeometryError("coordinates are beyond what their CRS can describe")
    return projected


def _unwrap(lonlat: Floats, poles: Floats) -> Floats:
    """The closed ring with continuous longitudes, which may leave -180 to 180.

    The ring is counter-clockwise in its CRS, with its inside on the left. Where it passes
    through a pole it runs along the pole's line, with the inside still on its left: eastward at
    the south pole and westward at the north pole. If it goes once round the globe, then the
    pole on its left is inside.
    """
    edges = _edges(lonlat, poles)
    after = np.r_[edges.start[1:, 0], edges.start[0, 0]]
    jump = np.zeros(len(edges.turn))
    at_pole = np.isfinite(poles[1:])
    east = (after - edges.end[:, 0]) % 360.0
    jump[at_pole] = np.where(poles[1:] < 0, east, east - 360.0)[at_pole]
    lon = np.column_stack([edges.end[:, 0], after]).ravel()
    lat = np.repeat(edges.end[:, 1], 2)
    reached = edges.start[0, 0] + np.cumsum(np.column_stack([edges.turn, jump]).ravel())
    # Whole turns are added to the longitudes themselves: a running sum would lose digits.
    lon = lon + 360.0 * np.round((reached - lon) / 360.0)
    keep = np.column_stack([np.ones(len(jump), bool), at_pole]).ravel()
    ring = np.vstack([edges.start[:1], np.column_stack([lon, lat])[keep]])
    turns = round((ring[-1, 0] - ring[0, 0]) / 360.0)
    if turns:
        if abs(turns) > 1:
            raise GeometryError("the polygon goes round the globe more than once")
        pole = 90.0 if turns > 0 else -90.0
        # Opened at the vertex nearest to the pole: nothing of the ring crosses its way there.
        first = int(np.argmax(ring[:-1, 1] * np.sign(pole)))
        once_round = np.vstack([ring[first:-1], ring[: first + 1]])
        once_round[len(ring) - 1 - first :, 0] += 360.0 * turns
        (start, _), (end, _) = once_round[0], once_round[-1]
        ring = np.vstack([once_round, [[end, pole], [start, pole]], once_round[:1]])
    return ring


def _cut(ring: Floats) -> BaseGeometry:
    """What a ring encloses, each part moved by whole turns into -180 to 180."""
    polygon: BaseGeometry = Polygon(ring)
    if not polygon.is_valid:
        polygon = shapely.make_valid(polygon)
    west, _, east, _ = polygon.bounds
    if west >= -180 and east <= 180:
        return polygon
    turns = range(int(np.floor((west + 180) / 360)), int(np.ceil((east - 180) / 360)) + 1)
    # Rounded, since a whole turn less leaves the last digits of a longitude different, and parts
    # that share a meridian would not join.
    moved = [
        shapely.transform(polygon, lambda at, by=360.0 * turn: np.round(at - [by, 0.0], 12))  # type: ignore[misc]
        for turn in turns
    ]
    return shapely.union_all([part.intersection(box(-180, -90, 180, 90)) for part in moved])


def _rounded(region: BaseGeometry) -> BaseGeometry:
    """The same with vertices on the antimeridian rounded as all others were before."""
    if abs(region.bounds[0]) < 180 and abs(region.bounds[2]) < 180:
        return region
    return shapely.transform(region, lambda at: np.round(at, DECIMALS))


def _outline(region: BaseGeometry) -> Outline:
    """Polygons only, valid, counter-clockwise."""
    if not region.is_valid:
        region = shapely.make_valid(region)
    parts: Any = shapely.get_parts(region)
    if region.geom_type == "GeometryCollection":
        parts = shapely.get_parts(parts)
    polygons = [orient(part) for part in parts if part.geom_type == "Polygon" and part.area > 0]
    if not polygons:
        raise GeometryError("the polygon has no area")
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
