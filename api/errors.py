"""From errors to answers: one table of HTTP statuses, one form (RFC 9457 problem details).

Every error leaves as ``application/problem+json`` with ``type, title, status, detail, instance``,
which is also what OGC API - Processes asks of its exceptions (schema ``exception.yaml``). The
detail of a 4xx names the parameter and says what it takes. That of a 5xx of our own says nothing
about the inside: what happened is in the log.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from firnline import errors

MEDIA_TYPE = "application/problem+json"

STATUS: Mapping[type[Exception], int] = {
    errors.InputError: 400,
    errors.NotFoundError: 404,
    errors.ConflictError: 409,
    errors.ForbiddenError: 403,
    errors.QuotaError: 429,
    errors.SourceError: 502,
    errors.StoreError: 500,
    errors.StoreUnreachableError: 503,
    errors.DatabaseError: 503,
    errors.JobError: 500,
    errors.JobDismissedError: 409,
    errors.FirnlineError: 500,
}
"""Status of each class of error; a class that is not here has that of its nearest ancestor."""

PROBLEM: Mapping[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "description": "URI of the kind, about:blank if of none."},
        "title": {"type": "string", "description": "The kind in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What was wrong, and what is accepted."},
        "instance": {"type": "string", "description": "Path of the request."},
        "error": {"type": "string", "description": "Class of the error."},
        "errors": {
            "type": "array",
            "description": "What was wrong in each parameter.",
            "items": {
                "type": "object",
                "required": ["parameter", "in", "reason"],
                "properties": {name: {"type": "string"} for name in ("parameter", "in", "reason")},
            },
        },
    },
}
"""JSON Schema of problem details (RFC 9457, appendix A), as they are here."""

RESPONSES: Mapping[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {MEDIA_TYPE: {"schema": PROBLEM}}}
    for status, text in (("4XX", "Refused, with the reason"), ("5XX", "Failed"))
}
"""What any operation may answer, for the OpenAPI description."""

_TYPE = re.compile(r"(?:list|dict|str|bool|int|float)(?:\[.*\])?")  # as pydantic names them
_log = logging.getLogger(__name__)
_INTERNAL = "something went wrong in the server; its log has the details"
_AWAY = "{} does not answer now; try again in a moment"


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    for ancestor in type(error).__mro__:
        if ancestor in STATUS:
            return STATUS[ancestor]
    return 500


def problem(
    status: int,
    detail: str,
    instance: str,
    *,
    type: str = "about:blank",
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> Response:
    """A problem details answer.

    Parameters
    ----------
    instance
        Path of the request.
    type
        URI of the kind of problem; ``about:blank`` when the status says it all (RFC 9457, 4.2.1).
    more
        Extension members (RFC 9457, 3.2).
    """
    body = {
        "type": type,
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        **more,
    }
    return Response(orjson.dumps(_readable(body)), status, headers, MEDIA_TYPE)


def _readable(value: Any) -> Any:
    """As it can be sent: half of a surrogate pair, as JSON may ask for, is no UTF-8."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {name: _readable(each) for name, each in value.items()}
    return [_readable(each) for each in value] if isinstance(value, list) else value


def failure(error: Exception, instance: str) -> Response:
    """The answer to any error that a handler or the outermost guard has caught."""
    status = status_of(error)
    if status == 503:
        _log.error("%s failed: %s", instance, error)  # an outage: its stack tells nothing
        what = "catalog's database" if isinstance(error, errors.DatabaseError) else "subsets' store"
        return problem(status, _AWAY.format(f"the {what}"), instance, headers={"Retry-After": "5"})
    if status >= 500:
        _log.error("%s failed", instance, exc_info=error)
    if status == 500:
        return problem(status, _INTERNAL, instance)
    return problem(status, str(error), instance, error=type(error).__name__)


def install(app: FastAPI) -> None:
    """Register the handlers; after StacApi, whose own ones they replace."""
    app.add_exception_handler(errors.FirnlineError, _on_firnline_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)


async def _on_firnline_error(request: Request, error: Exception) -> Response:
    return failure(error, request.url.path)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":  # the router's own words
        detail = f"there is nothing at {request.url.path[:200]}"
    elif detail == "There was an error parsing the body":  # FastAPI's, of what its parser raised
        detail = "body: JSON is accepted, but not so deep, nor numbers so long, and in UTF-8"
    elif error.status_code == 405:
        detail = f"{request.method[:20]} is not possible at {request.url.path[:200]}"
    return problem(error.status_code, detail, request.url.path, headers=error.headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """400, not FastAPI's 422: OGC API - Features, /req/core/query-param-invalid."""
    assert isinstance(error, RequestValidationError)
    found = [_described(each) for each in error.errors()][:20]
    detail = "; ".join(f"{each['parameter']}: {each['reason']}" for each in found)
    return problem(400, detail, request.url.path, errors=found)


def _described(error: Mapping[str, Any]) -> dict[str, str]:
    # The input itself is left out: it may be large, and NaN is not JSON.
    source, *where = error["loc"]
    if error["type"] == "json_invalid":
        return {"parameter": "body", "in": "body", "reason": f"not JSON, at byte {where[0]}"}
    reason = error["msg"]
    if error["type"] == "extra_forbidden":
        reason = "there is no such parameter"
    else:  # of alternatives each is told, with its type behind the name
        where = [part for part in where if not _TYPE.fullmatch(str(part))]
    if error["type"] == "model_attributes_type":
        reason = "a JSON object is accepted"
        if not where:  # FastAPI does not parse what does not say that it is JSON
            reason += ", with Content-Type: application/json"
    return {"parameter": ".".join(map(str, where)) or source, "in": source, "reason": reason}
