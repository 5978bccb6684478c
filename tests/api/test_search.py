"""Answers of the STAC routes on a handful of items whose matches are plain to see."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from pystac.validation import validate_dict
from sqlalchemy import Engine

from firnline.api.app import create_app
from firnline.api.links import REL_QUERYABLES, REL_SORTABLES
from firnline.database import retire_items, writing
from firnline.settings import Settings
from tests.api.conftest import CUBES, Client, box, make_item, put, utc

ROWS = [
    make_item("greenland", box(-50, 69, -49, 70), utc("2015-01-01"), utc("2020-01-01")),
    make_item("alaska", box(-150, 60, -149, 61), utc("2016-01-01"), utc("2017-01-01")),
    make_item(
        "dateline",
        box(179, 70, 180, 71).union(box(-180, 70, -179, 71)),
        utc("2018-01-01"),
        utc("2019-01-01"),
    ),
    make_item("pole", box(-180, -90, 180, -89), utc("2013-01-01"), utc("2013-01-01")),
    make_item(
        "mosaic",
        box(-55, 60, -45, 75),
        utc("2018-01-01"),
        utc("2018-12-31"),
        collection="velocity-mosaics",
    ),
    make_item(
        "subset-1",
        box(-49.6, 69.1, -49.5, 69.2),
        utc("2017-06-01"),
        utc("2018-06-01"),
        collection="subsets",
        assets={"cog_v": {"href": "firnline:/files/subset-1/g1/cog_v.tif", "type": "image/tiff"}},
        links=[{"rel": "derived_from", "href": "firnline:/collections/itslive-cubes/items/x"}],
    ),
]
NEWEST = ["greenland", "dateline", "mosaic", "subset-1", "alaska", "pole"]
BASE = "http://testserver"


@pytest.fixture(autouse=True)
def _items(engine: Engine) -> None:
    put(engine, ROWS)


def rels(document: dict[str, Any]) -> dict[str, str]:
    return {link["rel"]: link["href"] for link in document["links"]}


class TestLanding:
    def test_landing_page(self, client: Client) -> None:
        page = client.get("/")
        assert page["type"] == "Catalog"
        assert page["stac_version"] == "1.1.0"
        links = {(link["rel"], link.get("method")): link for link in page["links"]}
        assert links["self", None]["href"] == f"{BASE}/"
        assert links["data", None]["href"] == f"{BASE}/collections"
        assert links["search", "GET"]["href"] == f"{BASE}/search"
        assert links["search", "POST"]["type"] == "application/geo+json"
        processes = "http://www.opengis.net/def/rel/ogc/1.0/processes"
        assert links[processes, None]["href"] == f"{BASE}/processes"
        children = [link["href"] for link in page["links"] if link["rel"] == "child"]
        assert children == [
            f"{BASE}/collections/{id}" for id in (CUBES, "subsets", "velocity-mosaics")
        ]
        assert page["conformsTo"] == client.get("/conformance")["conformsTo"]
        assert "https://api.stacspec.org/v1.0.0/item-search" in page["conformsTo"]
        dismiss = "http://www.opengis.net/spec/ogcapi-processes-1/1.0/conf/dismiss"
        assert dismiss in page["conformsTo"]

    def test_every_link_leads_somewhere(self, client: Client) -> None:
        of_collection = client.get(f"/collections/{CUBES}")["links"]
        for link in client.get("/")["links"] + of_collection:
            if link.get("method") != "POST" and link["rel"] != "aggregate":  # which asks for a name
                answer = client.http.get(link["href"])
                assert answer.status_code == 200
                assert answer.headers["content-type"].split(";")[0] == link["type"].split(";")[0]

    def test_collections(self, client: Client) -> None:
        answer = client.get("/collections")
        assert [each["id"] for each in answer["collections"]] == [
            CUBES,
            "subsets",
            "velocity-mosaics",
        ]
        assert client.get(f"/collections/{CUBES}") == answer["collections"][0]
        assert rels(answer["collections"][0]) == {
            "self": f"{BASE}/collections/{CUBES}",
            "parent": f"{BASE}/",
            "root": f"{BASE}/",
            "items": f"{BASE}/collections/{CUBES}/items",
            "child": f"{BASE}/collections/{CUBES}/browse",
            **{
                rel: f"{BASE}/collections/{CUBES}/{rel.rpartition('/')[2]}"
                for rel in (REL_QUERYABLES, REL_SORTABLES, "aggregations", "aggregate")
            },
        }

    def test_documents_are_valid_stac(self, client: Client) -> None:
        for path in ("/", f"/collections/{CUBES}", f"/collections/{CUBES}/items/pole"):
            assert validate_dict(client.get(path)), path  # core schemas, which pystac brings along


class TestItem:
    def test_item_by_id(self, client: Client) -> None:
        answer = client.http.get("/collections/subsets/items/subset-1")
        assert answer.headers["content-type"] == "application/geo+json"
        item = answer.json()
        assert item["assets"]["cog_v"]["href"] == f"{BASE}/files/subset-1/g1/cog_v.tif"
        assert rels(item) == {
            "self": f"{BASE}/collections/subsets/items/subset-1",
            "parent": f"{BASE}/collections/subsets",
            "collection": f"{BASE}/collections/subsets",
            "root": f"{BASE}/",
            "derived_from": f"{BASE}/collections/itslive-cubes/items/x",
        }
        assert item["geometry"] == json.loads(ROWS[5].content)["geometry"]

    @pytest.mark.parametrize(
        "path",
        [
            "/collections/none",
            "/collections/none/items",
            "/collections/none/items/x",
            f"/collections/{CUBES}/items/none",
            f"/collections/{CUBES}/items/%00",
            "/collections/%00",
            "/nothing/here",
        ],
    )
    def test_not_there(self, client: Client, path: str) -> None:
        problem = client.problem("GET", path, 404)
        assert problem["title"] == "Not Found"
        assert problem["detail"].startswith("there is no")

    def test_strange_ids_survive(self, client: Client, engine: Engine) -> None:
        id = 'a b;ü?#&"%'
        put(engine, [make_item(id, box(0, 0, 1, 1))])
        [item] = client.get("/search", bbox="0,0,1,1")["features"]
        assert client.http.get(rels(item)["self"]).json()["id"] == id
        assert client.get("/search", ids=id)["features"][0]["id"] == id


class TestFilters:
    def test_all_newest_first(self, client: Client) -> None:
        page = client.get("/search")
        assert [item["id"] for item in page["features"]] == NEWEST
        assert page["numberMatched"] == page["numberReturned"] == 6
        assert "next" not in rels(page)

    @pytest.mark.parametrize(
        ("bbox", "found"),
        [
            ("-49.5,69.5,-49.4,69.6", ["greenland", "mosaic"]),
            ("-49.5,69.5,0,-49.4,69.6,100", ["greenland", "mosaic"]),
            ("-49.5,69.5,-9,-49.4,69.6,0", ["greenland", "mosaic"]),
            ("-49.5,69.5,0.5,-49.4,69.6,100", []),  # items are at height 0
            ("-180,-90,-9,180,90,-0.5", []),
            ("179.5,70,-179.5,71", ["dateline"]),
            ("170,60,179.5,80", ["dateline"]),
            ("-179.2,60,-170,80", ["dateline"]),
            ("-178,60,178,80", ["greenland", "mosaic", "subset-1", "alaska"]),
            ("10,-90,20,-89.5", ["pole"]),
            ("100,-90,-100,-89.5", ["pole"]),
            ("-49.55,69.15,-49.55,69.15", ["greenland", "mosaic", "subset-1"]),
            ("-180,-90,180,90", NEWEST),
            ("10,10,20,20", []),
        ],
    )
    def test_bbox(self, client: Client, bbox: str, found: list[str]) -> None:
        assert client.ids(bbox=bbox) == found
        assert client.posted_ids(bbox=[float(value) for value in bbox.split(",")]) == found

    @pytest.mark.parametrize(
        ("geometry", "found"),
        [
            (
                {"type": "Point", "coordinates": [-49.55, 69.15]},
                ["greenland", "mosaic", "subset-1"],
            ),
            ({"type": "Point", "coordinates": [180.5, 70.5]}, ["dateline"]),
            ({"type": "LineString", "coordinates": [[-160, 60.5], [-140, 60.5]]}, ["alaska"]),
            ({"type": "LineString", "coordinates": [[178, 70.5], [-178, 70.5]]}, ["dateline"]),
            (
                {
                    "type": "GeometryCollection",
                    "geometries": [
                        {"type": "Point", "coordinates": [-149.5, 60.5]},
                        {"type": "MultiPoint", "coordinates": [[0, -89.5], [1, 1]]},
                    ],
                },
                ["alaska", "pole"],
            ),
            # its box meets greenland's, the triangle does not
            (
                {
                    "type": "Polygon",
                    "coordinates": [[[-60, 76], [-48, 76], [-60, 68], [-60, 76]]],
                },
                ["mosaic"],
            ),
        ],
    )
    def test_intersects(self, client: Client, geometry: dict[str, Any], found: list[str]) -> None:
        assert client.ids(intersects=json.dumps(geometry)) == found
        assert client.posted_ids(intersects=geometry) == found

    @pytest.mark.parametrize(
        ("datetime", "found"),
        [
            ("2017-01-01T00:00:00Z", ["greenland", "alaska"]),
            ("2017-01-01T00:00:00.000001Z", ["greenland"]),
            ("2017-01-01T00:00:00.0000001Z", ["greenland"]),
            ("2016-12-31T23:59:59.9999999Z", ["greenland", "alaska"]),
            ("2013-01-01T00:00:00Z", ["pole"]),
            ("2013-01-01T01:00:00+01:00", ["pole"]),
            ("2018-12-31T00:00:00Z/..", ["greenland", "dateline", "mosaic"]),
            ("2018-12-31T00:00:00.5Z/", ["greenland", "dateline"]),
            ("../2015-01-01T00:00:00Z", ["greenland", "pole"]),
            ("/2014-12-31T23:59:59.999999Z", ["pole"]),
            ("2013-02-01T00:00:00Z/2015-12-31T00:00:00Z", ["greenland"]),
            ("2021-01-01T00:00:00Z/..", []),
        ],
    )
    def test_datetime_means_overlap(self, client: Client, datetime: str, found: list[str]) -> None:
        assert client.ids(datetime=datetime) == found
        assert client.posted_ids(datetime=datetime) == found
        # and the same with the R*Tree between
        assert client.ids(datetime=datetime, bbox="-180,-90,180,89") == found

    def test_a_plus_that_was_not_encoded(self, client: Client) -> None:
        for first in ("2018-12-31T01:00:00+01:00", "2018-12-31T01:00:00%2B01:00"):
            page = client.http.get(f"/search?datetime={first}/..").json()
            assert [item["id"] for item in page["features"]] == ["greenland", "dateline", "mosaic"]
        problem = client.problem("GET", "/search?datetime=2018-12-31+01:00:00Z", 400)
        assert "2018-12-31+01:00:00Z" in problem["detail"]

    def test_ids_and_collections_restrict_together(self, client: Client) -> None:
        assert client.ids(ids="pole,greenland,none") == ["greenland", "pole"]
        assert client.ids(ids="pole,greenland", bbox="-180,0,180,90") == ["greenland"]
        assert client.ids(ids="pole,mosaic", collections=CUBES) == ["pole"]
        assert client.ids(ids="pole", datetime="2014-01-01T00:00:00Z/..") == []
        assert client.ids(collections="subsets,velocity-mosaics") == ["mosaic", "subset-1"]
        assert client.posted_ids(ids=["pole"], collections=[CUBES]) == ["pole"]
        assert client.posted_ids(ids=[], collections=[]) == NEWEST

    def test_items_of_a_collection(self, client: Client) -> None:
        page = client.get(f"/collections/{CUBES}/items", bbox="-180,0,180,90", limit=2)
        assert [item["id"] for item in page["features"]] == ["greenland", "dateline"]
        assert (page["numberMatched"], page["numberReturned"]) == (3, 2)
        here = f"{BASE}/collections/{CUBES}"
        assert {rel: href.split("?")[0] for rel, href in rels(page).items()} == {
            "root": f"{BASE}/",
            "self": f"{here}/items",
            "parent": here,
            "collection": here,
            "next": f"{here}/items",
        }
        last = client.http.get(rels(page)["next"]).json()
        assert [item["id"] for item in last["features"]] == ["alaska"]
        assert last["numberMatched"] == 3

    def test_limit_above_the_maximum_is_taken_for_it(self, client: Client) -> None:
        assert client.get("/search", limit=10**20)["numberReturned"] == 6
        assert len(client.posted_ids(limit=10_001)) == 6


class TestBadInput:
    @pytest.mark.parametrize(
        ("query", "name"),
        [
            ("bbox=1,2,3", "bbox"),
            ("bbox=", "bbox"),
            ("bbox=a,b,c,d", "bbox"),
            ("bbox=[1,2,3,4]", "bbox"),
            ("bbox=nan,0,1,1", "bbox"),
            ("bbox=0,0,inf,1", "bbox"),
            ("bbox=0,1,1,0", "bbox"),
            ("bbox=0,0,1,1e309", "bbox"),
            ("datetime=yesterday", "datetime"),
            ("datetime=", "datetime"),
            ("datetime=2018-01-01", "datetime"),
            ("datetime=../..", "datetime"),
            ("limit=0", "limit"),
            ("limit=-1", "limit"),
            ("limit=ten", "limit"),
            ("limit=1.5", "limit"),
            ("token=abc", "token"),
            ("token=%C3%BC", "token"),
            ("token=" + "A" * 500, "token"),
            ("intersects={", "intersects"),
            ("intersects=[]", "intersects"),
            ('intersects={"type":"Point","coordinates":[NaN,0]}', "intersects"),
            ("intersects=" + quote("[" * 5000), "intersects"),
            ("bbox=0,0,1,1&bbox=0,0,2,2", "bbox"),
            ('bbox=0,0,1,1&intersects={"type":"Point","coordinates":[0,0]}', "intersects"),
            ("colections=x", "colections"),
            ("filtre=a=1", "filtre"),
            ("ids=a%00b", "ids"),
            ("collections=%00", "collections"),
            ("bbox=1_0,0,20,20", "bbox"),
            ("sortby=geometry", "sortby: 'geometry'"),
            ("sortby=--id", "sortby: '-id'"),
            ("q=%00", "q takes"),
            ("filter=TRUE&filter-crs=EPSG:3413", "filter-crs 'EPSG:3413'"),
            ("filter=TRUE&filter-crs=here", "filter-crs: "),
            ("filter=id='a'&filter-lang=cql2-json", "filter-lang is cql2-text"),
        ],
    )
    def test_get(self, client: Client, query: str, name: str) -> None:
        assert name in client.problem("GET", f"/search?{query}", 400)["detail"]

    @pytest.mark.parametrize(
        "query", ["bbox=1", "datetime=x", "limit=0", "token=x", "collections=x"]
    )
    def test_items(self, client: Client, query: str) -> None:
        problem = client.problem("GET", f"/collections/{CUBES}/items?{query}", 400)
        assert query.split("=")[0] in problem["detail"]

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            ({"bbox": "1,2,3,4"}, "bbox"),
            ({"bbox": [1, 2, 3]}, "bbox"),
            ({"bbox": [0, 0, None, 1]}, "bbox"),
            ({"datetime": 2018}, "datetime"),
            ({"datetime": "2018"}, "datetime"),
            ({"limit": 0}, "limit"),
            ({"limit": "many"}, "limit"),
            ({"ids": [1]}, "ids"),
            ({"ids": ["a\0"]}, "ids"),
            ({"ids": ["x"] * 10_001}, "ids"),
            ({"collections": {"a": 1}}, "collections"),
            ({"intersects": "POINT(0 0)"}, "intersects"),
            ({"intersects": {"type": "Feature"}}, "intersects"),
            ({"bbox": [0, 0, 1, 1], "intersects": {"type": "Point"}}, "intersects"),
            ({"token": "forged"}, "token"),
            ({"filtre": {"op": "=", "args": []}}, "filtre"),
            ({"sortby": [{"field": "assets"}]}, "sortby: 'assets'"),
            ({"sortby": ["id"]}, "sortby.0: a JSON object"),
            ({"fields": ["id"]}, "fields: a JSON object"),
            ({"q": 5}, "q: Input should be a valid list; q: Input should be a valid string"),
            ([], "body"),
            (None, "body"),
        ],
    )
    def test_post(self, client: Client, body: Any, name: str) -> None:
        assert name in client.problem("POST", "/search", 400, json=body)["detail"]

    @pytest.mark.parametrize(
        ("raw", "name"),
        [
            (b"", "body"),
            (b"{", "body"),
            (b'{"bbox":[NaN,0,1,1]}', "bbox"),
            (b'{"bbox":[0,0,Infinity,1]}', "bbox"),
            (b'{"bbox":[0,0,1e400,1]}', "bbox"),
            (b'{"ids":["\\ud800"]}', "ids"),
            (b'{"token":"\\ud800"}', "token"),
            (b"\xff\xfe", "body"),
            (b"[" * 100_000, "body"),
            (b'{"intersects":' * 50_000, "body"),
            (b'{"limit":' + b"9" * 5000 + b"}", "body"),
        ],
    )
    def test_post_of_raw_bytes(self, client: Client, raw: bytes, name: str) -> None:
        problem = client.problem(
            "POST", "/search", 400, content=raw, headers={"Content-Type": "application/json"}
        )
        assert name in problem["detail"]

    @pytest.mark.parametrize("path", ["/search?", "/aggregate?aggregations=total_count&"])
    def test_collections_that_there_are_not(self, client: Client, path: str) -> None:
        problem = client.problem("GET", f"{path}collections={CUBES},none", 400)
        there = f"{CUBES}, subsets, velocity-mosaics"
        assert problem["detail"] == f"collections: there is no 'none'; accepted: {there}"
        assert client.http.get(f"{path}collections={CUBES},subsets").status_code == 200

    @pytest.mark.parametrize("code", ["EPSG:9999999", "EPSG:4267", "here"])
    @pytest.mark.parametrize("name", ["crs", "bbox-crs"])
    def test_crs_by_its_own_name(self, client: Client, name: str, code: str) -> None:
        problem = client.problem("GET", f"/search?bbox=0,0,1,1&{name}={code}", 400)
        assert problem["detail"].startswith(name)
        assert code in problem["detail"]
        assert "CRS84" in problem["detail"]

    def test_another_media_type(self, client: Client) -> None:
        options = {"content": b'{"limit":1}', "headers": {"Content-Type": "text/plain"}}
        problem = client.problem("POST", "/search", 400, **options)
        assert problem["detail"].startswith("body: a JSON object is accepted")
        assert "Content-Type: application/json" in problem["detail"]

    def test_parameters_where_there_are_none(self, client: Client) -> None:
        """OGC API - Features, /req/core/query-param-unknown."""
        paths = ["/", "/conformance", f"/collections/{CUBES}", f"/collections/{CUBES}/items/pole"]
        for path in (*paths, "/queryables", "/aggregations"):
            assert client.http.get(path).status_code == 200
            problem = client.problem("GET", f"{path}?limit=1", 400)
            assert problem["detail"] == "'limit' is not a parameter; accepted: none"
        for path in ("/search", "/aggregate", f"/collections/{CUBES}/aggregate"):
            body = {"json": {} if path == "/search" else {"aggregations": ["total_count"]}}
            assert client.http.post(path, **body).status_code == 200
            assert "'limit'" in client.problem("POST", f"{path}?limit=1", 400, **body)["detail"]

    def test_too_many_vertices(self, client: Client) -> None:
        line = {"type": "LineString", "coordinates": [[n / 100, 0] for n in range(10_001)]}
        problem = client.problem("POST", "/search", 400, json={"intersects": line})
        assert "10,000" in problem["detail"]

    def test_a_body_over_the_limit(self, client: Client) -> None:
        big = b'{"ids":["' + b"x" * 1_000_000 + b'"]}'
        assert "1,000,000 bytes" in client.problem("POST", "/search", 413, content=big)["detail"]

        def chunks() -> Any:
            for _ in range(11):
                yield b"x" * 100_000

        client.problem("POST", "/search", 413, content=chunks())

    def test_another_method(self, client: Client) -> None:
        problem = client.problem("DELETE", "/search", 405)
        assert problem["title"] == "Method Not Allowed"


class TestBaseURL:
    def test_public_url_wins(self, engine: Engine, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path, public_url="https://ice.example/stac/")
        client = Client(create_app(settings, engine))
        assert rels(client.get("/"))["root"] == "https://ice.example/stac/"
        page = client.get("/search", limit=1)
        assert rels(page)["next"].startswith("https://ice.example/stac/search?limit=1&token=")
        item = client.get("/collections/subsets/items/subset-1")
        href = item["assets"]["cog_v"]["href"]
        assert href == "https://ice.example/stac/files/subset-1/g1/cog_v.tif"

    def test_root_path_comes_once(self, app: FastAPI) -> None:
        client = Client(app, root_path="/stac")
        assert rels(client.get("/stac/search", limit=1))["root"] == f"{BASE}/stac/"
        [first] = client.get("/stac/search", limit=1)["features"]
        assert rels(first)["self"] == f"{BASE}/stac/collections/{CUBES}/items/greenland"
        assert client.http.get(rels(first)["self"]).json()["id"] == "greenland"

    def test_host_of_the_request(self, client: Client) -> None:
        answer = client.http.get("/search", headers={"Host": "ice.example:8443"}).json()
        assert rels(answer)["self"] == "http://ice.example:8443/search"


def test_replies_are_readable_across_origins(client: Client) -> None:
    for path, status in (("/search", 200), ("/search?limit=0", 400), ("/nothing", 404)):
        answer = client.http.get(path, headers={"Origin": "https://viewer.example"})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "*"


def test_items_are_sent_as_stored(client: Client, engine: Engine) -> None:
    """Bytes of the store, not a model of them: unknown members and number forms survive."""
    row = make_item("odd", box(0, 0, 1, 1), end=datetime(2030, 1, 1, tzinfo=UTC))
    content = row.content[:-1] + b',"x:odd":{"n":1.50,"z":null}}'
    put(engine, [row.__class__(**{**row.__dict__, "content": content})])
    assert content[:-1] in client.http.get("/search?limit=1").content
    assert content[:-1] in client.http.get(f"/collections/{CUBES}/items/odd").content


class TestRetired:
    """What its source no longer has is nowhere to be found, until it's there again."""

    @pytest.mark.parametrize(
        "asked",
        [
            {},
            {"ids": "greenland"},
            {"collections": CUBES},
            {"bbox": "-60,60,-40,80"},
            {"bbox": "-180,-90,180,90"},
            {"datetime": "2015-06-01T00:00:00Z"},
            {"bbox": "-60,60,-40,80", "datetime": "2015-06-01T00:00:00Z"},
            {"intersects": '{"type":"Point","coordinates":[-49.5,69.5]}'},
        ],
        ids=str,
    )
    def test_hidden_from_every_search(
        self, client: Client, engine: Engine, asked: dict[str, str]
    ) -> None:
        before = client.get("/search", limit=100, **asked)
        found = [item["id"] for item in before["features"]]
        assert "greenland" in found
        with writing(engine) as connection:
            retire_items(connection, CUBES, ["greenland"])
        hidden = client.get("/search", limit=100, **asked)
        found.remove("greenland")
        assert [item["id"] for item in hidden["features"]] == found
        assert hidden["numberMatched"] == before["numberMatched"] - 1
        assert client.ids(limit=1, **asked) == found
        put(engine, ROWS[:1])
        assert client.get("/search", limit=100, **asked) == before

    def test_no_such_item(self, client: Client, engine: Engine) -> None:
        path = f"/collections/{CUBES}/items"
        with writing(engine) as connection:
            retire_items(connection, CUBES, ["greenland"])
        client.problem("GET", f"{path}/greenland", 404)
        assert client.get(path)["numberMatched"] == 4 - 1
