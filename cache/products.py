"""What lies beside the stores of a subset: maps (COGs), a quicklook, provenance, the STAC item."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from shapely.geometry import box
from sqlalchemy import Engine

from firnline.cache import composite_store, jobs, store
from firnline.cache.fetch import Counts
from firnline.cache.jobs import Job
from firnline.cache.periods import Period, period_label
from firnline.cache.plan import Plan
from firnline.cache.renders import RENDER, render_of
from firnline.cache.strain import FIELDS, METHODS, STRESS_FIELDS
from firnline.cache.styles import STYLES, write_style
from firnline.crs import parse_crs
from firnline.database import put_items, put_subset, writing
from firnline.footprint import Outline, bbox, footprint
from firnline.items import (
    COG,
    DATACUBE,
    PROJECTION,
    STAC_VERSION,
    SUBSETS,
    XARRAY,
    ZARR,
    item_row,
    to_geojson,
)

FILES_ROOT = "firnline:/files"
"""Stored in place of this server's address, which is known only when it replies."""

VELOCITY_MAPS = ("v", "vx", "vy", "v_error", "count")
STRAIN_MAPS = ("e1", "e2", "effective", "longitudinal", "shear", "divergence")

_EXTENSIONS = "https://stac-extensions.github.io"
_FILE = f"{_EXTENSIONS}/file/v2.1.0/schema.json"
_PROCESSING = f"{_EXTENSIONS}/processing/v1.2.0/schema.json"
_SOFTWARE = ("firnline", "zarr", "numcodecs", "numpy", "obstore", "rasterio", "pyproj")


@dataclass(frozen=True)
class Made:
    """The finished products: the item but for its hrefs' generation, and the files."""

    outline: Outline
    properties: Mapping[str, Any]
    assets: Mapping[str, Mapping[str, Any]]
    sources: list[dict[str, Any]]
    size: int


def make(
    plan: Plan, work: Path, spans: tuple[Period, ...], counts: Counts, *, seconds: float
) -> Made:
    """Write maps, quicklook and provenance into `work`; describe all of it."""
    assets: dict[str, dict[str, Any]] = {}
    for key, name, title in (
        ("zarr", store.PAIRS, "Image-pair velocities, stitched (Zarr)"),
        ("composite", store.COMPOSITE, "Velocity composites (Zarr)"),
        ("strain", store.STRAIN, "Strain rates of the composites (Zarr)"),
    ):
        if (work / name).exists():
            assets[key] = {
                "href": name,
                "type": ZARR,
                "title": title,
                "roles": ["data"],
                "xarray:open_kwargs": {"engine": "zarr", "chunks": {}, "consolidated": True},
                "file:size": store.size(work / name),
            }
    if spans:
        assets["composite"]["firnline:composite"] = _composited(plan, work)
        assets |= _maps(plan, work, spans)
        assets |= _styles(plan, work)
        if min(plan.shape[1:]) > 1:
            assets["thumbnail"] = _quicklook(plan, work, spans)
    renders = {key: render_of(key, each) for key, each in assets.items() if each["type"] == COG}
    sources = _sources(plan)
    assets["provenance"] = _provenance(plan, work, sources, counts, seconds)
    for asset in assets.values():
        asset.setdefault("file:size", (work / asset["href"]).stat().st_size)
    bounds = plan.geobox.boundingbox.bbox
    return Made(
        outline=footprint(box(*bounds), plan.crs),
        properties=_properties(plan, spans) | ({"renders": renders} if renders else {}),
        assets=assets,
        sources=sources,
        size=store.size(work),
    )


def register(engine: Engine, job: Job, plan: Plan, made: Made, generation: str) -> None:
    """Publish: the item, the subset's row and the job's end, in one transaction."""
    id = plan.request.subset_id
    root = f"{FILES_ROOT}/{id}/{generation}"
    item = {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [
            *(PROJECTION, DATACUBE, XARRAY, _FILE, _PROCESSING),
            *([RENDER] if "renders" in made.properties else []),
        ],
        "id": id,
        "collection": SUBSETS,
        "geometry": to_geojson(made.outline),
        "bbox": bbox(made.outline),
        "properties": dict(made.properties),
        "assets": {
            key: {**asset, "href": f"{root}/{asset['href']}"} for key, asset in made.assets.items()
        },
        "links": [
            {
                "rel": "derived_from",
                "type": "application/geo+json",
                "href": f"firnline:/collections/{plan.request.collection}/items/{source['id']}",
            }
            for source in made.sources
        ],
    }
    with writing(engine) as connection:
        put_items(connection, [item_row(item, made.outline, source="firnline")])
        put_subset(
            connection,
            id=id,
            request_key=plan.request.key,
            request=json.dumps(plan.request.to_inputs()),
            generation=generation,
            sources=json.dumps(made.sources),
            size=made.size,
        )
        jobs.succeed(connection, job, id)


