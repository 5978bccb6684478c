"""Schema, transactions, items and boxes, on SQLite and on PostgreSQL with PostGIS."""

from __future__ import annotations

import re
import socket
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shapely
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Point, box
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Boolean, Connection, Engine, func, insert, inspect, literal, select, text

from firnline.database import (
    ItemRow,
    connect,
    delete_items,
    get_item,
    is_empty,
    item_boxes,
    migrate,
    overview,
    put_collections,
    put_items,
    reading,
    writing,
)
from firnline.errors import DatabaseError, InputError
from firnline.tables import (
    Footprint,
    collections,
    harvests,
    items,
    items_rtree,
    metadata,
    to_microseconds,
)

CUBES = "itslive-cubes"
START, END = datetime(2018, 1, 1, tzinfo=UTC), datetime(2019, 1, 1, tzinfo=UTC)
SLOW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def row(id: str, footprint: BaseGeometry, content: bytes = b"{}", **more: Any) -> ItemRow:
    values = {"collection": CUBES, "start": START, "end": END, "digest": "d", "source": "s"}
    return ItemRow(id=id, footprint=footprint, content=content, **{**values, **more})


def rtree(connection: Connection) -> dict[int, tuple[float, ...]]:
    rows = connection.execute(select(items_rtree)).all()
    return {r[0]: tuple(r[1:]) for r in rows}


def keys(connection: Connection) -> dict[str, int]:
    return {id: key for id, key in connection.execute(select(items.c.id, items.c.key))}


@pytest.fixture
def catalog(database: Engine) -> Engine:
    """A database with one collection."""
    with writing(database) as connection:
        put_collections(connection, [(CUBES, b"{}"), ("subsets", b"{}")])
    return database


# --- the schema -----------------------------------------------------------------------------


def _rtree_and_postgis(name: str | None, type_: str, parents: object) -> bool:
    return not (
        type_ == "table" and name and (name.startswith("items_rtree") or name == "spatial_ref_sys")
    )


def _exists_here(thing: Any, name: str | None, type_: str, reflected: bool, other: Any) -> bool:
    return not (type_ == "index" and name == "ix_items_footprint")


def test_alembic_finds_no_difference_between_migrations_and_tables(database: Engine) -> None:
    with database.connect() as connection, warnings.catch_warnings():
        # SQLite's expression index can't be reflected: `_schema` below compares it
        warnings.filterwarnings("ignore", message="(?s).*expression-based index")
        warnings.filterwarnings("ignore", message="(?s).*autogenerate skipping")
        options = {
            "include_name": _rtree_and_postgis,
            "include_object": _exists_here,
            "compare_type": True,
            "compare_server_default": True,
        }
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def _schema(engine: Engine) -> dict[str, Any]:
    """Tables, columns, keys and indexes as the database itself tells them."""
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT name, type, sql FROM sqlite_master WHERE tbl_name NOT LIKE 'items_rtree%' "
                "AND tbl_name <> 'alembic_version' AND sql IS NOT NULL"
            ).all()

        def parts(statement: str) -> list[str]:
            body = re.sub(r"\s+", " ", statement).replace('"', "")
            if not body.startswith("CREATE TABLE"):
                return [body]
            inside = body[body.index("(") + 1 : body.rindex(")")]
            return sorted(part.strip() for part in re.split(r",\s*(?![^()]*\))", inside))

        return {name: (type_, parts(statement)) for name, type_, statement in rows}
    with engine.connect() as connection:
        ours = "schemaname = 'public' AND tablename NOT IN ('alembic_version', 'spatial_ref_sys')"
        columns = connection.exec_driver_sql(
            "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, "
            "pg_get_expr(d.adbin, d.adrelid) FROM pg_attribute a "
            "JOIN pg_class c ON c.oid = a.attrelid "
            "LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum "
            f"WHERE a.attnum > 0 AND c.relname IN (SELECT tablename FROM pg_tables WHERE {ours})"  # noqa: S608
        ).all()
        indexes = connection.exec_driver_sql(
            f"SELECT indexname, indexdef FROM pg_indexes WHERE {ours}"  # noqa: S608
        ).all()
        constraints = connection.exec_driver_sql(
            "SELECT conname, pg_get_constraintdef(c.oid) FROM pg_constraint c "
            "JOIN pg_class t ON t.oid = c.conrelid WHERE t.relname <> 'spatial_ref_sys' "
            "AND t.relname <> 'alembic_version' AND connamespace = 'public'::regnamespace"
        ).all()
    return {
        "columns": {tuple(c[:2]): tuple(c[2:]) for c in columns},
        "indexes": dict(tuple(i) for i in indexes),
        "constraints": dict(tuple(c) for c in constraints),
    }


