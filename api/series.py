"""What a subset holds over time at some points, and flowlines of its composites.

``GET /collections/subsets/items/{id}/series`` gives a row for each time and point, as JSON (one
object a row), CSV or Parquet; ``.../flowlines`` gives GeoJSON lines.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import attr
import numpy as np
import orjson
from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Engine
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.instants import parse_datetime
from firnline.api.links import GEOJSON, JSON, Base, JSONBytes
from firnline.api.pairs import PARQUET
from firnline.cache.flowlines import flowlines, to_geojson
from firnline.cache.grid import Method
from firnline.cache.opening import open_stored
from firnline.cache.series import Format, encode, series
from firnline.cache.streamlines import Direction
from firnline.errors import InputError, TooLargeError
from firnline.items import SUBSETS
from firnline.settings import Settings

MEDIA_TYPES = {"json": JSON, "csv": "text/csv; charset=utf-8", "parquet": PARQUET}
MOST_POINTS = 100

_ITEM = Path(description="Id of a subset")
_LON = Query(description="Longitudes in degrees, comma-separated.", examples=["-49.3"])
_LAT = Query(description="Latitudes in degrees, as many.", examples=["69.15"])
_X = Query(description="Instead of lon and lat: x in metres of `crs`, comma-separated.")
_Y = Query(description="y in metres, as many.")
_CRS = Query(description="CRS of x and y, as EPSG:3413; by default that of the subset.")


@attr.s
class SeriesParameters(APIRequest):
    """Path and query of a series."""

    item_id: Annotated[str, _ITEM] = attr.ib()
    lon: Annotated[str | None, _LON] = attr.ib(default=None)
    lat: Annotated[str | None, _LAT] = attr.ib(default=None)
    x: Annotated[str | None, _X] = attr.ib(default=None)
    y: Annotated[str | None, _Y] = attr.ib(default=None)
    crs: Annotated[str | None, _CRS] = attr.ib(default=None)
    dataset: Annotated[str, Query(description="`pairs`, `composite`, `strain` or `trend`.")] = (
        attr.ib(default="pairs")
    )
    variables: Annotated[
        str | None, Query(description="Of the dataset, comma-separated; by default all.")
    ] = attr.ib(default=None)
    datetime: Annotated[
        str | None,
        Query(
            description="Only rows whose mid-date lies in this RFC 3339 instant or interval.",
            examples=["2018-01-01T00:00:00Z/.."],
        ),
    ] = attr.ib(default=None)
    method: Annotated[
        str,
        Query(description="`nearest` pixel, or `bilinear` between the centres of four."),
    ] = attr.ib(default="nearest")
    f: Annotated[str, Query(description="`json`, `csv` or `parquet`.")] = attr.ib(default="json")


@attr.s
class FlowlinesParameters(APIRequest):
    """Path and query of flowlines."""

    item_id: Annotated[str, _ITEM] = attr.ib()
    lon: Annotated[str | None, _LON] = attr.ib(default=None)
    lat: Annotated[str | None, _LAT] = attr.ib(default=None)
    x: Annotated[str | None, _X] = attr.ib(default=None)
    y: Annotated[str | None, _Y] = attr.ib(default=None)
    bbox: Annotated[
        str | None,
        Query(description="Instead of points: west,south,east,north to begin lines all over."),
    ] = attr.ib(default=None)
    spacing: Annotated[
        float | None, Query(gt=0, description="Metres between the beginnings in a bbox.")
    ] = attr.ib(default=None)
    crs: Annotated[
        str | None,
        Query(description="CRS of bbox (default degrees) or of x and y (default the subset's)."),
    ] = attr.ib(default=None)
    time: Annotated[
        str | None,
        Query(description="Which composite, where there are several: that nearest to this date."),
    ] = attr.ib(default=None)
    step: Annotated[
        float | None, Query(gt=0, description="Metres between vertices; default half a pixel.")
    ] = attr.ib(default=None)
    max_length: Annotated[
        float | None, Query(gt=0, description="Metres to go in each direction.")
    ] = attr.ib(default=None)
    direction: Annotated[
        str, Query(description="`both`, `downstream` or `upstream` of the points.")
    ] = attr.ib(default="both")
    min_speed: Annotated[
        float, Query(ge=0, description="Speed in m/year below which a line ends.")
    ] = attr.ib(default=1.0)


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of series and flowlines."""
    router = APIRouter(tags=["Series and flowlines"])
    item = f"/collections/{SUBSETS}/items/{{item_id}}"

    @router.get(
        f"{item}/series",
        summary="Values over time at some points of a subset",
        response_class=Response,
        responses={200: {"content": {kind: {} for kind in MEDIA_TYPES.values()}}},
    )
    def get_series(
        request: Request, asked: Annotated[SeriesParameters, Depends(SeriesParameters)]
    ) -> Response:
        parameters.check_query(request, SeriesParameters)
        method = _one_of("method", asked.method, get_args(Method))
        form: Format = _one_of("f", asked.f, get_args(Format))
        id = parameters.stored_text(asked.item_id)
        with open_stored(engine, settings, id, asked.dataset) as ds:
            frame = series(
                _within(ds, asked.datetime),
                **_points(asked),
                variables=parameters.words(asked.variables),
                method=method,
            )
        if form != "json":
            name = f"{id}-{asked.dataset}.{form}"
            headers = {"Content-Disposition": f'attachment; filename="{name}"'}
            return Response(encode(frame, form), headers=headers, media_type=MEDIA_TYPES[form])
        base = Base.of(request, settings.public_url)
        rest = {
            "item": id,
            "dataset": asked.dataset,
            "units": frame.attrs["units"],
            "numberReturned": len(frame),
            "links": _links(base, id, "series", JSON, request),
        }
        return JSONBytes(b'{"series":' + encode(frame, "json") + b"," + orjson.dumps(rest)[1:])

    @router.get(
        f"{item}/flowlines",
        summary="Flowlines through points, or all over a box, of a subset's composite",
        response_class=Response,
        responses={200: {"content": {GEOJSON: {}}}},
    )
    def get_flowlines(
        request: Request, asked: Annotated[FlowlinesParameters, Depends(FlowlinesParameters)]
    ) -> Response:
        parameters.check_query(request, FlowlinesParameters)
        direction: Direction = _one_of("direction", asked.direction, get_args(Direction))
        id = parameters.stored_text(asked.item_id)
        seeds = _points(asked)
        if asked.bbox is not None:
            seeds["area"] = _box(asked.bbox)
        with open_stored(engine, settings, id, "composite") as ds:
            lines = flowlines(
                ds,
                **seeds,
                spacing=asked.spacing,
                time=asked.time,
                step=asked.step,
                max_length=asked.max_length,
                direction=direction,
                min_speed=asked.min_speed,
            )
        base = Base.of(request, settings.public_url)
        document = to_geojson(lines)
        document["links"] = _links(base, id, "flowlines", GEOJSON, request)
        return JSONBytes(orjson.dumps(document), media_type=GEOJSON)

    return router


