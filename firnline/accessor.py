"""``ds.firnline``: what can be asked of any Dataset of velocities, as methods of it.

>>> import firnline.accessor
>>> rates = ds.firnline.strain(length_scale=500)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from firnline.cache.flowlines import flowlines
from firnline.cache.series import series
from firnline.cache.strain.dataset import strain_dataset

if TYPE_CHECKING:
    import geopandas as gpd
    import pandas as pd

__all__ = ["Firnline"]


@xr.register_dataset_accessor("firnline")  # type: ignore[no-untyped-call]
class Firnline:
    """Methods of a Dataset with vx, vy and a CRS; without a server or a database."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def strain(self, length_scale: float = 500.0, **how: Any) -> xr.Dataset:
        """Strain rates: :func:`firnline.strain` of this Dataset."""
        return strain_dataset(self._ds, length_scale, **how)

    def series(self, **where: Any) -> pd.DataFrame:
        """Values over time at points or along lines: :func:`firnline.series` of this Dataset."""
        return series(self._ds, **where)

    def flowlines(self, **where: Any) -> gpd.GeoDataFrame:
        """Streamlines: :func:`firnline.flowlines` of this Dataset."""
        return flowlines(self._ds, **where)
