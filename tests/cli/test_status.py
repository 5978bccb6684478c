"""``firnline status``: what a person should do, in sentences."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from firnline.cache import jobs
from firnline.cache.jobs import Job
from firnline.cache.request import Request
from firnline.cli.status import needs
from firnline.database import connect, writing
from firnline.settings import Settings
from firnline.tables import jobs as table

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
HARVESTED = {"status": "successful", "started": "2026-05-31T12:00:00+00:00", "error": None}
KNOWN = {"items": {"itslive-cubes": 3}, "subsets": {"count": 1, "bytes": 95_000_000_000}}


def job(status: str, minutes: float, message: str = "", request: str = "a") -> Job:
    """A job that was made and last touched so long ago."""
    when = NOW - timedelta(minutes=minutes)
    return Job(f"{status}-{request}", status, message, 0, {"bbox": request}, None, when, None,
               None, when)  # fmt: skip


def said(
    tmp_path: Path,
    *jobs: Job,
    harvests: Any = (HARVESTED,),
    known: Any = KNOWN,
    quota: str = "0",
) -> list[str]:
    settings = Settings(data_dir=tmp_path, cache_quota=quota, max_job_bytes="1", _env_file=None)  # type: ignore[call-arg,arg-type]
    return needs(known, list(harvests), list(jobs), settings, NOW)


def test_all_is_well(tmp_path: Path) -> None:
    assert said(tmp_path) == []
    assert said(tmp_path, job("accepted", 0.5)) == [], "just asked for"
    assert said(tmp_path, job("accepted", 30), job("running", 0.1)) == [], "a worker is at another"
    assert said(tmp_path, job("failed", 60 * 24 * 8)) == [], "long ago"
    assert said(tmp_path, job("successful", 1), job("failed", 5)) == [], "mended since"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"jobs": [job("accepted", 5), job("accepted", 180, request="b")]},
         ["2 jobs waited for 3 hours", "no worker takes them", "`firnline worker`"]),
        ({"jobs": [job("running", 20)]}, ["1 job waited for 20 minutes"]),  # its worker died
        ({"jobs": [job("accepted", 5)]}, ["1 job waited for 5 minutes", "no worker takes it"]),
        ({"jobs": [job("failed", 5, "the disk is full."), job("failed", 9, "x", request="b")]},
         ["2 requests failed", "failed-a", "the disk is full. Ask again"]),
        ({"known": {**KNOWN, "items": {}}, "harvests": []},
         ["catalog is empty", "`firnline harvest`"]),
        ({"known": {**KNOWN, "items": {"subsets": 1}}, "harvests": []}, ["catalog is empty"]),
        ({"harvests": [{**HARVESTED, "status": "failed", "error": "no route"}, HARVESTED]},
         ["last harvest failed: no route. The catalog is as it was before"]),
        ({"harvests": [{**HARVESTED, "started": "2026-04-17T12:00:00+00:00"}]},
         ["45 days old", "FIRNLINE_HARVEST_SCHEDULE"]),
        ({"quota": "90GB"}, ["95.0 GB, more than its quota of 90.0 GB"]),
    ],
)  # fmt: skip
def test_what_is_to_do(tmp_path: Path, case: dict[str, Any], words: list[str]) -> None:
    (sentence,) = said(tmp_path, *case.pop("jobs", []), **case)
    assert all(word in sentence for word in words), sentence


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"total": 10**12, "used": 9.99e11, "free": 500_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    (sentence,) = said(tmp_path)
    assert "has 500.0 MB left" in sentence
    assert "firnline cache evict" in sentence


def test_as_people_and_scripts_see_it(firn: Run, sample: Any, settings: Settings) -> None:
    """A job of last night that no worker took."""
    assert "All is well." in firn("status", settings=settings).out
    engine = connect(settings.database)
    asked = Request.parse({"bbox": sample.mirror.aoi, "crs": "EPSG:3413"}, settings)
    jobs.submit(engine, asked)
    night = datetime.now(UTC) - timedelta(hours=9.5)
    with writing(engine) as connection:
        connection.execute(table.update().values(created=night, updated=night))
    engine.dispose()
    text = firn("status").out
    assert text.startswith("To do:\n  - 1 job waited for 9 hours and no worker takes it")
    assert f"{len(sample.mirror.cubes)} itslive-cubes" in text
    answer = firn("status", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["needs"][0] in text
