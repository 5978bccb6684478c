"""How long a harvest takes: a catalog file of 3,086 cubes to a fresh SQLite database.

The reference, measured in the same run, is the least that any harvest must do: parse the JSON and
reproject each tile's corners (one pyproj call a tile, a shapely polygon each), nothing stored.

    python benchmarks/harvest.py [--json] [--quick] [--postgres URL] [--pgstac PYTHON]

The real catalog is read where the shared folder is (or FIRNLINE_SHARED_DATA says); elsewhere one
of the same size and shape is made up.

Then upserts of 200,000 synthetic items, into SQLite and into PostgreSQL: on a server of its own
with PostgreSQL's own settings, durable ones, or on the one that --postgres or
FIRNLINE_TEST_POSTGRES names. Beside them pgstac loads the same items into another database of that
server, where PYTHON (or this interpreter) has pypgstac.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _catalog import synthetic_rows
from _measure import postgresql, server_cpu, table
from pyproj import Transformer
from shapely import Polygon
from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from firnline.collections import collection
from firnline.database import connect, migrate, put_collections, put_items, writing
from firnline.items import CUBES, encode

REPO = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))
TILES = {3031: 1447, 3413: 763, 32718: 77, 32645: 400, 32643: 399}  # as many as in the real one
DURABLE = {"listen_addresses": "", "timezone": "UTC", "shared_buffers": "256MB"}


def made_up_catalog() -> bytes:
    """A catalog of the size of the real one, its tiles in rows of 50."""
    features = []
    for epsg, count in TILES.items():
        for n in range(count):
            polar = epsg < 4000
            # of UTM: 4 tiles wide, from 3,000 km north; of polar CRSs: round the pole
            column, row = (n % 50 - 25, n // 50 - 20) if polar else (n % 4 + 3, n // 4 % 60 + 30)
            left, bottom = 100_000 * column, 100_000 * row
            ring = [
                [left + dx, bottom + dy]
                for dx, dy in ((0, 0), (100_000, 0), (100_000, 100_000), (0, 100_000), (0, 0))
            ]
            name = f"ITS_LIVE_vel_EPSG{epsg}_G0120_X{left + 50_000}_Y{bottom + 50_000}"
            if not polar:
                name = name.replace("ITS_LIVE", f"ITS_LIVE-{n // 240}")
            properties = {
                "fill-opacity": 0.5,
                "fill": "red",
                "roi_percent_coverage": 50.0,
                "geometry_epsg": {"type": "Polygon", "coordinates": [ring]},
                "datacube_exist": 1,
                "zarr_url": f"http://its-live-data.s3.amazonaws.com/datacubes/v2/N00E000/{name}.zarr",
                "epsg": epsg,
                "FULL_NAME": "somewhere",
                "RGI_CODE": {3031: 19, 3413: 5, 32718: 17}.get(epsg, 13),
            }
            features.append({"type": "Feature", "properties": properties, "geometry": None})
    return json.dumps({"type": "FeatureCollection", "features": features}).encode()


def reference(path: Path) -> int:
    """Parse and reproject the corners, and nothing else."""
    transformers: dict[int, Transformer] = {}
    polygons = []
    for feature in json.loads(path.read_bytes())["features"]:
        properties = feature["properties"]
        epsg = properties["epsg"]
        if epsg not in transformers:
            transformers[epsg] = Transformer.from_crs(epsg, 4326, always_xy=True)
        corners = properties["geometry_epsg"]["coordinates"][0]
        polygons.append(Polygon(transformers[epsg].itransform(corners)))
    return len(polygons)


def timed(action: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = action(*arguments)
    return time.perf_counter() - start, result


def run(path: Path, rounds: int) -> dict[str, Any]:
    """Median seconds of reference, first harvest, the same again, and an unmodified catalog."""
    from firnline.indexer.harvest import harvest
    from firnline.settings import Settings

    seconds: dict[str, list[float]] = {
        "reference": [],
        "first": [],
        "second": [],
        "unmodified": [],
    }
    reports = []
    for _ in range(rounds):
        seconds["reference"].append(timed(reference, path)[0])
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(data_dir=Path(folder), database_url="")
            engine = connect(settings.database)
            migrate(engine)
            for name in ("first", "second", "unmodified"):
                source, force = [str(path)], name == "second"
                work = partial(harvest, engine, settings, source, force=force)
                took, report = timed(work)
                seconds[name].append(took)
                reports.append(report)
            size = (Path(folder) / "firnline.db").stat().st_size
            engine.dispose()
    first, second, unmodified = reports[-3:]
    assert unmodified.not_modified_since == second.started
    items = first.total.added
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "catalog": path.name,
        "cubes": first.counts["itslive-cubes"].added,
        "mosaics": first.counts["velocity-mosaics"].added,
        "failed": first.failed,
        "rounds": rounds,
        "reference_seconds": round(median["reference"], 3),
        "harvest_seconds": round(median["first"], 3),
        "second_harvest_seconds": round(median["second"], 3),
        "unmodified_harvest_seconds": round(median["unmodified"], 3),
        "second_harvest_unchanged": second.total.unchanged,
        "items_per_second": round(items / median["first"]),
        "ratio_to_reference": round(median["first"] / median["reference"], 2),
        "database_bytes": size,
        # kilobytes on Linux, bytes on macOS; of the whole process, imports included
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    }


def rates(count: int, seconds: float, cpu: float) -> dict[str, int]:
    """Items a second, and a second of CPU: what holds on a machine that others use as well."""
    return {"per_second": round(count / seconds), "per_cpu_second": round(count / cpu)}


def upserts(url: str, count: int) -> dict[str, Any]:
    """Rates into an empty database, and of the same items once more; one transaction each."""
    engine = connect(url)
    migrate(engine)
    figures: dict[str, Any] = {"items": count}
    with writing(engine) as connection:
        put_collections(connection, [(CUBES, b"{}")])
    for name in ("insert", "replace"):
        spent = np.zeros(2)
        context = writing(engine)
        connection = context.__enter__()
        clock = stopwatch(connection)
        for rows in synthetic_rows(count):
            figures["bytes_per_item"] = len(rows[0].content)
            before = clock()
            put_items(connection, rows)
            spent += clock() - before
        before = clock()
        context.__exit__(None, None, None)  # the commit counts
        spent += clock() - before
        figures[name] = rates(count, *spent.tolist())
    engine.dispose()
    return figures


def stopwatch(connection: Connection) -> Callable[[], Any]:
    """A clock of wall time, and of CPU time of this process and of the database's server."""
    if connection.dialect.name == "sqlite":
        return lambda: np.array([time.perf_counter(), time.process_time()])
    pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    return lambda: np.array([time.perf_counter(), time.process_time() + server_cpu(pid)])


