"""The catalog out to a file and in again, on both databases; files of anyone's."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pystac
import pytest
from pystac.validation import validate_dict
from shapely.geometry import box, mapping
from sqlalchemy import Engine, select

from firnline import runs
from firnline.database import (
    connect,
    get_item,
    migrate,
    overview,
    put_collections,
    put_items,
    put_subset,
    reading,
    retire_items,
    writing,
)
from firnline.errors import (
    ConflictError,
    FirnlineError,
    InputError,
    SourceCorruptError,
    SourceMissingError,
)
from firnline.footprint import bbox, footprint
from firnline.indexer.exports import export_catalog
from firnline.indexer.harvest import harvest
from firnline.indexer.imports import import_catalog
from firnline.indexer.report import Counts
from firnline.items import item_row
from firnline.locks import alone
from firnline.settings import Settings
from firnline.tables import collections, harvests, items, items_rtree

DATA = Path(__file__).parents[3] / "shared" / "data"
ENDINGS = [".parquet", ".ndjson", ".ndjson.gz"]
CUBES = 40


def catalog(path: Path, count: int = CUBES, granules: int = 7) -> str:
    """A datacube catalog of tiles of EPSG:3031, some across the antimeridian, one at the pole."""
    features = []
    for n in range(count):
        x, y = 100_000 * (n % 5 - 2), 100_000 * (n // 5 - 4)
        name = f"ITS_LIVE_vel_EPSG3031_G0120_X{x}_Y{y}.zarr"
        url = f"https://its-live-data.s3.amazonaws.com/datacubes/v2/S80W000/{name}"
        properties = {"zarr_url": url, "epsg": 3031, "granule_count": granules + n, "RGI_CODE": 19}
        features.append({"type": "Feature", "properties": properties, "geometry": None})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def subset(id: str, strain: Any) -> Any:
    outline = footprint(box(-174_200, -2_284_200, -165_800, -2_275_800), "EPSG:3413")
    item = {
        "type": "Feature", "stac_version": "1.1.0", "stac_extensions": [], "id": id,
        "collection": "subsets", "geometry": mapping(outline), "bbox": bbox(outline),
        "properties": {
            "datetime": None, "start_datetime": "2018-01-04T00:00:00Z",
            "end_datetime": "2020-12-14T12:34:56.789000Z", "updated": "2026-11-23T08:28:46.144384Z",
            "firnline:request": {"dt_days": None, "strain": strain, "bbox": [1.0, 2.5]},
        },
        "assets": {"zarr": {"href": f"firnline:/files/{id}/c.zarr", "x": {"chunks": {}}},
                   "cog_v": {"href": f"firnline:/files/{id}/v.tif", "bands": [{"nodata": "nan"}]}},
        "links": [{"rel": "derived_from", "type": "t", "href": "firnline:/collections/c/items/i"}],
    }  # fmt: skip
    return item_row(item, outline, "firnline")


def fill(engine: Engine, folder: Path) -> None:
    """A catalog of cubes, mosaics and subsets, and something that was retired."""
    harvest(engine, Settings(data_dir=folder, _env_file=None), [catalog(folder / "catalog.json")])
    with writing(engine) as connection:
        put_items(connection, [subset("subset-1", {"length_scale": 500.0})])
        put_items(connection, [subset("subset-2", False), subset("subset-gone", None)])
        retire_items(connection, "subsets", ["subset-gone"])


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    """A full catalog to copy."""
    folder = tmp_path_factory.mktemp("full")
    path = Path(shutil.copy(migrated_sqlite, folder / "catalog.db"))
    engine = connect(f"sqlite:///{path}")
    fill(engine, folder)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, _env_file=None)


@pytest.fixture
def full(template: Path, tmp_path: Path) -> Iterator[Engine]:
    """A full catalog in SQLite, harvested from `catalog.json` beside it."""
    engine = connect(f"sqlite:///{shutil.copy(template, tmp_path / 'full.db')}")
    source = catalog(tmp_path / "catalog.json")
    known = str(template.parent / "catalog.json")
    with writing(engine) as connection:
        connection.execute(items.update().where(items.c.source == known).values(source=source))
        report = connection.scalars(select(harvests.c.report)).one() or ""
        told = {"source": source, "report": report.replace(known, source)}
        connection.execute(harvests.update().values(told))
    yield engine
    engine.dispose()


@pytest.fixture
def local(sqlite_url: str) -> Iterator[Engine]:
    """An empty catalog in SQLite, for what does not depend on the database."""
    engine = connect(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture
def empty(bare_sqlite_url: str) -> Iterator[Engine]:
    """Another empty catalog."""
    engine = connect(bare_sqlite_url)
    migrate(engine)
    yield engine
    engine.dispose()


def stored(engine: Engine) -> dict[str, Any]:
    """What makes the catalog, of what is there: not keys, sources and instants of writing."""
    chosen = select(
        items.c.collection, items.c.id, items.c.content, items.c.digest, items.c.footprint,
        items.c.start_datetime, items.c.end_datetime,
    ).where(items.c.retired.is_(None))  # fmt: skip
    with reading(engine) as connection:
        return {
            "items": sorted((*map(bytes_of, row),) for row in connection.execute(chosen)),
            "collections": sorted(
                tuple(map(bytes_of, row)) for row in connection.execute(select(collections))
            ),
        }


def bytes_of(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value


def rows(engine: Engine) -> list[Any]:
    with reading(engine) as connection:
        found = [tuple(row) for row in connection.execute(select(items).order_by(items.c.key))]
        if engine.dialect.name == "sqlite":
            found += sorted(map(tuple, connection.execute(select(items_rtree))))
        return found


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "ending"),
    [
        (("sqlite", "postgresql"), ".parquet"),
        (("postgresql", "sqlite"), ".parquet"),
        (("postgresql", "sqlite"), ".ndjson"),
        (("sqlite", "sqlite"), ".ndjson.gz"),
    ],
)
def test_an_export_makes_the_same_catalog(
    request: pytest.FixtureRequest, tmp_path: Path, kinds: tuple[str, str], ending: str
) -> None:
    urls = [request.getfixturevalue(name) for name in (f"{kinds[0]}_url", f"bare_{kinds[1]}_url")]
    full, empty = map(connect, urls)
    fill(full, tmp_path)
    migrate(empty)
    path = tmp_path / f"a{ending}"
    exported = export_catalog(full, path)
    before = stored(full)
    counts = overview(full)["items"]
    assert exported.collections == counts
    assert counts == {
        "itslive-cubes": CUBES,
        "subsets": 2,
        "velocity-mosaics": counts["velocity-mosaics"],
    }
    assert exported.left_out == {}
    assert exported.bytes == path.stat().st_size

    imported = import_catalog(empty, path)
    assert imported.failures == ()
    assert imported.counts == {name: Counts(added=count) for name, count in counts.items()}
    assert stored(empty) == before
    assert overview(empty)["items"] == counts

    written = rows(empty)
    again = import_catalog(empty, path)
    assert again.counts == {name: Counts(unchanged=count) for name, count in counts.items()}
    assert again.written == 0
    assert rows(empty) == written

    # the same catalog is the same file, whatever the database
    export_catalog(empty, tmp_path / f"b{ending}")
    assert (tmp_path / f"b{ending}").read_bytes() == path.read_bytes()
    full.dispose()
    empty.dispose()


@pytest.mark.parametrize("ending", [".parquet", ".ndjson"])
def test_into_the_catalog_that_it_is_of(full: Engine, tmp_path: Path, ending: str) -> None:
    """Nothing changes, not even what an item was harvested from."""
    before = rows(full)
    export_catalog(full, tmp_path / f"a{ending}")
    imported = import_catalog(full, tmp_path / f"a{ending}")
    assert imported.total == Counts(unchanged=len(stored(full)["items"]))
    assert rows(full) == before


def test_what_was_changed_or_retired_since_comes_back(full: Engine, tmp_path: Path) -> None:
    export_catalog(full, tmp_path / "a.parquet")
    before = stored(full)
    (changed, retired, *_) = [id for name, id, *_ in before["items"] if name == "itslive-cubes"]
    with writing(full) as connection:
        content = get_item(connection, "itslive-cubes", changed)
        assert content is not None
        item = orjson.loads(content)
        item["properties"]["title"] = "another"
        put_items(connection, [item_row(item, box(0, 0, 1, 1), "x")])
        retire_items(connection, "itslive-cubes", [retired])
    imported = import_catalog(full, tmp_path / "a.parquet")
    assert imported.counts["itslive-cubes"] == Counts(changed=1, revived=1, unchanged=CUBES - 2)
    assert stored(full) == before


def test_by_collection(full: Engine, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    assert export_catalog(full, path, only=["subsets"]).collections == {"subsets": 2}
    assert pq.read_table(path)["id"].to_pylist() == ["subset-1", "subset-2"]
    told = json.loads(pq.read_schema(path).metadata[b"stac-geoparquet"])
    assert list(told["collections"]) == ["subsets"]
    with pytest.raises(InputError, match=r"no collection 'sentinel'; there are: itslive-cubes, "):
        export_catalog(full, path, only=["subsets", "sentinel"])
    assert path.exists()


def test_every_line_is_a_valid_item(full: Engine, tmp_path: Path) -> None:
    export_catalog(full, tmp_path / "a.ndjson", beside=True)
    lines = (tmp_path / "a.ndjson").read_bytes().splitlines()
    assert len(lines) == len(stored(full)["items"])
    for line in lines[:1] + lines[-3:]:
        item = orjson.loads(line)
        link = {"rel": "collection", "href": "./collection.json"}
        assert validate_dict({**item, "links": [*item["links"], link]}, extensions=[])
        assert pystac.Item.from_dict(item).id == item["id"]
    for id in ("itslive-cubes", "velocity-mosaics", "subsets"):
        document = json.loads((tmp_path / f"a.{id}.json").read_bytes())
        assert validate_dict(document, extensions=[])


def test_our_own_addresses(full: Engine, empty: Engine, tmp_path: Path) -> None:
    """With an address of the service others can follow them; at home they are our own again."""
    url = "https://ice.example/stac/"
    for ending in (".parquet", ".ndjson"):
        path = tmp_path / f"a{ending}"
        export_catalog(full, path, only=["subsets"], public_url=url)
        assert b"firnline:/" not in path.read_bytes()
    line = orjson.loads((tmp_path / "a.ndjson").read_bytes().splitlines()[0])
    assert line["assets"]["zarr"]["href"] == "https://ice.example/stac/files/subset-1/c.zarr"
    import_catalog(empty, tmp_path / "a.parquet", public_url=url)
    there, here = stored(full)["items"], stored(empty)["items"]
    assert here == [row for row in there if row[0] == "subsets"]


# --- harvests and imports ------------------------------------------------------------------------


def test_a_harvest_retires_nothing_that_was_imported(
    full: Engine, settings: Settings, tmp_path: Path
) -> None:
    """What it makes itself it takes over; what it doesn't know stays as it is."""
    export_catalog(full, tmp_path / "a.ndjson")
    source = str(tmp_path / "catalog.json")
    other = {**orjson.loads((tmp_path / "a.ndjson").read_bytes().splitlines()[0]), "id": "imported"}
    (tmp_path / "b.ndjson").write_bytes(orjson.dumps(other))
    assert import_catalog(full, tmp_path / "b.ndjson").total == Counts(added=1)
    report = harvest(full, settings, [source], force=True)
    assert report.total.retired == 0
    with reading(full) as connection:
        assert get_item(connection, "itslive-cubes", "imported") is not None
        assert set(connection.scalars(select(items.c.source).where(items.c.id == "imported"))) == {
            "import:b.ndjson"
        }
    catalog(tmp_path / "catalog.json", CUBES - 1)
    report = harvest(full, settings, [source])
    assert report.total.retired == 1
    assert overview(full)["items"]["itslive-cubes"] == CUBES  # one is the imported


