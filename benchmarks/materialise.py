"""Materialising an AOI over two cubes, beside what people do with xarray, in one run.

Two synthetic cubes of the real size and chunk layout (8,000 image pairs each, half of them in
both, 66 % missing), an AOI of 80 x 100 pixels across their common edge, three variables; a mirror
served over loopback by another process. Each method runs in a process of its own:

a  xarray  ``open_dataset(chunks="auto")`` -> ``sel`` -> ``concat`` -> ``to_zarr``
b  xarray  the same with the chunks of the source
c  firnline  plan, fetch, stitch, write: the same variables; nothing kept from before
i  firnline  as c, after a deep harvest: the cubes are in the index of image pairs
d  firnline  with composites, strain rates, COGs, quicklook and provenance as well
m  limit     the chunks that c needs, known beforehand: fetched by 16 threads, decoded by two, their
             windows copied, compressed as c does, written to one file; nothing else
r  limit     as m, after what no way can do without, since a plan is made from it: the cubes'
             metadata, then all their 1-D arrays, fetched by 16 threads and decoded by two

`seconds` are those of the whole process but its start, libraries included; `work` those after the
libraries are there, `limit_ratio` that to m's, `read_ratio` to r's, `work_ratio` to a's.
`repeat_ms` is the same request again. Over a line of 200 Mbit/s with a latency of 100 ms,
`line_ratio` is `work` to the time that the line takes for the chunks' bytes.

And where two CRSs meet: half of the area in a cube of EPSG:3413, half in one of UTM zone 22.

w  rasterio  the UTM cube's window read, each layer of each variable warped by GDAL (nearest),
             put beside the other cube's, written: not turned, merged or sorted
n  firnline  nearest, vectors turned
l  firnline  bilinear, vectors turned
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _measure

VARIABLES = ("vx", "vy", "v_error")
PERIODS = {"all": ("2014-01-01", "2023-12-31"), "30 %": ("2017-01-01", "2019-12-31")}


def naive(context: dict[str, Any], chunks: Any) -> dict[str, Any]:
    """What the field's notebooks do; the result is neither sorted nor merged."""
    import numpy as np
    import xarray as xr

    began = time.perf_counter()
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
    return {"layers": whole.sizes["mid_date"], "work": time.perf_counter() - began}


def warped(context: dict[str, Any]) -> dict[str, Any]:
    """Both cubes on the first one's grid, layer after layer, by GDAL; with chunks as firnline's."""
    import numpy as np
    import xarray as xr
    import zarr
    from affine import Affine
    from pyproj import Transformer
    from rasterio.warp import Resampling, reproject
    from zarr.codecs import BloscCodec

    west, south, east, north = context["aoi"]
    cubes = [
        xr.open_dataset(url, engine="zarr", chunks=None, consolidated=True, mask_and_scale=False)
        for url in context["cubes"]
    ]
    polar, utm = cubes
    x = np.arange(float(polar.x[0]), east + 60, 120.0)
    x = x[x > west - 60]
    y = np.arange(float(polar.y[0]), south - 60, -120.0)
    y = y[y < north + 60]
    own = polar[list(VARIABLES)].sel(x=slice(west - 60, east + 60), y=slice(north + 60, south - 60))
    rest = Transformer.from_crs(3413, 32622, always_xy=True).transform_bounds(
        float(own.x[-1]) + 60, south, east, north
    )
    utm = utm.sel(x=slice(rest[0] - 240, rest[2] + 240), y=slice(rest[3] + 240, rest[1] - 240))
    top, left = (int(np.flatnonzero(a == float(b[0]))[0]) for a, b in ((y, own.y), (x, own.x)))
    group = zarr.open_group(context["out"], mode="w")
    layers = polar.sizes["mid_date"] + utm.sizes["mid_date"]
    for name in VARIABLES:
        out = np.full((layers, len(y), len(x)), -32767, "i2")
        values = own[name].values
        out[: len(values), top : top + own.sizes["y"], left : left + own.sizes["x"]] = values
        source = utm[name].values
        for first in range(0, len(source), 256):
            part = source[first : first + 256]
            target = out[len(values) + first : len(values) + first + len(part)]
            reproject(
                part, target, src_crs="EPSG:32622", dst_crs="EPSG:3413", src_nodata=-32767,
                src_transform=Affine(120, 0, float(utm.x[0]) - 60, 0, -120, float(utm.y[0]) + 60),
                dst_transform=Affine(120, 0, x[0] - 60, 0, -120, y[0] + 60), dst_nodata=-32767,
                resampling=Resampling.nearest, num_threads=2,
            )  # fmt: skip
        group.create_array(
            name, data=out, chunks=(256, 20, 20), shards=(2048, 80, 100),
            compressors=BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),
        )  # fmt: skip
    return {"layers": layers}


