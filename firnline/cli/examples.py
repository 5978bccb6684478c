"""What people copy: examples below the help of each command, and what to do after an error."""

from __future__ import annotations

from firnline import errors

_AREA = "--bbox 465000 -2300000 496000 -2258000 --crs EPSG:3413"

EXAMPLES = {
    "migrate": ("migrate", "migrate --to postgresql://firnline@localhost/firnline"),
    "harvest": (
        "harvest",
        "harvest --deep",
        "harvest catalog_v02.json --no-mosaics --dry-run",
    ),
    "materialise": (
        f"materialise {_AREA} --datetime 2018-01-01/2020-12-31 --dry-run",
        "materialise --aoi glacier.gpkg --datetime 2019-01-01/.. --composite P1M --max-dt 60",
        f"materialise {_AREA} --composite all --length-scale 1000 --format v2",
    ),
    "series": (
        "series subset-0123456789abcdef --lon -49.3 --lat 69.15 -o point.csv",
        "series subset-0123456789abcdef --along lines.geojson --dataset composite -o profile.csv",
    ),
    "flowlines": (
        "flowlines subset-0123456789abcdef --lon -49.3 --lat 69.15 --time 2019 -o lines.geojson",
    ),
    "serve": ("serve", "serve --port 8080 --no-worker"),
    "worker": ("worker", "worker --once"),
    "demo": ("demo", "demo --dir /tmp/demo --serve"),
    "status": ("status", "status --json", "status --settings"),
    "catalog export": ("catalog export catalog.parquet",),
    "catalog import": ("catalog import items.ndjson --collection collection.json",),
    "cache list": ("cache list",),
    "cache show": ("cache show subset-0123456789abcdef",),
    "cache verify": ("cache verify --mend",),
    "cache evict": ("cache evict --quota 50GB", "cache evict subset-0123456789abcdef"),
    "cache pin": ("cache pin subset-0123456789abcdef",),
    "cache refresh": ("cache refresh subset-0123456789abcdef",),
    "key add": ("key add 'notebooks of Ada' --most-jobs 4", "key add QGIS --scope read --days 365"),
    "key revoke": ("key revoke 0123456789abcdef",),
}
"""By command: what follows ``firnline``."""

_NEXT = (
    (errors.EmptyCatalogError, "`firnline harvest` fills it"),
    (
        errors.NoCoverageError,
        "is the area in the CRS that --crs says? `firnline status` tells what the catalog holds",
    ),
    (
        errors.SourceUnreachableError,
        "is there a network (or HTTPS_PROXY)? Nothing is lost: the same command goes on",
    ),
    (
        errors.SourceNotAllowedError,
        "FIRNLINE_ALLOWED_SOURCES names what may be read (`firnline status --settings`)",
    ),
    (errors.TooLargeError, "`firnline status --settings` lists the limits and how to change them"),
    (errors.NotFoundError, "`firnline cache list` shows the subsets"),
    (errors.DatabaseError, "`firnline status --settings` shows FIRNLINE_DATABASE_URL in force"),
)


def epilog(command: str) -> str | None:
    """The examples of a command, as its help shows them."""
    if command not in EXAMPLES:
        return None
    lines = "\n".join(f"  firnline {example}" for example in EXAMPLES[command])
    return f"\b\nExamples:\n{lines}"  # \b: click leaves the lines as they are


def next_step(error: errors.FirnlineError) -> str | None:
    """What to try after an error."""
    return next((text for kind, text in _NEXT if isinstance(error, kind)), None)
