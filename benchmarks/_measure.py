"""What the benchmarks share: a function measured in a process of its own, databases, printing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def measure(script: str, method: str, *arguments: str) -> dict[str, Any]:
    """Run ``script --method METHOD ARGUMENTS`` and return the figures that it prints."""
    run = subprocess.run(
        [sys.executable, script, "--method", method, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return figures


def report(work: Callable[[], dict[str, Any]]) -> None:
    """Do the work in this process; print wall and CPU seconds and the peak memory as JSON.

    ``peak_mb`` is all that was resident; ``own_mb``, sampled, is without mapped files, as that of
    an SQLite database.
    """
    done, own = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            own[0] = max(own[0], _status_mb("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before, cpu = time.perf_counter(), time.process_time()
    extra = work()
    done.set()
    watcher.join()
    figures = {
        "seconds": time.perf_counter() - before,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": _status_mb("VmHWM"),  # getrusage's is inherited from the parent, which is big
        "own_mb": own[0],
    }
    sys.stdout.write(json.dumps(figures | extra) + "\n")


def _status_mb(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/self/status: this benchmark needs Linux")


def server_cpu(backend: int) -> float:
    """CPU seconds so far of a PostgreSQL server on this machine, all its processes together.

    `backend` is the process of any of its connections (``pg_backend_pid``).
    """
    times: dict[int, tuple[int, list[int]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        times[int(path.parent.name)] = int(fields[1]), [int(field) for field in fields[11:15]]
    server = times[backend][0]
    # of the server's own process also what those took that have ended
    ticks = sum(times[server][1])
    ticks += sum(sum(own[:2]) for parent, own in times.values() if parent == server)
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(folder: Path, *, latency: float = 0.0, bandwidth: float | None = None) -> Iterator[str]:
    """Serve a mirror from a process of its own; yields its URL."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "firnline.indexer.mirror", str(folder)]
    command += ["--latency", str(latency)]
    if bandwidth is not None:
        command += ["--bandwidth", str(bandwidth)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@contextmanager
def postgresql(given: str | None, options: Mapping[str, str] | None = None) -> Iterator[str | None]:
    """URL of an empty database, made by what the tests use; None where there is no server.

    `given` is a server to make it on; else one is started, with `options` or those of the tests,
    which do without durability.
    """
    try:
        module = _of_the_tests("databases")
    except ImportError:  # without pytest or psycopg
        yield None
        return
    if given:
        server = module.PostgresServer(given)
        with server.database() as name:
            yield server.url(name)
        return
    if not list(Path("/usr/share/postgresql").glob("*/extension/postgis.control")):
        yield None
        return
    more = () if options is None else (options,)
    with module._private_server(*more) as server, server.database() as name:
        yield server.url(name)


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Start the tests' S3 server; yields the variables by which its bucket ``private`` is read."""
    with _of_the_tests("s3").running() as server:
        yield server.credentials


def _of_the_tests(name: str) -> Any:
    path = Path(__file__).parents[1] / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def table(rows: dict[str, dict[str, Any]], columns: dict[str, str]) -> None:
    """Print rows by name; `columns` maps a key to a format."""
    width = max(map(len, rows))
    print(" " * width, *(f"{key:>12}" for key in columns))
    for name, row in rows.items():
        cells = (format(row[key], form) if key in row else "" for key, form in columns.items())
        print(f"{name:{width}}", *(f"{cell:>12}" for cell in cells))
