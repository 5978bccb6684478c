"""What others make of a subset: the STAC schemas, GDAL, rio-cogeo, the search API."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from rio_cogeo.cogeo import cog_validate
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import get_item, reading
from firnline.settings import Settings

_spec = importlib.util.spec_from_file_location("schemas", Path(__file__).parents[1] / "schemas.py")
assert _spec is not None
assert _spec.loader is not None
schemas = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(schemas)


def run(engine: Engine, settings: Settings, **inputs: Any) -> tuple[Path, dict[str, Any]]:
    request = Request.parse({"crs": "EPSG:3413", **inputs}, settings)
    job = worker.finish(engine, settings, jobs.submit(engine, request))
    assert job.subset is not None, job.message
    with reading(engine) as connection:
        content = get_item(connection, "subsets", job.subset)
    assert content is not None
    return subset_place(engine, settings, job.subset), json.loads(content)


@pytest.mark.skipif(not schemas.SCHEMAS.is_dir(), reason="the STAC schemas are not here")
@pytest.mark.parametrize(
    "inputs", [{}, {"composite": None, "strain": False, "format": "v2"}, {"pairs": False}]
)
def test_items_are_valid_stac(
    sample: Any, engine: Engine, settings: Settings, inputs: dict[str, Any]
) -> None:
    _, item = run(engine, settings, bbox=sample.mirror.aoi, **inputs)
    # links that the API makes at reply
    item["links"].append({"rel": "collection", "href": "http://x/collections/subsets"})
    assert schemas.StacSchemas().problems(item) == []
    left, bottom, right, top = item["properties"]["proj:bbox"]
    aoi = sample.mirror.aoi
    assert left <= aoi[0]
    assert bottom <= aoi[1]
    assert right >= aoi[2]
    assert top >= aoi[3]
    assert "SYNTHETIC" in item["properties"]["description"]


def test_maps_are_cloud_optimised_and_say_what_they_are(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    folder, item = run(engine, settings, bbox=sample.mirror.aoi, datetime="2018-01-01/2019-12-31")
    maps = {key: asset for key, asset in item["assets"].items() if key.startswith("cog_")}
    velocity, strain = ("v", "vx", "vy", "count"), ("e1", "e2", "effective", "longitudinal")
    contract = (*velocity, *strain, "shear", "divergence")
    assert {f"cog_{name}" for name in contract} <= set(maps)
    stores = {
        name: xr.open_zarr(folder / f"{name}.zarr").load() for name in ("composite", "strain")
    }
    for key, asset in maps.items():
        name = key.removeprefix("cog_")
        path = folder / f"{name}.tif"
        assert cog_validate(path, strict=True, quiet=True) == (True, [], [])
        assert asset["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
        stored = stores["composite" if name in stores["composite"] else "strain"][name]
        with rasterio.open(path) as cog:
            np.testing.assert_array_equal(cog.read(), stored.values)
            assert cog.units == (stored.attrs["units"],) * 2
            assert "SYNTHETIC" in cog.tags()["SOURCE"]
        for band, values in zip(asset["bands"], stored.values, strict=True):
            if values.dtype.kind == "f":
                assert band["statistics"]["mean"] == pytest.approx(float(np.nanmean(values)), 1e-5)
    assert (folder / "thumbnail.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_gdal_sees_the_crs_of_a_v2_store(sample: Any, engine: Engine, settings: Settings) -> None:
    folder, item = run(
        engine, settings, bbox=sample.mirror.aoi, composite=None, strain=False, format="v2"
    )
    values = xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False).vx.values
    with rasterio.open(f'ZARR:"{folder / "pairs.zarr"}":/vx') as dataset:
        assert dataset.crs.to_epsg() == 3413
        assert dataset.nodata == -32767
        assert list(dataset.transform)[:6] == item["properties"]["proj:transform"]
        np.testing.assert_array_equal(dataset.read([1, 2]), values[:2])


@pytest.mark.parametrize(
    ("how", "lineage"),
    [
        ({}, "least-squares plane"),
        ({"method": "logarithmic", "gaps": "strict", "ice_temperature": 263}, "logarithmic strain"),
    ],
)
def test_strain_is_that_of_the_composite(
    sample: Any,
    engine: Engine,
    settings: Settings,
    how: dict[str, Any],
    lineage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made block by block; here at once, with the window that the store says it used."""
    from firnline.cache.strain import FlowLaw, strain_rates

    monkeypatch.setattr("firnline.cache.store.MAP_SIDE", 32)
    monkeypatch.setattr("firnline.cache.store.MAP_TIMES", 3)

    folder, item = run(
        engine, settings, bbox=sample.mirror.aoi, strain={"length_scale": 250, **how}
    )
    assert f"strain rates by {lineage}" in item["properties"]["processing:lineage"]
    options = {name: value for name, value in how.items() if name != "ice_temperature"}
    stress = ["von_mises", "von_mises_tensile"] if "ice_temperature" in how else []
    if stress:
        options["flow_law"] = FlowLaw.at(how["ice_temperature"])
    assert {key for key in item["assets"] if "mises" in key} == {f"cog_{name}" for name in stress}
    composite = xr.open_zarr(folder / "composite.zarr").load()
    strain = xr.open_zarr(folder / "strain.zarr").load()
    assert strain.exx.encoding["shards"] == (3, 32, 32)
    assert strain.attrs["window_radius_pixels"] == 2
    assert strain.attrs["half_length_m"] == 240.0
    assert strain.attrs["method"].startswith(lineage)
    assert strain.attrs.get("flow_law_exponent") == (3 if stress else None)
    for n in range(composite.sizes["time"]):
        layer = composite.isel(time=n)
        again = strain_rates(
            layer.vx.values, layer.vy.values, dx=120, dy=-120, radius=2,
            vx_error=layer.vx_error.values, vy_error=layer.vy_error.values, **options,
        )  # fmt: skip
        assert set(again) == set(strain.data_vars) - {"time_bounds"}
        for name, values in again.items():
            np.testing.assert_array_equal(strain[name].isel(time=n), values)
