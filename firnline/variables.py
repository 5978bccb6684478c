"""What ITS_LIVE's cubes and mosaics hold: names, types, missing values and units.

Types and missing values are those of the real files (datacube format v2, mosaics v2 and v2.1);
titles and roles of the mosaics' assets are those of ITS_LIVE's own STAC items.
"""

from __future__ import annotations

from typing import Any

_Table = dict[str, dict[str, Any]]


def _cube_variables() -> _Table:
    layer, flat, pair = ["mid_date", "y", "x"], ["y", "x"], ["mid_date"]
    int16: dict[str, Any] = {"data_type": "int16", "nodata": -32767}
    speed = {**int16, "unit": "m/yr"}
    table: _Table = {
        **{name: {"dimensions": layer, **speed} for name in ("v", "vx", "vy", "v_error")},
        # Components along and across the look of the radar, and the matrix that led to them.
        **{name: {"dimensions": layer, **speed} for name in ("va", "vr")},
        **{name: {"dimensions": layer, **int16} for name in ("M11", "M12")},
    }
    for name in ("chip_size_height", "chip_size_width"):
        table[name] = {"dimensions": layer, "data_type": "uint16", "nodata": 0, "unit": "m"}
    # 0 is 'measured', though the source declares it missing: no nodata, lest a reader hide it.
    table["interp_mask"] = {"dimensions": layer, "data_type": "uint8"}
    for name in ("landice", "floatingice"):
        table[name] = {"dimensions": flat, "data_type": "uint8", "nodata": 255}
    for name in ("vx_error", "vy_error", "va_error", "vr_error"):
        table[name] = {"dimensions": pair, **speed, "data_type": "float32"}
    table["stable_shift_flag"] = {"dimensions": pair, "data_type": "uint8"}
    table["roi_valid_percentage"] = {"dimensions": pair, "data_type": "float32", "unit": "%"}
    table["date_dt"] = {"dimensions": pair, "unit": "d"}
    for name in ("acquisition_date_img1", "acquisition_date_img2", "date_center"):
        table[name] = {"dimensions": pair, "unit": "days since 1970-01-01"}
    for name in ("mission", "satellite", "sensor"):
        for image in ("img1", "img2"):
            table[f"{name}_{image}"] = {"dimensions": pair, "data_type": "other"}
    for name in ("autoRIFT_software_version", "granule_url"):
        table[name] = {"dimensions": pair, "data_type": "other"}
    for name, variable in table.items():
        variable["variable_type"] = "data" if name in ("v", "vx", "vy") else "auxiliary"
    return table


CUBE_VARIABLES = _cube_variables()
"""``cube:variables`` of a datacube (datacube extension v2.3)."""

ANNUAL_VARIABLES = ("v", "vx", "vy", "v_error", "vx_error", "vy_error", "count")
"""Variables of an annual mosaic, a COG each."""
_SEASON = tuple(f"{c}_{k}" for c in ("v", "vx", "vy") for k in ("amp", "amp_error", "phase"))
_STATIC_ONLY = ("landice", "floatingice", "dv_dt", "dvx_dt", "dvy_dt", "outlier_percent")
STATIC_VARIABLES = (*ANNUAL_VARIABLES, *_STATIC_ONLY, *_SEASON)
"""Variables of a static mosaic, a COG each."""


def _mosaic_assets() -> _Table:
    speed = {"data_type": "float32", "nodata": -32767, "unit": "m/yr"}
    spread = {"data_type": "uint16", "nodata": 32767, "unit": "m/yr"}
    trend = {**speed, "unit": "m/yr^2"}
    phase = {**spread, "unit": "d"}  # day of the year
    mask = {"data_type": "uint8", "nodata": 0}
    rows: dict[str, tuple[str, str, dict[str, Any]]] = {
        "v": ("Velocity Magnitude", "velocity-magnitude", speed),
        "v_error": ("Velocity Magnitude Error", "error-magnitude", spread),
        "v_amp": ("Velocity Amplitude", "velocity-amplitude", spread),
        "v_amp_error": ("Velocity Amplitude Error", "error-amplitude", spread),
        "v_phase": ("Velocity Phase", "velocity-phase", phase),
        "dv_dt": ("Velocity Change Rate", "velocity-change-rate", trend),
        "count": ("Image Pair Count", "quality-indicator", {"data_type": "uint32", "nodata": 0}),
        "landice": ("Land Ice Mask", "mask-land-ice", mask),
        "floatingice": ("Floating Ice Mask", "mask-floating-ice", mask),
        "outlier_percent": (
            "Outlier Percentage",
            "quality-outlier-percent",
            {"data_type": "uint8", "nodata": 255, "unit": "%"},
        ),
    }
    for axis in ("x", "y"):
        name, upper = f"v{axis}", axis.upper()
        rows |= {
            name: (f"Velocity {upper}-Component", f"velocity-{axis}", speed),
            f"{name}_error": (f"Velocity {upper}-Error", f"error-{axis}", spread),
            f"{name}_amp": (f"Velocity {upper} Amplitude", f"velocity-{axis}-amplitude", spread),
            f"{name}_amp_error": (
                f"Velocity {upper} Amplitude Error",
                f"error-{axis}-amplitude",
                spread,
            ),
            f"{name}_phase": (f"Velocity {upper} Phase", f"velocity-{axis}-phase", phase),
            f"d{name}_dt": (
                f"Velocity {upper} Change Rate",
                f"velocity-{axis}-change-rate",
                trend,
            ),
        }
    return {
        name: {
            "title": f"{title} ({name}) COG",
            "roles": ["data", "cog", role],
            "bands": [{"name": name, **values}],
        }
        for name, (title, role, values) in rows.items()
    }


MOSAIC_ASSETS = _mosaic_assets()
"""Title, roles and bands of the asset ``cog_{variable}``, by variable."""
