"""Composites of one tile, beside what one writes with numpy or xarray, in one run.

A synthetic tile (an analytic glacier seen by image pairs, two thirds missing and more where scenes
end), its velocities in memory; yearly composites, and monthly ones. Each method runs in a process
of its own:

numpy   weighted median, its deviation and rejection, component by component: ``argsort`` along
        time, ``take_along_axis``, ``cumsum``; float32, a few rows at a time
xarray  ``groupby`` of the mid-dates' year or month, ``median``: no weights, no errors, no rejection
median  firnline's weighted median with errors, counts and dates, in as many threads as processors
mean    firnline's weighted mean with the same
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _measure
import numpy as np

PERIODS = ("P1Y", "P1M")
GAP = -32767


def tile(folder: Path, pairs: int, shape: tuple[int, int]) -> None:
    """Write the tile's arrays; pairs have dates, errors and gaps as the sample's cubes have."""
    from firnline.indexer.flow import FlowField
    from firnline.indexer.sample_cube import SPACING, CubeContent, observe
    from firnline.indexer.sample_pairs import PairMaker

    height, width = shape
    x, y = SPACING * np.arange(width), -SPACING * np.arange(height)
    extent = (x[0], y[-1], x[-1], y[0])
    maker = PairMaker(np.random.default_rng(1), "http://none", "2014-01-01", "2023-12-31", 0.66)
    found = maker.make(pairs, "22W", extent)
    flow = FlowField(origin=(float(x.mean()), float(y.mean())))
    content = CubeContent(found, flow, noise=1.0, seed=(1,), variables=("vx", "vy"))
    ground = (x, y, *flow.velocity(*np.meshgrid(x, y)))
    values = {name: np.empty((pairs, height, width), np.int16) for name in ("vx", "vy")}
    rng = np.random.default_rng(2)
    for start in range(0, pairs, 500):
        part = slice(start, min(start + 500, pairs))
        seen = observe(found, content, part, ground, rng)
        for name in values:
            values[name][part] = seen[name]
    dates = {
        f"date{n}": (found.columns[f"acquisition_date_img{n}"] * 86_400e9).astype("M8[ns]")
        for n in (1, 2)
    }
    errors = {f"{name}_error": found.columns[f"{name}_error"] for name in values}
    for name, array in (values | dates | errors).items():
        np.save(folder / f"{name}.npy", array)


def read(folder: str) -> tuple[Any, ...]:
    names = ("vx", "vy", "vx_error", "vy_error", "date1", "date2")
    return tuple(np.load(Path(folder) / f"{name}.npy") for name in names)


def spans(spec: str, date1: Any, date2: Any) -> Any:
    from firnline.cache.periods import periods

    middle = date1 + (date2 - date1) // 2
    return periods(spec, middle.min(), middle.max() + np.timedelta64(1, "us"))


def firnline(folder: str, spec: str, method: Any) -> dict[str, Any]:
    from firnline.cache.composite import composite

    vx, vy, *of_pairs = read(folder)
    found = spans(spec, *of_pairs[2:])
    with ThreadPoolExecutor(os.cpu_count()) as processors:
        list(
            processors.map(
                lambda n: composite(
                    vx[:, n : n + 20], vy[:, n : n + 20], *of_pairs, found, method=method
                ),
                range(0, vx.shape[1], 20),
            )
        )
    return {}


def plain_numpy(folder: str, spec: str) -> dict[str, Any]:
    from firnline.cache.periods import overlap

    vx, vy, sx, sy, date1, date2 = read(folder)

    def median(values: Any, weights: Any) -> Any:
        order = np.argsort(values, axis=0)
        cumulated = np.cumsum(np.take_along_axis(weights, order, axis=0), axis=0)
        nth = (cumulated < cumulated[-1] / 2).sum(axis=0)
        nth = np.minimum(nth, len(values) - 1)[None]
        return np.take_along_axis(values, np.take_along_axis(order, nth, axis=0), axis=0)[0]

    for share in overlap(spans(spec, date1, date2), date1, date2):
        pairs = np.flatnonzero(share > 0)
        o = share[pairs][:, None, None]
        for row in range(0, vx.shape[1], 5):
            for v, s in ((vx, sx), (vy, sy)):
                sigma = s[pairs][:, None, None]
                values = v[:, row : row + 5][pairs].astype(np.float32)
                there = values != GAP
                values[~there] = np.inf
                weights = there * o
                middle = median(values, weights)
                with np.errstate(invalid="ignore"):
                    off = np.abs(values - middle)
                    off[~there] = np.inf
                    limit = 3.5 * np.maximum(1.4826 * median(off, weights), sigma)
                weights = (off <= limit) * o / sigma**2
                value = median(values, weights)
                with np.errstate(invalid="ignore"):
                    off = np.abs(values - value)
                    off[~there] = np.inf
                    median(off, weights)
    return {}


def plain_xarray(folder: str, spec: str) -> dict[str, Any]:
    import xarray as xr

    vx, vy, _, _, date1, date2 = read(folder)
    middle = date1 + (date2 - date1) // 2
    key = middle.astype("M8[Y]" if spec == "P1Y" else "M8[M]").astype(np.int64)
    for values in (vx, vy):
        array = xr.DataArray(values, dims=("mid_date", "y", "x"), coords={"key": ("mid_date", key)})
        array.where(array != GAP).groupby("key").median()
    return {}


METHODS = {
    "numpy": plain_numpy,
    "xarray": plain_xarray,
    "median": lambda folder, spec: firnline(folder, spec, "median"),
    "mean": lambda folder, spec: firnline(folder, spec, "mean"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="2,000 pairs, 40 x 50 pixels")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--period", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        _measure.report(lambda: METHODS[options.method](options.folder, options.period))
        return
    pairs, shape = (2_000, (40, 50)) if options.quick else (12_000, (80, 100))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tile(Path(folder), pairs, shape)
        for period in PERIODS:
            rows = {
                method: _measure.measure(__file__, method, "--folder", folder, "--period", period)
                for method in METHODS
            }
            for row in rows.values():
                row["time_ratio"] = row["seconds"] / rows["numpy"]["seconds"]
                row["cpu_ratio"] = row["cpu_seconds"] / rows["numpy"]["cpu_seconds"]
                row["memory_ratio"] = row["peak_mb"] / rows["numpy"]["peak_mb"]
            results[f"{period}, {pairs:,} pairs, {shape[0]} x {shape[1]} pixels"] = rows
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for name, rows in results.items():
        print(f"\n{name}")
        columns = {"seconds": ".2f", "cpu_seconds": ".2f", "peak_mb": ".0f"}
        ratios = {"time_ratio": ".2f", "cpu_ratio": ".2f", "memory_ratio": ".2f"}
        _measure.table(rows, columns | ratios)


if __name__ == "__main__":
    main()
