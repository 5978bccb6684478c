"""Tiles of a warm COG: CPU time of a request, beside rio-tiler's own way to the same picture.

tile        GET .../tiles/EPSG3413/..., the application called in this process, from the item in the
            database to the PNG
warped      the same in Web Mercator: read through a warp
again       a client that has it: 304
reference   rio-tiler alone: Reader.tile, rescale and render with its defaults, as titiler has it

    python benchmarks/tiles.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _measure import table
from affine import Affine
from pyproj import Transformer
from rio_tiler.colormap import cmap
from rio_tiler.io import Reader
from shapely.geometry import box

from firnline import logs
from firnline.api.app import create_app
from firnline.api.grids import grid
from firnline.cache.raster import write_cog
from firnline.database import connect, migrate, put_collections, put_items, writing
from firnline.footprint import footprint
from firnline.items import COG, SUBSETS, item_row, to_geojson
from firnline.settings import Settings

ID, GENERATION = "subset-0123456789abcdef", "g1"
LEFT, TOP, STEP = -400_000.0, -2_000_000.0, 120.0
PERIODS = 10


def store(settings: Settings, size: int) -> Path:
    """A subset of one map of ten years, as a materialisation leaves it."""
    folder = settings.cache_dir / "subsets" / ID / GENERATION
    folder.mkdir(parents=True)
    y, x = np.mgrid[0:size, 0:size].astype("f4") / size
    noise = np.random.default_rng(0).normal(0, 20, (PERIODS, size, size))
    values = (3000 * np.exp(-(((y - 0.5) / 0.2) ** 2)) * x + noise).astype("f4")
    labels = [str(2010 + n) for n in range(PERIODS)]
    statistics = write_cog(
        folder / "v.tif", values, transform=Affine(STEP, 0, LEFT, 0, -STEP, TOP), crs="EPSG:3413",
        nodata=float("nan"), names=labels, units="meter/year", long_name="speed", tags={},
    )  # fmt: skip
    outline = footprint(box(LEFT, TOP - size * STEP, LEFT + size * STEP, TOP), "EPSG:3413")
    bands = [{"name": n, "statistics": s} for n, s in zip(labels, statistics, strict=True)]
    href = f"firnline:/files/{ID}/{GENERATION}/v.tif"
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": ID, "collection": SUBSETS,
        "geometry": to_geojson(outline), "bbox": [], "links": [],
        "properties": {"datetime": None, "start_datetime": "2010-01-01T00:00:00Z",
                       "end_datetime": "2020-01-01T00:00:00Z"},
        "assets": {"cog_v": {"href": href, "type": COG, "title": "Speed", "bands": bands}},
    }  # fmt: skip
    engine = connect(settings.database)
    migrate(engine)
    with writing(engine) as connection:
        put_collections(connection, [(SUBSETS, b"{}")])
        put_items(connection, [item_row(item, outline, source="firnline")])
    engine.dispose()
    return folder / "v.tif"


def tiles(tms: str, zoom: int, size: int, count: int) -> list[tuple[int, int, int]]:
    """Tiles that lie inside of the map, all over it."""
    where = grid(tms)
    to = Transformer.from_crs("EPSG:3413", where.rasterio_crs.to_wkt(), always_xy=True)
    shares = np.random.default_rng(1).uniform(0.1, 0.9, (count, 2))
    found = []
    for right, down in shares:
        x, y = to.transform(LEFT + right * size * STEP, TOP - down * size * STEP)
        tile = where._tile(x, y, zoom)
        found.append((tile.z, tile.x, tile.y))
    return found


def cpu_ms(action: Callable[[Any], object], things: list[Any]) -> float:
    """Median CPU milliseconds of this process for each thing, once warm."""
    for thing in things[:5]:
        action(thing)
    taken = []
    for thing in things:
        start = time.process_time()
        action(thing)
        taken.append(time.process_time() - start)
    return float(np.median(taken) * 1e3)


def run(size: int, count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), _env_file=None)
        file = store(settings, size)
        logs.configure(settings)
        app = create_app(settings)
        loop = asyncio.new_event_loop()
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://benchmark")

        def asked(tms: str, **headers: str) -> Callable[[Any], object]:
            def action(tile: tuple[int, int, int]) -> object:
                z, x, y = tile
                path = f"/collections/{SUBSETS}/items/{ID}/assets/cog_v/tiles/{tms}/{z}/{x}/{y}.png"
                answer = loop.run_until_complete(client.get(path, headers=headers))
                assert answer.status_code == (304 if headers else 200), answer.text
                return answer

            return action

        def reference(tile: tuple[int, int, int]) -> object:
            z, x, y = tile
            with warnings.catch_warnings(), Reader(str(file), tms=grid("EPSG3413")) as reader:
                warnings.simplefilter("ignore")
                image = reader.tile(x, y, z, indexes=10)
                image.rescale(((0, 3000),))
                return image.render(img_format="PNG", colormap=cmap.get("turbo"))

        polar = tiles("EPSG3413", 8, size, count)
        found = {
            "tile": cpu_ms(asked("EPSG3413"), polar),
            "warped": cpu_ms(asked("WebMercatorQuad"), tiles("WebMercatorQuad", 9, size, count)),
            "again": cpu_ms(asked("EPSG3413", **{"If-None-Match": f'"{GENERATION}-1"'}), polar),
            "reference": cpu_ms(reference, polar),
        }
        loop.run_until_complete(client.aclose())
        loop.close()
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--quick", action="store_true", help="a smaller map, fewer tiles")
    arguments = parser.parse_args()
    size, count = (600, 20) if arguments.quick else (3000, 100)
    found = run(size, count)
    rows = {
        name: {"cpu_ms": ms, "of_reference": ms / found["reference"]} for name, ms in found.items()
    }
    if arguments.json:
        print(json.dumps({"map": [size, size], "tiles": count, "results": rows}))
    else:
        print(f"{size} x {size} pixels, {PERIODS} periods, {count} tiles\n")
        table(rows, {"cpu_ms": ".1f", "of_reference": ".2f"})


if __name__ == "__main__":
    main()
