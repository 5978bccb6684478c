"""GET /estimate, against the sample's cubes themselves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import xarray as xr
from sqlalchemy import Engine, insert
from starlette.testclient import TestClient

from firnline.api.app import create_app
from firnline.cache.materialise import plan_request
from firnline.cache.request import Request
from firnline.database import writing
from firnline.indexer.cubes import deepen
from firnline.settings import Settings
from firnline.tables import counters


@pytest.fixture
def engine(sample: Any, settings: Settings) -> Any:
    from firnline.database import connect

    engine = connect(settings.database)
    yield engine
    engine.dispose()


@pytest.fixture
def settings(sample: Any, tmp_path: Any) -> Settings:
    return sample.settings(tmp_path / "data")


@pytest.fixture
def http(engine: Engine, settings: Settings) -> TestClient:
    return TestClient(create_app(settings, engine), raise_server_exceptions=False)


def of_cubes(sample: Any, names: list[str]) -> xr.Dataset:
    """The pairs of some cubes: mid-date, satellites, days between the images, valid per cent."""
    columns = ["date_dt", "mission_img1", "satellite_img1", "roi_valid_percentage"]
    found = []
    for cube in sample.mirror.cubes:
        if cube.name in names:
            with xr.open_zarr(sample.mirror.root / cube.path, chunks=None) as ds:
                found.append(ds[columns].reset_coords(drop=True).load())
    assert len(found) == len(names)
    return xr.concat(found, "mid_date", data_vars="all")


def asked(sample: Any, **query: Any) -> dict[str, Any]:
    return {"bbox": ",".join(map(str, sample.mirror.aoi)), "crs": "EPSG:3413", **query}


def test_pairs_by_month(sample: Any, http: TestClient, engine: Engine, settings: Settings) -> None:
    assert deepen(engine, settings).failed == 0
    period = "2018-03-01/2019-07-15"
    found = http.get("/estimate", params=asked(sample, datetime=period)).json()
    assert found["crs"] == "EPSG:3413"
    assert len(found["cubes"]) == 4
    assert found["unread"] == []
    pairs = of_cubes(sample, found["cubes"])
    months = pairs.mid_date.values.astype("M8[M]").astype(str)
    assert found["months"] == Counter(months.tolist())
    days = pairs.mid_date.values.astype("M8[D]")
    wanted = (days >= np.datetime64("2018-03-01")) & (days <= np.datetime64("2019-07-15"))
    assert found["pairs"] == wanted.sum() > 0

    # beside the plan, which looks closer: the same pairs, a grid that may begin a pixel earlier
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "datetime": period}
    plan = plan_request(engine, settings, Request.parse(inputs, settings), only_plan=True)
    assert found["pairs"] == plan.layers.kept
    assert abs(found["shape"]["y"] - plan.shape[1]) <= 1
    assert abs(found["shape"]["x"] - plan.shape[2]) <= 1
    assert found["bytes"] == found["shape"]["y"] * found["shape"]["x"] * found["pairs"] * 3 * 2


def test_filters(sample: Any, http: TestClient, engine: Engine, settings: Settings) -> None:
    assert deepen(engine, settings).failed == 0
    found = http.get("/estimate", params=asked(sample, satellites="L8", dt_days="0,40")).json()
    pairs = of_cubes(sample, found["cubes"])
    landsat = (pairs.mission_img1.values == "L") & (pairs.satellite_img1.values == "8")
    close = pairs.date_dt.values / (
        np.timedelta64(1, "D") if pairs.date_dt.dtype.kind == "m" else 1.0
    )
    wanted = landsat & (close <= 40)
    assert 0 < wanted.sum() < len(wanted)
    assert found["pairs"] == sum(found["months"].values()) == wanted.sum()
    found = http.get("/estimate", params=asked(sample, min_valid="40")).json()
    wanted = pairs.roi_valid_percentage.values.round(2) >= 40
    assert 0 < wanted.sum() < len(wanted)
    assert found["pairs"] == wanted.sum()


def test_cubes_that_were_not_read(sample: Any, http: TestClient) -> None:
    """They are named, not taken for empty ones."""
    found = http.get("/estimate", params=asked(sample)).json()
    assert (found["pairs"], found["months"]) == (0, {})
    assert found["unread"] == found["cubes"]
    assert len(found["cubes"]) == 4


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({"bbox": "0,0,1,1"}, "no cube of the catalog covers this area"),
        ({"bbox": "0,0,1"}, "bbox"),
        ({"bbox": "a,0,1,2"}, "accepted are numbers"),
        ({"bbox": "0,0,1,1", "dt_days": "x"}, "dt_days"),
        ({"bbox": "0,0,1,1", "min_valid": "x"}, "min_valid"),
        ({"bbox": "0,0,1,1", "datetime": "2018-13-01"}, "datetime"),
        ({"bbox": "0,0,1,1", "crs": "EPSG:0"}, "EPSG:0"),
        ({"bbox": "0,0,1,1", "satelites": "L8"}, "'satelites' is not a parameter"),
        ({}, "bbox"),
    ],
)
def test_refusals(http: TestClient, query: dict[str, str], told: str) -> None:
    answer = http.get("/estimate", params=query)
    assert answer.status_code == 400
    assert told in answer.json()["detail"]


def test_chunks_and_their_bytes(
    sample: Any, http: TestClient, engine: Engine, settings: Settings
) -> None:
    """As many as a plan names, which looks closer; their size by the cubes' own metadata."""
    assert deepen(engine, settings).failed == 0
    for more in ({}, {"datetime": "2018-03-01/2018-09-15"}, {"satellites": "L8"}):
        found = http.get("/estimate", params=asked(sample, **more)).json()
        inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413"}
        inputs |= {k: v.split(",") if k == "satellites" else v for k, v in more.items()}
        plan = plan_request(engine, settings, Request.parse(inputs, settings), only_plan=True)
        told = plan.summary()
        assert found["chunks"] == told["source_chunks"] > 0
        assert found["source_bytes"] == told["source_bytes_decoded"]


def test_seconds_are_those_of_jobs_done_here(
    sample: Any, http: TestClient, engine: Engine, settings: Settings
) -> None:
    assert deepen(engine, settings).failed == 0
    found = http.get("/estimate", params=asked(sample)).json()
    assert found["seconds"] == round(3 + 0.01 * found["chunks"], 1)
    # two jobs of 100 chunks took 26 s: 0.1 s each, beside 3 s for what each job takes
    done = {"timed_jobs": 2, "timed_chunks": 200, "timed_milliseconds": 26_000}
    with writing(engine) as connection:
        rows = [{"name": name, "value": value} for name, value in done.items()]
        connection.execute(insert(counters), rows)
    again = http.get("/estimate", params=asked(sample)).json()
    assert again["seconds"] == round(3 + 0.1 * found["chunks"], 1)


def test_as_a_mode_of_the_process(sample: Any, http: TestClient, engine: Engine) -> None:
    """The same answer, and no job."""
    inputs = {"bbox": list(sample.mirror.aoi), "crs": "EPSG:3413", "mode": "estimate"}
    path = "/processes/materialise/execution"
    found = http.post(path, json={"inputs": inputs}).json()
    assert found == {"estimate": {"value": http.get("/estimate", params=asked(sample)).json()}}
    bare = http.post(path, json={"inputs": inputs, "response": "raw"}).json()
    assert bare == found["estimate"]["value"]
    assert http.get("/jobs").json()["jobs"] == []
    mosaics = {**inputs, "collection": "velocity-mosaics"}
    assert http.post(path, json={"inputs": mosaics}).status_code == 400
