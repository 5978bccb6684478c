"""A writer of Zarr v2 as the ITS_LIVE cubes have it, chunk by chunk.

Written by hand, because what matters is what the libraries do not let through: integer arrays
with ``fill_value: null`` and a ``missing_value`` attribute, chunks that are not there at all, and
cubes of which only a few columns exist, in little memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

CODEC = Blosc(cname="zlib", clevel=2, shuffle=Blosc.SHUFFLE)
TIME_CHUNK = 20_000
TIME_CHUNK_1D = 200_000
SPACE_CHUNK = 10


class StoreWriter:
    """Writes one Zarr v2 group with consolidated metadata.

    Parameters
    ----------
    root : Path
        Directory of the group; what was there goes.
    """

    def __init__(self, root: Path) -> None:
        if root.exists():
            shutil.rmtree(root)
        root.mkdir(parents=True)
        self._root = root
        self._meta: dict[str, Any] = {".zgroup": {"zarr_format": 2}}

    def declare(
        self,
        name: str,
        shape: Sequence[int],
        chunks: Sequence[int],
        dtype: str,
        dims: Sequence[str],
        attrs: Mapping[str, Any],
        fill_value: float | str | None = None,
    ) -> None:
        """Declare an array; until :meth:`put` none of its chunks exists."""
        self._meta[f"{name}/.zarray"] = {
            "chunks": list(chunks),
            "compressor": CODEC.get_config(),
            "dtype": np.dtype(dtype).str,
            "fill_value": fill_value,
            "filters": None,
            "order": "C",
            "shape": list(shape),
            "zarr_format": 2,
        }
        self._meta[f"{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": list(dims), **attrs}
        (self._root / name).mkdir()

    def put(self, name: str, index: Sequence[int], block: npt.NDArray[Any]) -> None:
        """Write one chunk; a block at the edge is padded to the chunk's shape with zeros."""
        meta = self._meta[f"{name}/.zarray"]
        whole = tuple(meta["chunks"])
        block = np.asarray(block, meta["dtype"])
        if block.shape != whole:
            padded = np.zeros(whole, meta["dtype"])
            padded[tuple(slice(n) for n in block.shape)] = block
            block = padded
        key = ".".join(map(str, index)) or "0"
        (self._root / name / key).write_bytes(CODEC.encode(np.ascontiguousarray(block)))

    def array(
        self,
        name: str,
        data: npt.NDArray[Any],
        dims: Sequence[str],
        attrs: Mapping[str, Any],
        fill_value: float | str | None = None,
        chunks: Sequence[int] | None = None,
    ) -> None:
        """Declare an array and write all of it; one chunk unless said otherwise."""
        chunks = tuple(chunks or data.shape)
        self.declare(name, data.shape, chunks, data.dtype.str, dims, attrs, fill_value)
        for index in product(*(range(-(-n // c)) for n, c in zip(data.shape, chunks, strict=True))):
            window = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
            self.put(name, index, data[window])

    def close(self, attrs: Mapping[str, Any]) -> None:
        """Write the metadata, each file and the consolidated one."""
        self._meta[".zattrs"] = dict(attrs)
        for key, document in self._meta.items():
            (self._root / key).write_text(json.dumps(document, indent=4, sort_keys=True))
        whole = {"metadata": self._meta, "zarr_consolidated_format": 1}
        (self._root / ".zmetadata").write_text(json.dumps(whole, indent=4, sort_keys=True))
