"""``series`` and ``flowlines``: what a subset holds over time at points, and along the flow."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from firnline.cli.console import Json, err, print_json
from firnline.cli.installation import load_settings, open_database
from firnline.cli.materialise import read_area, words
from firnline.errors import InputError

if TYPE_CHECKING:
    import geopandas as gpd
    import xarray as xr

    from firnline.cache.series import Format

Source = Annotated[
    str, typer.Argument(help="Id of a subset (firnline cache list), or path of a Zarr store.")
]
Lon = Annotated[list[float] | None, typer.Option(help="Degrees; once for each point.")]
Lat = Annotated[list[float] | None, typer.Option(help="Degrees; as often.")]
X = Annotated[list[float] | None, typer.Option(help="In place of --lon: metres of --crs.")]
Y = Annotated[list[float] | None, typer.Option(help="In place of --lat.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write; default standard output.")
]


def series(
    source: Source,
    lon: Lon = None,
    lat: Lat = None,
    x: X = None,
    y: Y = None,
    crs: Annotated[
        str | None, typer.Option(help="CRS of --x and --y; default that of the subset.")
    ] = None,
    points: Annotated[Path | None, typer.Option(help="File of points instead.")] = None,
    along: Annotated[
        Path | None, typer.Option(help="File of lines, as flowlines writes it, to go along.")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Metres between points along; default a pixel.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="pairs, composite, strain or trend.")] = "pairs",
    variables: Annotated[str, typer.Option(help="Comma-separated; default all.")] = "",
    method: Annotated[
        Literal["nearest", "bilinear"] | None,
        typer.Option(help="Default nearest for points, bilinear along lines."),
    ] = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Values, errors and spans over time at points or along lines: CSV, JSON or Parquet."""
    from firnline.cache.series import encode
    from firnline.cache.series import series as taken

    kinds: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}
    if output is not None and output.suffix.lower() not in kinds:
        raise InputError(f"--output {output}: accepted are names ending in {', '.join(kinds)}")
    asked: dict[str, Any] = {"lon": lon, "lat": lat, "x": x, "y": y, "crs": crs}
    if points is not None:
        asked |= _places(points, asked)
    frame = taken(
        _open(source, dataset),
        **{name: value or None for name, value in asked.items()},
        along=None if along is None else _read(along, "LineString"),
        spacing=spacing,
        variables=words(variables) or None,
        method=method,
    )
    if output is not None:
        output.write_bytes(encode(frame, kinds[output.suffix.lower()]))
        err.print(f"{len(frame):,} rows in {output}", markup=False)
    elif as_json:
        rows = json.loads(encode(frame, "json"))
        print_json({"units": frame.attrs["units"], "series": rows})
    else:
        sys.stdout.write(encode(frame, "csv").decode())


def flowlines(
    source: Source,
    lon: Lon = None,
    lat: Lat = None,
    x: X = None,
    y: Y = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="Lines all over a box, in the units of --crs.", metavar="W S E N"),
    ] = None,
    aoi: Annotated[Path | None, typer.Option(help="Lines all over the polygons of a file.")] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Metres between the beginnings in an area.")
    ] = None,
    crs: Annotated[
        str | None,
        typer.Option(help="CRS of --bbox (default degrees), or of --x (default the subset's)."),
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Which composite: that nearest to a date, month or year.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="Metres between vertices; default half a pixel.")
    ] = None,
    max_length: Annotated[
        float | None, typer.Option(help="Metres to go in each direction.")
    ] = None,
    direction: Annotated[
        Literal["both", "downstream", "upstream"], typer.Option(help="Of the points.")
    ] = "both",
    min_speed: Annotated[float, typer.Option(help="m/year at which a line ends.")] = 1.0,
    output: Output = None,
) -> None:
    """Flowlines through points or all over an area of a subset's composite, as GeoJSON."""
    import shapely
    from shapely.geometry import shape

    from firnline.cache.flowlines import flowlines as followed
    from firnline.cache.flowlines import to_geojson

    asked: dict[str, Any] = {"lon": lon, "lat": lat, "x": x, "y": y, "crs": crs}
    if bbox is not None and aoi is not None:
        raise InputError("give the area by one of --bbox W S E N and --aoi FILE")
    if bbox is not None:
        asked["area"] = shapely.box(*bbox)
    elif aoi is not None:
        area = read_area(aoi, crs)
        asked |= {"area": shape(area["geometry"]), "crs": area["crs"]}
    lines = followed(
        _open(source, "composite"),
        **{name: value or None for name, value in asked.items()},
        spacing=spacing,
        time=time,
        step=step,
        max_length=max_length,
        direction=direction,
        min_speed=min_speed,
    )
    text = json.dumps(to_geojson(lines)) + "\n"
    if output is None:
        sys.stdout.write(text)
    else:
        output.write_text(text)
        err.print(
            f"{len(lines):,} flowline{'' if len(lines) == 1 else 's'} in {output}", markup=False
        )


def _open(source: str, dataset: str) -> xr.Dataset:
    import xarray as xr

    from firnline.cache.opening import open_stored

    if Path(source).is_dir():
        try:
            opened: xr.Dataset = xr.open_zarr(
                source, chunks=None, decode_coords="all", decode_timedelta=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{source} is not a Zarr store: {error}") from None
        return opened
    settings = load_settings()
    return open_stored(open_database(settings), settings, source, dataset)


def _read(path: Path, kind: str) -> gpd.GeoDataFrame:
    """The geometries of a file, all of one kind, with their CRS."""
    import geopandas
    from pyogrio.errors import DataSourceError

    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(frame, geopandas.GeoDataFrame) or not len(frame):
        raise InputError(f"{path} has no geometry")
    frame = frame.explode(ignore_index=True)
    if set(frame.geom_type) != {kind}:
        raise InputError(f"{path} holds {', '.join(sorted(set(frame.geom_type)))}, not {kind}s")
    if frame.crs is None:
        raise InputError(f"{path} does not say its CRS")
    return frame


def _places(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The points of a file in degrees."""
    if any(asked.values()):
        raise InputError("give points either by their coordinates or by --points FILE")
    found = _read(path, "Point").to_crs("OGC:CRS84")
    return {"lon": found.geometry.x.tolist(), "lat": found.geometry.y.tolist()}
