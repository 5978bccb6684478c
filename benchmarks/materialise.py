"""Materialising an AOI over two cubes, beside what people do with xarray, in one run.

Two synthetic cubes of the real size and chunk layout (8,000 image pairs each, half of them in
both, 66 % missing), an AOI of 80 x 100 pixels across their common edge, three variables; a mirror
served over loopback by another process. Each method runs in a process of its own:

a  xarray  ``open_dataset(chunks="auto")`` -> ``sel`` -> ``concat`` -> ``to_zarr``
b  xarray  the same with the chunks of the source
c  firnline  plan, fetch, stitch, write: the same variables
d  firnline  with composites, strain rates, COGs, quicklook and provenance as well
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import _measure

VARIABLES = ("vx", "vy", "v_error")
PERIODS = {"all": ("2014-01-01", "2023-12-31"), "30 %": ("2017-01-01", "2019-12-31")}


def naive(context: dict[str, Any], chunks: Any) -> dict[str, Any]:
    """What the field's notebooks do; the result is neither sorted nor merged."""
    import numpy as np
    import xarray as xr

    west, south, east, north = context["aoi"]
    parts = []
    for url in context["cubes"]:
        cube = xr.open_dataset(url, engine="zarr", chunks=chunks, consolidated=True)
        cube = cube[list(VARIABLES)].sel(x=slice(west, east), y=slice(north, south))
        first, last = (np.datetime64(day) for day in context["period"])
        cube = cube.isel(mid_date=((cube.mid_date >= first) & (cube.mid_date <= last)).values)
        parts.append(cube)
    whole = xr.concat(parts, dim="mid_date", join="outer")
    for variable in whole.variables.values():
        variable.encoding = {}
    chunked = whole.chunk({"mid_date": 2048, "y": -1, "x": -1})
    chunked.to_zarr(context["out"], mode="w", consolidated=False)
    return {"layers": whole.sizes["mid_date"]}


def firnline(context: dict[str, Any], products: bool) -> dict[str, Any]:
    """The same through firnline's queue, from the request to the published subset."""
    from firnline.cache import jobs, worker
    from firnline.cache.request import Request
    from firnline.database import connect
    from firnline.settings import Settings

    settings = Settings(_env_file=None, log_level="ERROR", **context["settings"])
    engine = connect(settings.database)
    request = Request.parse(
        {
            "bbox": context["aoi"],
            "crs": "EPSG:3413",
            "variables": VARIABLES,
            "datetime": "/".join(context["period"]),
            "composite": "P1Y" if products else None,
            "strain": {} if products else False,
        },
        settings,
    )
    job = worker.finish(engine, settings, jobs.submit(engine, request))
    if job.status != "successful":
        raise SystemExit(job.message)
    return {}


METHODS = {
    "a": lambda context: naive(context, "auto"),
    "b": lambda context: naive(context, {}),
    "c": lambda context: firnline(context, products=False),
    "d": lambda context: firnline(context, products=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="1,000 pairs, one latency")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--context", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        context = json.loads(options.context)
        _measure.report(lambda: METHODS[options.method](context))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for latency in (0.0,) if options.quick else (0.0, 0.03):
            with _measure.served(Path(folder) / "mirror", latency=latency) as url:
                prepared = prepare(Path(folder), url, pairs=1_000 if options.quick else 8_000)
                for period, dates in PERIODS.items():
                    rows = {}
                    for method in METHODS:
                        out = str(Path(folder) / f"{method}-{latency}-{period}.zarr")
                        data = str(Path(folder) / f"{method}-{latency}-{period}")
                        context = prepared | {"period": dates, "out": out}
                        context["settings"] = prepared["settings"] | {
                            "cache_url": data,
                        }
                        rows[method] = _measure.measure(
                            __file__, method, "--context", json.dumps(context)
                        )
                        reset(prepared["settings"])
                    for row in rows.values():
                        row["time_ratio"] = row["seconds"] / rows["a"]["seconds"]
                        row["memory_ratio"] = row["peak_mb"] / rows["a"]["peak_mb"]
                    results[f"{period} of the time, {latency * 1e3:.0f} ms"] = rows
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for name, rows in results.items():
        print(f"\n{name}")
        columns = {"seconds": ".2f", "cpu_seconds": ".2f", "peak_mb": ".0f"}
        _measure.table(rows, columns | {"time_ratio": ".2f", "memory_ratio": ".2f"})


def prepare(folder: Path, url: str, *, pairs: int) -> dict[str, Any]:
    """Write the mirror and harvest it; what the methods need to know."""
    from firnline.database import connect, migrate
    from firnline.indexer.harvest import harvest
    from firnline.indexer.sample import write_scale_cubes
    from firnline.settings import Settings

    mirror = write_scale_cubes(folder / "mirror", url, pairs=pairs, variables=VARIABLES)
    database = folder / f"catalog-{url.rsplit(':', 1)[-1]}.db"
    shared = {
        "database_url": f"sqlite:///{database}",
        "data_dir": str(folder),
        "allowed_sources": [f"{url}/"],
    }
    settings = Settings(_env_file=None, log_level="ERROR", **shared)
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [mirror.catalog_url], mosaics=False)
    return {
        "aoi": list(mirror.aoi),
        "cubes": [mirror.url(cube) for cube in mirror.cubes],
        "settings": shared,
    }


def reset(shared: dict[str, Any]) -> None:
    """Forget the subsets, so that the next method does not find its answer ready."""
    from firnline.database import connect, writing
    from firnline.tables import subsets

    with writing(connect(shared["database_url"])) as connection:
        connection.execute(subsets.delete())


if __name__ == "__main__":
    main()
