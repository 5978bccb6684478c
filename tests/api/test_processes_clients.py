"""OGC API - Processes as its clients see it: a real server, a real worker, small real requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import xarray as xr
from ogc_api_processes_client.api.result_api import ResultApi
from ogc_api_processes_client.api_client_wrapper import ApiClientWrapper
from ogc_api_processes_client.configuration import Configuration
from owslib.ogcapi.processes import Processes
from sqlalchemy import Engine

from firnline.api.app import create_app
from firnline.cache import worker
from firnline.database import connect
from firnline.errors import FirnlineError
from firnline.indexer.cubes import deepen
from firnline.settings import Settings
from tests.api.conftest import serving


@pytest.fixture
def settings(sample: Any, tmp_path: Any) -> Settings:
    sample.server.faults = None
    return sample.settings(tmp_path / "data")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = connect(settings.database)
    assert deepen(engine, settings).failed == 0
    yield engine
    engine.dispose()


@pytest.fixture
def url(engine: Engine, settings: Settings) -> Iterator[str]:
    with serving(create_app(settings, engine)) as url:
        yield url


@contextmanager
def working(engine: Engine, settings: Settings) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(
        target=worker.run, args=(engine, settings, stop), kwargs={"interval": 0.05}
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)


def small(sample: Any, **more: Any) -> dict[str, Any]:
    """Some 40 x 40 pixels where the sample's cubes meet."""
    left, bottom, right, top = sample.mirror.aoi
    x, y = (left + right) / 2, (bottom + top) / 2
    plain = {"composite": None, "strain": False, "variables": ["vx"]}
    return {"bbox": [x - 2400, y - 2400, x + 2400, y + 2400], "crs": "EPSG:3413", **plain, **more}


def test_the_clients_of_the_standard(
    sample: Any, engine: Engine, settings: Settings, url: str
) -> None:
    """List, describe, execute, watch, fetch, dismiss."""
    http = ApiClientWrapper(Configuration(host=url))
    assert [each.id for each in http.get_processes().processes] == ["materialise", "echo"]
    described = http.get_process_description("materialise")
    assert {"bbox", "mode"} <= set(described.inputs)
    assert set(described.outputs) == {"subset", "item", "estimate"}

    order = {"inputs": small(sample)}
    asynchronously = {"Prefer": "respond-async", "Content-Type": "application/json"}
    job = http.execute_simple("materialise", order, _headers=asynchronously)
    assert job.status == "accepted"
    other = http.execute_simple(
        "materialise", {"inputs": small(sample, format="v2")}, _headers=asynchronously
    )
    assert http.dismiss(other.job_id).status == "dismissed"
    with working(engine, settings):
        until(lambda: http.get_status(job.job_id).status == "successful")
    assert {(each.job_id, each.status.value) for each in http.get_jobs().jobs} == {
        (job.job_id, "successful"),
        (other.job_id, "dismissed"),
    }
    # Its model takes no value that has a `bbox`, as each STAC item has: unread, then.
    told = ResultApi(http.api_client).get_result_without_preload_content(job.job_id)
    found = json.loads(told.read())
    store = found["item"]["value"]["assets"]["zarr"]["href"]
    with xr.open_zarr(store) as ds:
        west, south, east, north = order["inputs"]["bbox"]
        outermost = ds.x[[0, -1]].values, ds.y[[0, -1]].values
        # the centres of the pixels that the box touches, of 120 m
        assert np.abs(outermost - np.array([[west, east], [north, south]])).max() <= 60
        assert bool(ds.vx.notnull().any())


def test_owslib(sample: Any, engine: Engine, settings: Settings, url: str) -> None:
    """Which asks to be answered synchronously, and gives up after ten seconds."""
    client = Processes(url)
    assert [each["id"] for each in client.processes()] == ["materialise", "echo"]
    assert "bbox" in client.process("materialise")["inputs"]
    assert client.execute("echo", {"message": "hello"}) == {"message": "hello"}
    job = client.execute("materialise", small(sample), async_=True)
    assert job["status"] == "accepted"
    with working(engine, settings):
        found = client.execute("materialise", small(sample))
    assert found["item"]["value"]["properties"]["firnline:pairs_kept"] > 0
    assert (
        found["subset"]["href"] == f"{url}/collections/subsets/items/{found['item']['value']['id']}"
    )
    linked = client.execute(
        "materialise", small(sample), outputs={"item": {"transmissionMode": "reference"}}
    )
    assert linked == {"item": found["subset"]}


def test_small_requests_are_answered_at_once(
    sample: Any, engine: Engine, settings: Settings, url: str
) -> None:
    """As the standard has it for those who prefer nothing: both ways are possible, so waited."""
    path = f"{url}/processes/materialise/execution"
    with working(engine, settings):
        answer = httpx.post(path, json={"inputs": small(sample)}, timeout=30)
    assert answer.status_code == 200
    job = httpx.get(answer.headers["link"].partition(">")[0].removeprefix("<")).json()
    assert job["status"] == "successful"
    assert answer.json() == httpx.get(f"{url}/jobs/{job['jobID']}/results").json()


def test_without_a_worker_it_is_a_job(sample: Any, url: str) -> None:
    began = time.monotonic()
    answer = httpx.post(
        f"{url}/processes/materialise/execution",
        json={"inputs": small(sample)},
        headers={"Prefer": "respond-sync, wait=30"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["status"]) == (201, "accepted")
    assert answer.headers["preference-applied"] == "respond-async"
    assert time.monotonic() - began < 10


def test_what_is_not_small_is_a_job(sample: Any, engine: Engine, settings: Settings) -> None:
    """Though a worker is there: no one waits for it."""
    tight = settings.model_copy(update={"sync_bytes": 1000})
    with serving(create_app(tight, engine)) as url, working(engine, settings):
        answer = httpx.post(
            f"{url}/processes/materialise/execution", json={"inputs": small(sample)}, timeout=30
        )
        assert (answer.status_code, answer.json()["status"]) == (201, "accepted")
        job = answer.headers["location"]
        assert job == f"{url}/jobs/{answer.json()['jobID']}"
        until(lambda: httpx.get(job).json()["status"] == "successful")
        item = httpx.get(f"{job}/results").json()["item"]["value"]
    assert item["properties"]["firnline:pairs_kept"] > 0
    assert item["properties"]["proj:shape"] == [41, 41]  # 4.8 km of 120 m, off the lattice


def test_filters_that_leave_nothing_are_refused(sample: Any, url: str) -> None:
    answer = httpx.post(
        f"{url}/processes/materialise/execution",
        json={"inputs": small(sample, datetime="1970-01-01")},
    )
    assert answer.status_code == 400
    assert "passes the filters" in answer.json()["detail"]
    assert httpx.get(f"{url}/jobs").json()["jobs"] == []


def test_a_job_that_fails_while_its_caller_waits(
    sample: Any, engine: Engine, settings: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> str:
        raise FirnlineError("the moon is in the way")

    monkeypatch.setattr(worker, "materialise", failing)
    with working(engine, settings):
        answer = httpx.post(
            f"{url}/processes/materialise/execution", json={"inputs": small(sample)}, timeout=30
        )
    assert answer.status_code == 500
    assert answer.json()["detail"] == "the moon is in the way"


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
