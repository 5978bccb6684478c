"""What the products of a subset need to know of its plan, be it of cubes or of mosaics."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np
from odc.geo.geobox import GeoBox

from firnline.cache.request import Request

Raw = np.ndarray[Any, np.dtype[Any]]


class Target(Protocol):
    """A request on its grid."""

    @property
    def request(self) -> Request:
        """What was asked for."""

    @property
    def crs(self) -> str:
        """Code of the grid's CRS."""

    @property
    def geobox(self) -> GeoBox:
        """The grid."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(time, y, x)."""

    @property
    def x(self) -> Raw:
        """Pixel centres in metres, ascending."""

    @property
    def y(self) -> Raw:
        """Pixel centres in metres, descending."""

    @property
    def attribution(self) -> str:
        """Whose data it is made of."""


class OnGrid:
    """The coordinates of a plan, from its geobox."""

    geobox: GeoBox

    @cached_property
    def x(self) -> Raw:
        """Pixel centres in metres, ascending."""
        affine = self.geobox.affine
        return affine.c + affine.a * (np.arange(self.geobox.shape[1]) + 0.5)

    @cached_property
    def y(self) -> Raw:
        """Pixel centres in metres, descending."""
        affine = self.geobox.affine
        return affine.f + affine.e * (np.arange(self.geobox.shape[0]) + 0.5)
