"""Searching while the service is busy: latency and memory, quiet and under load, in one run.

    python benchmarks/load.py [--json] [--quick] [--minutes N] [--postgresql]

A catalog of 20,000 synthetic items and those of a sample mirror, served by ``firnline serve``.
Clients, 64 by default, each search once a second on average: recent items, places, filters, an
item, the next page. First for a while with nothing else (`quiet`); then while two jobs run all the
time (one in the service, one in a worker of its own) and harvests follow each other (`busy`).

Printed: percentiles of the time until a reply is there in full, errors, what was done meanwhile,
the server's memory at the beginning and the end of the busy time. The ratio is p99 busy to p50
quiet. Clients, jobs and harvests share the processors with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import _measure
import httpx
import numpy as np
import orjson
from _catalog import synthetic_rows

from firnline.database import connect, migrate, put_items, writing
from firnline.indexer.harvest import harvest
from firnline.indexer.sample import write_mirror
from firnline.settings import Settings

CLIENTS, ITEMS = 64, 20_000


async def client(
    url: str, until: float, seed: int, seen: list[float], errors: Counter[str]
) -> None:
    """One user: a search, a think, the next."""
    chance = random.Random(seed)
    following: dict[str, Any] | None = None
    # without certificates, whose loading holds all clients up
    async with httpx.AsyncClient(base_url=url, timeout=60.0, verify=False) as http:
        await asyncio.sleep(chance.random())
        while time.monotonic() < until:
            began = time.perf_counter()
            try:
                answer = await asked(http, chance, following)
                seen.append(time.perf_counter() - began)
                answer.raise_for_status()
                links = orjson.loads(answer.content).get("links", [])
                following = next((link for link in links if link["rel"] == "next"), None)
            except httpx.HTTPError as error:
                errors[str(error)[:100]] += 1
                following = None
            await asyncio.sleep(chance.uniform(0.5, 1.5))


async def asked(
    http: httpx.AsyncClient, chance: random.Random, following: dict[str, Any] | None
) -> httpx.Response:
    kind = chance.randrange(5)
    if kind == 0 and following is not None:
        if following.get("method") == "POST":
            return await http.post(following["href"], json=following["body"])
        return await http.get(following["href"])
    if kind == 1:
        west, south = chance.uniform(-170, 130), chance.uniform(-80, 60)
        year = chance.randrange(1995, 2024)
        box = [west, south, west + 40, south + 20]
        period = f"{year}-01-01T00:00:00Z/{year + 2}-01-01T00:00:00Z"
        return await http.post("/search", json={"bbox": box, "datetime": period, "limit": 20})
    if kind == 2:
        most = chance.randrange(10_000, 90_000)
        expression = f"itslive:granule_count <= {most}"
        return await http.get("/search", params={"filter": expression, "limit": 20})
    if kind == 3:
        mark = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
        return await http.get(f"/collections/itslive-cubes/items/{mark}_{chance.randrange(ITEMS)}")
    return await http.get("/search", params={"limit": 10})


def searched(url: str, clients: int, seconds: float) -> dict[str, Any]:
    """All clients for so long, in a process of their own; percentiles in milliseconds."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_searched, url, clients, seconds).result()


def _searched(url: str, clients: int, seconds: float) -> dict[str, Any]:
    seen: list[float] = []
    errors: Counter[str] = Counter()
    gc.freeze()  # or collecting what was imported holds all clients up for 75 ms every 3 s

    async def all_of_them() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(client(url, until, n, seen, errors) for n in range(clients)))

    asyncio.run(all_of_them())
    p50, p99, most = (float(np.percentile(seen, p)) * 1e3 for p in (50, 99, 100))
    return {"requests": len(seen), "p50_ms": p50, "p99_ms": p99, "max_ms": most, "errors": errors}


class Busy:
    """Two jobs all the time, and one harvest after the other."""

    def __init__(self, url: str, aoi: tuple[float, ...], environment: dict[str, str]) -> None:
        self.done: Counter[str] = Counter()
        self._url, self._aoi, self._environment = url, aoi, environment
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._jobs, args=(n,), daemon=True) for n in range(2)
        ]
        self._threads.append(threading.Thread(target=self._harvests, daemon=True))

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _jobs(self, n: int) -> None:
        chance = random.Random(n)
        left, bottom, right, top = self._aoi
        prefer = {"Prefer": "respond-async"}
        with httpx.Client(base_url=self._url, timeout=60.0, headers=prefer) as http:
            while not self._stop.is_set():
                # never the same area twice, or it would be answered from the cache
                west = left + chance.uniform(0, (right - left) / 3)
                inputs = {"bbox": [west, bottom, right, top], "crs": "EPSG:3413"}
                made = http.post("/processes/materialise/execution", json={"inputs": inputs})
                job = made.json()
                while job["status"] in ("accepted", "running") and not self._stop.wait(0.5):
                    job = http.get(f"/jobs/{job['jobID']}").json()
                self.done[f"jobs {job['status']}"] += 1

    def _harvests(self) -> None:
        command = [sys.executable, "-m", "firnline.cli", "harvest", "--deep", "--json"]
        while not self._stop.is_set():
            run = subprocess.run(
                command, env=self._environment, capture_output=True, check=False, text=True
            )
            self.done["harvests" if run.returncode == 0 else "harvests failed"] += 1