def test_a_harvest_takes_over_what_was_imported(
    full: Engine, empty: Engine, settings: Settings, tmp_path: Path
) -> None:
    export_catalog(full, tmp_path / "a.parquet")
    import_catalog(empty, tmp_path / "a.parquet")
    source = str(tmp_path / "catalog.json")
    report = harvest(empty, settings, [source])
    assert report.total == Counts(unchanged=len(stored(full)["items"]) - 2)
    with reading(empty) as connection:
        sources = select(items.c.source).where(items.c.collection == "itslive-cubes").distinct()
        assert connection.scalars(sources).all() == [source]
    assert stored(empty) == stored(full)
    catalog(tmp_path / "catalog.json", CUBES - 1)
    assert harvest(empty, settings, [source]).total.retired == 1


def test_a_harvest_reads_again_what_an_import_has_changed(
    full: Engine, settings: Settings, tmp_path: Path
) -> None:
    """A catalog that has not changed is not read twice, unless an import wrote in between."""
    source = str(tmp_path / "catalog.json")
    export_catalog(full, tmp_path / "a.ndjson")
    import_catalog(full, tmp_path / "a.ndjson")
    assert harvest(full, settings, [source]).not_modified_since is not None
    line = orjson.loads((tmp_path / "a.ndjson").read_bytes().splitlines()[0])
    line["properties"]["title"] = "another"
    (tmp_path / "b.ndjson").write_bytes(orjson.dumps(line))
    import_catalog(full, tmp_path / "b.ndjson")
    report = harvest(full, settings, [source])
    assert (report.not_modified_since, report.total.changed) == (None, 1)


