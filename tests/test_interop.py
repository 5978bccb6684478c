"""A subset as others open it, over HTTP: QGIS and GDAL, xpystac, odc-stac, rioxarray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import httpx
import numpy as np
import pyogrio
import pystac
import pystac_client
import pytest
import rasterio
import rioxarray
import xarray as xr
from owslib.ogcapi.features import Features
from shapely.geometry import box, shape

import firnline
from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect
from firnline.settings import Settings

pytestmark = [  # what odc-geo and rioxarray call of others
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The 'shapely.ops.transform:DeprecationWarning"),
]

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
PERIOD = "2018-01-01/2019-12-31"


@dataclass(frozen=True)
class Served:
    """An installation with two subsets of one area, behind HTTP."""

    url: str
    item: pystac.Item
    """Zarr v3, with composites of two years and strain rates."""
    folder: Path
    """Its files."""
    older: pystac.Item
    """Zarr v2, the image pairs alone."""
    direct: xr.Dataset
    """The pairs, by `firnline.open`."""


@pytest.fixture(scope="module")
def served(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = sample.settings(tmp_path_factory.mktemp("interop") / "data")
    area = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "datetime": PERIOD}
    direct = firnline.open(settings=settings, **area)
    other = {"composite": None, "strain": False, "format": "v2"}
    engine = connect(settings.database)
    asked = [Request.parse({**area, **more}, settings) for more in ({}, other)]
    done = [worker.finish(engine, settings, jobs.submit(engine, one)) for one in asked]
    folder = subset_place(engine, settings, str(done[0].subset))
    engine.dispose()
    with serving(settings) as url:
        collection = pystac_client.Client.open(url).get_collection("subsets")
        item, older = (collection.get_item(str(job.subset)) for job in done)
        assert item is not None
        assert older is not None
        yield Served(url, item, folder, older, direct)
    direct.close()


@contextmanager
def serving(settings: Settings) -> Iterator[str]:
    """The API in a process of its own: GDAL asks for files while it holds Python's lock."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "firnline.cli", "serve", "--no-worker", "--no-harvest"]
    environment = {**os.environ, "FIRNLINE_DATA_DIR": str(settings.data_dir)}
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, cwd=Path(__file__).parents[1],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, "the server did not start"
            assert time.monotonic() < end, "the server is not ready"
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def link(document: dict[str, Any], rel: str) -> str:
    """Where the one link of a relation leads."""
    (found,) = [each for each in document["links"] if each["rel"] == rel]
    return str(found["href"])


def asked(url: str, **params: str) -> dict[str, Any]:
    """The JSON of a GET, the only method of QGIS's STAC source; it follows no POST links."""
    answer = httpx.get(url, params=params or None)
    assert answer.status_code == 200, answer.text
    assert {"cache-control", "etag"} <= set(answer.headers), "or QGIS shows pages of yesterday"
    return dict(answer.json())


def test_what_qgis_asks_for(served: Served) -> None:
    """The requests of the STAC source of QGIS 3.44, in its order, up to the layers it offers."""
    landing = asked(served.url)
    assert landing["type"] == "Catalog"
    listed = asked(link(landing, "data"), limit="20")
    ids = [each["id"] for each in listed["collections"]]
    assert set(ids) == {"itslive-cubes", "velocity-mosaics", "subsets"}
    for each in listed["collections"]:  # the browser opens a collection by this link
        assert asked(link(each, "items"))["type"] == "FeatureCollection"
    (by_get,) = [each["href"] for each in landing["links"]
                 if each["rel"] == "search" and each.get("method", "GET") == "GET"]  # fmt: skip
    west, south, east, north = served.item.bbox or ()
    found = asked(
        by_get, collections=",".join(ids), bbox=f"{west:g},{south:g},{east:g},{north:g}",
        datetime="2018-01-01T00:00:00.000Z/2019-12-31T00:00:00.000Z",
    )  # fmt: skip
    assert {each["collection"] for each in found["features"]} == {"itslive-cubes", "subsets"}
    (item,) = [each for each in found["features"] if each["id"] == served.item.id]
    assert item["properties"]["title"]
    offered = {key for key, asset in item["assets"].items() if asset["type"] == COG}
    assert {"cog_v", "cog_vx", "cog_vy", "cog_e1", "cog_shear"} <= offered
    for key in offered:
        with rasterio.open(f"/vsicurl/{item['assets'][key]['href']}") as layer:
            assert layer.crs.to_epsg() == 3413
            assert list(layer.transform)[:6] == item["properties"]["proj:transform"]
            assert layer.count == 2


def test_qgis_turns_the_pages(served: Served) -> None:
    landing = asked(served.url)
    by_get = f"{link(landing, 'data').removesuffix('/collections')}/search"
    whole = {each["id"] for each in asked(by_get, limit="100")["features"]}
    seen: list[str] = []
    page = asked(by_get, limit="3")
    while True:
        assert 0 < len(page["features"]) <= 3
        seen += [each["id"] for each in page["features"]]
        following = [each for each in page["links"] if each["rel"] == "next"]
        if not following:
            break
        assert following[0].get("method", "GET") == "GET"
        page = asked(following[0]["href"])
    assert len(whole) == 7
    assert sorted(seen) == sorted(whole)


