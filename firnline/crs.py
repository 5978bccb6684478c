"""Coordinate reference systems: one way to read them, one name for each."""

from __future__ import annotations

from functools import lru_cache

from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError as ProjError

from firnline.errors import CRSError

LONLAT = CRS.from_user_input("OGC:CRS84")


@lru_cache(maxsize=256)
def parse_crs(text: str) -> CRS:
    """A CRS from an authority code, as ``EPSG:3413``, ``ESRI:102027`` or ``OGC:CRS84``.

    Raises
    ------
    CRSError
        Not a code of this form, or one that PROJ does not know.
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
    return LONLAT if crs.to_authority() == ("EPSG", "4326") else crs


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
