"""ITS_LIVE's datacube catalog, in every shape that it has had, to records.

Shapes: today's; that of 2024 (no ``granule_count``); an older one (``data_epsg`` as text); one
that went through a shapefile, whose names are cut to ten letters (``roi_percen``, ``geometry_e``,
``datacube_e``); and a stripped one (``geometry_epsg``, ``zarr_url``, ``epsg``). Every feature is
accounted for: it becomes a record, or a :class:`Failure` with its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import orjson
import shapely
from shapely import Polygon
from shapely.geometry import box

from firnline.crs import parse_crs
from firnline.errors import CatalogError, CRSError, GeometryError, InputError
from firnline.footprint import Outline, footprints
from firnline.items import CubeRecord, TileSource, cube_name, to_https
from firnline.tile import parse_tile

_HALF_TILE = 50_000.0  # metres; every tile of the catalog is 100 km wide
_LONGEST_URL = 2_000
_STRAY = 15.0  # degrees
_POLYGONS: tuple[tuple[TileSource, str, str], ...] = (
    ("geometry_epsg", "geometry_epsg", "geometry_e"),
    ("proj_polygon", "proj_polygon", "proj_polyg"),
)
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,199}")

# Names of regions in the catalogs before the Randolph inventory's numbers; those that stand for
# several regions (CAN, HMA, SRA) can't be told apart.
_REGIONS = {"ALA": 1, "GRE": 5, "ICE": 6, "PAT": 17, "ANT": 19}


@dataclass(frozen=True)
class Failure:
    """Something in a source that did not become an item, and why."""

    index: int | None
    """Place among the catalog's features, from 0; None for what is not a feature."""
    id: str | None
    """Id or URL, as far as it could be read."""
    reason: str
    skipped: bool = False
    """True for what the source itself says is not there, and for regions it does not tell of."""
    source: str | None = None
    """The catalog that it is in."""


def read_catalog(data: bytes) -> tuple[list[CubeRecord], list[Failure]]:
    """Read a datacube catalog.

    Parameters
    ----------
    data
        A GeoJSON FeatureCollection.

    Returns
    -------
    records, failures
        Together as many as there are features.

    Raises
    ------
    CatalogError
        The bytes are not a FeatureCollection with at least one feature; nothing can be said of
        its cubes then.
    """
    failures: list[Failure] = []
    drafts: dict[str, _Draft] = {}
    for index, feature in enumerate(_features(data)):
        try:
            draft = _draft(index, feature)
        except _Unusable as error:
            failures.append(Failure(index, _label(feature), str(error), error.skipped))
            continue
        if draft.id in drafts:
            first = drafts[draft.id].index
            failures.append(Failure(index, draft.id, f"the same cube as feature {first}"))
            continue
        drafts[draft.id] = draft
    records: list[CubeRecord] = []
    for draft, outline in _with_footprints(drafts.values()):
        if isinstance(outline, str):
            failures.append(Failure(draft.index, draft.id, outline))
        else:
            records.append(draft.record(outline))
    failures.sort(key=lambda failure: failure.index or 0)
    return records, failures


class _Unusable(Exception):
    """This feature can't become an item."""

    def __init__(self, reason: str, *, skipped: bool = False) -> None:
        super().__init__(reason)
        self.skipped = skipped


@dataclass(frozen=True)
class _Draft:
    """All of a record but its footprint: those are made for all cubes of a CRS at once."""

    index: int
    id: str
    epsg: int
    tile: Polygon
    record: Callable[[Outline], CubeRecord]


