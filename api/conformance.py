"""What this API says that it conforms to, all in one place: on / and at /conformance.

A class stands here only if all of its requirements hold. Not here, and why: coordinate systems by
reference (OGC API - Features, Part 2), since `crs` is that of the area asked for, and answers are
in longitude, latitude; queryables as parameters of their own (Part 3).
"""

from __future__ import annotations

from firnline.api import filter, processes

_STAC = "https://api.stacspec.org"
_OGC = "http://www.opengis.net/spec"

CONFORMANCE: tuple[str, ...] = (
    *(
        f"{_STAC}/v1.0.0/{name}"
        for name in ("core", "browseable", "collections", "ogcapi-features")
    ),
    f"{_STAC}/v1.0.0/item-search",
    *(f"{_OGC}/ogcapi-features-1/1.0/conf/{name}" for name in ("core", "geojson", "oas30")),
    # Extensions that both /search and /collections/{id}/items have. Of sort there are two
    # versions that differ in the sortables only; pystac-client knows no class beyond v1.0.
    *(
        f"{_STAC}/{version}/{resource}#{name}"
        for version, name in (
            ("v1.0.0", "sort"),
            ("v1.1.0", "sort"),
            ("v1.0.0", "fields"),
            ("v1.0.0", "query"),
            ("v1.0.0-rc.1", "free-text"),
        )
        for resource in ("item-search", "ogcapi-features")
    ),
    # Filters, and what can be named in them and sorted by.
    f"{_STAC}/v1.0.0/item-search#filter",
    *(
        f"{_OGC}/ogcapi-features-3/1.0/conf/{name}"
        for name in ("queryables", "filter", "features-filter")
    ),
    *filter.CONFORMANCE,
    f"{_STAC}/v1.1.0/item-search#sortables",
    f"{_OGC}/ogcapi-features-5/1.0/conf/sortables",
    # Collection search.
    f"{_STAC}/v1.0.0-rc.1/collection-search",
    f"{_STAC}/v1.0.0-rc.1/collection-search#free-text",
    f"{_OGC}/ogcapi-common-2/1.0/conf/simple-query",
    # Aggregation.
    *(f"{_STAC}/v0.3.0/aggregation{part}" for part in ("", "#query", "#filter")),
    *processes.CONFORMANCE,
)
"""URIs of the conformance classes."""
