"""New Zarr stores: made in memory, put down at once, their metadata consolidated.

zarr-python hands each of its some hundred small reads and writes to a thread and waits for it. On
disk, beside the threads that fetch and decode the first chunks, that took longer than these did.
Nothing of a store's metadata changes once it's made: only chunks are written to it.
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
from odc.geo.geobox import GeoBox
from zarr.api import asynchronous
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from firnline.cache import shards, store
from firnline.cache.places import discard
from firnline.cache.plan import Plan
from firnline.crs import parse_crs
from firnline.version import __version__

Raw = np.ndarray[Any, np.dtype[Any]]

GRID_MAPPING = "mapping"


@dataclass(frozen=True)
class _Array:
    """An array of a new store; with `values` it's a small one, in one chunk."""

    name: str
    dims: tuple[str, ...]
    attributes: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: Any
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    fill_value: Any = None
    values: Raw | None = None


def create_pairs(path: Path, plan: Plan) -> None:
    """Create the store of the image pairs with all but its velocity chunks.

    Arrays ``(mid_date, y, x)`` keep the source's integer types, missing values and attributes;
    beside them the per-pair variables, ``granule``, ``source_cube`` and coordinates.
    """
    layers, request = plan.layers, plan.request
    attributes, arrays = _common(plan.geobox, (plan.x, plan.y), "granule", "source_cube")
    attributes["title"] = "ITS_LIVE image-pair velocities of one area, stitched by firnline"
    attributes["source"] = plan.attribution
    if plan.resampled:
        attributes["comment"] = (
            "Where no cube on this grid covers the ground (see cube_resampled of source_cube), "
            f"values are resampled ({request.resampling}) from cubes on other grids: velocities "
            "and errors turned to these axes, v made from vx and vy; M11 and M12 are missing there"
        )
    times = layers.mid_date.astype("M8[us]").astype("i8")
    arrays += [
        _small(
            "mid_date",
            times,
            ("mid_date",),
            {
                "standard_name": "time",
                "long_name": "midpoint of image 1 and image 2 acquisition date and time",
                "units": "microseconds since 1970-01-01T00:00:00",
                "calendar": "proleptic_gregorian",
                "axis": "T",
            },
        ),
        _small(
            "granule",
            np.char.decode(layers.granule, "utf-8"),
            ("mid_date",),
            {"long_name": "basename of the image pair's granule, which identifies the pair"},
        ),
        _small(
            "source_cube",
            plan.source_cube,
            ("y", "x"),
            {
                "long_name": "cube that the pixel comes from",
                "flag_values": list(range(len(plan.cubes))),
                "flag_meanings": " ".join(cube.id for cube in plan.cubes),
                "cube_crs": " ".join(cube.crs for cube in plan.cubes),
                "cube_resampled": [int(place.resampled) for place in plan.placements],
                "grid_mapping": GRID_MAPPING,
            },
            np.int16(-1),
        ),
    ]
    for name, values in layers.per_pair.items():
        source = next(c.layout.arrays[name] for c in plan.cubes if name in c.layout.arrays)
        stated = (source.attributes.get("missing_value"), source.attributes.get("_FillValue"))
        declared = any(value is not None for value in (*stated, source.fill_value))
        missing = source.missing if declared else None
        arrays.append(_small(name, values, ("mid_date",), _attributes(source.attributes), missing))
    for name in request.variables:
        array = plan.array(name)
        about = _attributes(array.attributes) | _crs_attributes(plan.crs)
        if name == "v" and request.recompute_speed:
            about["comment"] = "from vx and vy where it is too fast for the source's int16"
        dims = ("mid_date", "y", "x")
        arrays.append(
            _Array(name, dims, about, plan.shape, array.dtype, *store.pairs_layout(plan, name))
        )
    _put_down(path, request.format, attributes, arrays)


def create_fields(
    path: Path,
    fields: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    format: store.Format,
    geobox: GeoBox,
    axes: tuple[Raw, Raw],
    periods: Mapping[str, Raw],
    attributes: Mapping[str, Any],
) -> None:
    """Create a store of fields ``(time, y, x)``, one map for each period.

    A chunk is a map of 256 x 256 pixels; in Zarr v3 four periods of it are one shard, few enough
    that a block of all fields is made in little memory.

    Parameters
    ----------
    fields
        Type and attributes by name.
    axes
        x and y of the pixel centres, in metres.
    periods
        ``start``, ``end`` (exclusive) and ``mid`` of each period, ``datetime64 (time,)``.
    """
    common, arrays = _common(geobox, axes, "time_bounds")
    units = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}

    def seconds(instants: Raw) -> Raw:
        return instants.astype("M8[s]").astype("i8")

    time = {"standard_name": "time", "long_name": "middle of the period", "bounds": "time_bounds"}
    bounds = np.stack([seconds(periods["start"]), seconds(periods["end"])], axis=1)
    arrays += [
        _small("time", seconds(periods["mid"]), ("time",), time | units),
        _small("time_bounds", bounds, ("time", "bounds"), units),
    ]
    system = _crs_attributes(str(geobox.crs))
    high, wide = (min(store.MAP_SIDE, side) for side in geobox.shape)
    arrays += [
        _Array(
            name,
            ("time", "y", "x"),
            {**described, **system},
            (len(bounds), *geobox.shape),
            np.dtype(dtype),
            (1, high, wide),
            (min(store.MAP_TIMES, len(bounds)), high, wide) if format == "v3" else None,
            np.nan if np.dtype(dtype).kind == "f" else None,
        )
        for name, (dtype, described) in fields.items()
    ]
    discard(path)  # what an earlier attempt has left
    _put_down(path, format, common | dict(attributes), arrays)


