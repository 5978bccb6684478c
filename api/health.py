"""/healthz: the process is up. /readyz: it can answer, that is, its database can."""

from __future__ import annotations

import logging
from functools import lru_cache

import orjson
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import APIRouter
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from firnline.api.errors import problem
from firnline.api.links import JSONBytes
from firnline.database import reading
from firnline.errors import DatabaseError

_log = logging.getLogger(__name__)


def create_router(engine: Engine) -> APIRouter:
    """The routes that orchestrators ask."""
    router = APIRouter(tags=["Health"])

    @router.get("/healthz")
    async def healthz() -> Response:
        """The process is up."""
        return JSONBytes(orjson.dumps({"status": "up"}))

    @router.get("/readyz")
    def readyz(request: Request) -> Response:
        """The database is reachable and migrated; 503 with the reason otherwise."""
        reason = _unready(engine)
        if reason is None:
            return JSONBytes(orjson.dumps({"status": "ready"}))
        return problem(503, reason, request.url.path, headers={"Retry-After": "5"})

    return router


def _unready(engine: Engine) -> str | None:
    try:
        with reading(engine) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
    except DatabaseError as error:
        _log.error("not ready: %s", error)
        return str(error).partition(": ")[0]  # the driver's words, with hosts and users, stay here
    if current is None:
        return "the database has no schema yet: run `firnline migrate`"
    if current != _newest_revision():
        return (
            f"the database is at revision {current} and this firnline at {_newest_revision()}: "
            "run `firnline migrate`"
        )
    return None


@lru_cache(maxsize=1)
def _newest_revision() -> str | None:
    config = Config()
    config.set_main_option("script_location", "firnline:migrations")
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config).get_current_head()
