"""Strain rates and resampled vectors: time against what the memory, GDAL and strain_tools take.

floor        the memory-bandwidth floor: two float32 grids read and nine written, on all cores
plane ...    nine fields of the same grid by `strain_rates`, by method and half length in pixels
gaps         the same with 5 % of the pixels missing, scattered
strain_tools logarithmic rates by glacier-strain-tools (needs the `test` extra), and ours, on a
             smaller grid, where it needs no minutes
gdal         image-pair layers (int16) of a UTM cube on the grid of EPSG:3413, two components, by
             rasterio's reproject, which turns no vector; and by `plan_resampling`

    python benchmarks/strain.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from _measure import table
from affine import Affine
from odc.geo.geobox import GeoBox

from firnline.cache.strain import strain_rates
from firnline.cache.vectors import plan_resampling

NINE = ["exx", "eyy", "exy", "e1", "e2", "effective", "longitudinal", "shear", "divergence"]
GRID = {"dx": 120.0, "dy": -120.0, "fields": NINE}
ROUNDS = 5


def velocity(size: int) -> tuple[Any, Any]:
    """An ice stream with margins that turns, and 2 m/year of noise."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(120)
    speed = 20 + 3000 / (1 + ((y - 60 * size) / 8000) ** 2)
    noise = np.random.default_rng(0).normal(0, 2, (2, size, size)).astype(np.float32)
    return speed * np.cos(x / 30_000) + noise[0], speed * np.sin(x / 30_000) + noise[1]


def best(action: Callable[[], Any], rounds: int = ROUNDS) -> float:
    return beside(action, rounds=rounds)[0]["seconds"]


def beside(*actions: Callable[[], Any], rounds: int = ROUNDS) -> list[dict[str, float]]:
    """Least wall and CPU seconds of each, taken in turns: other work comes and goes for all."""
    least = [{"seconds": float("inf"), "cpu_seconds": float("inf")} for _ in actions]
    for _ in range(rounds):
        for action, found in zip(actions, least, strict=True):
            start, cpu = time.perf_counter(), time.process_time()
            action()
            taken = {
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
            }
            found.update({key: min(found[key], value) for key, value in taken.items()})
    return least


def floor(u: Any, v: Any) -> None:
    """Read what strain rates read and write what they write, and compute nothing to speak of."""
    out = [np.empty_like(u) for _ in NINE]

    def block(row: int) -> None:
        rows = slice(row, row + 32)
        for field in out:
            np.add(u[rows], v[rows], out=field[rows])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(block, range(0, len(u), 32)):
            pass


def temporaries_mb(u: Any, v: Any, **how: Any) -> float:
    """Most memory that was taken at a time besides the fields that are returned."""
    tracemalloc.start()
    fields = strain_rates(u, v, **GRID, **how)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - sum(field.nbytes for field in fields.values())) / 1e6


def strain(size: int) -> dict[str, dict[str, Any]]:
    u, v = velocity(size)
    cases: list[tuple[str, dict[str, Any]]] = [
        (f"{method} {radius}", {"method": method, "radius": radius})
        for method, radii in (("plane", (1, 2, 4)), ("nominal", (2,)), ("logarithmic", (1, 4, 12)))
        for radius in radii
    ]
    holes = np.random.default_rng(1).random(u.shape) < 0.05
    gappy = tuple(np.where(holes, np.nan, a) for a in (u, v))
    rows: dict[str, dict[str, Any]] = {}
    floors = []
    for name, how, grids in [
        *((name, how, (u, v)) for name, how in cases),
        *((f"gaps: plane {radius}", {"radius": radius}, gappy) for radius in (1, 2, 4)),
    ]:
        lowest, rows[name] = beside(
            lambda: floor(u, v),
            lambda how=how, grids=grids: strain_rates(*grids, **GRID, **how),
        )
        rows[name] |= {
            "times_the_floor": rows[name]["seconds"] / lowest["seconds"],
            "floor_seconds": lowest["seconds"],
            "temporaries_mb": temporaries_mb(*grids, **how),
        }
        floors.append(lowest)
    least = {key: min(found[key] for found in floors) for key in floors[0]}
    return {"floor": least | {"times_the_floor": 1.0, "floor_seconds": least["seconds"]}, **rows}


