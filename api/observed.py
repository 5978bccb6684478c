"""Every request has an id, is counted and timed, and can be logged."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firnline.api.metrics import Requests

log = structlog.get_logger(__name__)

_ID = re.compile(r"[0-9A-Za-z._-]{1,64}")  # no line breaks in logs, no books in headers


class Observed:
    """Gives each request an id, the caller's own if it sends a sane ``X-Request-ID``.

    The id is in the reply and in every line that is logged meanwhile. At the level DEBUG each
    request is a line, with neither query nor headers: those may hold keys.
    """

    def __init__(self, app: ASGIApp, *, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and tell how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        status = 500
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request=id):
            try:
                await self._app(scope, receive, watched)
            finally:
                seconds = time.perf_counter() - began
                # the route, not the path: each path would be a series of its own for ever
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if route != "none" else "any"
                self._requests.add(method, route, status, seconds)
                log.debug(
                    "request", method=scope["method"], path=scope["path"], status=status,
                    seconds=round(seconds, 4),
                )  # fmt: skip
