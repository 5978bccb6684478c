"""Maps of subsets as pictures and numbers: tiles, previews, values at a point.

``/collections/subsets/items/{id}/assets/{cog_...}/tiles/{grid}/{z}/{x}/{y}.png``, ``/preview.png``
and ``/point/{lon},{lat}``. Which file is read comes from the item that the database has, never
from the caller: an asset that is no Cloud-Optimised GeoTIFF of a published subset is not there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
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
from firnline.cache.products import FILES_ROOT
from firnline.cache.renders import render_of
from firnline.database import get_item, reading
from firnline.errors import InputError, NotFoundError
from firnline.items import COG, SUBSETS
from firnline.settings import Settings

if TYPE_CHECKING:
    from rio_tiler.io import Reader
    from rio_tiler.models import ImageData

PNG = "image/png"
LARGEST_PREVIEW = 2048
_RENDITION = 1  # part of the ETags: raised when the same map would look otherwise

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


@dataclass(frozen=True)
class Map:
    """A map of a subset: its file and what the item says of it."""

    key: str
    generation: str
    file: FilePath
    asset: Mapping[str, Any]

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Open the file; opening takes 2 ms, less than keeping handles apart by thread is worth."""
        from rasterio.errors import RasterioIOError
        from rio_tiler.io import Reader

        try:
            opened = Reader(str(self.file))
        except RasterioIOError as error:
            raise NotFoundError(f"the file of {self.key} is no longer stored") from error
        with opened as reader:
            yield reader


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of maps."""
    router = APIRouter(tags=["Maps"])
    asset_path = f"/collections/{SUBSETS}/items/{{item_id}}/assets/{{asset}}"
    picture: dict[str, Any] = {
        "response_class": Response,
        "responses": {200: {"description": "The picture", "content": {PNG: {}}}},
    }

    def find(item_id: str, asset: str) -> Map:
        id = parameters.stored_text(item_id)
        with reading(engine) as connection:
            content = get_item(connection, SUBSETS, id)
        if content is None:
            raise NotFoundError(f"there is no subset {item_id[:80]!r}")
        assets = orjson.loads(content)["assets"]
        maps = [key for key, each in assets.items() if each.get("type") == COG]
        if asset not in maps:
            raise NotFoundError(
                f"subset {id} has no map {asset[:40]!r}; it has: {', '.join(maps) or 'none'}"
            )
        place = str(assets[asset]["href"]).removeprefix(f"{FILES_ROOT}/")
        file = settings.cache_dir / "subsets" / place
        return Map(asset, place.split("/")[1], file, assets[asset])

    def answer(
        request: Request,
        asked: PreviewParameters | TileParameters,
        image: Callable[[Reader, int], ImageData],
    ) -> Response:
        chosen = find(asked.item_id, asked.asset)
        headers = {
            "Cache-Control": "no-cache",  # a refreshed subset has the same address
            "ETag": f'"{chosen.generation}-{_RENDITION}"',
        }
        reply = Response(headers=headers, media_type=PNG)
        known = not_modified(request.headers, reply)
        if known is not None:
            return known
        style = _Style.of(asked, chosen)
        with chosen.reader() as reader:
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

        chosen = find(item_id, asset)
        bands = chosen.asset["bands"]
        with chosen.reader() as reader:
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
        colours = _colours(name)
        return JSONBytes(orjson.dumps([list(map(int, colours[n])) for n in range(256)]))

    return router


@dataclass(frozen=True)
class _Style:
    """What a picture is painted with."""

    band: int
    low: float
    high: float
    log: bool
    colours: dict[int, tuple[int, int, int, int]]

    @classmethod
    def of(cls, asked: PreviewParameters | TileParameters, chosen: Map) -> _Style:
        """What was asked for; the rest as in the item's ``renders``."""
        render = render_of(chosen.key, chosen.asset)
        count = len(chosen.asset["bands"])
        band = render["bidx"][0] if asked.bidx is None else asked.bidx
        if band > count:
            raise InputError(f"bidx {band}: {chosen.key} has {count}, from 1")
        low, high = render["rescale"][0]
        if asked.rescale is not None:
            low, high = _range(asked.rescale)
        if asked.stretch not in ("linear", "log"):
            raise InputError(f"stretch {asked.stretch[:40]!r}: accepted are linear and log")
        log = asked.stretch == "log"
        if log and low <= 0:
            if asked.rescale is not None or low < 0:
                raise InputError("stretch log needs a positive range: give rescale, as 1,500")
            low = high / 1e3
        return cls(band, low, high, log, _colours(asked.colormap_name or render["colormap_name"]))

    def painted(self, image: ImageData) -> bytes:
        """A PNG; clear where there is no value."""
        from rio_tiler.utils import render

        values = np.ma.filled(image.array[0].astype("f4"), np.nan)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log10(np.maximum(values, low))
            low, high = math.log10(low), math.log10(high)
        there = np.isfinite(values)
        shade = np.clip((np.where(there, values, low) - low) * (255 / (high - low)), 0, 255)
        return bytes(
            render(
                np.rint(shade).astype("u1")[None],
                mask=there.astype("u1") * 255,
                img_format="PNG",
                colormap=self.colours,
                zlevel=1,  # a third of the time of the default, for a tenth more bytes
            )
        )


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise InputError("rescale takes two numbers, the lesser first, as 0,500")
    return low, high


def _colours(name: str) -> dict[int, tuple[int, int, int, int]]:
    from rio_tiler.colormap import cmap

    if name not in cmap.list():
        raise InputError(
            f"colour map {name[:40]!r} is not known; accepted are matplotlib's in small letters, "
            "as turbo, viridis, magma_r, rdbu_r"
        )
    colours: dict[int, tuple[int, int, int, int]] = cmap.get(name)  # type: ignore[assignment]
    return colours  # none of matplotlib's is in the other forms that it may have