def pgstac(url: str, count: int, python: str, folder: Path) -> dict[str, Any] | None:
    """The same items into pgstac, by its own loader; None where it is not installed."""
    if subprocess.run([python, "-c", "import pypgstac.load"], capture_output=True).returncode:
        return None
    described, path = folder / "collection.ndjson", folder / "items.ndjson"
    described.write_bytes(encode(collection(CUBES) | {"links": []}) + b"\n")
    with path.open("wb") as file:
        for rows in synthetic_rows(count):
            file.writelines(row.content[:-1] + b',"links":[]}\n' for row in rows)
    engine = connect(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION postgis")
    engine.dispose()
    conninfo = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    script = Path(__file__).with_name("_pgstac.py")
    run = subprocess.run(
        [python, str(script), conninfo, str(described), str(path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = json.loads(run.stdout.splitlines()[-1])
    found = {name: rates(count, *figures[name]) for name in ("insert", "replace")}
    return {"version": figures["pypgstac"], **found}


def all_upserts(count: int, server: str | None, python: str) -> dict[str, dict[str, Any]]:
    """On SQLite, and where there is a PostgreSQL on that, with pgstac beside it."""
    with tempfile.TemporaryDirectory() as folder:
        figures = {"sqlite": upserts(f"sqlite:///{folder}/bench.db", count)}
        for name, measured in (
            ("postgresql", partial(upserts, count=count)),
            ("pgstac", partial(pgstac, count=count, python=python, folder=Path(folder))),
        ):
            with postgresql(server, DURABLE) as url:
                found = None if url is None else measured(url)
            if found is not None:
                figures[name] = found
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="a tenth of the items, one round")
    parser.add_argument("--postgres", help="URL of a PostgreSQL server on which to make databases")
    parser.add_argument("--pgstac", default=sys.executable, help="Python that has pypgstac")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = DATA / "catalog_v02_2024.json"
        if not path.exists():
            path = Path(folder) / "made_up.json"
            path.write_bytes(made_up_catalog())
        result = run(path, 1 if arguments.quick else 5)
    server = arguments.postgres or os.environ.get("FIRNLINE_TEST_POSTGRES")
    count = 20_000 if arguments.quick else 200_000
    result["upserts"] = all_upserts(count, server, arguments.pgstac)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['catalog']}: {result['cubes']} cubes and {result['mosaics']} mosaics")
    print(
        f"harvest       {result['harvest_seconds']:7.2f} s  "
        f"{result['items_per_second']} items/s, {result['database_bytes'] / 1e6:.0f} MB"
    )
    print(f"once more     {result['second_harvest_seconds']:7.2f} s  nothing changed")
    print(f"unmodified    {result['unmodified_harvest_seconds']:7.2f} s  the catalog itself")
    print(f"parse+corners {result['reference_seconds']:7.2f} s  reference")
    print(f"ratio         {result['ratio_to_reference']:7.2f}")
    print(f"peak memory   {result['peak_rss_bytes'] / 1e6:7.0f} MB, imports included")
    kept = result["upserts"]["sqlite"]
    print(f"upserts of {kept['items']} items of {kept['bytes_per_item']} bytes a second")
    table(
        {
            f"{name} {kind}": figures[kind]
            for name, figures in result["upserts"].items()
            for kind in ("insert", "replace")
        },
        {"per_second": "d", "per_cpu_second": "d"},
    )


if __name__ == "__main__":
    main()
