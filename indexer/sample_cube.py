"""One synthetic cube: the flow field, seen by image pairs, with noise, gaps and saturation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pyproj import CRS, Transformer

from firnline.indexer.flow import DAYS_PER_YEAR, FlowField
from firnline.indexer.sample_pairs import MISSING, Pairs
from firnline.indexer.sample_zarr import SPACE_CHUNK, TIME_CHUNK, TIME_CHUNK_1D, StoreWriter

SYNTHETIC = (
    "SYNTHETIC: made by firnline from a formula, for demonstration and tests. "
    "It is not an observation and must not be used as one."
)
SPACING = 120.0
PHASE = (52.5, 67.5)
"""x and y of all pixel centres, modulo the spacing: one lattice a CRS."""
VARIABLES = (
    "v", "vx", "vy", "v_error", "va", "vr", "M11", "M12",
    "interp_mask", "chip_size_height", "chip_size_width",
)  # fmt: skip
SATURATED = (-28_445, -19_862)
"""A blunder of the real data, whose speed does not fit the int16 of v."""
_BLOCK = 3  # pixels along which the gaps of a pair don't change
_EPOCH = 1970.0

Bounds = tuple[float, float, float, float]
FLAGS: dict[str, Any] = {"flag_values": [0, 1], "grid_mapping": "mapping"}
SPEED: dict[str, Any] = {"units": "meter/year", "grid_mapping": "mapping"}
VARIABLE_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "v": {"standard_name": "land_ice_surface_velocity", "description": "velocity magnitude"},
    "vx": {
        "standard_name": "land_ice_surface_x_velocity",
        "description": "velocity component in x direction",
    },
    "vy": {
        "standard_name": "land_ice_surface_y_velocity",
        "description": "velocity component in y direction",
    },
    "v_error": {"standard_name": "velocity_error", "description": "velocity magnitude error"},
    "va": {"description": "velocity in radar azimuth direction"},
    "vr": {"description": "velocity in radar range direction"},
    "M11": {"standard_name": "conversion_matrix_element_11"},
    "M12": {"standard_name": "conversion_matrix_element_12"},
    "interp_mask": {
        "standard_name": "interpolated_value_mask",
        "flag_meanings": "measured interpolated",
    },
    "chip_size_height": {"units": "m", "description": "height of search template (chip)"},
    "chip_size_width": {"units": "m", "description": "width of search template (chip)"},
}
TYPES = {
    "interp_mask": ("<u1", 0),
    "chip_size_height": ("<u2", 0),
    "chip_size_width": ("<u2", 0),
}
_DATES = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}


class ArrayWriter(Protocol):
    """What writes whole arrays, of whichever version of Zarr."""

    def array(
        self,
        name: str,
        data: npt.NDArray[Any],
        dims: Sequence[str],
        attrs: Mapping[str, Any],
        fill_value: float | str | None = None,
        chunks: Sequence[int] | None = None,
    ) -> None:
        """Declare an array and write all of it."""


@dataclass(frozen=True)
class CubeSpec:
    """Which ground a cube covers and where it lies."""

    epsg: int
    bounds: Bounds
    """left, bottom, right, top of the tile in its CRS, as the catalog has it."""
    path: str
    """Path below the root of the bucket."""

    @property
    def x(self) -> npt.NDArray[np.float64]:
        """Centres of the columns, ascending."""
        return _centres(self.bounds[0], self.bounds[2], PHASE[0], np.ceil)

    @property
    def y(self) -> npt.NDArray[np.float64]:
        """Centres of the rows, descending."""
        return _centres(self.bounds[1], self.bounds[3], PHASE[1], np.floor)[::-1]

    @property
    def ring(self) -> list[list[float]]:
        """The tile's corners in its CRS, counter-clockwise and closed."""
        left, bottom, right, top = self.bounds
        return [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]

    @property
    def lonlat_ring(self) -> list[list[float]]:
        """The corners in degrees, nothing between them: as published, edges bowed or not."""
        geographic = Transformer.from_crs(self.epsg, 4326, always_xy=True)
        return [[round(c, 6) for c in geographic.transform(x, y)] for x, y in self.ring]


