"""A file of a bucket as an answer: whole, or one range of its bytes, as they come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from firnline.api.conditional import not_modified
from firnline.api.errors import problem
from firnline.cache.bucket import BucketPath

_RANGE = re.compile(r"bytes=[ \t]*(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))[ \t]*", re.ASCII)


def bucket_file(
    file: BucketPath, request: Request, media_type: str, headers: Mapping[str, str]
) -> Response:
    """Answer a GET or HEAD (RFC 9110, 14); several ranges are answered by the whole file.

    Raises
    ------
    FileNotFoundError
    StoreError, StoreUnreachableError
    """
    about = file.stat()
    modified = format_datetime(about.modified, usegmt=True)
    said = {
        **headers,
        "Accept-Ranges": "bytes",
        "ETag": about.etag,
        "Last-Modified": modified,
    }
    known = not_modified(request.headers, Response(headers=said, media_type=media_type))
    if known is not None:
        return known
    start, stop, status = 0, about.size, 200
    asked = request.headers.get("range", "")
    if asked and request.headers.get("if-range", about.etag) in (about.etag, modified):
        window = _window(asked, about.size)
        if window is None and "," not in asked:
            detail = "Range is not understood; accepted: bytes=FIRST-LAST"
            return problem(400, detail, request.url.path)
        if window is not None and window[0] >= window[1]:
            detail = "Range is not satisfiable; accepted: bytes=FIRST-LAST within the file"
            unsatisfied = {"Content-Range": f"bytes */{about.size}"}
            return problem(416, detail, request.url.path, headers=unsatisfied)
        if window is not None:
            start, stop = window
            status = 206
    if status == 206:
        said["Content-Range"] = f"bytes {start}-{stop - 1}/{about.size}"
    said["Content-Length"] = str(stop - start)
    if request.method == "HEAD" or start == stop:
        return Response(status_code=status, headers=said, media_type=media_type)
    return StreamingResponse(
        file.blocks(start, stop), status_code=status, headers=said, media_type=media_type
    )


def _window(asked: str, size: int) -> tuple[int, int] | None:
    """First byte, and the one after the last, of one range; None where it isn't one."""
    match = _RANGE.fullmatch(asked)
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        return size - min(int(suffix), size), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
