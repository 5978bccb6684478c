"""``GET /estimate``: what a materialisation would take, before it is asked for."""

from __future__ import annotations

from typing import Annotated

import attr
import orjson
from fastapi import APIRouter, Depends, Query
from sqlalchemy import Engine
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.links import JSONBytes
from firnline.cache.estimate import estimate
from firnline.cache.request import Request
from firnline.errors import InputError
from firnline.settings import Settings


@attr.s
class EstimateParameters(APIRequest):
    """Query of an estimate: inputs of the process, as texts."""

    bbox: Annotated[
        str,
        Query(
            description="west,south,east,north in the units of `crs`.",
            examples=["-174200,-2284200,-165800,-2275800"],
        ),
    ] = attr.ib()
    crs: Annotated[str, Query(description="Of the bbox.", examples=["EPSG:3413"])] = attr.ib(
        default="OGC:CRS84"
    )
    datetime: Annotated[
        str, Query(description="Interval of the mid-dates.", examples=["2018-01-01/2020-12-31"])
    ] = attr.ib(default="../..")
    satellites: Annotated[
        str | None, Query(description="Comma-separated, as L8,S2.", examples=["L8"])
    ] = attr.ib(default=None)
    dt_days: Annotated[
        str | None,
        Query(description="least,most days between the images.", examples=["0,60"]),
    ] = attr.ib(default=None)
    min_valid: Annotated[
        str | None,
        Query(description="Least per cent of the ground that a pair has data on.", examples=["20"]),
    ] = attr.ib(default=None)


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The route of the estimate."""
    router = APIRouter(tags=["Processes"])

    @router.get("/estimate", summary="What a materialisation would take")
    def get_estimate(
        request: HTTPRequest, asked: Annotated[EstimateParameters, Depends(EstimateParameters)]
    ) -> Response:
        """Grid, cubes and image pairs, by month, of an area; from the catalog alone.

        A pair that lies in several cubes counts in each. `unread` are the cubes whose pairs the
        catalog does not know (no deep harvest), which are not counted.
        """
        parameters.check_query(request, EstimateParameters)
        inputs = {
            "bbox": _numbers("bbox", asked.bbox),
            "crs": asked.crs,
            "datetime": asked.datetime,
            "satellites": parameters.words(asked.satellites) or [],
            "dt_days": None if asked.dt_days is None else _numbers("dt_days", asked.dt_days),
            "min_valid": asked.min_valid,
        }
        found = estimate(engine, Request.parse(inputs, settings))
        return JSONBytes(orjson.dumps(found.summary()))

    return router


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{name} {text[:80]!r}: accepted are numbers, comma-separated") from None