def test_the_run_log_has_it(full: Engine, tmp_path: Path) -> None:
    export_catalog(full, tmp_path / "a.ndjson")
    import_catalog(full, tmp_path / "a.ndjson")
    run, harvested = runs.recent(full, 2)
    assert (run["sources"], run["status"]) == (["import:a.ndjson"], "successful")
    assert run["unchanged"] == len(stored(full)["items"])
    assert harvested["sources"] == [str(tmp_path / "catalog.json")]
    (tmp_path / "b.ndjson.gz").write_bytes(gzip.compress(b"{}\n" * 9000)[:-20])
    with pytest.raises(SourceCorruptError):
        import_catalog(full, tmp_path / "b.ndjson.gz")
    (run,) = runs.recent(full, 1)
    assert run["status"] == "failed"
    assert "cut short" in run["error"]


def test_not_during_a_harvest(full: Engine, tmp_path: Path) -> None:
    export_catalog(full, tmp_path / "a.ndjson")
    with alone(full, "harvest"), pytest.raises(ConflictError, match="another harvest"):
        import_catalog(full, tmp_path / "a.ndjson")


def test_a_subset_of_our_own_is_not_replaced(full: Engine, tmp_path: Path) -> None:
    """The same request gives the same id anywhere, and these files are here."""
    with writing(full) as connection:
        put_subset(connection, id="subset-1", request_key="k", request="{}", generation="g",
                   sources="[]", size=1)  # fmt: skip
    path = tmp_path / "a.ndjson"
    export_catalog(full, path, only=["subsets"], public_url="https://elsewhere.example")
    before = rows(full)
    report = import_catalog(full, path)
    assert report.counts == {"subsets": Counts(changed=1)}
    (failure,) = report.failures
    assert (failure.index, failure.id) == (1, "subset-1")
    assert "materialised it itself" in failure.reason
    after = rows(full)
    assert [row for row in after if "subset-1" in row] == [
        row for row in before if "subset-1" in row
    ]
    export_catalog(full, path, only=["subsets"])
    assert import_catalog(full, path).failures == ()


