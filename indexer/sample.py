"""A small, openly synthetic ITS_LIVE, laid out like the bucket ``its-live-data``.

What the demo, the tests and the benchmarks read, over loopback HTTP
(:mod:`firnline.indexer.mirror`) or from disk. The formats are those of the real thing, traps
included; the ice is :class:`firnline.indexer.flow.FlowField`, so every answer is known. Every file
says that it is synthetic.

Which pixels of a cube are wanted decides what is written: :func:`write_mirror` makes four small
adjacent cubes of EPSG:3413, one of EPSG:32622 over them, and the mosaics, and when asked a cube of
the coming version 2.2 to the east of them (:mod:`firnline.indexer.sample_shards`);
:func:`write_scale_cubes` makes two cubes of the real size, of which only the chunks of one area
exist on disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from pyproj import Transformer

from firnline.errors import InputError
from firnline.indexer.flow import FlowField
from firnline.indexer.sample_cube import (
    SPACING,
    SYNTHETIC,
    VARIABLES,
    Bounds,
    CubeContent,
    CubeSpec,
    write_cube,
)
from firnline.indexer.sample_mosaics import REGION, write_mosaics
from firnline.indexer.sample_pairs import PairMaker, Pairs, join
from firnline.indexer.sample_shards import SIDE, write_sharded_cube
from firnline.indexer.sample_zarr import SPACE_CHUNK

CATALOG_PATH = "datacubes/catalog_v02.json"
MOSAIC_PATH = "velocity_mosaic"
YEARS = (2018, 2019, 2020)
CUBES = ("nw", "ne", "sw", "se", "utm")
CENTRE = (-170_000.0, -2_280_000.0)
"""The corner in EPSG:3413 that the four cubes share."""
UTM = 32622
_SQUARE = 12  # chunks
ABSENT = ((2, 3), (2, 4))
"""Columns of chunks (row, column) that do not exist in the cube ``se``."""
ABSENT_22 = ((4, 1), *((row, column) for row in range(8, 12) for column in range(4)))
"""The same in the cube of version 2.2: one in a shard, and all of another shard."""


@dataclass(frozen=True)
class CubeRecord:
    """A cube of the sample."""

    name: str
    """Stem of the zarr: the id of its item."""
    epsg: int
    bounds: Bounds
    """left, bottom, right, top of the tile in the cube's CRS."""
    path: str
    """Path below the root."""
    shape: tuple[int, int, int]
    """(mid_date, y, x)."""
    granules: tuple[str, ...] = field(repr=False)
    """Basenames of the granules in the cube's order."""
    absent: tuple[tuple[int, int], ...] = ()
    """Chunk rows and columns whose 3-D chunks are missing on disk, on purpose."""
    version: str = "2"
    """``2`` or ``2.2``; chunks have 10 pixels a side in the former and 8 in the latter."""

    @property
    def pairs(self) -> int:
        """Number of image pairs."""
        return self.shape[0]


@dataclass(frozen=True)
class Mirror:
    """What was written, and the answers to it."""

    root: Path
    base_url: str
    catalog: Path
    """The catalog's file; its URL is :attr:`catalog_url`."""
    cubes: tuple[CubeRecord, ...]
    flow: FlowField
    aoi: Bounds
    """left, bottom, right, top in EPSG:3413 of an area that straddles cubes."""
    region: str | None
    """RGI region of the mosaics; None without mosaics."""
    years: tuple[int, ...]
    shared: frozenset[str] = field(repr=False)
    """Granules that lie in more than one cube."""

    @property
    def catalog_url(self) -> str:
        """URL of the catalog below the base URL."""
        return f"{self.base_url}/{CATALOG_PATH}"

    @property
    def mosaic_root(self) -> str:
        """URL of the mosaics below the base URL."""
        return f"{self.base_url}/{MOSAIC_PATH}"

    def url(self, cube: CubeRecord) -> str:
        """URL of a cube, as the catalog has it."""
        return f"{self.base_url}/{cube.path}"


