"""What was read of a subset's cubes to plan it, kept beside it.

Metadata, coordinates and image pairs, all of them: who has these plans any request that the same
cubes answer, as if they had been read again.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

from firnline.cache.places import Place
from firnline.cache.sources import OpenCube, layout_in_days
from firnline.cube import parse_cube
from firnline.errors import StoreError
from firnline.source import Source

_FOLDER = "cubes"
_COORDINATES = ("x", "y", "mid_date", "granule")


def keep_cubes(folder: Path, cubes: Sequence[OpenCube]) -> None:
    """Write them into a folder of their own in `folder`, a file each."""
    (folder / _FOLDER).mkdir(exist_ok=True)
    for cube in cubes:
        arrays: dict[str, Any] = {name: getattr(cube, name) for name in _COORDINATES}
        arrays |= {f"pair/{name}": values for name, values in cube.per_pair.items()}
        arrays["metadata"] = np.frombuffer(cube.layout.metadata, np.uint8)
        arrays["crs"] = np.array(cube.crs)
        whole = io.BytesIO()
        np.savez(whole, allow_pickle=False, **arrays)
        packed = blosc.compress(whole.getvalue(), b"zstd", 1, blosc.SHUFFLE)
        _file(folder, cube.id).write_bytes(packed)


def load_cube(folder: Place, id: str, source: Source, etag: str | None) -> OpenCube:
    """A cube as it was kept; `source` and `etag` are those that it was read from.

    Raises
    ------
    StoreError
        It's not there, or damaged.
    """
    file = _file(folder, id)
    try:
        whole = io.BytesIO(blosc.decompress(file.read_bytes()))
        with np.load(whole, allow_pickle=False) as arrays:
            read = {name: arrays[name] for name in arrays.files}
        crs = str(read.pop("crs"))
        layout = parse_cube(source.url, read.pop("metadata").tobytes(), etag)
        coordinates = {name: read.pop(name) for name in _COORDINATES}
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise StoreError(f"{file} can't be read: {error}") from error
    # of a cube that was turned, also what that added
    names = {name: name.removeprefix("pair/") for name in read}
    per_pair = {names[n]: values for n, values in read.items() if names[n] in layout.arrays}
    layout = layout_in_days(layout, per_pair)
    return OpenCube(id=id, crs=crs, source=source, layout=layout, per_pair=per_pair, **coordinates)


def _file(folder: Place, id: str) -> Place:
    return folder / _FOLDER / f"{id}.npz.blosc"
