"""What lies beside the stores of a subset: maps (COGs), a quicklook, provenance, the STAC item."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from shapely.geometry import box
from sqlalchemy import Engine

from firnline.cache import composite_store, jobs, store
from firnline.cache.containment import Container
from firnline.cache.counts import Counts
from firnline.cache.drawing import draw
from firnline.cache.jobs import Job
from firnline.cache.periods import Period, period_label
from firnline.cache.places import Stored
from firnline.cache.plan import Plan
from firnline.cache.renders import RENDER, render_of
from firnline.cache.request import Request
from firnline.cache.strain import METHODS
from firnline.cache.target import Target
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

_EXTENSIONS = "https://stac-extensions.github.io"
_FILE = f"{_EXTENSIONS}/file/v2.1.0/schema.json"
_PROCESSING = f"{_EXTENSIONS}/processing/v1.2.0/schema.json"
_SOFTWARE = ("firnline", "zarr", "numcodecs", "numpy", "obstore", "rasterio", "pyproj")


NOWHERE: Mapping[str, Stored] = MappingProxyType({})


@dataclass(frozen=True)
class Made:
    """The finished products: the item but for its hrefs' generation, and the files."""

    outline: Outline
    properties: Mapping[str, Any]
    assets: Mapping[str, Mapping[str, Any]]
    sources: list[dict[str, Any]]
    size: int
    container: str | None = None
    """Id of the subset that it was read from."""


def make(
    plan: Plan,
    work: Path,
    spans: tuple[Period, ...],
    counts: Counts,
    *,
    seconds: float,
    memory_limit: int,
    container: Container | None = None,
    elsewhere: Mapping[str, Stored] = NOWHERE,
) -> Made:
    """Write maps, quicklook and provenance into `work`; describe all of it.

    `container` is the subset that the velocity was read from, if it wasn't the cubes; `elsewhere`
    are the files that are in place already, not in `work`, by their path.
    """
    assets = store_assets(
        work,
        elsewhere,
        zarr=(store.PAIRS, "Image-pair velocities, stitched (Zarr)"),
        composite=(store.COMPOSITE, "Velocity composites (Zarr)"),
        strain=(store.STRAIN, "Strain rates of the composites (Zarr)"),
    )
    title = _title(plan)
    if spans:
        assets["composite"]["firnline:composite"] = _composited(plan, work)
        assets |= draw(
            plan,
            work,
            memory_limit,
            title=title,
            subtitle=f"{len(plan.layers):,} image pairs of {len(plan.cubes)} cubes",
            spans=spans,
            fields=composite_store.FIELDS,
        )
    sources = _sources(plan)
    assets["provenance"] = _provenance(plan, work, sources, counts, seconds, container, elsewhere)
    made = finished(plan, work, _properties(plan, spans), assets, sources, elsewhere)
    return made if container is None else replace(made, container=container.id)


def store_assets(
    work: Path, elsewhere: Mapping[str, Stored] = NOWHERE, **stores: tuple[str, str]
) -> dict[str, dict[str, Any]]:
    """The assets of those stores that are there: each key's folder, and its title."""
    return {
        key: {
            "href": name,
            "type": ZARR,
            "title": title,
            "roles": ["data"],
            "xarray:open_kwargs": {"engine": "zarr", "chunks": {}, "consolidated": True},
            "file:size": store.size(work / name)
            + sum(file.size for path, file in elsewhere.items() if path.startswith(f"{name}/")),
        }
        for key, (name, title) in stores.items()
        if (work / name).exists()
    }


def finished(
    plan: Target,
    work: Path,
    properties: Mapping[str, Any],
    assets: dict[str, dict[str, Any]],
    sources: list[dict[str, Any]],
    elsewhere: Mapping[str, Stored] = NOWHERE,
) -> Made:
    """All that was made, with what can be told once the files are there."""
    for asset in assets.values():
        asset.setdefault("file:size", (work / asset["href"]).stat().st_size)
    renders = {key: render_of(key, each) for key, each in assets.items() if each["type"] == COG}
    return Made(
        outline=footprint(box(*plan.geobox.boundingbox.bbox), plan.crs),
        properties={**properties, **({"renders": renders} if renders else {})},
        assets=assets,
        sources=sources,
        size=store.size(work) + sum(file.size for file in elsewhere.values()),
    )


def with_record(made: Made, size: int) -> Made:
    """With the bytes of the provenance that was published: of several that were made one stays."""
    record = {**made.assets["provenance"], "file:size": size}
    return replace(made, assets={**made.assets, "provenance": record})


