"""Geohash: cells of a grid in longitude and latitude, named so that a longer name is within.

Niemeyer (2008): longitude and latitude are halved in turn, longitude first, and the halves taken
(1 the eastern, northern one) written five bits to a letter. Cells are 5.6 degrees of latitude high
and 11.25 of longitude wide with two letters, 1.4 by 1.4 with three.
"""

from __future__ import annotations

LETTERS = "0123456789bcdefghjkmnpqrstuvwxyz"


def geohash(lon: float, lat: float, length: int) -> str:
    """The cell of a point in degrees; on an edge, the eastern or northern one, as in PostGIS."""
    spans = [[-180.0, 180.0], [-90.0, 90.0]]
    code = 0
    for n in range(5 * length):
        span, value = spans[n % 2], (lon, lat)[n % 2]
        middle = (span[0] + span[1]) / 2
        upper = value >= middle
        code = code << 1 | upper
        span[0 if upper else 1] = middle
    return "".join(LETTERS[code >> 5 * n & 31] for n in reversed(range(length)))
