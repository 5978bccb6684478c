"""The published files of subsets: ``/files/{subset}/{generation}/{path}``, with byte ranges.

A generation is written once and never changed, so a reply may be kept for good. Only what the
table ``subsets`` knows is served, from below its own folder, whatever the path says. Files of a
bucket go through here as well: keys hold for them, and the bucket needs to be reached by no one
else.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter
from sqlalchemy import Engine, select
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from firnline.api.bucket_files import bucket_file
from firnline.api.conditional import not_modified
from firnline.api.errors import problem
from firnline.cache.eviction import touch
from firnline.cache.places import generation_place
from firnline.database import reading
from firnline.errors import NotFoundError
from firnline.settings import Settings
from firnline.tables import subsets

MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".png": "image/png",
    ".qml": "application/xml",
    ".json": "application/json",
    ".zarray": "application/json",
    ".zattrs": "application/json",
    ".zgroup": "application/json",
    ".zmetadata": "application/json",
}
"""By suffix or, for Zarr v2's metadata, by name; anything else is plain bytes (chunks)."""

CACHE_CONTROL = "public, max-age=31536000, immutable"
_HEADERS = {"Cache-Control": CACHE_CONTROL, "X-Content-Type-Options": "nosniff"}
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}", re.ASCII)


class _PublishedFile(FileResponse):
    """Starlette's file response, whose refusals of a range are problems like all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: Message | None = None

        async def watched(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = message
            if refused is None:
                await send(message)

        await super().__call__(scope, receive, watched)
        if refused is not None:
            kept = {
                name: value
                for name, value in Headers(raw=refused["headers"]).items()
                if name == "content-range"
            }
            detail = "Range is not satisfiable; accepted: bytes=FIRST-LAST within the file"
            await problem(refused["status"], detail, scope["path"], headers=kept)(
                scope, receive, send
            )


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The route of the files."""
    router = APIRouter(tags=["Files"])

    @router.head("/files/{subset}/{generation}/{path:path}", include_in_schema=False)
    @router.get(
        "/files/{subset}/{generation}/{path:path}",
        response_class=Response,
        responses={
            200: {"description": "The file", "content": {"*/*": {}}},
            206: {"description": "The bytes of the Range", "content": {"*/*": {}}},
        },
    )
    def get_file(subset: str, generation: str, path: str, request: Request) -> Response:
        """A file of a subset: whole, or the bytes of a Range (RFC 9110, 14)."""
        missing = NotFoundError(f"there is no file {request.url.path[:300]}")
        if not (_NAME.fullmatch(subset) and _NAME.fullmatch(generation)):
            raise missing
        with reading(engine) as connection:
            known = connection.scalar(select(subsets.c.id).where(subsets.c.id == subset))
        if not known or not _is_normal(path):
            raise missing
        touch(engine, subset)
        folder = generation_place(settings, subset, generation)
        name = path.rpartition("/")[2]
        ending = Path(name).suffix.lower() or name
        media_type = MEDIA_TYPES.get(ending, "application/octet-stream")
        reply: Response
        try:
            if isinstance(folder, Path):
                file = _below(folder, path)
                reply = _PublishedFile(
                    file, headers=_HEADERS, media_type=media_type, stat_result=file.stat()
                )
                reply = not_modified(request.headers, reply) or reply
            else:
                reply = bucket_file(folder / path, request, media_type, _HEADERS)
        except OSError:
            raise missing from None
        return reply

    return router


def _is_normal(path: str) -> bool:
    """Whether a path is in normal form, and one that a file of a subset may have."""
    return (
        len(path) < 1000
        and path.isprintable()
        and not any(part in ("", ".", "..") or "\\" in part for part in path.split("/"))
    )


def _below(folder: Path, path: str) -> Path:
    """The file at a path below a folder.

    What it resolves to, links followed, has to be inside the folder, which itself may not be a link
    that leads out of its subset.

    Raises
    ------
    OSError
        There is none, or it is elsewhere.
    """
    inside = folder.parent.resolve(strict=True) / folder.name
    try:
        file = folder.joinpath(path).resolve(strict=True)
    except RuntimeError:  # links in a circle
        raise FileNotFoundError from None
    if not file.is_relative_to(inside) or not file.is_file():
        raise FileNotFoundError
    return file