def write_mirror(
    root: Path,
    base_url: str,
    *,
    pairs: int = 240,
    tile: float = 10_000.0,
    start: str = "2017-01-01",
    end: str = "2020-12-31",
    seed: int = 0,
    noise: float = 1.0,
    missing: float = 0.7,
    cubes: Sequence[str] = CUBES,
    mosaics: bool = True,
    generation_22: bool = False,
) -> Mirror:
    """Write the sample: catalog, cubes and mosaics.

    Parameters
    ----------
    root : Path
        The directory that stands for the bucket; what the sample writes is replaced.
    base_url : str
        URL that `root` is or will be served under; the catalog's URLs begin with it.
    pairs : int
        Image pairs a cube, at least 16. Half are shared with the neighbours to the east or west,
        three eighths with all four; the cube of EPSG:32622 shares none.
    tile : float
        Side of a cube in metres. Where it is no multiple of 120, the widths alternate.
    start, end : str
        ISO dates that all images lie between.
    seed : int
        The same arguments make the same bytes.
    noise : float
        Standard deviation of the noise over the error that a pair reports; 0 leaves rounding.
    missing : float
        Mean share of pixels without data, below 1.
    cubes : sequence of str
        Which of ``nw, ne, sw, se, utm`` to write.
    mosaics : bool
        Whether to write the mosaics.
    generation_22 : bool
        Whether to write a cube of version 2.2 as well, which abuts ``ne`` and ``se`` to the east
        of both and shares three eighths of its pairs with them.

    Returns
    -------
    Mirror

    Raises
    ------
    InputError
        An argument is out of its range.
    """
    _check(pairs, missing, noise)
    if not cubes or not set(cubes) <= set(CUBES):
        raise InputError(
            f"cubes must be among {', '.join(CUBES)}, not {', '.join(cubes) or 'none'}"
        )
    x, y = CENTRE
    flow = FlowField(origin=CENTRE)
    whole = (x - tile, y - tile, x + tile, y + tile)
    tiles = {
        "nw": (x - tile, y, x, y + tile),
        "ne": (x, y, x + tile, y + tile),
        "sw": (x - tile, y - tile, x, y),
        "se": (x, y - tile, x + tile, y),
    }
    specs = {name: _spec(3413, bounds) for name, bounds in tiles.items()}
    ux, uy = Transformer.from_crs(3413, UTM, always_xy=True).transform(x, y)
    left, bottom = np.floor(ux / tile) * tile, np.floor(uy / tile) * tile
    over = (float(left), float(bottom), float(left + tile), float(bottom + tile))
    specs["utm"] = _spec(UTM, over)

    maker = PairMaker(np.random.default_rng((seed, 7)), base_url, start, end, missing)
    everywhere = maker.make(3 * pairs // 8, "22W", whole)
    rows = {k: maker.make(pairs // 2 - 3 * pairs // 8, "22W", whole) for k in "ns"}
    own = pairs - pairs // 2
    filled: dict[str, Pairs] = {}
    twinned: Pairs | None = None
    for name in tiles:
        fresh = maker.make(own, "22W", whole)
        if twinned is not None:
            # Some instants of a neighbour, as other granules: equal mid_date, not the same pair.
            twins = maker.twins(twinned, max(1, own // 20), "22W", whole)
            fresh = join([fresh.take(np.arange(own - len(twins))), twins])
        filled[name] = join([everywhere, rows[name[0]], fresh])
        twinned = fresh
    filled["utm"] = maker.make(pairs, "22W", over)

    base_url = base_url.rstrip("/")
    records = []
    for number, name in enumerate(CUBES):
        if name not in cubes:
            continue
        order = np.random.default_rng((seed, 11, number)).permutation(len(filled[name]))
        absent = ABSENT if name == "se" else ()
        content = CubeContent(
            pairs=filled[name].take(order),
            flow=flow,
            noise=noise,
            seed=(seed, number),
            absent=frozenset(absent),
        )
        write_cube(root, specs[name], content, base_url)
        records.append(_record(specs[name], content.pairs, absent))
    if generation_22:
        side = SIDE * SPACING
        spec = _spec(3413, (x + tile, y - side / 2, x + tile + side, y + side / 2), "2.2")
        mixed = join([everywhere, maker.make(pairs - len(everywhere), "22W", spec.bounds)])
        order = np.random.default_rng((seed, 11, len(CUBES))).permutation(len(mixed))
        content = CubeContent(
            pairs=mixed.take(order),
            flow=flow,
            noise=noise,
            seed=(seed, len(CUBES)),
            absent=frozenset(ABSENT_22),
        )
        write_sharded_cube(root, spec, content, base_url)
        records.append(_record(spec, content.pairs, ABSENT_22, "2.2"))
    if mosaics:
        extent = _spec(3413, whole)
        write_mosaics(root, flow, extent.x, extent.y, YEARS)
    reach = 0.42 * tile
    return _finish(
        root, base_url, records, flow, (x - reach, y - reach, x + reach, y + reach), mosaics
    )


def write_scale_cubes(
    root: Path,
    base_url: str,
    *,
    pairs: int = 8_000,
    window: tuple[int, int] = (80, 100),
    start: str = "2014-01-01",
    end: str = "2023-12-31",
    seed: int = 0,
    noise: float = 1.0,
    missing: float = 0.66,
    variables: Sequence[str] = ("vx", "vy", "v_error"),
    thinned: int = 1,
) -> Mirror:
    """Write two adjacent cubes of the real size, for benchmarks.

    The tiles are 100 km wide (833 or 834 pixels); of the 3-D variables only the chunks that an
    area across the common edge touches exist, so they need little disk. All per-pair variables
    are there. No mosaics.

    Parameters
    ----------
    root, base_url, start, end, seed, noise, missing
        As for :func:`write_mirror`.
    pairs : int
        Image pairs a cube; half of them lie in both.
    window : tuple of int
        Rows and columns of the area, in pixels of 120 m; :attr:`Mirror.aoi` has its bounds.
    variables : sequence of str
        3-D variables to write.
    thinned : int
        Of the squares of 12 x 12 chunks, one in so many exists: a large area in little disk, as
        dense as any where there is something.

    Returns
    -------
    Mirror

    Raises
    ------
    InputError
        An argument is out of its range.
    """
    _check(pairs, missing, noise)
    if not set(variables) <= set(VARIABLES):
        raise InputError(f"variables must be among {', '.join(VARIABLES)}")
    specs = [
        _spec(3413, (-300_000.0, -2_300_000.0, -200_000.0, -2_200_000.0)),
        _spec(3413, (-200_000.0, -2_300_000.0, -100_000.0, -2_200_000.0)),
    ]
    height, width = window
    most = len(specs[0].y)
    if not (0 < height <= most and 0 < width <= most):
        raise InputError(f"window must be 1 to {most} pixels a side, not {window}")
    # The area's edges lie on pixel edges: half of its columns in each cube.
    left = float(specs[1].x[0]) - SPACING / 2 - (width // 2) * SPACING
    top = float(specs[0].y[min(400, most - height)]) + SPACING / 2
    aoi = (left, top - height * SPACING, left + width * SPACING, top)
    flow = FlowField(origin=((aoi[0] + aoi[2]) / 2, (aoi[1] + aoi[3]) / 2))
    maker = PairMaker(np.random.default_rng((seed, 7)), base_url, start, end, missing)
    common = maker.make(pairs // 2, "22W", aoi)
    base_url = base_url.rstrip("/")
    records = []
    for number, spec in enumerate(specs):
        mixed = join([common, maker.make(pairs - pairs // 2, "22W", aoi)])
        order = np.random.default_rng((seed, 11, number)).permutation(pairs)
        rows = np.flatnonzero((spec.y > aoi[1]) & (spec.y < aoi[3])) // SPACE_CHUNK
        cols = np.flatnonzero((spec.x > aoi[0]) & (spec.x < aoi[2])) // SPACE_CHUNK
        content = CubeContent(
            pairs=mixed.take(order),
            flow=flow,
            noise=noise,
            seed=(seed, number),
            variables=tuple(variables),
            only=frozenset(
                (int(i), int(j))
                for i in set(rows)
                for j in set(cols)
                if (3 * (i // _SQUARE) + j // _SQUARE) % thinned == 0
            ),
        )
        write_cube(root, spec, content, base_url)
        records.append(_record(spec, content.pairs, ()))
    return _finish(root, base_url, records, flow, aoi, mosaics=False)


def write_tiles(
    root: Path,
    base_url: str,
    tiles: Sequence[tuple[int, Bounds]],
    *,
    flow: FlowField,
    sharded: Collection[int] = (),
    pairs: int = 24,
    start: str = "2017-01-01",
    end: str = "2020-12-31",
    seed: int = 0,
    noise: float = 1.0,
    missing: float = 0.5,
    variables: Sequence[str] = VARIABLES,
) -> Mirror:
    """Write small cubes anywhere, of any CRS: apart, side by side, or one over the other.

    Half of a cube's pairs lie in all cubes of its CRS; where cubes overlap, they agree on those
    up to their noise. No mosaics, and all chunks exist.

    Parameters
    ----------
    root, base_url, start, end, seed, noise, missing
        As for :func:`write_mirror`.
    variables : sequence of str
        3-D variables to write.
    tiles : sequence of (int, tuple of float)
        EPSG code and left, bottom, right, top of each cube, no two of one centre.
    flow : FlowField
        What all of them see.
    sharded : collection of int
        Which of the tiles are of version 2.2; those of version 2 have a saturated blunder each.
    pairs : int
        Image pairs a cube.

    Returns
    -------
    Mirror
        Its area is the first tile.

    Raises
    ------
    InputError
        An argument is out of its range.
    """
    _check(pairs, missing, noise)
    maker = PairMaker(np.random.default_rng((seed, 7)), base_url, start, end, missing)
    base_url = base_url.rstrip("/")
    common: dict[int, Pairs] = {}
    records = []
    for number, (epsg, bounds) in enumerate(tiles):
        sides = np.array([sides for code, sides in tiles if code == epsg])
        whole = (*sides[:, :2].min(axis=0), *sides[:, 2:].max(axis=0))
        if epsg not in common:
            common[epsg] = maker.make(pairs // 2, "22W", whole)
        mixed = join([common[epsg], maker.make(pairs - pairs // 2, "22W", whole)])
        order = np.random.default_rng((seed, 11, number)).permutation(pairs)
        content = CubeContent(
            pairs=mixed.take(order), flow=flow, noise=noise, seed=(seed, number),
            variables=tuple(variables), blunders=1,
        )  # fmt: skip
        version = "2.2" if number in sharded else "2"
        spec = _spec(epsg, bounds, version)
        write = write_sharded_cube if number in sharded else write_cube
        write(root, spec, content, base_url)
        records.append(_record(spec, content.pairs, (), version))
    return _finish(root, base_url, records, flow, tiles[0][1], mosaics=False)


def _check(pairs: int, missing: float, noise: float) -> None:
    if pairs < 16:
        raise InputError(f"pairs must be at least 16, not {pairs}")
    if not 0.0 <= missing < 1.0:
        raise InputError(f"missing must be at least 0 and below 1, not {missing}")
    if noise < 0.0:
        raise InputError(f"noise must not be negative, not {noise}")


def _spec(epsg: int, bounds: Bounds, version: str = "2") -> CubeSpec:
    left, bottom, right, top = bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    # The bucket's folders are bins of ten degrees, cut toward zero.
    folder = (
        f"{'N' if lat >= 0 else 'S'}{int(abs(lat) / 10) * 10:02d}"
        f"{'E' if lon >= 0 else 'W'}{int(abs(lon) / 10) * 10:03d}"
    )
    name = f"ITS_LIVE_vel_EPSG{epsg}_G0120_X{x:.0f}_Y{y:.0f}.zarr"
    place = f"datacubes/v{version}/{folder}" if version == "2" else f"timeseries/v{version}"
    return CubeSpec(epsg, bounds, f"{place}/{name}")


def _record(
    spec: CubeSpec, pairs: Pairs, absent: tuple[tuple[int, int], ...], version: str = "2"
) -> CubeRecord:
    return CubeRecord(
        name=Path(spec.path).stem,
        epsg=spec.epsg,
        bounds=spec.bounds,
        path=spec.path,
        shape=(len(pairs), len(spec.y), len(spec.x)),
        granules=tuple(str(g) for g in pairs.granule),
        absent=absent,
        version=version,
    )


def _finish(
    root: Path,
    base_url: str,
    records: list[CubeRecord],
    flow: FlowField,
    aoi: Bounds,
    mosaics: bool,
) -> Mirror:
    seen: set[str] = set()
    shared: set[str] = set()
    for record in records:
        shared |= seen.intersection(record.granules)
        seen.update(record.granules)
    catalog = root / CATALOG_PATH
    catalog.parent.mkdir(parents=True, exist_ok=True)
    features = [
        _feature(
            _spec(record.epsg, record.bounds, record.version), base_url, record.pairs, coverage
        )
        for record, coverage in zip(records, cycle((100.24, 99.1, 97.35, 88.02, 41.7)))
    ]
    # A tile that is planned and has no cube: to be skipped.
    left, bottom, right, top = records[0].bounds
    unmade = _spec(records[0].epsg, (2 * left - right, bottom, left, top))
    features.append(_feature(unmade, base_url, 0, 0.5))
    document = {
        "type": "FeatureCollection",
        "name": "catalog_v02",
        "synthetic": True,
        "description": SYNTHETIC,
        "features": features,
    }
    catalog.write_text(json.dumps(document, indent=1))
    return Mirror(
        root=root,
        base_url=base_url,
        catalog=catalog,
        cubes=tuple(records),
        flow=flow,
        aoi=aoi,
        region=REGION if mosaics else None,
        years=YEARS if mosaics else (),
        shared=frozenset(shared),
    )


def _feature(spec: CubeSpec, base_url: str, count: int, coverage: float) -> dict[str, Any]:
    return {
        "type": "Feature",
        "properties": {
            "fill-opacity": 1.0 - coverage / 100.0,  # negative where the coverage is above 100
            "fill": "red",
            "roi_percent_coverage": coverage,
            "geometry_epsg": {"type": "Polygon", "coordinates": [spec.ring]},
            "datacube_exist": int(count > 0),
            "zarr_url": f"{base_url}/{spec.path}",
            "epsg": spec.epsg,
            # Stale, as in the real one: the cube has grown since.
            "granule_count": count - count // 28,
            "FULL_NAME": "Greenland Periphery",
            "RGI_CODE": 5,
            "composite_zarr_url": "",
        },
        "geometry": {"type": "Polygon", "coordinates": [spec.lonlat_ring]},
    }
