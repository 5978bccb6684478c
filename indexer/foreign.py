"""STAC items and collections of anyone's, as this catalog keeps them.

What is valid STAC is taken as it is, but for what has one form here, so that the same item is
always the same bytes:

- links that a server makes itself (``self``, ``parent``, ``collection``, ``root``) are left out,
  others kept; relative addresses become absolute, where the document tells its own;
- instants are in UTC (``2018-01-01T00:00:00Z``), coordinates have a decimal point;
- a geometry that crosses the antimeridian in one piece is cut there (RFC 7946, section 3.1.9).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import antimeridian
import numpy as np
import orjson
import shapely
from pydantic import BaseModel, ValidationError
from pystac.utils import make_absolute_href
from shapely import GeometryCollection, MultiPolygon, Point, Polygon
from shapely.geometry import box, mapping, shape
from shapely.geometry.base import BaseGeometry
from stac_pydantic import Collection, Item

from firnline.database import ItemRow
from firnline.footprint import bbox
from firnline.indexer.geoparquet import INSTANTS, parse_instant
from firnline.indexer.json_arrow import instant
from firnline.items import CUBES, encode, item_row

_MADE_AT_REPLY = ("self", "parent", "collection", "root", "items", "next", "prev", "previous")
_LINK = ("rel", "type", "title", "href")
_CODE = re.compile(r"EPSG:\d{4,6}")


class UnusableError(Exception):
    """This can't become an item, or a collection; the message is the reason."""


def foreign_row(item: Any, source: str, *, public_url: str = "") -> ItemRow:
    """The row of an item of anyone's.

    Parameters
    ----------
    item
        Anything that JSON has.
    source
        Where it is from, for the column ``source``.
    public_url
        The address of this service: what lies under it is its own.

    Raises
    ------
    UnusableError
        It is not a valid STAC item, or has no collection, no place, or no time.
    """
    _validate(Item, item)
    for name in ("id", "collection"):
        if not (item.get(name) and item[name].isprintable()):
            raise UnusableError(f"it has no {name}, or one that can't be printed")
    if item["geometry"] is None:
        raise UnusableError("it has no geometry")
    outline, geometry = _placed(item["geometry"], item["bbox"])
    made = {
        **_at_home(item, public_url),
        "geometry": orjson.loads(orjson.dumps(mapping(geometry))),
        "bbox": bbox(outline) if geometry is outline else [float(each) for each in item["bbox"]],
        "properties": _timed(item["properties"]),
    }
    if item["collection"] == CUBES:
        _check_cube(made)
    row = item_row(made, outline, source)
    if row.start > row.end:
        raise UnusableError("it ends before it starts")
    return row


def foreign_collection(document: Any, *, public_url: str = "") -> tuple[str, bytes]:
    """The id of a collection of anyone's, and the bytes to keep of it.

    Raises
    ------
    UnusableError
        It is not a valid STAC collection.
    """
    _validate(Collection, document)
    return document["id"], encode(_at_home(document, public_url))


def _validate(model: type[BaseModel], document: Any) -> None:
    kind = model.__name__
    if not isinstance(document, dict) or document.get("type") == "FeatureCollection":
        found = "a FeatureCollection" if isinstance(document, dict) else "no object"
        raise UnusableError(f"it is {found}, not a STAC {kind}")
    try:
        model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UnusableError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    except OverflowError:  # stac-pydantic 3.7 turns instants to UTC without a look at their year
        raise UnusableError("one of its instants is out of range") from None


def _at_home(document: Mapping[str, Any], public_url: str) -> dict[str, Any]:
    """Without the links that are made at reply, and with addresses that hold here."""
    if public_url:
        written = orjson.dumps(document).replace(
            orjson.dumps(f"{public_url.rstrip('/')}/")[:-1], b'"firnline:/'
        )
        document = orjson.loads(written)
    links = document.get("links", [])
    (own, *_) = [link["href"] for link in links if link["rel"] == "self"] + [""]
    base = own if urlsplit(own).scheme else ""
    made = {**document, "links": [_link(link, base) for link in links if _is_kept(link)]}
    if "assets" in document:
        made["assets"] = {
            key: {**asset, "href": _absolute(asset["href"], base)}
            for key, asset in document["assets"].items()
        }
    return made


def _is_kept(link: Mapping[str, Any]) -> bool:
    return link["rel"] not in _MADE_AT_REPLY


def _link(link: Mapping[str, Any], base: str) -> dict[str, Any]:
    """A link in the order in which ours are written."""
    ordered = {
        name: link[name] for name in (*_LINK, *sorted(link.keys() - set(_LINK))) if name in link
    }
    return {**ordered, "href": _absolute(link["href"], base)}


def _absolute(href: str, base: str) -> str:
    if not base or urlsplit(href).scheme:
        return href
    return str(make_absolute_href(href, base, start_is_dir=False))


