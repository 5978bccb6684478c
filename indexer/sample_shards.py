"""A synthetic cube of the kind that ITS_LIVE's producers prepare: version 2.2, Zarr v3 in shards.

Taken from their code: dimension ``time`` in int64 nanoseconds, chunks (20000, 8, 8) in shards
(20000, 32, 32), Blosc lz4-1 with bitshuffle, tiles whose side is a multiple of the shards'.
Invented, since no such cube is published: that strings have variable length, and that all dates
are nanoseconds. Written by zarr-python, so that another hand than the reader's made it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec

from firnline.indexer.sample_cube import (
    FLAGS,
    SPEED,
    TYPES,
    VARIABLE_ATTRIBUTES,
    CubeContent,
    CubeSpec,
    cube_attributes,
    grid_velocity,
    observe,
    write_ground,
    write_scalars,
)
from firnline.indexer.sample_pairs import MISSING
from firnline.indexer.sample_zarr import TIME_CHUNK

SIDE = 96
"""Pixels along a side; the real ones will have 512."""
CHUNK, SHARD = 8, 32
_DATES = ("mid_date", "date_center", "acquisition_date_img1", "acquisition_date_img2")


class ShardedWriter:
    """Writes one Zarr v3 group with consolidated metadata, array by array.

    Parameters
    ----------
    root : Path
        Directory of the group; what was there goes.
    """

    def __init__(self, root: Path) -> None:
        if root.exists():
            shutil.rmtree(root)
        self._root = root
        self._group = zarr.create_group(root, zarr_format=3)

    def array(
        self,
        name: str,
        data: npt.NDArray[Any],
        dims: Sequence[str],
        attrs: Mapping[str, Any],
        fill_value: float | str | None = None,
        chunks: Sequence[int] | None = None,
    ) -> None:
        """Write an array: called as that of version 2, with its names, dimensions and dates."""
        attrs = dict(attrs)
        if name in _DATES:
            microseconds = np.rint(np.asarray(data, np.float64) * 86_400e6).astype(np.int64)
            data, fill_value = microseconds * 1000, None
            attrs |= {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
        text = data.dtype.kind == "U"
        self._create(
            "time" if name == "mid_date" else name,
            data,
            dims,
            attrs,
            fill_value=("" if text else 0) if fill_value is None else fill_value,
            chunks=tuple(chunks or data.shape),
            dtype=str if text else data.dtype,
        )

    def velocity(self, name: str, data: npt.NDArray[Any], attrs: Mapping[str, Any]) -> None:
        """Write a variable ``(time, y, x)`` in shards; a chunk of zeros is left out."""
        time = min(len(data), TIME_CHUNK)
        self._create(
            name,
            data,
            ("time", "y", "x"),
            attrs,
            fill_value=0,
            chunks=(time, CHUNK, CHUNK),
            shards=(time, SHARD, SHARD),
            compressors=BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
        )

    def _create(
        self,
        name: str,
        data: npt.NDArray[Any],
        dims: Sequence[str],
        attrs: Mapping[str, Any],
        **layout: Any,
    ) -> None:
        array = self._group.create_array(
            name,
            shape=data.shape,
            dtype=layout.pop("dtype", data.dtype),
            dimension_names=["time" if dim == "mid_date" else dim for dim in dims],
            attributes=dict(attrs),
            **layout,
        )
        array[...] = data

    def close(self, attrs: Mapping[str, Any]) -> None:
        """Write the group's attributes, and gather all metadata in its ``zarr.json``."""
        self._group.update_attributes(dict(attrs))
        with warnings.catch_warnings():
            # Zarr v3 has no word on consolidated metadata yet
            warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
            zarr.consolidate_metadata(self._root)


def write_sharded_cube(root: Path, spec: CubeSpec, content: CubeContent, base_url: str) -> None:
    """Write one cube below `root`, as ``firnline.indexer.sample_cube.write_cube`` does.

    ``content.absent`` are rows and columns of chunks of :data:`CHUNK` pixels.
    """
    store = ShardedWriter(root / spec.path)
    x, y, pairs = spec.x, spec.y, content.pairs
    steady = grid_velocity(content.flow, spec.epsg, *np.meshgrid(x, y))
    rng = np.random.default_rng((*content.seed, 0))
    values = observe(pairs, content, slice(0, len(pairs)), (x, y, *steady), rng)
    valid = values.pop("valid")
    for name in content.variables:
        dtype, missing = TYPES.get(name, ("<i2", int(MISSING)))
        data = np.asarray(values[name]).astype(dtype)
        for row, column in content.absent:
            at = tuple(slice(CHUNK * k, CHUNK * (k + 1)) for k in (row, column))
            data[:, at[0], at[1]] = 0
            valid[:, at[0], at[1]] = False
        attrs = (SPEED if dtype == "<i2" else FLAGS) | VARIABLE_ATTRIBUTES[name]
        store.velocity(name, data, attrs | {"missing_value": missing})
    write_scalars(store, pairs, 100.0 * valid.mean(axis=(1, 2)))
    write_ground(store, spec, x, y)
    store.close(cube_attributes(spec, len(pairs), base_url))
