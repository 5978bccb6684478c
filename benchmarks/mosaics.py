"""Windows of mosaics: what rasterio reads by GDAL's own /vsicurl, and what firnline reads.

Twenty-one COGs of 2400 x 2400 pixels (seven variables, three years), served over loopback with a
latency before each answer, in sixteen threads; a window of 260 x 350 pixels of each, the same
values by every method. GDAL is told what it takes to read COGs well (no side files, tiles only).

    python benchmarks/mosaics.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from _measure import table
from affine import Affine
from rasterio.windows import Window

from firnline.cache.chunk_cache import ChunkCache
from firnline.cache.cog_reader import RemoteCog
from firnline.cache.counts import Counts
from firnline.indexer.mirror import MirrorServer

ROWS, COLUMNS = slice(1000, 1260), slice(900, 1250)
FILES, THREADS, ROUNDS = 21, 16, 3
GDAL = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    "VSI_CACHE": "FALSE",
}


def write(folder: Path, side: int) -> None:
    y, x = np.mgrid[0:side, 0:side].astype("f4")
    noise = np.random.default_rng(0).normal(0, 3, (side, side)).astype("f4")
    for n in range(FILES):
        with rasterio.open(
            folder / f"{n}.tif", "w", driver="COG", height=side, width=side, count=1,
            dtype="float32", crs=3413, transform=Affine(120, 0, 0, 0, -120, 0),
            compress="deflate",
        ) as target:  # fmt: skip
            target.write(500 + 300 * np.sin(x / 90) * np.cos(y / 70) + noise + n, 1)


def gdal(url: str, n: int) -> Any:
    # each round another address, of which GDAL keeps nothing
    with rasterio.Env(**GDAL), rasterio.open(f"{url}/{n}.tif?{time.monotonic_ns()}") as source:
        return source.read(1, window=Window.from_slices(ROWS, COLUMNS))


def ours(url: str, n: int, keeper: ChunkCache | None) -> Any:
    cog = RemoteCog(f"{url}/{n}.tif", "EPSG:3413", Counts(), keeper, allowed=(f"{url}/",))
    return cog.read(ROWS, COLUMNS)


def best(server: MirrorServer, read: Callable[[int], Any]) -> tuple[dict[str, Any], list[Any]]:
    least: dict[str, Any] = {"seconds": float("inf")}
    values: list[Any] = []
    for _ in range(ROUNDS):
        server.clear()
        began, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(THREADS) as pool:
            values = list(pool.map(read, range(FILES)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        if seconds < least["seconds"]:
            least = {"seconds": seconds, "cpu_seconds": cpu, "requests": len(server.requests)}
    return least, values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "mirror").mkdir()
        write(folder / "mirror", 1400 if options.quick else 2400)
        keeper = ChunkCache(folder / "chunks", 10**9)
        for latency in (0.0, 0.03):
            with MirrorServer(folder / "mirror", latency=latency) as server:
                url = server.url
                methods: dict[str, Callable[[int], Any]] = {
                    "vsicurl": lambda n, url=url: gdal(url, n),
                    "firnline": lambda n, url=url: ours(url, n, None),
                    "firnline, kept": lambda n, url=url: ours(url, n, keeper),
                }
                reference: dict[str, Any] = {}
                for name, read in methods.items():
                    found, values = best(server, read)
                    reference = reference or {"seconds": found["seconds"], "values": values}
                    assert np.array_equal(values, reference["values"])
                    found["times_vsicurl"] = found["seconds"] / reference["seconds"]
                    rows[f"{name}, {latency * 1e3:.0f} ms"] = found
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        columns = {"seconds": ".3f", "cpu_seconds": ".3f", "requests": "d", "times_vsicurl": ".2f"}
        table(rows, columns)


if __name__ == "__main__":
    main()