@dataclass(frozen=True)
class CubeContent:
    """What a cube is filled with."""

    pairs: Pairs
    flow: FlowField
    noise: float
    """Standard deviation of the noise over the error that the pair reports."""
    seed: tuple[int, ...]
    variables: Sequence[str] = VARIABLES
    only: frozenset[tuple[int, int]] | None = None
    """Rows and columns of the 3-D chunks that are written; None: all."""
    absent: frozenset[tuple[int, int]] = frozenset()
    """Rows and columns of the 3-D chunks that are not."""
    blunders: int = 5
    """How many pixels of the cube hold a saturated value."""


def grid_velocity(
    flow: FlowField, epsg: int, x: npt.ArrayLike, y: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steady velocity along the axes of any CRS, from a field that is defined in EPSG:3413.

    The vector is carried by the Jacobian of the projection (central differences over 50 m), so
    it is in metres of that CRS's own grid, as ITS_LIVE has it.

    Parameters
    ----------
    flow : FlowField
    epsg : int
    x, y : array_like
        Coordinates in the CRS, of one shape.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if epsg == 3413:
        return flow.velocity(x, y)
    there = Transformer.from_crs(epsg, 3413, always_xy=True)
    back = Transformer.from_crs(3413, epsg, always_xy=True)
    px, py = there.transform(x, y)
    step = 50.0
    east = back.transform(px + step, py), back.transform(px - step, py)
    north = back.transform(px, py + step), back.transform(px, py - step)
    u, v = flow.velocity(px, py)
    return (
        ((east[0][0] - east[1][0]) * u + (north[0][0] - north[1][0]) * v) / (2 * step),
        ((east[0][1] - east[1][1]) * u + (north[0][1] - north[1][1]) * v) / (2 * step),
    )


def write_cube(root: Path, spec: CubeSpec, content: CubeContent, base_url: str) -> None:
    """Write one cube below `root`.

    Memory holds a few columns of chunks (pairs x 10 x 10 pixels), never the cube.

    Parameters
    ----------
    root : Path
        The directory that stands for the bucket.
    spec : CubeSpec
    content : CubeContent
    base_url : str
        Where `root` is served, for the attributes.
    """
    store = StoreWriter(root / spec.path)
    x, y, pairs = spec.x, spec.y, content.pairs
    count = len(pairs)
    chunk = (min(count, TIME_CHUNK), SPACE_CHUNK, SPACE_CHUNK)
    for name in content.variables:
        dtype, missing = TYPES.get(name, ("<i2", int(MISSING)))
        attrs = (
            (SPEED if dtype == "<i2" else FLAGS)
            | VARIABLE_ATTRIBUTES[name]
            | {"missing_value": missing}
        )
        store.declare(
            name, (count, len(y), len(x)), chunk, dtype, ("mid_date", "y", "x"), attrs, None
        )
    grid = np.meshgrid(x, y)
    speed = grid_velocity(content.flow, spec.epsg, *grid)
    columns = [
        (i, j)
        for i in range(-(-len(y) // SPACE_CHUNK))
        for j in range(-(-len(x) // SPACE_CHUNK))
        if (content.only is None or (i, j) in content.only) and (i, j) not in content.absent
    ]
    marks = np.random.default_rng((*content.seed, 1)).permutation(len(columns))
    blundered = {columns[k] for k in marks[: content.blunders]}
    seen = np.zeros(count, np.int64)

    def write(where: tuple[int, int]) -> npt.NDArray[np.int64]:
        return _write_column(store, spec, content, (x, y, *speed), where, where in blundered)

    with ThreadPoolExecutor(4) as pool:
        for number in pool.map(write, columns):
            seen += number
    # Per cent of the ground that is written at all: a scale cube has only a part of its own.
    area = sum(
        min(SPACE_CHUNK, len(y) - i * SPACE_CHUNK) * min(SPACE_CHUNK, len(x) - j * SPACE_CHUNK)
        for i, j in columns
    )
    write_scalars(store, pairs, 100.0 * seen / max(area, 1))
    write_ground(store, spec, x, y)
    store.close(cube_attributes(spec, count, base_url))


def _write_column(
    store: StoreWriter,
    spec: CubeSpec,
    content: CubeContent,
    ground: tuple[npt.NDArray[np.float64], ...],
    where: tuple[int, int],
    blunder: bool,
) -> npt.NDArray[np.int64]:
    x, y, vx0, vy0 = ground
    rows, cols = (slice(k * SPACE_CHUNK, (k + 1) * SPACE_CHUNK) for k in where)
    pairs, count = content.pairs, len(content.pairs)
    rng = np.random.default_rng((*content.seed, 0, *where))
    number = np.zeros(count, np.int64)
    for index, start in enumerate(range(0, count, TIME_CHUNK)):
        part = slice(start, start + TIME_CHUNK)
        block = observe(
            pairs, content, part, (x[cols], y[rows], vx0[rows, cols], vy0[rows, cols]), rng
        )
        valid = block.pop("valid")
        if blunder and index == 0 and valid.any():
            k = tuple(axis[0] for axis in np.nonzero(valid))
            block["vx"][k], block["vy"][k] = SATURATED
            if "v" in block:
                block["v"][k] = np.iinfo(np.int16).max
        for name in content.variables:
            store.put(name, (index, *where), block[name])
        number[part] = valid.sum(axis=(1, 2))
    return number


def observe(
    pairs: Pairs,
    content: CubeContent,
    part: slice,
    ground: tuple[npt.NDArray[np.float64], ...],
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[Any]]:
    """Variables ``(pair, y, x)`` of some pairs over some ground, and ``valid``, where they are.

    `ground` is x, y and both components of the steady velocity.
    """
    x, y, vx0, vy0 = ground
    year = _EPOCH + pairs.columns["mid_date"][part].astype(np.float64) / DAYS_PER_YEAR
    factor = content.flow.factor(year).astype(np.float32)[:, None, None]
    valid = _gaps(pairs, x, y, part)
    out: dict[str, npt.NDArray[Any]] = {"valid": valid}
    errors = []
    for name, steady in (("vx", vx0), ("vy", vy0)):
        error = pairs.columns[f"{name}_error"][part].astype(np.float32)[:, None, None]
        value = rng.standard_normal(valid.shape, np.float32)
        value *= np.float32(content.noise) * error
        value += factor * steady.astype(np.float32)
        np.rint(value, out=value)
        np.clip(value, -32_766, 32_767, out=value)
        value[~valid] = MISSING
        out[name] = value
        errors.append(error)
    speed = np.hypot(out["vx"], out["vy"])
    spread = np.hypot(out["vx"] * errors[0], out["vy"] * errors[1])
    spread /= np.maximum(speed, 1.0)
    out["v_error"] = np.where(valid, np.maximum(np.rint(spread), 1.0), MISSING)
    if "v" in content.variables:
        out["v"] = np.where(valid, np.minimum(np.rint(speed), 32_767), MISSING)
    for name in ("va", "vr", "M11", "M12"):
        if name in content.variables:
            out[name] = np.broadcast_to(np.int16(MISSING), valid.shape)
    if "interp_mask" in content.variables:
        out["interp_mask"] = valid & (rng.random(valid.shape, np.float32) < 0.04)
        size = np.where(pairs.threshold[part] > 0.4, 480, 240)[:, None, None]
        out["chip_size_width"] = np.where(valid, size, 0)
        out["chip_size_height"] = out["chip_size_width"]
    return out


def _gaps(
    pairs: Pairs, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], part: slice
) -> npt.NDArray[np.bool_]:
    """Where pairs have data: the same for the same ground, whatever cube it is asked by."""
    size = SPACING * _BLOCK
    blocks, inverse = [], []
    for axis in (x, y):
        number, back = np.unique(np.floor(axis / size), return_inverse=True)
        blocks.append((number + 0.5) * size)
        inverse.append(back)
    seen = pairs.seen(blocks[0], blocks[1], part)
    return np.asarray(seen[:, inverse[1]][:, :, inverse[0]])


def write_scalars(store: ArrayWriter, pairs: Pairs, coverage: npt.NDArray[np.float64]) -> None:
    """Write the variables of the pairs; `coverage` is their share of the ground, in per cent."""
    chunk = (min(len(pairs), TIME_CHUNK_1D),)
    columns = pairs.columns | {"roi_valid_percentage": coverage.astype(np.float32)}
    for name, values in columns.items():
        fill: float | str | None = None
        attrs: dict[str, Any] = {"description": f"{name} of the image pair"}
        if values.dtype == np.float32:
            # As xarray wrote them: a _FillValue where the producer named one, NaN where not.
            fill = MISSING
            if name in ("date_dt", "roi_valid_percentage"):
                fill = "NaN"
                attrs["units"] = "days" if name == "date_dt" else "percent"
            elif name.endswith("factor"):
                fill = 0.0
                attrs["units"] = "meter/(year*pixel)"
            else:
                attrs["units"] = "meter/year"
        elif values.dtype == np.float64:
            fill = "NaN"
            attrs |= _DATES
        store.array(name, values, ("mid_date",), attrs, fill, chunk)


def write_ground(
    store: ArrayWriter,
    spec: CubeSpec,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
) -> None:
    """Write coordinates, masks and the grid mapping."""
    for name, values in (("x", x), ("y", y)):
        attrs = {
            "standard_name": f"projection_{name}_coordinate",
            "description": f"{name} coordinate of projection",
            "units": "m",
        }
        store.array(name, values, (name,), attrs, "NaN")
    land = np.ones((len(y), len(x)), np.uint8)
    land[:2, :2] = 255  # the masks do not reach everywhere either
    for name, mask in (("landice", land), ("floatingice", np.where(land == 255, 255, 0))):
        words = {"standard_name": name, "flag_meanings": f"non-ice {name}"}
        store.array(name, mask.astype(np.uint8), ("y", "x"), FLAGS | words | {"missing_value": 255})
    crs = CRS.from_epsg(spec.epsg)
    half = SPACING / 2.0
    origin = f"{x[0] - half} {SPACING} 0 {y[0] + half} 0 {-SPACING}"
    mapping = crs.to_cf() | {
        "GeoTransform": origin,
        "spatial_epsg": spec.epsg,
        "spatial_ref": crs.to_wkt("WKT1_GDAL"),
    }
    store.array("mapping", np.array("", "<U1"), (), mapping)


def cube_attributes(spec: CubeSpec, count: int, base_url: str) -> dict[str, Any]:
    """The attributes of a cube's group."""
    left, bottom, right, top = spec.bounds
    geographic = Transformer.from_crs(spec.epsg, 4326, always_xy=True)
    lon, lat = geographic.transform((left + right) / 2.0, (bottom + top) / 2.0)
    url = f"{base_url.rstrip('/')}/{spec.path}"
    return {
        "Conventions": "CF-1.8",
        "GDAL_AREA_OR_POINT": "Area",
        "author": "firnline's sample writer",
        "autoRIFT_parameter_file": "none: synthetic",
        "comment": SYNTHETIC,
        "datacube_software_version": "firnline sample 1",
        "date_created": "20-Jun-2025 00:14:51",
        "date_updated": "20-Jun-2025 00:14:51",
        "geo_polygon": str(spec.lonlat_ring),
        "institution": "None. " + SYNTHETIC,
        "latitude": round(lat, 2),
        "longitude": round(lon, 2),
        "proj_polygon": str(spec.ring),
        "projection": str(spec.epsg),
        "s3": f"s3://synthetic/{spec.path}",
        "skipped_granules": url.removesuffix(".zarr") + ".json",
        "summary": f"{count} invented image pairs of an analytic outlet glacier. {SYNTHETIC}",
        "time_standard_img1": "UTC",
        "time_standard_img2": "UTC",
        "title": "SYNTHETIC ITS_LIVE-like datacube of image pair velocities",
        "url": url,
    }


def _centres(
    low: float, high: float, phase: float, edge: Callable[[float], float]
) -> npt.NDArray[np.float64]:
    """Pixel centres of a tile's side, ascending; `edge` rounds to the lattice as the producers do.

    The first cell edge is not west and not north of the tile's (see ``grid_of_tile`` in
    ``firnline.items``), so that tiles abut though their sides are no multiples of the spacing.
    """
    first, last = edge(low / SPACING), edge(high / SPACING)
    return phase + SPACING * np.arange(first, last, dtype=np.float64)
