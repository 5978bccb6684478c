"""The picture of a subset: speed with flow arrows, and a strain rate with its principal axes."""

from __future__ import annotations

import io
import math
import os
import textwrap
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firnline.cache.strain import FIELDS
from firnline.errors import CRSError, InputError, StoreError

if TYPE_CHECKING:  # matplotlib is loaded when there is something to draw
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

__all__ = ["DPI", "MISSING_COLOUR", "figure_size", "thinned", "write_quicklook"]

Floats: TypeAlias = NDArray[np.floating[Any]]

DPI = 130
"""Pixels per inch of the picture."""

MISSING_COLOUR = "#d9d9d9"
"""Light grey: no data."""

_INK, _FAINT = "#1f2328", "#57606a"
_EXTENSION, _COMPRESSION = "#b30000", "#08306b"
_ROWS = 64
_MAX_PIXELS = 730  # what a panel has on paper
_ARROWS = 24  # along the longer side
_CROSSES = 20
# inches
_LEFT, _RIGHT, _GAP, _TOP, _BOTTOM = 0.85, 0.3, 0.5, 1.2, 1.8
_LONG, _SHORT = 5.6, 2.9
_NARROWEST = 6.4  # room for the title
_NOTE_ROOM = 4.4  # a narrower panel has its note at the foot of the page


