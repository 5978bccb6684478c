"""``materialise``: the job of the HTTP process, from the shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from firnline.cli.console import Json, err, percent, print_json, print_pairs
from firnline.cli.installation import load_settings, open_database
from firnline.cli.interrupt import stop_on_signal
from firnline.errors import InputError


def materialise(
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="West south east north, in the units of --crs.", metavar="W S E N"),
    ] = None,
    aoi: Annotated[
        Path | None, typer.Option(help="File with the area: GeoJSON, GeoPackage, Shapefile.")
    ] = None,
    crs: Annotated[
        str | None, typer.Option(help="CRS of --bbox (default OGC:CRS84), as EPSG:3413.")
    ] = None,
    datetime: Annotated[
        str, typer.Option(help="Period of the pairs' mid-dates, as 2018-01-01/2020-12-31.")
    ] = "../..",
    variables: Annotated[str, typer.Option(help="Comma-separated.")] = "vx,vy,v_error",
    collection: Annotated[
        str, typer.Option(help="itslive-cubes or velocity-mosaics.")
    ] = "itslive-cubes",
    satellites: Annotated[str, typer.Option(help="Comma-separated, as L8,S2.")] = "",
    min_dt: Annotated[float | None, typer.Option(help="Least days between the images.")] = None,
    max_dt: Annotated[float | None, typer.Option(help="Most days between the images.")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Most error of a pair's vx and vy, m/year.")
    ] = None,
    min_valid: Annotated[
        float | None, typer.Option(help="Least per cent of the ground that a pair has data on.")
    ] = None,
    composite: Annotated[
        str,
        typer.Option(help="year, month, season, all, an ISO 8601 period as P3M or P16D, or none."),
    ] = "P1Y",
    composite_method: Annotated[
        str, typer.Option(help="Weighted median of the pairs, or their weighted mean.")
    ] = "median",
    max_displacement: Annotated[
        float | None,
        typer.Option(
            help="Leave pairs out of composites between whose images the ice moves farther, metres."
        ),
    ] = None,
    strain: Annotated[bool, typer.Option(help="Strain rates of the composites.")] = True,
    length_scale: Annotated[
        float, typer.Option(help="Half length of the strain window, metres.")
    ] = 500.0,
    strain_method: Annotated[
        str, typer.Option(help="plane, nominal or logarithmic strain rates.")
    ] = "plane",
    strain_gaps: Annotated[
        str, typer.Option(help="Where pixels are missing: fit to the others, or strict.")
    ] = "fit",
    ice_temperature: Annotated[
        float | None, typer.Option(help="Kelvin: von Mises stresses at this temperature.")
    ] = None,
    out_crs: Annotated[str | None, typer.Option(help="CRS of the result.")] = None,
    resampling: Annotated[
        str, typer.Option(help="Of cubes in other CRSs: nearest or bilinear.")
    ] = "nearest",
    recompute_speed: Annotated[
        bool, typer.Option("--recompute-speed", help="v from vx and vy where it is saturated.")
    ] = False,
    format: Annotated[str, typer.Option(help="Zarr version: v3 or v2.")] = "v3",
    pairs: Annotated[bool, typer.Option(help="Store the image pairs.")] = True,
    priority: Annotated[
        int, typer.Option(help="Jobs of a higher one are done first; others have 0.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    wait: Annotated[
        bool, typer.Option(help="Do the job here; --no-wait leaves it to a worker.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Materialise an area and a period into one local store with composites and strain rates."""
    from firnline.cache import worker
    from firnline.cache.opening import ask, preview, subset_place
    from firnline.cache.request import Request

    settings = load_settings()
    inputs: dict[str, Any] = {
        **_area(bbox, aoi, crs),
        "datetime": datetime,
        "variables": words(variables),
        "collection": collection,
        "satellites": words(satellites),
        "max_error": max_error,
        "min_valid": min_valid,
        "composite": None if composite == "none" else composite,
        "composite_method": composite_method,
        "max_displacement": max_displacement,
        "strain": {
            "method": strain_method,
            "length_scale": length_scale,
            "gaps": strain_gaps,
            "ice_temperature": ice_temperature,
        }
        if strain and composite != "none"
        else False,
        "out_crs": out_crs,
        "resampling": resampling,
        "recompute_speed": recompute_speed,
        "format": format,
        "pairs": pairs,
    }
    if min_dt is not None or max_dt is not None:
        inputs["dt_days"] = [min_dt or 0.0, 1e6 if max_dt is None else max_dt]
    request = Request.parse(inputs, settings)
    engine = open_database(settings)
    if dry_run:
        summary = preview(engine, settings, request)
        if as_json:
            print_json(summary)
        else:
            print_pairs(summary)
        return
    job = ask(engine, settings, request, priority=priority)
    if wait:
        with stop_on_signal() as stop, percent(as_json) as shown:
            job = worker.finish(engine, settings, job, stop=stop, shown=shown)
    answer: dict[str, Any] = {
        "job": job.id,
        "status": job.status,
        "message": job.message,
        "item": job.subset,
    }
    if job.subset is not None:
        answer["folder"] = str(subset_place(engine, settings, job.subset))
    if as_json:
        print_json(answer)
    elif job.status != "failed":
        print_pairs({name: value for name, value in answer.items() if value is not None})
    if wait and job.status != "successful":
        if job.status == "failed":
            err.print(f"error: {job.message}", markup=False)
        raise typer.Exit(1)


def _area(
    bbox: tuple[float, float, float, float] | None, aoi: Path | None, crs: str | None
) -> dict[str, Any]:
    if (bbox is None) == (aoi is None):
        raise InputError("give the area by one of --bbox W S E N and --aoi FILE")
    if bbox is not None:
        return {"bbox": bbox, "crs": crs or "OGC:CRS84"}
    assert aoi is not None
    return read_area(aoi, crs)


def read_area(path: Path, crs: str | None) -> dict[str, Any]:
    """The union of a file's polygons, in the file's own CRS."""
    import geopandas
    import shapely
    from pyogrio.errors import DataSourceError

    from firnline.crs import crs_code, parse_crs

    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, OSError, ValueError) as error:
        raise InputError(f"--aoi {path}: {error}") from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"--aoi {path} has no geometry; accepted: GeoJSON, GeoPackage, Shapefile")
    if crs is not None and frame.crs is not None and frame.crs != parse_crs(crs):
        raise InputError(f"--aoi {path} says itself that its CRS is {crs_code(frame.crs)}")
    area = shapely.make_valid(frame.geometry.union_all())
    if area.geom_type not in ("Polygon", "MultiPolygon"):
        raise InputError(f"--aoi {path} holds {area.geom_type}; accepted are polygons")
    if crs is None and frame.crs is None:
        raise InputError(f"--aoi {path} does not say its CRS: give --crs")
    return {
        "geometry": json.loads(shapely.to_geojson(area)),
        "crs": crs or crs_code(frame.crs),
    }


def words(text: str) -> list[str]:
    """The values of a comma-separated option."""
    return [word.strip() for word in text.split(",") if word.strip()]
