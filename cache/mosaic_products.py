"""What a subset that is made of mosaics says of itself, beside the maps that all subsets have."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from firnline.cache import products, store
from firnline.cache.counts import Counts
from firnline.cache.drawing import draw
from firnline.cache.mosaic_store import FIELDS, METHOD, TREND_FIELDS, trend_period
from firnline.cache.mosaics import MosaicPlan
from firnline.cache.periods import period_label


def make(
    plan: MosaicPlan,
    work: Path,
    counts: Counts,
    sources: list[dict[str, Any]],
    *,
    seconds: float,
    memory_limit: int,
) -> products.Made:
    """Write maps, quicklook and provenance into `work`; describe all of it."""
    spans, trend = plan.periods, trend_period(plan)
    first, last = spans[0].start, spans[-1].end - np.timedelta64(1, "s")
    title = (
        f"ITS_LIVE mosaics {products.extent_km(plan)}, {plan.crs}, "
        f"{str(first)[:10]} to {str(last)[:10]}"
    )
    assets = products.store_assets(
        work,
        composite=(store.COMPOSITE, "Velocity mosaics, stitched (Zarr)"),
        strain=(store.STRAIN, "Strain rates of the mosaics (Zarr)"),
        trend=(store.TREND, "Trend of the speed (Zarr)"),
    )
    assets["composite"]["firnline:composite"] = {"period": plan.request.composite, "method": METHOD}
    mosaics, periods = _counted(len(plan.items), "mosaic"), _counted(len(spans), "period")
    drawn = {name: dict(TREND_FIELDS[name]) for name in ("dv_dt", "dv_dt_error")}
    assets |= draw(
        plan,
        work,
        memory_limit,
        title=title,
        subtitle=f"{mosaics}, {periods}",
        spans=spans,
        fields=FIELDS,
        trend=None if trend is None else (trend, drawn),
    )
    assets["provenance"] = products.provenance(
        plan, work, sources, counts, seconds, absent=list(plan.absent)
    )
    start, end = products.rfc3339(first), products.rfc3339(last)
    fitted = ", the trend of the speed by weighted least squares" if trend is not None else ""
    properties = {
        "datetime": None,
        "start_datetime": start,
        "end_datetime": end,
        "created": products.rfc3339(np.datetime64(datetime.now(UTC).replace(tzinfo=None), "us")),
        "title": title,
        "description": f"{mosaics} of {periods}, stitched on their grid. {plan.attribution}.",
        **products.projection(plan),
        "cube:dimensions": products.dimensions(plan, "time", start, end),
        "cube:variables": {
            name: {
                "variable_type": "data",
                "dimensions": ["time", "y", "x"],
                "data_type": "uint32" if about["units"] == "1" else "float32",
                "unit": about["units"],
            }
            for name, about in FIELDS.items()
        },
        "processing:level": "L4",
        "processing:software": {"firnline": version("firnline")},
        "processing:lineage": "ITS_LIVE velocity mosaics stitched on their grid"
        f"{fitted}{products.strain_lineage(plan.request)}; see the provenance asset",
        "firnline:request": plan.request.to_inputs(),
        "firnline:periods": [period_label(span, plan.request.composite or "") for span in spans],
        "firnline:stale": False,
    }
    return products.finished(plan, work, properties, assets, sources)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
