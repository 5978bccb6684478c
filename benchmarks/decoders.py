"""What decodes the source's chunks fastest: Blosc frames of zlib-2 with shuffle, as ITS_LIVE's are.

Chunks of (8000, 10, 10) int16 of the sample; those decoders that are installed, each of which has
to give the same bytes: numcodecs (c-blosc), blosc2 (c-blosc2, with zlib-ng) as one call and as the
one that firnline uses, imagecodecs' two, and the zlib streams within the frames by the libraries
for zlib (the standard one, zlib-ng, ISA-L, libdeflate), unshuffled by NumPy. CPU is that of one
thread; wall is of as many threads as processors, a chunk: where it is not less, the decoder keeps
the interpreter lock. And whole arrays (Zarr v3, the same frames) by zarr-python's pipeline and by
zarrs', which is Rust, from a local store.

    pip install imagecodecs isal zlib-ng deflate zarrs  # what there is not, is left out
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _measure
import numpy as np

SHAPE = (8000, 10, 10)
Decoder = Callable[[bytes], Any]


def chunks(folder: Path, count: int) -> list[bytes]:
    """Chunks of vx as they lie in the sample."""
    from firnline.indexer.sample import write_scale_cubes

    write_scale_cubes(folder, "http://127.0.0.1", pairs=SHAPE[0], variables=("vx",))
    files = sorted(folder.rglob("vx/0.*"))
    return [file.read_bytes() for file in files][:count]


def decoders() -> dict[str, Decoder]:
    """Those that are there, by name."""
    found: dict[str, Decoder] = {}

    def add(name: str, module: str, make: Callable[[Any], Decoder]) -> None:
        try:
            found[name] = make(importlib.import_module(module))
        except ImportError:
            print(f"{name}: not installed", file=sys.stderr)

    def firnlines(blosc2: Any) -> Decoder:
        blosc2.set_releasegil(True)

        def decode(frame: bytes) -> Any:
            values = np.empty(SHAPE, "i2")
            blosc2.decompress2(frame, dst=values.reshape(-1).view("u1"), nthreads=1)
            return values

        return decode

    add("numcodecs", "numcodecs.blosc", lambda m: m.decompress)
    add("blosc2.decompress", "blosc2", lambda m: m.decompress)
    add("blosc2.decompress2", "blosc2", firnlines)
    add("imagecodecs blosc", "imagecodecs", lambda m: m.blosc_decode)
    add("imagecodecs blosc2", "imagecodecs", lambda m: m.blosc2_decode)
    add("zlib", "zlib", lambda m: by_streams(lambda data, size: m.decompress(data, 15, size)))
    add(
        "zlib-ng", "zlib_ng.zlib_ng",
        lambda m: by_streams(lambda data, size: m.decompress(data, 15, size)),
    )  # fmt: skip
    add(
        "ISA-L", "isal.isal_zlib",
        lambda m: by_streams(lambda data, size: m.decompress(data, 15, size)),
    )  # fmt: skip
    add("libdeflate", "deflate", lambda m: by_streams(m.zlib_decompress))
    return found


def by_streams(inflate: Callable[[bytes, int], bytes]) -> Decoder:
    """Decode a Blosc 1 frame by inflating each of its zlib streams, then unshuffling."""

    def decode(frame: bytes) -> Any:
        size, block = (int.from_bytes(frame[at : at + 4], "little") for at in (4, 8))
        split, width = not frame[2] & 0x10, frame[3]
        values = np.empty(size, "u1")
        starts = np.frombuffer(frame, "<u4", -(-size // block), 16).tolist()
        for n, at in enumerate(starts):
            whole = values[n * block : (n + 1) * block]
            parts = width if split and len(whole) == block else 1
            part, planes = len(whole) // parts, []
            for _ in range(parts):
                length = int.from_bytes(frame[at : at + 4], "little")
                data = frame[at + 4 : at + 4 + length]
                planes.append(data if length == part else inflate(data, part))
                at += 4 + length
            plain = np.frombuffer(b"".join(planes), "u1")
            whole.reshape(-1, width)[:] = plain.reshape(width, -1).T
        return values

    return decode


def timed(decode: Decoder, frames: list[bytes], runs: int) -> dict[str, float]:
    """Milliseconds a chunk, the best of some runs."""
    workers = os.cpu_count() or 1
    cpu, wall = [], []
    with ThreadPoolExecutor(workers) as threads:
        for _ in range(runs):
            before = time.thread_time()
            for frame in frames:
                decode(frame)
            cpu.append(time.thread_time() - before)
            before = time.perf_counter()
            list(threads.map(decode, frames))
            wall.append(time.perf_counter() - before)
    return {"cpu_ms": min(cpu) / len(frames) * 1e3, "wall_ms": min(wall) / len(frames) * 1e3}


def pipelines(folder: Path, frames: list[bytes], runs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole arrays of these chunks through zarr-python."""
    import zarr
    from zarr.codecs import BloscCodec

    array = zarr.create_array(
        folder, shape=(SHAPE[0], 10, 10 * len(frames)), dtype="i2", chunks=SHAPE,
        compressors=BloscCodec(cname="zlib", clevel=2, shuffle="shuffle"),
    )  # fmt: skip
    for n, frame in enumerate(frames):
        file = folder / "c" / "0" / "0" / str(n)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(frame)
    for name, path in {
        "zarr-python": "zarr.core.codec_pipeline.BatchedCodecPipeline",
        "zarrs": "zarrs.ZarrsCodecPipeline",
    }.items():
        try:
            importlib.import_module(path.partition(".")[0])
        except ImportError:
            print(f"{name}: not installed", file=sys.stderr)
            continue
        with zarr.config.set({"codec_pipeline.path": path}):
            array = zarr.open_array(folder, mode="r")
            cpu, wall = [], []
            for _ in range(runs):
                before = time.process_time(), time.perf_counter()
                array[:]
                cpu.append(time.process_time() - before[0])
                wall.append(time.perf_counter() - before[1])
        count = len(frames)
        yield name, {"cpu_ms": min(cpu) / count * 1e3, "wall_ms": min(wall) / count * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="8 chunks, two runs")
    options = parser.parse_args()
    count, runs = (8, 2) if options.quick else (80, 7)
    with tempfile.TemporaryDirectory() as folder:
        frames = chunks(Path(folder) / "mirror", count)
        rows: dict[str, dict[str, Any]] = {}
        reference: bytes | None = None
        for name, decode in decoders().items():
            got = bytes(np.asarray(np.frombuffer(decode(frames[0]), "u1")))
            reference = got if reference is None else reference
            if got != reference:
                raise SystemExit(f"{name} gives other bytes")
            rows[name] = timed(decode, frames, runs)
        rows |= dict(pipelines(Path(folder) / "array.zarr", frames, runs))
    for row in rows.values():
        row["cpu_ratio"] = row["cpu_ms"] / rows["numcodecs"]["cpu_ms"]
        row["wall_ratio"] = row["wall_ms"] / rows["numcodecs"]["wall_ms"]
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    _measure.table(rows, dict.fromkeys(("cpu_ms", "wall_ms", "cpu_ratio", "wall_ratio"), ".2f"))


if __name__ == "__main__":
    main()
