"""Aggregations of searches on both databases, against counting the same items in Python."""

from __future__ import annotations

import calendar
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import orjson
import pytest
import shapely
from sqlalchemy import Engine

from firnline.database import ItemRow, retire_items, writing
from firnline.geohash import geohash
from tests.api.conftest import CUBES, Client, box, make_item, put, utc

SATELLITES = ["1A", "1B", "2A", "4", "5", "7", "8", "9"]
FIXED = [
    "total_count",
    "datetime_min",
    "datetime_max",
    "datetime_frequency",
    "collection_frequency",
    "centroid_geohash_grid_frequency",
]
OF_PROPERTIES = [
    "firnline:stale_frequency",
    "itslive:granule_count_frequency",
    "itslive:region_frequency",
    "itslive:rgi_code_frequency",
    "itslive:roi_percent_coverage_frequency",
    "itslive:satellites_frequency",
    "proj:code_frequency",
]


def random_items(count: int, seed: int = 20180212) -> list[ItemRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for n in range(count):
        west, south = rng.uniform(-180, 177), rng.uniform(-90, 88)
        footprint = box(west, south, west + 3, south + 2)
        if rng.random() < 0.15:  # across the antimeridian
            footprint = shapely.MultiPolygon(
                [box(178, south, 180, south + 2), box(-180, south, -179, south + 2)]
            )
        start = utc("1965-06-01") + timedelta(microseconds=int(rng.integers(0, 18 * 10**14)))
        end = start + timedelta(microseconds=int(rng.choice([0, 1, 10**11, 10**14])))
        properties: dict[str, Any] = {
            "title": f"Item {n}",
            "updated": "2024-01-01T00:00:00Z",
            "start_datetime": start.isoformat().replace("+00:00", "Z"),
            "end_datetime": end.isoformat().replace("+00:00", "Z"),
            "proj:code": str(rng.choice(["EPSG:3413", "EPSG:3031", "EPSG:32622"])),
            "datetime": None,
            "proj:shape": [833, 834],
            "itslive:roi_percent_coverage": round(float(rng.uniform(0, 120)), 1),
        }
        if rng.random() < 0.8:
            properties["itslive:region"] = str(rng.choice(["Alaska", "Grönland", "Himalaya"]))
        if rng.random() < 0.9:
            properties["itslive:granule_count"] = int(rng.integers(1, 90_000))
        if rng.random() < 0.9:
            properties["itslive:rgi_code"] = int(rng.integers(1, 20))
        if rng.random() < 0.5:
            properties["firnline:stale"] = bool(rng.random() < 0.3)
        if rng.random() < 0.9:  # some of them without any
            chosen = rng.choice(SATELLITES, int(rng.integers(0, 5)), replace=False)
            properties["itslive:satellites"] = [str(name) for name in chosen]
        collection = [CUBES, "velocity-mosaics"][int(rng.random() < 0.3)]
        rows.append(
            make_item(f"item-{n:03d}", footprint, start, end, collection, properties=properties)
        )
    return rows


ROWS = random_items(300)


@pytest.fixture(autouse=True)
def items(engine: Engine) -> None:
    put(
        engine, [*ROWS, make_item("retired", box(0, 0, 1, 1), utc("1900-01-01"), utc("2100-01-01"))]
    )
    with writing(engine) as connection:
        retire_items(connection, CUBES, ["retired"])


def properties(row: ItemRow) -> dict[str, Any]:
    return dict(orjson.loads(row.content)["properties"])


def values(rows: Iterable[ItemRow], name: str) -> Counter[Any]:
    return Counter(properties(row).get(name) for row in rows)


def stamp(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


def frequencies(answer: dict[str, Any]) -> dict[str, int]:
    assert len({bucket["key"] for bucket in answer["buckets"]}) == len(answer["buckets"])
    return {bucket["key"]: bucket["frequency"] for bucket in answer["buckets"]}


def aggregate(client: Client, path: str = "/aggregate", **params: Any) -> dict[str, dict[str, Any]]:
    answer = client.get(path, **params)
    assert answer["type"] == "AggregationCollection"
    asked = params["aggregations"].split(",")
    assert [each["name"] for each in answer["aggregations"]] == asked
    return {each["name"]: each for each in answer["aggregations"]}


LINE = utc("2000-01-01")
SEARCHES: dict[str, tuple[dict[str, Any], Any]] = {
    "all": ({}, lambda row: True),
    "none": ({"ids": "nobody"}, lambda row: False),
    "collection": ({"collections": CUBES}, lambda row: row.collection == CUBES),
    "bbox": (
        {"bbox": "-60,50,20,80"},
        lambda row: row.footprint.intersects(box(-60, 50, 20, 80)),
    ),
    "antimeridian": (
        {"bbox": "170,-90,-170,90"},
        lambda row: row.footprint.intersects(
            shapely.MultiPolygon([box(170, -90, 180, 90), box(-180, -90, -170, 90)])
        ),
    ),
    "time": (
        {"datetime": "1999-12-31T00:00:00Z/.."},
        lambda row: row.end >= LINE - timedelta(days=1),
    ),
    "before 1970": (
        {"datetime": "../1970-01-01T00:00:00Z"},
        lambda row: row.start <= utc("1970-01-01"),
    ),
    "ids and words": (
        {"ids": ",".join(f"item-{n:03d}" for n in range(100)), "q": "item 1,ITEM-02"},
        lambda row: (
            row.id < "item-100"
            and ("item 1" in properties(row)["title"].lower() or "item-02" in row.id)
        ),
    ),
    "all of them": (
        {
            "bbox": "-180,0,100,90",
            "datetime": "1980-01-01T00:00:00Z/2010-01-01T00:00:00Z",
            "collections": f"{CUBES},subsets",
        },
        lambda row: (
            row.footprint.intersects(box(-180, 0, 100, 90))
            and row.end >= utc("1980-01-01")
            and row.start <= utc("2010-01-01")
            and row.collection == CUBES
        ),
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_counts_are_those_of_the_matching_items(client: Client, name: str) -> None:
    params, meets = SEARCHES[name]
    rows = [row for row in ROWS if meets(row)]
    assert name == "none" or 5 < len(rows) <= 300
    names = [*FIXED, *OF_PROPERTIES]
    got = aggregate(client, aggregations=",".join(names), **params)

    assert got["total_count"] == {
        "name": "total_count", "data_type": "integer", "value": len(rows),
    }  # fmt: skip
    ends = (("datetime_min", min, "start"), ("datetime_max", max, "end"))
    for extreme, of, end in ends:
        assert got[extreme]["data_type"] == "datetime"
        value = of((getattr(row, end) for row in rows), default=None)
        assert got[extreme]["value"] == (None if value is None else stamp(value))

    cells = Counter(
        geohash(*shapely.get_coordinates(row.footprint.point_on_surface())[0], 3) for row in rows
    )
    assert frequencies(got["centroid_geohash_grid_frequency"]) == cells
    assert frequencies(got["collection_frequency"]) == Counter(row.collection for row in rows)
    for term in ("itslive:region", "proj:code", "itslive:rgi_code", "firnline:stale"):
        answer = got[f"{term}_frequency"]
        expected = values(rows, term)
        assert answer["overflow"] == expected.pop(None, 0)
        shown = {str(value).lower() if term == "firnline:stale" else str(value): n
                 for value, n in expected.items()}  # fmt: skip
        assert frequencies(answer) == shown
        numbers = [bucket["frequency"] for bucket in answer["buckets"]]
        assert numbers == sorted(numbers, reverse=True)

    satellites = got["itslive:satellites_frequency"]
    lists = [properties(row).get("itslive:satellites") or [] for row in rows]
    assert frequencies(satellites) == Counter(name for each in lists for name in each)
    assert satellites["overflow"] == sum(not each for each in lists)

    for number in ("itslive:granule_count", "itslive:roi_percent_coverage"):
        answer = got[f"{number}_frequency"]
        known = [v for v in (properties(row).get(number) for row in rows) if v is not None]
        assert answer["overflow"] == len(rows) - len(known)
        assert sum(bucket["frequency"] for bucket in answer["buckets"]) == len(known)
        assert 5 <= len(answer["buckets"]) <= 12
        for bucket in answer["buckets"]:
            low, high = bucket.get("from", -np.inf), bucket.get("to", np.inf)
            assert bucket["frequency"] == sum(low <= value < high for value in known)


@pytest.mark.parametrize("interval", ["year", "month", "day"])
def test_over_time_counts_what_a_search_of_that_time_finds(client: Client, interval: str) -> None:
    asked = {"datetime": "1996-12-15T12:00:00Z/1997-03-02T00:00:00Z", "bbox": "-180,-60,180,90"}
    answer = aggregate(
        client, aggregations="datetime_frequency", datetime_frequency_interval=interval, **asked
    )["datetime_frequency"]
    assert answer["data_type"] == f"interval_{interval}"
    assert len(answer["buckets"]) == {"year": 2, "month": 4, "day": 78}[interval]
    begin, finish = map(datetime.fromisoformat, asked["datetime"].split("/"))
    area = box(-180, -60, 180, 90)
    for bucket in answer["buckets"]:
        first = datetime.fromisoformat(bucket["key"])
        month = 12 if interval == "year" else first.month
        last = first.replace(month=month)
        if interval != "day":
            last = last.replace(day=calendar.monthrange(last.year, month)[1])
        last += timedelta(days=1, microseconds=-1)
        low, high = max(first, begin), min(last, finish)
        overlapping = [
            row for row in ROWS
            if row.end >= low and row.start <= high and row.footprint.intersects(area)
        ]  # fmt: skip
        assert bucket["frequency"] == len(overlapping) > 0
    during = f"{stamp(low)}/{stamp(high)}"
    found = client.get("/search", datetime=during, bbox=asked["bbox"])
    assert found["numberMatched"] == bucket["frequency"]


@pytest.mark.parametrize("precision", [1, 2, 5])
def test_precision_of_the_cells(client: Client, precision: int) -> None:
    answer = aggregate(
        client,
        aggregations="centroid_geohash_grid_frequency",
        centroid_geohash_grid_frequency_precision=precision,
    )["centroid_geohash_grid_frequency"]
    assert {len(key) for key in frequencies(answer)} == {precision}
    assert sum(frequencies(answer).values()) == 300
    assert answer["overflow"] == 0


def test_post_is_as_get(client: Client) -> None:
    names = [*FIXED, *OF_PROPERTIES]
    params = {"bbox": "-60,50,20,80", "datetime": "1980-01-01T00:00:00Z/..", "collections": CUBES}
    by_get = client.get("/aggregate", aggregations=",".join(names), **params)
    by_post = client.post(
        "/aggregate",
        {
            "aggregations": names,
            "bbox": [-60, 50, 20, 80],
            "datetime": "1980-01-01T00:00:00Z/..",
            "collections": [CUBES],
        },
    )
    assert by_post["aggregations"] == by_get["aggregations"]
    here = client.post(
        f"/collections/{CUBES}/aggregate",
        {"aggregations": names[:5], "bbox": [-60, 50, 20, 80], "datetime": params["datetime"]},
    )
    assert here["aggregations"] == by_get["aggregations"][:5]


def test_filter_and_query(client: Client) -> None:
    names = [*FIXED, *OF_PROPERTIES]
    text = '"itslive:region" = \'Alaska\' AND "itslive:granule_count" > 30000'
    by_filter = client.get("/aggregate", aggregations=",".join(names), filter=text)["aggregations"]
    query = {"itslive:region": {"eq": "Alaska"}, "itslive:granule_count": {"gt": 30_000}}
    by_query = client.post("/aggregate", {"aggregations": names, "query": query})
    assert by_query["aggregations"] == by_filter
    rows = [
        row for row in ROWS
        if properties(row).get("itslive:region") == "Alaska"
        and properties(row).get("itslive:granule_count", 0) > 30_000
    ]  # fmt: skip
    assert by_filter[0]["value"] == len(rows) > 30
    assert frequencies(by_filter[names.index("proj:code_frequency")]) == values(rows, "proj:code")


def test_of_a_collection(client: Client) -> None:
    path = f"/collections/{CUBES}"
    got = aggregate(client, f"{path}/aggregate", aggregations="total_count,collection_frequency")
    number = sum(row.collection == CUBES for row in ROWS)
    assert got["total_count"]["value"] == number
    assert frequencies(got["collection_frequency"]) == {CUBES: number}
    links = {link["rel"]: link["href"] for link in client.get(f"{path}/aggregations")["links"]}
    assert links["collection"] == f"http://testserver{path}"
    assert links["self"] == f"http://testserver{path}/aggregations"


def test_what_there_is_follows_from_the_items(client: Client, engine: Engine) -> None:
    def names(path: str) -> set[str]:
        answer = client.get(f"{path}/aggregations")
        assert answer["type"] == "AggregationCollection"
        for each in answer["aggregations"]:
            assert each["data_type"] in ("integer", "string", "numeric", "datetime")
            assert each["description"]
        return {each["name"] for each in answer["aggregations"]}

    # No titles, times or shapes of grids.
    assert names("") == {*FIXED, *OF_PROPERTIES}
    assert names(f"/collections/{CUBES}") == {*FIXED, *OF_PROPERTIES}
    assert names("/collections/subsets") == {*FIXED}
    problem = client.problem(
        "GET", "/collections/subsets/aggregate", 400, params={"aggregations": OF_PROPERTIES[0]}
    )
    assert OF_PROPERTIES[0] in problem["detail"]
    assert "datetime_min" in problem["detail"]


def test_properties_of_any_name(client: Client, engine: Engine) -> None:
    """Names and values that SQL, URLs and LIKE have other uses for."""
    odd = {
        "it's 100% odd:ü": "a'b%",
        "list; DROP": ["x'", "x'", "y"],
        "$.a[0]": True,
        "?": 3,
        "big": 10**19,
    }
    rows = [make_item(f"odd-{n}", box(0, 0, 1, 1), collection="subsets", properties={
        "start_datetime": "2018-01-01T00:00:00Z", "end_datetime": "2019-01-01T00:00:00Z", **odd,
    }) for n in range(2)]  # fmt: skip
    put(engine, rows)
    got = client.post(
        "/collections/subsets/aggregate", {"aggregations": [f"{name}_frequency" for name in odd]}
    )
    shown = [frequencies(each) for each in got["aggregations"]]
    assert shown == [{"a'b%": 2}, {"x'": 2, "y": 2}, {"true": 2}, {"3": 2}, {"*-*": 2}]
    assert all(each["overflow"] == 0 for each in got["aggregations"])


def test_properties_of_mixed_kinds(client: Client, engine: Engine) -> None:
    """Each way to mix kinds of values: counted if those that stand alone are of one kind."""
    rng = np.random.default_rng(1)
    make: dict[str, Any] = {
        "bool": lambda: bool(rng.random() < 0.5),
        "int": lambda: int(rng.integers(0, 4)),
        "float": lambda: float(rng.integers(0, 40)) / 8,
        "str": lambda: str(rng.choice(["a", "b", "ü", "", "1"])),
        "list": lambda: [str(v) for v in rng.choice(["x", "y", "z"], int(rng.integers(0, 3)))],
    }
    mixes = [mix for n in range(1, 6) for mix in itertools.combinations(make, n)]
    each = [
        {"+".join(mix): make[str(rng.choice(mix))]() for mix in mixes if rng.random() < 0.9}
        for _ in range(60)
    ]
    times = {"start_datetime": "2018-01-01T00:00:00Z", "end_datetime": "2019-01-01T00:00:00Z"}
    put(engine, [
        make_item(f"{n}", box(0, 0, 1, 1), collection="subsets", properties={**times, **own})
        for n, own in enumerate(each)
    ])  # fmt: skip
    listed = client.get("/collections/subsets/aggregations")["aggregations"]
    names = {one["name"] for one in listed} - {*FIXED}
    alone = {mix: {*mix} - {"list"} for mix in mixes}
    assert names == {
        f"{'+'.join(mix)}_frequency"
        for mix in mixes
        if alone[mix] <= {"int", "float"} or len(alone[mix]) == 1
    }
    got = client.post("/collections/subsets/aggregate", {"aggregations": sorted(names)})
    for answer in got["aggregations"]:
        name = answer["name"].removesuffix("_frequency")
        values = [own[name] for own in each if name in own]
        if name == "list":
            expected = Counter(v for members in values for v in set(members))
            assert answer["overflow"] == 60 - sum(bool(members) for members in values)
        else:
            values = [v for v in values if not isinstance(v, list)]
            assert answer["overflow"] == 60 - len(values)
            if "from" in answer["buckets"][-1]:
                for bucket in answer["buckets"]:
                    low, high = bucket.get("from", -np.inf), bucket.get("to", np.inf)
                    assert bucket["frequency"] == sum(low <= value < high for value in values)
                continue
            expected = Counter(str(v).lower() if isinstance(v, bool) else str(v) for v in values)
        assert frequencies(answer) == expected


def test_advertised_where_the_extension_asks(client: Client) -> None:
    for path in ("/", f"/collections/{CUBES}"):
        links = client.get(path)["links"]
        base = f"http://testserver{path.rstrip('/')}"
        assert {link.get("method") for link in links if link["rel"] == "aggregate"} == {
            "GET",
            "POST",
        }
        assert {link["href"] for link in links if link["rel"] == "aggregate"} == {
            f"{base}/aggregate"
        }
        (there,) = (link["href"] for link in links if link["rel"] == "aggregations")
        assert there == f"{base}/aggregations"


def test_bad_requests(client: Client) -> None:
    cell = "centroid_geohash_grid_frequency_precision"
    for asked, named in (
        ({}, "aggregations"),
        ({"aggregations": ""}, "aggregations"),
        ({"aggregations": "total_count,cloud_cover_frequency"}, "cloud_cover_frequency"),
        ({"aggregations": "total_count", "limit": "10"}, "limit"),
        ({"aggregations": "total_count", "bbox": "1,2,3"}, "bbox"),
        ({"aggregations": "total_count", "datetime": "yesterday"}, "datetime"),
        ({"aggregations": "total_count", "datetime_frequency_interval": "decade"}, "interval"),
        (
            {"aggregations": "datetime_frequency", "datetime_frequency_interval": "day"},
            "datetime_frequency_interval day makes",
        ),
        ({"aggregations": "total_count", cell: "0"}, cell),
        ({"aggregations": "total_count", cell: "13"}, cell),
        ({"aggregations": "total_count", cell: "many"}, cell),
    ):
        for path in ("/aggregate", f"/collections/{CUBES}/aggregate"):
            assert named in client.problem("GET", path, 400, params=asked)["detail"], asked


def test_bad_bodies(client: Client) -> None:
    bodies: list[tuple[dict[str, Any], str]] = [
        ({}, "aggregations"),
        ({"aggregations": []}, "aggregations"),
        ({"aggregations": "total_count"}, "aggregations"),
        ({"aggregations": ["total_count", "\ud800"]}, "aggregations"),
        ({"aggregations": ["total_count"], "token": "x"}, "token"),
        ({"aggregations": ["total_count"], "collections": ["velocity-mosaics"]}, "collections"),
    ]
    path, headers = f"/collections/{CUBES}/aggregate", {"Content-Type": "application/json"}
    for body, named in bodies:
        problem = client.problem("POST", path, 400, content=json.dumps(body), headers=headers)
        assert named in problem["detail"], body


def test_no_such_collection_and_no_such_parameter(client: Client) -> None:
    for path, asked in (("aggregations", {}), ("aggregate", {"aggregations": "total_count"})):
        problem = client.problem("GET", f"/collections/nowhere/{path}", 404, params=asked)
        assert "nowhere" in problem["detail"]
        for within in (f"/collections/{CUBES}/{path}", f"/{path}"):
            problem = client.problem("GET", within, 400, params={**asked, "x": "1"})
            assert "'x' is not a parameter" in problem["detail"]
