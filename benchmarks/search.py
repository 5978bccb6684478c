"""What a search costs: CPU time of the server process, and wall time, per request.

    python benchmarks/search.py [--json] [--quick] [--items N ...]
    python benchmarks/search.py URL [--pid PID] ...

Without a URL, catalogs of 10,000 and 200,000 synthetic items are made (`--items` for others) in
SQLite, and in PostgreSQL where FIRNLINE_TEST_POSTGRES names a server; each is served by one worker
and asked. The ratio is that of the CPU times of the largest and the smallest catalog: 1 is a
search whose cost does not depend on the catalog. A million items take 9 GB and some minutes.

With a URL, the same client asks any STAC server that holds the same items, for a comparison in one
run (`--write FILE` writes them as NDJSON, to be loaded there). Its CPU time is known if PID is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _catalog import CODES, REGIONS, synthetic_rows
from sqlalchemy.engine import make_url

from firnline.collections import COLLECTIONS, collection
from firnline.database import connect, migrate, put_collections, put_items, writing
from firnline.items import CUBES

Request = Callable[[httpx.Client, np.random.Generator], httpx.Response]
_SERVE = """
import sys, uvicorn
from firnline import logs
from firnline.api.app import create_app
from firnline.settings import Settings
settings = Settings(_env_file=None, data_dir=sys.argv[1], database_url=sys.argv[2])
logs.configure(settings)
uvicorn.run(create_app(settings), port=int(sys.argv[3]), log_level="warning", access_log=False)
"""


def _corner(random: np.random.Generator, width: float, height: float) -> tuple[float, float]:
    return random.uniform(-170, 170 - width), random.uniform(-80, 80 - height)


def limit_10(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    return client.get("/search", params={"limit": 10})


def bbox_datetime_100(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    west, south = _corner(random, 40, 20)
    year = int(random.integers(1992, 2024))
    return client.post(
        "/search",
        json={
            "bbox": [west, south, west + 40, south + 20], "limit": 100,
            "datetime": f"{year}-01-01T00:00:00Z/{year + 2}-01-01T00:00:00Z",
        },
    )  # fmt: skip


def comparison_100(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    most = int(random.integers(10_000, 90_000))
    return _filtered(client, {"op": "<=", "args": [{"property": "itslive:granule_count"}, most]})


def equalities_100(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    pairs = {
        "proj:code": CODES[random.integers(len(CODES))],
        "itslive:region": REGIONS[random.integers(len(REGIONS))],
    }
    args = [{"op": "=", "args": [{"property": name}, value]} for name, value in pairs.items()]
    return _filtered(client, {"op": "and", "args": args})


def _filtered(client: httpx.Client, expression: dict[str, Any]) -> httpx.Response:
    body = {"filter": expression, "filter-lang": "cql2-json", "limit": 100}
    return client.post("/search", json=body)


def intersects_100(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    west, south = _corner(random, 10, 10)
    around = np.linspace(0, 2 * np.pi, 13)
    ring = np.column_stack([west + 5 + 5 * np.cos(around), south + 5 + 5 * np.sin(around)])
    ring[-1] = ring[0]
    polygon = {"type": "Polygon", "coordinates": [ring.tolist()]}
    return client.post("/search", json={"intersects": polygon, "limit": 100})


def item(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    mark = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
    return client.get(f"/collections/{CUBES}/items/{mark}_{random.integers(1_000)}")


def pages_2000(client: httpx.Client, random: np.random.Generator) -> httpx.Response:
    """20 pages of 100, each by the link of the one before; a few items may be in all."""
    answer = client.post("/search", json={"limit": 100})
    for _ in range(19):
        [link] = [link for link in answer.json()["links"] if link["rel"] == "next"]
        if link.get("method") == "POST":
            answer = client.post(link["href"], json=link["body"])
        else:
            answer = client.get(link["href"])
    return answer


REQUESTS: dict[str, tuple[Request, int, float]] = {
    # name: request, how often of 100, the most CPU milliseconds that it may cost
    "GET limit=10": (limit_10, 100, 3.0),
    "bbox + datetime, 100": (bbox_datetime_100, 100, 8.0),
    "CQL2 comparison, 100": (comparison_100, 100, 10.0),
    "CQL2 two equalities, 100": (equalities_100, 100, 10.0),
    "intersects, 100": (intersects_100, 100, 12.0),
    "item by id": (item, 100, 1.5),
    "2,000 items by 100": (pages_2000, 10, 400.0),
}


def ask(url: str, pid: int | None, rounds: int) -> dict[str, dict[str, float]]:
    """Median wall and mean CPU milliseconds of each request."""
    figures = {}
    with httpx.Client(base_url=url, timeout=120) as client:
        for name, (request, share, _) in REQUESTS.items():
            random = np.random.default_rng(1)
            count = max(1, rounds * share // 100)
            for _ in range(max(1, count // 10)):
                request(client, random).raise_for_status()
            walls, items = [], 0
            before = cpu_seconds(pid) if pid else 0.0
            for _ in range(count):
                start = time.perf_counter()
                answer = request(client, random).raise_for_status()
                walls.append(time.perf_counter() - start)
                items += len(answer.json().get("features", [0]))
            figures[name] = {
                "wall_ms": round(1e3 * statistics.median(walls), 2),
                "items": round(items / count, 1),
            }
            if pid:
                figures[name]["cpu_ms"] = round(1e3 * (cpu_seconds(pid) - before) / count, 2)
    return figures


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, to the nanosecond where Linux tells (schedstat)."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    own = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    return own + sum(cpu_seconds(int(child)) for child in children)


def fill(url: str, count: int) -> None:
    """A catalog of synthetic items."""
    engine = connect(url)
    migrate(engine)
    with writing(engine) as connection:
        documents = [(id, json.dumps(collection(id)).encode()) for id in COLLECTIONS]
        put_collections(connection, documents)
    for rows in synthetic_rows(count):
        with writing(engine) as connection:
            put_items(connection, rows)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE")  # as autovacuum does, and SQLite's PRAGMA optimize
    engine.dispose()


@contextmanager
def served(database: str) -> Iterator[tuple[str, int]]:
    """One worker over a catalog: its URL and process."""
    port = 18_000 + os.getpid() % 10_000
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-c", _SERVE, folder, database, str(port)],
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        ) as server,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(300):
                try:
                    httpx.get(f"{url}/healthz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.1)
            yield url, server.pid
        finally:
            server.terminate()


@contextmanager
def databases(count: int) -> Iterator[dict[str, str]]:
    """URLs of fresh catalogs, dropped afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        urls = {"sqlite": f"sqlite:///{folder}/search.db"}
        server = os.environ.get("FIRNLINE_TEST_POSTGRES")
        if not server:
            yield urls
            return
        import psycopg

        name = f"firnline_search_{os.getpid()}"
        conninfo = make_url(server).set(drivername="postgresql")
        text = conninfo.render_as_string(hide_password=False)
        with psycopg.connect(text, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
            try:
                target = make_url(server).set(database=name)
                yield urls | {"postgresql": target.render_as_string(hide_password=False)}
            finally:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def run(counts: list[int], rounds: int) -> dict[str, Any]:
    """Figures a database and a size, and what growth they show."""
    results: dict[str, Any] = {}
    for count in counts:
        with databases(count) as urls:
            for name, database in urls.items():
                fill(database, count)
                with served(database) as (url, pid):
                    results.setdefault(name, {})[count] = ask(url, pid, rounds)
    growth = {
        name: {
            request: round(sizes[max(counts)][request]["cpu_ms"] / figure["cpu_ms"], 2)
            for request, figure in sizes[min(counts)].items()
        }
        for name, sizes in results.items()
    }
    return {"requests": results, "growth": growth}


def show(name: str, figures: dict[str, dict[str, float]]) -> None:
    print(f"{name:38}   CPU ms   wall ms   items   CPU at most")
    for request, figure in figures.items():
        cpu = f"{figure['cpu_ms']:9.2f}" if "cpu_ms" in figure else 9 * " "
        most = REQUESTS[request][2]
        print(f"  {request:36}{cpu} {figure['wall_ms']:9.2f} {figure['items']:7.0f} {most:13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url", nargs="?", help="a STAC server that has the items")
    parser.add_argument("--pid", type=int, help="its process, for the CPU time")
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--write", type=Path, help="write the items as NDJSON, and leave")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="10,000 items, few rounds")
    arguments = parser.parse_args()
    rounds = 20 if arguments.quick else 100
    if arguments.write:
        with arguments.write.open("wb") as file:
            for rows in synthetic_rows(arguments.items[-1]):
                file.writelines(row.content + b"\n" for row in rows)
        return
    if arguments.url:
        figures = ask(arguments.url, arguments.pid, rounds)
        print(json.dumps(figures)) if arguments.json else show(arguments.url, figures)
        return
    result = run([2_000, 10_000] if arguments.quick else arguments.items, rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    for name, sizes in result["requests"].items():
        for count, figures in sizes.items():
            show(f"{name}, {count:,} items", figures)
        growth = ", ".join(
            f"{request}: {ratio}" for request, ratio in result["growth"][name].items()
        )
        print(f"  ratio of the largest to the smallest: {growth}")


if __name__ == "__main__":
    main()