# --- items of anyone's ---------------------------------------------------------------------------


def foreign(id: str, **members: Any) -> dict[str, Any]:
    made = {
        "type": "Feature", "stac_version": "1.0.0", "id": id, "collection": "ice",
        "geometry": mapping(box(170, 60, 175, 65)), "bbox": [170, 60, 175, 65],
        "properties": {"datetime": "2020-01-01T00:00:00+00:00", "eo:cloud_cover": None, "gsd": 10},
        "assets": {"data": {"href": "https://x.example/a.tif"}},
        "links": [{"rel": "self", "href": "https://x.example/a.json"}],
    }  # fmt: skip
    return {**made, **members}


ICE = {
    "type": "Collection", "stac_version": "1.0.0", "id": "ice", "description": "Ice",
    "license": "MIT",
    "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]},
               "temporal": {"interval": [["2020-01-01T00:00:00Z", None]]}},
    "links": [],
}  # fmt: skip


def lines(path: Path, *each: Any) -> Path:
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in each)
    )
    return path


@pytest.fixture
def ice(tmp_path: Path) -> Path:
    path = tmp_path / "ice.json"
    path.write_bytes(orjson.dumps(ICE))
    return path


def test_what_fails_leaves_the_rest(local: Engine, tmp_path: Path, ice: Path) -> None:
    path = lines(
        tmp_path / "a.ndjson",
        b"\xef\xbb\xbf" + orjson.dumps(foreign("one")),
        b"",
        b"{",
        b"[]",
        foreign("two", geometry=None),
        foreign("one"),
        b'{"type": "FeatureCollection", "features": []}',
        foreign("three", collection="rock"),
        b"  " + orjson.dumps(foreign("four")) + b"\r",
        {**foreign("ten"), "id": 5},
    )
    report = import_catalog(local, path, collection_files=[ice])
    assert report.counts == {"ice": Counts(added=2)}
    assert [(failure.index, failure.id) for failure in report.failures] == [
        (3, None), (4, None), (5, "two"), (6, "one"), (7, None), (8, "three"), (10, "5"),
    ]  # fmt: skip
    reasons = [failure.reason for failure in report.failures]
    assert reasons[0].startswith("it is not JSON: ")
    assert reasons[1:] == [
        "it is no JSON object, but an item is one a line",
        "it has no geometry",
        "the same item as in line 1",
        "it is a FeatureCollection, not a STAC Item",
        "there is no collection 'rock': give it with --collection",
        "id: Input should be a valid string",
    ]
    assert overview(local)["items"] == {"ice": 2}
    assert "  line 5 two: it has no geometry" in report.lines()
    assert report.to_dict()["failures"][2] == {
        "line": 5, "id": "two", "reason": "it has no geometry"
    }  # fmt: skip


