"""A service over the sample whose image pairs are known, and a browser that looks at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from firnline.api.page import STATIC
from firnline.database import connect
from firnline.indexer.cubes import deepen
from firnline.service import Service
from firnline.settings import Settings

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Served:
    """A running service, and where it keeps its things."""

    url: str
    settings: Settings
    service: Service


@dataclass
class Watched:
    """A page, what was wrong with it, and what it asked for from elsewhere."""

    page: Any
    wrong: list[str] = field(default_factory=list)

    def hear(self, said: Any) -> None:
        if said.type in ("error", "warning"):
            self.wrong.append(f"{said.text} {said.location.get('url')}")

    def check(self, url: str, service: str) -> None:
        if not url.startswith((f"{service}/", "blob:")):
            self.wrong.append(f"asked for {url}")


@pytest.fixture(scope="module")
def served(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = sample.settings(tmp_path_factory.mktemp("page") / "data")
    engine = connect(settings.database)
    assert deepen(engine, settings).failed == 0
    engine.dispose()
    with Service(settings, port=0, harvest=False) as service:
        yield Served(service.url, settings, service)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    missing = [
        name
        for name, there in [
            ("Chromium (apt-get install chromium)", CHROMIUM),
            ("the built page (make page)", (STATIC / "index.html").is_file()),
        ]
        if not there
    ]
    if missing:
        reason = f"not here: {', '.join(missing)}"
        if os.environ.get("FIRNLINE_TEST_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, served: Served) -> Iterator[Any]:
    """Opens pages, and fails if one was in trouble or asked for anything but the service."""
    opened: list[Watched] = []

    def opener(path: str = "/map", **context: Any) -> Any:
        page = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, **context}
        ).new_page()
        watched = Watched(page)
        opened.append(watched)
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: watched.wrong.append(f"error: {error.stack or error}"))
        page.on("console", watched.hear)
        page.on("request", lambda asked: watched.check(asked.url, served.url))
        page.goto(f"{served.url}{path}")
        return page

    yield opener
    for watched in opened:
        watched.page.context.close()
    assert [each.wrong for each in opened] == [[] for _ in opened]
