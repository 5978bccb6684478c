"""The catalog to a file, from a file, and to another database: time and memory.

20,000 synthetic cubes' items of 6 kB in SQLite, and ten times as many, since memory must not grow
with their number. References, measured in the same run on the 20,000: the library stac-geoparquet,
from NDJSON and back to dicts (it can't hold the empty objects of our items, which are left out for
it); and SQLite's own copy of the database, page by page and without a proof.

    python benchmarks/exchange.py [--json] [--quick] [--postgres URL]

With --postgres, the URL of an empty database, the larger catalog is moved there as well.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
from _measure import measure, report, table
from harvest import made_up_catalog

FULL, QUICK = (20_000, 200_000), (2_000, 20_000)
BATCH = 2_000


def prepare(folder: Path, count: int) -> None:
    """A database of so many items, and what the library can take of them as NDJSON."""
    from firnline.collections import COLLECTIONS, collection
    from firnline.database import connect, migrate, put_collections, put_items, writing
    from firnline.indexer.catalog import read_catalog
    from firnline.items import cube_item, encode, item_row

    records, _ = read_catalog(made_up_catalog())
    engine = connect(f"sqlite:///{folder / 'catalog.db'}")
    migrate(engine)
    with writing(engine) as connection, (folder / "library.ndjson").open("wb") as lines:
        put_collections(connection, [(id, encode(collection(id))) for id in COLLECTIONS])
        for first in range(0, count, BATCH):
            rows = []
            for n in range(first, min(first + BATCH, count)):
                record = records[n % len(records)]
                item = cube_item(record, last_year=2026)
                item["id"] = f"{record.id}-{n:06d}"
                rows.append(item_row(item, record.footprint, "synthetic"))
                for asset in item["assets"].values():
                    asset["xarray:open_kwargs"] = {"engine": "zarr"}
                lines.write(orjson.dumps(item | {"links": []}) + b"\n")
            put_items(connection, rows)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def work(method: str, folder: Path, other: str) -> dict[str, Any]:
    """One of the things measured; what it made, in megabytes."""
    from firnline.database import connect, migrate
    from firnline.indexer.exports import export_catalog
    from firnline.indexer.imports import import_catalog
    from firnline.transfer import transfer

    what, _, how = method.partition(" ")
    if what == "export":
        path = folder / f"out.{how}"
        export_catalog(connect(f"sqlite:///{folder / 'catalog.db'}"), path)
        return {"mb": path.stat().st_size / 1e6}
    if what == "import":
        path = folder / f"{how}.db"
        engine = connect(f"sqlite:///{path}")
        migrate(engine)
        done = import_catalog(engine, folder / f"out.{how}")
        assert not done.failures
        return {"mb": path.stat().st_size / 1e6}
    if what == "move":
        target = other if how == "to PostgreSQL" else f"sqlite:///{folder / 'moved.db'}"
        moved = transfer(connect(f"sqlite:///{folder / 'catalog.db'}"), connect(target))
        assert all(each.same for each in moved)
        return {}
    return _reference(how, folder)


def _reference(how: str, folder: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq
    from stac_geoparquet.arrow import parse_stac_ndjson_to_parquet, stac_table_to_items

    path = folder / "library.parquet"
    if how == "writes":
        parse_stac_ndjson_to_parquet(folder / "library.ndjson", path, compression="zstd")
        return {"mb": path.stat().st_size / 1e6}
    if how == "reads":

        def batches() -> Iterator[Any]:
            yield from pq.ParquetFile(path).iter_batches(batch_size=BATCH)

        for batch in batches():
            for _ in stac_table_to_items(_stream(batch)):
                pass
        return {}
    source = sqlite3.connect(folder / "catalog.db")
    with sqlite3.connect(folder / "backup.db") as target:
        source.backup(target)
    return {}


def _stream(batch: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatchReader.from_batches(batch.schema, [batch])


METHODS = {
    "export parquet": "library writes",
    "import parquet": "library reads",
    "export ndjson": None,
    "import ndjson": None,
    "move to SQLite": "library backup",
}
"""What is measured, and its reference."""


def run(count: int, postgres: str, *, compared: bool) -> dict[str, Any]:
    """All figures for so many items."""
    methods = list(METHODS)
    if compared:
        methods += filter(None, METHODS.values())
    elif postgres:
        methods.append("move to PostgreSQL")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), count)
        for method in methods:
            figures[method] = measure(__file__, method, "--folder", name, "--postgres", postgres)
    for method, reference in METHODS.items():
        if reference in figures:
            for key in ("cpu_seconds", "own_mb"):
                ratio = figures[method][key] / figures[reference][key]
                figures[method][f"x {key}"] = round(ratio, 2)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--postgres", default="")
    parser.add_argument("--method")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.method:
        report(lambda: work(args.method, args.folder, args.postgres))
        return
    figures = {
        f"{count:,} items": run(count, args.postgres, compared=compared)
        for count, compared in zip(QUICK if args.quick else FULL, (True, False), strict=True)
    }
    if args.json:
        print(json.dumps(figures))
        return
    columns = {
        "seconds": ".1f",
        "own_mb": ".0f",
        "mb": ".1f",
        "x seconds": ".2f",
        "x own_mb": ".2f",
    }
    for name, rows in figures.items():
        print(f"\n{name}")
        table(rows, columns)


if __name__ == "__main__":
    main()
