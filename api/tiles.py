"""Maps of subsets as pictures and numbers: tiles, previews, values at a point.

``/collections/subsets/items/{id}/assets/{cog_...}/tiles/{grid}/{z}/{x}/{y}.png``, ``/preview.png``
and ``/point/{lon},{lat}``, their grids and colours. Which file is read is for
:mod:`firnline.api.maps` to say, never for the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import attr
import numpy as np
import orjson
from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Engine
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import parameters
from firnline.api.conditional import not_modified
from firnline.api.grids import GRIDS, grid
from firnline.api.links import JSONBytes
from firnline.api.maps import Maps
from firnline.api.painting import RENDITION, Style, colours_of
from firnline.errors import NotFoundError
from firnline.items import SUBSETS
from firnline.settings import Settings

if TYPE_CHECKING:
    from rio_tiler.io import Reader
    from rio_tiler.models import ImageData

PNG = "image/png"
LARGEST_PREVIEW = 2048

_Band = Annotated[
    int | None, Query(ge=1, description="Which period: the band, from 1. Default: see `renders`.")
]
_Rescale = Annotated[
    str | None,
    Query(description="Values of the first and last colour.", examples=["0,500"]),
]
_Colormap = Annotated[
    str | None, Query(description="A matplotlib colour map, in small letters, as turbo or rdbu_r.")
]
_Stretch = Annotated[str, Query(description="`linear`, or `log` for a range that is positive.")]
_Item = Annotated[str, Path(description="Id of a subset")]
_Asset = Annotated[str, Path(description="Key of one of its maps, as cog_v")]


@attr.s
class PreviewParameters(APIRequest):
    """Path and query of a picture of a whole map."""

    item_id: _Item = attr.ib()
    asset: _Asset = attr.ib()
    bidx: _Band = attr.ib(default=None)
    rescale: _Rescale = attr.ib(default=None)
    colormap_name: _Colormap = attr.ib(default=None)
    stretch: _Stretch = attr.ib(default="linear")
    max_size: Annotated[
        int, Query(ge=16, le=LARGEST_PREVIEW, description="Longest side in pixels.")
    ] = attr.ib(default=1024)


@attr.s
class TileParameters(APIRequest):
    """Path and query of a tile."""

    item_id: _Item = attr.ib()
    asset: _Asset = attr.ib()
    tms: Annotated[
        str, Path(description=f"Tile matrix set: {', '.join(GRIDS)}", examples=["EPSG3413"])
    ] = attr.ib()
    z: Annotated[int, Path(ge=0, description="Tile matrix, from the coarsest, 0.")] = attr.ib()
    x: Annotated[int, Path(ge=0, description="Column, from the left.")] = attr.ib()
    y: Annotated[int, Path(ge=0, description="Row, from the top.")] = attr.ib()
    bidx: _Band = attr.ib(default=None)
    rescale: _Rescale = attr.ib(default=None)
    colormap_name: _Colormap = attr.ib(default=None)
    stretch: _Stretch = attr.ib(default="linear")


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of maps."""
    router = APIRouter(tags=["Maps"])
    asset_path = f"/collections/{SUBSETS}/items/{{item_id}}/assets/{{asset}}"
    picture: dict[str, Any] = {
        "response_class": Response,
        "responses": {200: {"description": "The picture", "content": {PNG: {}}}},
    }

    maps = Maps(engine, settings)

    def answer(
        request: Request,
        asked: PreviewParameters | TileParameters,
        image: Callable[[Reader, int], ImageData],
    ) -> Response:
        chosen = maps.find(asked.item_id, asked.asset)
        headers = {
            "Cache-Control": "no-cache",  # a refreshed subset has the same address
            "ETag": f'"{chosen.generation}-{RENDITION}"',
        }
        reply = Response(headers=headers, media_type=PNG)
        known = not_modified(request.headers, reply)
        if known is not None:
            return known
        style = Style.of(asked, chosen.key, chosen.asset)
        with maps.reader(chosen) as reader:
            content = style.painted(image(reader, style.band))
        return Response(content, headers=headers, media_type=PNG)

    @router.get(f"{asset_path}/tiles/{{tms}}/{{z}}/{{x}}/{{y}}.png", summary="A tile", **picture)
    def get_tile(
        request: Request, asked: Annotated[TileParameters, Depends(TileParameters)]
    ) -> Response:
        """256 x 256 pixels of a map, clear where it has no value."""
        parameters.check_query(request, TileParameters)
        tiles = grid(asked.tms)
        deepest = tiles.maxzoom
        if asked.z > deepest or max(asked.x, asked.y) >= 2**asked.z:
            raise NotFoundError(
                f"{asked.tms} has no tile {asked.z}/{asked.x}/{asked.y}; "
                f"z is 0 to {deepest}, x and y 0 to 2^z - 1"
            )

        def image(reader: Reader, band: int) -> ImageData:
            from rasterio.crs import CRS
            from rio_tiler.errors import TileOutsideBounds

            reader.tms = tiles
            try:
                return reader.tile(asked.x, asked.y, asked.z, indexes=band)
            except TileOutsideBounds:
                west, south, east, north = reader.get_geographic_bounds(CRS.from_epsg(4326))
                raise NotFoundError(
                    f"tile {asked.z}/{asked.x}/{asked.y} is outside of the map, which covers "
                    f"{west:.3f}, {south:.3f} to {east:.3f}, {north:.3f} degrees"
                ) from None

        return answer(request, asked, image)

    @router.get(f"{asset_path}/preview.png", summary="A picture of a whole map", **picture)
    def get_preview(
        request: Request, asked: Annotated[PreviewParameters, Depends(PreviewParameters)]
    ) -> Response:
        """The map in its own CRS, at most `max_size` pixels long, clear where it has no value."""
        parameters.check_query(request, PreviewParameters)
        return answer(
            request,
            asked,
            lambda reader, band: reader.preview(max_size=asked.max_size, indexes=band),
        )

    @router.get(f"{asset_path}/point/{{lon}},{{lat}}", summary="Values of a map at a point")
    def get_point(
        item_id: _Item,
        asset: _Asset,
        lon: Annotated[float, Path(ge=-180, le=180, description="Longitude in degrees")],
        lat: Annotated[float, Path(ge=-90, le=90, description="Latitude in degrees")],
    ) -> Response:
        """The pixel's value in each period; null where it has none."""
        from rio_tiler.errors import PointOutsideBounds

        chosen = maps.find(item_id, asset)
        bands = chosen.asset["bands"]
        with maps.reader(chosen) as reader:
            try:
                point = reader.point(lon, lat)
            except PointOutsideBounds:
                raise NotFoundError(f"{lon:g}, {lat:g} lies outside of the map") from None
        values = np.ma.masked_invalid(point.array).tolist()
        document = {
            "coordinates": [lon, lat],
            "values": values,
            "band_names": [band["name"] for band in bands],
            "unit": bands[0].get("unit", "1"),
        }
        return JSONBytes(orjson.dumps(document))

    @router.get("/tileMatrixSets/{tms}", summary="A grid of tiles")
    def get_tile_matrix_set(tms: Annotated[str, Path(description=", ".join(GRIDS))]) -> Response:
        """The tile matrix set (OGC 17-083r4), with its CRS and extent."""
        return JSONBytes(grid(tms).model_dump_json(exclude_none=True, by_alias=True).encode())

    @router.get("/colormaps/{name}", summary="The colours of a colour map")
    def get_colormap(name: Annotated[str, Path(description="As turbo")]) -> Response:
        """256 colours as [red, green, blue, alpha], 0 to 255, for colour bars."""
        colours = colours_of(name)
        return JSONBytes(orjson.dumps([list(map(int, colours[n])) for n in range(256)]))

    return router