def test_what_parquet_can_t_tell_is_no_change(local: Engine, tmp_path: Path, ice: Path) -> None:
    """Null or missing, 10 or 10.0: the same item, so that an export of it changes nothing."""
    odd = foreign("odd", properties={"datetime": "2020-01-01T00:00:00Z", "gsd": 10.5})
    whole = foreign("whole", properties={"datetime": "2020-01-01T00:00:00Z", "gsd": 10.0})
    path = lines(tmp_path / "a.ndjson", foreign("null"), odd, whole)
    import_catalog(local, path, collection_files=[ice])
    before = rows(local)
    export_catalog(local, tmp_path / "a.parquet")
    report = import_catalog(local, tmp_path / "a.parquet")
    assert report.total == Counts(unchanged=3)
    assert rows(local) == before
    changed = foreign("null", properties={"datetime": "2020-01-01T00:00:00Z", "gsd": 11})
    assert import_catalog(local, lines(path, changed)).total == Counts(changed=1)


def test_its_live_s_own_mosaics(local: Engine, empty: Engine, tmp_path: Path) -> None:
    path = DATA / "itslive_mosaic_items.ndjson"
    collection = DATA / "stac_collection_velocity-mosaics.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    report = import_catalog(local, path, collection_files=[collection])
    assert report.failures == ()
    assert report.counts == {"velocity-mosaics": Counts(added=582)}
    with reading(local) as connection:
        kept = connection.scalar(
            select(collections.c.content).where(collections.c.id == "velocity-mosaics")
        )
        assert kept is not None
        given = json.loads(collection.read_bytes())
        links = [link for link in given["links"] if link["rel"] != "root"]
        assert orjson.loads(kept) == {**given, "links": links}
        first = orjson.loads(path.read_bytes().splitlines()[0])
        item = orjson.loads(get_item(connection, "velocity-mosaics", first["id"]) or b"")
        assert item["assets"] == first["assets"]
    export_catalog(local, tmp_path / "a.parquet")
    assert import_catalog(empty, tmp_path / "a.parquet").failures == ()
    assert stored(empty) == stored(local)


def test_collections_that_are_there_stay_unless_given(
    local: Engine, tmp_path: Path, ice: Path
) -> None:
    with writing(local) as connection:
        put_collections(connection, [("ice", b'{"id":"ice","title":"mine"}')])
    path = lines(tmp_path / "a.ndjson", foreign("a"))
    import_catalog(local, path)

    def kept() -> Any:
        with reading(local) as connection:
            return orjson.loads(
                connection.scalars(
                    select(collections.c.content).where(collections.c.id == "ice")
                ).one()
            )

    assert kept() == {"id": "ice", "title": "mine"}
    import_catalog(local, path, collection_files=[ice])
    assert kept() == {name: value for name, value in ICE.items() if name != "links"}