def _timed(properties: Mapping[str, Any]) -> dict[str, Any]:
    made = {"datetime": None, **properties}
    for name in INSTANTS:
        if made.get(name) is None:
            continue
        value = parse_instant(made[name])
        if value is not None:
            made[name] = instant(value)
        elif name in INSTANTS[:3]:
            raise UnusableError(f"properties.{name}: not an RFC 3339 instant with a time zone")
    if made["datetime"] is None and None in map(made.get, INSTANTS[1:3]):
        raise UnusableError("it has neither datetime nor start_datetime and end_datetime")
    return made


def _check_cube(item: Mapping[str, Any]) -> None:
    """Refuse a cube without what deep reads and materialisations take from its item."""
    properties = item["properties"]
    code, box = properties.get("proj:code"), properties.get("proj:bbox")
    if "zarr" not in item["assets"]:
        raise UnusableError("a cube needs an asset `zarr`")
    if not (isinstance(code, str) and _CODE.fullmatch(code)):
        raise UnusableError("a cube needs proj:code, as EPSG:3413")
    if not _are_numbers(box, 4) or not _are_numbers(properties.get("proj:transform", box), 4):
        raise UnusableError("a cube needs proj:bbox, and proj:transform of numbers if it has one")


def _are_numbers(values: Any, least: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) >= least
        and all(type(value) in (int, float) for value in values)
    )


# --- places -----------------------------------------------------------------------------------


def _placed(geometry: Any, box: Sequence[float]) -> tuple[BaseGeometry, BaseGeometry]:
    """The outline to search by, and the geometry to show: the outline itself where it was cut."""
    try:
        given = shape(geometry)
        lonlat = shapely.get_coordinates(given)
        if given.is_empty or not np.isfinite(lonlat).all():
            raise UnusableError("its geometry is empty, or not finite")
        if np.abs(lonlat[:, 0]).max() > 360 or np.abs(lonlat[:, 1]).max() > 90:
            raise UnusableError("its geometry is not in degrees of longitude and latitude")
        cut = _cut(given, crosses=box[0] > box[len(box) // 2])
    except (shapely.errors.ShapelyError, ValueError, TypeError) as error:
        raise UnusableError(f"its geometry can't be read: {error}") from None
    outline = shapely.force_2d(cut)
    if not outline.is_valid:  # PostGIS would fail where it meets such a one in a search
        outline = shapely.make_valid(outline)
    return outline, given if cut is given else outline


def _cut(given: BaseGeometry, *, crosses: bool) -> BaseGeometry:
    """The geometry within -180 to 180, in parts where it crosses; itself if it is so already."""
    if hasattr(given, "geoms"):
        parts = list(given.geoms)
        kept = [_cut(part, crosses=crosses) for part in parts]
        return given if all(map(operator.is_, kept, parts)) else _joined(kept)
    flat = shapely.force_2d(given)
    west, _, east, _ = flat.bounds
    within = west >= -180 and east <= 180
    if within and not (_is_long(flat) and (crosses or not _is_wide_box(flat))):
        return given
    if isinstance(flat, Point):
        return Point(flat.x - math.copysign(360, flat.x), flat.y)
    if not isinstance(flat, Polygon):
        return _fixed(flat)
    # Inside is what lies left of the ring, but many wind it the wrong way: the smaller side it is.
    return min(_fixed(flat), _fixed(flat.reverse()), key=lambda side: side.area)


def _fixed(part: BaseGeometry) -> BaseGeometry:
    return shape(antimeridian.fix_shape(mapping(part), fix_winding=True, great_circle=False))


def _is_long(part: BaseGeometry) -> bool:
    """Whether it has an edge that is shorter the other way round."""
    lines = [part.exterior, *part.interiors] if isinstance(part, Polygon) else [part]
    for line in lines:
        lon, lat = shapely.get_coordinates(line).T
        steps = np.abs(np.diff(lon))
        at_pole = (np.abs(lat) == 90)[1:] & (np.diff(lat) == 0)
        # an edge of exactly 360 degrees follows a parallel from one side of the map to the other
        if ((steps > 180) & (steps != 360) & ~at_pole).any():
            return True
    return False


def _is_wide_box(part: BaseGeometry) -> bool:
    """Whether it is a counter-clockwise rectangle, as that of a bounding box, meant as drawn."""
    return (
        isinstance(part, Polygon)
        and len(part.exterior.coords) == 5
        and part.exterior.is_ccw
        and part.equals(box(*part.bounds))
    )


def _joined(parts: Sequence[BaseGeometry]) -> BaseGeometry:
    simple = [each for part in parts for each in getattr(part, "geoms", [part])]
    if not all(isinstance(each, Polygon) for each in simple):
        return GeometryCollection(simple)
    whole = MultiPolygon(simple)
    return whole if whole.is_valid else shapely.union_all(simple)
