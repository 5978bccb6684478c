"""A database moved to another one: all of it or nothing, and proven."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import shapely
from shapely import MultiPolygon, Point, Polygon, box
from shapely.geometry import mapping
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Engine,
    Float,
    Integer,
    LargeBinary,
    Text,
    func,
    insert,
    inspect,
    select,
    text,
)

from firnline import runs, transfer
from firnline.api.app import create_app
from firnline.database import (
    connect,
    migrate,
    put_collections,
    put_items,
    reading,
    retire_items,
    snapshot,
    writing,
)
from firnline.errors import ConflictError, DatabaseError, InputError
from firnline.items import item_row
from firnline.locks import alone
from firnline.settings import Settings
from firnline.tables import Footprint, Instant, collections, items, items_rtree, jobs, metadata
from firnline.transfer import Moved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Starlette 1.10 wants `httpx2`, which nothing else needs
    from starlette.testclient import TestClient

DIRECTIONS = [
    ("sqlite", "postgresql"),
    ("postgresql", "sqlite"),
    ("sqlite", "sqlite"),
    ("postgresql", "postgresql"),
]
OUTLINES = [
    box(-50, 60, -49, 61),
    Polygon([(10, 40), (20, 40), (20, 50), (10, 50)], [[(12, 42), (12, 44), (14, 44), (14, 42)]]),
    MultiPolygon([box(170, -80, 180, -70), box(-180, -80, -170, -70)]),
    box(-180, -90, 180, -60),
    Point(179.999999, 12.3456789012345),
    shapely.from_wkt("LINESTRING (0.1 0.2, 0.30000000000000004 -0.0)"),
]


@pytest.fixture(params=DIRECTIONS[:2], ids="->".join)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Engine]]:
    """A migrated, empty database, and one without a schema, of the two kinds."""
    kinds = request.param
    urls = [request.getfixturevalue(name) for name in (f"{kinds[0]}_url", f"bare_{kinds[1]}_url")]
    source, target = map(connect, urls)
    yield source, target
    source.dispose()
    target.dispose()


def value(column: Column[Any], chance: random.Random) -> Any:
    """Anything that a column may hold, and often what lies at its limits."""
    if column.nullable and chance.random() < 0.3:
        return None
    kind = column.type
    if isinstance(kind, Instant):
        return datetime(2020, 1, 1, tzinfo=UTC) + timedelta(
            microseconds=chance.randrange(-6 * 10**16, 10**16)
        )
    if isinstance(kind, Boolean):
        return chance.random() < 0.5
    if isinstance(kind, Float):
        return chance.choice([0.1, -1e-300, 2.5, 1e22, chance.random()])
    if isinstance(kind, BigInteger):
        return chance.choice([0, -(2**63), 2**63 - 1, chance.randrange(10**12)])
    if isinstance(kind, Integer):
        return chance.randrange(2**31)
    if isinstance(kind, LargeBinary):
        return chance.randbytes(chance.choice([0, 3, 5_000]))
    if isinstance(kind, Text):
        return f"{chance.getrandbits(64):x} Ωé\n'\"%s" + chance.choice(["", "ÿ" * 3_000])
    if isinstance(kind, JSON):
        return {"a": [1, 2.5, 1e22, "é", None, True], "b": {"c": chance.random()}}
    raise AssertionError(f"{column}: a type that this test does not know yet")


def fill(engine: Engine, seed: int = 1, count: int = 40) -> None:
    """Rows in every table: items the way harvests write them, the others of any values."""
    chance = random.Random(seed)
    known: dict[str, list[Any]] = {}
    with writing(engine) as connection:
        for table in metadata.sorted_tables:
            if table is items:
                continue
            rows = []
            for n in range(count):
                row = {column.name: value(column, chance) for column in table.columns}
                for column in table.primary_key.columns:
                    whole = isinstance(column.type, Integer | BigInteger)
                    row[column.name] = n * 7 + 1 if whole else f"{n} {chance.getrandbits(32)}"
                for key in table.foreign_keys:
                    row[key.parent.name] = chance.choice(known[key.column.table.name])
                rows.append(row)
            (first, *_) = table.primary_key.columns
            known[table.name] = [row[first.name] for row in rows]
            connection.execute(insert(table), rows)
        put_collections(connection, [("ice", b'{"id":"ice"}')])
        put_items(connection, [made(n, chance) for n in range(count)])
        retire_items(connection, "ice", ["item 3", "item 4"])


def made(n: int, chance: random.Random) -> Any:
    outline = OUTLINES[n % len(OUTLINES)]
    start = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(days=chance.random() * 9000)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": f"item {n}",
        "collection": "ice",
        "geometry": mapping(outline),
        "bbox": list(outline.bounds),
        "properties": {
            "datetime": None,
            "start_datetime": start.isoformat(),
            "end_datetime": (start + timedelta(days=400)).isoformat(),
            "count": chance.choice([0, 1.0, 1e22, 0.1]),
            "title": "é" * chance.randrange(2_000),
        },
        "assets": {},
    }
    return item_row(item, outline, "somewhere")


def everything(engine: Engine) -> dict[str, list[Any]]:
    """All rows of all tables, and the boxes where there are some; not by the module's help."""
    with reading(engine) as connection:
        there = {
            table.name: sorted(
                (tuple(map(comparable, row)) for row in connection.execute(select(table))), key=repr
            )
            for table in metadata.sorted_tables
        }
        if engine.dialect.name == "sqlite":
            boxes = connection.execute(select(items_rtree)).all()
            there["boxes"] = sorted(map(tuple, boxes))
    return there


