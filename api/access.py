"""Who may come in: API keys by scope, and limits of requests by key or address.

A key comes as ``Authorization: Bearer KEY``, as the password of HTTP Basic (for QGIS, GDAL and
browsers, under any user name), or as ``X-API-Key: KEY``. Never in an address: those get into logs.
"""

from __future__ import annotations

import base64
import math
import time
from dataclasses import dataclass

import structlog
from anyio.to_thread import run_sync
from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from firnline.api.errors import problem
from firnline.errors import InputError
from firnline.keys import SCOPES, ApiKey, Keyring
from firnline.settings import Settings

log = structlog.get_logger(__name__)

_OPEN = ("/healthz", "/readyz")  # orchestrators have no key
_READING = ("GET", "HEAD", "OPTIONS")


def needed(method: str, path: str) -> str:
    """The scope that a request needs."""
    search = path.rsplit("/", 1)[-1] in ("search", "aggregate")
    return "read" if method in _READING or (method == "POST" and search) else "materialise"


@dataclass(frozen=True)
class Rules:
    """What the settings say of who may come in."""

    keys: bool
    """Whether keys are asked for, once there is one."""
    anonymous: int
    """Position in SCOPES of the highest that needs no key; -1: none."""
    limits: tuple[RateLimitItem, ...]

    @classmethod
    def of(cls, settings: Settings) -> Rules:
        """The rules in force.

        Raises
        ------
        InputError
            Settings that can't be understood.
        """
        unknown = set(settings.anonymous_scopes) - set(SCOPES[:-1])
        if unknown:
            raise InputError(
                f"setting FIRNLINE_ANONYMOUS_SCOPES: {min(unknown)!r} can't be given to everyone; "
                f"of these it takes: {', '.join(SCOPES[:-1])}"
            )
        anonymous = max([-1, *map(SCOPES.index, settings.anonymous_scopes)])
        return cls(settings.api_keys_required, anonymous, _limits(settings.rate_limit))


class Access:
    """Lets in who has a key, where keys are asked for; puts it in ``scope["state"]["api_key"]``."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, rules: Rules) -> None:
        self._app = app
        self._keyring = keyring
        self._rules = rules
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer 401, 403 or 429."""
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or path in _OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key: ApiKey | None = None
        guarded = False
        if self._rules.keys:
            if self._keyring.due:
                await run_sync(self._keyring.refresh)
            guarded = bool(self._keyring)
        presented = _presented(headers) if guarded else None
        if presented is not None:
            key = self._keyring.find(presented)
        caller = key.id if key else (scope.get("client") or ("unknown",))[0]
        wait = self._wait(caller)
        if wait:
            answer = problem(
                429,
                f"more requests than {'; '.join(map(str, self._rules.limits))}: "
                f"try again in {wait} seconds",
                path,
                headers={"Retry-After": str(wait)},
            )
        elif presented is not None and key is None:
            log.info("refused: no valid key", address=caller)
            detail = "this API key is not valid here: it may be mistyped, revoked or expired"
            answer = _unauthorised(detail, path)
        else:
            wanted = needed(scope["method"], path.rstrip("/"))
            everyone = not guarded or SCOPES.index(wanted) <= self._rules.anonymous
            if everyone or (key is not None and key.may(wanted)):
                scope.setdefault("state", {})["api_key"] = key
                await self._app(scope, receive, send)
                return
            if key is None:
                detail = (
                    f"this needs an API key with the scope {wanted}, as "
                    "`Authorization: Bearer KEY`; the operator makes one by `firnline key add`"
                )
                answer = _unauthorised(detail, path)
            else:
                detail = f"this API key has no scope {wanted}; it has: {' '.join(key.scopes)}"
                answer = problem(403, detail, path)
        await answer(scope, receive, send)

    def _wait(self, caller: str) -> int:
        """Seconds until the caller may come again; 0: now."""
        for limit in self._rules.limits:
            if not self._limiter.hit(limit, caller):
                resets = self._limiter.get_window_stats(limit, caller).reset_time
                return max(1, math.ceil(resets - time.time()))
        return 0


def _limits(text: str) -> tuple[RateLimitItem, ...]:
    try:
        return tuple(parse_many(text)) if text else ()
    except ValueError:
        raise InputError(
            f"setting FIRNLINE_RATE_LIMIT: {text[:80]!r} is no limit; it takes, for example, "
            "'100/second; 2000/minute'"
        ) from None


def _unauthorised(detail: str, path: str) -> Response:
    """401, each way in in a header of its own: Chromium reads no further than the first scheme."""
    answer = problem(401, detail, path, headers={"WWW-Authenticate": 'Bearer realm="firnline"'})
    answer.headers.append("WWW-Authenticate", 'Basic realm="firnline", charset="UTF-8"')
    return answer


def _presented(headers: Headers) -> str | None:
    """The key that was sent, whatever it's worth; None if there is none."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return given.strip()
    if kind.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, not ASCII at all, or not UTF-8 within
            return ""
    return headers.get("x-api-key")
