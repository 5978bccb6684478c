"""The SELECTs, compiled for both databases without either."""

import re
from datetime import UTC, datetime

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from firnline.api import query
from firnline.api.area import from_bbox
from firnline.api.searches import NEWEST, Cursor, Search, SortKey, Way

DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}
AFTER = Cursor((datetime(2020, 1, 1, tzinfo=UTC),), "itslive-cubes", "x")
AREA = from_bbox([170, 60, -170, 80])


def sql(search: Search, dialect: str, way: Way = Way.GATHER) -> str:
    statement = query.page(search.shape, way, dialect)
    return " ".join(str(statement.compile(dialect=DIALECTS[dialect])).split())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("way", Way)
def test_never_an_offset(dialect: str, way: Way) -> None:
    for after in (None, AFTER):
        for area in (None, AREA):
            text = sql(Search(after=after, area=area), dialect, way)
            assert "LIMIT" in text
            assert "ORDER BY" in text
            if dialect == "postgresql":
                assert "OFFSET" not in text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_gathered_matches_are_found_once_for_the_page_and_their_number(dialect: str) -> None:
    text = sql(Search(area=AREA, after=AFTER), dialect)
    assert len(re.findall(r"ST_Intersect\w+\(", text)) == 1
    assert "count(*)" in text
    assert "AS MATERIALIZED" in text  # else the order's index would be walked for a few matches


@pytest.mark.parametrize("dialect", DIALECTS)
def test_walking_looks_nothing_up(dialect: str) -> None:
    text = sql(Search(area=AREA, start=AFTER.values[0]), dialect, Way.WALK)
    assert "rtree" not in text
    assert "count(*)" not in text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_walk_goes_on_with_a_seek_for_each_column(dialect: str) -> None:
    order = (*NEWEST, SortKey("start_datetime"), SortKey("platform"))
    values = (AFTER.values[0], AFTER.values[0], None, "landsat-8")
    after = Cursor(values, AFTER.collection, AFTER.id)
    text = sql(Search(order=order, after=after), dialect, Way.WALK)
    # end, start, (no later number than none), platform as a word, and the id itself
    assert text.count("UNION ALL") == 3


def test_postgis_gets_a_geometry_and_no_rtree() -> None:
    text = sql(Search(area=AREA), "postgresql")
    assert "ST_Intersects(items.footprint, ST_GeomFromWKB(" in text
    assert "rtree" not in text


def test_sqlite_asks_the_rtree_with_time() -> None:
    start, end = datetime(2000, 1, 2, tzinfo=UTC), datetime(2000, 1, 3, tzinfo=UTC)
    search = Search(area=AREA, start=start, end=end)
    statement = query.page(search.shape, Way.GATHER, "sqlite")
    compiled = statement.compile(dialect=DIALECTS["sqlite"])
    text = " ".join(str(compiled).split())
    assert "UNION ALL" in text  # a seek on each side of the antimeridian
    assert 'items_rtree."end" >= ? AND items_rtree.start <= ?' in text
    assert {1 / 365.25, 2 / 365.25} <= {v for v in search.values.values() if isinstance(v, float)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_ids_without_collections_use_the_unique_index(dialect: str) -> None:
    assert "items.collection IN (SELECT collections.id" in sql(Search(ids=("a",)), dialect)


def test_fingerprint_tells_searches_apart_and_not_their_pages() -> None:
    base = Search(ids=("a", "b"), area=AREA)
    assert base.fingerprint == Search(ids=("b", "a"), area=AREA, limit=99, after=AFTER).fingerprint
    others = [
        Search(ids=("a",), area=AREA),
        Search(ids=("a", "b")),
        Search(collections=("a", "b"), area=AREA),
        Search(ids=("a", "b"), area=AREA, end=AFTER.values[0]),
        Search(ids=("a", "b"), area=AREA, filter={"op": "=", "args": [1, 1]}),
        Search(ids=("a", "b"), area=AREA, words=("ice",)),
        Search(ids=("a", "b"), area=AREA, order=(SortKey("id"),)),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 8