def _one_of(name: str, value: str, accepted: tuple[Any, ...]) -> Any:
    if value not in accepted:
        raise InputError(f"{name} {value[:40]!r} is not known; accepted: {', '.join(accepted)}")
    return value


def _box(text: str) -> tuple[float, float, float, float]:
    box = parameters.numbers(text)
    if len(box) != 4:
        raise InputError("bbox takes west,south,east,north")
    west, south, east, north = box
    return west, south, east, north


def _points(asked: SeriesParameters | FlowlinesParameters) -> dict[str, Any]:
    given: dict[str, Any] = {"crs": asked.crs}
    for name in ("lon", "lat", "x", "y"):
        text = getattr(asked, name)
        try:
            given[name] = None if text is None else [float(part) for part in text.split(",")]
        except ValueError:
            raise InputError(
                f"{name} {text[:40]!r}: accepted are numbers, comma-separated"
            ) from None
        if given[name] is not None and len(given[name]) > MOST_POINTS:
            raise TooLargeError(f"{name} takes {MOST_POINTS} values at most")
    return given


def _within(ds: Any, datetime: str | None) -> Any:
    """The layers of a Dataset whose time lies in an interval."""
    if datetime is None:
        return ds
    layer = "mid_date" if "mid_date" in ds.dims else "time"
    times, kept = ds[layer].values, np.ones(ds.sizes[layer], bool)
    start, end = (
        None if t is None else np.datetime64(t.replace(tzinfo=None), "us")
        for t in parse_datetime(datetime)
    )
    kept &= True if start is None else times >= start
    kept &= True if end is None else times <= end
    return ds.isel({layer: np.flatnonzero(kept)})


def _links(base: Base, id: str, what: str, type: str, request: Request) -> list[dict[str, Any]]:
    item = base.item(SUBSETS, id)
    query = f"?{request.url.query}" if request.url.query else ""
    return [
        {"rel": "self", "type": type, "href": f"{item}/{what}{query}"},
        {"rel": "item", "type": GEOJSON, "href": item},
    ]
