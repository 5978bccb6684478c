"""All that a search can ask, at once, by GET and POST, in any order, page by page: brute force."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from firnline.api import matched
from firnline.api.app import create_app
from firnline.database import ItemRow
from firnline.properties import canonical
from firnline.settings import Settings
from tests.api.conftest import CUBES, Client, box, make_item, utc
from tests.api.test_sort import VALUES, in_order

COLLECTIONS = [CUBES, "subsets", "velocity-mosaics"]
TITLES = ["Ice Shelf", "ice", "Rock, ice", "Ünder"]
KEYS = ["p", "q", "datetime", "start_datetime", "end_datetime", "id", "collection", "title", "none"]
STAMPS = ["2018-01-01T00:00:00Z", "2018-01-01T00:00:00.5+01:00"]


@dataclass(frozen=True)
class Known:
    """An item and what it is sorted by: times as numbers, as `datetime` its end."""

    row: ItemRow
    sorted_by: dict[str, Any]


def some_items(rng: random.Random, count: int = 240) -> list[Known]:
    known = []
    for n in range(count):
        start = utc(f"20{10 + rng.randrange(4)}-01-01") + timedelta(microseconds=rng.randrange(3))
        instant = rng.random() < 0.3
        end = start if instant else start + timedelta(days=rng.choice([0, 30, 1000]))
        properties = {
            "datetime": start.isoformat() if instant else None,
            "start_datetime": start.isoformat(),
            "end_datetime": end.isoformat(),
            "q": rng.randrange(4),
            "title": rng.choice(TITLES),
            "p": rng.choice([*VALUES, *STAMPS]),
        }
        if properties["p"] is ...:
            del properties["p"]
        west, south, side = rng.uniform(-180, 170), rng.uniform(-90, 80), rng.choice([0.1, 9])
        where = box(west, south, west + side, south + side)
        id, collection = f"i{n:03d}-{rng.choice('aAäz')}", rng.choice(COLLECTIONS)
        row = make_item(id, where, start, end, collection, properties=properties)
        times = {"start_datetime": start.timestamp(), "end_datetime": end.timestamp()}
        keys = {k: canonical(v) if isinstance(v, str) else v for k, v in properties.items()}
        keys |= {"id": id, "collection": collection, **times, "datetime": end.timestamp()}
        known.append(Known(row, keys))
    return known


def bounds(rng: random.Random, known: list[Known]) -> tuple[datetime | None, datetime | None]:
    """At the end of some item, or a microsecond beside it; open on one side, or not."""
    row = rng.choice(known).row
    first = rng.choice([row.start, row.end]) + timedelta(microseconds=rng.randrange(-1, 2))
    last = first + timedelta(days=rng.choice([0, 100]))
    return rng.choice([(first, last), (first, None), (None, last)])


def asked(rng: random.Random, known: list[Known]) -> tuple[dict[str, Any], list[str]]:
    """The body of a search, and the ids that it has to find in their order."""
    body: dict[str, Any] = {}
    tests: list[Callable[[ItemRow, dict[str, Any]], bool]] = []
    if rng.random() < 0.4:
        body["collections"] = rng.sample(COLLECTIONS, rng.randrange(1, 3))
        tests.append(lambda row, _: row.collection in body["collections"])
    if rng.random() < 0.2:
        body["ids"] = [each.row.id for each in rng.sample(known, 80)]
        tests.append(lambda row, _: row.id in body["ids"])
    if rng.random() < 0.4:
        west, east = rng.uniform(-180, 180), rng.uniform(-180, 180)
        south, north = sorted([rng.uniform(-90, 90), rng.uniform(-90, 90)])
        body["bbox"] = [west, south, east, north]
        spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
        parts = [box(left, south, right, north) for left, right in spans]
        tests.append(lambda row, _: any(map(row.footprint.intersects, parts)))
    if rng.random() < 0.4:
        first, last = bounds(rng, known)
        ends = ["" if t is None else t.isoformat().replace("+00:00", "Z") for t in (first, last)]
        body["datetime"] = "/".join(ends)
        tests.append(lambda row, _: first is None or row.end >= first)
        tests.append(lambda row, _: last is None or row.start <= last)
    if rng.random() < 0.3:
        body["filter"] = {"op": "<=", "args": [{"property": "q"}, 2]}
        tests.append(lambda _, properties: properties["q"] <= 2)
    if rng.random() < 0.2:
        body["query"] = {"q": {"gte": 1}}
        tests.append(lambda _, properties: properties["q"] >= 1)
    if rng.random() < 0.2:
        body["q"] = words = rng.choice([["ICE"], ["rock, i", "shelf"], ["ÜND"]])
        tests.append(
            lambda _, properties: any(
                word.casefold() in properties[name].casefold()
                for word in words
                for name in ("id", "title")
            )
        )
    keys = [(name, rng.random() < 0.5) for name in rng.sample(KEYS, rng.randrange(4))]
    if keys:
        directions = ("asc", "desc")
        body["sortby"] = [{"field": n, "direction": directions[down]} for n, down in keys]
    found = [k.sorted_by for k in known if all(test(k.row, k.sorted_by) for test in tests)]
    return body, in_order(found, *(keys or [("end_datetime", True)]))


def as_query(body: dict[str, Any]) -> dict[str, Any]:
    """The same for a GET."""
    signs = {"asc": "+", "desc": "-"}
    read: dict[str, Callable[[Any], str]] = {
        "bbox": lambda numbers: ",".join(map(repr, numbers)),
        "collections": ",".join,
        "filter": json.dumps,
        "ids": ",".join,
        "q": lambda words: ",".join(f'"{word}"' for word in words),
        "query": json.dumps,
        "sortby": lambda keys: ",".join(signs[key["direction"]] + key["field"] for key in keys),
    }
    query = {name: read.get(name, str)(value) for name, value in body.items()}
    return query | ({"filter-lang": "cql2-json"} if "filter" in body else {})


def posted(client: Client, body: dict[str, Any], count: int) -> list[str]:
    """Ids of all pages by POST; what is counted exactly is what there is."""
    got: list[str] = []
    following: dict[str, Any] | None = body
    while following is not None:
        page = client.post("/search", following)
        got += [item["id"] for item in page["features"]]
        assert "firnline:numberMatchedError" in page or page["numberMatched"] == count
        links = [link["body"] for link in page["links"] if link["rel"] == "next"]
        following = links[0] if links else None
    return got


@pytest.mark.parametrize("exact", [0, 6_000], ids=["a large catalog", "a small one"])
def test_everything_at_once(
    catalogs: Callable[[Iterable[ItemRow]], dict[str, Connection]],
    settings: Settings,
    exact: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matched, "EXACT", exact)
    rng = random.Random(exact)
    known = some_items(rng)
    connections = catalogs([each.row for each in known])
    clients = [Client(create_app(settings, each.engine)) for each in connections.values()]
    found = 0
    for _ in range(16):
        body, expected = asked(rng, known)
        limit = rng.choice([7, 40, 100])
        for client in clients:
            assert client.ids(limit=limit, **as_query(body)) == expected, body
            assert posted(client, {**body, "limit": limit}, len(expected)) == expected, body
        found += len(expected)
    assert found > 500
