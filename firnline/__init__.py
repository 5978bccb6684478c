"""A STAC catalog and a local data cache for NASA's ITS_LIVE glacier velocities.

>>> import firnline
>>> ds = firnline.open(bbox=[-50, 69, -49, 69.3], datetime="2018-01-01/2020-12-31")
>>> rates = firnline.strain(ds_of_composites, length_scale=500)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from firnline.version import __version__

__all__ = ["__version__", "open", "strain"]

if TYPE_CHECKING:
    from firnline.cache.opening import open_subset as open
    from firnline.cache.strain.dataset import strain_dataset as strain


def __getattr__(name: str) -> Any:
    """Load `open` and `strain` when they are asked for: the base imports nothing above it."""
    if name == "open":
        from firnline.cache.opening import open_subset

        return open_subset
    if name == "strain":
        from firnline.cache.strain.dataset import strain_dataset

        return strain_dataset
    raise AttributeError(f"module 'firnline' has no attribute {name!r}")
