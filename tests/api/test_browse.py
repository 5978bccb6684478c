"""Every item is reached by `child` and `item` links, in documents of a bounded size."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import Engine

from firnline.api import browse
from firnline.database import retire_items, writing
from tests.api.conftest import CUBES, Client, box, make_item, put

# Signs that mean something in addresses, in queries, or sort oddly.
ODD = ["a b", "a&first=b", "a/b", "a%2Fb", "ä", "Z", "z", "0", "?", "#", "+", "a+b", "日"]


@pytest.fixture
def ids(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """More than four times four items, some of them retired, and a few in another collection."""
    monkeypatch.setattr(browse, "FEW", 4)
    living = [*ODD, *(f"cube-{n:03d}" for n in range(90))]
    retired = [f"cube-{n:03d}-old" for n in range(0, 90, 3)]
    put(engine, [make_item(id, box(0, 0, 1, 1)) for id in (*living, *retired)])
    put(engine, [make_item(id, box(0, 0, 1, 1), collection="subsets") for id in ("a", "cube-000")])
    with writing(engine) as connection:
        retire_items(connection, CUBES, retired)
    return living


def linked(document: dict[str, Any], rel: str) -> list[str]:
    return [link["href"] for link in document["links"] if link["rel"] == rel]


def crawled(client: Client, href: str) -> list[str]:
    """Addresses of the items below a document, with documents checked on the way."""
    document = client.http.get(href).json()
    children, items = linked(document, "child"), linked(document, "item")
    if document["type"] == "Catalog" and linked(document, "self") != ["http://testserver/"]:
        assert len(children) + len(items) <= 4
        assert not (children and items)
        assert linked(document, "self") == [href]
    return [*items, *(item for child in children for item in crawled(client, child))]


def address(id: str, collection: str = CUBES) -> str:
    return f"http://testserver/collections/{collection}/items/{quote(id, safe='')}"


def test_every_item_is_reached_once(client: Client, ids: list[str]) -> None:
    reached = crawled(client, "http://testserver/")
    others = [address(id, "subsets") for id in ("a", "cube-000")]
    assert sorted(reached) == sorted([*map(address, ids), *others])


def test_what_comes_later_is_reached_by_old_links(
    client: Client, engine: Engine, ids: list[str]
) -> None:
    whole = client.get(f"/collections/{CUBES}/browse")
    later = ["", "!", "cube-0415", "cube-999", "zz"]
    put(engine, [make_item(id, box(0, 0, 1, 1)) for id in later if id])
    reached = [item for child in linked(whole, "child") for item in crawled(client, child)]
    assert sorted(reached) == sorted(map(address, [*ids, *filter(None, later)]))


def test_few_items_are_linked_at_once(client: Client, engine: Engine) -> None:
    put(engine, [make_item(id, box(0, 0, 1, 1)) for id in "ba"])
    document = client.get(f"/collections/{CUBES}/browse")
    assert linked(document, "item") == [address("a"), address("b")]
    assert linked(document, "child") == []
    assert linked(document, "parent") == [f"http://testserver/collections/{CUBES}"]
    assert client.get(linked(document, "item")[0])["id"] == "a"


def test_refused(client: Client) -> None:
    client.problem("GET", "/collections/none/browse", 404)
    assert "before" in client.problem("GET", f"/collections/{CUBES}/browse?after=1", 400)["detail"]
