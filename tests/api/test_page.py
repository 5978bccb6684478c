"""Where the page is served, with a stand-in for what `make page` builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from firnline.api import errors, page
from firnline.settings import Settings

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"  # as browsers ask


def served(folder: Path, static: Path, public_url: str = "") -> TestClient:
    app = FastAPI()

    @app.get("/")
    def landing() -> dict[str, str]:
        return {"type": "Catalog"}

    app.include_router(page.create_router(static))
    settings = Settings(data_dir=folder, public_url=public_url, _env_file=None)
    app.router.routes[:0] = page.for_browsers(settings, static)
    errors.install(app)
    return TestClient(app, follow_redirects=False)


@pytest.fixture
def built(tmp_path: Path) -> Path:
    static = tmp_path / "static"
    static.mkdir()
    (static / "index.html").write_text("<!doctype html><title>firnline</title>")
    (static / "page.js").write_text("export {}")
    (tmp_path / "secret.txt").write_text("secret")
    return static


def test_browsers_are_led_to_the_page(tmp_path: Path, built: Path) -> None:
    http = served(tmp_path, built)
    answer = http.get("/", headers={"Accept": HTML})
    assert (answer.status_code, answer.headers["location"]) == (303, "http://testserver/map")
    assert answer.headers["vary"] == "Accept"
    for accept in ("*/*", "application/json", "application/geo+json, */*;q=0.1"):
        assert http.get("/", headers={"Accept": accept}).json() == {"type": "Catalog"}
    behind = served(tmp_path, built, "https://example.org/ice")
    location = behind.get("/", headers={"Accept": HTML}).headers["location"]
    assert location == "https://example.org/ice/map"


def test_the_page_and_its_parts(tmp_path: Path, built: Path) -> None:
    http = served(tmp_path, built)
    answer = http.get("/map")
    assert "<title>firnline" in answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'self'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert "unsafe" not in policy.replace("'wasm-unsafe-eval'", "")
    script = http.get("/map/page.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    again = http.get("/map/page.js", headers={"If-None-Match": script.headers["etag"]})
    assert again.status_code == 304
    assert http.head("/map").headers["content-length"] == answer.headers["content-length"]


@pytest.mark.parametrize("name", ["none.js", "..%2fsecret.txt", "%2e%2e%2fsecret.txt"])
def test_nothing_else_is_served(tmp_path: Path, built: Path, name: str) -> None:
    answer = served(tmp_path, built).get(f"/map/{name}")
    assert answer.status_code == 404
    assert "secret\n" not in answer.text


def test_without_the_page_the_service_says_so(tmp_path: Path) -> None:
    http = served(tmp_path, tmp_path / "static")
    answer = http.get("/map", headers={"Accept": HTML})
    assert answer.status_code == 404
    assert "make page" in answer.json()["detail"]
    assert http.get("/", headers={"Accept": HTML}).json() == {"type": "Catalog"}
