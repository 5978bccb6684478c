"""The service as it is started: harvest of an empty catalog, search, a job, an orderly end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pystac_client
import pytest
from shapely.geometry import box, mapping

from firnline.errors import InputError
from firnline.footprint import footprint
from firnline.indexer.mirror import Fault, Faults
from firnline.indexer.schedule import Schedule
from firnline.service import Service
from firnline.settings import Settings


def wait_for(what: Any, seconds: float = 240) -> Any:
    """The first true answer of `what`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.05)
    raise AssertionError("it did not come to pass")


def test_from_nothing_to_a_subset(sample: Any, tmp_path: Path) -> None:
    """Everything that `firnline serve` promises, through HTTP alone."""
    settings = sample.settings(tmp_path / "data")
    (tmp_path / "data" / "firnline.db").unlink()  # an installation that was never used
    with Service(settings, port=0) as service:
        assert httpx.get(f"{service.url}/readyz").status_code == 200
        catalog = pystac_client.Client.open(service.url)
        aoi = footprint(box(*sample.mirror.aoi), "EPSG:3413")

        def found() -> set[str]:
            search = catalog.search(collections=["itslive-cubes"], intersects=mapping(aoi))
            return {item.id for item in search.items()}

        assert wait_for(found) == {cube.name for cube in sample.mirror.cubes}
        answer = httpx.post(
            f"{service.url}/processes/materialise/execution",
            json={"inputs": {"bbox": list(sample.mirror.aoi), "crs": "EPSG:3413", "pairs": False}},
        )
        assert answer.status_code == 201
        job = wait_for(
            lambda: (j := httpx.get(answer.headers["location"]).json())["progress"] == 100 and j
        )
        assert job["status"] == "successful"
        subsets = list(catalog.search(collections=["subsets"], intersects=mapping(aoi)).items())
        assert len(subsets) == 1
        assert httpx.get(answer.headers["location"] + "/results").json()["subset"]["href"] == (
            subsets[0].get_self_href()
        )
        derived = {link.href.rsplit("/", 1)[-1] for link in subsets[0].get_links("derived_from")}
        assert derived == {c.name for c in sample.mirror.cubes if c.epsg == 3413}
        image = httpx.get(subsets[0].assets["thumbnail"].href)
        assert image.headers["content-type"] == "image/png"
        assert len(image.content) == subsets[0].assets["thumbnail"].extra_fields["file:size"]
        refused = httpx.post(
            f"{service.url}/processes/materialise/execution",
            json={"inputs": {"bbox": [0, 0, 1, 1]}},
        )
        assert refused.status_code == 400
        assert refused.headers["content-type"] == "application/problem+json"
        assert "no cube of the catalog covers this area" in refused.json()["detail"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/readyz")


def test_harvests_on_schedule(sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that the schedule says, deep, and on after a harvest that failed."""
    settings = sample.settings(tmp_path / "data", harvest_schedule="@daily")
    sample.server.faults = None

    def soon(_: Any, after: datetime) -> datetime:
        return after + timedelta(seconds=0.2)

    monkeypatch.setattr(Schedule, "next", soon)
    monkeypatch.setattr("firnline.web._sleep", lambda _: None)
    with Service(settings, port=0, worker=False) as service:

        def runs() -> list[dict[str, Any]]:
            found = httpx.get(f"{service.url}/harvests").json()["harvests"]
            return [run for run in found if run["status"] != "unfinished"]

        deep = wait_for(lambda: [run for run in runs() if run.get("deep")])
        assert deep[0]["status"] == "successful"
        read = wait_for(lambda: [r for r in runs() if r.get("deep_read", {}).get("pairs")])
        assert (read[-1]["deep_read"]["read"], read[-1]["deep_read"]["pairs"]) == (5, 5 * 60)
        sample.server.faults = Faults(Fault("status", 500))
        assert "answered 500" in wait_for(lambda: [r["error"] for r in runs() if r["error"]])[0]
        sample.server.faults = None
        wait_for(lambda: runs()[0]["status"] == "successful")
        items = httpx.get(f"{service.url}/collections/itslive-cubes/items").json()
        assert items["numberMatched"] == 5


def test_a_bad_schedule_is_one_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, harvest_schedule="often", _env_file=None)
    with pytest.raises(InputError, match="FIRNLINE_HARVEST_SCHEDULE 'often' is no cron"):
        Service(settings, port=0)


def test_a_public_address_needs_a_word(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with pytest.raises(InputError, match="FIRNLINE_API_KEYS_REQUIRED"):
        Service(settings, host="0.0.0.0")
    allowed = settings.model_copy(update={"api_keys_required": False})
    Service(allowed, host="0.0.0.0", port=0, harvest=False).close()


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, _env_file=None)
    with Service(settings, port=0, harvest=False, worker=False) as service:
        port = int(service.url.rsplit(":", 1)[-1])
        with pytest.raises(InputError, match=f"can't listen on 127.0.0.1:{port}"):
            Service(settings, port=port)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in content(task).split()]


def content(path: Path) -> str:
    """Of a file of a thread or process, which may have ended since it was listed."""
    try:
        return path.read_text()
    except OSError:
        return ""


def runs(pid: int) -> bool:
    return content(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()[:1] not in ([], ["Z"])


def workers(pid: int) -> list[int]:
    return [
        child
        for child in children(pid)
        if "--child" in content(Path(f"/proc/{child}/cmdline")) and runs(child)
    ]


def test_a_worker_that_dies_is_replaced(
    sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firnline.child._AGAIN", 0.1)
    sample.server.faults = None
    settings = sample.settings(tmp_path / "data", lease_seconds=1.0)
    left, bottom, _, top = sample.mirror.aoi
    inputs = {"bbox": [left, bottom, left + 2400, top], "crs": "EPSG:3413", "pairs": False}
    with Service(settings, port=0, harvest=False) as service:
        (first,) = wait_for(lambda: workers(os.getpid()))
        os.kill(first, signal.SIGKILL)
        (second,) = wait_for(lambda: [pid for pid in workers(os.getpid()) if pid != first])
        answer = httpx.post(
            f"{service.url}/processes/materialise/execution", json={"inputs": inputs}
        )
        wait_for(lambda: httpx.get(answer.headers["location"]).json()["status"] == "successful")
        assert os.getpriority(os.PRIO_PROCESS, second) > os.getpriority(os.PRIO_PROCESS, 0)
        assert os.sched_getscheduler(second) == os.SCHED_BATCH
    assert not runs(second)


def test_a_worker_does_not_outlive_its_service(tmp_path: Path) -> None:
    environment = {**os.environ, "FIRNLINE_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "firnline.cli", "serve", "--port", "0", "--no-harvest"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as service:
        (worker,) = wait_for(lambda: workers(service.pid))
        service.kill()
    wait_for(lambda: not runs(worker))
