"""Invented image pairs for the sample: names, dates, errors, and which ground each one saw.

A pair is one row of a cube. Its scalars (and the shape of its gaps) belong to the pair, so that
the cubes which hold it agree, as the real ones do.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MISSING = -32767.0
WAVES = 3
"""Plane waves that make the gaps of a pair."""
_AMPLITUDE = np.array([1.0, 0.7, 0.5], np.float32)
_SIGMA = float(np.sqrt((_AMPLITUDE**2).sum() / 2.0))
_EDGED = 0.4  # share of pairs whose scene ends inside the area
_COMPONENTS = ("vx", "vy", "va", "vr")

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Pairs:
    """Image pairs as columns; every array has one entry (or row) a pair."""

    granule: npt.NDArray[np.str_]
    """Basename of the granule: the identity of the pair."""
    columns: dict[str, npt.NDArray[np.generic]]
    """The one-dimensional variables of a cube, but ``roi_valid_percentage``."""
    waves: npt.NDArray[np.float32]
    """(pair, wave, 3): kx, ky in 1/m and phase of the gaps."""
    threshold: npt.NDArray[np.float32]
    edge: npt.NDArray[np.float32]
    """(pair, 3): normal x, y and offset in metres of the scene's edge; beyond it, nothing."""
    centre: tuple[float, float]
    """x, y that waves and edges are counted from."""

    def __len__(self) -> int:
        return len(self.granule)

    def take(self, index: npt.NDArray[np.intp]) -> Pairs:
        """Choose pairs, in the order of `index`."""
        return Pairs(
            self.granule[index],
            {name: column[index] for name, column in self.columns.items()},
            self.waves[index],
            self.threshold[index],
            self.edge[index],
            self.centre,
        )

    def seen(self, x: FloatArray, y: FloatArray, rows: slice) -> npt.NDArray[np.bool_]:
        """Tell where pairs have data.

        Parameters
        ----------
        x, y : ndarray
            Coordinates of the columns and rows, in metres.
        rows : slice
            Which pairs.

        Returns
        -------
        ndarray of bool, (pair, y, x)
        """
        dx = (np.asarray(x) - self.centre[0]).astype(np.float32)[None, None, :]
        dy = (np.asarray(y) - self.centre[1]).astype(np.float32)[None, :, None]
        field = np.zeros((len(self.threshold[rows]), len(y), len(x)), np.float32)
        for wave in range(WAVES):
            kx, ky, phase = (self.waves[rows, wave, i][:, None, None] for i in range(3))
            field += _AMPLITUDE[wave] * np.cos(kx * dx + (ky * dy + phase))
        nx, ny, offset = (self.edge[rows, i][:, None, None] for i in range(3))
        within: npt.NDArray[np.bool_] = nx * dx + ny * dy < offset
        within &= field >= self.threshold[rows][:, None, None]
        return within


def join(parts: list[Pairs]) -> Pairs:
    """Put several sets of pairs of one centre into one."""
    return Pairs(
        np.concatenate([part.granule for part in parts]),
        {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns},
        np.concatenate([part.waves for part in parts]),
        np.concatenate([part.threshold for part in parts]),
        np.concatenate([part.edge for part in parts]),
        parts[0].centre,
    )


