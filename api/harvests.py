"""/harvests: the run log, so that users see how fresh the catalog is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from firnline.api.links import Base, JSONBytes
from firnline.errors import InputError
from firnline.runs import recent
from firnline.settings import Settings

DEFAULT_LIMIT = 10
MAX_LIMIT = 100


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The route of the run log."""
    router = APIRouter(tags=["Health"])

    @router.get("/harvests")
    def harvests(request: Request, limit: str | None = None) -> Response:
        """The last harvests of the catalog, the newest first."""
        runs = [_public(run) for run in recent(engine, _limit(limit))]
        base = Base.of(request, settings.public_url)
        asked = f"?{request.url.query}" if request.url.query else ""
        links = [base.link("self", f"/harvests{asked}"), base.link("root")]
        return JSONBytes(base.resolve(orjson.dumps({"harvests": runs, "links": links})))

    return router


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_LIMIT):
        raise InputError(f"limit is a whole number from 1 to {MAX_LIMIT}, not {text[:40]!r}")
    return int(text)


def _public(run: dict[str, Any]) -> dict[str, Any]:
    """A run without what is the operator's own: folders, and the driver's words."""
    error = run["error"]
    sources = []
    for source in run["sources"]:
        shown = source if "://" in source else Path(source).name
        sources.append(shown)
        error = error and error.replace(source, shown)
    if error and error.startswith("the database"):
        error = error.partition(": ")[0]
    return run | {"sources": sources, "error": error}