def firnline(context: dict[str, Any], products: bool, **more: Any) -> dict[str, Any]:
    """The same through firnline's queue, from the request to the published subset."""
    from firnline.cache import worker
    from firnline.cache.opening import ask, subset_place
    from firnline.database import connect, get_item, reading

    began = time.perf_counter()
    settings, request = _request(context, products, **more)
    engine = connect(settings.database)
    job = worker.finish(engine, settings, ask(engine, settings, request))
    work = time.perf_counter() - began
    if job.status != "successful" or job.subset is None:
        raise SystemExit(job.message)
    began = time.perf_counter()
    again = ask(engine, settings, request)
    with reading(engine) as connection:
        assert get_item(connection, "subsets", str(again.subset)) is not None
    repeat = time.perf_counter() - began
    record = subset_place(engine, settings, job.subset) / "provenance.json"
    fetched = json.loads(record.read_bytes())["fetched"]
    repeated = {"repeat_ms": repeat * 1e3}
    return {"work": work, "requests": fetched["requests"], "bytes": fetched["bytes"], **repeated}


def _request(context: dict[str, Any], products: bool, **more: Any) -> tuple[Any, Any]:
    from firnline.cache.request import Request
    from firnline.settings import Settings

    settings = Settings(_env_file=None, log_level="ERROR", **context["settings"])
    inputs = {
        "bbox": context["aoi"],
        "crs": "EPSG:3413",
        "variables": VARIABLES,
        "datetime": "/".join(context["period"]),
        "composite": "P1Y" if products else None,
        "strain": {} if products else False,
        **more,
    }
    return settings, Request.parse(inputs, settings)


def known(context: dict[str, Any]) -> str:
    """What the limit may know, in a file: address, pairs, window and place of each chunk."""
    from firnline.cache.materialise import plan_request
    from firnline.database import connect

    settings, request = _request(context, products=False)
    plan = plan_request(connect(settings.database), settings, request)
    chunks: dict[str, dict[str, Any]] = {}
    for variable in VARIABLES:
        size = plan.array(variable).chunks
        for tile in plan.tiles:
            for chunk in plan.chunks(tile, variable):
                url = f"{plan.cubes[chunk.cube].source.url}/{chunk.key}"
                there, here = plan.moves(chunk.cube, chunk.index[0], size[0])
                about = {"variable": variable, "from": there, "to": here, "shape": size}
                windows = chunks.setdefault(url, {**about, "windows": []})["windows"]
                down, right = tile.rows.start, tile.columns.start
                rows = slice(chunk.rows[0].start + down, chunk.rows[0].stop + down)
                columns = slice(chunk.columns[0].start + right, chunk.columns[0].stop + right)
                windows.append((rows, columns, chunk.rows[1], chunk.columns[1]))
    path = f"{context['out']}.pickle"
    Path(path).write_bytes(pickle.dumps({"shape": plan.shape, "chunks": chunks}))
    return path


