"""Numbers of matches: exact for small catalogs, estimates with a bound for large ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from sqlalchemy import Engine

from firnline.api import matched
from firnline.api.area import from_bbox, from_geojson
from firnline.api.matched import SAMPLE, Trial, choose
from firnline.api.searches import Search, Way
from firnline.database import ItemRow, reading, retire_items, writing
from tests.api.conftest import CUBES, Client, box, make_item, put

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
COUNT = 3_000


@pytest.fixture
def many(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[ItemRow]:
    """A catalog that counts as a large one: uniform in longitude and time, every tenth retired."""
    monkeypatch.setattr(matched, "EXACT", 1_000)
    rng = np.random.default_rng(8)
    rows = []
    for n in range(COUNT):
        start = EPOCH + timedelta(days=int(rng.integers(0, 3_000)))
        west = rng.uniform(-180, 179)
        rows.append(make_item(f"i{n}", box(west, 0, west + 1, 1), start, start))
    put(engine, rows)
    with writing(engine) as connection:
        retire_items(connection, CUBES, [row.id for row in rows[::10]])
    return [row for n, row in enumerate(rows) if n % 10]


def around(number: dict[str, Any], truth: int) -> None:
    error = number["firnline:numberMatchedError"]
    assert 0 < error <= 0.06 * COUNT
    assert abs(number["numberMatched"] - truth) <= 1.5 * error  # three standard errors


def test_all(client: Client, many: list[ItemRow]) -> None:
    page = client.get("/search")
    around(page, len(many))
    assert page["numberReturned"] == 10


def test_broad_searches_are_walked_and_estimated(client: Client, many: list[ItemRow]) -> None:
    truth = [row for row in many if row.footprint.bounds[2] >= -60]
    page = client.get("/search", bbox="-60,0,180,1")
    around(page, len(truth))
    truth = [row for row in many if row.end >= EPOCH + timedelta(days=1_000)]
    around(client.get("/search", datetime="2002-09-27T00:00:00Z/.."), len(truth))


def test_a_walk_to_the_last_page_finds_all_and_keeps_the_number(
    client: Client, many: list[ItemRow]
) -> None:
    pages = list(client.pages("/search", bbox="-60,0,180,1", limit=400))
    got = [item["id"] for page in pages for item in page["features"]]
    truth = [row for row in many if row.footprint.bounds[2] >= -60]
    truth.sort(key=lambda row: (-row.end.timestamp(), row.id))
    assert got == [row.id for row in truth]
    assert len({page["numberMatched"] for page in pages}) == 1


def test_narrow_searches_are_gathered_and_counted(client: Client, many: list[ItemRow]) -> None:
    truth = [
        row.id for row in many if row.footprint.bounds[2] >= 10 and row.footprint.bounds[0] <= 12
    ]
    page = client.get("/search", bbox="10,0,12,1", limit=5)
    assert page["numberMatched"] == len(truth) > 5
    assert "firnline:numberMatchedError" not in page
    assert sorted(client.ids(bbox="10,0,12,1", limit=5)) == sorted(truth)


def test_a_page_that_is_all_is_counted(client: Client, many: list[ItemRow]) -> None:
    page = client.get("/search", bbox="-60,0,180,1", limit=5_000)
    assert page["numberMatched"] == page["numberReturned"]
    assert "firnline:numberMatchedError" not in page


def test_the_way(engine: Engine, many: list[ItemRow]) -> None:
    with reading(engine) as connection:
        assert choose(connection, Search()).way is Way.WALK
        assert choose(connection, Search(ids=("i1",))).way is Way.GATHER


def test_an_empty_catalog(client: Client) -> None:
    assert client.get("/search", bbox="0,0,1,1")["numberMatched"] == 0


@pytest.mark.parametrize("share", [0.0, 0.003, 0.1, 0.5, 0.97, 1.0])
def test_the_bound_holds_for_19_of_20_samples(share: float) -> None:
    """Of a binomial draw; at least 93 %, as Agresti and Coull (1998) show for theirs."""
    span = 200_000
    rng = np.random.default_rng(3)
    within = []
    for found in rng.binomial(SAMPLE, share, 2_000):
        estimate = Trial(span, int(found)).matched()
        within.append(abs(estimate.number - share * span) <= estimate.error)
    assert np.mean(within) >= 0.93


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_of_many_boxes_the_newest_are_looked_at(
    client: Client, engine: Engine, many: list[ItemRow]
) -> None:
    """Pages and numbers are those of all matches, where a few of the boxes make a page."""
    triangle = {"type": "Polygon", "coordinates": [[[0, 0], [20, 1.8], [0, 3], [0, 0]]]}
    shape = shapely.geometry.shape(triangle)
    by_end = sorted(many, key=lambda row: (-row.end.timestamp(), row.id))
    since = EPOCH + timedelta(days=1_500)
    truth = [row.id for row in by_end if row.footprint.intersects(shape) and row.end >= since]
    asked = {"intersects": orjson.dumps(triangle).decode(), "datetime": "2004-02-09T00:00:00Z/.."}
    with reading(engine) as connection:
        plan = choose(connection, Search(area=from_geojson(triangle), start=since, limit=5))
    assert plan.way is Way.GATHER
    assert plan.since is not None
    assert plan.since > since
    first = client.get("/search", limit=5, **asked)
    assert abs(first["numberMatched"] - len(truth)) <= 1.5 * first["firnline:numberMatchedError"]
    assert client.ids(limit=5, **asked) == truth


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_boxes_at_the_end_of_the_calendar(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The R*Tree rounds their ends beyond it."""
    monkeypatch.setattr(matched, "EXACT", 10)
    last = datetime.max.replace(tzinfo=UTC)
    put(engine, [make_item(f"i{n:03d}", box(0, 0, 1, 1), EPOCH, last) for n in range(60)])
    put(engine, [make_item(f"j{n:04d}", box(9, 9, 10, 10), EPOCH, last) for n in range(3_000)])
    with reading(engine) as connection:
        plan = choose(connection, Search(area=from_bbox([0, 0, 1, 1]), limit=5))
    assert plan.since == last
    assert client.ids(bbox="0,0,1,1", limit=5) == [f"i{n:03d}" for n in range(60)]
