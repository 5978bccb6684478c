"""Orders and what they page through, against Python's own sort."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.api import matched
from tests.api.conftest import CUBES, Client, box, make_item, put, utc

VALUES = [None, ..., 3, -1, 2.5, 10**12, "b", "a", "B", "é", "", "10", True, [1], 2.5, "a"]
"""Of the property `p`; ... is an item without it. Numbers come before words, all else last."""


@pytest.fixture
def known(engine: Engine) -> list[dict[str, Any]]:
    """Items in three collections with few instants, so that most keys have ties."""
    rng = random.Random(4)
    rows, known = [], []
    for n in range(90):
        value = VALUES[n % len(VALUES)]
        start = utc(f"20{10 + rng.randrange(3)}-01-01")
        end = utc(f"20{14 + rng.randrange(3)}-01-01")
        collection = rng.choice([CUBES, "subsets", "velocity-mosaics"])
        properties = {
            "datetime": None,
            "start_datetime": start.isoformat(),
            "end_datetime": end.isoformat(),
            "q": rng.randrange(4),
            **({} if value is ... else {"p": value}),
        }
        where = box(n, 0, n + 1, 1)
        rows.append(make_item(f"i{n:02d}", where, start, end, collection, properties=properties))
        known.append(properties | {"id": f"i{n:02d}", "collection": collection})
    put(engine, rows)
    return known


def in_order(known: list[dict[str, Any]], *keys: tuple[str, bool]) -> list[str]:
    """Ids sorted by (name, descending): stable sorts from the last key to the first."""
    items = sorted(known, key=lambda item: (item["collection"], item["id"]))

    def kind(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return 2
        return isinstance(value, str)

    for name, descending in reversed(keys):
        values = [[item for item in items if kind(item.get(name)) == k] for k in range(3)]
        for some in values[:2]:
            some.sort(
                key=lambda item: item[name].encode() if isinstance(item[name], str) else item[name],
                reverse=descending,
            )
        items = [item for some in values for item in some]
    return [item["id"] for item in items]


@pytest.mark.parametrize("exact", [0, 6_000], ids=["a large catalog", "a small one"])
@pytest.mark.parametrize(
    ("sortby", "keys"),
    [
        ("+p", [("p", False)]),
        ("-properties.p", [("p", True)]),
        ("p,-q", [("p", False), ("q", True)]),
        ("-q,-p,id", [("q", True), ("p", True), ("id", False)]),
        ("+datetime", [("end_datetime", False)]),
        ("-datetime", [("end_datetime", True)]),
        (
            "start_datetime,-properties.end_datetime",
            [("start_datetime", False), ("end_datetime", True)],
        ),
        ("-collection,-id", [("collection", True), ("id", True)]),
        ("missing", [("missing", False)]),
    ],
)
def test_order_of_all_pages(
    client: Client,
    known: list[dict[str, Any]],
    sortby: str,
    keys: list[tuple[str, bool]],
    exact: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matched, "EXACT", exact)
    assert client.ids(sortby=sortby, limit=7) == in_order(known, *keys)
    assert client.ids(sortby=sortby, limit=7, bbox="0,0,95,1") == in_order(known, *keys)


def test_post_is_the_same_and_pages_with_its_body(
    client: Client, known: list[dict[str, Any]]
) -> None:
    body = {
        "sortby": [{"field": "properties.p", "direction": "desc"}, {"field": "q"}],
        "limit": 50,
    }
    first = client.post("/search", body)
    [link] = [link for link in first["links"] if link["rel"] == "next"]
    second = client.post("/search", link["body"])
    got = [item["id"] for page in (first, second) for item in page["features"]]
    assert got == in_order(known, ("p", True), ("q", False))


@pytest.mark.parametrize("sortby", ['a"b', "a\\b", "+", ",".join("abcdefghi"), "\0"])
def test_names_that_no_property_can_have(client: Client, sortby: str) -> None:
    problem = client.problem("GET", "/search", 400, params={"sortby": sortby})
    assert "sortby" in problem["detail"]


def test_a_direction_is_one_of_two(client: Client) -> None:
    body = {"sortby": [{"field": "id", "direction": "down"}]}
    assert "direction" in client.problem("POST", "/search", 400, json=body)["detail"]