@contextmanager
def service(environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """``firnline serve`` and one more worker; the URL, and the server's process id."""
    command = [sys.executable, "-m", "firnline.cli"]
    with tempfile.TemporaryFile("w+") as log:
        serve = subprocess.Popen(
            [*command, "serve", "--port", "0", "--no-harvest"],
            env=environment, stderr=log, stdout=log,
        )  # fmt: skip
        worker = subprocess.Popen([*command, "worker"], env=environment, stderr=log, stdout=log)
        try:
            url = None
            for _ in range(600):
                log.seek(0)
                found = [word for word in log.read().split() if word.startswith("url=http")]
                if found:
                    url = found[0].removeprefix("url=")
                    break
                time.sleep(0.1)
            assert url is not None, "the service did not start"
            yield url, serve.pid
        finally:
            for process in (worker, serve):
                process.terminate()
            for process in (worker, serve):
                process.wait(60)


def resident_mb(pid: int) -> float:
    """Memory of a process that is not a mapped file."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this benchmark needs Linux")


def run(folder: Path, database: str, *, clients: int, quiet: float, busy: float) -> dict[str, Any]:
    """Fill, serve, search quietly, search while busy."""
    with _measure.served(folder / "mirror") as mirror_url:
        mirror = write_mirror(folder / "mirror", mirror_url, pairs=400, mosaics=False)
        settings = Settings(
            data_dir=folder, database_url=database, allowed_sources=(f"{mirror_url}/",),
            _env_file=None,
        )  # fmt: skip
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [mirror.catalog_url], mosaics=False)
        with writing(engine) as connection:
            for rows in synthetic_rows(ITEMS):
                put_items(connection, rows)
        engine.dispose()
        environment = {
            **os.environ,
            "FIRNLINE_DATA_DIR": str(folder),
            "FIRNLINE_DATABASE_URL": database,
            "FIRNLINE_ALLOWED_SOURCES": f"{mirror_url}/",
            "FIRNLINE_CATALOG_URLS": mirror.catalog_url,
            "FIRNLINE_MOSAIC_ROOTS": "",
            "FIRNLINE_LOG_FORMAT": "console",
            "FIRNLINE_CACHE_QUOTA": "200MB",
        }
        with service(environment) as (url, pid):
            searched(url, clients, 5.0)  # what is made at the first request is made
            results: dict[str, Any] = {"quiet": searched(url, clients, quiet)}
            with Busy(url, mirror.aoi, environment) as work:
                searched(url, clients, 5.0)
                before = resident_mb(pid)
                results["busy"] = searched(url, clients, busy)
                results["memory_mb"] = {"before": before, "after": resident_mb(pid)}
            results["meanwhile"] = work.done
    results["ratio"] = results["busy"]["p99_ms"] / results["quiet"]["p50_ms"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="20 seconds, 16 clients")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the busy time")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    options = parser.parse_args()
    clients, busy = (16, 20.0) if options.quick else (CLIENTS, options.minutes * 60)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = os.environ.get("FIRNLINE_TEST_POSTGRES")
        if options.postgresql:
            with _measure.postgresql(given, {"listen_addresses": ""}) as database:
                assert database is not None, "there is no PostgreSQL with PostGIS"
                found = run(folder, database, clients=clients, quiet=busy / 4, busy=busy)
        else:
            database = f"sqlite:///{folder / 'firnline.db'}"
            found = run(folder, database, clients=clients, quiet=busy / 4, busy=busy)
    if options.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    columns = {"requests": "d", "p50_ms": ".1f", "p99_ms": ".1f", "max_ms": ".0f"}
    _measure.table({name: found[name] for name in ("quiet", "busy")}, columns)
    for name in ("quiet", "busy"):
        for error, count in found[name]["errors"].items():
            print(f"{name}: {count} x {error}")
    memory = found["memory_mb"]
    print(f"p99 busy / p50 quiet {found['ratio']:.1f}; meanwhile {dict(found['meanwhile'])}")
    print(f"memory of the server: {memory['before']:.0f} MB, at the end {memory['after']:.0f} MB")


if __name__ == "__main__":
    main()
