"""The SELECTs, compiled for both databases without either."""

from datetime import UTC, datetime

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from firnline.api import query
from firnline.api.area import from_bbox
from firnline.api.query import Cursor, Search

DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}
AFTER = Cursor(datetime(2020, 1, 1, tzinfo=UTC), "itslive-cubes", "x")
AREA = from_bbox([170, 60, -170, 80])


def sql(search: Search, dialect: str, what=query.page) -> str:
    return " ".join(str(what(search, dialect).compile(dialect=DIALECTS[dialect])).split())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_never_an_offset(dialect: str) -> None:
    for after in (None, AFTER):
        for area in (None, AREA):
            text = sql(Search(after=after, area=area), dialect)
            assert "LIMIT" in text
            assert "ORDER BY" in text
            if dialect == "postgresql":
                assert "OFFSET" not in text


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_predicate_runs_once_for_a_page_and_its_count(dialect: str) -> None:
    text = sql(Search(area=AREA, after=AFTER), dialect)
    assert text.count("ST_Intersects") == 1
    assert "count(*)" in text


def test_postgis_gets_a_geometry_and_no_rtree() -> None:
    text = sql(Search(area=AREA), "postgresql")
    assert "ST_Intersects(items.footprint, ST_GeomFromWKB(" in text
    assert "rtree" not in text


def test_sqlite_asks_the_rtree_with_time() -> None:
    start, end = datetime(2000, 1, 2, tzinfo=UTC), datetime(2000, 1, 3, tzinfo=UTC)
    statement = query.page(Search(area=AREA, start=start, end=end), "sqlite")
    compiled = statement.compile(dialect=DIALECTS["sqlite"])
    text = " ".join(str(compiled).split())
    assert "UNION ALL" in text  # a seek on each side of the antimeridian
    assert 'items_rtree.start <= ? AND items_rtree."end" >= ?' in text
    assert {1.0, 2.0} <= {v for v in compiled.params.values() if isinstance(v, float)}


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
        Search(ids=("a", "b"), area=AREA, end=AFTER.end),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 5
