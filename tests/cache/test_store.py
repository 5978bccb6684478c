"""A store is not published with holes, nor without what tells readers where it lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyproj import CRS
from sqlalchemy import Engine

from firnline.cache import jobs, store, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.errors import StoreError
from firnline.settings import Settings


def made(sample: Any, engine: Engine, settings: Settings, format: str) -> Path:
    """The image pairs of the sample's area."""
    inputs = {
        "bbox": sample.mirror.aoi, "crs": "EPSG:3413", "variables": ["vx"], "composite": None,
        "strain": False, "format": format,
    }  # fmt: skip
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    assert job.subset is not None, job.message
    folder = subset_place(engine, settings, job.subset)
    assert isinstance(folder, Path)
    return folder / store.PAIRS


def one_less(path: Path) -> None:
    chunks = [file for file in (path / "vx").rglob("*") if file.is_file()]
    max(file for file in chunks if file.name != "zarr.json" and file.name[0] != ".").unlink()


def no_metadata(path: Path) -> None:
    for name in ("zarr.json", ".zmetadata", ".zgroup"):
        (path / name).unlink(missing_ok=True)


@pytest.mark.parametrize("format", ["v3", "v2"])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (one_less, r"vx has (\d+) of (?!\1)\d+ chunks"),
        (no_metadata, "does not open"),
        (lambda path: shutil.rmtree(path / "granule"), r"granule has 0 of 1 chunks"),
    ],
)
def test_a_store_with_holes_is_told(
    sample: Any,
    engine: Engine,
    settings: Settings,
    format: str,
    spoil: Callable[[Path], None],
    says: str,
) -> None:
    path = made(sample, engine, settings, format)
    store.verify(path)
    spoil(path)
    with pytest.raises(StoreError, match=says):
        store.verify(path)


def test_a_job_whose_file_is_lost_publishes_nothing(
    sample: Any, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that went to the disk and is not there any more when the last tile is done."""
    verify = store.verify

    def after(path: Path, *more: Any) -> None:
        one_less(path)
        verify(path, *more)

    monkeypatch.setattr(store, "verify", after)
    with pytest.raises(AssertionError, match=r"vx has \d+ of \d+ chunks"):
        made(sample, engine, settings, "v3")
    assert not list((settings.cache_dir / "subsets").glob("*/*"))


def test_older_gdal_finds_the_crs(sample: Any, engine: Engine, settings: Settings) -> None:
    """Before 3.10 by `_CRS` of each array (GDAL's own convention), since then by CF's mapping."""
    path = made(sample, engine, settings, "v2")
    about = json.loads((path / "vx" / ".zattrs").read_text())
    assert CRS.from_wkt(about["_CRS"]["wkt"]) == CRS.from_epsg(3413)
    assert about["grid_mapping"] == "mapping"
    mapping = json.loads((path / about["grid_mapping"] / ".zattrs").read_text())
    assert CRS.from_wkt(mapping["spatial_ref"]) == CRS.from_cf(mapping) == CRS.from_epsg(3413)
