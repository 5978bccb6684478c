"""What it takes to count the items of a search, and to tell which properties there are.

    python benchmarks/aggregate.py [--json] [--items N]

Items by region, by year, and all; by geohash; the first within a box too; and the queryables as
they are read once a minute. The reference, in the same run, reads the same items' columns from the
same database and counts them in Python. SQLite, and PostgreSQL where FIRNLINE_TEST_POSTGRES names a
server; CPU seconds of this process, and wall seconds, in which those of PostgreSQL are too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from search import databases, fill
from sqlalchemy import Connection, select

from firnline.api import query
from firnline.api.aggregations import answers, available
from firnline.api.area import from_bbox
from firnline.api.query import Search, Way
from firnline.api.summaries import summarised
from firnline.database import connect, reading
from firnline.items import CUBES
from firnline.tables import items

BOX = Search(area=from_bbox([-60, 60, -20, 80]))
NAMES = ["total_count", "datetime_frequency", "itslive:region_frequency"]


def reference(connection: Connection, search: Search) -> int:
    """The same three counts in Python."""
    found = query.conditions(search, Way.GATHER, connection.dialect.name)
    columns = (items.c.properties, items.c.start_datetime, items.c.end_datetime)
    regions: Counter[str] = Counter()
    years: Counter[int] = Counter()
    total = 0
    for properties, start, end in connection.execute(select(*columns).where(*found)):
        total += 1
        regions[properties["itslive:region"]] += 1
        years.update(range(start.year, end.year + 1))
    return total


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU and wall seconds, the least of three."""
    times = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(times)


def run(connection: Connection) -> dict[str, Any]:
    """Seconds and ratios of one database."""
    there = available(summarised(connection, CUBES))
    three = [there[name] for name in NAMES]
    cells = [there["centroid_geohash_grid_frequency"]]
    seconds = {
        "reference, all": timed(lambda: reference(connection, Search())),
        "reference, box": timed(lambda: reference(connection, BOX)),
        "counts, all": timed(lambda: answers(connection, Search(), three)),
        "counts, box": timed(lambda: answers(connection, BOX, three)),
        "geohashes, all": timed(lambda: answers(connection, Search(), cells)),
        "geohashes, box": timed(lambda: answers(connection, BOX, cells)),
        "queryables": timed(lambda: summarised(connection, CUBES)),
    }
    return {
        name: {
            "cpu": round(cpu, 4),
            "wall": round(wall, 4),
            "wall_ratio": round(wall / seconds[f"reference, {name[-3:]}"][1], 3)
            if name[-3:] in ("all", "box")
            else None,
        }
        for name, (cpu, wall) in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    results = {}
    with databases(arguments.items) as urls:
        for name, url in urls.items():
            fill(url, arguments.items)
            engine = connect(url)
            with reading(engine) as connection:
                results[name] = run(connection)
            engine.dispose()
    if arguments.json:
        sys.stdout.write(json.dumps(results) + "\n")
        return
    for name, figures in results.items():
        print(f"{name}, {arguments.items:,} items     CPU s    wall s   of the reference")
        for what, each in figures.items():
            ratio = "" if each["wall_ratio"] is None else f"{each['wall_ratio']:.2f}"
            print(f"  {what:24} {each['cpu']:9.3f} {each['wall']:9.3f} {ratio:>10}")


if __name__ == "__main__":
    main()