def test_the_schema_of_the_migrations_is_that_of_the_tables(
    database: Engine, bare_url: str
) -> None:
    """Independent of alembic: what the database's own catalog says of both."""
    other = connect(bare_url)
    if other.dialect.name != database.dialect.name:
        pytest.skip("one of each kind")
    with other.begin() as connection:
        if other.dialect.name == "postgresql":
            connection.execute(text("CREATE EXTENSION postgis"))
        metadata.create_all(connection)
    migrated, created = _schema(database), _schema(other)
    other.dispose()
    assert created == migrated
    assert len(migrated) >= 3


def test_upgrade_downgrade_upgrade(bare_url: str) -> None:
    engine = connect(bare_url)
    migrate(engine)
    before = _schema(engine)
    with writing(engine) as connection:
        put_collections(connection, [(CUBES, b"{}")])
        put_items(connection, [row("a", box(0, 0, 1, 1))])
    config = Config()
    config.set_main_option("script_location", "firnline:migrations")
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    left = set(inspect(engine).get_table_names()) - {"alembic_version", "spatial_ref_sys"}
    assert left == set()
    migrate(engine)
    assert _schema(engine) == before
    assert is_empty(engine)
    migrate(engine)  # a second time does nothing
    assert _schema(engine) == before
    engine.dispose()


# --- items and their boxes ------------------------------------------------------------------

ACROSS = MultiPolygon([box(170, 70, 180, 75), box(-180, 70, -160, 75)])
POLAR = box(-180, 80, 180, 90)


def test_boxes_of_footprints() -> None:
    assert item_boxes(box(-50, 69, -49, 70)) == [(-50, 69, -49, 70)]
    assert item_boxes(ACROSS) == [(-180, 70, -160, 75), (170, 70, 180, 75)]
    assert item_boxes(POLAR) == [(-180, 80, 180, 90)]
    world = MultiPolygon([box(-180, -90, -10, 90), box(-5, -90, 180, 90)])
    assert item_boxes(world) == [(-180, -90, 180, 90)]
    # two parts that don't reach the antimeridian: one box around both
    apart = MultiPolygon([box(-10, 0, -9, 1), box(9, 0, 10, 1)])
    assert item_boxes(apart) == [(-10, 0, 10, 1)]


def test_items_are_inserted_replaced_and_deleted(catalog: Engine) -> None:
    with writing(catalog) as connection:
        put_items(connection, [row("a", box(0, 0, 1, 1), b"1"), row("b", ACROSS, b"2")])
    with reading(catalog) as connection:
        first = keys(connection)
        assert get_item(connection, CUBES, "a") == b"1"
        assert get_item(connection, CUBES, "b") == b"2"
        assert get_item(connection, "subsets", "a") is None
    with writing(catalog) as connection:
        put_items(connection, [row("a", box(5, 5, 6, 6), b"3", end=END + timedelta(days=1))])
    with reading(catalog) as connection:
        assert keys(connection) == first, "a replaced item keeps its key"
        assert get_item(connection, CUBES, "a") == b"3"
        stored = connection.execute(
            select(items.c.footprint, items.c.start_datetime, items.c.end_datetime).where(
                items.c.id == "a"
            )
        ).one()
    assert shapely.from_wkb(stored[0]).equals(box(5, 5, 6, 6))
    assert stored[1:] == (START, END + timedelta(days=1))
    with writing(catalog) as connection:
        delete_items(connection, CUBES, ["a", "none such"])
        delete_items(connection, "subsets", ["b"])  # of another collection
        delete_items(connection, CUBES, [])
    with reading(catalog) as connection:
        assert list(keys(connection)) == ["b"]


