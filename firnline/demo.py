"""The demo: the whole job on a small synthetic ITS_LIVE, offline, through the public doors."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pystac_client
from rich.console import Console
from sqlalchemy import Engine

from firnline import logs
from firnline.database import connect, migrate
from firnline.errors import InputError, JobError
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.report import Report
from firnline.indexer.sample import Mirror, write_mirror
from firnline.service import Service
from firnline.settings import Settings

MARK = "SYNTHETIC.txt"

Shown = Callable[[int, str], None]


def run(
    folder: Path,
    *,
    console: Console,
    progress: Callable[[], AbstractContextManager[Shown]],
    keep_serving: bool = False,
) -> None:
    """Write a mirror, harvest it, search it, materialise an area across two cubes.

    Everything goes through what users use: harvest over HTTP, pystac-client, the OGC process.

    `folder` is begun anew, unless it holds something else.

    Raises
    ------
    FirnlineError
    """

    def say(text: str) -> None:
        console.print(text, markup=False)

    _clear(folder)
    with MirrorServer(folder / "mirror") as server:
        mirror = write_mirror(folder / "mirror", server.url, generation_22=True)
        say(f"1. A SYNTHETIC ITS_LIVE (no measurements): {len(mirror.cubes)} cubes and "
            f"mosaics of {mirror.region}, served at {server.url}")  # fmt: skip
        settings = demo_settings(folder, mirror)
        with Service(settings, port=0, harvest=False) as service:
            report = _harvest(service.engine, settings, [mirror.catalog_url])
            say(f"2. Harvested {report.added} items into {settings.database}")
            found = _search(service.url, mirror)
            say(f"3. pystac-client finds {len(found)} cubes in the area:")
            for id in found:
                say(f"   {id}")
            say("4. Materialising the area across those cubes, with composites and strain rates")
            with progress() as shown:
                item, seconds = _materialise(service.url, mirror, shown)
            again = time.perf_counter()
            _materialise(service.url, mirror, lambda *_: None)
            again = time.perf_counter() - again
            _tell(say, item, seconds, again, _stored(folder, item))
            if keep_serving:
                say(f"\nServing the API at {service.url} until interrupted.")
                _wait()


def _clear(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    mark = folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise InputError(f"{folder} holds other things; give the demo a folder of its own (--dir)")
    for name in ("mirror", "data"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text("Written by `firnline demo`: synthetic data, no measurements.\n")


def demo_settings(folder: Path, mirror: Mirror) -> Settings:
    """Settings that read the sample mirror and keep everything in the demo's folder."""
    return Settings(
        data_dir=folder / "data",
        database_url="",
        cache_url="",
        catalog_urls=(mirror.catalog_url,),
        mosaic_roots=(mirror.mosaic_root,),
        allowed_sources=(f"{mirror.base_url}/",),
        public_url="",
        log_level="WARNING",  # of the worker's process too: the demo tells what it does
        _env_file=None,
    )


def sample_installation(folder: str | Path, **more: Any) -> tuple[Mirror, Settings]:
    """Make a synthetic ITS_LIVE and an installation that has harvested it, for notebooks.

    The sample is served on loopback until the process ends. No measurements.

    Parameters
    ----------
    folder
        Begun anew, unless it holds something else.
    **more
        As for :func:`firnline.indexer.sample.write_mirror`: ``pairs``, ``cubes`` and so on.

    Returns
    -------
    mirror, settings
        What the sample holds, with its flow field as a formula (``mirror.flow``); and what
        ``firnline.open(settings=...)`` takes.

    Raises
    ------
    InputError
        The folder holds something else.
    """
    folder = Path(folder)
    _clear(folder)
    server = MirrorServer(folder / "mirror")
    server.start()
    mirror = write_mirror(folder / "mirror", server.url, **more)
    settings = demo_settings(folder, mirror)
    logs.configure(settings)
    engine = connect(settings.database)
    migrate(engine)
    _harvest(engine, settings, [mirror.catalog_url], mosaics=mirror.region is not None)
    engine.dispose()
    return mirror, settings


def _harvest(engine: Engine, settings: Settings, catalogs: list[str], **more: Any) -> Report:
    """As ``firnline harvest --deep``: the cubes' own metadata and pairs as well."""
    report = harvest(engine, settings, catalogs, deep=True, **more)
    deepen(engine, settings, run=report.run)
    return report


def _search(url: str, mirror: Mirror) -> list[str]:
    from shapely.geometry import box, mapping

    from firnline.footprint import footprint

    catalog = pystac_client.Client.open(url)
    area = mapping(footprint(box(*mirror.aoi), "EPSG:3413"))
    search = catalog.search(collections=["itslive-cubes"], intersects=area)
    return sorted(item.id for item in search.items())


def _materialise(url: str, mirror: Mirror, shown: Shown) -> tuple[dict[str, Any], float]:
    """Run the process to its end; the item and the seconds it took."""
    inputs = {
        "bbox": list(mirror.aoi),
        "crs": "EPSG:3413",
        "datetime": "2018-01-01/2020-12-31",
        "variables": ["vx", "vy", "v_error"],
        "composite": "P1Y",
        "strain": {"length_scale": 500},
    }
    began = time.perf_counter()
    with httpx.Client(timeout=30) as client:
        answer = client.post(
            f"{url}/processes/materialise/execution",
            json={"inputs": inputs},
            headers={"Prefer": "respond-async"},
        )
        answer.raise_for_status()
        job = answer.json()
        while job["status"] in ("accepted", "running"):
            shown(job.get("progress", 0), job.get("message", ""))
            time.sleep(0.1)
            job = client.get(answer.headers["location"]).json()
        if job["status"] != "successful":
            raise JobError(f"job {job['jobID']} {job['status']}: {job.get('message')}")
        seconds = time.perf_counter() - began
    catalog = pystac_client.Client.open(url)
    subset = next(iter(catalog.search(collections=["subsets"]).items()))
    return subset.to_dict(), seconds


def _stored(folder: Path, item: dict[str, Any]) -> Path:
    generation = item["assets"]["zarr"]["href"].split("/")[-2]
    return folder / "data" / "cache" / "subsets" / str(item["id"]) / str(generation)


def _tell(
    say: Callable[[str], None], item: dict[str, Any], seconds: float, again: float, path: Path
) -> None:
    properties = item["properties"]
    say(f"5. Done in {seconds:.1f} s; the same request again: {again * 1e3:.0f} ms")
    say(f"   {item['id']}: {properties['title']}")
    say(
        f"   {properties['firnline:pairs_read']} image pairs read, "
        f"{properties['firnline:pairs_kept']} kept, "
        f"{properties['firnline:pairs_merged']} merged across cubes"
    )
    say(f"   assets: {', '.join(item['assets'])}")
    say("\nOpen it in Python:\n")
    say(f"   import xarray as xr\n   ds = xr.open_zarr({str(path / 'pairs.zarr')!r})")
    say(f"   strain = xr.open_zarr({str(path / 'strain.zarr')!r})")
    say(f"\nLook at it: {path / 'thumbnail.png'}")
    say(f"In QGIS: {path / 'v.tif'}")
    say(f"How things are: FIRNLINE_DATA_DIR={path.parents[3]} firnline status")


def _wait() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
