"""The application: STAC API, processes, files and health in one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from sqlalchemy import Engine
from stac_fastapi.api.app import StacApi
from stac_fastapi.types.config import ApiSettings
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from firnline.api import (
    aggregate,
    browse,
    errors,
    estimate,
    files,
    harvests,
    health,
    metrics,
    openapi,
    page,
    pairs,
    processes,
    queryables,
    series,
    tiles,
)
from firnline.api.access import Access, Rules
from firnline.api.conformance import CONFORMANCE
from firnline.api.methods import Methods
from firnline.api.middleware import BodyLimit, Compress, Failsafe, SecurityHeaders
from firnline.api.observed import Observed
from firnline.api.parameters import (
    CollectionsParameters,
    ItemsParameters,
    SearchBody,
    SearchParameters,
)
from firnline.api.search import STAC_VERSION, CatalogClient
from firnline.api.summaries import Summariser
from firnline.database import connect
from firnline.keys import Keyring
from firnline.settings import Settings
from firnline.version import __version__

TITLE = "firnline"
DESCRIPTION = (
    "STAC catalog and local cache of NASA's ITS_LIVE glacier velocities: datacubes, mosaics, and "
    "the subsets that were stitched here with their composites and strain rates."
)
# Read by browsers of other sites: what Zarr and COG readers need to see of a reply.
_EXPOSED = [
    "Accept-Ranges",
    "Content-Length",
    "Content-Range",
    "ETag",
    "Last-Modified",
    "Link",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "X-Request-ID",
]

_ALLOWED = [
    "Authorization",
    "Content-Type",
    "If-None-Match",
    "Prefer",
    "Range",
    "X-API-Key",
    "X-Request-ID",
]


def create_app(settings: Settings, engine: Engine | None = None) -> FastAPI:
    """The ASGI application.

    Parameters
    ----------
    settings
        ``database``, ``cache_dir`` and ``public_url`` among them.
    engine
        The database; by default the one of the settings, closed when the application stops.
        Its schema has to be there (``firnline.database.migrate``); ``/readyz`` says whether.

    Raises
    ------
    InputError
        Settings of who may come in that can't be understood.
    """
    rules = Rules.of(settings)
    own = engine is None
    database = engine if engine is not None else connect(settings.database)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        if own:
            database.dispose()

    requests = metrics.Requests()
    app = FastAPI(
        title=TITLE,
        description=DESCRIPTION,
        version=__version__,
        openapi_url="/api",
        docs_url="/api.html",
        redoc_url=None,
        lifespan=lifespan,
        responses={**errors.RESPONSES},
    )
    api = StacApi(
        app=app,
        # Given in full, since it would take what is missing from the environment, unprefixed.
        settings=ApiSettings(
            _env_file=None,
            stac_fastapi_title=TITLE,
            stac_fastapi_description=DESCRIPTION,
            stac_fastapi_version=__version__,
            stac_fastapi_landing_id="firnline",
            enable_response_models=False,
            enable_direct_response=False,
            openapi_url="/api",
            docs_url="/api.html",
            root_path="",
        ),
        client=CatalogClient(
            engine=database,
            settings=settings,
            landing_page_id="firnline",
            base_conformance_classes=[*CONFORMANCE],
        ),
        stac_version=STAC_VERSION,
        search_get_request_model=SearchParameters,
        search_post_request_model=SearchBody,
        collections_get_request_model=CollectionsParameters,
        items_get_request_model=ItemsParameters,
        exceptions={},
        # The last is the outermost: every answer, a refused one too, is readable across origins.
        middlewares=[
            Middleware(BodyLimit),
            Middleware(Access, keyring=Keyring(database), rules=rules),
            Middleware(Failsafe),
            Middleware(Compress),
            Middleware(Methods),
            Middleware(
                CORSMiddleware,
                allow_origins=settings.cors_origins,
                allow_methods=["GET", "HEAD", "POST", "OPTIONS"],
                allow_headers=_ALLOWED,
                expose_headers=_EXPOSED,
                max_age=600,
            ),
            Middleware(SecurityHeaders),
            Middleware(Observed, requests=requests),
        ],
    )
    summariser = Summariser(database)
    for router in (
        queryables.create_router(database, settings, summariser),
        aggregate.create_router(database, settings, summariser),
        browse.create_router(database, settings),
        processes.create_router(database, settings),
        estimate.create_router(database, settings),
        files.create_router(database, settings),
        harvests.create_router(database, settings),
        pairs.create_router(database, settings),
        series.create_router(database, settings),
        tiles.create_router(database, settings),
        health.create_router(database),
        metrics.create_router(database, requests),
        page.create_router(),
    ):
        api.app.include_router(router)
    api.app.router.routes[:0] = page.for_browsers(settings)
    errors.install(api.app)
    openapi.install(api.app)
    return api.app
