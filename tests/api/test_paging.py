from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.api import paging
from firnline.api.app import create_app
from firnline.api.area import from_bbox
from firnline.api.matched import Matched
from firnline.api.paging import Place
from firnline.api.searches import Cursor, Search, SortKey, Way
from firnline.database import ItemRow, retire_items, writing
from firnline.errors import TokenError
from firnline.settings import Settings
from tests.api.conftest import CUBES, Client, box, make_item, put

NEW_YEAR = datetime(2020, 1, 1, tzinfo=UTC)


def made(n: int, days: int = 0, collection: str = CUBES) -> ItemRow:
    return make_item(
        f"item-{n:03d}",
        box(n / 10, 70, n / 10 + 1, 71),
        NEW_YEAR - timedelta(days=4000),
        NEW_YEAR + timedelta(days=days),
        collection,
    )


@pytest.fixture
def many(engine: Engine) -> list[ItemRow]:
    """90 items in groups that end at the same instant, over two collections."""
    rows = [made(n, n % 3, (CUBES, "subsets")[n % 2]) for n in range(90)]
    put(engine, rows)
    return sorted(rows, key=lambda row: (-row.end.timestamp(), row.collection, row.id))


FILTERS = [{}, {"bbox": "0,70,20,71"}, {"datetime": "2010-01-01T00:00:00Z/.."}]


@pytest.mark.parametrize("filters", FILTERS)
@pytest.mark.parametrize("limit", [1, 7, 30, 90, 91])
def test_every_item_once_and_in_order(
    client: Client, many: list[ItemRow], limit: int, filters: dict[str, str]
) -> None:
    pages = list(client.pages("/search", limit=limit, **filters))
    got = [item["id"] for page in pages for item in page["features"]]
    assert got == [row.id for row in many]
    assert len(pages) == -(-90 // limit)
    assert {page["numberMatched"] for page in pages} == {90}
    assert sum(page["numberReturned"] for page in pages) == 90


def test_next_of_post_is_a_whole_body(client: Client, many: list[ItemRow]) -> None:
    body: dict[str, Any] = {"bbox": [0, 70, 20, 71], "limit": 40, "collections": [CUBES, "subsets"]}
    got: list[str] = []
    asked = body
    while True:
        page = client.post("/search", asked)
        got += [item["id"] for item in page["features"]]
        following = [link for link in page["links"] if link["rel"] == "next"]
        if not following:
            break
        [link] = following
        assert (link["method"], link["href"]) == ("POST", "http://testserver/search")
        assert link["body"].keys() == {*body, "token"}
        asked = link["body"]
    assert got == [row.id for row in many]


def test_items_of_a_collection(client: Client, many: list[ItemRow]) -> None:
    pages = client.pages(f"/collections/{CUBES}/items", limit=10)
    got = [item["id"] for page in pages for item in page["features"]]
    assert got == [row.id for row in many if row.collection == CUBES]


@pytest.mark.parametrize("filters", FILTERS)
def test_rows_that_come_and_go_neither_repeat_nor_hide_others(
    client: Client, engine: Engine, many: list[ItemRow], filters: dict[str, str]
) -> None:
    got: list[str] = []
    for n, page in enumerate(client.pages("/search", limit=9, **filters)):
        got += [item["id"] for item in page["features"]]
        put(engine, [made(100 + 2 * n, 0), made(101 + 2 * n, 9)])  # behind and ahead of the page
        with writing(engine) as connection:  # the very item that the next page goes on from
            last = page["features"][-1]
            retire_items(connection, last["collection"], [last["id"]])
    assert len(got) == len(set(got))
    old = [id for id in got if id < "item-100"]
    assert old == [row.id for row in many]
    assert "item-101" not in got  # newer than the first page


def test_a_token_outlives_the_process_and_serves_another(
    engine: Engine, many: list[ItemRow], tmp_path: Path
) -> None:
    first, second = (Client(create_app(Settings(data_dir=tmp_path), engine)) for _ in range(2))
    page = first.get("/search", limit=5)
    [href] = [link["href"] for link in page["links"] if link["rel"] == "next"]
    assert second.http.get(href).json()["features"][0]["id"] == many[5].id


class TestToken:
    KEY = paging.key_for("sqlite:///x")
    VALUES = (datetime(2020, 1, 1, 0, 0, 0, 123456, tzinfo=UTC), 0.1, None, "ü")
    PLACE = Place(Cursor(VALUES, CUBES, "ü/id"), Way.WALK, Matched(98_000, 5_000))
    SEARCH = Search(collections=(CUBES,))

    def test_round_trip(self) -> None:
        token = paging.encode(self.PLACE, self.SEARCH, self.KEY)
        assert paging.decode(token, self.SEARCH, self.KEY) == self.PLACE

    def test_not_for_another_search_or_database(self) -> None:
        token = paging.encode(self.PLACE, self.SEARCH, self.KEY)
        with pytest.raises(TokenError, match="token"):
            paging.decode(token, Search(), self.KEY)
        with pytest.raises(TokenError):
            paging.decode(token, self.SEARCH, paging.key_for("sqlite:///y"))

    def test_all_that_is_asked_is_sealed_but_the_page(self) -> None:
        token = paging.encode(self.PLACE, self.SEARCH, self.KEY)
        others: dict[str, Any] = {
            "collections": ("subsets",),
            "ids": ("a",),
            "area": from_bbox([0, 70, 1, 71]),
            "start": NEW_YEAR,
            "end": NEW_YEAR,
            "filter": False,
            "words": ("ice",),
            "order": (SortKey("id"),),
        }
        assert {field.name for field in fields(Search)} == others.keys() | {"limit", "after"}
        for name, value in others.items():
            with pytest.raises(TokenError):
                paging.decode(token, replace(self.SEARCH, **{name: value}), self.KEY)
        same = replace(self.SEARCH, limit=99, after=self.PLACE.cursor)
        assert paging.decode(token, same, self.KEY) == self.PLACE

    def test_any_changed_bit_is_noticed(self) -> None:
        token = paging.encode(self.PLACE, self.SEARCH, self.KEY)
        raw = bytearray(urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        for bit in range(8 * len(raw)):
            raw[bit // 8] ^= 1 << bit % 8
            with pytest.raises(TokenError):
                paging.decode(urlsafe_b64encode(raw).decode(), self.SEARCH, self.KEY)
            raw[bit // 8] ^= 1 << bit % 8

    @pytest.mark.parametrize("token", ["", "A", "AAAA", "=", "\ud800", "ü", "[]", "../..", "\0"])
    def test_rubbish(self, token: str) -> None:
        with pytest.raises(TokenError):
            paging.decode(token, self.SEARCH, self.KEY)

    def test_forged_by_position_alone(self, client: Client, many: list[ItemRow]) -> None:
        forged = urlsafe_b64encode(b"\0" * 12 + b'[0,"itslive-cubes","x"]').decode()
        assert "token" in client.problem("GET", f"/search?token={forged}", 400)["detail"]

    def test_of_another_search(self, client: Client, many: list[ItemRow]) -> None:
        page = client.get("/search", limit=5)
        [href] = [link["href"] for link in page["links"] if link["rel"] == "next"]
        # the limit is no part of the question, a filter is
        following = client.http.get(href.replace("limit=5", "limit=50")).json()["features"]
        assert [item["id"] for item in following] == [row.id for row in many[5:55]]
        client.problem("GET", f"{href}&bbox=0,70,1,71", 400)
