"""The page at ``/map``, and the way there from ``/`` for browsers.

It is built from ``web/`` (`make page`) into the folder ``static`` beside this file. Where that was
not done, the service runs without it, and ``/map`` says so.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from firnline.api.conditional import not_modified
from firnline.api.links import HTML, Base
from firnline.errors import NotFoundError
from firnline.settings import Settings

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, nothing inline.

WebAssembly is allowed, for reading GeoPackages.
"""
_TYPES = {
    ".html": f"{HTML}; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}


class _ForBrowsers(Route):
    """``/`` for who asks for HTML by name; all others pass on to the API's landing page."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is Match.FULL:
            accepted = next((v for k, v in scope["headers"] if k == b"accept"), b"")
            if b"text/html" not in accepted:
                return Match.NONE, {}
        return match, child


def create_router(static: Path = STATIC) -> APIRouter:
    """The routes of the page.

    Parameters
    ----------
    static
        Folder of the built page.
    """
    router = APIRouter(include_in_schema=False)

    def get_page(request: Request) -> Response:
        return _file(request, static, "index.html")

    def get_part(request: Request, name: str) -> Response:
        return _file(request, static, name)

    router.add_api_route("/map", get_page, methods=["GET", "HEAD"])
    router.add_api_route("/map/{name}", get_part, methods=["GET", "HEAD"])
    return router


def for_browsers(settings: Settings, static: Path = STATIC) -> list[Route]:
    """The route that goes before the API's own at ``/``; none where there is no page."""
    if not (static / "index.html").is_file():
        return []

    def to_page(request: Request) -> Response:
        base = Base.of(request, settings.public_url)
        headers = {"Vary": "Accept", "Cache-Control": "no-cache"}
        return RedirectResponse(f"{base.url}/map", 303, headers)

    return [_ForBrowsers("/", to_page, methods=["GET"], include_in_schema=False)]


def _file(request: Request, static: Path, name: str) -> Response:
    # one folder without folders in it; what is not listed there is not opened
    listed = {path.name: path for path in static.glob("*")} if static.is_dir() else {}
    if "index.html" not in listed:
        raise NotFoundError(
            "the page was not built into this installation: run `make page` (it needs Node.js) "
            "before installing; the API is all here"
        )
    if name not in listed:
        raise NotFoundError(f"there is nothing at {request.url.path[:200]}")
    path = listed[name]
    reply = FileResponse(
        path,
        headers={"Cache-Control": "no-cache", "Content-Security-Policy": POLICY},
        media_type=_TYPES.get(path.suffix, "application/octet-stream"),
        stat_result=path.stat(),
    )
    return not_modified(request.headers, reply) or reply
