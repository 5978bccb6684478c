"""GET /collections/itslive-cubes/items/{id}/pairs on known pairs."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from sqlalchemy import Engine

from firnline.database import ItemRow, put_cube, put_items, writing
from firnline.pairs import PairColumns, write_pairs

COUNT = 10_000  # more than one block
PATH = "/collections/itslive-cubes/items/cube/pairs"


def made(count: int = COUNT) -> PairColumns:
    """Pair n has its mid-date n hours after 2018 began, but for the order in the cube."""
    order = np.random.default_rng(0).permutation(count)
    hours = np.arange(count)[order]
    valid = (hours % 101).astype("f4")
    dt = (6 + hours % 60).astype("f4")
    valid[hours == 5] = dt[hours == 6] = np.nan
    return PairColumns(
        np.arange(count, dtype="i4"),
        np.datetime64("2018-01-01", "us") + hours.astype("m8[h]"),
        dt,
        np.array(["L8", "S2A", "S1B"])[hours % 3],
        np.array(["L8", "S2B", "S1B"])[hours % 3],
        valid,
        np.array([f"pair_{n:06d}.nc".encode() for n in hours]),
    )


def add(engine: Engine, id: str, pairs: PairColumns | None, etag: str = '"1"') -> None:
    start = datetime(2018, 1, 1, tzinfo=UTC)
    row = ItemRow(
        "itslive-cubes", id, start, start, shapely.box(0, 0, 1, 1), b'{"id":"x"}', "d", "s",
        b"{}",
    )  # fmt: skip
    with writing(engine) as connection:
        put_items(connection, [row])
        if pairs is not None:
            put_cube(
                connection, id=id, url="https://x", etag=etag, version=1, facts=b"{}",
                pairs=len(pairs), layout=b"",
            )  # fmt: skip
            write_pairs(connection, id, pairs)


@pytest.fixture
def known(engine: Engine, client: Any) -> Any:
    add(engine, "cube", made())
    add(engine, "not read", None)
    return client


def test_a_page_by_mid_date(known: Any) -> None:
    page = known.get(PATH, limit=7)
    assert (page["item"], page["numberMatched"], page["numberReturned"]) == ("cube", COUNT, 7)
    assert [pair["granule"] for pair in page["pairs"]] == [f"pair_{n:06d}.nc" for n in range(7)]
    position = {name: n for n, name in enumerate(made().granule.tolist())}  # type: ignore[union-attr]
    assert page["pairs"][1] == {
        "granule": "pair_000001.nc",
        "mid_date": "2018-01-01T01:00:00.000000Z",
        "dt_days": 7.0,
        "satellites": ["S2A", "S2B"],
        "valid_percentage": 1.0,
        "index": position[b"pair_000001.nc"],
    }
    assert page["pairs"][5]["valid_percentage"] is None
    assert page["pairs"][6]["dt_days"] is None
    assert {link["rel"] for link in page["links"]} == {"self", "item", "next"}


@pytest.mark.parametrize("limit", [999, 8192, 5000, 100_000_000])
def test_pages_together_are_all_pairs_once(known: Any, limit: int) -> None:
    names = [pair["granule"] for page in known.pages(PATH, limit=limit) for pair in page["pairs"]]
    assert names == [f"pair_{n:06d}.nc" for n in range(COUNT)]


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"datetime": "2018-01-01T10:00:00Z/2018-01-02T00:00:00Z"}, lambda n: 10 <= n <= 24),
        ({"datetime": "2018-01-01T10:00:00Z"}, lambda n: n == 10),
        ({"datetime": "../2018-01-01T10:00:00Z"}, lambda n: n <= 10),
        ({"datetime": "2030-01-01T00:00:00Z/.."}, lambda n: False),
        ({"satellites": "S2"}, lambda n: n % 3 == 1),
        ({"satellites": "S2A"}, lambda n: False),
        ({"satellites": "L8, S1B"}, lambda n: n % 3 in (0, 2)),
        ({"dt_days": "7,8.5"}, lambda n: n % 60 in (1, 2) and n != 6),
        ({"dt_days": "6,12", "satellites": "L8"}, lambda n: n % 60 <= 6 and n % 3 == 0 and n != 6),
    ],
)
def test_filters(known: Any, asked: dict[str, str], wanted: Any) -> None:
    expected = [f"pair_{n:06d}.nc" for n in range(COUNT) if wanted(n)]
    pages = list(known.pages(PATH, limit=1500, **asked))
    assert [pair["granule"] for page in pages for pair in page["pairs"]] == expected
    assert {page["numberMatched"] for page in pages} == {len(expected)}


def test_parquet_has_the_same_pairs(known: Any) -> None:
    answer = known.http.get(PATH, params={"f": "parquet", "limit": 6000, "satellites": "S2"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.apache.parquet"
    assert answer.headers["ogc-numbermatched"] == "3333"
    assert "link" not in answer.headers
    table = pq.read_table(io.BytesIO(answer.content))
    records = known.get(PATH, limit=6000, satellites="S2")["pairs"]
    rows = table.to_pylist()
    assert [row["granule"] for row in rows] == [record["granule"] for record in records]
    assert [row["mid_date"] for row in rows] == [
        datetime.fromisoformat(record["mid_date"]) for record in records
    ]
    assert [[row["satellite_1"], row["satellite_2"]] for row in rows] == [
        record["satellites"] for record in records
    ]
    for ours, theirs in (("dt_days", "dt_days"), ("index", "index")):
        assert table[ours].to_pylist() == [record[theirs] for record in records]


def test_parquet_pages_by_the_link_header(known: Any) -> None:
    answer = known.http.get(PATH, params={"f": "parquet", "limit": 6000})
    address, _, rel = answer.headers["link"].partition(">; ")
    assert rel == 'rel="next"'
    rest = known.http.get(address.removeprefix("<"))
    tables = [pq.read_table(io.BytesIO(a.content)) for a in (answer, rest)]
    names = [name for table in tables for name in table["granule"].to_pylist()]
    assert names == [f"pair_{n:06d}.nc" for n in range(COUNT)]
    assert tables[0]["dt_days"].null_count == 1
    nothing = known.http.get(PATH, params={"f": "parquet", "datetime": "2030-01-01T00:00:00Z"})
    assert pq.read_table(io.BytesIO(nothing.content)).num_rows == 0


def test_what_is_not_there(known: Any) -> None:
    problem = known.problem("GET", PATH.replace("cube/", "nothing/"), 404)
    assert "'nothing'" in problem["detail"]
    problem = known.problem("GET", PATH.replace("/cube/", "/not read/"), 409)
    assert "harvest --deep" in problem["detail"]
    known.problem("GET", PATH.replace("itslive-cubes", "subsets"), 404)
    known.problem("GET", PATH.replace("/cube/", "/%00/"), 404)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("datetime=yesterday", "datetime"),
        ("satellites=s2", "satellites"),
        ("satellites=", None),
        ("satellites=L8,,S2", "satellites"),
        ("satellites=SENTINEL2", "satellites"),
        ("dt_days=5", "dt_days"),
        ("dt_days=60,5", "dt_days"),
        ("dt_days=nan,5", "dt_days"),
        ("dt_days=0,inf", "dt_days"),
        ("dt_days=-1,5", "dt_days"),
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("f=csv", "f"),
        ("token=abc", "token"),
        ("token=%C3%A9", "token"),
        ("sattelites=L8", "sattelites"),
        ("f=json&f=json", "f"),
    ],
)
def test_bad_parameters_are_refused_by_name(known: Any, asked: str, named: str | None) -> None:
    if named is None:
        assert known.http.get(f"{PATH}?{asked}").status_code == 200
        return
    assert named in known.problem("GET", f"{PATH}?{asked}", 400)["detail"]


def test_a_token_is_of_its_question_and_of_the_cube_as_it_was(known: Any, engine: Engine) -> None:
    page = known.get(PATH, limit=5)
    (following,) = [link["href"] for link in page["links"] if link["rel"] == "next"]
    assert known.http.get(following).status_code == 200
    assert "token" in known.problem("GET", f"{following}&satellites=S2", 400)["detail"]
    add(engine, "cube", made(9_000), etag='"2"')
    assert "read again" in known.problem("GET", following, 400)["detail"]