def test_our_collections_tell_what_came(
    database: Engine, settings: Settings, tmp_path: Path
) -> None:
    """Extents of harvested collections follow from their items, by whatever way these came."""
    harvest(database, settings, [catalog(tmp_path / "catalog.json")], mosaics=False)
    export_catalog(database, tmp_path / "a.ndjson")
    line = orjson.loads((tmp_path / "a.ndjson").read_bytes().splitlines()[0])
    north = {
        **line, "id": "north", "geometry": mapping(box(10, 70, 11, 71)), "bbox": [10, 70, 11, 71],
        "properties": {**line["properties"], "end_datetime": "2050-01-01T00:00:00Z",
                       "itslive:region": "North"},
    }  # fmt: skip
    import_catalog(database, lines(tmp_path / "b.ndjson", north))
    with reading(database) as connection:
        content = connection.scalar(
            select(collections.c.content).where(collections.c.id == "itslive-cubes")
        )
    assert content is not None
    told = orjson.loads(content)
    assert told["extent"]["spatial"]["bbox"][0][3] == 71
    assert told["extent"]["temporal"]["interval"][0][1] == "2050-01-01T00:00:00Z"
    assert told["summaries"]["itslive:region"] == ["North"]


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("a.csv", b"", InputError, "accepted: .parquet, .geoparquet, .ndjson"),
        ("a.json", b"{}", InputError, "accepted: .parquet"),
        ("a.parquet", b"PAR1", SourceCorruptError, "can't be read as Parquet"),
        ("a.ndjson.gz", b"plain", SourceCorruptError, "is not gzip"),
        ("a.ndjson.gz", gzip.compress(b"{}" * 9000)[:-30], SourceCorruptError, "cut short"),
    ],
)  # fmt: skip
def test_files_that_are_none(
    local: Engine, tmp_path: Path, name: str, content: bytes, error: Any, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        import_catalog(local, tmp_path / name)
    assert overview(local)["items"] == {}


def test_files_that_are_not_there(local: Engine, tmp_path: Path, ice: Path) -> None:
    with pytest.raises(SourceMissingError, match="does not exist"):
        import_catalog(local, tmp_path / "a.ndjson")
    path = lines(tmp_path / "a.ndjson", foreign("a"))
    with pytest.raises(SourceMissingError, match="--collection"):
        import_catalog(local, path, collection_files=[tmp_path / "none.json"])
    with pytest.raises(InputError, match="is not a STAC collection"):
        import_catalog(local, path, collection_files=[path])
    with pytest.raises(InputError, match="No such file or directory"):
        export_catalog(local, tmp_path / "none" / "a.ndjson")


def test_a_line_that_does_not_end(
    local: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.indexer.item_files._LONGEST", 1000)
    path = lines(tmp_path / "a.ndjson", foreign("a"), b'{"a": "' + b"x" * 1000)
    with pytest.raises(SourceCorruptError, match="line 2 has more than"):
        import_catalog(local, path)


# --- all or nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_never_half_a_file(full: Engine, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"what was there")

    def stop(phase: str, done: int, _total: int) -> None:
        if phase == "write" and done > 0:
            raise OSError(28, "No space left on device")

    with pytest.raises(FirnlineError, match="No space left on device"):
        export_catalog(full, path, progress=stop)
    assert path.read_bytes() == b"what was there"
    assert sorted(tmp_path.glob(".*")) == []
    export_catalog(full, path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    return int(Path("/proc/self/status").read_text().split("Umask:")[1].split()[0], 8)


_IMPORT = """
import sys
from pathlib import Path
from firnline.database import connect
from firnline.indexer.imports import import_catalog

def shown(phase, done, total):
    print(phase, done, flush=True)
    if phase == sys.argv[3] and done >= int(sys.argv[4]):
        sys.stdin.readline()

import_catalog(connect(sys.argv[1]), Path(sys.argv[2]), progress=shown)
"""


@pytest.mark.parametrize(("phase", "done"), [("read", 500), ("store", 500)])
def test_killed_it_leaves_the_catalog_as_it_was(
    database: Engine, database_url: str, tmp_path: Path, ice: Path, phase: str, done: int
) -> None:
    first = lines(tmp_path / "a.ndjson", *(foreign(f"{n}") for n in range(10)))
    import_catalog(database, first, collection_files=[ice])
    changed = {**foreign("")["properties"], "gsd": 20}
    path = lines(
        tmp_path / "b.ndjson", *({**foreign(f"{n}"), "properties": changed} for n in range(900))
    )
    before = rows(database)
    process = subprocess.Popen(
        [sys.executable, "-c", _IMPORT, database_url, str(path), phase, str(done)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        said, count = line.split()
        if said == phase and int(count) >= done:
            break
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert rows(database) == before
    for _ in range(500):  # PostgreSQL gives the lock back when it sees that no one is there
        with suppress(ConflictError), alone(database, "harvest"):
            break
        time.sleep(0.01)
    assert import_catalog(database, path).total == Counts(added=890, changed=10)
    assert [run["status"] for run in runs.recent(database, 3)] == [
        "successful",
        "failed",
        "successful",
    ]
