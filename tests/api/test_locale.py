"""A database of PostgreSQL whose text is in the order of a language, as most installations have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from firnline.api import browse, matched
from firnline.database import connect, migrate, put_collections, writing
from tests.api.conftest import Client, box, make_collection, make_item, put

IDS = ["a", "B", "b", "Z", "z", "ä", "Ä", "a-b", "ab", "A_B", "0", "é", "日"]
"""In English 'a' is before 'B', and signs hardly count; their code points have another order."""


@pytest.fixture
def engine(postgres_server: Any) -> Iterator[Engine]:
    with postgres_server.database(english=True) as name:
        engine = connect(postgres_server.url(name))
        migrate(engine)
        with writing(engine) as connection:
            put_collections(connection, map(make_collection, ["B", "a"]))
        yield engine
        engine.dispose()


def test_text_is_compared_by_code_points_and_pages_are_whole(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(
        engine,
        [
            make_item(id, box(0, 0, 1, 1), collection=collection, properties={"title": id})
            for id in IDS
            for collection in ("a", "B")
        ],
    )
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 'a' < 'B'").scalar()
    for name in ("id", "title"):
        later = sorted(2 * [id for id in IDS if id > "B"])
        assert sorted(client.ids(filter=f"{name} > 'B'", limit=5)) == later
        between = sorted(2 * [id for id in IDS if "A" <= id <= "a"])
        assert sorted(client.ids(filter=f"{name} BETWEEN 'A' AND 'a'", limit=5)) == between
    assert sorted(client.ids(filter="collection < 'a'")) == sorted(IDS)  # those of B
    assert client.ids(sortby="title,collection", limit=5) == sorted(2 * IDS)
    for exact in (0, 6_000):  # pages walked to, and gathered
        monkeypatch.setattr(matched, "EXACT", exact)
        for order in ("id", "-collection,-id", "collection", "-datetime"):
            for place in ({}, {"bbox": "0,0,1,1"}):
                got = client.ids(sortby=order, limit=3, **place)
                assert sorted(got) == sorted(2 * IDS), (order, place)
    monkeypatch.setattr(browse, "FEW", 4)
    whole = client.get("/collections/a/browse")
    pages = [link["href"] for link in whole["links"] if link["rel"] == "child"]
    links = [link for href in pages for link in client.http.get(href).json()["links"]]
    assert sorted(link["title"] for link in links if link["rel"] == "item") == sorted(IDS)
