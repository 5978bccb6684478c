"""GDAL's STACIT driver opens the mosaics that a deep harvest found, through the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import rasterio
from pyproj import CRS
from rasterio.transform import Affine
from shapely.geometry import box

from firnline.database import connect, migrate
from firnline.footprint import Outline
from firnline.indexer import mosaics
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.items import MosaicRecord, mosaic_url
from firnline.service import Service
from firnline.settings import Settings

ANYWHERE: Outline = box(0, 0, 1, 1)
# A cube in the region that decides where its mosaics are, the mosaics' CRS, their north-west.
REGIONS = {
    5: ("EPSG3413_G0120_X450000_Y-2250000", "EPSG:3413", (400_072.5, -2_200_072.5)),
    14: ("EPSG32645_G0120_X750000_Y3350000", "ESRI:102027", (-987_607.5, 102_487.5)),
}
SHAPE = (40, 30)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A catalog of two regions, with the mosaics of vx in 2018 and, of one, 2019."""
    folder = tmp_path_factory.mktemp("stacit")
    root = folder / "mirror"
    root.mkdir()
    with MirrorServer(root) as mirror, pytest.MonkeyPatch.context() as patch:
        features = []
        for number, (cube, crs, corner) in REGIONS.items():
            url = f"{mirror.url}/datacubes/v2/ITS_LIVE_vel_{cube}.zarr"
            features.append(
                {"type": "Feature", "properties": {"zarr_url": url, "RGI_CODE": number}}
            )
            for year in (2018, 2019)[: 1 + (number == 5)]:
                record = MosaicRecord(number, "2.1", year, 2024, "velocity", crs, ANYWHERE)
                write(root / mosaic_url(record, "vx"), crs, corner, year)
        path = folder / "catalog.json"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        patch.setattr(mosaics, "REGIONS", [r for r in mosaics.REGIONS if r.number in REGIONS])
        settings = Settings(
            data_dir=folder,
            allowed_sources=(f"{mirror.url}/",),
            mosaic_roots=(f"{mirror.url}/velocity",),
            _env_file=None,
        )  # type: ignore[call-arg]
        engine = connect(settings.database)
        migrate(engine)
        report = harvest(engine, settings, [str(path)], deep=True)
        assert (report.failed, report.counts["velocity-mosaics"].added) == (0, 3)
        engine.dispose()
        with Service(settings, port=0, harvest=False, worker=False) as service:
            yield service


def values(year: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(SHAPE[0] * SHAPE[1], dtype="f4").reshape(SHAPE) + year


def write(path: Path, crs: str, corner: tuple[float, float], year: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="COG", height=SHAPE[0], width=SHAPE[1], count=1, dtype="float32", crs=crs,
        transform=Affine(120, 0, corner[0], 0, -120, corner[1]), nodata=-32767,
    ) as raster:  # fmt: skip
        raster.write(values(year), 1)


@pytest.mark.parametrize("number", REGIONS)
def test_a_mosaic_is_a_raster(service: Service, number: int) -> None:
    _, crs, corner = REGIONS[number]
    id = f"RGI{number:02d}A_ANNUAL_2018"
    url = f"{service.url}/search?collections=velocity-mosaics&ids={id}"
    (item,) = httpx.get(url).json()["features"]
    assert item["properties"]["proj:code"] == crs
    with rasterio.open(f'STACIT:"{url}":asset=cog_vx') as raster:
        assert raster.shape == SHAPE
        assert raster.transform == Affine(120, 0, corner[0], 0, -120, corner[1])
        assert CRS.from_wkt(raster.crs.to_wkt()).equals(CRS(crs), ignore_axis_order=True)
        np.testing.assert_array_equal(raster.read(1), values(2018))


def test_the_items_of_a_region_are_one_raster(service: Service) -> None:
    """The same grid every year: the one of the last item is on top."""
    url = f"{service.url}/collections/velocity-mosaics/items?limit=10&bbox=-50,60,-30,80"
    assert len(httpx.get(url).json()["features"]) == 2
    with rasterio.open(f'STACIT:"{url}":asset=cog_vx') as raster:
        assert raster.shape == SHAPE
        assert any((raster.read(1) == values(year)).all() for year in (2018, 2019))
