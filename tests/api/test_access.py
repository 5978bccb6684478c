"""Who may come in: every route, with and without keys; limits; headers."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, select

from firnline import keys
from firnline.api.access import needed
from firnline.api.app import create_app
from firnline.cache import jobs
from firnline.cache.request import Request
from firnline.database import reading
from firnline.errors import InputError
from firnline.settings import Settings
from firnline.tables import jobs as table

Client = Any  # of conftest.py


@pytest.fixture(params=["sqlite"])
def engine(request: pytest.FixtureRequest, engine: Engine) -> Engine:
    return engine


def client_of(engine: Engine, settings: Settings, **more: Any) -> Any:
    from starlette.testclient import TestClient

    app = create_app(settings.model_copy(update=more), engine)
    return TestClient(app, raise_server_exceptions=False)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_open_while_there_is_no_key(engine: Engine, settings: Settings) -> None:
    client = client_of(engine, settings)
    assert client.get("/search").status_code == 200
    assert client.get("/search", headers=bearer("anything")).status_code == 200


def test_no_route_is_left_out(engine: Engine, settings: Settings) -> None:
    """Each route but the two that orchestrators ask says 401 without a key and with a bad one."""
    keys.add(engine, "someone")
    client = client_of(engine, settings)
    described = client.app.openapi()["paths"]
    assert {"/search", "/", "/jobs/{job_id}", "/metrics"} <= described.keys()
    routes = [(method, path) for path, each in described.items() for method in each]
    for method, path in [*routes, ("get", "/api"), ("get", "/api.html"), ("head", "/search")]:
        for headers in ({}, bearer("firn_000000000000_" + "A" * 43)):
            answer = client.request(method, re.sub("[{}]", "", path), headers=headers)
            if path in ("/healthz", "/readyz"):
                assert answer.status_code != 401
                continue
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith('Bearer realm="firnline"')
            assert answer.headers["content-type"] == "application/problem+json"


def test_a_key_comes_in_three_ways(engine: Engine, settings: Settings) -> None:
    _, text = keys.add(engine, "someone", ["read"])
    client = client_of(engine, settings)
    basic = base64.b64encode(f"whoever:{text}".encode()).decode()
    for headers in (bearer(text), {"X-API-Key": text}, {"Authorization": f"Basic {basic}"}):
        assert client.get("/collections", headers=headers).status_code == 200
    assert client.get("/collections", params={"api_key": text}).status_code == 401
    for bad in ("Basic !", "Basic", "Digest x", f"Basic {base64.b64encode(b'%ff').decode()}"):
        assert client.get("/collections", headers={"Authorization": bad}).status_code == 401


def test_scopes(engine: Engine, settings: Settings) -> None:
    texts = {scope: keys.add(engine, scope, [scope])[1] for scope in keys.SCOPES}
    client = client_of(engine, settings)
    echo = {"inputs": {"message": "hello"}}

    def run(scope: str) -> Any:
        return client.post("/processes/echo/execution", json=echo, headers=bearer(texts[scope]))

    refused = run("read")
    assert refused.status_code == 403
    assert "has no scope materialise; it has: read" in refused.json()["detail"]
    assert run("materialise").json() == {"message": "hello"}
    assert run("admin").json() == {"message": "hello"}
    body = {"limit": 1}
    assert client.post("/search", json=body, headers=bearer(texts["read"])).status_code == 200


def test_what_everyone_may(engine: Engine, settings: Settings) -> None:
    keys.add(engine, "someone")
    client = client_of(engine, settings, anonymous_scopes=("read",))
    assert client.get("/search").status_code == 200
    assert client.post("/search", json={}).status_code == 200
    assert client.get("/search", headers=bearer("wrong")).status_code == 401, "a typo is told"
    answer = client.delete("/jobs/x")
    assert answer.status_code == 401
    assert "scope materialise" in answer.json()["detail"]
    with pytest.raises(InputError, match="'admin' can't be given to everyone"):
        client_of(engine, settings, anonymous_scopes=("admin",))


def test_where_a_proxy_decides_no_key_is_asked_for(engine: Engine, settings: Settings) -> None:
    keys.add(engine, "someone")
    client = client_of(engine, settings, api_keys_required=False)
    for headers in ({}, bearer("whatever the proxy sends on")):
        answer = client.get("/search", headers=headers)
        assert (answer.status_code, answer.json()["features"]) == (200, [])
    echo = client.post("/processes/echo/execution", json={"inputs": {"message": "in"}})
    assert echo.json() == {"message": "in"}, "not reading alone"


def test_a_server_whose_last_key_is_revoked_stays_closed(
    engine: Engine, settings: Settings
) -> None:
    key, _ = keys.add(engine, "someone")
    keys.revoke(engine, key.id)
    assert client_of(engine, settings).get("/search").status_code == 401


def test_every_writing_method_needs_more_than_read() -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "QUERY", "anything"):
        assert needed(method, "/jobs/1") == "materialise"
        assert needed(method, "/processes/materialise/execution") == "materialise"
    assert needed("POST", "/search") == needed("GET", "/jobs/1") == "read"
    assert needed("DELETE", "/search") == "materialise"


def test_jobs_are_those_of_their_key(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, owner_text = keys.add(engine, "owner", ["materialise"], most_jobs=1)
    _, other_text = keys.add(engine, "other", ["materialise"])
    _, admin_text = keys.add(engine, "admin", ["admin"])
    # what the catalog covers is not asked here
    monkeypatch.setattr("firnline.cache.opening.check", lambda engine, request: None)
    client = client_of(engine, settings)

    def ask(west: float, text: str) -> Any:
        inputs = {"bbox": [west, 0, west + 1000, 1000], "crs": "EPSG:3413"}
        path = "/processes/materialise/execution"
        headers = {**bearer(text), "Prefer": "respond-async"}
        return client.post(path, json={"inputs": inputs}, headers=headers)

    first = ask(0, owner_text)
    assert first.status_code == 201, first.text
    id = first.json()["jobID"]
    with reading(engine) as connection:
        assert connection.scalar(select(table.c.api_key)) == owner.id
    again = ask(0, owner_text)
    assert again.json()["jobID"] == id, "the same request is the same job, whatever the quota"
    full = ask(5000, owner_text)
    assert full.status_code == 429
    assert "may have 1 jobs that wait or run, and has 1" in full.json()["detail"]
    assert ask(0, other_text).json()["jobID"] == id
    assert client.delete(f"/jobs/{id}", headers=bearer(other_text)).status_code == 403
    assert jobs.get(engine, id).living
    assert client.delete(f"/jobs/{id}", headers=bearer(owner_text)).json()["status"] == "dismissed"
    second = ask(5000, owner_text).json()["jobID"]
    assert client.delete(f"/jobs/{second}", headers=bearer(admin_text)).status_code == 200


def test_rate_limit(engine: Engine, settings: Settings) -> None:
    _, text = keys.add(engine, "someone")
    client = client_of(engine, settings, rate_limit="3/hour", anonymous_scopes=("read",))
    assert [client.get("/conformance").status_code for _ in range(3)] == [200, 200, 200]
    answer = client.get("/conformance")
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 3600
    assert "3 per 1 hour" in answer.json()["detail"]
    assert client.get("/conformance", headers=bearer(text)).status_code == 200, "a caller by itself"
    assert client.get("/healthz").status_code == 200
    with pytest.raises(InputError, match="FIRNLINE_RATE_LIMIT: 'often' is no limit"):
        client_of(engine, settings, rate_limit="often")


def test_keys_are_not_logged(
    engine: Engine, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    _, text = keys.add(engine, "someone")
    caplog.set_level(logging.DEBUG, "firnline")
    client = client_of(engine, settings)
    secret = text.split("_", 2)[-1]  # which may have underscores of its own
    with structlog.testing.capture_logs() as events:
        for sent in (text, text[:-1] + "A"):
            client.get("/search", headers=bearer(sent))
            client.get("/search", params={"token": sent}, headers={"X-API-Key": sent})
    told = [*map(str, events), *(r.getMessage() for r in caplog.records if "httpx" not in r.name)]
    assert len(events) >= 4
    assert not [line for line in told if secret[:-1] in line]


def test_headers_of_every_answer(engine: Engine, settings: Settings) -> None:
    client = client_of(engine, settings, cors_origins=("https://ice.example",))
    for path in ("/", "/nowhere", "/search?limit=no"):
        answer = client.get(
            path, headers={"X-Request-ID": "abc-1", "Origin": "https://ice.example"}
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-request-id"] == "abc-1"
        assert answer.headers["access-control-allow-origin"] == "https://ice.example"
    other = client.get("/", headers={"X-Request-ID": "a b\x01", "Origin": "https://else.example"})
    assert len(other.headers["x-request-id"]) == 32
    assert "access-control-allow-origin" not in other.headers


def test_a_job_of_no_key_is_dismissed_without_one(engine: Engine, settings: Settings) -> None:
    inputs = {"bbox": [0, 0, 1000, 1000], "crs": "EPSG:3413"}
    job = jobs.submit(engine, Request.parse(inputs, settings))
    answer = client_of(engine, settings).delete(f"/jobs/{job.id}")
    assert (answer.status_code, answer.json()["status"]) == (200, "dismissed")
    ended = jobs.get(engine, job.id)
    assert (ended.status, ended.api_key) == ("dismissed", None)


def test_all_routes_are_known_to_the_metrics(engine: Engine, settings: Settings) -> None:
    """A path is counted by its route; what has none is one series, whatever it's called."""
    client = client_of(engine, settings)
    for n in range(3):
        client.get(f"/collections/c{n}/items/i{n}")
        client.get(f"/nowhere/{n}")
    jobs.submit(engine, Request.parse({"bbox": [0, 0, 1, 1], "crs": "EPSG:3413"}, settings))
    text = client.get("/metrics").text
    route = "/collections/{collection_id}/items/{item_id}"
    assert f'firnline_http_requests_total{{method="GET",route="{route}",status="404"}} 3.0' in text
    assert 'firnline_http_requests_total{method="any",route="none",status="404"} 3.0' in text
    assert f'firnline_http_request_seconds_count{{method="GET",route="{route}"}} 3.0' in text
    assert 'firnline_jobs{status="accepted"} 1.0' in text
    (waited,) = [line for line in text.splitlines() if line.startswith("firnline_queue_seconds ")]
    assert 0 < float(waited.split()[1]) < 60


@pytest.mark.parametrize(
    "given",
    [
        b"Basic \xff\xff",
        b"Basic =",
        b"Basic",
        b"Basic /w==",
        b"Bearer \xc3\xa9",
        b"Bearer",
        b"\xff",
    ],
)
def test_what_is_no_key_is_refused(engine: Engine, settings: Settings, given: bytes) -> None:
    """Before anyone is known, no bytes may lead further than to 401."""
    keys.add(engine, "someone", ["read"])
    answer = client_of(engine, settings).get("/search", headers={"Authorization": given})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
