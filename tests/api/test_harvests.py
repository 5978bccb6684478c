"""/harvests: the run log over HTTP, without what is the operator's own."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from firnline import runs
from firnline.api.app import create_app
from firnline.database import writing
from firnline.errors import CatalogError
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.settings import Settings


@pytest.fixture
def client(engine: Engine, settings: Settings) -> TestClient:
    return TestClient(create_app(settings, engine))


def harvests(client: TestClient, query: str = "") -> list[dict[str, object]]:
    answer: httpx.Response = client.get(f"/harvests{query}")
    assert answer.status_code == 200
    return list(answer.json()["harvests"])


def test_newest_first(
    client: TestClient, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    assert harvests(client) == []
    url = "https://its-live-data.s3.amazonaws.com/ITS_LIVE_vel_EPSG3413_G0120_X50000_Y-2250000.zarr"
    feature = {"type": "Feature", "properties": {"zarr_url": url, "RGI_CODE": 5}}
    path = tmp_path / "catalog.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    for _ in range(2):
        harvest(engine, settings, [str(path)], mosaics=False)
    second, first = harvests(client)
    assert (first["status"], first["added"], first["deep"]) == ("successful", 1, False)
    assert (second["unchanged"], second["not_modified_since"]) == (1, first["started"])
    assert harvests(client, "?limit=1") == [second]
    for word in ("validators", "basis"):
        assert word not in second


def test_nothing_of_the_operator_is_told(
    client: TestClient, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "private" / "catalog.json"
    path.parent.mkdir()
    path.write_text("<html>")
    with pytest.raises(CatalogError):
        harvest(engine, settings, [str(path)])
    run = runs.begin(engine, ["x"], datetime.now(UTC))
    with writing(engine) as connection:
        runs.finish(connection, run, error="the database did not answer: user postgres at db:5432")
    refused, failed = harvests(client, "?limit=2")
    assert failed["status"] == "failed"
    assert (failed["sources"], failed["error"]) == (
        ["catalog.json"],
        "catalog.json: the catalog is HTML or XML, not JSON",
    )
    assert refused["error"] == "the database did not answer"
    assert str(tmp_path) not in json.dumps([refused, failed])


def test_failures_are_told_without_folders(
    client: TestClient, engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """Of the harvest and of its deep read; the cubes of this catalog are in the operator's own."""
    folder = tmp_path / "private"
    folder.mkdir()
    path = folder / "catalog.json"
    name = "ITS_LIVE_vel_EPSG3413_G0120_X50000_Y-2250000.zarr"
    features = [
        {"type": "Feature", "properties": {"zarr_url": f"{folder.as_uri()}/{name}"}},
        {"type": "Feature", "properties": {"zarr_url": f"{folder.as_uri()}/b?.zarr"}},
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    own = settings.model_copy(update={"allowed_sources": (folder.as_uri(),)})
    report = harvest(engine, own, [path.as_uri()], mosaics=False)
    deepen(engine, own, run=report.run)
    told = client.get("/harvests?limit=1").text
    assert str(folder) not in told
    (run,) = json.loads(told)["harvests"]
    assert run["sources"] == ["catalog.json"]
    (failure,) = run["failures"]
    assert "its zarr_url is not an https" in failure["reason"]
    (unread,) = run["deep_read"]["failures"]
    assert unread["id"] == name.removesuffix(".zarr")
    assert unread["reason"] == f"{name} does not exist"


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", "", "1e1", "٣", "9" * 40])
def test_bad_limits(client: TestClient, limit: str) -> None:
    answer = client.get("/harvests", params={"limit": limit})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "1 to 100" in answer.json()["detail"]
