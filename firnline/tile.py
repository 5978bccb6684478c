"""The area of a cube in its own CRS, in every spelling that ITS_LIVE's catalogs and cubes have."""

from __future__ import annotations

from typing import Any, NoReturn

import orjson
from shapely import Polygon

from firnline.errors import GeometryError

_FARTHEST = 2e7  # metres: no projected coordinate of a glacier is beyond


def parse_tile(value: Any) -> Polygon:
    """One polygon without holes.

    Parameters
    ----------
    value
        A GeoJSON Polygon, a MultiPolygon of one, or a bare ring ``[[x, y], ...]`` as the cubes'
        ``proj_polygon``; or the text of one, for shapefiles and attributes hold no objects, and
        some writers left Python's quotes.

    Raises
    ------
    GeometryError
        It is none, or out of range; the message goes on from the name of the value.
    """
    if isinstance(value, str):
        for text in (value, value.replace("'", '"').replace("(", "[").replace(")", "]")):
            try:
                value = orjson.loads(text)
                break
            except orjson.JSONDecodeError:
                continue
    try:
        if isinstance(value, list):
            rings = [value]
        else:
            rings = value["coordinates"]
            if value["type"] == "MultiPolygon":
                (rings,) = rings
            elif value["type"] != "Polygon":
                _refuse()
        shell = rings[0]
        if len(rings) != 1 or not 4 <= len(shell) <= 10_000:
            _refuse()
        corners = [(float(point[0]), float(point[1])) for point in shell]
    except (LookupError, TypeError, ValueError, OverflowError):
        _refuse()
    # `not <=` also is true of NaN
    if not all(abs(c) <= _FARTHEST for corner in corners for c in corner):
        raise GeometryError("is out of range")
    polygon = Polygon(corners)
    if not polygon.is_valid or polygon.area <= 0:
        _refuse()
    return polygon


def _refuse() -> NoReturn:
    raise GeometryError("is not one valid Polygon")