class PairMaker:
    """Makes pairs whose granule names never repeat.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where all chance comes from.
    base_url : str
        Root of the URLs of the granules.
    start, end : str
        ISO dates that all images lie between.
    missing : float
        Mean share of pixels without data.
    """

    def __init__(
        self, rng: np.random.Generator, base_url: str, start: str, end: str, missing: float
    ) -> None:
        self._rng = rng
        self._base_url = base_url.rstrip("/")
        self._start = np.datetime64(start, "s")
        self._span = int((np.datetime64(end, "D") - np.datetime64(start, "D")).astype(int))
        self._missing = missing
        self._names: set[str] = set()

    def make(self, count: int, zone: str, extent: tuple[float, float, float, float]) -> Pairs:
        """Make `count` pairs of a zone that see (parts of) an extent.

        Parameters
        ----------
        count : int
        zone : str
            What stands for the ground in the names: Sentinel-2's grid zone, as ``22W``.
        extent : tuple of float
            left, bottom, right, top in metres.
        """
        rng = self._rng
        kind = rng.choice(["landsatOLI", "sentinel2", "sentinel1"], count, p=[0.4, 0.35, 0.25])
        kind[:2] = "sentinel2"  # however few there are, one instant comes twice (below)
        dt = self._intervals(kind)
        clock = {"landsatOLI": 53_460, "sentinel2": 55_150, "sentinel1": 74_820}
        noon = np.array([clock[k] for k in kind]) + rng.integers(-40, 40, count)
        first = self._start + (
            (rng.random(count) * (self._span - dt)).astype(np.int64) * 86_400 + noon
        ).astype("timedelta64[s]")
        second = first + (dt * 86_400 + rng.integers(-9, 9, count)).astype("timedelta64[s]")
        tile = rng.integers(0, 26, count)
        # Neighbouring Sentinel-2 tiles are cut from one datatake: two granules of the same
        # instant, which is how equal mid_dates come about.
        optical = np.flatnonzero(kind == "sentinel2")
        for a, b in zip(optical[0::10], optical[1::10], strict=False):
            first[b], second[b], dt[b] = first[a], second[a], dt[a]
            tile[b] = (tile[a] + 1) % 26
        return self._finish(kind, first, second, tile, zone, extent)

    def twins(
        self,
        pairs: Pairs,
        count: int,
        zone: str,
        extent: tuple[float, float, float, float],
    ) -> Pairs:
        """Make other granules of the same instants as (at most `count`) Sentinel-2 pairs."""
        mine = np.flatnonzero(pairs.columns["satellite_img1"] == "2A")[:count]
        acquired = [
            np.rint(pairs.columns[f"acquisition_date_img{i}"][mine].astype(float) * 86_400.0)
            for i in (1, 2)
        ]
        kind = np.full(len(mine), "sentinel2")
        return self._finish(
            kind,
            acquired[0].astype(np.int64).astype("datetime64[s]"),
            acquired[1].astype(np.int64).astype("datetime64[s]"),
            self._rng.integers(0, 26, len(mine)),
            zone,
            extent,
        )

    def _intervals(self, kind: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        rng, count = self._rng, len(kind)
        cycles = np.minimum(rng.geometric(0.12, count), 25)
        choice = {
            "landsatOLI": 16 * cycles,
            "sentinel2": np.minimum(5 * (1 + 3 * cycles), 400),
            "sentinel1": 6 * rng.integers(1, 7, count),
        }
        dt = np.select([kind == k for k in choice], list(choice.values()))
        return np.asarray(np.clip(dt, 6, max(6, min(400, self._span - 1))), np.int64)

    def _finish(
        self,
        kind: npt.NDArray[np.str_],
        first: npt.NDArray[np.datetime64],
        second: npt.NDArray[np.datetime64],
        tile: npt.NDArray[np.int64],
        zone: str,
        extent: tuple[float, float, float, float],
    ) -> Pairs:
        count = len(kind)
        percent = self._rng.integers(3, 96, count)
        granules, urls, satellites = [], [], []
        for row in range(count):
            name, satellite = self._name(
                str(kind[row]), first[row], second[row], int(tile[row]), zone, int(percent[row])
            )
            granules.append(name)
            satellites.append(satellite)
            folder = f"velocity_image_pair/{kind[row]}/v02/N60W040"
            urls.append(f"{self._base_url}/{folder}/{name}")
        columns = _columns(self._rng, kind, first, second, satellites)
        columns["granule_url"] = np.array(urls, "<U1024")
        waves, threshold, edge, centre = self._gaps(count, extent)
        return Pairs(np.array(granules, np.str_), columns, waves, threshold, edge, centre)

    def _name(
        self,
        kind: str,
        first: np.datetime64,
        second: np.datetime64,
        tile: int,
        zone: str,
        percent: int,
    ) -> tuple[str, tuple[str, str]]:
        a, b = (str(d).replace("-", "").replace(":", "") for d in (first, second))
        while True:
            draw = [int(n) for n in self._rng.integers(0, 65_536, 4)]
            if kind == "landsatOLI":
                scene = f"{8 + draw[0] % 4:03d}{10 + draw[1] % 4:03d}"
                parts = [f"LC08_L1TP_{scene}_{d[:8]}_{d[:8]}_02_T1" for d in (a, b)]
                who = ("8", "8")
            elif kind == "sentinel2":
                who = ("2A", "2A" if draw[0] % 2 else "2B")
                square = f"T{zone}{'EDCBA'[tile % 5]}{chr(65 + (tile + draw[3] % 3) % 22)}"
                parts = [
                    f"S{w}_MSIL1C_{d}_N0207_R{draw[1] % 144:03d}_{square}_{d}"
                    for w, d in zip(who, (a, b), strict=True)
                ]
            else:
                who = ("1A", "1B" if draw[0] % 2 else "1A")
                parts = [
                    f"S{w}_IW_SLC__1SDH_{d}_{d}_{n % 40_000:06d}_{n:06X}_{m:04X}"
                    for w, d, n, m in zip(who, (a, b), draw[:2], draw[2:], strict=True)
                ]
            name = f"{parts[0]}_X_{parts[1]}_G0120V02_P{percent:03d}.nc"
            if name not in self._names:
                self._names.add(name)
                return name, who

    def _gaps(
        self, count: int, extent: tuple[float, float, float, float]
    ) -> tuple[
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        tuple[float, float],
    ]:
        rng = self._rng
        left, bottom, right, top = extent
        size = max(right - left, top - bottom)
        turn = rng.uniform(0.0, 2.0 * np.pi, (count, WAVES))
        number = 2.0 * np.pi / rng.uniform(3_000.0, 12_000.0, (count, WAVES))
        phase = rng.uniform(0.0, 2.0 * np.pi, (count, WAVES))
        waves = np.stack([number * np.cos(turn), number * np.sin(turn), phase], axis=-1)
        # An edge inside the area hides half of it on average; the waves hide the rest.
        hidden = 1.0 - (1.0 - self._missing) / (1.0 - 0.5 * _EDGED)
        share = np.clip(rng.normal(hidden, 0.12, count), 0.02, 0.98)
        quantile = NormalDist(0.0, _SIGMA).inv_cdf
        threshold = np.array([quantile(float(q)) for q in share])
        if hidden <= 0.0:
            threshold[:] = -np.inf
        heading = rng.uniform(0.0, 2.0 * np.pi, count)
        offset = np.where(rng.random(count) < _EDGED, rng.uniform(-0.5, 0.5, count) * size, np.inf)
        if self._missing <= 0.0:
            offset[:] = np.inf
        edge = np.stack([np.cos(heading), np.sin(heading), offset], axis=-1)
        return (
            waves.astype(np.float32),
            threshold.astype(np.float32),
            edge.astype(np.float32),
            ((left + right) / 2.0, (bottom + top) / 2.0),
        )


def _columns(
    rng: np.random.Generator,
    kind: npt.NDArray[np.str_],
    first: npt.NDArray[np.datetime64],
    second: npt.NDArray[np.datetime64],
    satellites: list[tuple[str, str]],
) -> dict[str, npt.NDArray[np.generic]]:
    count = len(kind)
    a, b = (d.astype("datetime64[s]").astype(np.int64) for d in (first, second))
    centre = (a + b) // 2
    # ITS_LIVE makes mid_date nearly unique by adding image 1's YYMMDD as microseconds.
    label = np.array([int(str(d)[2:10].replace("-", "")) for d in first.tolist()], np.int64)
    days = (b - a) / 86_400.0
    radar = kind == "sentinel1"
    out: dict[str, npt.NDArray[np.generic]] = {
        "mid_date": (centre * 1_000_000 + label) / 86_400e6,
        "date_center": centre / 86_400.0,
        "acquisition_date_img1": a / 86_400.0,
        "acquisition_date_img2": b / 86_400.0,
        "date_dt": days.astype(np.float32),
    }
    flag = rng.integers(0, 3, count)
    for name in _COMPONENTS:
        there = radar if name in ("va", "vr") else np.ones(count, bool)
        # About one metre of error in the displacement, as in the real series.
        model = 365.25 / days
        stationary = model * np.exp(rng.normal(0.0, 0.3, count))
        slow = model * np.exp(rng.normal(0.0, 0.3, count))
        best = np.select([flag == 1, flag == 2], [stationary, slow], model)
        shift = rng.normal(0.0, 1.0, (2, count)) * model
        numbers = {
            "_error": np.maximum(best, 0.5),
            "_error_modeled": np.maximum(model, 0.5),
            "_error_slow": np.maximum(slow, 0.5),
            "_error_stationary": np.maximum(stationary, 0.5),
            "_stable_shift": np.select([flag == 1, flag == 2], [shift[0], shift[1]], 0.0),
            "_stable_shift_slow": shift[1],
            "_stable_shift_stationary": shift[0],
        }
        for suffix, values in numbers.items():
            out[name + suffix] = np.where(there, np.round(values, 1), MISSING).astype(np.float32)
    out["stable_shift_flag"] = flag.astype(np.uint8)
    for name in ("stable_count_slow", "stable_count_stationary"):
        out[name] = rng.integers(0, 65_535, count).astype(np.uint16)
    for name in ("M11", "M12"):
        factor = np.where(radar, rng.uniform(70.0, 90.0, count), 0.0)
        out[f"{name}_dr_to_vr_factor"] = factor.astype(np.float32)
    sensors = {"landsatOLI": "C", "sentinel2": "MSI", "sentinel1": "C"}
    mission = np.where(kind == "landsatOLI", "L", "S").astype("<U1")
    for image in (1, 2):
        out[f"mission_img{image}"] = mission
        out[f"satellite_img{image}"] = np.array([w[image - 1] for w in satellites], "<U2")
        out[f"sensor_img{image}"] = np.array([sensors[k] for k in kind], "<U3")
    out["autoRIFT_software_version"] = np.full(count, "1.5.0", "<U5")
    return out
