"""The sample's velocity mosaics: one region, static and yearly, as Cloud-Optimised GeoTIFFs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio import Affine

from firnline.indexer.flow import FlowField
from firnline.indexer.sample_cube import SPACING, SYNTHETIC

REGION = "RGI05A"
EPSG = 3413
VERSIONS = {"v2": "v02", "v2.1": "V02.1"}
"""Folder of a version, and how file names spell it."""
ANNUAL = ("count", "v", "vx", "vy", "v_error", "vx_error", "vy_error")
STATIC = (
    *ANNUAL, "landice", "floatingice", "dv_dt", "dvx_dt", "dvy_dt", "outlier_percent",
    *(f"{c}_{k}" for c in ("v", "vx", "vy") for k in ("amp", "amp_error", "phase")),
)  # fmt: skip
UNSEEN = 6
"""Pixels a side of the north-west corner that hold no data."""

Layer = tuple[npt.NDArray[Any], float]


def mosaic_path(version: str, year: int | None, variable: str) -> str:
    """Path of one mosaic below the bucket; year None is the static one."""
    span, label = ("static", "0000") if year is None else ("annual", f"{year:04d}")
    name = f"ITS_LIVE_velocity_120m_{REGION}_{label}_{VERSIONS[version]}_{variable}.tif"
    return f"velocity_mosaic/{version}/{span}/cog/{name}"


def write_mosaics(
    root: Path,
    flow: FlowField,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    years: Sequence[int],
) -> None:
    """Write all mosaics on the lattice of `x` and `y`.

    Parameters
    ----------
    root : Path
        The directory that stands for the bucket.
    flow : FlowField
    x, y : ndarray
        Pixel centres in EPSG:3413; y descending.
    years : sequence of int
        A yearly mosaic is the field at the middle of its year, which is the year's mean.
    """
    transform = Affine(SPACING, 0.0, x[0] - SPACING / 2, 0.0, -SPACING, y[0] + SPACING / 2)
    for year in (None, *years):
        layers = _layers(flow, *np.meshgrid(x, y), year)
        for version in VERSIONS:
            for name in STATIC if year is None else ANNUAL:
                data, nodata = layers[name]
                _write(root / mosaic_path(version, year, name), data, nodata, transform, name)


def _layers(
    flow: FlowField, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], year: int | None
) -> dict[str, Layer]:
    vx, vy = flow.velocity(x, y, None if year is None else year + 0.5)
    speeds = {"v": np.hypot(vx, vy), "vx": vx, "vy": vy}
    shape = x.shape
    out: dict[str, Layer] = {"count": (np.full(shape, 40 if year else 400, np.uint32), 0)}
    for name, values in speeds.items():
        out[name] = (values.astype(np.float32), -32767.0)
        out[f"{name}_error"] = (np.full(shape, 6 if year else 2, np.uint16), 32767)
        if year is None:
            trend = flow.trend * values
            swing = np.rint(np.abs(flow.season * values))
            out[f"d{name}_dt"] = (trend.astype(np.float32), -32767.0)
            out[f"{name}_amp"] = (swing.astype(np.uint16), 32767)
            out[f"{name}_amp_error"] = (np.full(shape, 1, np.uint16), 32767)
            # sin(2 pi t) is highest a quarter into the year.
            out[f"{name}_phase"] = (np.full(shape, 91, np.uint16), 32767)
    if year is None:
        out["landice"] = (np.ones(shape, np.uint8), 0)
        out["floatingice"] = (np.ones(shape, np.uint8), 0)
        out["outlier_percent"] = (np.full(shape, 3, np.uint8), 255)
    for values, nodata in out.values():
        values[:UNSEEN, :UNSEEN] = nodata
    return out


def _write(
    path: Path, data: npt.NDArray[Any], nodata: float, transform: Affine, variable: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=data.shape[0],
        width=data.shape[1],
        count=1,
        dtype=data.dtype,
        crs=EPSG,
        transform=transform,
        nodata=nodata,
        blocksize=512,
        compress="deflate",
        overviews="auto",
    ) as target:
        target.update_tags(
            TIFFTAG_IMAGEDESCRIPTION=f"{variable}. {SYNTHETIC}", synthetic="true", title=SYNTHETIC
        )
        target.write(data, 1)