def register(engine: Engine, job: Job, request: Request, made: Made, generation: str) -> None:
    """Publish: the item, the subset's row and the job's end, in one transaction."""
    id = request.subset_id
    root = f"{FILES_ROOT}/{id}/{generation}"
    ids = dict.fromkeys(source["id"] for source in made.sources)
    origins: list[tuple[str, str]] = [(request.collection, origin) for origin in ids]
    if made.container is not None:
        origins.append((SUBSETS, made.container))
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
                "href": f"firnline:/collections/{collection}/items/{origin}",
            }
            for collection, origin in origins
        ],
    }
    with writing(engine) as connection:
        put_items(connection, [item_row(item, made.outline, source="firnline")])
        put_subset(
            connection,
            id=id,
            request_key=request.key,
            request=json.dumps(request.to_inputs()),
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
            **({"read": cube.layout.date} if cube.layout.date else {}),
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
    start, end = (rfc3339(layers.mid_date[n]) for n in (0, -1))
    return {
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "created": rfc3339(np.datetime64(datetime.now(UTC).replace(tzinfo=None), "us")),
        "title": _title(plan),
        "description": f"{len(layers):,} layers of {layers.read:,} image pairs from "
        f"{len(plan.cubes)} ITS_LIVE cubes, stitched and sorted by mid-date. {plan.attribution}.",
        **projection(plan),
        "cube:dimensions": dimensions(plan, "mid_date", start, end),
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


def projection(plan: Target) -> dict[str, Any]:
    """The properties of the projection extension."""
    authority, _, _ = plan.crs.partition(":")
    # few clients know the codes of other authorities
    wkt = {} if authority == "EPSG" else {"proj:wkt2": parse_crs(plan.crs).to_wkt()}
    return {
        "proj:code": plan.crs,
        **wkt,
        "proj:shape": list(plan.shape[1:]),
        "proj:transform": list(plan.geobox.affine)[:6],
        "proj:bbox": list(plan.geobox.boundingbox.bbox),
    }


def dimensions(plan: Target, time: str, start: str, end: str) -> dict[str, Any]:
    """``cube:dimensions`` of a store with a dimension of this name for time."""
    left, bottom, right, top = plan.geobox.boundingbox.bbox
    authority, _, code = plan.crs.partition(":")
    system = int(code) if authority == "EPSG" else parse_crs(plan.crs).to_wkt()
    return {
        time: {"type": "temporal", "extent": [start, end]},
        **{
            axis: {
                "type": "spatial",
                "axis": axis,
                "extent": extent,
                "step": step,
                "reference_system": system,
            }
            for axis, extent, step in (
                ("y", [bottom, top], plan.geobox.affine.e),
                ("x", [left, right], plan.geobox.affine.a),
            )
        },
    }


def _lineage(plan: Plan) -> str:
    composite = f", their weighted {plan.request.composite_method} over time"
    others = (
        f", those of other lattices resampled ({plan.request.resampling}) and turned"
        if plan.resampled
        else ""
    )
    return (
        f"ITS_LIVE image pairs of neighbouring cubes stitched on their lattice{others}"
        f"{composite if plan.request.composite else ''}{strain_lineage(plan.request)}"
        "; see the provenance asset"
    )


def strain_lineage(request: Request) -> str:
    """What is said of strain rates at the end of a lineage."""
    return f", strain rates by {METHODS[request.strain.method]}" if request.strain else ""


def _title(plan: Plan) -> str:
    first, last = (str(plan.layers.mid_date[n])[:10] for n in (0, -1))
    return f"ITS_LIVE subset {extent_km(plan)}, {plan.crs}, {first} to {last}"


def extent_km(plan: Target) -> str:
    """Width and height for a title."""
    left, bottom, right, top = plan.geobox.boundingbox.bbox
    return f"{(right - left) / 1e3:.0f} x {(top - bottom) / 1e3:.0f} km"


def rfc3339(instant: np.datetime64) -> str:
    """An instant as STAC has it."""
    return str(instant.astype("M8[us]")) + "Z"


def _composited(plan: Plan, work: Path) -> dict[str, Any]:
    """How composites were made, and how many values went in and were left out."""
    request = plan.request
    counts = {
        f"values_{word}": _total(store.opened(work / store.COMPOSITE, name))
        for word, name in (("used", "count"), ("rejected", "rejected"), ("too_long", "too_long"))
    }
    return {
        "period": request.composite,
        "method": request.composite_method,
        "max_displacement": request.max_displacement,
        **counts,
    }


def _total(field: Any) -> int:
    return sum(int(field[block].sum(dtype=np.int64)) for block in store.field_blocks(field.shape))


def _provenance(
    plan: Plan,
    work: Path,
    sources: list[dict[str, Any]],
    counts: Counts,
    seconds: float,
    container: Container | None,
    elsewhere: Mapping[str, Stored],
) -> dict[str, Any]:
    layers = plan.layers
    origin = container and {"subset": container.id, "generation": container.generation}
    pairs = {"read": layers.read, "kept": layers.kept, "merged": layers.merged}
    values = {"conflicting": counts.conflicts, "speeds_recomputed": counts.recomputed}
    more = {"read_from": origin, "pairs": pairs, "values": values}
    return provenance(plan, work, sources, counts, seconds, elsewhere, **more)


def provenance(
    plan: Target,
    work: Path,
    sources: list[dict[str, Any]],
    counts: Counts,
    seconds: float,
    elsewhere: Mapping[str, Stored] = NOWHERE,
    **more: Any,
) -> dict[str, Any]:
    """What was asked, read and done, and a checksum of every file: the asset."""
    document = {
        "request": plan.request.to_inputs(),
        "request_key": plan.request.key,
        "crs": plan.crs,
        "grid": {
            "shape": list(plan.shape),
            "transform": list(plan.geobox.affine)[:6],
        },
        "sources": sources,
        **more,
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
    }
    # a large subset of small tiles has a hundred thousand files: written as they are read
    aside = work.parent / "provenance.json"
    (work / aside.name).unlink(missing_ok=True)  # of an attempt that ended here
    with aside.open("w") as out:
        out.write(json.dumps(document, indent=1).removesuffix("\n}"))
        out.write(',\n "files": {')
        for n, (path, stored) in enumerate(chain(store.files(work), elsewhere.items())):
            one = json.dumps(stored._asdict())
            out.write(f"{',' if n else ''}\n  {json.dumps(path)}: {one}")
        out.write("\n }\n}")
    aside.replace(work / aside.name)
    return {
        "href": "provenance.json",
        "type": "application/json",
        "title": "Request, sources, counts, software and checksums",
        "roles": ["metadata"],
    }
