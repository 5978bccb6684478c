"""The methods of a resource as HTTP has them, where each route knows of its own only."""

from __future__ import annotations

from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


class Methods:
    """HEAD wherever there is GET, OPTIONS everywhere, and in ``Allow`` all methods of a path.

    RFC 9110, 9.3.2, 9.3.7 and 10.2.1. Who answers HEAD without reading a file, as ``/files`` does,
    is asked itself. This stands outside of compression: a HEAD has the headers of the GET.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, a HEAD as the GET that it stands for, and answer OPTIONS."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and (allowed := _allowed(scope)):
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
            return
        send = _with_allowed(scope, send)
        if scope["method"] != "HEAD" or _matches(scope, "HEAD"):
            await self.app(scope, receive, send)
            return
        get: Scope = {**scope, "method": "GET"}
        await self.app(get, receive, _without_body(send))
        scope["route"] = get.get("route")  # for who observes


def _matches(scope: Scope, method: str) -> bool:
    asked = {**scope, "method": method}
    return any(route.matches({**asked})[0] is Match.FULL for route in scope["app"].routes)


def _allowed(scope: Scope) -> str:
    """The methods of a path; empty where there is nothing."""
    there = {method for method in _METHODS if _matches(scope, method)}
    if not there:
        return ""
    return ", ".join(sorted(there | {"OPTIONS"} | ({"HEAD"} if "GET" in there else set())))


def _without_body(send: Send) -> Send:
    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headers_only


def _with_allowed(scope: Scope, send: Send) -> Send:
    """A 405 comes from one route of several: what the others allow is not in it."""

    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            kept = [(name, value) for name, value in message["headers"] if name != b"allow"]
            message["headers"] = [*kept, (b"allow", _allowed(scope).encode())]
        await send(message)

    return completed
