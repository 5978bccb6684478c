"""Workers, Dask and buckets: the same jobs, done in other ways on this machine.

Two cubes of 8,000 image pairs each, vx, vy and v_error, with composites: two jobs, each of half of
200 x 200 pixels. By one worker, by two at the same time, and by one with a Dask cluster of two
workers; into a directory, and into a bucket of the tests' S3 server, which shares the machine.
Seconds are from the first job's start to the last one's end; CPU seconds are those of all workers,
from their beginning (1.3 each until there is work).
What only a second machine can show, this does not: here all share two processors and one disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import _measure
import memory

COLUMNS = {"seconds": ".1f", "cpu_seconds": ".1f", "ratio": ".2f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="2,000 pairs and 80 x 80 pixels")
    parser.add_argument("--runs", type=int, default=1, help="of which the quickest is told")
    options = parser.parse_args()
    pairs, side = (2_000, 80) if options.quick else (8_000, 200)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        url = stack.enter_context(_measure.served(folder / "mirror"))
        os.environ |= stack.enter_context(_measure.bucket())
        prepared = memory.prepare(folder, folder / "mirror", url, pairs, side)
        scheduler, dask = stack.enter_context(dask_cluster(folder))
        ways: dict[str, dict[str, Any]] = {
            "one worker": {},
            "two workers": {"workers": 2},
            "Dask, two workers": {"scheduler": scheduler, "dask": dask},
        }
        # in turns, so that a busy moment of the machine meets all of them
        for n in range(options.runs):
            for where in ("directory", "bucket"):
                for how, way in ways.items():
                    name = f"{how}, {where}"
                    row = run(prepared, folder / f"{n} {name}", where, **way)
                    if name not in rows or row["seconds"] < rows[name]["seconds"]:
                        rows[name] = row
    for row in rows.values():
        row["ratio"] = row["seconds"] / rows["one worker, directory"]["seconds"]
    if options.json:
        sys.stdout.write(json.dumps(rows) + "\n")
    else:
        _measure.table(rows, COLUMNS)


def run(
    prepared: dict[str, Any],
    folder: Path,
    where: str,
    *,
    workers: int = 1,
    scheduler: str = "",
    dask: Sequence[int] = (),
) -> dict[str, float]:
    """Have the two jobs done by processes of their own; `dask` are those of the cluster."""
    from firnline.cache import jobs
    from firnline.cache.request import Request
    from firnline.database import connect
    from firnline.settings import Settings

    place = folder / "cache" if where == "directory" else f"s3://private/{folder.name}"
    own = {
        "database_url": f"sqlite:///{prepared['settings']['data_dir']}/firnline.db",
        "cache_url": str(place).replace(" ", "-"),
        "dask_scheduler": scheduler,
        "data_dir": folder,
    }
    shared = {**prepared["settings"], **own}
    settings = Settings(_env_file=None, log_level="ERROR", **shared)
    engine = connect(settings.database)
    left, bottom, right, top = prepared["aoi"]
    middle = (left + right) / 2
    asked = [
        jobs.submit(
            engine,
            Request.parse(
                {"bbox": box, "crs": "EPSG:3413", "variables": memory.VARIABLES, "strain": False},
                settings,
            ),
            refresh=True,
        )
        for box in ([left, bottom, middle, top], [middle, bottom, right, top])
    ]
    environment = {**os.environ, **settings.environment()}
    command = [sys.executable, "-m", "firnline.cli", "worker"]
    before = sum(map(_cpu_seconds, dask))
    quiet: dict[str, Any] = {"env": environment, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, **quiet) for _ in range(workers)]
    try:
        while any(job.living for job in asked):
            time.sleep(0.1)
            asked = [jobs.get(engine, job.id) for job in asked]
        cpu = sum(_cpu_seconds(process.pid) for process in processes)
        cpu += sum(map(_cpu_seconds, dask)) - before
    finally:
        for process in processes:
            process.terminate()
            process.wait()
        engine.dispose()
    if wrong := [job.message for job in asked if job.status != "successful"]:
        raise SystemExit(wrong[0])
    ends = [job.finished for job in asked if job.finished is not None]
    starts = [job.started for job in asked if job.started is not None]
    return {"seconds": (max(ends) - min(starts)).total_seconds(), "cpu_seconds": cpu}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:13]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A scheduler and two workers of one thread each; the address, and all processes."""
    file = folder / "scheduler.json"
    options = ["--scheduler-file", str(file), "--no-dashboard"]

    def start(what: str, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *more, *options]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=folder)

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0")]
    try:
        while not file.exists():
            time.sleep(0.1)
        one = ("--nthreads", "1", "--no-nanny", "--memory-limit", "0")
        processes += [start("worker", *one) for _ in range(2)]
        yield str(json.loads(file.read_text())["address"]), [each.pid for each in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
