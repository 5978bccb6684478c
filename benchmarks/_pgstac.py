"""Loads items into pgstac, for `benchmarks/harvest.py`; runs where pypgstac is installed.

python benchmarks/_pgstac.py DSN COLLECTION.ndjson ITEMS.ndjson

The database is empty but for PostGIS. Prints seconds of loading all items into the empty
database, and over themselves, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version

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
        for name, method in (("insert", Methods.insert), ("replace", Methods.upsert)):
            start = time.perf_counter()
            loader.load_items(items, method)
            figures[f"{name}_seconds"] = time.perf_counter() - start
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
