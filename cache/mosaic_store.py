"""The stores of a subset that is made of mosaics: their fields a year, and the trend of the speed.

Block after block, all years of one at a time, so that memory knows nothing of the area's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from firnline.cache import composite_store, store
from firnline.cache.chunk_cache import open_chunk_cache
from firnline.cache.cog_reader import RemoteCog
from firnline.cache.counts import Counts
from firnline.cache.mosaics import MosaicItem, MosaicPlan, PlacedMosaic, open_cog
from firnline.cache.new_store import create_fields
from firnline.cache.periods import Period, as_arrays
from firnline.cache.trend import FEWEST, linear_trend
from firnline.errors import SourceChangedError, SourceCorruptError, SourceMissingError
from firnline.settings import Settings
from firnline.variables import ANNUAL_VARIABLES, MOSAIC_ASSETS

Raw = np.ndarray[Any, np.dtype[Any]]

FIELDS: Mapping[str, Mapping[str, str]] = {
    name: composite_store.FIELDS[name] for name in ANNUAL_VARIABLES
} | {"v": {**composite_store.FIELDS["v"], "long_name": "speed, as published"}}
"""CF attributes of the fields a year, by name."""

TREND_FIELDS: Mapping[str, Mapping[str, str]] = {
    "dv_dt": {
        "long_name": "linear trend of the speed over the years",
        "units": "meter/year^2",
        "ancillary_variables": "dv_dt_error years",
    },
    "dv_dt_error": {"long_name": "standard error of the trend", "units": "meter/year^2"},
    "years": {"long_name": "years that the trend is made of", "units": "1"},
}
"""CF attributes of the fields of the trend, by name."""

METHOD = (
    "values and errors as published in the mosaics; where mosaics overlap, a pixel is of the one "
    "that covers more of the area and has both components there"
)
_TREND_METHOD = (
    "least squares in each pixel, weighted by 1 / v_error^2, of three years or more; the error is "
    "that of the stated errors, times sqrt(chi^2 / (n - 2)) where that is more than 1"
)

_ERRORS_ROUNDED_TO = 1.0  # m/year: they are whole numbers


class Pulse(Protocol):
    """Shows how far a job is, and raises where it must stop."""

    def say(self, progress: int, message: str) -> None:
        """Tell how far the job is, in percent."""

    def check(self) -> None:
        """Raise when the job is no longer this worker's."""


def trend_period(plan: MosaicPlan) -> Period | None:
    """From the first year to the last; None where there are too few for a trend."""
    if len(plan.years) < FEWEST:
        return None
    return Period(plan.periods[0].start, plan.periods[-1].end)


