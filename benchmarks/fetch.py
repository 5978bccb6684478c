"""Fetching and decoding chunks, beside what people do, in one run.

A mirror served over loopback by another process, with a latency before each answer; windows of
synthetic cubes of the real layout: chunks (8000, 10, 10) that are objects, and chunks (8000, 8, 8)
in shards (8000, 32, 32). Each method runs in a process of its own and ends with the same values:

zarr      zarr-python over fsspec, the window as one slice
httpx     a GET for each chunk (and each shard's index) by httpx in 16 threads, decoded by numcodecs
cold      firnline, with an empty chunk cache
overlap   firnline, where an area that overlaps three quarters of the window was fetched before
warm      firnline, where all of the window was fetched before

and of a window across shards, how many bytes are best read to save a request:

    python benchmarks/fetch.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _measure
import numpy as np

Index = tuple[int, int, int]

LAYOUTS = ("objects", "shards")
FEW = 800  # pairs of the array in small chunks, of 55 kB, where gaps matter
GAPS = (0, 64 << 10, 128 << 10, 256 << 10, 1 << 20)
WINDOW = {"rows": (13, 77), "columns": (21, 101)}  # pixels, on no edge of chunks
BEFORE = {"rows": (13, 77), "columns": (21, 81)}
SIDE = 128


def prepare(root: Path, pairs: int, names: tuple[str, ...] = LAYOUTS) -> None:
    """One array in some layouts: two thirds missing, the rest with some noise."""
    import numcodecs
    import zarr
    from zarr.codecs import BloscCodec

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    values = np.full((pairs, SIDE, SIDE), -32767, "i2")
    for part in np.array_split(values, 50):  # as floats they would take a gigabyte
        there = rng.random(part.shape, "f4") >= 0.66
        part[there] = rng.normal(300, 60, np.count_nonzero(there))
    layouts: dict[str, dict[str, Any]] = {
        "objects": {
            "zarr_format": 2, "chunks": (pairs, 10, 10),
            "compressors": numcodecs.Blosc("zlib", 2, numcodecs.Blosc.SHUFFLE),
        },
        "shards": {
            "zarr_format": 3, "chunks": (pairs, 8, 8), "shards": (pairs, 32, 32),
            "compressors": BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"),
        },
    }  # fmt: skip
    for name in names:
        layout = layouts[name]
        version = layout.pop("zarr_format")
        group = zarr.create_group(root / f"{name}.zarr", zarr_format=version)
        dims = ("mid_date", "y", "x")
        for dim, size in zip(dims, values.shape, strict=True):
            options = {"dimension_names": [dim]} if version == 3 else {}
            axis = group.create_array(dim, data=np.arange(float(size)), **options)
            if version == 2:
                axis.attrs["_ARRAY_DIMENSIONS"] = [dim]
        options = {"dimension_names": dims} if version == 3 else {}
        array = group.create_array(
            "vx", shape=values.shape, dtype="i2", fill_value=0, **layout, **options
        )
        if version == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = list(dims)
        array[...] = values
        zarr.consolidate_metadata(root / f"{name}.zarr")


def window(area: dict[str, Any]) -> tuple[slice, slice, slice]:
    return slice(None), slice(*area["rows"]), slice(*area["columns"])


def needed(area: dict[str, Any], chunks: tuple[int, ...]) -> list[Index]:
    """The chunks that hold some of an area."""
    rows, columns = (
        range(first // side, (last - 1) // side + 1)
        for (first, last), side in zip((area["rows"], area["columns"]), chunks[1:], strict=True)
    )
    return [(0, row, column) for row in rows for column in columns]


def assemble(
    area: dict[str, Any], chunks: tuple[int, ...], parts: Iterator[tuple[Index, Any]]
) -> np.ndarray[Any, Any]:
    """The window, put together from its decoded chunks."""
    (top, bottom), (left, right) = area["rows"], area["columns"]
    whole = np.empty((chunks[0], bottom - top, right - left), "i2")
    for (_, row, column), values in parts:
        y, x = row * chunks[1] - top, column * chunks[2] - left
        target = whole[:, max(y, 0) : y + chunks[1], max(x, 0) : x + chunks[2]]
        _, high, wide = target.shape
        target[...] = values[:, max(-y, 0) :, max(-x, 0) :][:, :high, :wide]
    return whole


def by_zarr(context: dict[str, Any]) -> np.ndarray[Any, Any]:
    import zarr
    from zarr.storage import FsspecStore

    group = zarr.open_group(FsspecStore.from_url(context["url"]), mode="r")
    return np.asarray(group["vx"][window(WINDOW)])  # type: ignore[index]


def by_httpx(context: dict[str, Any]) -> np.ndarray[Any, Any]:
    import httpx

    from firnline.cube import parse_cube

    with httpx.Client() as client, ThreadPoolExecutor(16) as pool:
        name = ".zmetadata" if context["layout"] == "objects" else "zarr.json"
        metadata = client.get(f"{context['url']}/{name}").raise_for_status().content
        array = parse_cube(context["url"], metadata, None).variable("vx")
        indices = needed(WINDOW, array.chunks)
        length = 16 * 16 + 4

        def ask(path: str, **headers: str) -> bytes:
            url = f"{context['url']}/{path}"
            return client.get(url, headers=headers).raise_for_status().content

        paths = sorted({array.locate(index)[0] for index in indices})
        tables = {}
        if array.shards is not None:
            found = pool.map(lambda path: ask(path, Range=f"bytes=-{length}"), paths)
            for path, data in zip(paths, found, strict=True):
                tables[path] = np.frombuffer(data[:-4], "<u8").reshape(-1, 2)

        def read(index: Index) -> tuple[Index, Any]:
            path, number = array.locate(index)
            headers = {}
            if number is not None:
                offset, size = map(int, tables[path][number])
                headers["Range"] = f"bytes={offset}-{offset + size - 1}"
            return index, decode(ask(path, **headers))

        def decode(data: bytes) -> Any:
            import numcodecs

            raw = numcodecs.blosc.decompress(data)
            return np.frombuffer(raw, "i2").reshape(array.chunks)

        return assemble(WINDOW, array.chunks, pool.map(read, indices))


def by_firnline(context: dict[str, Any], area: dict[str, Any] = WINDOW) -> np.ndarray[Any, Any]:
    """Through the reader that a materialisation uses, those of one shard together."""
    from firnline import chunks as reading
    from firnline.cache.chunk_cache import ChunkCache
    from firnline.cache.counts import Counts
    from firnline.cube import read_cube
    from firnline.source import Source

    if "gap" in context:
        reading._GAP = context["gap"]
    source = Source(context["url"], allowed=(f"{context['url']}/",))
    cube = read_cube(source)
    array = cube.variable("vx")
    counts = Counts(requests=1)
    cache = ChunkCache(Path(context["cache"]), 10_000_000_000) if context["cache"] else None
    reader = reading.ChunkReader(source, version=cube.etag, keeper=cache, counter=counts)
    groups: dict[str, list[Index]] = {}
    for index in needed(area, array.chunks):
        groups.setdefault(array.locate(index)[0], []).append(index)

    def sort(group: list[Index]) -> list[list[Index]]:
        return [group] if array.shards is None else reader.together(array, group)

    def read(group: list[Index]) -> list[tuple[Index, Any]]:
        found = reader.get_together(array, group)
        return [
            (index, reader.decode(array, index, data))
            for index, data in zip(group, found, strict=True)
            if data is not None
        ]

    with ThreadPoolExecutor(16) as pool:
        together = [part for parts in pool.map(sort, groups.values()) for part in parts]
        parts = (part for group in pool.map(read, together) for part in group)
        whole = assemble(area, array.chunks, parts)
    context["counts"] = counts.as_dict()
    return whole


METHODS: dict[str, Callable[[dict[str, Any]], np.ndarray[Any, Any]]] = {
    "zarr": by_zarr,
    "httpx": by_httpx,
    "cold": by_firnline,
    "overlap": by_firnline,
    "warm": by_firnline,
}


def run(method: str, context: dict[str, Any]) -> dict[str, Any]:
    """One method; the library is loaded and a first request made before the clock starts."""
    import httpx

    warnings.simplefilter("ignore")
    by_firnline({**context, "cache": ""}, {"rows": (0, 1), "columns": (0, 1)})
    httpx.get(f"{context['url']}/x/.zarray")
    began, cpu = time.perf_counter(), time.process_time()
    values = METHODS[method](context)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "work_seconds": seconds,
        "work_cpu_seconds": cpu,
        "sum": int(values.astype("i8").sum()),
        **context.get("counts", {}),
    }


def compare(folder: Path, latency: float, rounds: int) -> dict[str, Any]:
    """The median of some rounds of each method, at one latency."""
    results: dict[str, Any] = {}
    with _measure.served(folder / "mirror", latency=latency) as url:
        for layout in LAYOUTS:
            rows: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
            for number in range(rounds):
                for method in METHODS:
                    cache = folder / f"chunks-{layout}-{method}-{latency}-{number}"
                    context = {
                        "url": f"{url}/{layout}.zarr", "layout": layout, "cache": str(cache)
                    }  # fmt: skip
                    if method in ("overlap", "warm"):
                        by_firnline(dict(context), BEFORE if method == "overlap" else WINDOW)
                    figures = _measure.measure(__file__, method, "--context", json.dumps(context))
                    rows[method].append(figures)
                    shutil.rmtree(cache, ignore_errors=True)
            results[f"{layout}, {latency * 1e3:.0f} ms"] = summary(rows)
    return results


def summary(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    assert len({figures["sum"] for each in rows.values() for figures in each}) == 1
    found = {}
    for method, each in rows.items():
        middle = sorted(each, key=lambda figures: figures["work_seconds"])[len(each) // 2]
        found[method] = {
            "seconds": middle["work_seconds"],
            "cpu_seconds": middle["work_cpu_seconds"],
            "peak_mb": middle["peak_mb"],
            **{name: middle[name] for name in ("requests", "bytes") if name in middle},
        }
    for row in found.values():
        row["ratio_to_zarr"] = row["seconds"] / found["zarr"]["seconds"]
        row["ratio_to_httpx"] = row["seconds"] / found["httpx"]["seconds"]
    return found


def gaps(folder: Path, latency: float, bandwidth: float | None, rounds: int) -> dict[str, Any]:
    """A window of shards of small chunks, cold, by how large a gap is read over."""
    rows = {}
    with _measure.served(folder / "small", latency=latency, bandwidth=bandwidth) as url:
        for gap in GAPS:
            context = {"url": f"{url}/shards.zarr", "layout": "shards", "cache": "", "gap": gap}
            each = [
                _measure.measure(__file__, "cold", "--context", json.dumps(context))
                for _ in range(rounds)
            ]
            rows[f"{gap >> 10} KiB"] = {
                "seconds": sorted(figures["work_seconds"] for figures in each)[len(each) // 2],
                "requests": each[0]["requests"],
                "bytes": each[0]["bytes"],
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="2,000 pairs, one round, no latency")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--context", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        context = json.loads(options.context)
        _measure.report(lambda: run(options.method, context))
        return
    rounds = 1 if options.quick else 5
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder / "mirror", 2_000 if options.quick else 8_000)
        prepare(folder / "small", FEW, ("shards",))
        for latency in (0.0,) if options.quick else (0.0, 0.03):
            results |= compare(folder, latency, rounds)
        lines = [(0.0, None)] if options.quick else [(0.0, None), (0.03, None), (0.1, 25e6)]
        for latency, bandwidth in lines:
            line = f"{latency * 1e3:.0f} ms" + (
                f", {bandwidth / 1e6:.0f} MB/s" if bandwidth else ""
            )
            results[f"gaps, {line}"] = gaps(folder, latency, bandwidth, rounds)
    if options.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    columns = {
        "seconds": ".3f", "cpu_seconds": ".3f", "peak_mb": ".0f", "requests": "d", "bytes": ",d",
        "ratio_to_zarr": ".2f", "ratio_to_httpx": ".2f",
    }  # fmt: skip
    for name, rows in results.items():
        print(f"\n{name}")
        shown = {key: form for key, form in columns.items() if any(key in r for r in rows.values())}
        _measure.table(rows, shown)


if __name__ == "__main__":
    main()
