"""Composites of a plan: tile by tile as the image pairs come, then into one store.

A tile's composites wait in a file of their own, its checkpoint, until all tiles are there; the
store is then put together block by block, so that memory knows nothing of the area's size.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from firnline.arrays import instants
from firnline.cache import store
from firnline.cache.bucket import BucketPath
from firnline.cache.composite import CLIP, Composite, composite
from firnline.cache.new_store import create_fields
from firnline.cache.periods import Period, as_arrays, periods
from firnline.cache.places import Place
from firnline.cache.plan import Plan, Tile
from firnline.errors import SourceMissingError, TooLargeError

Raw = np.ndarray[Any, np.dtype[Any]]

_PART_PIXELS = 2000  # of a tile, composited at a time: fewer are not worth their overhead

_SPEED = {"units": "meter/year"}
_COUNT = {"units": "1"}
_DATE = {"units": "days since 1970-01-01", "calendar": "proleptic_gregorian"}


def _component(axis: str) -> dict[str, dict[str, str]]:
    standard_name = f"land_ice_surface_{axis}_velocity"
    return {
        f"v{axis}": {
            "standard_name": standard_name,
            "long_name": f"velocity along {axis} of the grid",
            "ancillary_variables": f"v{axis}_error count",
            **_SPEED,
        },
        f"v{axis}_error": {
            "standard_name": f"{standard_name} standard_error",
            "long_name": f"standard error of v{axis}",
            **_SPEED,
        },
    }


FIELDS: Mapping[str, Mapping[str, str]] = {
    "v": {
        "long_name": "speed, from the composited components",
        "ancillary_variables": "v_error count",
        **_SPEED,
    },
    "v_error": {"long_name": "standard error of the speed", **_SPEED},
    **_component("x"),
    **_component("y"),
    "dispersion": {"long_name": "scatter of the image pairs about the composite", **_SPEED},
    "count": {
        "standard_name": "number_of_observations",
        "long_name": "image pairs used",
        **_COUNT,
    },
    "rejected": {"long_name": "image pairs left out as outliers", **_COUNT},
    "too_long": {
        "long_name": "image pairs left out for the distance that the ice moves between them",
        **_COUNT,
    },
    "mean_date": {"long_name": "weighted mean of the middles of the image pairs", **_DATE},
    "first_date": {"long_name": "earliest first image of the pairs used", **_DATE},
    "last_date": {"long_name": "latest second image of the pairs used", **_DATE},
}
"""CF attributes of the composite's fields, by name; the fields are those of :class:`Composite`."""

_METHODS = {
    "median": "weighted median of the image pairs; dispersion is 1.4826 times their weighted "
    "median absolute deviation",
    "mean": "weighted mean of the image pairs; dispersion is their weighted standard deviation",
}


def planned_periods(plan: Plan) -> tuple[Period, ...]:
    """The periods of a plan's composites: those of the calendar in which mid-dates lie.

    ``all`` reaches from the first image to the last.
    """
    spec = plan.request.composite
    if spec is None:
        return ()
    first, last = plan.layers.mid_date[[0, -1]]
    if spec == "all":
        dates = np.stack(_dates(plan))
        first, last = np.nanmin(dates), np.nanmax(dates)
    return periods(spec, first, last + np.timedelta64(1, "us"))


def check_periods(plan: Plan, max_bytes: int) -> None:
    """Refuse composites that are larger than `max_bytes`, as a map a day of forty years.

    Raises
    ------
    TooLargeError
    """
    spec = plan.request.composite
    if spec in (None, "all"):
        return
    count = len(planned_periods(plan))
    size = count * math.prod(plan.shape[1:]) * 4 * len(FIELDS)
    if size > max_bytes:
        raise TooLargeError(
            f"composites of {count:,} periods, {spec} each, would take {size / 1e9:.1f} GB; this "
            f"installation accepts {max_bytes / 1e9:.1f} GB (FIRNLINE_MAX_JOB_BYTES): ask for "
            "longer periods"
        )