def _sources(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "id": cube.id,
            "href": cube.source.url,
            "etag": cube.layout.etag,
            "pairs_read": cube.pairs,
            "pairs_kept": int((of_pair >= 0).sum()),
            **(
                {"resampled": plan.request.resampling, "crs": cube.crs}
                if cube.id in plan.resampled
                else {}
            ),
        }
        for cube, of_pair in zip(plan.cubes, plan.layers.of_pair, strict=True)
    ]


def _properties(plan: Plan, spans: tuple[Period, ...]) -> dict[str, Any]:
    layers, request = plan.layers, plan.request
    start, end = (_rfc3339(layers.mid_date[n]) for n in (0, -1))
    left, bottom, right, top = plan.geobox.boundingbox.bbox
    authority, _, code = plan.crs.partition(":")
    system = int(code) if authority == "EPSG" else parse_crs(plan.crs).to_wkt()
    affine = plan.geobox.affine
    dimensions: dict[str, Any] = {
        "mid_date": {"type": "temporal", "extent": [start, end]},
        "y": {
            "type": "spatial",
            "axis": "y",
            "extent": [bottom, top],
            "step": affine.e,
            "reference_system": system,
        },
        "x": {
            "type": "spatial",
            "axis": "x",
            "extent": [left, right],
            "step": affine.a,
            "reference_system": system,
        },
    }
    return {
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "created": _rfc3339(np.datetime64(datetime.now(UTC).replace(tzinfo=None), "us")),
        "title": _title(plan),
        "description": f"{len(layers):,} layers of {layers.read:,} image pairs from "
        f"{len(plan.cubes)} ITS_LIVE cubes, stitched and sorted by mid-date. {plan.attribution}.",
        "proj:code": plan.crs,
        "proj:shape": list(plan.shape[1:]),
        "proj:transform": list(affine)[:6],
        "proj:bbox": [left, bottom, right, top],
        "cube:dimensions": dimensions,
        "cube:variables": {
            name: {
                "variable_type": "data",
                "dimensions": ["mid_date", "y", "x"],
                "data_type": plan.array(name).dtype.name,
                "unit": str(plan.array(name).attributes.get("units", "1")),
            }
            for name in (request.variables if request.pairs else ())
        },
        "processing:level": "L3",
        "processing:software": {"firnline": version("firnline")},
        "processing:lineage": _lineage(plan),
        "firnline:request": request.to_inputs(),
        "firnline:pairs_read": layers.read,
        "firnline:pairs_kept": layers.kept,
        "firnline:pairs_merged": layers.merged,
        "firnline:cubes_resampled": list(plan.resampled),
        "firnline:periods": [period_label(span, request.composite or "") for span in spans],
        "firnline:stale": False,
    }


def _lineage(plan: Plan) -> str:
    strain = plan.request.strain
    composite = f", their weighted {plan.request.composite_method} over time"
    rates = f", strain rates by {METHODS[strain.method]}" if strain else ""
    others = (
        f", those of other lattices resampled ({plan.request.resampling}) and turned"
        if plan.resampled
        else ""
    )
    return (
        f"ITS_LIVE image pairs of neighbouring cubes stitched on their lattice{others}"
        f"{composite if plan.request.composite else ''}{rates}; see the provenance asset"
    )


def _title(plan: Plan) -> str:
    left, bottom, right, top = plan.geobox.boundingbox.bbox
    return (
        f"ITS_LIVE subset {(right - left) / 1e3:.0f} x {(top - bottom) / 1e3:.0f} km, {plan.crs}, "
        f"{str(plan.layers.mid_date[0])[:10]} to {str(plan.layers.mid_date[-1])[:10]}"
    )


def _rfc3339(instant: np.datetime64) -> str:
    return str(instant.astype("M8[us]")) + "Z"


def _composited(plan: Plan, work: Path) -> dict[str, Any]:
    """How composites were made, and how many values went in and were left out."""
    request = plan.request
    counts = {
        f"values_{word}": int(store.read(work / store.COMPOSITE, name).sum(dtype=np.int64))
        for word, name in (("used", "count"), ("rejected", "rejected"), ("too_long", "too_long"))
    }
    return {
        "period": request.composite,
        "method": request.composite_method,
        "max_displacement": request.max_displacement,
        **counts,
    }