def test_the_same_id_in_two_collections_are_two_items(catalog: Engine) -> None:
    with writing(catalog) as connection:
        put_items(connection, [row("a", box(0, 0, 1, 1), b"1")])
        put_items(connection, [row("a", box(9, 9, 10, 10), b"2", collection="subsets")])
    with reading(catalog) as connection:
        assert get_item(connection, CUBES, "a") == b"1"
        assert get_item(connection, "subsets", "a") == b"2"
        if catalog.dialect.name == "sqlite":
            assert sorted(b[:4] for b in rtree(connection).values()) == [
                (0, 1, 0, 1),
                (9, 10, 9, 10),
            ]
    with writing(catalog) as connection:
        delete_items(connection, CUBES, ["a"])
    with reading(catalog) as connection:
        assert get_item(connection, "subsets", "a") == b"2"
        if catalog.dialect.name == "sqlite":
            assert [b[:4] for b in rtree(connection).values()] == [(9, 10, 9, 10)]


def test_more_items_than_one_batch(catalog: Engine) -> None:
    rows = [row(f"i{n}", box(n / 10, 0, n / 10 + 0.05, 1), b"%d" % n) for n in range(1234)]
    with writing(catalog) as connection:
        put_items(connection, rows)
        put_items(connection, rows[::2])
    with reading(catalog) as connection:
        assert len(keys(connection)) == 1234
        assert get_item(connection, CUBES, "i777") == b"777"
    with writing(catalog) as connection:
        delete_items(connection, CUBES, [r.id for r in rows[:1100]])
    with reading(catalog) as connection:
        assert len(keys(connection)) == 134
        if catalog.dialect.name == "sqlite":
            assert len(rtree(connection)) == 134


def test_rtree_boxes_follow_the_items(sqlite_url: str) -> None:
    engine = connect(sqlite_url)
    days = ((START - datetime(2000, 1, 1, tzinfo=UTC)).days, (END - datetime(2000, 1, 1, tzinfo=UTC)).days)
    with writing(engine) as connection:
        put_collections(connection, [(CUBES, b"{}")])
        put_items(connection, [row("a", box(1, 2, 3, 4)), row("b", ACROSS)])
        at = keys(connection)
        assert rtree(connection) == {
            2 * at["a"]: (1, 3, 2, 4, *days),
            2 * at["b"]: (-180, -160, 70, 75, *days),
            2 * at["b"] + 1: (170, 180, 70, 75, *days),
        }
        # the item that crossed no longer does: its second box must go
        put_items(connection, [row("b", box(10, 20, 30, 40))])
        assert rtree(connection) == {
            2 * at["a"]: (1, 3, 2, 4, *days),
            2 * at["b"]: (10, 30, 20, 40, *days),
        }
        put_items(connection, [row("a", ACROSS)])
        assert sorted(rtree(connection)) == [2 * at["a"], 2 * at["a"] + 1, 2 * at["b"]]
        delete_items(connection, CUBES, ["a"])
        assert sorted(rtree(connection)) == [2 * at["b"]]
    engine.dispose()


coordinate = st.floats(-179.9, 179.9, allow_nan=False)


@SLOW
@given(west=coordinate, south=st.floats(-89.9, 89.9), at=st.integers(-(10**15), 4 * 10**15))
def test_rtree_boxes_never_miss(migrated_sqlite: Path, west: float, south: float, at: int) -> None:
    """R*Tree rounds to 32-bit floats: a point on the item's own corner must still find it."""
    engine = connect(f"sqlite:///{migrated_sqlite}")
    instant = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    day = (at - 946_684_800_000_000) / 86_400_000_000
    with engine.execution_options(firnline_writes=True).connect() as connection:
        put_collections(connection, [(CUBES, b"{}")])
        shape = box(west, south, west + 0.1, south + 0.1)
        put_items(connection, [row("a", shape, start=instant, end=instant)])
        box_ = items_rtree.c
        for x, y in ((west, south), (west + 0.1, south + 0.1)):
            found = connection.scalars(
                select(box_.id).where(
                    box_.west <= x, box_.east >= x, box_.south <= y, box_.north >= y,
                    box_.start <= day, box_.end >= day,
                )
            ).all()  # fmt: skip
            assert len(found) == 1
        connection.rollback()
    engine.dispose()


