"""What stands around the application, plain ASGI: two guards, compression, headers."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette_compress import CompressMiddleware, add_compress_type

from firnline.api.errors import failure, problem

MAX_BODY = 1_000_000
"""Largest body that is read, in bytes."""


for _type in ("application/schema+json", "application/vnd.oai.openapi+json"):
    add_compress_type(_type)


class Failsafe:
    """Answers what nobody caught with a problem, logs it once, and keeps its details inside.

    Starlette's own last resort answers in plain text, outside of CORS, and raises again, which
    makes the server log the same error a second time.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and answer errors."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or started:  # the server has to break the connection off
                raise
            await failure(error, scope["path"])(scope, receive, send)


class BodyLimit:
    """413 for bodies beyond :data:`MAX_BODY`, whether they say their length or not."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body up to the limit, then hand it on as one message."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        more = True
        while more and len(body) <= MAX_BODY:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            detail = f"the body is larger than {MAX_BODY:,} bytes"
            answer = problem(413, detail, scope["path"], headers={"Connection": "close"})
            await answer(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, replay, send)


class SecurityHeaders:
    """Tells browsers to guess no types, to say nothing of where they are, to show no frames."""

    _HEADERS = (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-frame-options", b"DENY"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add the headers."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Compress(CompressMiddleware):
    """zstd, br or gzip for what is made here, at levels where 100 items cost a millisecond.

    Not for files: they are compressed as far as they can be, and are read by byte ranges. A client
    that takes anything (``*``, as pystac's users send) is answered by gzip: it seldom knows more.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(app, zstd_level=1, brotli_quality=1, gzip_level=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Compress the reply if the client asks for it."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http":
            # in place: who stands around sees in this scope which route it was
            scope["headers"] = [(name, _named(name, value)) for name, value in scope["headers"]]
        await (self.app if path.startswith("/files/") else super().__call__)(scope, receive, send)


def _named(name: bytes, value: bytes) -> bytes:
    """A header; in Accept-Encoding ``*`` is spelt out."""
    if name != b"accept-encoding" or b"*" not in value:
        return value
    return value.replace(b"*", b"identity" if b"gzip" in value else b"gzip")