def logarithmic(size: int) -> dict[str, dict[str, Any]]:
    try:
        from strain_tools.strain import logarithmic as reference
    except ImportError:
        return {}
    u, v = (a.astype(float) for a in velocity(size))
    reference(*(a[:20, :20].copy() for a in (u, v)), 120, 240)  # compiles
    rows = {}
    for radius in (1, 4, 12):
        theirs = best(lambda r=radius: reference(u, v, 120, r * 120), 1)
        ours = best(lambda r=radius: strain_rates(u, v, **GRID, radius=r, method="logarithmic"))
        rows[f"strain_tools {radius}"] = {"seconds": theirs}
        rows[f"logarithmic {radius}"] = {"seconds": ours, "times_faster": theirs / ours}
    return rows


def vectors(layers: int) -> dict[str, dict[str, Any]]:
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    source = GeoBox((834, 834), Affine(120, 0, 530_000, 0, -120, 7_730_000), "EPSG:32622")
    target = GeoBox((400, 400), Affine(120, 0, -182_000, 0, -120, -2_233_000), "EPSG:3413")
    pixels = layers * 400 * 400 / 1e6
    rows: dict[str, dict[str, Any]] = {}
    for method in ("nearest", "bilinear"):
        planning = best(lambda m=method: plan_resampling(source, target, m))
        plan = plan_resampling(source, target, method)
        whole = np.random.default_rng(0).integers(-3000, 3000, (2, layers, 834, 834), np.int16)
        whole[:, ::3] = -32767  # a third of the layers lies elsewhere
        u, v = (np.ascontiguousarray(a[:, plan.window[0], plan.window[1]]) for a in whole)
        kind = Resampling[method]

        def gdal(whole: Any = whole, kind: Any = kind) -> None:
            out = np.empty((layers, 400, 400), np.int16)
            for component in whole:
                reproject(
                    component, out, src_transform=source.affine, dst_transform=target.affine,
                    src_crs="EPSG:32622", dst_crs="EPSG:3413", src_nodata=-32767,
                    dst_nodata=-32767, resampling=kind,
                )  # fmt: skip

        theirs = best(gdal, 1)
        ours = best(lambda u=u, v=v, plan=plan: plan.vectors(u, v, missing=-32767))
        rows[f"gdal {method}"] = {"seconds": theirs, "mpx_per_s": pixels / theirs}
        rows[f"vectors {method}"] = {
            "seconds": ours, "mpx_per_s": pixels / ours, "times_faster": theirs / ours,
            "plan_seconds": planning,
        }  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="2000 x 2000 pixels, not 4000 x 4000")
    arguments = parser.parse_args()
    size, small, layers = (2000, 400, 12) if arguments.quick else (4000, 1000, 48)
    result = {
        "cores": os.cpu_count(),
        "size": size,
        "strain": strain(size),
        "size_beside_strain_tools": small,
        "logarithmic": logarithmic(small),
        "vectors": vectors(layers),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    form = {"seconds": ".3f"}
    print(f"nine fields of {size} x {size} pixels, {result['cores']} cores")
    columns = {"cpu_seconds": ".3f", "times_the_floor": ".1f", "temporaries_mb": ".0f"}
    table(result["strain"], form | columns)
    print(f"logarithmic, {small} x {small} pixels")
    if result["logarithmic"]:
        table(result["logarithmic"], form | {"times_faster": ".1f"})
    print(f"vectors of {layers} layers of 400 x 400 pixels, UTM 22 to EPSG:3413, one thread")
    table(
        result["vectors"], form | {"mpx_per_s": ".0f", "times_faster": ".1f", "plan_seconds": ".2f"}
    )


if __name__ == "__main__":
    main()