@dataclass(frozen=True, slots=True)
class _Map:
    """What both panels share: the grid, north up and thinned, in km."""

    x: Floats
    y: Floats
    extent: tuple[float, float, float, float]
    """West, east, south, north edges of the outermost pixels."""
    rows: slice
    columns: slice

    def cut(self, field: Floats) -> Floats:
        return np.asarray(field[self.rows, self.columns], np.float32)

    def every(self, count: int) -> tuple[slice, slice]:
        """Rows and columns of ``count`` marks along the longer side, clear of the edges."""
        step = max(1, round(max(self.x.size, self.y.size) / count))
        return slice(step // 2, None, step), slice(step // 2, None, step)

    @property
    def side(self) -> float:
        """Length of the longer side in km: divided by their number, the room of one mark."""
        west, east, south, north = self.extent
        return max(east - west, north - south)


def thinned(size: int) -> slice:
    """Which of so many rows or columns are drawn: more than a panel has are not seen."""
    return slice(None, None, -(-size // _MAX_PIXELS))


def figure_size(shape: tuple[int, int], panels: int = 2) -> tuple[int, int]:
    """Give the size of the picture for a grid.

    Parameters
    ----------
    shape : tuple of int
        The grid's (y, x) pixels; they are square.
    panels : int
        2, or 1 for speed alone.

    Returns
    -------
    width, height : int
        In pixels.
    """
    width, height = _panel(shape)
    return (
        round(max(_NARROWEST, _LEFT + panels * (width + _GAP) - _GAP + _RIGHT) * DPI),
        round((_TOP + height + _BOTTOM) * DPI),
    )


def _panel(shape: tuple[int, int]) -> tuple[float, float]:
    """Inches of one panel: it has the grid's proportions within sane bounds."""
    ratio = shape[0] / shape[1]
    width = min(_LONG, _LONG * 1.1 / ratio)
    return max(width, _SHORT), max(min(width * ratio, _LONG * 1.1), 1.25)


def write_quicklook(
    path: str | os.PathLike[str],
    *,
    vx: Floats,
    vy: Floats,
    x: Floats,
    y: Floats,
    crs: Any,
    title: str,
    subtitle: str = "",
    credit: str = "",
    longitudinal: Floats | None = None,
    e1: Floats | None = None,
    e2: Floats | None = None,
    theta: Floats | None = None,
    effective: Floats | None = None,
) -> None:
    """Draw a PNG of two maps side by side: speed with arrows, strain rate with crosses.

    Parameters
    ----------
    path : path-like
        Where; replaced when it exists. Its folder must exist.
    vx, vy : ndarray, shape (y, x)
        Velocity along +x and +y in m/year, missing as NaN.
    x, y : ndarray, shape (x,) and (y,)
        Coordinates of the pixels' centres in metres, rising or falling.
    crs : str, int or pyproj.CRS
        Named on the axes.
    title, subtitle, credit : str
        What, when and how, and from whom. Long ones are broken into lines.
    longitudinal, e1, effective : ndarray, shape (y, x), optional
        Strain rates in 1/year: the first that is given, in this order, is the second map.
        Without any there is one map.
    e2, theta : ndarray, shape (y, x), optional
        The lesser principal rate in 1/year and the direction of e1 in radian: with e1 they draw
        crosses on the second map.

    Raises
    ------
    InputError
        When shapes do not fit.
    CRSError
        When the CRS can't be read.
    StoreError
        When the file can't be written.

    Notes
    -----
    Speed is on a logarithmic scale where its 2nd and 98th percentiles differ more than tenfold.
    Arrows show the direction; their length grows with the colour scale, not with the speed, so
    that slow ice has visible ones. Rates are on a symmetric scale to the 98th percentile of their
    size. Grids of more than 730 pixels a side are thinned.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shape = np.shape(vx)
    rates = {"longitudinal": longitudinal, "e1": e1, "effective": effective}
    for name, field in {"vy": vy, "e2": e2, "theta": theta, **rates}.items():
        if field is not None and np.shape(field) != shape:
            raise InputError(f"{name} {np.shape(field)}: accepted is the shape of vx, {shape}")
    if len(shape) != 2 or (np.size(y), np.size(x)) != shape or min(shape) < 2:
        raise InputError(
            f"vx {shape} with {np.size(y)} y and {np.size(x)} x: accepted is (y, x), 2 or more each"
        )
    code = _crs_name(crs)
    grid = _grid(np.asarray(x, np.float64), np.asarray(y, np.float64))
    u, v = grid.cut(vx), grid.cut(vy)

    name, strain = next(((n, f) for n, f in rates.items() if f is not None), ("", None))
    panels = 1 if strain is None else 2

    room = width, height = _panel((shape[0], shape[1]))
    pixels = figure_size((shape[0], shape[1]), panels)
    inches = (pixels[0] / DPI, pixels[1] / DPI)
    figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)

    def place(panel: int, bottom: float, high: float) -> Axes:
        left = _LEFT + panel * (width + _GAP)
        return figure.add_axes(
            (left / inches[0], bottom / inches[1], width / inches[0], high / inches[1])
        )

    speed_axes = place(0, _BOTTOM, height)
    with np.errstate(invalid="ignore"):
        image, speed_note = _draw_speed(speed_axes, grid, u, v)
    _bar(figure, image, place(0, _BOTTOM - 0.86, 0.16), "speed (m/year)")
    _dress(speed_axes, grid, room, "Speed", speed_note, code, first=True)
    strain_note = ""
    if strain is not None:
        axes = place(1, _BOTTOM, height)
        image = _draw_strain(axes, grid, grid.cut(strain), name)
        label = f"{FIELDS[name]['long_name']} (1/year)"
        _bar(figure, image, place(1, _BOTTOM - 0.86, 0.16), label)
        if e1 is not None and e2 is not None and theta is not None:
            strain_note = _draw_crosses(axes, grid, grid.cut(e1), grid.cut(e2), grid.cut(theta))
        _dress(axes, grid, room, "Strain rate", strain_note, code, first=False)
    _scale_bar(speed_axes, grid)
    notes = [] if width >= _NOTE_ROOM else [speed_note, strain_note]
    foot = "  ·  ".join(text for text in (credit, *notes, "grey: no data") if text)
    _texts(figure, inches, title, subtitle, foot)

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Title": title, "Source": credit})
    _replace(Path(path), picture.getvalue())


def _replace(target: Path, content: bytes) -> None:
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        aside.replace(target)
    except OSError as error:
        raise StoreError(f"can't write {target}: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def _crs_name(crs: Any) -> str:
    import pyproj
    from pyproj.exceptions import CRSError as ProjError

    try:
        known = pyproj.CRS.from_user_input(crs)
    except ProjError as error:
        raise CRSError(f"unreadable CRS {crs!r}") from error
    authority = known.to_authority()
    return ":".join(authority) if authority else known.name


def _grid(x: Floats, y: Floats) -> _Map:
    """Turn the grid north up and west left, whichever way its coordinates run."""

    def axis(values: Floats, rising: bool) -> slice:
        step = -(-values.size // _MAX_PIXELS)
        return slice(None, None, step if (values[-1] > values[0]) == rising else -step)

    columns, rows = axis(x, rising=True), axis(y, rising=False)
    half_x, half_y = abs(x[1] - x[0]) / 2e3, abs(y[1] - y[0]) / 2e3
    extent = (
        float(x.min() / 1e3 - half_x),
        float(x.max() / 1e3 + half_x),
        float(y.min() / 1e3 - half_y),
        float(y.max() / 1e3 + half_y),
    )
    return _Map(x[columns] / 1e3, y[rows] / 1e3, extent, rows, columns)


def _percentiles(field: Floats, *q: float) -> list[float]:
    some = field[np.isfinite(field)]
    return [float(p) for p in np.percentile(some, q)] if some.size else [math.nan] * len(q)


def _image(axes: Axes, grid: _Map, field: Floats, cmap: str, norm: Normalize) -> ScalarMappable:
    """Draw a field; the colours are made here, some rows at a time: an image makes them of all
    that is drawn, with a dozen copies in float64.
    """
    from matplotlib.cm import ScalarMappable

    colours = ScalarMappable(norm, cmap)
    picture = np.empty((*field.shape, 4), np.uint8)
    for first in range(0, len(field), _ROWS):
        rows = slice(first, first + _ROWS)
        picture[rows] = colours.to_rgba(np.ma.masked_invalid(field[rows]), bytes=True)
    # nearest: a blend of data with the background at the edge of a gap would be a false colour
    axes.imshow(
        picture, extent=grid.extent, origin="upper", interpolation="nearest", aspect="equal"
    )
    return colours


def _draw_speed(axes: Axes, grid: _Map, u: Floats, v: Floats) -> tuple[ScalarMappable, str]:
    from matplotlib.colors import LogNorm, Normalize

    speed = np.hypot(u, v)
    low, high = _percentiles(speed, 2, 98)
    norm: Normalize
    if not high > 0:
        norm = Normalize(0, 1)
    elif high > 10 * max(low, 1e-3):
        norm = LogNorm(max(low, high / 1e3, min(1.0, high / 10)), high)
    else:
        norm = Normalize(max(0.0, low - (high - low) * 0.05), high)
    image = _image(axes, grid, speed, "turbo", norm)

    rows, columns = grid.every(_ARROWS)
    some = speed[rows, columns]
    moving = np.isfinite(some) & (some > 0)
    if not moving.any():
        return image, ""
    gx, gy = (a[moving] for a in np.meshgrid(grid.x[columns], grid.y[rows]))
    length = 0.4 + 0.6 * np.clip(np.ma.filled(norm(some[moving]), 0), 0, 1)
    length *= 0.85 * grid.side / _ARROWS
    axes.quiver(
        gx,
        gy,
        u[rows, columns][moving] / some[moving] * length,
        v[rows, columns][moving] / some[moving] * length,
        pivot="mid",
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=0.016,
        headwidth=4,
        headlength=4.5,
        headaxislength=4,
        color="white",
        edgecolor="#000000",
        linewidth=0.45,
        zorder=3,
    )
    return image, "arrows: direction of flow"


def _draw_strain(axes: Axes, grid: _Map, field: Floats, name: str) -> ScalarMappable:
    from matplotlib.colors import Normalize

    (limit,) = _percentiles(np.abs(field), 98)
    limit = limit if limit > 0 else 0.1
    if name == "effective":
        return _image(axes, grid, field, "magma_r", Normalize(0, limit))
    # green for extension, purple for compression: the crosses are red and blue
    return _image(axes, grid, field, "PRGn", Normalize(-limit, limit))


def _draw_crosses(axes: Axes, grid: _Map, e1: Floats, e2: Floats, theta: Floats) -> str:
    from matplotlib.collections import LineCollection

    rows, columns = grid.every(_CROSSES)
    gx, gy = np.meshgrid(grid.x[columns], grid.y[rows])
    e1, e2, theta = e1[rows, columns], e2[rows, columns], theta[rows, columns]
    size = np.maximum(np.abs(e1), np.abs(e2))
    (reference,) = _percentiles(size, 95)
    if not reference > 0:
        return ""
    seen = np.isfinite(size) & (size > 0.12 * reference)
    unit = 0.42 * grid.side / _CROSSES  # half of the arm of the reference
    for rate, turn in ((e1, 0.0), (e2, np.pi / 2)):
        for sign, colour in ((1, _EXTENSION), (-1, _COMPRESSION)):
            chosen = seen & (sign * rate > 0)
            half = np.minimum(np.abs(rate[chosen]) / reference, 1.2) * unit
            along = theta[chosen] + turn
            dx, dy = half * np.cos(along), half * np.sin(along)
            x, y = gx[chosen], gy[chosen]
            lines = np.stack([np.stack([x - dx, y - dy], -1), np.stack([x + dx, y + dy], -1)], 1)
            for colour_, width in (("white", 2.2), (colour, 1.1)):
                axes.add_collection(
                    LineCollection(list(lines), colors=colour_, linewidths=width, zorder=3)
                )
    known = _round_below(reference)
    _key(axes, grid, 2 * unit * known / reference, f"{known:g} / year", colour=_EXTENSION)
    return "principal axes: red extension, blue compression"


def _bar(figure: Figure, image: ScalarMappable, axes: Axes, label: str) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

    extend = "max" if image.norm.vmin == 0 else "both"
    bar = figure.colorbar(image, cax=axes, orientation="horizontal", extend=extend)
    if isinstance(image.norm, LogNorm):
        decades = math.log10(float(image.norm.vmax or 1) / float(image.norm.vmin or 1))
        width = axes.get_position().width * figure.get_figwidth()
        subs = (1.0, 2.0, 5.0) if decades < 0.46 * width else (1.0, 3.0)
        bar.locator = LogLocator(subs=subs, numticks=20)
        bar.formatter = FuncFormatter(lambda value, _: f"{value:,.10g}")
        bar.minorticks_off()
    else:
        bar.locator = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], symmetric=image.norm.vmin != 0)
    bar.update_ticks()
    axes.tick_params(labelsize=8.5, colors=_INK, length=3, width=0.6)
    bar.set_label(label, fontsize=9.5, color=_INK, labelpad=4)


def _dress(
    axes: Axes,
    grid: _Map,
    room: tuple[float, float],
    title: str,
    note: str,
    code: str,
    *,
    first: bool,
) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_facecolor(MISSING_COLOUR)
    axes.set_xlim(grid.extent[0], grid.extent[1])
    axes.set_ylim(grid.extent[2], grid.extent[3])
    plain = FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "−"))
    # an equal aspect leaves part of a panel unused where its proportions were bounded
    west, east, south, north = grid.extent
    scale = min(room[0] / (east - west), room[1] / (north - south))
    for axis, inches in (
        (axes.xaxis, (east - west) * scale),
        (axes.yaxis, (north - south) * scale),
    ):
        axis.set_major_locator(MaxNLocator(max(2, int(inches / 0.95)), steps=[1, 2, 5, 10]))
        axis.set_major_formatter(plain)
    axes.tick_params(labelsize=8.5, colors=_INK, length=3, width=0.6, labelleft=first)
    for spine in axes.spines.values():
        spine.set_linewidth(0.6)
        spine.set_color(_INK)
    axes.set_xlabel(f"x (km, {code})", fontsize=9, color=_INK, labelpad=3)
    if first:
        axes.set_ylabel(f"y (km, {code})", fontsize=9, color=_INK, labelpad=3)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=5)
    if note and room[0] >= _NOTE_ROOM:
        axes.set_title(note, loc="right", fontsize=8, color=_FAINT, pad=5)


def _scale_bar(axes: Axes, grid: _Map) -> None:
    west, east, _, _ = grid.extent
    length = _round_below((east - west) / 4)
    text = f"{length:g} km" if length >= 1 else f"{length * 1e3:g} m"
    _key(axes, grid, length, text, colour="black")


def _round_below(number: float) -> float:
    """The largest of 1, 2, 5, 10 and so on that is not above a number."""
    decade: float = 10.0 ** math.floor(math.log10(number))
    return max(n for n in (1, 2, 5) if n * decade <= number * (1 + 1e-9)) * decade


def _key(axes: Axes, grid: _Map, length: float, text: str, colour: str) -> None:
    """A bar of a known length in the lower left corner, and what it stands for."""
    from matplotlib.patches import Rectangle

    west, east, south, north = grid.extent
    left, bottom = west + 0.04 * (east - west), south + 0.045 * (north - south)
    thick = 0.010 * grid.side
    axes.add_patch(
        Rectangle(
            (left, bottom), length, thick, facecolor=colour, edgecolor="white", lw=0.9, zorder=4
        )
    )
    axes.text(
        left,
        bottom + 1.9 * thick,
        text,
        ha="left",
        va="bottom",
        fontsize=8.5,
        color=_INK,
        zorder=4,
        bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.2},
    )


def _texts(
    figure: Figure, inches: tuple[float, float], title: str, subtitle: str, foot: str
) -> None:
    wide, high = inches
    left = 0.22 / wide

    def lines(text: str, size: float, most: int) -> str:
        # a letter of this face is 0.58 of its size wide on average
        letters = max(20, int((wide - 0.5) * 72 / (0.58 * size)))
        return "\n".join(textwrap.wrap(text, letters, max_lines=most, placeholder=" …"))

    figure.text(
        left,
        1 - 0.2 / high,
        lines(title, 15, 1),
        fontsize=15,
        fontweight="bold",
        color=_INK,
        va="top",
    )
    figure.text(left, 1 - 0.52 / high, lines(subtitle, 10, 2), fontsize=10, color=_FAINT, va="top")
    figure.text(left, 0.12 / high, lines(foot, 8, 2), fontsize=8, color=_FAINT, va="bottom")
