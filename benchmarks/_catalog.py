"""A synthetic catalog of any size for the benchmarks: items like those of cubes, spread out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
from shapely.affinity import translate
from shapely.geometry import box

from firnline.database import ItemRow
from firnline.footprint import footprint
from firnline.items import CubeRecord, bbox, cube_item, digest, item_row, to_geojson
from firnline.properties import searchable

REGIONS = [f"region {n}" for n in range(19)]
CODES = ["EPSG:3413", "EPSG:3031", *(f"EPSG:326{n:02d}" for n in range(5, 45, 5))]
EPOCH = datetime(1990, 1, 1, tzinfo=UTC)


def synthetic_rows(count: int, batch: int = 10_000, seed: int = 0) -> Iterator[list[ItemRow]]:
    """Items in batches: places uniform in longitude and latitude, times from 1990 to 2026.

    Each has an id, a footprint, an interval of up to two years, a region (of 19), a CRS (of 10)
    and a number of image pairs of its own; the same for the same seed.
    """
    tile = box(400_000, -2_300_000, 500_000, -2_200_000)
    outline = footprint(tile, "EPSG:3413")
    mark = "ITS_LIVE_vel_EPSG3413_G0120_X450000_Y-2250000"
    url = f"https://its-live-data.s3.amazonaws.com/datacubes/v2/N60W030/{mark}.zarr"
    record = CubeRecord(mark, url, 3413, tile, outline, 5, "Greenland", 80_000)
    model = item_row(cube_item(record, last_year=2026), outline, "synthetic")
    members = orjson.loads(model.content)
    west, south, east, north = outline.bounds
    random = np.random.default_rng(seed)
    for first in range(0, count, batch):
        rows = []
        for n in range(first, min(first + batch, count)):
            by = (random.uniform(-179 - west, 179 - east), random.uniform(-89 - south, 89 - north))
            moved = translate(outline, *by)
            start = EPOCH + timedelta(minutes=int(random.integers(0, 36 * 525_600)))
            end = start + timedelta(minutes=int(random.integers(0, 2 * 525_600)))
            properties = members["properties"] | {
                "start_datetime": start.isoformat().replace("+00:00", "Z"),
                "end_datetime": end.isoformat().replace("+00:00", "Z"),
                "itslive:region": REGIONS[random.integers(len(REGIONS))],
                "itslive:granule_count": int(random.integers(0, 100_000)),
                "itslive:roi_percent_coverage": round(float(random.uniform(0, 100)), 1),
                "proj:code": CODES[random.integers(len(CODES))],
            }
            id = f"{mark}_{n}"
            item = members | {
                "id": id, "properties": properties, "geometry": to_geojson(moved),
                "bbox": bbox(moved),
            }  # fmt: skip
            content = orjson.dumps(item, option=orjson.OPT_SORT_KEYS)
            rows.append(
                replace(
                    model,
                    id=id,
                    content=content,
                    footprint=moved,
                    digest=digest(content),
                    start=start,
                    end=end,
                    properties=searchable(properties),
                )
            )
        yield rows
