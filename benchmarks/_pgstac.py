"""Loads items into pgstac, for `benchmarks/harvest.py`; runs where pypgstac is installed.

python benchmarks/_pgstac.py DSN COLLECTION.ndjson ITEMS.ndjson

The database is empty but for PostGIS. Prints seconds, wall and CPU of both sides, of loading all
items into the empty database, and over themselves, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

from _measure import server_cpu
from pypgstac.db import PgstacDB
from pypgstac.load import Loader, Methods
from pypgstac.migrate import Migrate


def main() -> None:
    dsn, collection, items = sys.argv[1:]
    with PgstacDB(dsn=dsn) as database:
        Migrate(database).run_migration()
        loader = Loader(database)
        loader.load_collections(collection, Methods.upsert)
        figures: dict[str, object] = {"pypgstac": version("pypgstac")}
        pid = database.connect().execute("SELECT pg_backend_pid()").fetchone()[0]
        for name, method in (("insert", Methods.insert), ("replace", Methods.upsert)):
            start, cpu = time.perf_counter(), time.process_time() + server_cpu(pid)
            loader.load_items(items, method)
            figures[name] = [
                time.perf_counter() - start,
                time.process_time() + server_cpu(pid) - cpu,
            ]
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
