"""ITS_LIVE's velocity mosaics, from their URL templates.

There is no catalog of the mosaics: their names follow from region, version, year and variable.
Their outlines follow from the cubes that they were made of, so a region is advertised only when
cubes of it are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import shapely
from shapely import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.geometry.polygon import orient

from firnline.footprint import Outline, bbox
from firnline.indexer.catalog import Failure
from firnline.items import MosaicRecord, region_id

VERSIONS = {"2": 2022, "2.1": 2024}
"""Last year of each version."""
_SLACK = 0.1  # degrees; the published boxes are of straight rings, which bow by less


@dataclass(frozen=True)
class Region:
    """A region that has mosaics.

    The mosaics of a region don't reach to all of its cubes: `box` (west, south, east, north) is
    where ITS_LIVE's own items for the mosaics say that they end, and `rgi` are the numbers that
    cubes inside of it carry in the catalog.
    """

    number: int
    crs: str
    first_year: int
    box: tuple[float, float, float, float]
    rgi: tuple[int, ...]


_NSIDC = "EPSG:3413"
REGIONS = (
    # Cubes of Alaska's mosaic beyond the border carry the number of western Canada.
    Region(1, _NSIDC, 1982, (-165.5, 53.9, -124.2, 65.5), (1, 2)),
    Region(2, "EPSG:32610", 1982, (-130.6, 45.1, -115.5, 55.3), (2,)),
    Region(3, _NSIDC, 1984, (-104.1, 73.4, -59.0, 84.2), (3,)),
    Region(4, _NSIDC, 1984, (-87.9, 61.6, -60.0, 74.4), (4,)),
    Region(5, _NSIDC, 1984, (-75.3, 59.2, -8.1, 84.5), (5,)),
    Region(6, _NSIDC, 1984, (-26.0, 62.4, -10.7, 67.5), (6,)),
    Region(7, _NSIDC, 1985, (6.3, 75.9, 34.7, 81.3), (7,)),
    Region(8, _NSIDC, 1984, (2.6, 58.6, 26.6, 71.5), (8,)),
    Region(9, _NSIDC, 1984, (33.6, 72.2, 108.5, 82.6), (9, 10)),
    Region(10, "EPSG:32645", 2013, (84.1, 46.0, 94.4, 52.4), (10,)),
    Region(11, "EPSG:32632", 2013, (5.1, 43.3, 15.0, 47.9), (11,)),
    Region(12, "EPSG:32638", 2013, (39.0, 41.5, 47.5, 44.3), (12,)),
    # High Mountain Asia: one mosaic for Central, South-West and South-East Asia.
    Region(14, "ESRI:102027", 1986, (66.6, 26.2, 105.0, 46.1), (13, 14, 15)),
    Region(17, "EPSG:32718", 1984, (-75.0, -56.3, -66.8, -40.6), (17,)),
    Region(18, "EPSG:32759", 1988, (166.2, -46.1, 173.5, -41.5), (18,)),
    Region(19, "EPSG:3031", 1984, (-180.0, -90.0, 180.0, -59.4), (19,)),
)


@dataclass(frozen=True)
class Cube:
    """What the outline of a mosaic needs of a cube."""

    rgi: int | None
    footprint: BaseGeometry


def mosaic_records(
    roots: Sequence[str], cubes: Iterable[Cube]
) -> tuple[list[MosaicRecord], list[Failure]]:
    """All mosaics that the naming scheme has of the regions that `cubes` tell of.

    Parameters
    ----------
    roots
        URLs of folders ``velocity_mosaic``.
    cubes
        Every cube that is known.

    Returns
    -------
    records
    failures
        A region without known cubes has no outline, and thus no item: it's skipped.
    """
    outlines, failures = region_outlines(cubes)
    records = [
        MosaicRecord(region.number, version, year, last_year, root, region.crs, outline)
        for root in roots
        for region in REGIONS
        if (outline := outlines.get(region.number)) is not None
        for version, last_year in VERSIONS.items()
        for year in (None, *range(region.first_year, last_year + 1))
    ]
    return records, failures


def region_outlines(cubes: Iterable[Cube]) -> tuple[dict[int, Outline], list[Failure]]:
    """The union of the footprints of each region's cubes, by the region's number."""
    by_rgi: dict[int, list[BaseGeometry]] = {}
    for cube in cubes:
        if cube.rgi is not None:
            by_rgi.setdefault(cube.rgi, []).append(cube.footprint)
    outlines: dict[int, Outline] = {}
    failures: list[Failure] = []
    for region in REGIONS:
        inside = [
            outline
            for rgi in region.rgi
            for outline in by_rgi.get(rgi, ())
            if _within(outline, region)
        ]
        if inside:
            outlines[region.number] = _union(inside)
        else:
            numbers = ", ".join(f"{rgi:02d}" for rgi in region.rgi)
            failures.append(
                Failure(
                    None,
                    region_id(region.number),
                    f"its mosaics have no outline: no known cube lies in RGI region {numbers}",
                    skipped=True,
                )
            )
    return outlines, failures


def _within(outline: BaseGeometry, region: Region) -> bool:
    west, south, east, north = bbox(outline)
    return (
        region.box[0] - _SLACK <= west <= east <= region.box[2] + _SLACK
        and region.box[1] - _SLACK <= south
        and north <= region.box[3] + _SLACK
    )


def _union(outlines: list[BaseGeometry]) -> Outline:
    # Tiles of one CRS have the same vertices on a common edge, so that nothing is left between.
    parts = shapely.get_parts(shapely.union_all(outlines))
    # RFC 7946, section 3.1.6; a union winds as it likes
    polygons = [orient(part) for part in parts if isinstance(part, Polygon)]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
