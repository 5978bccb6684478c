"""Coordinate reference systems: one way to read them, one name for each."""

from __future__ import annotations

import re
from functools import lru_cache

from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError as ProjError

from firnline.errors import CRSError

LONLAT = CRS.from_user_input("OGC:CRS84")
_URI = re.compile(r"http://www\.opengis\.net/def/crs/(\w+)/[\w.]+/(\w+)", re.ASCII)
_Y_FIRST = ("Geodetic latitude", "Northing")


@lru_cache(maxsize=256)
def parse_crs(text: str) -> CRS:
    """A CRS of places on Earth from its code, as ``EPSG:3413``, ``ESRI:102027``, ``OGC:CRS84``.

    Coordinates are x, y (longitude, latitude) whatever the order of its axes is.

    Raises
    ------
    CRSError
        Not a code of this form, one that PROJ does not know, or that of heights, or of axes from
        the centre of the Earth.
    """
    authority, _, code = text.strip().partition(":")
    if not (authority.isalnum() and code.isalnum()):
        raise CRSError(f"crs {text[:60]!r} is not accepted; write it as EPSG:3413 or OGC:CRS84")
    try:
        crs = CRS.from_authority(authority.upper(), code)
    except ProjError:
        raise CRSError(
            f"crs {text[:60]!r} is not known; write it as EPSG:3413 or OGC:CRS84"
        ) from None
    if not (crs.is_projected or crs.is_geographic):
        raise CRSError(f"crs {text[:60]!r} is a {crs.type_name}; accepted: a projected one")
    return LONLAT if crs.to_authority() == ("EPSG", "4326") else crs


def parse_crs_uri(uri: str) -> CRS:
    """A CRS from its URI (OGC 09-048r5), by which coordinates are in the order of its axes.

    Raises
    ------
    CRSError
        Not such a URI, or its first axis is not x: its code would say the same, but for the order.
    """
    named = _URI.fullmatch(uri)
    if named is None:
        raise CRSError(f"crs {uri[:60]!r} is no URI as http://www.opengis.net/def/crs/EPSG/0/3413")
    code = ":".join(named.groups())
    crs = parse_crs(code)
    if code != "OGC:CRS84" and CRS.from_user_input(code).axis_info[0].name in _Y_FIRST:
        raise CRSError(f"crs {uri[:60]!r} has y before x; by its code, {code}, x is taken as first")
    return crs


def crs_code(crs: CRS) -> str:
    """The name of a CRS as ``AUTHORITY:CODE``.

    Raises
    ------
    CRSError
        It has none.
    """
    authority = crs.to_authority()
    if authority is None:
        raise CRSError(f"{crs.name} has no authority code")
    return ":".join(authority)


@lru_cache(maxsize=256)
def transformer(source: CRS, target: CRS) -> Transformer:
    """A transformer in x, y (lon, lat) order, kept since making one costs milliseconds."""
    return Transformer.from_crs(source, target, always_xy=True)
