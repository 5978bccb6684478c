"""/harvests: the run log, so that users see how fresh the catalog is."""

from __future__ import annotations

import re
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

_FOLDERS = re.compile(r"file://\S*/")
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
    shown = {source: source if "://" in source else Path(source).name for source in run["sources"]}

    def told(text: str | None) -> str | None:
        for source, name in shown.items():
            text = text and text.replace(source, name)
        if text and text.startswith("the database"):
            text = text.partition(": ")[0]
        return text and _FOLDERS.sub("", text)

    def cleaned(part: dict[str, Any]) -> dict[str, Any]:
        changed: dict[str, Any] = {"error": told(part["error"])} if "error" in part else {}
        if "failures" in part:
            changed["failures"] = [
                failure | {name: told(failure[name]) for name in ("id", "reason")}
                for failure in part["failures"]
            ]
        if "deep_read" in part:
            changed["deep_read"] = cleaned(part["deep_read"])
        return part | changed

    return cleaned(run) | {"sources": [told(source) for source in run["sources"]]}