def _common(
    geobox: GeoBox, axes: tuple[Raw, Raw], *coordinates: str
) -> tuple[dict[str, Any], list[_Array]]:
    """Attributes of a store on this grid, and the arrays that place it."""
    crs = parse_crs(str(geobox.crs))
    attributes = {
        "Conventions": "CF-1.11",
        "references": "https://its-live.jpl.nasa.gov",
        "history": f"firnline {__version__}",
        # makes these coordinates in xarray; rioxarray looks for the grid mapping there
        "coordinates": " ".join((GRID_MAPPING, *coordinates)),
    }
    mapping = crs.to_cf() | {
        "spatial_ref": crs.to_wkt(),
        "GeoTransform": " ".join(map(repr, map(float, geobox.affine.to_gdal()))),
        "spatial_epsg": crs.to_epsg() or "",
    }
    places = [
        _small(
            name,
            values.astype("f8"),
            (name,),
            {
                "standard_name": f"projection_{name}_coordinate",
                "long_name": f"{name} coordinate of the pixel's centre",
                "units": "m",
                "axis": name.upper(),
            },
        )
        for name, values in zip("xy", axes, strict=True)
    ]
    return attributes, [_small(GRID_MAPPING, np.array(0, "i4"), (), mapping), *places]


def _small(
    name: str,
    values: Raw,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    fill_value: Any = None,
) -> _Array:
    chunks = tuple(max(1, n) for n in values.shape)
    return _Array(
        name, dims, attributes, values.shape, values.dtype, chunks, None, fill_value, values
    )


def _put_down(
    path: Path, format: store.Format, attributes: Mapping[str, Any], arrays: Sequence[_Array]
) -> None:
    """Write a store with these arrays; chunks of them may be there already."""
    files: dict[str, Buffer] = {}
    with ThreadPoolExecutor(1) as alone:  # the caller's thread may have a loop of its own
        alone.submit(asyncio.run, _make(MemoryStore(files), format, attributes, arrays)).result()
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.to_bytes())


async def _make(
    files: MemoryStore,
    format: store.Format,
    attributes: Mapping[str, Any],
    arrays: Sequence[_Array],
) -> None:
    group = await asynchronous.open_group(
        files, mode="w", zarr_format=3 if format == "v3" else 2, attributes=dict(attributes)
    )
    prototype = default_buffer_prototype().buffer
    for array in arrays:
        attributes = dict(array.attributes)
        fill_value, dtype = array.fill_value, np.dtype(array.dtype)
        if dtype.kind == "U" and format == "v3":
            # fixed-width strings have no Zarr v3 specification; in v2 it's the other way round
            dtype = np.dtypes.StringDType()
        is_string = dtype.kind in "UT"
        block = 0 if is_string else math.prod(array.chunks) * dtype.itemsize  # see shards.pack
        options: dict[str, Any] = {}
        if format == "v3":
            options["dimension_names"] = array.dims
            if not is_string:
                options["compressors"] = BloscCodec(
                    cname="zstd", clevel=1, shuffle="shuffle", blocksize=block
                )
            if fill_value is not None and dtype.kind in "iu":
                attributes["_FillValue"] = int(fill_value)
            elif fill_value is not None and dtype.kind == "f" and not np.isnan(fill_value):
                attributes["missing_value"] = float(fill_value)
            elif fill_value is None:
                fill_value = 0
        else:
            options["compressors"] = numcodecs.Blosc("zstd", 1, numcodecs.Blosc.SHUFFLE, block)
            attributes["_ARRAY_DIMENSIONS"] = list(array.dims)
        made = await group.create_array(
            array.name,
            shape=array.shape,
            dtype=dtype,
            chunks=array.chunks,
            shards=array.shards,
            fill_value="" if is_string else fill_value,
            attributes=attributes,
            config={"write_empty_chunks": True},
            **options,
        )
        if array.values is None:
            continue
        if is_string:
            await made.setitem(..., array.values)
        else:  # zarr-python takes half a millisecond for each
            key = made.metadata.encode_chunk_key((0,) * len(array.shape))
            packed = shards.pack(np.ascontiguousarray(array.values, dtype))
            await files.set(f"{array.name}/{key}", prototype.from_bytes(packed))
    with warnings.catch_warnings():
        # Zarr v3 has no word on consolidated metadata yet; readers that don't know it pass it by.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        await asynchronous.consolidate_metadata(files)


def _attributes(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source variable's attributes, less those that are now said by the store."""
    dropped = ("missing_value", "_FillValue", "grid_mapping", "_CRS", "coordinates")
    return {name: value for name, value in source.items() if name not in dropped}


def _crs_attributes(code: str) -> dict[str, Any]:
    """CF's grid mapping, and `_CRS`, by which GDAL before 3.10 finds the CRS of a Zarr array."""
    return {"grid_mapping": GRID_MAPPING, "_CRS": {"wkt": parse_crs(code).to_wkt()}}
