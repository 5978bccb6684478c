"""What a search costs: CPU time of the server's processes, and wall time, per request.

    python benchmarks/search.py [--json] [--quick] [--items N ...]
    python benchmarks/search.py [--warm N] [NAME=]SERVER[,PID ...] ...

Without servers, catalogs of 10,000 and 200,000 synthetic items are made (`--items` for others) in
SQLite, and in PostgreSQL where FIRNLINE_TEST_POSTGRES names a server; each is served by one worker,
and all are asked the same in turns. The ratio is that of the CPU times of the largest and the
smallest catalog: 1 is a search whose cost does not depend on the catalog. A million items take
2 GB and some minutes.

A SERVER is the URL of any STAC server that holds the same items, or that of one of firnline's
databases, which is served here: so peers stand beside each other in one run. Of a server on this
machine the CPU time is known; that of its database is counted too if that one's process is given
(of PostgreSQL the first line of `postmaster.pid`). `--write FOLDER` writes the items and their
collection as NDJSON, to be loaded there: see docs/searching.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from _catalog import CODES, REGIONS, synthetic_rows
from sqlalchemy.engine import make_url

from firnline.collections import COLLECTIONS, collection
from firnline.database import connect, migrate, put_collections, put_items, writing
from firnline.items import CUBES

_BLOCKS = 5
_LISTENS = "0A"  # state of a socket, in /proc/net/tcp
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


@dataclass(frozen=True)
class Server:
    """A STAC server to be asked; the CPU time is that of its processes, if any are known."""

    url: str
    pids: tuple[int, ...] = ()

    @property
    def cpu_seconds(self) -> float:
        """So far."""
        return sum(map(cpu_seconds, self.pids))


def warm(servers: dict[str, Server], count: int) -> None:
    """Search each so often by place: a page of SQLite's file is mapped when first touched."""
    for server in servers.values():
        random = np.random.default_rng(2)
        for asked in (bbox_datetime_100, intersects_100):
            _block(server, asked, random, count // 2)


def ask(servers: dict[str, Server], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Of each server and request: milliseconds of CPU (the least of the blocks) and wall (median).

    They are asked the same in turns, in blocks: what else the machine does befalls all alike.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {name: {} for name in servers}
    for request, (asked, share, _) in REQUESTS.items():
        block = max(1, rounds * share // 100 // _BLOCKS)
        random = {name: np.random.default_rng(1) for name in servers}
        blocks: dict[str, list[Block]] = {name: [] for name in servers}
        for number in range(_BLOCKS + 1):  # the first warms up
            for name, server in servers.items():
                found = _block(server, asked, random[name], block)
                if number:
                    blocks[name].append(found)
        for name, server in servers.items():
            figures[name][request] = _figures(server, blocks[name])
    return figures


class Block(NamedTuple):
    """What some requests took: seconds of wall, items of each, seconds of CPU of all."""

    walls: list[float]
    items: list[int]
    cpu: float
    failed: int


def _block(server: Server, asked: Request, random: np.random.Generator, count: int) -> Block:
    walls, items, failed = [], [], 0
    with httpx.Client(base_url=server.url, timeout=120) as client:
        before = server.cpu_seconds
        for _ in range(count):
            start = time.perf_counter()
            try:
                answer = asked(client, random).raise_for_status()
            except (httpx.HTTPStatusError, ValueError):  # no next page, where one should be
                failed += 1
                continue
            walls.append(time.perf_counter() - start)
            items.append(len(answer.json().get("features", [0])))
        return Block(walls, items, server.cpu_seconds - before, failed)


def _figures(server: Server, blocks: list[Block]) -> dict[str, float]:
    walls = [wall for block in blocks for wall in block.walls]
    failed = sum(block.failed for block in blocks)
    if not walls:
        return {"failed": failed}
    figures = {
        "wall_ms": round(1e3 * statistics.median(walls), 2),
        "items": round(statistics.mean(n for block in blocks for n in block.items), 1),
    }
    if server.pids:
        each = [block.cpu / (len(block.walls) + block.failed) for block in blocks]
        figures["cpu_ms"] = round(1e3 * min(each), 2)
    return figures | ({"failed": failed} if failed else {})


def listening(url: str) -> tuple[int, ...]:
    """The process of this machine that listens where a URL points to; none if that can't be told.

    From the sockets in /proc/net/tcp, and who of the processes has them open.
    """
    parsed = httpx.URL(url)
    if parsed.host not in ("127.0.0.1", "localhost", "::1"):
        return ()
    port = f":{parsed.port or 80:04X}"
    sockets = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        lines = path.read_text().splitlines()[1:] if path.exists() else []
        for fields in map(str.split, lines):
            if fields[1].endswith(port) and fields[3] == _LISTENS:
                sockets.add(f"socket:[{fields[9]}]")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = {str(file.readlink()) for file in (process / "fd").iterdir()}
        except OSError:  # another user's, or it has ended
            continue
        if files & sockets:
            found.append(int(process.name))
    return (min(found),) if found else ()  # the first of several: the others are its children


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and its children, to the nanosecond where Linux tells (schedstat)."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        children = (tasks / str(pid) / "children").read_text().split()
        own = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
    except OSError:  # it has ended
        return 0.0
    return own / 1e9 + sum(cpu_seconds(int(child)) for child in children)


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
def served(database: str) -> Iterator[Server]:
    """One worker over a catalog."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
            yield Server(url, (server.pid,))
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

        name = f"firnline_search_{os.getpid()}_{count}"
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
    with ExitStack() as open_:
        servers = {}
        for count in counts:
            for kind, database in open_.enter_context(databases(count)).items():
                fill(database, count)
                servers[f"{kind} {count:,}"] = open_.enter_context(served(database))
        figures = ask(servers, rounds)
    least, most = f"{min(counts):,}", f"{max(counts):,}"
    kinds = dict.fromkeys(name.split()[0] for name in servers)
    growth = {
        kind: {
            request: round(figures[f"{kind} {most}"][request]["cpu_ms"] / small["cpu_ms"], 2)
            for request, small in figures[f"{kind} {least}"].items()
        }
        for kind in kinds
    }
    return {"requests": figures, "growth": growth}


def given(text: str, open_: ExitStack) -> tuple[str, Server]:
    """Name and server of an argument."""
    name, is_named, rest = text.partition("=")
    if not is_named or "/" in name:
        name, rest = "", text
    url, *pids = rest.split(",")
    more = tuple(map(int, pids))
    if url.startswith("http"):
        return name or httpx.URL(url).netloc.decode(), Server(url, listening(url) + more)
    parsed = make_url(url)
    server = open_.enter_context(served(url))
    default = f"{parsed.get_backend_name()} {Path(parsed.database or '').stem}"
    return name or default, replace(server, pids=server.pids + more)


def show(figures: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print a table: a request a row, CPU and wall milliseconds of each server side by side."""
    width = max(18, *map(len, figures))
    print(" " * 26 + "".join(f"  {name:>{width}}" for name in figures) + "  CPU at most")
    print(" " * 26 + f"  {'CPU ms · wall ms':>{width}}" * len(figures))
    for request, (_, _, most) in REQUESTS.items():
        cells = [_cell(found[request]) for found in figures.values()]
        row = "".join(f"  {cell:>{width}}" for cell in cells)
        print(f"{request:26}{row}  {most:11.1f}")


def _cell(figure: dict[str, float]) -> str:
    if "wall_ms" not in figure:
        return "fails"
    cpu = f"{figure['cpu_ms']:.2f} · " if "cpu_ms" in figure else ""
    return f"{cpu}{figure['wall_ms']:.2f}" + (" !" if "failed" in figure else "")


def write(folder: Path, count: int) -> None:
    """Items and their collection as NDJSON, for the loaders of others."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "collection.ndjson").write_text(json.dumps(collection(CUBES)) + "\n")
    with (folder / "items.ndjson").open("wb") as file:
        for rows in synthetic_rows(count):
            file.writelines(row.content + b"\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers", nargs="*", help="[NAME=]SERVER[,PID ...]: see above")
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--warm", type=int, default=0, help="searches by place that go before")
    parser.add_argument("--write", type=Path, help="a folder for the items, and no search")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--quick", action="store_true", help="10,000 items, few rounds")
    arguments = parser.parse_args()
    rounds = 20 if arguments.quick else 100
    if arguments.write:
        write(arguments.write, arguments.items[-1])
        return
    if arguments.servers:
        with ExitStack() as open_:
            servers = dict(given(text, open_) for text in arguments.servers)
            warm(servers, arguments.warm)
            result = {"requests": ask(servers, rounds)}
    else:
        result = run([2_000, 10_000] if arguments.quick else arguments.items, rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    show(result["requests"])
    for kind, ratios in result.get("growth", {}).items():
        told = ", ".join(f"{request}: {ratio}" for request, ratio in ratios.items())
        print(f"{kind}, ratio of the largest to the smallest: {told}")


if __name__ == "__main__":
    main()