def test_gdal_and_owslib_read_features(served: Served) -> None:
    """OGC API - Features by two clients that know nothing of STAC."""
    found = asked(f"{served.url}/collections/itslive-cubes/items", limit="100")["features"]
    outlines = {each["id"]: shape(each["geometry"]) for each in found}
    features = Features(served.url)
    names = features.feature_collections()
    assert names == ["itslive-cubes", "subsets", "velocity-mosaics"]
    page = features.collection_items("itslive-cubes", limit=2, filter="proj:code='EPSG:3413'")
    there = sum(each["properties"]["proj:code"] == "EPSG:3413" for each in found)
    assert (page["numberMatched"], page["numberReturned"]) == (there, 2)
    assert "proj:code" in features.collection_queryables("itslive-cubes")["properties"]

    source = f"OAPIF:{served.url}"
    assert [str(name) for name, _ in pyogrio.list_layers(source)] == names
    read = {"layer": "itslive-cubes", "columns": ["id"], "PAGE_SIZE": "2"}
    cubes = pyogrio.read_dataframe(source, **read)
    assert dict(zip(cubes["id"], cubes.geometry, strict=True)) == outlines
    west, south, _, north = min(outline.bounds for outline in outlines.values())
    bounds = (west, south, west + 0.01, north)
    cubes = pyogrio.read_dataframe(source, bbox=bounds, **read)
    here = {id for id, outline in outlines.items() if outline.intersects(box(*bounds))}
    assert set(cubes["id"]) == here
    assert 0 < len(here) < len(outlines)


def test_gdal_opens_a_v2_store_over_http(served: Served) -> None:
    """From GDAL 3.10 on, as QGIS 3.40 and 3.44 have it; with its CRS and missing values."""
    href = served.older.assets["zarr"].href
    with rasterio.open(f'ZARR:"/vsicurl/{href}":/vx') as layer:
        assert layer.crs.to_epsg() == 3413
        assert list(layer.transform)[:6] == served.older.properties["proj:transform"]
        values = layer.read([1, layer.count], masked=True)
    expected = served.direct.vx.isel(mid_date=[0, -1]).values
    np.testing.assert_array_equal(values.astype("f4").filled(np.nan), expected)


def test_xpystac(served: Served) -> None:
    pytest.importorskip("xpystac")
    with xr.open_dataset(served.item.assets["zarr"]) as opened:
        assert opened.mid_date.to_index().is_monotonic_increasing
        xr.testing.assert_equal(opened.vx.load(), served.direct.vx.load())
    with xr.open_dataset(served.item.assets["strain"]) as opened:
        assert {"exx", "e1", "shear"} <= set(opened.data_vars)


def test_odc_stac(served: Served) -> None:
    """By the grid in the item: no grid is given here."""
    odc = pytest.importorskip("odc.stac")
    loaded = odc.load([served.item], bands=["cog_vx", "cog_e1"], chunks={})
    for name in ("vx", "e1"):
        with rasterio.open(served.folder / f"{name}.tif") as local:
            found = loaded[f"cog_{name}"].isel(time=0)
            np.testing.assert_array_equal(found, local.read(1))
            assert found.odc.geobox.affine == local.transform
            assert found.odc.geobox.crs.epsg == local.crs.to_epsg()


def test_rioxarray(served: Served) -> None:
    for name in ("v", "effective"):
        with rioxarray.open_rasterio(served.item.assets[f"cog_{name}"].href, masked=True) as field:
            assert isinstance(field, xr.DataArray)
            assert field.rio.crs.to_epsg() == 3413
            assert field.shape == (2, *served.item.properties["proj:shape"])
            with rasterio.open(served.folder / f"{name}.tif") as local:
                np.testing.assert_array_equal(field, local.read())


def test_speed_is_that_of_its_components(served: Served) -> None:
    """Each read by another library."""
    vx = rioxarray.open_rasterio(served.item.assets["cog_vx"].href)
    with rasterio.open(served.item.assets["cog_vy"].href) as file:
        vy = file.read()
    with xr.open_zarr(served.item.assets["composite"].href) as composite:
        np.testing.assert_allclose(np.hypot(vx, vy), composite.v, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "low", "high", "colours"),
    [
        ("speed", 1, 10_000, ("#30123b", "#7a0403")),  # turbo
        ("strain", -0.1, 0.1, ("#053061", "#67001f")),  # RdBu, reversed
    ],
)
def test_styles(
    served: Served, name: str, low: float, high: float, colours: tuple[str, str]
) -> None:
    asset = served.item.assets[f"style_{name}"]
    answer = httpx.get(asset.href)
    assert asset.roles == ["style"]
    assert answer.headers["content-type"].startswith(str(asset.media_type))
    assert urlsplit(asset.href).path.endswith(f"{name}.qml")
    root = ElementTree.fromstring(answer.text)
    assert root.tag == "qgis"
    (renderer,) = root.iter("rasterrenderer")
    assert renderer.get("type") == "singlebandpseudocolor"
    items = [(float(each.get("value", "")), each.get("color")) for each in root.iter("item")]
    assert [items[0], items[-1]] == [(low, colours[0]), (high, colours[1])]
    values = [value for value, _ in items]
    assert values == sorted(set(values))
    (shader,) = root.iter("colorrampshader")
    assert (float(shader.get("minimumValue", "")), float(shader.get("maximumValue", ""))) == (
        low, high
    )  # fmt: skip