@st.composite
def shapes(draw: st.DrawFn) -> BaseGeometry:
    """Boxes, triangles, points and pairs of boxes on a small grid, so that they often touch."""
    number = st.integers(-8, 8)
    x, y, w, h = draw(number), draw(number), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["box", "triangle", "point", "two", "ring"]))
    if kind == "point":
        return Point(x, y)
    if kind == "triangle":
        return shapely.Polygon([(x, y), (x + w, y), (x, y + h)])
    if kind == "two":
        return MultiPolygon([box(x, y, x + w, y + h), box(x + w + 1, y, x + w + 2, y + h)])
    if kind == "ring":
        return box(x, y, x + 4, y + 4).difference(box(x + 1, y + 1, x + 3, y + 3))
    return box(x, y, x + w, y + h)


@SLOW
@given(stored=st.lists(shapes(), min_size=1, max_size=6), asked=st.lists(shapes(), max_size=3))
def test_st_intersects_is_shapely_s(
    database_once: Engine, stored: list[BaseGeometry], asked: list[BaseGeometry]
) -> None:
    with database_once.execution_options(firnline_writes=True).connect() as connection:
        put_collections(connection, [(CUBES, b"{}")])
        put_items(connection, [row(f"{n}", shape) for n, shape in enumerate(stored)])
        for shape in asked:
            near = func.ST_Intersects(
                items.c.footprint, literal(shapely.to_wkb(shape), Footprint()), type_=Boolean()
            )
            found = set(connection.scalars(select(items.c.id).where(near)))
            assert found == {f"{n}" for n, other in enumerate(stored) if other.intersects(shape)}
        connection.rollback()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_once(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Like `database`; a name of its own, since hypothesis uses it for many examples."""
    engine = connect(request.getfixturevalue(f"{request.param}_url"))
    yield engine
    engine.dispose()


@SLOW
@given(
    instant=st.datetimes(
        datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC) | st.timezones()
    )
)
def test_instants_come_back_to_the_microsecond(database_once: Engine, instant: datetime) -> None:
    with database_once.execution_options(firnline_writes=True).connect() as connection:
        connection.execute(insert(harvests).values(source="s", started=instant))
        back = connection.scalar(select(harvests.c.started))
        assert connection.scalar(select(harvests.c.finished)) is None
        connection.rollback()
    assert back == instant
    assert back is not None
    assert back.utcoffset() == timedelta(0)
    assert back.microsecond == instant.microsecond


def test_instants_need_a_time_zone() -> None:
    assert to_microseconds(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert to_microseconds(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)) == -1
    assert to_microseconds(datetime(2000, 1, 1, tzinfo=UTC)) == 946_684_800_000_000
    with pytest.raises(ValueError, match="time zone"):
        to_microseconds(datetime(2000, 1, 1))


# --- transactions and errors ----------------------------------------------------------------


def test_writing_is_all_or_nothing(catalog: Engine) -> None:
    with pytest.raises(KeyError), writing(catalog) as connection:
        put_items(connection, [row("a", ACROSS)])
        raise KeyError("anything")
    with reading(catalog) as connection:
        assert keys(connection) == {}
        if catalog.dialect.name == "sqlite":
            assert rtree(connection) == {}
    with writing(catalog) as connection:
        put_items(connection, [row("a", ACROSS)])
    with reading(catalog) as connection:
        assert list(keys(connection)) == ["a"]


def test_a_reader_sees_one_state(catalog: Engine) -> None:
    """Two statements of one read agree, whatever is written in between (SQLite: a snapshot)."""
    if catalog.dialect.name != "sqlite":
        pytest.skip("PostgreSQL reads at READ COMMITTED")
    count = select(func.count()).select_from(items)
    with reading(catalog) as connection:
        assert connection.scalar(count) == 0
        with writing(catalog) as other:
            put_items(other, [row("a", box(0, 0, 1, 1))])
        assert connection.scalar(count) == 0
    with reading(catalog) as connection:
        assert connection.scalar(count) == 1


def test_an_unknown_collection_is_refused(catalog: Engine) -> None:
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError), writing(catalog) as connection:
        put_items(connection, [row("a", box(0, 0, 1, 1), collection="nowhere")])


def test_overview_counts(catalog: Engine) -> None:
    assert is_empty(catalog)
    with writing(catalog) as connection:
        put_items(connection, [row("s", box(0, 0, 1, 1), collection="subsets")])
    assert is_empty(catalog), "a subset was not harvested"
    with writing(catalog) as connection:
        put_items(connection, [row("a", box(0, 0, 1, 1)), row("b", box(0, 0, 1, 1))])
        connection.execute(insert(harvests).values(source="x", started=START, finished=END))
    assert not is_empty(catalog)
    assert overview(catalog) == {
        "items": {CUBES: 2, "subsets": 1},
        "jobs": {},
        "subsets": {"count": 0, "bytes": 0},
        "last_harvest": {"finished": END, "source": "x", "error": None},
    }


def test_a_database_without_schema_says_so(bare_url: str) -> None:
    engine = connect(bare_url)
    with pytest.raises(DatabaseError, match="firnline migrate"):
        is_empty(engine)
    with pytest.raises(DatabaseError, match="firnline migrate"), writing(engine) as connection:
        connection.execute(insert(collections).values(id="a", content=b""))
    engine.dispose()


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_an_unreachable_postgresql_is_an_error_without_the_password() -> None:
    engine = connect(f"postgresql://someone:hunter2@127.0.0.1:{_closed_port()}/catalog")
    with pytest.raises(DatabaseError, match="did not answer") as caught:
        is_empty(engine)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(DatabaseError):
        migrate(engine)


def test_a_wrong_postgresql_database_is_an_error(postgres_server: Any) -> None:
    engine = connect(postgres_server.url("none_such"))
    with pytest.raises(DatabaseError, match="none_such"):
        is_empty(engine)


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"this is no database, but it is long enough to have a header" * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        is_empty(connect(f"sqlite:///{path}"))
    with pytest.raises(DatabaseError):
        migrate(connect(f"sqlite:///{path}"))


def test_a_folder_that_can_t_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatabaseError, match="file"):
        connect(f"sqlite:///{tmp_path}/file/sub/catalog.db")
    with pytest.raises(DatabaseError, match="did not answer"):
        is_empty(connect(f"sqlite:///{tmp_path}"))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "catalog.db",
        "mysql://user:hunter2@host/name",
        "oracle+nothing://user:hunter2@host/name",
        "sqlite+nothing:///x.db",
        "postgresql+nothing://user:hunter2@host/name",
        "postgresql://user:hunter2@host:port/name",
        "postgresql://user:hun/ter2@host/name",
        "postgresql://user:1/hunter2@host:5432/name",
        "postgresql://user:hunter2@host:999999999999999999999/name",
    ],
)  # fmt: skip
def test_bad_urls_are_bad_input_and_leak_no_password(url: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(url)
    whole = f"{caught.value} {caught.value.__cause__}"
    assert "accepted" in whole or "needs" in whole
    assert "hun" not in whole
    assert "ter2" not in whole


@settings(deadline=None, derandomize=True)
@given(password=st.text(min_size=4, max_size=12), rest=st.text(max_size=12))
def test_no_url_leaks_its_password(password: str, rest: str) -> None:
    marker = f"S3CRET{password}"
    try:
        connect(f"postgresql://user:{marker}@{rest}")
    except InputError as error:
        assert "S3CRET" not in str(error)
