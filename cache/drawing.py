"""The maps (COGs), styles and quicklook of a subset, drawn from its stores.

They need libraries and memory that nothing else of a job does: where that is short, they are made
in a process of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from firnline.cache import store
from firnline.cache.apart import apart
from firnline.cache.memory import is_short
from firnline.cache.periods import Period, period_label
from firnline.cache.quicklook import thinned, write_quicklook
from firnline.cache.raster import write_cog
from firnline.cache.request import Request
from firnline.cache.strain import FIELDS, STRESS_FIELDS
from firnline.cache.styles import STYLES, write_style
from firnline.cache.target import OnGrid, Target
from firnline.items import COG

VELOCITY_MAPS = ("v", "vx", "vy", "v_error", "count")
STRAIN_MAPS = ("e1", "e2", "effective", "longitudinal", "shear", "divergence")

Assets = dict[str, dict[str, Any]]
Described = Mapping[str, Mapping[str, str]]
"""CF attributes of fields, by name."""


@dataclass(frozen=True)
class Sheet(OnGrid):
    """What is drawn: all of a plan that this needs, and what is written on it."""

    request: Request
    crs: str
    geobox: GeoBox
    shape: tuple[int, int, int]
    attribution: str
    title: str
    subtitle: str
    spans: tuple[Period, ...]
    velocity: Described
    trend: tuple[Period, Described] | None = None


def draw(
    plan: Target,
    work: Path,
    memory_limit: int,
    *,
    title: str,
    subtitle: str,
    spans: tuple[Period, ...],
    fields: Described,
    trend: tuple[Period, Described] | None = None,
) -> Assets:
    """Draw what there is in the stores below `work`; the assets by key.

    Parameters
    ----------
    fields
        CF attributes of the composite's fields.
    trend
        Its period, and the attributes of the fields to draw of it.
    """
    velocity = {name: dict(fields[name]) for name in VELOCITY_MAPS}
    sheet = Sheet(
        plan.request, plan.crs, plan.geobox, plan.shape, plan.attribution,
        title, subtitle, spans, velocity, trend,
    )  # fmt: skip
    return apart(drawn, sheet, work) if is_short(memory_limit) else drawn(sheet, work)


def drawn(sheet: Sheet, work: Path) -> Assets:
    """Draw in this process."""
    assets = _maps(sheet, work, store.COMPOSITE, sheet.velocity, sheet.spans)
    if sheet.request.strain:
        rates = {name: FIELDS[name] for name in STRAIN_MAPS}
        rates |= STRESS_FIELDS if sheet.request.strain.flow_law else {}
        assets |= _maps(sheet, work, store.STRAIN, rates, sheet.spans)
    assets |= _styles(sheet, work)
    if sheet.trend is not None:
        period, about = sheet.trend
        assets |= _maps(sheet, work, store.TREND, about, (period,))
    return assets | _quicklook(sheet, work)


def _maps(
    sheet: Sheet,
    work: Path,
    origin: str,
    about: Mapping[str, Mapping[str, str]],
    spans: tuple[Period, ...],
) -> dict[str, dict[str, Any]]:
    """One COG a field of a store, one band a period; the assets by key.

    Parameters
    ----------
    origin
        The store below `work`.
    about
        CF attributes by name of the field.
    """
    labels = [period_label(span, sheet.request.composite or "") for span in spans]
    assets = {}
    for name, described in about.items():
        long_name, units = described["long_name"], described["units"]
        values = store.opened(work / origin, name)
        whole = values.dtype.kind == "u"  # counts, of which 0 is none
        statistics = write_cog(
            work / f"{name}.tif",
            values,
            transform=sheet.geobox.affine,
            crs=sheet.crs,
            nodata=0 if whole else float("nan"),
            names=[f"{name} {label}" for label in labels],
            units=units,
            long_name=long_name,
            tags={
                "TITLE": sheet.title,
                "SOURCE": sheet.attribution,
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
                    "nodata": 0 if whole else "nan",
                    "unit": units,
                    "statistics": one,
                }
                for label, one in zip(labels, statistics, strict=True)
            ],
        }
    return assets


def _styles(sheet: Sheet, work: Path) -> dict[str, dict[str, Any]]:
    """Styles for QGIS."""
    return {
        f"style_{name}": {
            "href": f"{name}.qml",
            "type": "application/xml",
            "title": f"QGIS style. {write_style(work / f'{name}.qml', name)}",
            "roles": ["style"],
        }
        for name in STYLES
        if name != "strain" or sheet.request.strain
    }


def _quicklook(sheet: Sheet, work: Path) -> dict[str, dict[str, Any]]:
    """The picture of the latest of the fullest periods; none of a single row or column."""
    if min(sheet.shape[1:]) < 2:
        return {}
    speed = store.opened(work / store.COMPOSITE, "v")
    filled = np.zeros(len(sheet.spans), np.int64)
    for block in store.field_blocks(speed.shape):
        filled[block[0]] += np.isfinite(speed[block]).sum(axis=(1, 2))
    fullest = len(filled) - 1 - int(filled[::-1].argmax())  # the latest of them
    rows, columns = (thinned(size) for size in speed.shape[1:])
    names = [(store.COMPOSITE, name) for name in ("vx", "vy")]
    if sheet.request.strain:
        names += [(store.STRAIN, name) for name in ("longitudinal", "e1", "e2", "theta")]
    fields = {
        name: np.asarray(store.opened(work / origin, name)[fullest, rows, columns])
        for origin, name in names
    }
    write_quicklook(
        work / "thumbnail.png",
        **fields,
        x=sheet.x[columns],
        y=sheet.y[rows],
        crs=sheet.crs,
        title=f"ITS_LIVE velocity{' and strain rate' if sheet.request.strain else ''}, "
        f"{period_label(sheet.spans[fullest], sheet.request.composite or '')}",
        subtitle=sheet.subtitle,
        credit=sheet.attribution,
    )
    return {
        "thumbnail": {
            "href": "thumbnail.png",
            "type": "image/png",
            "title": "Speed with flow arrows, and strain rate",
            "roles": ["thumbnail", "overview"],
        }
    }