def limit(context: dict[str, Any], *, reading: bool = False) -> dict[str, Any]:
    """What can't be done without; with `reading`, also what a plan is made from."""
    import blosc2
    import numpy as np
    import urllib3

    blosc2.set_releasegil(True)
    pool = urllib3.PoolManager(maxsize=16)
    asked = pickle.loads(Path(context["known"]).read_bytes())
    began = time.perf_counter()
    if reading:
        _read_pairs(context["cubes"], pool)
    out = {name: np.full(asked["shape"], -32767, "i2") for name in VARIABLES}
    sizes = []

    def place(about: dict[str, Any], fetched: Any) -> None:
        data = fetched.result()
        if data is None:
            return
        values = np.empty(about["shape"], "i2")
        blosc2.decompress2(data, dst=values.reshape(-1).view("u1"), nthreads=1)
        for rows, columns, high, wide in about["windows"]:
            out[about["variable"]][about["to"], rows, columns] = values[about["from"], high, wide]

    def fetch(url: str) -> bytes | None:
        answer = pool.request("GET", url)
        if answer.status != 200:
            return None
        sizes.append(len(answer.data))
        return answer.data

    def packed(block: Any) -> bytes:
        frame: bytes = blosc2.compress2(
            np.ascontiguousarray(block), codec=blosc2.Codec.ZSTD, clevel=1, typesize=2, nthreads=1
        )
        return frame

    with ThreadPoolExecutor(16) as fetchers, ThreadPoolExecutor(2) as processors:
        fetched = [(about, fetchers.submit(fetch, url)) for url, about in asked["chunks"].items()]
        for placed in [processors.submit(place, *each) for each in fetched]:
            placed.result()
        blocks = (
            whole[t : t + 256, y : y + 20, x : x + 20]
            for whole in out.values()
            for t in range(0, whole.shape[0], 256)
            for y in range(0, whole.shape[1], 20)
            for x in range(0, whole.shape[2], 20)
        )
        with Path(context["out"]).open("wb") as file:
            file.writelines(processors.map(packed, blocks))
    return {"work": time.perf_counter() - began, "requests": len(fetched), "bytes": sum(sizes)}