def _features(data: bytes) -> list[Any]:
    text = data.removeprefix(b"\xef\xbb\xbf").strip()
    if not text:
        raise CatalogError("the catalog is empty")
    if text.startswith(b"<"):
        raise CatalogError("the catalog is HTML or XML, not JSON")
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        # The standard parser also takes the NaN that Python and GDAL write into JSON.
        try:
            document = json.loads(text, parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise CatalogError(f"the catalog is cut short, or not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("type") != "FeatureCollection":
        raise CatalogError("the catalog is not a GeoJSON FeatureCollection")
    features = document.get("features")
    if not isinstance(features, list) or not features:
        raise CatalogError("the catalog is a FeatureCollection without features")
    return features


def _draft(index: int, feature: Any) -> _Draft:
    if not isinstance(feature, dict):
        raise _Unusable("not a GeoJSON Feature")
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        raise _Unusable("it has no properties")
    if _number(_get(properties, "datacube_exist", "datacube_e")) == 0:
        raise _Unusable("the catalog says that the cube does not exist", skipped=True)
    url, id = _url(_get(properties, "zarr_url"))
    name = cube_name(id)
    epsg = _epsg(_get(properties, "epsg", "data_epsg"), None if name is None else name[0])
    centre = None if name is None else name[2]
    tile, tile_from = _tile(properties, centre)
    region = _get(properties, "FULL_NAME", "region_name", "region")
    count = _number(_get(properties, "granule_count", "granule_co"))
    composite = _get(properties, "composite_zarr_url", "composite_")
    coverage = _number(_get(properties, "roi_percent_coverage", "roi_percen"))

    def record(outline: Outline) -> CubeRecord:
        return CubeRecord(
            id=id,
            url=url,
            epsg=epsg,
            tile=tile,
            footprint=outline,
            tile_from=tile_from,
            rgi=_rgi(_get(properties, "RGI_CODE", "region_id"), region),
            region=region[:200] if isinstance(region, str) and region.isprintable() else None,
            granule_count=None if count is None or count < 0 else int(count),
            roi_percent_coverage=coverage,
            composite_url=to_https(composite) if _is_url(composite) else None,
        )

    return _Draft(index, id, epsg, tile, record)


def _get(properties: Mapping[str, Any], *names: str) -> Any:
    """The first of several spellings that has a value; an empty text is none."""
    for name in names:
        value = properties.get(name)
        if value is not None and value != "":
            return value
    return None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
        return None
    return None if math.isnan(value) else float(value)


def _is_url(value: Any) -> bool:
    if not isinstance(value, str) or len(value) > _LONGEST_URL or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    if " " in value or "\\" in value or parts.query or parts.fragment:
        return False
    if parts.scheme == "file":
        return not parts.netloc
    return (
        parts.scheme in ("https", "http", "s3") and bool(parts.netloc) and "@" not in parts.netloc
    )


def _url(value: Any) -> tuple[str, str]:
    """URL of the store and the id of its item, the stem of the store's name."""
    if value is None:
        raise _Unusable("it has no zarr_url")
    if not _is_url(value):
        raise _Unusable("its zarr_url is not an https, http, s3 or file URL")
    url = to_https(value.rstrip("/"))
    id = url.rsplit("/", 1)[-1].removesuffix(".zarr")
    if not _ID.fullmatch(id):
        raise _Unusable("its zarr_url does not end in the name of a Zarr store")
    return url, id


def _epsg(value: Any, named: int | None) -> int:
    if isinstance(value, str):
        value = value.strip().upper().removeprefix("EPSG:")
    number = _number(value)
    if value is None and named is not None:
        number = float(named)
    if number is None or number != int(number):
        raise _Unusable(
            "it has no EPSG code" if value is None else f"epsg {_cut(value)} is no code"
        )
    epsg = int(number)
    if named is not None and named != epsg:
        raise _Unusable(f"its epsg is {epsg}, its file name says {named}")
    if problem := _problem_with(epsg):
        raise _Unusable(problem)
    return epsg


@lru_cache(maxsize=1024)
def _problem_with(epsg: int) -> str | None:
    try:
        crs = parse_crs(f"EPSG:{epsg}")
    except CRSError:
        return f"EPSG:{epsg} is not known to PROJ"
    return None if crs.is_projected else f"EPSG:{epsg} is not a projected CRS"


def _tile(
    properties: Mapping[str, Any], centre: tuple[float, float] | None
) -> tuple[Polygon, TileSource]:
    """The cube's area in its CRS: the first of ``geometry_epsg``, ``proj_polygon``, file name.

    What is there and is no polygon is an error, and not passed over: something is wrong then.
    """
    tile: Polygon | None = None
    for source, *names in _POLYGONS:
        value = _get(properties, *names)
        if value is not None:
            tile = _polygon(value, source)
            break
    else:
        if centre is None:
            raise _Unusable(
                "it has neither geometry_epsg nor proj_polygon nor a file name that tells its place"
            )
        x, y = centre
        source = "file name"
        tile = box(x - _HALF_TILE, y - _HALF_TILE, x + _HALF_TILE, y + _HALF_TILE)
    if centre is not None:
        left, bottom, right, top = tile.bounds
        if not (left <= centre[0] <= right and bottom <= centre[1] <= top):
            raise _Unusable(
                f"its file name places it at {centre[0]:.0f}, {centre[1]:.0f}, outside its {source}"
            )
    return tile, source


def _polygon(value: Any, source: TileSource) -> Polygon:
    try:
        return parse_tile(value)
    except GeometryError as error:
        raise _Unusable(f"its {source} {error}") from None


def _rgi(code: Any, region: Any) -> int | None:
    """Number of the RGI region from 5, ``"05"`` or ``"RGI05A"``, else from an older name."""
    if isinstance(code, str):
        match = re.search(r"\d{1,2}", code)
        code = None if match is None else int(match[0])
    number = _number(code)
    if number is not None and number in range(1, 21):
        return int(number)
    return _REGIONS.get(region) if isinstance(region, str) else None


def _with_footprints(drafts: Iterable[_Draft]) -> Iterable[tuple[_Draft, Outline | str]]:
    """Each draft with its footprint, or with the reason why it has none."""
    groups: dict[int, list[_Draft]] = {}
    for draft in drafts:
        groups.setdefault(draft.epsg, []).append(draft)
    for epsg, group in groups.items():
        outlines: list[Outline | str]
        try:
            outlines = [*footprints([draft.tile for draft in group], f"EPSG:{epsg}")]
        except (InputError, shapely.GEOSException):  # one is unusable: find out which
            outlines = [_footprint(draft) for draft in group]
        for draft, outline in zip(group, outlines, strict=True):
            strayed = not isinstance(outline, str) and _strayed(outline, epsg)
            yield draft, f"its place is not where EPSG:{epsg} is used" if strayed else outline


def _footprint(draft: _Draft) -> Outline | str:
    try:
        return footprints([draft.tile], f"EPSG:{draft.epsg}")[0]
    except (InputError, shapely.GEOSException) as error:
        return f"its geometry_epsg has no place on the globe: {error}"


@lru_cache(maxsize=1024)
def _area_of_use(epsg: int) -> tuple[float, float, float, float] | None:
    area = parse_crs(f"EPSG:{epsg}").area_of_use
    return None if area is None else area.bounds


def _strayed(outline: Outline, epsg: int) -> bool:
    """Whether a footprint is far from where its CRS is used, so that one of the two is wrong.

    Some degrees are allowed: cubes of EPSG:3413 reach 9 degrees south of its area of use.
    """
    area = _area_of_use(epsg)
    if area is None:
        return False
    west, south, east, north = area
    width = east - west if east >= west else east - west + 360
    at = outline.representative_point()
    aside = abs((at.x - west - width / 2 + 180) % 360 - 180)
    return aside > width / 2 + _STRAY or not south - _STRAY <= at.y <= north + _STRAY


def _label(feature: Any) -> str | None:
    """What to call a feature that failed: the name of its store, or its URL."""
    properties = feature.get("properties") if isinstance(feature, dict) else None
    url = properties.get("zarr_url") if isinstance(properties, dict) else None
    if not isinstance(url, str) or not url:
        return None
    stem = url.rstrip("/").rsplit("/", 1)[-1].removesuffix(".zarr")
    return stem if _ID.fullmatch(stem) else _cut(url)


def _cut(value: Any) -> str:
    return repr(value)[:80] if not isinstance(value, str) else repr(value[:78])
