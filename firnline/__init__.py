"""A STAC catalog and a local data cache for NASA's ITS_LIVE glacier velocities.

>>> import firnline
>>> ds = firnline.open(bbox=[-50, 69, -49, 69.3], datetime="2018-01-01/2020-12-31")
>>> table = firnline.series(ds, lon=-49.3, lat=69.15)
>>> lines = firnline.flowlines(ds_of_composites, lon=-49.3, lat=69.15, time="2019")
>>> rates = firnline.strain(ds_of_composites, length_scale=500)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from firnline.version import __version__

__all__ = ["__version__", "flowlines", "open", "series", "strain"]

if TYPE_CHECKING:
    from firnline.cache.flowlines import flowlines
    from firnline.cache.opening import open_subset as open
    from firnline.cache.series import series
    from firnline.cache.strain.dataset import strain_dataset as strain

_FOUND_IN = {
    "flowlines": ("firnline.cache.flowlines", "flowlines"),
    "open": ("firnline.cache.opening", "open_subset"),
    "series": ("firnline.cache.series", "series"),
    "strain": ("firnline.cache.strain.dataset", "strain_dataset"),
}


def __getattr__(name: str) -> Any:
    """Load a function when it is asked for: the base imports nothing above it."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'firnline' has no attribute {name!r}")
    module, function = _FOUND_IN[name]
    return getattr(import_module(module), function)
