"""Pages walked over HTTP while another process upserts, retires and adds items."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from firnline.api import matched
from tests.api.conftest import box, make_item, put

STAYING = 400
_HARVEST = """
import itertools, os, random, sys
from firnline.database import connect, retire_items, writing
from tests.api.conftest import CUBES, put
from tests.api.test_paging_under_harvest import STAYING, coming, staying

engine = connect(sys.argv[1])
for n in itertools.count():
    chosen = random.Random(n).sample(range(STAYING), 40)
    put(engine, [staying(k, version=n) for k in chosen] + [coming(n, k) for k in range(20)])
    if n > 2:
        with writing(engine) as connection:
            retire_items(connection, CUBES, [coming(n - 2, k).id for k in range(20)])
    print(n, flush=True)
"""


def staying(n: int, version: int = 0) -> Any:
    """Items in groups that end at the same time; each version is elsewhere, within the same box."""
    end = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=n // 50)
    west = (n * 7 + version) % 100 / 10
    return make_item(
        f"staying-{n:03d}", box(west, 70, west + 1, 71), end=end, properties={"version": version}
    )


def coming(round: int, n: int) -> Any:
    """Items among them in every order."""
    end = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=10 * n)
    return make_item(f"s{round % 7}-{n:02d}", box(n / 2, 70, n / 2 + 1, 71), end=end)


@contextmanager
def harvesting(url: str) -> Iterator[threading.Semaphore]:
    """Another process that writes all the time; what is given counts its transactions."""
    rounds = threading.Semaphore(0)
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _HARVEST, url],
        stdout=subprocess.PIPE,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    ) as child:

        def count() -> None:
            assert child.stdout is not None
            for _ in child.stdout:
                rounds.release()

        reader = threading.Thread(target=count)
        reader.start()
        try:
            yield rounds
            assert child.poll() is None, "the other process stopped"
        finally:
            child.kill()
            reader.join()


SEARCHES: list[dict[str, Any]] = [
    {},
    {"bbox": [0, 69, 12, 72]},
    {"datetime": "2019-06-01T00:00:00Z/..", "bbox": [0, 69, 12, 72]},
    {"bbox": [0, 69, 12, 72], "sortby": [{"field": "id", "direction": "asc"}]},
    {"filter": {"op": ">=", "args": [{"property": "version"}, 0]}},
]


@pytest.mark.parametrize("large", [False, True], ids=["counted", "sampled"])
def test_no_item_twice_and_none_lost(
    served: str, engine: Engine, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(matched, "EXACT", 10)
    put(engine, [staying(n) for n in range(STAYING)])
    there = {staying(n).id for n in range(STAYING)}
    url = engine.url.render_as_string(hide_password=False)
    with harvesting(url) as rounds, httpx.Client(base_url=served, timeout=60) as client:
        for search in SEARCHES:
            got: list[str] = []
            body, pages = {**search, "limit": 37}, 0
            while body:
                while rounds.acquire(blocking=False):
                    pass
                assert rounds.acquire(timeout=60)  # it has written since the page before
                page = client.post("/search", json=body).raise_for_status().json()
                got += [item["id"] for item in page["features"]]
                pages += 1
                body = next((each["body"] for each in page["links"] if each["rel"] == "next"), None)
            assert pages >= STAYING // 37
            assert len(got) == len(set(got))
            missing = there - set(got)
            assert not missing