def _read_pairs(cubes: list[str], pool: Any) -> None:
    """The metadata of cubes, and all of their arrays that have one dimension, decoded."""
    import blosc2
    import numpy as np

    def load(url: str) -> None:
        answer = pool.request("GET", url)
        if answer.status == 200:  # all are Blosc frames: bytes 4-8 have the size
            size = int.from_bytes(answer.data[4:8], "little")
            blosc2.decompress2(answer.data, dst=np.empty(size, "u1"), nthreads=1)

    with ThreadPoolExecutor(16) as fetchers:
        documents = list(fetchers.map(lambda url: pool.request("GET", f"{url}/.zmetadata"), cubes))
        loading = []
        for url, document in zip(cubes, documents, strict=True):
            for key, about in json.loads(document.data)["metadata"].items():
                if key.endswith("/.zarray") and len(about["shape"]) == 1:
                    name, count = (
                        key.removesuffix("/.zarray"),
                        -(-about["shape"][0] // about["chunks"][0]),
                    )
                    for n in range(count):
                        loading.append(fetchers.submit(load, f"{url}/{name}/{n}"))
        for each in loading:
            each.result()


METHODS = {
    "a": lambda context: naive(context, "auto"),
    "b": lambda context: naive(context, {}),
    "c": lambda context: firnline(context, products=False),
    "i": lambda context: firnline(context, products=False),
    "d": lambda context: firnline(context, products=True),
    "m": limit,
    "r": lambda context: limit(context, reading=True),
}
LINE = (0.1, 200e6 / 8)
"""Seconds before each answer, and bytes a second of all answers together."""
CROSSING = {
    "w": warped,
    "n": lambda context: firnline(context, products=False, out_crs="EPSG:3413"),
    "l": lambda context: firnline(
        context, products=False, out_crs="EPSG:3413", resampling="bilinear"
    ),
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
        _measure.report(lambda: (METHODS | CROSSING)[options.method](context))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        lines = ((0.0, None),) if options.quick else ((0.0, None), (0.03, None), LINE)
        for latency, bandwidth in lines:
            with _measure.served(
                Path(folder) / "mirror", latency=latency, bandwidth=bandwidth
            ) as url:
                prepared = prepare(Path(folder), url, pairs=1_000 if options.quick else 8_000)
                for period, dates in PERIODS.items():
                    rows = {}
                    for method in METHODS if bandwidth is None else "cimr":
                        out = str(Path(folder) / f"{method}-{latency}-{period}.zarr")
                        data = str(Path(folder) / f"{method}-{latency}-{period}")
                        context = prepared | {"period": dates, "out": out}
                        catalog = prepared["indexed" if method == "i" else "settings"]
                        context["settings"] = catalog | {"data_dir": data}
                        if method in "mr":
                            context["known"] = known(context)
                        rows[method] = _measure.measure(
                            __file__, method, "--context", json.dumps(context)
                        )
                        reset(catalog)
                    for row in rows.values():
                        if bandwidth is not None:
                            row["line_ratio"] = row["work"] / (row["bytes"] / bandwidth)
                            continue
                        row["time_ratio"] = row["seconds"] / rows["a"]["seconds"]
                        row["work_ratio"] = row["work"] / rows["a"]["work"]
                        row["memory_ratio"] = row["peak_mb"] / rows["a"]["peak_mb"]
                    for method in "ci":
                        rows[method]["limit_ratio"] = rows[method]["work"] / rows["m"]["work"]
                        rows[method]["read_ratio"] = rows[method]["work"] / rows["r"]["work"]
                    line = "" if bandwidth is None else f", {bandwidth * 8e-6:.0f} Mbit/s"
                    results[f"{period} of the time, {latency * 1e3:.0f} ms{line}"] = rows
        with _measure.served(Path(folder) / "crossing") as url:
            prepared = prepare(
                Path(folder), url, pairs=500 if options.quick else 4_000, crossing=True
            )
            rows = {}
            for method in CROSSING:
                where = str(Path(folder) / f"{method}-crossing")
                context = prepared | {"period": PERIODS["all"], "out": f"{where}.zarr"}
                context["settings"] = prepared["settings"] | {
                    "cache_url": where,
                    "chunk_cache_quota": 0,
                }
                rows[method] = _measure.measure(__file__, method, "--context", json.dumps(context))
                reset(prepared["settings"])
            for row in rows.values():
                row["time_ratio"] = row["seconds"] / rows["w"]["seconds"]
                row["memory_ratio"] = row["peak_mb"] / rows["w"]["peak_mb"]
            results["two CRSs, 0 ms"] = rows
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for name, rows in results.items():
        print(f"\n{name}")
        columns = {"seconds": ".2f", "work": ".2f", "cpu_seconds": ".2f", "peak_mb": ".0f"}
        columns |= {"time_ratio": ".2f", "work_ratio": ".2f", "memory_ratio": ".2f"}
        columns |= {"requests": "d"}
        columns |= {"limit_ratio": ".2f", "read_ratio": ".2f", "line_ratio": ".2f"}
        _measure.table(rows, columns | {"repeat_ms": ".0f"})


def prepare(folder: Path, url: str, *, pairs: int, crossing: bool = False) -> dict[str, Any]:
    """Write the mirror and harvest it; what the methods need to know."""
    from firnline.database import connect, migrate
    from firnline.indexer.cubes import deepen
    from firnline.indexer.flow import FlowField
    from firnline.indexer.harvest import harvest
    from firnline.indexer.sample import write_scale_cubes, write_tiles
    from firnline.settings import Settings

    if crossing:
        # 8 x 10 km about a place, of which the cube of EPSG:3413 has the western half
        tiles = [
            (3413, (-177_600.0, -2_286_000.0, -170_000.0, -2_274_000.0)),
            (32622, (564_000.0, 7_660_800.0, 577_200.0, 7_674_000.0)),
        ]
        mirror = write_tiles(
            folder / "crossing", url, tiles, flow=FlowField(), pairs=pairs, missing=0.66,
            start="2014-01-01", end="2023-12-31", variables=VARIABLES,
        )  # fmt: skip
        aoi = [-176_000.0, -2_284_800.0, -164_000.0, -2_275_200.0]
    else:
        mirror = write_scale_cubes(folder / "mirror", url, pairs=pairs, variables=VARIABLES)
        aoi = list(mirror.aoi)
    found = {}
    for name, deep in (("settings", False), ("indexed", True)):
        database = folder / f"{name}-{url.rsplit(':', 1)[-1]}.db"
        found[name] = {
            "database_url": f"sqlite:///{database}",
            "data_dir": str(folder),
            "allowed_sources": [f"{url}/"],
        }
        settings = Settings(_env_file=None, log_level="ERROR", **found[name])
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [mirror.catalog_url], mosaics=False, deep=deep)
        if deep:
            deepen(engine, settings)
    return {"aoi": aoi, "cubes": [mirror.url(cube) for cube in mirror.cubes], **found}


def reset(shared: dict[str, Any]) -> None:
    """Forget the subsets, so that the next method does not find its answer ready."""
    from firnline.database import connect, writing
    from firnline.tables import subsets

    with writing(connect(shared["database_url"])) as connection:
        connection.execute(subsets.delete())


if __name__ == "__main__":
    main()