def composite_tile(
    plan: Plan, vx: Raw, vy: Raw, spans: tuple[Period, ...], processors: Executor
) -> Composite:
    """Composite a tile ``(layer, y, x)``, some rows at a time: pixels know nothing of each other.

    Raises
    ------
    SourceMissingError
        The cubes do not say when their images were taken.
    """
    date1, date2 = _dates(plan)

    def part(rows: slice) -> Composite:
        return composite(
            vx[:, rows],
            vy[:, rows],
            _sigma(plan, "vx"),
            _sigma(plan, "vy"),
            date1,
            date2,
            spans,
            method=plan.request.composite_method,
            max_displacement=plan.request.max_displacement,
            missing=int(plan.array("vx").missing),
        )

    step = -(-_PART_PIXELS // vx.shape[2])
    parts = list(processors.map(part, (slice(n, n + step) for n in range(0, vx.shape[1], step))))
    return Composite(
        *(np.concatenate([getattr(p, f.name) for p in parts], axis=1) for f in fields(Composite))
    )


def _dates(plan: Plan) -> list[Raw]:
    """When the two images of each layer were taken."""
    dates = []
    for name in ("acquisition_date_img1", "acquisition_date_img2"):
        if name not in plan.layers.per_pair:
            raise SourceMissingError(
                f"{plan.cubes[0].source.url} has no {name}, which composites need"
            )
        array = next(c.layout.arrays[name] for c in plan.cubes if name in c.layout.arrays)
        dates.append(instants(plan.layers.per_pair[name], array))
    return dates


def _sigma(plan: Plan, variable: str) -> Raw:
    """Standard error of each layer; NaN, for `composite` to deal with, where there is none."""
    values = plan.layers.per_pair.get(f"{variable}_error")
    return np.full(len(plan.layers), np.nan, np.float32) if values is None else values


def keep_tile(tiles: Place, tile: Tile, found: Composite) -> None:
    """Put a tile's composites into its file, which is there as a whole or not at all."""
    name = f"{tile.index}.npz"
    if isinstance(tiles, BucketPath):
        with tempfile.NamedTemporaryFile() as aside:
            np.savez(aside, allow_pickle=False, **asdict(found))
            aside.flush()
            (tiles / name).upload(Path(aside.name))
        return
    tiles.mkdir(exist_ok=True)
    aside_ = tiles / f"{tile.index}.{os.getpid()}.partial"
    with aside_.open("wb") as out:
        np.savez(out, allow_pickle=False, **asdict(found))
    aside_.rename(tiles / name)


def write_composites(plan: Plan, work: Path, tiles: Path, spans: tuple[Period, ...]) -> None:
    """Put the tiles' composites, which are in the folder `tiles`, together into one store."""
    method = plan.request.composite_method
    limit = plan.request.max_displacement
    attributes: dict[str, Any] = {
        "title": "Velocity composites of ITS_LIVE image pairs, by firnline",
        "source": plan.attribution,
        "composite_period": plan.request.composite,
        "composite_method": method,
        "comment": f"{_METHODS[method]}. Weights: the part of a pair's span that lies in the "
        "period, over its stated error squared, component by component. Left out as outliers: "
        f"pairs farther from the median than {CLIP} robust standard deviations and {CLIP} of their "
        "own errors, in one of the components",
    }
    if limit is not None:
        attributes["max_displacement_m"] = limit
    described = {
        name: ("u4" if about["units"] == "1" else "f4", about) for name, about in FIELDS.items()
    }
    path = work / store.COMPOSITE
    create_fields(
        path,
        described,
        format=plan.request.format,
        geobox=plan.geobox,
        axes=(plan.x, plan.y),
        periods=as_arrays(spans),
        attributes=attributes,
    )
    for block in store.field_blocks((len(spans), *plan.shape[1:])):
        for name, values in _block(plan, tiles, block, described).items():
            store.write_field(path, name, values, block)


def _block(
    plan: Plan, folder: Path, block: store.Block, described: Mapping[str, tuple[str, Any]]
) -> dict[str, Raw]:
    """A block of every field, put together from the tiles that it meets."""
    times, rows, columns = block
    shape = tuple(part.stop - part.start for part in block)
    whole = {name: np.empty(shape, dtype) for name, (dtype, _) in described.items()}
    for tile in plan.tiles:
        high, wide = _meeting(rows, tile.rows), _meeting(columns, tile.columns)
        if high is None or wide is None:
            continue
        (to_rows, from_rows), (to_columns, from_columns) = high, wide
        with np.load(folder / f"{tile.index}.npz", allow_pickle=False) as part:
            for name, values in whole.items():
                values[:, to_rows, to_columns] = part[name][times, from_rows, from_columns]
    return whole


def _meeting(wanted: slice, had: slice) -> tuple[slice, slice] | None:
    """Where two ranges meet, counted from the start of each."""
    start, stop = max(wanted.start, had.start), min(wanted.stop, had.stop)
    if start >= stop:
        return None
    return (
        slice(start - wanted.start, stop - wanted.start),
        slice(start - had.start, stop - had.start),
    )
