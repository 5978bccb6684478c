"""The peak memory of a materialisation against FIRNLINE_MEMORY_LIMIT, on a large area.

Two synthetic cubes of the real size, 20,000 image pairs each, half of them in both; an area of
100 x 100 km (833 x 833 pixels) across their common edge; vx, vy and v_error, with composites,
strain rates, maps and quicklook. So that it needs little disk (1.5 GB), of the squares of 120 x
120 pixels one in eight exists; where there is something, it's as dense as a real cube. Each limit
is a process of its own; what is told is the most that was ever resident, imports included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import _measure

LIMITS = (256, 1_000, 2_000)
VARIABLES = ("vx", "vy", "v_error")
COLUMNS = {"seconds": ".1f", "cpu_seconds": ".1f", "peak_mb": ".0f", "of_the_limit": ".2f"}


def materialise(context: dict[str, Any]) -> dict[str, Any]:
    """From the request to the published subset."""
    from firnline.cache import jobs, worker
    from firnline.cache.request import Request
    from firnline.database import connect
    from firnline.settings import Settings

    settings = Settings(_env_file=None, log_level="ERROR", **context["settings"])
    engine = connect(settings.database)
    inputs = {"bbox": context["aoi"], "crs": "EPSG:3413", "variables": VARIABLES}
    job = jobs.submit(engine, Request.parse(inputs, settings), refresh=True)
    job = worker.finish(engine, settings, job)
    if job.status != "successful":
        raise SystemExit(job.message)
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="2,000 pairs and 24 x 24 km")
    parser.add_argument("--pairs", type=int, help="image pairs a cube (20,000)")
    parser.add_argument("--side", type=int, help="pixels along the area's side (833)")
    parser.add_argument("--mirror", type=Path, help="keep the cubes here, for the next time")
    parser.add_argument("--limits", help="limits in MB, comma-separated (256,1000,2000)")
    parser.add_argument("--context", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        context = json.loads(options.context)
        _measure.report(lambda: materialise(context))
        return
    pairs = options.pairs or (2_000 if options.quick else 20_000)
    side = options.side or (200 if options.quick else 833)
    limits = [int(n) for n in options.limits.split(",")] if options.limits else LIMITS
    rows = {}
    with tempfile.TemporaryDirectory() as scratch:
        mirror = options.mirror or Path(scratch) / "mirror"
        with _measure.served(mirror) as url:
            prepared = prepare(Path(scratch), mirror, url, pairs, side)
            for limit in limits:
                settings = prepared["settings"] | {"memory_limit": limit * 10**6}
                context = json.dumps(prepared | {"settings": settings})
                row = _measure.measure(__file__, "materialise", "--context", context)
                row["peak_mb"] *= 2**20 / 1e6  # of a million bytes, as limits are
                row["of_the_limit"] = row["peak_mb"] / limit
                rows[f"{limit} MB"] = row
                if not options.json:  # as they come: each takes minutes
                    _measure.table({f"{limit:5} MB": row}, COLUMNS)
                    sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")


def prepare(folder: Path, mirror: Path, url: str, pairs: int, side: int) -> dict[str, Any]:
    """Write the cubes unless they are there already, and harvest them."""
    from firnline.database import connect, migrate
    from firnline.indexer.harvest import harvest
    from firnline.indexer.sample import CATALOG_PATH, write_scale_cubes
    from firnline.settings import Settings

    what = mirror / f"scale-{pairs}-{side}.json"
    if not what.exists():
        made = write_scale_cubes(
            mirror, url, pairs=pairs, window=(side, side), variables=VARIABLES, thinned=8
        )
        what.write_text(json.dumps({"url": url, "aoi": list(made.aoi)}))
    about = json.loads(what.read_text())
    catalog = folder / "catalog.json"  # the port is another one each time
    catalog.write_text((mirror / CATALOG_PATH).read_text().replace(about["url"], url))
    shared = {"data_dir": str(folder), "allowed_sources": [f"{url}/"], "chunk_cache_quota": 0}
    settings = Settings(_env_file=None, log_level="ERROR", **shared)
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [str(catalog)], mosaics=False)
    engine.dispose()
    return {"aoi": about["aoi"], "settings": shared}


if __name__ == "__main__":
    main()
