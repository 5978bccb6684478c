"""The Zarr stores of a subset: created aside, written by whole shards, verified, published.

Writers work in a folder that no reader knows; publishing renames it to a generation folder, and
the database row that names the generation is what readers follow. A half-written Zarr opens
without an error and with holes: so every shard (or chunk, where there are no shards) is written,
empty or not, and a store in which one is missing is not published.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import zarr
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec

from firnline.cache import shards
from firnline.cache.plan import CHUNK_SIDE, CHUNK_TIME, SHARD_TIME, Plan, Tile
from firnline.crs import parse_crs
from firnline.errors import StoreError
from firnline.version import __version__

Raw = np.ndarray[Any, np.dtype[Any]]
Format = Literal["v3", "v2"]
Block = tuple[slice, slice, slice]
"""Times, rows and columns of a field, half-open."""

PAIRS = "pairs.zarr"
COMPOSITE = "composite.zarr"
STRAIN = "strain.zarr"
TREND = "trend.zarr"

GRID_MAPPING = "mapping"
_V2_CHUNK_TIME = 512
_MAP_TIMES, _MAP_SIDE = 4, 256
# The source calls 0 missing here, though it says 'measured': a decoder would make it NaN.
_ZERO_IS_A_VALUE = ("interp_mask",)


def create_pairs(path: Path, plan: Plan) -> None:
    """Create the store of the image pairs with all but its velocity chunks.

    Arrays ``(mid_date, y, x)`` keep the source's integer types, missing values and attributes;
    beside them the per-pair variables, ``granule``, ``source_cube`` and coordinates.
    """
    layers, request = plan.layers, plan.request
    group = _create_group(
        path, request.format, plan.geobox, (plan.x, plan.y), "granule", "source_cube"
    )
    group.attrs["title"] = "ITS_LIVE image-pair velocities of one area, stitched by firnline"
    group.attrs["source"] = plan.attribution
    if plan.resampled:
        group.attrs["comment"] = (
            "Where no cube on this grid covers the ground (see cube_resampled of source_cube), "
            f"values are resampled ({request.resampling}) from cubes on other grids: velocities "
            "and errors turned to these axes, v made from vx and vy; M11 and M12 are missing there"
        )
    times = layers.mid_date.astype("M8[us]").astype("i8")
    _put(
        group,
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
    )
    _put(
        group,
        "granule",
        np.char.decode(layers.granule, "utf-8"),
        ("mid_date",),
        {"long_name": "basename of the image pair's granule, which identifies the pair"},
    )
    for name, values in layers.per_pair.items():
        source = next(c.layout.arrays[name] for c in plan.cubes if name in c.layout.arrays)
        attributes, missing = _attributes(source.attributes), source.missing
        stated = (source.attributes.get("missing_value"), source.attributes.get("_FillValue"))
        declared = any(value is not None for value in (*stated, source.fill_value))
        _put(group, name, values, ("mid_date",), attributes, missing if declared else None)
    _put(
        group,
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
    )
    high, wide = plan.tile_shape
    for name in request.variables:
        array = plan.array(name)
        attributes = _attributes(array.attributes) | _crs_attributes(plan.crs)
        if name == "v" and request.recompute_speed:
            attributes["comment"] = "from vx and vy where it is too fast for the source's int16"
        if request.format == "v3":
            chunks = (CHUNK_TIME, CHUNK_SIDE, CHUNK_SIDE)
            shards = (SHARD_TIME, high, wide)
        else:
            chunks, shards = (_V2_CHUNK_TIME, *_halves(plan.tile_shape)), None
        _create_array(
            group, name, plan.shape, array.dtype, ("mid_date", "y", "x"), attributes,
            fill_value=None if name in _ZERO_IS_A_VALUE else array.missing,
            chunks=chunks, shards=shards,
        )  # fmt: skip


def create_fields(
    path: Path,
    fields: Mapping[str, tuple[str, Mapping[str, Any]]],
    *,
    format: Format,
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
    group = _create_group(path, format, geobox, axes, "time_bounds")
    group.attrs.update(dict(attributes))
    units = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}

    def seconds(instants: Raw) -> Raw:
        return instants.astype("M8[s]").astype("i8")

    _put(
        group,
        "time",
        seconds(periods["mid"]),
        ("time",),
        {"standard_name": "time", "long_name": "middle of the period", "bounds": "time_bounds"}
        | units,
    )
    bounds = np.stack([seconds(periods["start"]), seconds(periods["end"])], axis=1)
    _put(group, "time_bounds", bounds, ("time", "bounds"), units)
    code = str(geobox.crs)
    high, wide = (min(_MAP_SIDE, side) for side in geobox.shape)
    for name, (dtype, described) in fields.items():
        _create_array(
            group, name, (len(bounds), *geobox.shape), np.dtype(dtype), ("time", "y", "x"),
            dict(described) | _crs_attributes(code),
            fill_value=np.nan if np.dtype(dtype).kind == "f" else None,
            chunks=(1, high, wide),
            shards=(min(_MAP_TIMES, len(bounds)), high, wide) if format == "v3" else None,
        )  # fmt: skip


def write(path: Path, name: str, tile: Tile, values: Raw, processors: Executor) -> None:
    """Write one tile ``(mid_date, y, x)`` of a variable: whole shards, nothing is read back.

    Chunks are encoded on `processors`. They are laid out by ``firnline.cache.shards``, since
    zarr-python's own codec copies each of them several times over.
    """
    array = zarr.open_array(path, path=name, mode="r")
    shards.write(
        path / name,
        values,
        corner=(0, tile.rows.start, tile.columns.start),
        chunk=array.chunks,
        shard=array.shards,
        fill_value=array.dtype.type(0 if array.fill_value is None else array.fill_value),
        processors=processors,
    )


def write_field(path: Path, name: str, values: Raw, block: Block) -> None:
    """Write a block of a field ``(time, y, x)``, chunks without a value as well."""
    array = zarr.open_array(path, path=name, mode="r+")
    # zarr 3.1 takes no notice of `config` when it opens an array
    array.with_config({"write_empty_chunks": True})[block] = values


def field_blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """The parts of a field ``(time, y, x)`` that are whole chunks, and shards, of their own."""
    sizes = (_MAP_TIMES, _MAP_SIDE, _MAP_SIDE)
    parts = [
        [slice(n, min(n + size, length)) for n in range(0, length, size)]
        for length, size in zip(shape, sizes, strict=True)
    ]
    times, rows, columns = parts
    yield from itertools.product(times, rows, columns)


def opened(path: Path, name: str) -> zarr.Array[Any]:
    """An array, for reading parts of it."""
    return zarr.open_array(path, path=name, mode="r")


def consolidate(path: Path) -> None:
    """Gather the metadata into one document, so that opening takes one request."""
    with warnings.catch_warnings():
        # Zarr v3 has no word on consolidated metadata yet; readers that don't know it pass it by.
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(path)


def verify(path: Path) -> None:
    """Check that a store opens and that every chunk of it is on disk.

    Raises
    ------
    StoreError
        Says what is missing.
    """
    try:
        group = zarr.open_consolidated(path)
    except (ValueError, KeyError, OSError) as error:
        raise StoreError(f"{path.name} does not open: {error}") from error
    for name, array in group.arrays():
        grid = array.shards or array.chunks
        expected = math.prod(math.ceil(n / c) for n, c in zip(array.shape, grid, strict=True))
        found = _chunk_files(path / name)
        if found != expected:
            raise StoreError(f"{path.name}: {name} has {found} of {expected} chunks")


def _chunk_files(folder: Path) -> int:
    return sum(
        1 for file in _below(folder) if not file.name.startswith(".z") and file.name != "zarr.json"
    )


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in _below(folder))


def files(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Each file below a folder: relative path, bytes, SHA-256."""
    for file in _below(folder):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        yield file.relative_to(folder).as_posix(), file.stat().st_size, digest


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder in order, one folder at a time.

    Path.rglob (Python 3.11) remembers all that it gave: 70 MB for a hundred thousand.
    """
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


def publish(work: Path, published: Path) -> None:
    """Move a finished folder to where readers will look; on one file system this is atomic."""
    try:
        published.parent.mkdir(parents=True, exist_ok=True)
        work.rename(published)
    except OSError as error:
        raise StoreError(f"{published} can't be published: {error.strerror}") from error


def adopt(folder: Path, attempt: int) -> Path | None:
    """Take over what an earlier attempt has written; None if there is nothing.

    Its folder is renamed to this attempt's: a worker that lost its job but does not know it yet
    finds its own folder gone, and can't touch what is written from now on.
    """
    mine = folder / str(attempt)
    earlier = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not earlier:
        return None
    (folder / str(max(earlier))).rename(mine)
    for path in _below(mine):
        # zarr writes beside, then renames; so do maps and pictures. Zarr v2's metadata is .z...
        beside = path.name.startswith(".") and not path.name.startswith(".z")
        if beside or path.suffix == ".partial":
            path.unlink()
    return mine


def discard(folder: Path) -> None:
    """Remove a folder of unfinished work as far as possible; a sweeper gets the rest."""
    shutil.rmtree(folder, ignore_errors=True)


def _create_group(
    path: Path, format: Format, geobox: GeoBox, axes: tuple[Raw, Raw], *coordinates: str
) -> zarr.Group:
    group = zarr.open_group(path, mode="w", zarr_format=3 if format == "v3" else 2)
    crs = parse_crs(str(geobox.crs))
    group.attrs.update(
        {
            "Conventions": "CF-1.11",
            "references": "https://its-live.jpl.nasa.gov",
            "history": f"firnline {__version__}",
            # makes these coordinates in xarray; rioxarray looks for the grid mapping there
            "coordinates": " ".join((GRID_MAPPING, *coordinates)),
        }
    )
    transform = geobox.affine.to_gdal()
    mapping = crs.to_cf() | {
        "spatial_ref": crs.to_wkt(),
        "GeoTransform": " ".join(map(repr, map(float, transform))),
        "spatial_epsg": crs.to_epsg() or "",
    }
    _put(group, GRID_MAPPING, np.array(0, "i4"), (), mapping)
    for name, values in zip("xy", axes, strict=True):
        _put(
            group,
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
    return group


def _put(
    group: zarr.Group,
    name: str,
    values: Raw,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    fill_value: Any = None,
) -> None:
    """Create a small array in one chunk and fill it."""
    dtype = values.dtype
    if dtype.kind == "U" and group.metadata.zarr_format == 3:
        # fixed-width strings have no Zarr v3 specification; in v2 it's the other way round
        dtype = np.dtypes.StringDType()
    array = _create_array(
        group, name, values.shape, dtype, dims, attributes,
        fill_value=fill_value, chunks=tuple(max(1, n) for n in values.shape), shards=None,
    )  # fmt: skip
    array[...] = values


def _create_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    dims: tuple[str, ...],
    attributes: Mapping[str, Any],
    *,
    fill_value: Any,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None,
) -> zarr.Array[Any]:
    attributes = dict(attributes)
    is_string = np.dtype(dtype).kind in "UT"
    options: dict[str, Any] = {}
    if group.metadata.zarr_format == 3:
        options["dimension_names"] = dims
        if not is_string:
            options["compressors"] = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
        if fill_value is not None and np.dtype(dtype).kind in "iu":
            attributes["_FillValue"] = int(fill_value)
        elif fill_value is not None and np.dtype(dtype).kind == "f" and not np.isnan(fill_value):
            attributes["missing_value"] = float(fill_value)
    else:
        options["compressors"] = numcodecs.Blosc("zstd", 1, numcodecs.Blosc.SHUFFLE)
        attributes["_ARRAY_DIMENSIONS"] = list(dims)
    if fill_value is None and group.metadata.zarr_format == 3:
        fill_value = "" if is_string else 0
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        fill_value="" if is_string else fill_value,
        attributes=attributes,
        config={"write_empty_chunks": True},
        **options,
    )


def _attributes(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source variable's attributes, less those that are now said by the store."""
    dropped = ("missing_value", "_FillValue", "grid_mapping", "_CRS", "coordinates")
    return {name: value for name, value in source.items() if name not in dropped}


def _crs_attributes(code: str) -> dict[str, Any]:
    """CF's grid mapping, and `_CRS`, by which GDAL before 3.10 finds the CRS of a Zarr array."""
    return {"grid_mapping": GRID_MAPPING, "_CRS": {"wkt": parse_crs(code).to_wkt()}}


def _halves(tile: tuple[int, int]) -> tuple[int, int]:
    """Half a tile each way, a whole number of pixels as tiles are: an unsharded store's chunk."""
    high, wide = (side // 2 if side > CHUNK_SIDE else side for side in tile)
    return high, wide