def write_mosaics(
    plan: MosaicPlan,
    work: Path,
    settings: Settings,
    pulse: Pulse,
    counts: Counts,
    finished: Mapping[int, Mapping[str, Any]],
    checkpoint: Callable[[int, dict[str, int], dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Read the mosaics and write ``composite.zarr`` and, of three years or more, ``trend.zarr``.

    Parameters
    ----------
    counts
        What was fetched, now and for the blocks that are finished, is added to it.
    finished : mapping of int to mapping
        Manifests of the blocks that an earlier attempt wrote, by number; without any the stores
        are made.
    checkpoint : callable
        Takes the number of a block that is on disk, what was counted for it, and the sources so
        far by URL, which its manifest has as ``sources``.

    Returns
    -------
    list of dict
        The sources: item, URL and ETag of each file that was read.

    Raises
    ------
    SourceChangedError
        Also where a finished block is of another version of a file: nothing of it is of use.
    SourceUnreachableError, SourceCorruptError
    """
    trend = trend_period(plan)
    if not finished:
        _create(plan, work / store.COMPOSITE, FIELDS, plan.periods, METHOD)
        if trend is not None:
            _create(plan, work / store.TREND, TREND_FIELDS, (trend,), _TREND_METHOD)
    blocks = list(store.field_blocks((1, *plan.shape[1:])))
    known: dict[str, dict[str, Any]] = {}
    for manifest in finished.values():
        known |= manifest["sources"]
        counts.add(**{name: n for name, n in manifest.items() if type(n) is int})
    counts.since_last()
    with ThreadPoolExecutor(settings.concurrency, thread_name_prefix="mosaic") as pool:
        files = _Files(plan, settings, counts, pool, known)
        for n, (_, rows, columns) in enumerate(blocks):
            if n in finished:
                continue
            pulse.check()
            fields = files.read(rows, columns)
            for name, values in fields.items():
                times = slice(0, len(values))
                store.write_field(work / store.COMPOSITE, name, values, (times, rows, columns))
            if trend is not None:
                for name, values in _trend(plan, fields).items():
                    block = slice(0, 1), rows, columns
                    store.write_field(work / store.TREND, name, values[None], block)
            checkpoint(n, counts.since_last(), files.read_so_far)
            pulse.say(round(90 * (n + 1) / len(blocks)), f"{n + 1} of {len(blocks)} blocks")
    return sorted(files.read_so_far.values(), key=lambda one: (one["id"], one["href"]))


def _create(
    plan: MosaicPlan,
    path: Path,
    about: Mapping[str, Mapping[str, str]],
    periods: tuple[Period, ...],
    method: str,
) -> None:
    create_fields(
        path,
        {name: ("u4" if text["units"] == "1" else "f4", text) for name, text in about.items()},
        format=plan.request.format,
        geobox=plan.geobox,
        axes=(plan.x, plan.y),
        periods=as_arrays(periods),
        attributes={
            "title": "ITS_LIVE velocity mosaics of one area, by firnline",
            "source": plan.attribution,
            "comment": method,
            "mosaics": " ".join(item.id for item in plan.items),
        },
    )


def _trend(plan: MosaicPlan, fields: Mapping[str, Raw]) -> dict[str, Raw]:
    years = [float(period.start.astype("M8[Y]").astype("i8")) + 1970.5 for period in plan.periods]
    found = linear_trend(fields["v"], fields["v_error"], years, rounding=_ERRORS_ROUNDED_TO)
    return {"dv_dt": found.slope, "dv_dt_error": found.error, "years": found.count}


class _Files:
    """The COGs of a plan, opened when first needed and each read by one thread at a time."""

    def __init__(
        self,
        plan: MosaicPlan,
        settings: Settings,
        counts: Counts,
        pool: ThreadPoolExecutor,
        known: Mapping[str, dict[str, Any]],
    ) -> None:
        self._plan, self._settings, self._counts, self._pool = plan, settings, counts, pool
        self._known = known
        self._keeper = open_chunk_cache(settings)
        self._open: dict[tuple[str, str], RemoteCog | None] = {}

    @property
    def read_so_far(self) -> dict[str, dict[str, Any]]:
        """Item, URL and ETag of the files that were read, by URL; by earlier attempts as well."""
        return dict(self._known) | {
            cog.url: {"id": id, "href": cog.url, "etag": cog.etag}
            for (id, _), cog in self._open.items()
            if cog is not None
        }

    def read(self, rows: slice, columns: slice) -> dict[str, Raw]:
        """All fields ``(time, y, x)`` of a block of the target."""
        wanted = list(self._wanted(rows, columns))
        read = self._pool.map(lambda what: self._window(*what), wanted)
        windows = {
            (place.item.id, name): values
            for (place, name, *_), values in zip(wanted, read, strict=True)
        }
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        shape = (len(self._plan.years), high, wide)
        fields = {
            name: np.zeros(shape, "u4") if name == "count" else np.full(shape, np.nan, "f4")
            for name in ANNUAL_VARIABLES
        }
        inside = {place.item.id: where for place, _, where, _ in wanted}
        for n, (_, mosaics) in enumerate(self._plan.years):
            for place in mosaics:
                id = place.item.id
                if id in inside:
                    layers = {name: windows[id, name] for name in ANNUAL_VARIABLES}
                    _lay({name: f[n][inside[id]] for name, f in fields.items()}, layers)
        return fields

    def _wanted(
        self, rows: slice, columns: slice
    ) -> Iterator[tuple[PlacedMosaic, str, tuple[slice, slice], tuple[slice, slice]]]:
        """Mosaic and variable, where in the block, and where in the mosaic."""
        for _, mosaics in self._plan.years:
            for place in mosaics:
                both = [
                    (max(one.start, other.start), min(one.stop, other.stop))
                    for one, other in ((rows, place.rows), (columns, place.columns))
                ]
                if any(start >= stop for start, stop in both):
                    continue
                (top, bottom), (left, right) = both
                block = (
                    slice(top - rows.start, bottom - rows.start),
                    slice(left - columns.start, right - columns.start),
                )
                there = (
                    slice(top - place.row, bottom - place.row),
                    slice(left - place.column, right - place.column),
                )
                for name in ANNUAL_VARIABLES:
                    yield place, name, block, there

    def _window(
        self, place: PlacedMosaic, name: str, _: Any, window: tuple[slice, slice]
    ) -> Raw | None:
        """A window of a variable, missing values as NaN (0 of a count); None without the file."""
        cog = self._cog(place.item, name)
        if cog is None:
            return None
        if (cog.transform, cog.shape) != (place.transform, place.shape):
            raise SourceCorruptError(f"{cog.url} is on another grid than {place.item.hrefs['vx']}")
        raw = cog.read(*window)
        nodata = cog.nodata
        if nodata is None:
            nodata = MOSAIC_ASSETS[name]["bands"][0]["nodata"]
        if name == "count":
            return np.where(raw == nodata, 0, raw).astype(np.uint32)
        values = raw.astype(np.float32)
        values[raw == nodata] = np.nan
        return values

    def _cog(self, item: MosaicItem, name: str) -> RemoteCog | None:
        # each key is one task's at a time
        key = item.id, name
        if key not in self._open:
            try:
                self._open[key] = (
                    open_cog(item, name, self._settings, self._counts, keeper=self._keeper)
                    if name in item.hrefs
                    else None
                )
            except SourceMissingError:
                if name in ("vx", "vy"):
                    raise
                self._open[key] = None
            cog = self._open[key]
            if cog is not None and self._known.get(cog.url, {}).get("etag", cog.etag) != cog.etag:
                raise SourceChangedError(f"{cog.url} has changed since an earlier attempt read it")
        return self._open[key]


def _lay(fields: Mapping[str, Raw], layers: Mapping[str, Raw | None]) -> None:
    """Lay a mosaic's fields beneath those that are there, in place."""
    vx, vy = layers["vx"], layers["vy"]
    assert vx is not None
    assert vy is not None
    free = np.isnan(fields["vx"]) & np.isfinite(vx) & np.isfinite(vy)
    for name, field in fields.items():
        values = layers[name]
        if values is None and name == "v":
            values = np.hypot(vx, vy)
        if values is not None:
            np.copyto(field, values, where=free)