def _maps(plan: Plan, work: Path, spans: tuple[Period, ...]) -> dict[str, dict[str, Any]]:
    """One COG a field, one band a period."""
    from firnline.cache.raster import write_cog

    labels = [period_label(span, plan.request.composite or "") for span in spans]
    described = {
        name: (about["long_name"], about["units"]) for name, about in composite_store.FIELDS.items()
    }
    maps = [(store.COMPOSITE, name) for name in VELOCITY_MAPS]
    if plan.request.strain:
        about = {name: FIELDS[name] for name in STRAIN_MAPS}
        about |= STRESS_FIELDS if plan.request.strain.flow_law else {}
        described |= {name: (text["long_name"], text["units"]) for name, text in about.items()}
        maps += [(store.STRAIN, name) for name in about]
    assets = {}
    for origin, name in maps:
        long_name, units = described[name]
        values = store.read(work / origin, name)
        nodata = 0 if name == "count" else float("nan")
        statistics = write_cog(
            work / f"{name}.tif",
            values,
            transform=plan.geobox.affine,
            crs=plan.crs,
            nodata=nodata,
            names=[f"{name} {label}" for label in labels],
            units=units,
            long_name=long_name,
            tags={
                "TITLE": _title(plan),
                "SOURCE": plan.attribution,
                "SOFTWARE": f"firnline {version('firnline')}",
            },
        )
        assets[f"cog_{name}"] = {
            "href": f"{name}.tif",
            "type": COG,
            "title": long_name[:1].upper() + long_name[1:],
            "roles": ["data", "cog"],
            "bands": [
                {
                    "name": f"{name} {label}",
                    "data_type": values.dtype.name,
                    "nodata": 0 if name == "count" else "nan",
                    "unit": units,
                    "statistics": one,
                }
                for label, one in zip(labels, statistics, strict=True)
            ],
        }
    return assets


def _styles(plan: Plan, work: Path) -> dict[str, dict[str, Any]]:
    """Styles for QGIS."""
    return {
        f"style_{name}": {
            "href": f"{name}.qml",
            "type": "application/xml",
            "title": f"QGIS style. {write_style(work / f'{name}.qml', name)}",
            "roles": ["style"],
        }
        for name in STYLES
        if name != "strain" or plan.request.strain
    }


def _quicklook(plan: Plan, work: Path, spans: tuple[Period, ...]) -> dict[str, Any]:
    from firnline.cache.quicklook import write_quicklook

    speed = store.read(work / store.COMPOSITE, "v")
    filled = np.isfinite(speed).sum(axis=(1, 2))
    fullest = len(filled) - 1 - int(filled[::-1].argmax())  # the latest of them
    fields = {name: store.read(work / store.COMPOSITE, name)[fullest] for name in ("vx", "vy")}
    if plan.request.strain:
        for name in ("longitudinal", "e1", "e2", "theta"):
            fields[name] = store.read(work / store.STRAIN, name)[fullest]
    write_quicklook(
        work / "thumbnail.png",
        **fields,
        x=plan.x,
        y=plan.y,
        crs=plan.crs,
        title=f"ITS_LIVE velocity{' and strain rate' if plan.request.strain else ''}, "
        f"{period_label(spans[fullest], plan.request.composite or '')}",
        subtitle=f"{len(plan.layers):,} image pairs of {len(plan.cubes)} cubes",
        credit=plan.attribution,
    )
    return {
        "href": "thumbnail.png",
        "type": "image/png",
        "title": "Speed with flow arrows, and strain rate",
        "roles": ["thumbnail", "overview"],
    }


def _provenance(
    plan: Plan, work: Path, sources: list[dict[str, Any]], counts: Counts, seconds: float
) -> dict[str, Any]:
    """What was asked, read and done, and a checksum of every file."""
    layers = plan.layers
    document = {
        "request": plan.request.to_inputs(),
        "request_key": plan.request.key,
        "crs": plan.crs,
        "grid": {
            "shape": list(plan.shape),
            "transform": list(plan.geobox.affine)[:6],
        },
        "sources": sources,
        "pairs": {"read": layers.read, "kept": layers.kept, "merged": layers.merged},
        "values": {"conflicting": counts.conflicts, "speeds_recomputed": counts.recomputed},
        "fetched": {
            "requests": counts.requests,
            "bytes": counts.bytes,
            "chunks_decoded": counts.chunks,
            "chunks_absent": counts.absent,
            "reused": counts.reused,
        },
        "seconds": round(seconds, 3),
        "made": datetime.now(UTC).isoformat(),
        "software": {name: version(name) for name in _SOFTWARE}
        | {"python": platform.python_version()},
        "files": {
            path: {"size": size, "sha256": digest} for path, size, digest in store.files(work)
        },
    }
    (work / "provenance.json").write_text(json.dumps(document, indent=1))
    return {
        "href": "provenance.json",
        "type": "application/json",
        "title": "Request, sources, counts, software and checksums",
        "roles": ["metadata"],
    }