def comparable(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def is_empty(engine: Engine) -> bool:
    with reading(engine) as connection:
        there = set(inspect(connection).get_table_names()) & set(metadata.tables)
        counts = [
            connection.scalar(select(func.count()).select_from(metadata.tables[name]))
            for name in there
        ]
        if engine.dialect.name == "sqlite" and there:
            counts.append(connection.scalar(select(func.count()).select_from(items_rtree)))
    return not any(counts)


def move(source: Engine, target: Engine, **more: Any) -> list[Moved]:
    moved = transfer.transfer(source, target, **more)
    assert {each.table for each in moved} == set(metadata.tables)
    return moved


@pytest.mark.parametrize("pair", DIRECTIONS, indirect=True, ids="->".join)
def test_everything_arrives(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    fill(source)
    before = everything(source)
    moved = move(source, target)
    assert all(each.same for each in moved)
    assert {each.table: each.arrived.rows for each in moved} == {
        name: len(before[name]) for name in metadata.tables
    }
    after = everything(target)
    for name in metadata.tables:
        assert after[name] == before[name], name
    assert everything(source) == before


def test_there_and_back_again(sqlite_url: str, bare_postgresql_url: str, tmp_path: Path) -> None:
    """Boxes too: those that are made from rows are those that came with the items."""
    engines = [connect(url) for url in (sqlite_url, bare_postgresql_url, f"sqlite:///{tmp_path}/b")]
    fill(engines[0])
    first = move(engines[0], engines[1])
    second = move(engines[1], engines[2])
    assert [each.arrived for each in first] == [each.arrived for each in second]
    there = everything(engines[0])
    assert len(there["boxes"]) > len(there["items"])  # some have two
    assert everything(engines[2]) == there
    for engine in engines:
        engine.dispose()


def test_what_an_empty_database_holds_arrives_too(pair: tuple[Engine, Engine]) -> None:
    moved = move(*pair)
    assert {(each.sent.rows, each.arrived.rows, each.same) for each in moved} == {(0, 0, True)}


def test_keys_go_on_after_those_that_came(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    fill(source)
    move(source, target)
    with reading(target) as connection:
        highest = connection.scalar(select(func.max(items.c.key)))
        run = connection.scalar(select(func.max(metadata.tables["harvests"].c.id)))
    with writing(target) as connection:
        put_items(connection, [made(1000, random.Random(1))])
    with reading(target) as connection:
        assert connection.scalar(select(func.max(items.c.key))) == highest + 1
    assert runs.begin(target, ["a"], datetime.now(UTC)) == run + 1


def test_an_emptied_table_begins_at_one(sqlite_url: str, bare_postgresql_url: str) -> None:
    source, target = connect(sqlite_url), connect(bare_postgresql_url)
    move(source, target)
    assert runs.begin(target, ["a"], datetime.now(UTC)) == 1
    source.dispose()
    target.dispose()


@pytest.mark.parametrize("sides", [("sqlite", "postgresql"), ("postgresql", "sqlite")])
def test_searches_answer_the_same(
    request: pytest.FixtureRequest, sides: tuple[str, str], tmp_path: Path
) -> None:
    source = connect(request.getfixturevalue(f"{sides[0]}_url"))
    target = connect(request.getfixturevalue(f"bare_{sides[1]}_url"))
    fill(source, count=300)
    move(source, target)
    settings = Settings(data_dir=tmp_path, api_keys_required=False, _env_file=None)
    chance = random.Random(2)
    asked = [
        "/collections/ice/items/item 5",
        "/collections/ice/items?limit=7",
        "/search?ids=item 7",
    ]
    for _ in range(40):
        west, south = chance.uniform(-180, 160), chance.uniform(-90, 60)
        east, north = west + chance.uniform(1, 60), south + chance.uniform(1, 30)
        east = east - 360 if east > 180 else east
        year = chance.randrange(1998, 2026)
        asked.append(f"/search?limit=20&bbox={west},{south},{east},{north}")
        asked.append(f"{asked[-1]}&datetime={year}-01-01T00:00:00Z/{year + 2}-01-01T00:00:00Z")
    answers = []
    for engine in (source, target):
        with TestClient(create_app(settings, engine)) as client:
            answers.append([client.get(url).json() for url in asked])
    found = 0
    for url, here, there in zip(asked, *answers, strict=True):
        assert without_tokens(here) == without_tokens(there), url
        found += here.get("numberReturned", 1)
    assert found > 200
    source.dispose()
    target.dispose()


def without_tokens(answer: dict[str, Any]) -> dict[str, Any]:
    """A reply; its link to the next page is signed by each database with a key of its own."""
    links = [link for link in answer["links"] if link["rel"] != "next"]
    return {**answer, "links": links}


# --- what is refused --------------------------------------------------------------------------


def test_a_database_in_use_is_refused(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    fill(source)
    migrate(target)
    with writing(target) as connection:
        put_collections(connection, [("a", b"{}"), ("b", b"{}")])
    before = everything(target)
    with pytest.raises(ConflictError, match=r"it holds collections \(2\)"):
        move(source, target)
    assert everything(target) == before


def test_tables_of_something_else_are_left_alone(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    with writing(target) as connection:
        connection.execute(text("CREATE TABLE items (name TEXT)"))
    with pytest.raises(ConflictError, match="tables of something else: items"):
        move(source, target)
    with reading(target) as connection:
        assert set(inspect(connection).get_table_names()) == {"items"}


def test_the_database_itself_and_one_in_memory(database: Engine) -> None:
    with pytest.raises(InputError, match="the one in use"):
        move(database, database)
    with pytest.raises(InputError, match="in memory"):
        move(database, connect("sqlite://"))


@pytest.mark.parametrize("held", [0, 1])
def test_not_during_a_harvest(pair: tuple[Engine, Engine], held: int) -> None:
    fill(pair[0])
    migrate(pair[1])
    with alone(pair[held], "harvest"), pytest.raises(ConflictError, match="another harvest"):
        move(*pair)
    assert is_empty(pair[1])
    move(*pair)


def test_a_value_that_the_other_can_t_hold(sqlite_url: str, bare_postgresql_url: str) -> None:
    source, target = connect(sqlite_url), connect(bare_postgresql_url)
    fill(source)
    with writing(source) as connection:
        connection.execute(jobs.update().values(message="a\0b"))
    with pytest.raises(DatabaseError, match="a row of jobs can't be kept in the other database"):
        move(source, target)
    assert is_empty(target)
    source.dispose()
    target.dispose()


# --- while it goes on ---------------------------------------------------------------------------


def test_what_is_written_meanwhile_is_not_torn(pair: tuple[Engine, Engine]) -> None:
    """A job and an item are written after the first table was read: neither of them comes along."""
    source, target = pair
    fill(source)
    before = everything(source)
    other = connect(source.url.render_as_string(hide_password=False))
    written = []

    def meddle(phase: str, _done: int, _total: int) -> None:
        if phase == "cubes" and not written:
            written.append(phase)
            with writing(other) as connection:
                put_items(connection, [made(2000, random.Random(1))])
                connection.execute(jobs.delete())

    moved = move(source, target, progress=meddle)
    assert written
    assert all(each.same for each in moved)
    after = everything(target)
    assert {name: after[name] for name in metadata.tables} == {
        name: before[name] for name in metadata.tables
    }
    other.dispose()


def test_a_row_that_arrives_changed_takes_everything_back(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    fill(source)
    migrate(target)
    with writing(target) as connection:
        if target.dialect.name == "sqlite":
            connection.execute(
                text(
                    "CREATE TRIGGER meddle AFTER INSERT ON subsets WHEN NEW.size % 2 = 0 BEGIN "
                    "UPDATE subsets SET size = size + 1 WHERE id = NEW.id; END"
                )
            )
        else:
            connection.execute(
                text(
                    "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                    "NEW.size = NEW.size - NEW.size % 2; RETURN NEW; END $$"
                )
            )
            connection.execute(
                text(
                    "CREATE TRIGGER meddle BEFORE INSERT ON subsets "
                    "FOR EACH ROW EXECUTE FUNCTION meddle()"
                )
            )
    moved = {each.table: each for each in move(source, target)}
    assert {name for name, each in moved.items() if not each.same} == {"subsets"}
    assert moved["subsets"].sent.rows == moved["subsets"].arrived.rows == 40
    assert is_empty(target)


def test_a_row_that_does_not_arrive_takes_everything_back(pair: tuple[Engine, Engine]) -> None:
    source, target = pair
    fill(source)

    def lose(phase: str, _done: int, _total: int) -> None:
        if phase == "check collections":  # all is copied: in the same transaction, one row goes
            (connection,) = held
            connection.execute(jobs.delete().where(jobs.c.id == chosen))

    with reading(source) as connection:
        chosen = connection.scalar(select(func.min(jobs.c.id)))
    held: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        complete = transfer._complete
        patch.setattr(transfer, "_complete", lambda c: (held.append(c), complete(c)))
        moved = {each.table: each for each in move(source, target, progress=lose)}
    # job_tiles go with their job
    assert {name for name, each in moved.items() if not each.same} >= {"jobs"}
    assert moved["jobs"].arrived.rows == moved["jobs"].sent.rows - 1
    assert is_empty(target)


def wait_for_lock(engine: Engine) -> None:
    for _ in range(500):
        with suppress(ConflictError), alone(engine, "harvest"):
            return
        time.sleep(0.01)


_MOVE = """
import sys
from firnline.database import connect
from firnline.transfer import transfer

def shown(phase, done, total):
    print(phase, done, flush=True)
    if phase == sys.argv[3] and done >= int(sys.argv[4]):
        sys.stdin.readline()  # held here, in the midst of it, until it is killed

transfer(connect(sys.argv[1]), connect(sys.argv[2]), shown)
"""


@pytest.mark.parametrize(("phase", "done"), [("cubes", 1), ("items", 100), ("check items", 1)])
def test_killed_in_the_midst_it_leaves_nothing(
    pair: tuple[Engine, Engine], phase: str, done: int
) -> None:
    source, target = pair
    fill(source, count=200)
    urls = [engine.url.render_as_string(hide_password=False) for engine in pair]
    process = subprocess.Popen(
        [sys.executable, "-c", _MOVE, *urls, phase, str(done)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        said, _, count = line.rstrip().rpartition(" ")
        if said == phase and int(count) >= done:
            break
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert is_empty(target)
    for engine in pair:  # PostgreSQL gives back a lock when it sees that its client is gone
        wait_for_lock(engine)
    assert all(each.same for each in move(source, target))
    there, here = everything(target), everything(source)
    assert all(there[name] == here[name] for name in metadata.tables)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_more_is_held_than_some_megabytes(request: pytest.FixtureRequest, kind: str) -> None:
    engine = connect(request.getfixturevalue(f"{kind}_url"))
    chance = random.Random(3)
    sizes = [10, 100, 3_000_000, 2_000_000, *[500_000] * 30, *[10] * 300]
    with writing(engine) as connection:
        for n, size in enumerate(sizes):
            content = chance.randbytes(size)
            connection.execute(insert(collections), {"id": f"{n:05d}", "content": content})
    with snapshot(engine) as connection:
        batches = [
            [len(r.content) for r in rows] for rows in transfer._batches(connection, collections)
        ]
    assert [size for batch in batches for size in batch] == sizes
    # 2 ** 23 bytes by the largest one so far; never twice as many rows as before
    assert max(map(sum, batches)) <= 2**23
    assert all(len(b) <= 2 * len(a) for a, b in itertools.pairwise(batches))
    assert len(batches) < 200
    engine.dispose()


def test_sums() -> None:
    """Order decides nothing; every value, its type and its place do."""
    table = metadata.tables["harvests"]

    def total(*rows: tuple[Any, ...]) -> str:
        counted = transfer._Counted(table, "", 0, None)
        counted.add(rows)
        return counted.sum.digest

    a, b = (1, "x", None, "", 0.0, b"y"), (2, "x", None, "", 0.0, b"y")
    assert total(a, b) == total(b, a)
    different = [
        (a,), (a, a), (a, a, a), (b,), (a, b), (1, None, "x", "", 0.0, b"y"),
        (1, "x", None, None, 0.0, b"y"), (1, "x", None, "", 0, b"y"),
        (1, "x", None, "", 0.0, "y"), (True, "x", None, "", 0.0, b"y"),
        (1, "x1:", None, "", 0.0, b"y"), ({"a": 1},), ({"a": [1]},),
    ]  # fmt: skip
    sums = [total(*(rows if isinstance(rows[0], tuple) else (rows,))) for rows in different]
    assert len(set(sums)) == len(sums)
    assert total(({"a": 1e22, "b": 1},)) == total(({"b": 1.0, "a": 10**22},))


def test_outlines_are_compared_whatever_their_spelling() -> None:
    place = list(items.columns).index(items.c.footprint)
    assert isinstance(items.c.footprint.type, Footprint)
    outline = OUTLINES[2]
    spellings = [
        shapely.to_wkb(outline, byte_order=order, flavor=flavor, include_srid=srid)
        for order in (0, 1)
        for flavor, srid in (("iso", False), ("extended", False), ("extended", True))
    ]
    sums = set()
    for wkb in spellings:
        counted = transfer._Counted(items, "", 0, None)
        counted.add([[wkb if n == place else None for n in range(len(items.columns))]])
        sums.add(counted.sum.digest)
    assert len(sums) == 1
