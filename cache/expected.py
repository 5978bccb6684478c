"""What the download for a plan takes, before a velocity chunk has come: requests and bytes. Pure.

As if nothing were kept from before. Requests are those that are made where nothing fails and no
chunk is absent, told exactly where each chunk is an object; in shards as many as chunks of average
size need. Bytes are what chunks of their kind packed to in the sample, whose noise and gaps are
ITS_LIVE's: those of a place with more or less data differ.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from firnline.cache.sources import OpenCube, columns_read
from firnline.cache.turned_pairs import COVARIANCE
from firnline.chunks import LONGEST_RUN
from firnline.cube import Array

if TYPE_CHECKING:
    from firnline.cache.plan import Chunk, Plan

# Of a chunk's values (Blosc zlib-2 with shuffle, 66 % missing); other variables hardly vary.
_PACKED = {"v": 0.23, "vx": 0.23, "vy": 0.23, "v_error": 0.07}
_PACKED_OTHERS = 0.03
_IN_SHARDS = 1.4  # times that: lz4
_PACKED_COLUMN = 0.5
_BYTES_A_NAME, _BYTES_A_TEXT = 110, 1  # of a granule's URL, of a satellite or a version


def expected_requests(plan: Plan) -> int:
    """All of a job's: cubes' metadata and arrays of the pairs, chunks, whether a cube is as it was.

    Saturated speeds that are to be recomputed may need more.
    """
    count = 0
    for cube in plan.cubes:
        count += 3 if plan.request.pairs else 2  # asked again when its last columns have come
        for array in _columns(plan, cube):
            count += math.prod(array.chunk_counts)
            if array.shards is not None:
                sides = zip(array.shape, array.shards.shape, strict=True)
                count += math.prod(math.ceil(length / side) for length, side in sides)
    seen: set[tuple[int, str]] = set()
    for tile in plan.tiles:
        for variable in plan.request.variables:
            for group in plan.groups(tile, variable):
                new = [chunk for chunk in group if (chunk.cube, chunk.key) not in seen]
                if not new:
                    continue
                seen.update((chunk.cube, chunk.key) for chunk in new)
                shard, in_shard, _ = new[0].key.partition("#")
                if in_shard and (new[0].cube, shard) not in seen:
                    seen.add((new[0].cube, shard))
                    count += 1  # its index
                size = sum(_packed(plan, chunk) for chunk in new)
                count += math.ceil(size / LONGEST_RUN) if in_shard else 1
    return count


def expected_bytes(plan: Plan) -> int:
    """Bytes of :func:`expected_requests`, less those of the cubes' metadata."""
    columns = sum(_packed_column(a) for cube in plan.cubes for a in _columns(plan, cube))
    chunks = {
        (chunk.cube, chunk.key): chunk
        for tile in plan.tiles
        for variable in plan.request.variables
        for chunk in plan.chunks(tile, variable)
    }
    return round(columns + sum(_packed(plan, chunk) for chunk in chunks.values()))


def _columns(plan: Plan, cube: OpenCube) -> list[Array]:
    """What is read of a cube before its velocities; not what turning its errors has added."""
    names = columns_read(cube.layout, plan.request)
    if cube.named:
        names = [name for name in names if name != "granule_url"]
    return [cube.layout.arrays[name] for name in names if name != COVARIANCE]


def _packed(plan: Plan, chunk: Chunk) -> float:
    """Bytes of a chunk, of which only what is inside the array takes any."""
    array = plan.cubes[chunk.cube].layout.variable(chunk.variable)
    inside = (
        min(size, length - at * size)
        for at, size, length in zip(chunk.index, array.chunks, array.shape, strict=True)
    )
    share = _PACKED.get(chunk.variable, _PACKED_OTHERS) * (_IN_SHARDS if array.shards else 1)
    return math.prod(inside) * array.dtype.itemsize * share


def _packed_column(array: Array) -> float:
    if array.dtype.kind in "OSU":
        return math.prod(array.shape) * (
            _BYTES_A_NAME if array.name == "granule_url" else _BYTES_A_TEXT
        )
    return math.prod(array.shape) * array.dtype.itemsize * _PACKED_COLUMN
