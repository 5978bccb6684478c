"""Collection search (STAC API - Collection Search): what extents and texts say, page by page."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pystac_client import Client as StacClient
from sqlalchemy import Engine, delete

from firnline.database import put_collections, writing
from firnline.tables import collections
from tests.api.conftest import Client


def stored(
    id: str,
    boxes: list[list[float]],
    intervals: list[list[str | None]],
    **texts: Any,
) -> tuple[str, bytes]:
    content = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": id,
        "description": "Synthetic.",
        "license": "CC-BY-4.0",
        "extent": {"spatial": {"bbox": boxes}, "temporal": {"interval": intervals}},
        **texts,
    }
    return id, orjson.dumps(content)


COLLECTIONS = [
    stored("alaska", [[-180, 50, -130, 72]], [["1985-01-01T00:00:00Z", "1999-12-31T23:59:59Z"]],
           title="Ice of Alaska", keywords=["glaciers, land ice", "GPS"]),
    stored("bering", [[170, 50, -160, 70]], [["2000-01-01T00:00:00Z", None]],
           title="Both sides of the antimeridian"),
    stored("greenland", [[-75, 59, 0, -10, 84, 3000]], [[None, "1990-06-01T00:00:00.5Z"]],
           description="Speeds of outlet glaciers", keywords=["Jakobshavn"]),
    stored("patagonia", [[-180, -60, 180, 10], [-75, -55, -70, -45], [100, 0, 101, 1]],
           [["1990-01-01T00:00:00Z", None]], title="Two places"),
    stored("world", [[-180, -90, 180, 90]], [[None, None]]),
]  # fmt: skip
ALL = [id for id, _ in COLLECTIONS]


@pytest.fixture(autouse=True)
def catalog(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(delete(collections))
        put_collections(connection, reversed(COLLECTIONS))


def ids(client: Client, **params: Any) -> list[str]:
    answer = client.get("/collections", **params)
    found = [each["id"] for each in answer["collections"]]
    assert answer["numberMatched"] == answer["numberReturned"] == len(found)
    return found


def test_what_is_found(client: Client) -> None:
    """Any of the boxes, any of the intervals, any of the terms; all of what is asked for."""
    for asked, expected in (
        ({}, ALL),
        ({"bbox": "-180,-90,180,90"}, ALL),
        ({"bbox": "-150,60,-149,61"}, ["alaska", "world"]),
        ({"bbox": "-179,55,-178,56"}, ["alaska", "bering", "world"]),
        ({"bbox": "175,55,176,56"}, ["bering", "world"]),
        ({"bbox": "179,55,-179,56"}, ["alaska", "bering", "world"]),
        ({"bbox": "-50,69,-50,69"}, ["greenland", "world"]),
        ({"bbox": "-50,69,9000,-50,69,9001"}, ["greenland", "world"]),  # heights decide nothing
        ({"bbox": "-10,84,-9,85"}, ["greenland", "world"]),  # a corner in common
        ({"bbox": "-10,84.1,-9,85"}, ["world"]),
        ({"bbox": "100.5,0.5,100.6,0.6"}, ["patagonia", "world"]),
        # around the north pole to 84 degrees and less, which only Greenland's box reaches
        ({"bbox": "-8e5,-8e5,8e5,8e5", "bbox-crs": "EPSG:3413"}, ["greenland", "world"]),
        ({"datetime": "1990-01-01T00:00:00Z"}, ["alaska", "greenland", "patagonia", "world"]),
        ({"datetime": "1990-06-01T00:00:00.5Z"}, ["alaska", "greenland", "patagonia", "world"]),
        ({"datetime": "1990-06-01T00:00:00.6Z/.."}, ["alaska", "bering", "patagonia", "world"]),
        ({"datetime": "../1984-12-31T23:59:59Z"}, ["greenland", "world"]),
        ({"datetime": "2000-01-01T00:00:00Z/.."}, ["bering", "patagonia", "world"]),
        ({"q": "ALASKA"}, ["alaska"]),  # id and title
        ({"q": "jakobs"}, ["greenland"]),  # a keyword
        ({"q": "outlet glaciers"}, ["greenland"]),  # a phrase
        ({"q": "glaciers outlet"}, []),
        ({"q": "two, antimeridian"}, ["bering", "patagonia"]),
        ({"q": '"glaciers, land",nothing'}, ["alaska"]),
        ({"q": "glaciers"}, ["alaska", "greenland"]),
        ({"q": " , "}, ALL),
        ({"q": "100%"}, []),
        ({"q": "glaciers", "datetime": "1995-01-01T00:00:00Z"}, ["alaska"]),
        ({"q": "glaciers", "bbox": "-50,69,-49,70"}, ["greenland"]),
        ({"q": "glaciers", "bbox": "-50,69,-49,70", "datetime": "1995-01-01T00:00:00Z"}, []),
    ):  # fmt: skip
        assert ids(client, **asked) == expected, asked


def test_pages(client: Client, engine: Engine) -> None:
    """Those that come or go between two pages neither repeat nor hide others."""
    pages = client.pages("/collections", limit=2, datetime="1990-01-01T00:00:00Z")
    first = next(pages)
    assert [each["id"] for each in first["collections"]] == ["alaska", "greenland"]
    assert (first["numberMatched"], first["numberReturned"]) == (4, 2)
    with writing(engine) as connection:
        connection.execute(delete(collections).where(collections.c.id == "greenland"))
        put_collections(connection, [stored("aaa", [[0, 0, 1, 1]], [[None, None]])])
    second = next(pages)
    assert [each["id"] for each in second["collections"]] == ["patagonia", "world"]
    assert next(pages, None) is None
    links = {link["rel"]: link for link in first["links"]}
    assert links["next"]["type"] == "application/json"
    assert links["self"]["href"].startswith("http://testserver/collections?limit=2&datetime=")
    assert {"root", "parent"} <= links.keys()


def test_a_token_is_for_its_search_and_for_collections(client: Client) -> None:
    page = client.get("/collections", limit=2)
    (following,) = (link["href"] for link in page["links"] if link["rel"] == "next")
    token = following.rpartition("token=")[2]
    rest = client.get("/collections", limit=100, token=token)  # the page size may change
    assert [each["id"] for each in rest["collections"]] == ALL[2:]
    for path, asked in (
        ("/collections", {"token": token, "q": "glaciers"}),
        ("/collections", {"token": "forged"}),
        ("/search", {"token": token}),
    ):
        assert "token" in client.problem("GET", path, 400, params=asked)["detail"]


def test_bad_requests(client: Client) -> None:
    for asked, named in (
        ({"bbox": "1,2,3"}, "bbox"),
        ({"bbox": "0,80,1,70"}, "bbox"),
        ({"bbox": "0,0,1,nan"}, "bbox"),
        ({"bbox": "0,0,1,1", "bbox-crs": "EPSG:1"}, "EPSG:1"),
        ({"datetime": "1990"}, "datetime"),
        ({"limit": "0"}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"q": "\0"}, "q"),
        ({"sortby": "title"}, "sortby"),
    ):
        assert named in client.problem("GET", "/collections", 400, params=asked)["detail"], asked


def test_with_pystac_client(served: str) -> None:
    """It filters by itself what a server can't, unless the server says that it can."""
    client = StacClient.open(served)
    for method, expected in (
        ({"q": "glaciers"}, ["alaska", "greenland"]),
        ({"bbox": [-50, 69, -49, 70]}, ["greenland", "world"]),
        ({"datetime": "2000/.."}, ["bering", "patagonia", "world"]),
        ({"limit": 2}, ALL),
    ):
        search = client.collection_search(**method)  # type: ignore[arg-type]
        assert [each.id for each in search.collections()] == expected
        assert search.matched() == len(expected)
