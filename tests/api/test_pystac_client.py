"""The API as pystac-client sees it, over a real server; and the seed's AOI on the real catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from pystac_client import Client as StacClient
from shapely.geometry import mapping, shape
from sqlalchemy import Engine

from firnline.api.app import create_app
from firnline.database import connect, migrate
from firnline.settings import Settings
from tests.api.conftest import CUBES, SHARED, box, make_item, put, serving

CATALOG = SHARED / "data/catalog_v02_2024.json"
AOI = (465_000, -2_300_000, 496_000, -2_258_000)
FOUND = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"


@pytest.fixture
def stac(served: str, engine: Engine) -> StacClient:
    rows = [
        make_item(
            f"item-{n:03d}",
            box(-180 + n, 70, -179.5 + n, 71),
            datetime(2015, 1, 1, tzinfo=UTC) + timedelta(days=n),
            datetime(2015, 1, 2, tzinfo=UTC) + timedelta(days=n),
            CUBES if n % 4 else "velocity-mosaics",
        )
        for n in range(120)
    ]
    put(engine, rows)
    return StacClient.open(served)


def test_it_is_a_stac_api(stac: StacClient) -> None:
    assert stac.id == "firnline"
    assert {each.id for each in stac.get_collections()} == {CUBES, "subsets", "velocity-mosaics"}
    collection = stac.get_collection(CUBES)
    assert collection is not None
    assert sum(1 for _ in collection.get_items()) == 90
    item = collection.get_item("item-005")
    assert item is not None
    assert item.get_parent().id == CUBES  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_search(stac: StacClient, method: str) -> None:
    def ids(**arguments: Any) -> list[str]:
        found = stac.search(method=method, **arguments)
        listed = [item.id for item in found.items()]
        assert found.matched() == len(listed)
        return listed

    assert ids() == [f"item-{n:03d}" for n in reversed(range(120))]
    assert ids(bbox=[-170.1, 70, -168.9, 71]) == ["item-011", "item-010"]
    assert ids(bbox=[170, 70, -178.6, 71]) == ["item-001", "item-000"]
    assert ids(intersects=mapping(box(-170.1, 70, -168.9, 71))) == ["item-011", "item-010"]
    assert ids(datetime="2015-01-10") == ["item-009", "item-008"]
    assert ids(datetime="2015-04-28/..") == ["item-119", "item-118", "item-117", "item-116"]
    assert ids(ids=["item-007", "item-003"], limit=1) == ["item-007", "item-003"]
    assert len(ids(collections=["velocity-mosaics"], limit=7)) == 30


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_argument_of_search(stac: StacClient, engine: Engine, method: str) -> None:
    """Alone and all together; the answers are known from how the items were made."""
    put(
        engine,
        [
            make_item(
                f"item-{n:03d}",
                box(-180 + n, 70, -179.5 + n, 71),
                datetime(2015, 1, 1, tzinfo=UTC) + timedelta(days=n),
                datetime(2015, 1, 2, tzinfo=UTC) + timedelta(days=n),
                CUBES,
                {"proj:code": "EPSG:3413" if n % 2 else "EPSG:3031", "itslive:granule_count": n},
            )
            for n in (1, 2, 3, 5, 6, 7)
        ],
    )
    count, code = "itslive:granule_count", "proj:code"

    def ids(**arguments: Any) -> list[str]:
        return [item.id for item in stac.search(method=method, **arguments).items()]

    def named(*numbers: int) -> list[str]:
        return [f"item-{n:03d}" for n in numbers]

    assert ids(query={count: {"gte": 3, "lt": 7}}) == named(6, 5, 3)
    assert ids(query=[f"{code}=EPSG:3413"]) == named(7, 5, 3, 1)
    text = f'"{count}" > 2 AND "{code}" = \'EPSG:3413\''
    assert ids(filter=text, filter_lang="cql2-text") == named(7, 5, 3)
    assert ids(filter=text) == named(7, 5, 3)  # the language is told by the type
    tree = {"op": "in", "args": [{"property": count}, [1, 6, 99]]}
    assert ids(filter=tree, filter_lang="cql2-json") == named(6, 1)
    assert ids(filter=tree, sortby="+properties.datetime") == named(1, 6)
    directions = [{"field": f"properties.{code}", "direction": "asc"},
                  {"field": f"properties.{count}", "direction": "desc"}]  # fmt: skip
    assert ids(filter=f'"{count}" > 0', sortby=directions) == named(6, 2, 7, 5, 3, 1)
    assert ids(filter=f'"{count}" > 0', sortby=f"{code},-{count}") == named(6, 2, 7, 5, 3, 1)
    assert ids(filter=f'"{count}" > 0', limit=2, max_items=5) == named(7, 6, 5, 3, 2)
    cubes = stac.get_collection(CUBES)
    assert ids(collections=[cubes], ids=named(4, 5, 6), sortby=["+id"]) == named(5, 6)
    span = (datetime(2015, 1, 6, 12, tzinfo=UTC), None)
    everything: dict[str, Any] = {
        "collections": [CUBES],
        "ids": named(1, 2, 3, 5, 6, 7),
        "datetime": span,
        "query": {count: {"neq": 6}},
        "bbox": [-180, 60, -170, 80],
        "filter": f"\"{code}\" = 'EPSG:3413'",
        "sortby": "id",
        "limit": 1,
    }
    assert ids(**everything) == named(5, 7)
    del everything["bbox"]
    area = mapping(box(-174.6, 70, -170, 71))
    assert ids(**everything, intersects=json.dumps(area)) == named(5, 7)
    assert ids(**everything, intersects=mapping(box(-174.4, 70, -170, 71))) == named(7)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_fields_of_a_search(stac: StacClient, method: str) -> None:
    asked = {"ids": ["item-005"], "method": method}
    (full,) = stac.search(**asked).items_as_dicts()
    who = {"type", "stac_version", "id", "collection"}
    (item,) = stac.search(**asked, fields=["bbox", "properties.end_datetime"]).items_as_dicts()
    assert item.keys() == {*who, "bbox", "properties"}
    assert item["properties"] == {"end_datetime": "2015-01-07T00:00:00Z"}
    (item,) = stac.search(**asked, fields={"exclude": ["geometry", "links"]}).items_as_dicts()
    assert item.keys() == full.keys() - {"geometry", "links"}
    assert item["properties"] == full["properties"]


def test_collection_search(stac: StacClient) -> None:
    def ids(**arguments: Any) -> list[str]:
        return [each.id for each in stac.collection_search(**arguments).collections()]

    everything = [CUBES, "subsets", "velocity-mosaics"]
    assert ids() == ids(limit=1) == ids(bbox=[0, 0, 1, 1]) == everything
    assert ids(max_collections=2) == everything[:2]
    assert ids(q="velocity-mosaics") == ["velocity-mosaics"]
    assert ids(q="subsets,velocity-mosaics", limit=1) == everything[1:]
    assert ids(datetime="1983") == []
    assert ids(datetime="2010-01-01/..") == everything


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_pages_while_rows_are_inserted(stac: StacClient, engine: Engine, method: str) -> None:
    got = []
    pages = stac.search(method=method, limit=25, bbox=[-180, 60, 0, 80]).pages()
    for n, page in enumerate(pages):
        got += [item.id for item in page]
        start = datetime(2014 + n % 2 * 2, 1, 1 + n, tzinfo=UTC)
        put(engine, [make_item(f"new-{n}", box(-90, 70, -89, 71), start, start)])
    assert len(got) == len(set(got))
    assert [id for id in got if id.startswith("item")] == [
        f"item-{n:03d}" for n in reversed(range(120))
    ]
    assert len(got) > 120  # those behind the page that was being read


def test_bad_arguments_are_explained(stac: StacClient) -> None:
    with pytest.raises(Exception, match="south is greater than north"):
        list(stac.search(bbox=[0, 20, 1, 10]).items())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StacClient]:
    if not CATALOG.is_file():
        pytest.skip("the real catalog is not here")
    harvest = pytest.importorskip("firnline.indexer.harvest").harvest
    folder = tmp_path_factory.mktemp("real")
    settings = Settings(data_dir=folder, allowed_sources=(f"file://{CATALOG.parent}/",))
    engine = connect(settings.database)
    migrate(engine)
    harvest(engine, settings, [str(CATALOG)], mosaics=False)
    with serving(create_app(settings, engine)) as url:
        yield StacClient.open(url)
    engine.dispose()


@pytest.fixture(scope="module")
def cubes() -> list[tuple[str, str, Any]]:
    """Id, CRS and polygon in it of every cube, straight from the catalog."""
    features = json.loads(CATALOG.read_text())["features"]
    return [
        (
            Path(each["properties"]["zarr_url"]).stem,
            f"EPSG:{each['properties']['epsg']}",
            shape(each["properties"]["geometry_epsg"]),
        )
        for each in features
    ]


def in_lonlat(area: Any, crs: str) -> dict[str, Any]:
    """The GeoJSON that a client makes of an area: densified, transformed, not cut anywhere."""
    to_lonlat = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    ring = shapely.get_coordinates(shapely.segmentize(area, 1_000))
    lonlat = np.column_stack(to_lonlat.transform(*ring.T))
    return {"type": "Polygon", "coordinates": [lonlat.tolist()]}


def moved(shapes: list[Any], source: str, target: str) -> Any:
    """Polygons in another CRS, their edges densified; None where they leave its domain."""
    transformer = Transformer.from_crs(source, target, always_xy=True)
    dense = shapely.segmentize(np.array(shapes), 1_000)
    xy = np.column_stack(transformer.transform(*shapely.get_coordinates(dense).T))
    finite = np.isfinite(xy).all(axis=1)
    whole = shapely.set_coordinates(dense.copy(), np.where(finite[:, None], xy, 1e9))
    return [None if shape.bounds[2] >= 1e9 else shape for shape in whole]


class TestRealCatalog:
    def test_the_seeds_area(self, real: StacClient, cubes: list[Any]) -> None:
        """Only the cubes that meet it, decided for each of all 3,086 in its own CRS."""
        assert len(cubes) == 3_086
        area = shapely.box(*AOI)
        search = real.search(intersects=in_lonlat(area, "EPSG:3413"))
        got = {item.id for item in search.items()}
        assert search.matched() == len(got)
        in_crs = {crs: moved([area], "EPSG:3413", crs)[0] for crs in {crs for _, crs, _ in cubes}}
        expected = {
            id
            for id, crs, polygon in cubes
            if in_crs[crs] is not None
            and in_crs[crs].is_valid  # a zone of the other side of the globe folds it over
            and in_crs[crs].intersects(polygon)
        }
        assert FOUND in got
        assert got == expected

    @pytest.mark.parametrize(
        ("crs", "bounds"),
        [
            ("EPSG:3413", (-930e3, -930e3, 720e3, 720e3)),  # around the north pole
            ("EPSG:3031", (-630e3, -630e3, 520e3, 520e3)),  # around the south pole
            ("EPSG:3031", (-170e3, -1420e3, 270e3, -1010e3)),  # across the antimeridian
            ("EPSG:3031", (-170e3, 1010e3, 270e3, 1420e3)),  # across Greenwich
            ("EPSG:3413", (-2620e3, -220e3, -910e3, 920e3)),  # Alaska to the Arctic Ocean
        ],
    )
    def test_polar_areas(
        self, real: StacClient, cubes: list[Any], crs: str, bounds: tuple[float, ...]
    ) -> None:
        """Against all cubes moved into the area's own CRS, where nothing is cut or wrapped."""
        area = shapely.box(*bounds)
        # A footprint keeps its true edges to 100 m: only a touch may go either way.
        surely, perhaps = area.buffer(-150), area.buffer(150)
        search = real.search(method="POST", intersects=in_lonlat(area, crs), limit=500)
        got = {item.id for item in search.items()}
        assert search.matched() == len(got)
        expected, allowed = set(), set()
        for own in {own for _, own, _ in cubes}:
            ids = [id for id, each, _ in cubes if each == own]
            polygons = [polygon for _, each, polygon in cubes if each == own]
            for id, polygon in zip(ids, moved(polygons, own, crs), strict=True):
                # Beyond the equator's distance a pole-centred map turns inside out.
                if polygon is None or max(map(abs, polygon.bounds)) > 1.2e7:
                    continue
                if polygon.intersects(surely):
                    expected.add(id)
                if polygon.intersects(perhaps):
                    allowed.add(id)
        assert len(expected) > 5
        assert expected <= got <= allowed
        assert len(allowed) < 1.5 * len(expected)

    def test_every_cube_is_served_and_valid(self, real: StacClient) -> None:
        ids = [item["id"] for item in real.search(limit=1000).items_as_dicts()]
        assert len(ids) == len(set(ids))
        assert real.search().matched() == len(ids)
